import asyncio

import pytest

from servinglib.errors import InvalidRequest, InvalidSetting, QueueFull, ServerClosed, ServerNotStarted
from servinglib.policies.adaptive_batching import AdaptiveBatching
from servinglib.request import Request
from servinglib.server.batch_server import BatchInferenceServer


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_each_caller_gets_the_answer_to_its_own_item(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=3) as server:
        answers = await asyncio.gather(*(server.predict(i) for i in range(8)))
    assert answers == [10 * i for i in range(8)]
    assert model.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_the_window_opens_with_the_first_request_and_closes_on_time(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=8, max_wait_time=0.5) as server:
        await asyncio.sleep(3)
        first = server.predict(1)
        await asyncio.sleep(0.25)
        second = server.predict(2)
        await asyncio.gather(first, second)
    assert model.starts == [3.5]
    assert model.batches == [[1, 2]]


async def test_a_full_batch_leaves_at_once(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=2, max_wait_time=100) as server:
        first = server.predict(1)
        await asyncio.sleep(0.25)
        await asyncio.gather(first, server.predict(2))
    assert model.starts == [0.25]


async def test_requests_that_come_during_a_batch_leave_together_when_it_ends(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=4, max_wait_time=0) as server:
        replies = [server.predict(0)]
        for i in (1, 2, 3):
            await asyncio.sleep(0.1)
            replies.append(server.predict(i))
        await asyncio.gather(*replies)
    assert model.batches == [[0], [1, 2, 3]]
    assert model.starts == [0, 1.01]


async def test_the_window_counts_from_the_arrival_even_when_a_batch_ran_meanwhile(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=4, max_wait_time=1.5) as server:
        first = [server.predict(i) for i in range(4)]
        await asyncio.sleep(1)
        late = server.predict(9)
        await asyncio.gather(*first, late)
    assert model.starts == [0, 2.5]


async def test_an_idle_server_sets_no_timer_and_never_wakes(model) -> None:
    async with BatchInferenceServer(model) as server:
        await server.predict(1)
        loop = asyncio.get_running_loop()
        wakings = 0
        look_up = server._dispatcher.look_up

        def count() -> None:
            nonlocal wakings
            wakings += 1
            look_up()

        server._dispatcher.look_up = count
        await asyncio.sleep(1e6)
        assert wakings == 0
        server.predict(2)
        await asyncio.sleep(1e6)
        assert wakings == 3  # the arrival, the end of the window, the end of the batch
        assert loop.time() > 2e6


async def test_a_higher_priority_is_served_first(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=2) as server:
        replies = [server.predict(i, priority=p) for i, p in enumerate([0, 0, 1, 5, 1])]
        await asyncio.gather(*replies)
    assert model.batches == [[3, 2], [4, 0], [1]]


async def test_limits_by_cost_fill_batches_by_cost(model) -> None:
    async with BatchInferenceServer(model, 8, max_batch_cost=10, cost=lambda item: item) as server:
        await asyncio.gather(*(server.predict(i) for i in [4, 4, 4, 9, 1, 2]))
    assert model.batches == [[4, 4], [4], [9, 1], [2]]


@pytest.mark.parametrize("cost", [11, -1, float("nan")])
async def test_an_item_that_fits_into_no_batch_is_refused_with_the_numbers(model, cost) -> None:
    async with BatchInferenceServer(model, max_batch_cost=10, cost=lambda _: cost) as server:
        with pytest.raises(
            InvalidRequest, match=f"costs {cost:g}, but a cost must lie between 0 and max_batch_cost=10"
        ):
            await server.predict(1)
        assert (server.statistics.rejected, server.statistics.offered) == (1, 1)


async def test_a_fault_in_the_cost_function_is_its_callers_answer(model) -> None:
    async with BatchInferenceServer(model, cost=len) as server:
        with pytest.raises(TypeError, match="has no len"):
            await server.predict(5)
        assert await server.predict([]) == []


async def test_a_full_queue_refuses_at_once_and_tells_when_to_come_back(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=2, max_wait_time=0.5, max_queue_size=3) as server:
        await asyncio.gather(server.predict(1), server.predict(2))  # 2 requests in 1.02 s
        served = [server.predict(i) for i in (1, 2)]
        await asyncio.sleep(0.1)
        waiting = [server.predict(i) for i in (3, 4, 5)]
        with pytest.raises(QueueFull, match="3 requests wait and the limit is 3") as refusal:
            await server.predict(6)
        assert now() == pytest.approx(1.12)
        assert refusal.value.retry_after == pytest.approx(1.02)
        assert server.statistics.rejected == 1
        await asyncio.gather(*served, *waiting)


async def test_a_burst_larger_than_the_queue_is_refused_only_what_a_leaving_batch_leaves_no_room_for(
    model,
) -> None:
    async with BatchInferenceServer(model, max_batch_size=2, max_queue_size=3) as server:
        replies = [server.predict(i) for i in range(6)]
        results = await asyncio.gather(*replies, return_exceptions=True)
    assert results[:5] == [0, 10, 20, 30, 40]
    assert isinstance(results[5], QueueFull)


