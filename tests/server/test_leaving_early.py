import asyncio

import pytest

from servinglib.errors import DeadlineExceeded, InvalidRequest, QueueFull, ServerClosed
from servinglib.server.batch_server import BatchInferenceServer


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_request_past_its_deadline_is_told_on_time_and_takes_no_place(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=2) as server:
        first = [server.predict(i) for i in (1, 2)]
        hasty, patient = server.predict(3, timeout=0.5), server.predict(4)
        with pytest.raises(DeadlineExceeded, match=r"timeout of 0\.5 s"):
            await hasty
        assert now() == 0.5
        await asyncio.gather(*first, patient)
        assert server.statistics.expired == 1
    assert model.batches == [[1, 2], [4]]


async def test_a_deadline_counts_in_service_too(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=2) as server:
        hasty, patient = server.predict(1, timeout=0.7), server.predict(2, timeout=9)
        with pytest.raises(DeadlineExceeded):
            await hasty
        assert now() == 0.7
        assert server.statistics.running == 1
        assert await patient == 20
        assert (server.statistics.completed, server.statistics.expired) == (1, 1)


async def test_a_deadline_given_during_a_batch_is_kept_before_it_ends(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=1) as server:
        running = server.predict(1, timeout=50)
        await asyncio.sleep(0.25)
        with pytest.raises(DeadlineExceeded):
            await server.predict(2, timeout=0.125)
        assert now() == 0.375
        await running


@pytest.mark.parametrize("timeout", [0, -3])
async def test_a_request_that_comes_too_late_is_never_served(model, timeout: float) -> None:
    async with BatchInferenceServer(model, max_wait_time=0) as server:
        with pytest.raises(DeadlineExceeded):
            await server.predict(1, timeout=timeout)
    assert model.batches == []


async def test_a_timeout_that_is_no_number_is_refused(model) -> None:
    async with BatchInferenceServer(model) as server:
        with pytest.raises(InvalidRequest, match="timeout=nan"):
            await server.predict(1, timeout=float("nan"))
        with pytest.raises(InvalidRequest, match="priority="):
            await server.predict(1, priority=float("nan"))
        assert await server.predict(1) == 10
        assert (server.statistics.rejected, server.statistics.completed) == (2, 1)


async def test_a_cancelled_request_leaves_no_trace(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=2, max_wait_time=10, max_queue_size=2) as server:
        gone = server.predict(1)
        await asyncio.sleep(1)
        kept = server.predict(2)
        assert gone.cancel()
        assert server.statistics.waiting == 1
        kept_too = server.predict(3)
        await asyncio.gather(kept, kept_too)
        assert (server.statistics.cancelled, server.statistics.completed) == (1, 2)
    assert model.batches == [[2, 3]]


async def test_the_window_of_a_cancelled_request_goes_with_it(model) -> None:
    async with BatchInferenceServer(model, max_wait_time=10) as server:
        gone = server.predict(1)
        await asyncio.sleep(4)
        kept = server.predict(2)
        gone.cancel()
        await kept
    assert model.starts == [14]


async def test_a_cancelled_request_frees_its_place_in_the_queue_at_once(model) -> None:
    async with BatchInferenceServer(model, max_queue_size=1) as server:
        gone = server.predict(1)
        with pytest.raises(QueueFull):
            await server.predict(2)
        gone.cancel()
        assert await server.predict(3) == 30


@pytest.mark.parametrize("pause", [0, 0.5])
async def test_a_cancelled_task_takes_its_request_with_it_waiting_or_in_service(model, pause: float) -> None:
    async with BatchInferenceServer(model, max_batch_size=2, max_wait_time=0) as server:
        gone, kept = asyncio.create_task(server.predict(1)), asyncio.create_task(server.predict(2))
        await asyncio.sleep(pause)
        gone.cancel()
        assert await kept == 20
        assert gone.cancelled()
        assert (server.statistics.cancelled, server.statistics.running) == (1, 0)


