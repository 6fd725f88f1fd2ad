"""Requests from an event loop: it is never blocked, hears a step at once, and what it drops is ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from scripted import Gate, script, scripted_engine

from servinglib.engines.base import complete
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import ContextTooLong, EngineFailed, InvalidRequest, ServerClosed
from servinglib.policies.sequence import StepPlan
from servinglib.request import Request, SamplingParams, TokenEvent

A = [1, 2, 3, 4, 5, 6, 7, 8]


def ask(name: str, max_tokens: int = 4, timeout: float | None = None) -> Request:
    return Request(name, A, SamplingParams(max_tokens=max_tokens, ignore_eos=True), timeout=timeout)


async def read(stream: AsyncIterator[TokenEvent]) -> list[int | None]:
    return [event.token_id async for event in stream]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def engine(gate: Gate) -> Iterator[ContinuousEngine]:
    """Each of its steps waits at the gate."""
    with scripted_engine(before=gate) as engine:
        yield engine
        gate.open()


async def barrier(engine: ContinuousEngine) -> None:
    """Return when the engine has followed all orders that were given before."""
    await read(engine.submit(ask("barrier", 1)))


def test_a_stream_gives_the_answer_and_a_completion_can_be_made_of_it(engine: ContinuousEngine, gate: Gate):
    async def main() -> list[TokenEvent]:
        gate.open()
        return [event async for event in engine.submit(request)]

    request = ask("a")
    answer = complete(request, 8, asyncio.run(main()), 0.0)
    assert (list(answer.token_ids), answer.finish_reason) == (script(A, 4), "length")


def test_the_event_loop_runs_on_while_a_step_is_computed(engine: ContinuousEngine, gate: Gate):
    async def main() -> None:
        tasks = [asyncio.create_task(read(engine.submit(ask("a"))))]
        await asyncio.sleep(0)
        gate.wait()  # the engine is in the middle of a step, and stays there
        tasks.append(asyncio.create_task(read(engine.submit(ask("b")))))
        for _ in range(100):
            await asyncio.sleep(0)
        assert engine.abort("b") is True
        assert not any(task.done() for task in tasks)
        gate.open()
        first, second = await asyncio.gather(*tasks)
        assert (first, second) == (script(A, 4), [None])

    asyncio.run(main())


def test_the_events_of_a_step_come_in_one_wake_up(
    engine: ContinuousEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    async def main() -> int:
        running = asyncio.get_running_loop()
        wake, calls = running.call_soon_threadsafe, []
        monkeypatch.setattr(
            running,
            "call_soon_threadsafe",
            lambda *args, **more: (calls.append(args), wake(*args, **more))[1],
        )
        hold = engine.submit(ask("hold", 1))  # its step is held until all others are there
        gate.wait()
        streams = [engine.submit(ask(name, 5)) for name in "abcd"]  # a step has room for all four
        gate.open()
        await asyncio.gather(*map(read, streams))
        await read(hold)
        return len(calls)

    assert asyncio.run(main()) == 1 + 5


def test_a_cancelled_reader_ends_its_request(engine: ContinuousEngine, gate: Gate):
    async def main() -> None:
        task = asyncio.create_task(read(engine.submit(ask("a", 50))))
        await asyncio.sleep(0)
        gate.open(2)
        gate.wait()
        gate.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await barrier(engine)
        assert engine.abort("a") is False
        assert engine.statistics.request_success == {"abort": 1, "length": 1}
        assert engine.statistics.kv_cache_usage == 0

    asyncio.run(main())


def test_a_stream_that_is_closed_in_the_middle_ends_its_request(engine: ContinuousEngine, gate: Gate):
    async def main() -> None:
        stream = engine.submit(ask("a", 50))
        gate.open(1)
        assert (await anext(stream)).token_id == script(A, 1)[0]
        await stream.aclose()
        gate.open()
        await barrier(engine)
        assert engine.statistics.request_success == {"abort": 1, "length": 1}

    asyncio.run(main())


def test_a_stream_that_is_closed_before_anybody_reads_it_ends_its_request(
    engine: ContinuousEngine, gate: Gate
):
    async def main() -> None:
        stream = engine.submit(ask("a", 50))
        gate.wait()
        await stream.aclose()
        gate.open()
        await barrier(engine)
        assert engine.statistics.request_success == {"abort": 1, "length": 1}

    asyncio.run(main())


def test_a_stream_that_is_dropped_ends_its_request(engine: ContinuousEngine, gate: Gate):
    async def main() -> None:
        stream = engine.submit(ask("a", 50))
        gate.wait()
        del stream
        gate.open()
        await barrier(engine)
        assert engine.statistics.request_success == {"abort": 1, "length": 1}

    asyncio.run(main())


def test_a_reader_whose_stream_is_closed_by_another_task_hears_the_end(engine: ContinuousEngine, gate: Gate):
    async def main() -> list[int | None]:
        stream = engine.submit(ask("a", 50))
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        gate.wait()  # the abort comes while the first step is computed
        await stream.aclose()
        gate.open()
        return await asyncio.wait_for(reader, 5)

    assert asyncio.run(main()) == script(A, 1)


def test_a_new_request_of_an_ended_one_s_id_gets_its_own_events(engine: ContinuousEngine, gate: Gate):
    async def main() -> tuple[list[int | None], list[int | None]]:
        gate.open()
        first = engine.submit(ask("same", 2))  # ends before anybody reads it
        await asyncio.to_thread(engine.generate, [[1]], max_tokens=8)
        second = engine.submit(ask("same", 3))
        one, two = await asyncio.wait_for(asyncio.gather(read(first), read(second)), 5)
        return one, two

    assert asyncio.run(main()) == (script(A, 2), script(A, 3))


def test_readers_of_two_event_loops_get_their_own_events(engine: ContinuousEngine, gate: Gate):
    gate.open()
    for count in (2, 3):
        assert asyncio.run(read_one(engine, count)) == script(A, count)


async def read_one(engine: ContinuousEngine, count: int) -> list[int | None]:
    return await read(engine.submit(ask("a", count)))


def test_an_event_loop_that_has_gone_harms_no_other(engine: ContinuousEngine, gate: Gate):
    async def leave() -> None:
        streams.append(engine.submit(ask("left", 6)))

    streams: list[AsyncIterator[TokenEvent]] = []
    asyncio.run(leave())
    gate.open()
    [answer] = engine.generate([A], max_tokens=4, ignore_eos=True)
    assert list(answer.token_ids) == script(A, 4)


def test_after_a_refusal_nobody_waits(engine: ContinuousEngine, gate: Gate):
    async def main() -> list[int | None]:
        gate.open()
        with pytest.raises(ContextTooLong, match=r"8 prompt tokens \+ max_tokens=249 = 257.* holds 256"):
            engine.submit(ask("a", 249))
        return await asyncio.wait_for(read(engine.submit(ask("a"))), 5)

    assert asyncio.run(main()) == script(A, 4)


def test_a_second_request_of_a_running_one_s_id_is_refused_and_the_first_goes_on(
    engine: ContinuousEngine, gate: Gate
):
    async def main() -> list[int | None]:
        first = engine.submit(ask("a"))
        with pytest.raises(InvalidRequest, match="unique"):
            engine.submit(ask("a"))
        gate.open()
        return await read(first)

    assert asyncio.run(main()) == script(A, 4)


def test_a_request_that_has_no_time_left_ends_with_deadline(engine: ContinuousEngine, gate: Gate):
    async def main() -> list[TokenEvent]:
        gate.open()
        return [event async for event in engine.submit(ask("a", timeout=0.0))]

    [event] = asyncio.run(main())
    assert (event.finish_reason, event.token_id, event.index) == ("deadline", None, 0)


def test_a_request_that_has_time_enough_is_answered(engine: ContinuousEngine, gate: Gate):
    async def main() -> list[int | None]:
        gate.open()
        return await read(engine.submit(ask("a", timeout=3600.0)))

    assert asyncio.run(main()) == script(A, 4)


def test_shutdown_ends_every_reader_with_server_closed(engine: ContinuousEngine, gate: Gate):
    async def main() -> list[object]:
        tasks = [asyncio.create_task(read(engine.submit(ask(name, 100)))) for name in "ab"]
        await asyncio.sleep(0)
        gate.wait()
        closing = asyncio.create_task(asyncio.to_thread(engine.shutdown))
        while not closing.done():  # step by step, so that nobody ends before the engine does
            gate.open(1)
            await asyncio.wait([closing], timeout=0.01)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result) for result in asyncio.run(main())] == [ServerClosed, ServerClosed]


def test_a_step_that_raises_reaches_every_reader():
    def fail(plan: StepPlan) -> None:
        raise RuntimeError("the page is torn")

    async def main() -> None:
        with pytest.raises(EngineFailed, match="the page is torn"):
            await read(engine.submit(ask("a")))
        with pytest.raises(EngineFailed, match="the page is torn"):
            engine.submit(ask("b"))

    with scripted_engine(before=fail) as engine:
        asyncio.run(main())
        with pytest.raises(EngineFailed, match="the page is torn"):
            engine.generate([A])