async def test_before_anything_is_measured_the_window_is_the_advice(model) -> None:
    async with BatchInferenceServer(model, max_wait_time=0.5, max_queue_size=1) as server:
        admitted = server.predict(1)
        with pytest.raises(QueueFull) as refusal:
            await server.predict(2)
        assert refusal.value.retry_after == 0.5
        await admitted


async def test_settings_changed_while_running_are_in_force_at_once(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=8, max_wait_time=100) as server:
        replies = [server.predict(i) for i in range(3)]
        await asyncio.sleep(1)
        server.max_batch_size = 3
        await asyncio.gather(*replies)
        last = server.predict(9)
        await asyncio.sleep(1)
        server.max_wait_time = 1.0
        await last
        server.max_queue_size = 1
        admitted = server.predict(1)
        with pytest.raises(QueueFull):
            await server.predict(2)
        await admitted
        assert (server.max_batch_size, server.max_wait_time, server.max_queue_size) == (3, 1.0, 1)
    assert model.starts[:2] == [1, pytest.approx(3.03)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_batch_size", 0), ("max_wait_time", -1), ("max_batch_cost", 0), ("max_queue_size", 0)],
)
async def test_a_setting_outside_its_domain_is_refused_by_name(model, name: str, value) -> None:
    with pytest.raises(InvalidSetting, match=name):
        BatchInferenceServer(model, **{name: value})
    server = BatchInferenceServer(model)
    with pytest.raises(InvalidSetting, match=name):
        setattr(server, name, value)


async def test_before_the_start_and_after_the_stop_a_request_is_a_clear_error(model) -> None:
    server = BatchInferenceServer(model)
    with pytest.raises(ServerNotStarted):
        await server.predict(1)
    async with server:
        await server.predict(1)
    with pytest.raises(ServerClosed):
        await server.predict(1)
    with pytest.raises(ServerClosed):
        await server.start()


async def test_a_reply_is_taken_by_everything_that_takes_a_future_or_a_coroutine(model) -> None:
    async with BatchInferenceServer(model) as server, asyncio.TaskGroup() as group:
        in_group = group.create_task(server.predict(1))
        in_task = asyncio.create_task(server.predict(2))
        assert await asyncio.wait_for(server.predict(3), 10) == 30
        assert await asyncio.shield(server.predict(4)) == 40
        assert [await reply for reply in asyncio.as_completed([server.predict(5)])] == [50]
        assert (await in_group, await in_task) == (10, 20)


async def test_a_task_made_of_a_refused_reply_raises_the_refusal(model) -> None:
    server = BatchInferenceServer(model)
    with pytest.raises(ServerNotStarted):
        await asyncio.create_task(server.predict(1))


async def test_a_request_is_stamped_when_it_is_received() -> None:
    class Engine:
        def now(self) -> float:
            return now()

        async def generate_batch(self, items: list[Request]) -> list[str]:
            return [str(item.prompt) for item in items]

    request = Request("r", "hello")
    async with BatchInferenceServer(Engine()) as server:
        await asyncio.sleep(2)
        assert await server.predict(request) == "hello"
    assert request.timeline.received == 2_000_000_000


async def test_the_books_tell_sizes_and_times(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=2, max_wait_time=0.5) as server:
        await asyncio.sleep(7)
        await asyncio.gather(*(server.predict(i) for i in range(3)))
        books = server.statistics
    assert books.batch_sizes == {2: 1, 1: 1}
    assert (books.queue_time.count, books.service_time.count) == (3, 2)
    assert books.queue_time.max == pytest.approx(1.02)
    assert books.queue_time.mean == pytest.approx(1.02 / 3)
    assert books.service_time.mean == pytest.approx((1.02 + 1.01) / 2)
    assert books.service_time.max == pytest.approx(1.02)
    assert books.service_rate == pytest.approx((0.9 * 2 + 1) / (0.9 * 1.02 + 1.01))
    assert books.latency_target_reachable is None


async def test_the_server_teaches_its_adaptive_rule_and_says_when_the_target_is_out_of_reach(model) -> None:
    rule = AdaptiveBatching(latency_target=2.5)
    async with BatchInferenceServer(model, batching=rule, max_batch_size=16) as server:
        await asyncio.gather(*(server.predict(i) for i in range(60)))
        assert rule.batch_time is not None
        assert rule.batch_time.alpha == pytest.approx(0.01)
        assert rule.batch_time.tau0 == pytest.approx(1.0)
        assert list(map(len, model.batches)) == [1, 2, 4, 8, 16, 16, 13]
        assert server.statistics.latency_target_reachable is True
        rule.latency_target = 1.5
        assert server.statistics.latency_target_reachable is False