async def test_a_task_cancelled_before_it_began_gives_its_request_up(model) -> None:
    async with BatchInferenceServer(model) as server:
        task = asyncio.create_task(server.predict(1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (server.statistics.cancelled, server.statistics.waiting) == (1, 0)
    assert model.batches == []


async def test_cancelling_a_gather_or_a_wait_for_cancels_its_requests(model) -> None:
    async with BatchInferenceServer(model, max_wait_time=5) as server:
        together = asyncio.gather(server.predict(1), server.predict(2))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.predict(3), 1)
        together.cancel()
        with pytest.raises(asyncio.CancelledError):
            await together
        assert (server.statistics.cancelled, server.statistics.waiting) == (3, 0)


async def test_cancelling_after_the_answer_changes_nothing(model) -> None:
    async with BatchInferenceServer(model) as server:
        reply = server.predict(1)
        assert await reply == 10
        assert not reply.cancel()
        assert (server.statistics.cancelled, server.statistics.completed) == (0, 1)


async def test_a_drain_answers_everybody_without_waiting_for_windows(model) -> None:
    server = await BatchInferenceServer(model, max_batch_size=2, max_wait_time=100).start()
    replies = [server.predict(i) for i in range(5)]
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0.5)
    with pytest.raises(ServerClosed):
        await server.predict(9)
    await stopping
    assert [reply.result() for reply in replies] == [0, 10, 20, 30, 40]
    assert now() == pytest.approx(1.02 + 1.02 + 1.01)


async def test_a_stop_without_drain_fails_who_waits_and_who_is_in_service_at_once(model) -> None:
    server = await BatchInferenceServer(model, max_batch_size=2).start()
    replies = [server.predict(i) for i in range(5)]
    await asyncio.sleep(0.5)
    await server.stop(drain=False)
    results = await asyncio.gather(*replies, return_exceptions=True)
    assert [type(r) for r in results] == [ServerClosed] * 5
    assert now() == 0.5
    assert (server.statistics.failed, server.statistics.running, server.statistics.waiting) == (5, 0, 0)


async def test_an_impatient_second_stop_cuts_a_drain_short(model) -> None:
    server = await BatchInferenceServer(model, max_batch_size=1).start()
    replies = [server.predict(i) for i in range(3)]
    patient = asyncio.create_task(server.stop())
    await asyncio.sleep(1.5)
    await server.stop(drain=False)
    await patient
    results = await asyncio.gather(*replies, return_exceptions=True)
    assert results[0] == 0
    assert [type(r) for r in results[1:]] == [ServerClosed] * 2
    assert now() == 1.5


async def test_a_server_may_be_stopped_twice_and_before_it_was_started(model) -> None:
    server = await BatchInferenceServer(model).start()
    await server.stop()
    await server.stop()
    await server.stop(drain=False)
    unused = BatchInferenceServer(model)
    await unused.stop()
    with pytest.raises(ServerClosed):
        await unused.start()
    with pytest.raises(ServerClosed):
        await unused.predict(1)


async def test_a_drain_ends_when_the_last_who_waited_gives_up(model) -> None:
    server = await BatchInferenceServer(model, max_wait_time=100).start()
    reply = server.predict(1)
    stopping = asyncio.create_task(server.stop())
    reply.cancel()
    await stopping
    assert model.batches == []


async def test_an_exception_in_the_block_fails_who_still_waits_and_passes_on(model) -> None:
    server = BatchInferenceServer(model, max_wait_time=100)

    async def block() -> None:
        async with server:
            await asyncio.gather(server.predict(1), refuse())

    async def refuse() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await block()
    assert (server.statistics.failed, model.batches) == (1, [])


async def test_a_batch_cancelled_from_outside_leaves_nobody_waiting(model) -> None:
    server = await BatchInferenceServer(model, max_batch_size=1).start()
    replies = [server.predict(i) for i in range(2)]
    await asyncio.sleep(0.5)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    results = await asyncio.gather(*replies, return_exceptions=True)
    assert [type(r) for r in results] == [ServerClosed] * 2
    await server.stop()
