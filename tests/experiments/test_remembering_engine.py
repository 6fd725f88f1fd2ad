"""The engine behind a result cache: one computation for equal questions, and nobody is forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from servinglib.cache.result_cache import ResultCache
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import InvalidRequest
from servinglib.experiments.remembering_engine import RememberingEngine
from servinglib.experiments.serving_run import serve
from servinglib.request import Request, SamplingParams
from servinglib.workload import RequestSpec, token_prompts


@pytest.fixture(scope="module")
def engine():
    with ContinuousEngine.load("course-tiny", kv_cache_memory="8MiB", max_num_seqs=8) as loaded:
        yield loaded


def test_equal_requests_at_once_are_computed_once_with_single_flight(engine):
    prompts = token_prompts([48, 48], 4096, seed=3)
    specs = [RequestSpec(0.0, 48, 4)] * 6
    computed = {}
    for single_flight, prompt in ((True, prompts[0]), (False, prompts[1])):
        before = engine.statistics.generation_tokens
        front: Any = RememberingEngine(engine, ResultCache(2**20), single_flight)
        run = asyncio.run(serve(front, specs, prompts=[prompt] * 6))
        computed[single_flight] = (engine.statistics.generation_tokens - before) // 4
        assert len({completion.token_ids for completion in run.completions}) == 1
    assert computed[True] == 1
    assert computed[False] > 1


def test_a_flight_whose_leader_leaves_is_led_by_another(engine):
    [prompt] = token_prompts([30], 4096, seed=5)

    async def leave_and_ask_again() -> list[Any]:
        front = RememberingEngine(engine, ResultCache(2**20))
        stream: Any = front.submit(Request("leader", prompt, SamplingParams(6, ignore_eos=True)))
        await anext(stream)

        async def follow() -> list[Any]:
            asked = Request("follower", prompt, SamplingParams(6, ignore_eos=True))
            return [event async for event in front.submit(asked)]

        follower = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await stream.aclose()
        return await asyncio.wait_for(follower, 60)

    events = asyncio.run(leave_and_ask_again())
    assert [event.index for event in events] == list(range(6))
    assert {event.request_id for event in events} == {"follower"}


def test_a_refused_leader_leaves_nothing_behind(engine):
    front = RememberingEngine(engine, ResultCache(2**20))

    async def ask() -> None:
        async for _ in front.submit(Request("empty", [], SamplingParams(1))):
            pass

    for _ in range(2):
        with pytest.raises(InvalidRequest):
            asyncio.run(ask())


def test_sampling_without_a_seed_passes_through_and_is_not_kept(engine):
    cache: ResultCache[Any] = ResultCache(2**20)
    front = RememberingEngine(engine, cache)

    async def ask(name: str) -> int:
        params = SamplingParams(3, temperature=0.9, ignore_eos=True)
        return len([event async for event in front.submit(Request(name, [1, 2, 3], params))])

    assert [asyncio.run(ask(name)) for name in "ab"] == [3, 3]
    assert cache.statistics.queries == 0
