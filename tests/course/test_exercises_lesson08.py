"""Lesson 08's reference answers against the library, and the judge against engine and simulator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from servinglib.cache import prefix
from servinglib.cache.result_cache import Hit, Join, ResultCache
from servinglib.course.exercises.lesson08 import blocks, template, traffic
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.experiments.cache_traffic import zipf
from servinglib.experiments.caching import PAGE, lru_hit_rate, simulator_hits


@pytest.fixture(scope="module")
def engine():
    with ContinuousEngine.load("course-tiny", kv_cache_memory="64MiB") as loaded:
        yield loaded


@pytest.mark.parametrize(("one", "size"), blocks.BLOCK_KEYS.cases)
@pytest.mark.parametrize(("other", "other_size"), blocks.BLOCK_KEYS.cases)
def test_two_keys_are_equal_where_the_librarys_are(one, size, other, other_size):
    ours = [a == b for a in blocks.block_keys(one, size) for b in blocks.block_keys(other, size)]
    theirs = [a == b for a in prefix.block_keys(one, size) for b in prefix.block_keys(other, size)]
    assert ours == theirs


@pytest.mark.parametrize(("prompt", "earlier", "size"), blocks.TOKENS_TO_COMPUTE.cases)
def test_the_tokens_to_compute_are_those_that_the_engines_planner_computes(prompt, earlier, size):
    found = simulator_hits([*earlier, prompt], block_size=size)[-1]
    assert blocks.tokens_to_compute(prompt, earlier, size) == len(prompt) - found


@pytest.mark.parametrize(("requests", "seconds", "ttl"), traffic.FATES.cases)
def test_the_fates_are_those_of_the_librarys_result_cache(requests, seconds, ttl):
    cache: ResultCache[Any] = ResultCache(2**20, ttl)
    under_way: dict[str, float] = {}
    told = []
    for now, key in requests:
        for other, ready in list(under_way.items()):
            if ready <= now:
                cache.complete(other.encode(), PAGE, ready)
                del under_way[other]
        match cache.lookup(key.encode(), now, None):
            case Hit():
                told.append("hit")
            case Join():
                told.append("join")
            case _:
                told.append("lead")
                under_way[key] = now + seconds
    assert traffic.fates(requests, seconds, ttl) == told


@pytest.mark.parametrize(("popularity", "capacity"), [*traffic.HIT_RATE.cases, (zipf(30, 1.1).tolist(), 7)])
def test_the_hit_rate_is_the_librarys(popularity, capacity):
    assert traffic.hit_rate(popularity, capacity) == pytest.approx(
        lru_hit_rate(np.array(popularity), capacity)
    )


def test_the_judge_finds_in_the_reference_order_the_most_of_all_orders_in_engine_and_simulator(engine):
    given, mine = template.judge(template.prompt_order, engine).splitlines()[1:]
    assert numbers(given)[0] == numbers(given)[1] == 0
    assert numbers(mine)[0] == numbers(mine)[1] > 0.5 * numbers(mine)[2]
    longest = template.judge(lambda log: ["rules", "time", "shop", "article", "question"], engine)
    assert numbers(longest.splitlines()[2])[0] < numbers(mine)[0]


def test_the_judge_may_be_asked_again(engine):
    assert template.judge(template.prompt_order, engine) == template.judge(template.prompt_order, engine)


@pytest.mark.parametrize(
    "answer",
    [template.PROMPT_ORDER.stub, template.PROMPT_ORDER.mistakes[2].answer, lambda log: 1 / 0, None, math.sin],
)
def test_the_judge_never_raises_in_the_readers_face(answer, engine):
    assert template.judge(answer, engine).startswith("no order of all the parts")


def numbers(line: str) -> list[int]:
    return [
        int(word)
        for word in line.partition(": ")[2].replace(",", "").replace(":", "").split()
        if word.isdigit()
    ]
