"""A synchronous model in its own thread; these tests shake hands with it instead of sleeping."""

import asyncio
import sys
import threading

import pytest

from servinglib.errors import DeadlineExceeded, ServerClosed, ServingError
from servinglib.server.batch_server import BatchInferenceServer

PATIENCE = 30  # seconds after which a test that hangs is given up


class GatedModel:
    """Works only while its gate is open, and says when it has begun."""

    def __init__(self) -> None:
        self.begun, self.gate = threading.Event(), threading.Event()
        self.threads: set[int] = set()
        self.calls = 0

    def generate_batch(self, items: list) -> list:
        self.calls += 1
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.gate.wait(PATIENCE)
        if "exit" in items:
            sys.exit("enough")
        if "bad" in items:
            raise ValueError("bad")
        return [item * 2 for item in items]


async def begun(model: GatedModel) -> None:
    assert await asyncio.to_thread(model.begun.wait, PATIENCE)


def test_the_event_loop_stays_free_while_the_model_works() -> None:
    async def main() -> None:
        model = GatedModel()
        async with BatchInferenceServer(model, max_wait_time=0) as server:
            reply = server.predict(4)
            await begun(model)
            assert server.statistics.running == 1
            assert not reply.done()
            model.gate.set()  # only a free loop gets here
            assert await reply == 8

    asyncio.run(main())


def test_the_model_runs_in_one_thread_and_not_on_the_loop() -> None:
    async def main() -> None:
        model = GatedModel()
        model.gate.set()
        async with BatchInferenceServer(model, max_batch_size=2, max_wait_time=0) as server:
            answers = await asyncio.gather(*(server.predict(i) for i in range(50)))
        assert answers == [2 * i for i in range(50)]
        assert len(model.threads) == 1
        assert threading.get_ident() not in model.threads

    asyncio.run(main())


def test_a_deadline_is_kept_while_the_thread_is_busy() -> None:
    async def main() -> None:
        model = GatedModel()
        async with BatchInferenceServer(model, max_wait_time=0) as server:
            reply = server.predict(1)
            await begun(model)
            with pytest.raises(DeadlineExceeded):
                await server.predict(2, timeout=0.001)
            model.gate.set()
            assert await reply == 2

    asyncio.run(main())


def test_a_bad_item_fails_alone_in_the_thread_too() -> None:
    async def main() -> None:
        model = GatedModel()
        model.gate.set()
        async with BatchInferenceServer(model) as server:
            results = await asyncio.gather(
                *(server.predict(i) for i in (1, "bad", 3)), return_exceptions=True
            )
        assert (results[0], results[2]) == (2, 6)
        assert isinstance(results[1], ValueError)

    asyncio.run(main())


def test_a_model_that_exits_fails_its_batch_and_not_the_program() -> None:
    async def main() -> None:
        model = GatedModel()
        model.gate.set()
        async with BatchInferenceServer(model) as server:
            with pytest.raises(ServingError, match="SystemExit"):
                await server.predict("exit")
            assert await server.predict(1) == 2

    asyncio.run(main())


def test_a_stop_without_drain_answers_at_once_and_waits_for_the_thread() -> None:
    async def main() -> None:
        model = GatedModel()
        server = await BatchInferenceServer(model, max_wait_time=0).start()
        reply = server.predict(1)
        await begun(model)
        stopping = asyncio.create_task(server.stop(drain=False))
        with pytest.raises(ServerClosed):
            await reply
        assert not stopping.done()
        model.gate.set()
        await stopping
        assert not any(thread.ident in model.threads for thread in threading.enumerate())

    asyncio.run(main())


def test_a_stop_without_drain_ends_the_hunt_after_guilty_items() -> None:
    async def main() -> None:
        model = GatedModel()
        server = await BatchInferenceServer(model, max_batch_size=3).start()
        replies = [server.predict(item) for item in (1, "bad", 3)]
        await begun(model)
        stopping = asyncio.create_task(server.stop(drain=False))
        results = await asyncio.gather(*replies, return_exceptions=True)
        model.gate.set()
        await stopping
        assert [type(r) for r in results] == [ServerClosed] * 3
        assert model.calls == 1

    asyncio.run(main())


def test_a_loop_that_ends_without_a_stop_ends_the_thread_too() -> None:
    model = GatedModel()

    async def main() -> threading.Thread:
        server = await BatchInferenceServer(model, max_wait_time=0).start()
        server.predict(1)
        await begun(model)
        [worker] = [t for t in threading.enumerate() if t.ident in model.threads]
        return worker

    worker = asyncio.run(main())
    model.gate.set()
    worker.join(PATIENCE)
    assert not worker.is_alive()


def test_an_interrupt_during_an_asynchronous_batch_ends_the_program_and_nobody_is_left_waiting() -> None:
    class Interrupted:
        async def generate_batch(self, items: list) -> list:
            raise KeyboardInterrupt

    replies = []

    async def main() -> None:
        async with BatchInferenceServer(Interrupted()) as server:
            replies.append(server.predict(1))
            await asyncio.sleep(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert isinstance(replies[0].exception(), ServingError)
