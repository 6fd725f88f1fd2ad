import asyncio
import traceback

import pytest

from servinglib.errors import BatchSizeMismatch, ServerClosed, ServingError
from servinglib.policies.batching import DynamicBatching, Fire, Wait, Waiting
from servinglib.server.batch_server import BatchInferenceServer


async def outcomes(server: BatchInferenceServer, items: list) -> list:
    return await asyncio.gather(*(server.predict(item) for item in items), return_exceptions=True)


def shown(results: list) -> list:
    return [repr(r) if isinstance(r, Exception) else r for r in results]


async def test_an_exception_returned_for_an_item_fails_that_item_alone(model) -> None:
    async with BatchInferenceServer(model) as server:
        results = await outcomes(server, [1, KeyError("mine"), 3])
        assert shown(results) == [10, "KeyError('mine')", 30]
        assert (server.statistics.completed, server.statistics.failed) == (2, 1)
    assert len(model.batches) == 1


async def test_a_batch_that_raises_is_halved_until_the_guilty_are_found(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=8) as server:
        results = await outcomes(server, [0, 1, "bad", 3, 4, 5, 6, "worse"])
    assert shown(results) == [0, 10, "ValueError('bad')", 30, 40, 50, 60, "ValueError('worse')"]
    assert all(model.batches.count([item]) == 1 for item in ("bad", "worse"))


async def test_one_guilty_item_costs_few_calls(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=64) as server:
        await outcomes(server, [*range(63), "bad"])
    assert len(model.batches) == 1 + 2 * 6


async def test_each_of_many_guilty_items_gets_its_own_exception(model) -> None:
    async with BatchInferenceServer(model, max_batch_size=4) as server:
        results = await outcomes(server, list("abcd"))
    assert [str(r) for r in results] == list("abcd")


async def test_without_isolation_the_whole_batch_fails_with_what_it_raised(model) -> None:
    async with BatchInferenceServer(model, isolate_failures=False) as server:
        results = await outcomes(server, [0, "bad", 2])
        assert shown(results) == ["ValueError('bad')"] * 3
        assert await server.predict(4) == 40
    assert len(model.batches) == 2


async def test_one_callers_traceback_does_not_show_another_callers_frames(model) -> None:
    async def first_caller(server: BatchInferenceServer) -> str:
        return await told(server.predict("bad"))

    async def second_caller(server: BatchInferenceServer) -> str:
        return await told(server.predict(1))

    async def told(reply) -> str:
        try:
            await reply
        except ValueError as error:
            return "".join(traceback.format_exception(error))
        raise AssertionError("the batch was to fail")

    async with BatchInferenceServer(model, isolate_failures=False) as server:
        texts = await asyncio.gather(first_caller(server), second_caller(server))
    assert all("generate_batch" in text for text in texts)
    assert all(text.count("in told") == 1 for text in texts)


async def test_a_list_of_the_wrong_length_fails_the_batch_with_both_lengths(model) -> None:
    async with BatchInferenceServer(model) as server:
        results = await outcomes(server, [1, None, 3])
        assert all(isinstance(r, BatchSizeMismatch) for r in results)
        assert "given 3 items and returned 2 results" in str(results[0])
        assert await server.predict(4) == 40
    assert model.batches == [[1, None, 3], [4]]


@pytest.mark.parametrize("returned", [None, 7, "ab", {0: "a", 1: "b"}])
async def test_what_is_no_list_is_refused_by_its_kind(returned) -> None:
    class Odd:
        async def generate_batch(self, items: list) -> object:
            return returned

    async with BatchInferenceServer(Odd()) as server:
        results = await outcomes(server, [1, 2])
    assert all(f"a {type(returned).__name__}, not a list" in str(r) for r in results)


@pytest.mark.parametrize("error", [StopIteration(3), asyncio.CancelledError(), GeneratorExit()])
async def test_what_a_future_must_not_carry_reaches_the_caller_as_a_serving_error(error) -> None:
    class Odd:
        async def generate_batch(self, items: list) -> list:
            if items == ["raise"]:
                raise error
            return [error]

    async with BatchInferenceServer(Odd()) as server:
        for item in ("raise", "return"):
            [result] = await outcomes(server, [item])
            assert isinstance(result, ServingError | RuntimeError)
            assert result.__cause__ is error


async def test_a_stop_does_not_wait_for_the_hunt_after_guilty_items() -> None:
    class Stubborn:
        calls = 0

        async def generate_batch(self, items: list) -> list:
            self.calls += 1
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                raise ValueError("cancelled, but does not say so") from None
            return items

    model = Stubborn()
    server = await BatchInferenceServer(model, max_wait_time=0).start()
    replies = [server.predict(i) for i in range(4)]
    await asyncio.sleep(0.5)
    await server.stop(drain=False)
    assert [type(reply.exception()) for reply in replies] == [ServerClosed] * 4
    assert (model.calls, asyncio.get_running_loop().time()) == (1, 0.5)


async def test_the_model_may_do_what_it_likes_to_the_list_it_is_given() -> None:
    class Greedy:
        async def generate_batch(self, items: list) -> list:
            mine = list(items)
            items.clear()
            if "bad" in mine:
                raise ValueError
            return mine

    async with BatchInferenceServer(Greedy()) as server:
        results = await outcomes(server, [1, "bad", 3])
    assert shown(results) == [1, "ValueError()", 3]


async def test_a_rule_that_fails_stops_the_server_loudly_and_leaves_nobody_waiting(model) -> None:
    class Broken(DynamicBatching):
        def decide(self, waiting: Waiting, now: float) -> Fire | Wait:
            raise ZeroDivisionError("oops")

    reports: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    async with BatchInferenceServer(model, batching=Broken()) as server:
        [result] = await outcomes(server, [1])
        assert "batching rule failed: ZeroDivisionError('oops')" in str(result)
        with pytest.raises(ServerClosed):
            await server.predict(2)
    assert isinstance(reports[0]["exception"], ZeroDivisionError)


async def test_a_rule_that_fails_while_it_learns_does_not_lose_the_answers_that_are_there(model) -> None:
    class Broken(DynamicBatching):
        def observe(self, size: int, seconds: float) -> None:
            raise ZeroDivisionError("oops")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with BatchInferenceServer(model, 1, batching=Broken()) as server:
        results = await outcomes(server, [1, 2])
    assert results[0] == 10
    assert "batching rule failed" in str(results[1])


async def test_a_batch_that_was_halved_teaches_the_rule_nothing(model) -> None:
    seen: list[int] = []

    class Listening(DynamicBatching):
        def observe(self, size: int, seconds: float) -> None:
            seen.append(size)

    async with BatchInferenceServer(model, batching=Listening()) as server:
        await outcomes(server, [1, "bad", 3])
        await outcomes(server, [1, 2])
    assert seen == [2]
