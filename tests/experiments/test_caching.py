"""Che's approximation against the real caches, and simulated requests against the real engine."""

from __future__ import annotations

import numpy as np
import pytest

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import InvalidSetting
from servinglib.experiments.cache_traffic import prefix_tree, support_desk, tenant_prompts, zipf
from servinglib.experiments.caching import (
    engine_hits,
    lifetime,
    lru_hit_rate,
    result_cache_hits,
    saturated_rate,
    simulate_results,
    simulator_hits,
)
from servinglib.policies.step_time import StepTime
from servinglib.statistics import mean_interval, streams
from servinglib.workload import RequestSpec, token_prompts

LAW = StepTime(a=0.01, b=0.001, c=1e-6, d=1e-4)
BOT = {"shared": 40, "question": 8, "answer": 4, "vocabulary": 4096}


@pytest.fixture(scope="module")
def engine():
    with ContinuousEngine.load("course-tiny", kv_cache_memory="8MiB", max_num_seqs=8) as loaded:
        yield loaded


def hit_rates(popularity: np.ndarray, capacity: int, days: int = 20) -> list[float]:
    drawn = (
        streams(day, "asked")["asked"].choice(len(popularity), 6000, p=popularity) for day in range(days)
    )
    return [float(result_cache_hits(asked, capacity)[1000:].mean()) for asked in drawn]


@pytest.mark.parametrize(("exponent", "capacity"), [(0.8, 40), (1.0, 100)])
def test_ches_hit_rate_is_that_of_the_real_result_cache(exponent, capacity):
    popularity = zipf(500, exponent)
    found = mean_interval(hit_rates(popularity, capacity), 0.99)
    assert (found.high - found.low) / 2 <= 0.02 * found.value
    assert lru_hit_rate(popularity, capacity) == pytest.approx(found.value, rel=0.02)  # an approximation


@pytest.mark.parametrize("blocks", [64, 160])
def test_ches_hit_rate_is_that_of_the_block_pool_when_questions_leave_blocks_too(blocks):
    popularity = zipf(40, 0.9)
    prompts = tenant_prompts(popularity, 3000, shared=96, question=32, vocabulary=4096, seed=4)
    found = simulator_hits(prompts, kv_blocks=blocks)[300:].mean() / 96
    assert lru_hit_rate(popularity, blocks, size=6, once=2) == pytest.approx(found, abs=0.025)
    assert lru_hit_rate(popularity, blocks, size=6) > found + 0.1


def test_within_a_lifetime_just_so_much_is_touched_as_fits():
    popularity = zipf(100, 1.0)
    survives = lifetime(popularity, 50.0, size=2.0, once=0.5)
    assert 2 * (1 - np.exp(-popularity * survives)).sum() + 0.5 * survives == pytest.approx(50)


def test_what_fits_whole_lives_for_ever_unless_more_keeps_coming():
    assert lifetime(zipf(10, 1.0), 10) == np.inf
    assert lru_hit_rate(zipf(10, 1.0), 10) == pytest.approx(1)
    assert lifetime(zipf(10, 1.0), 10, once=0.1) < np.inf


@pytest.mark.parametrize("bad", [{"capacity": 0}, {"capacity": 1, "size": 0}, {"capacity": 1, "once": -1}])
def test_a_cache_without_room_is_refused(bad):
    with pytest.raises(InvalidSetting, match="capacity"):
        lifetime(zipf(10, 1.0), **bad)


def test_a_ttl_counts_from_when_the_answer_was_stored():
    times = [0.0, 5.0, 9.0, 11.0, 12.0]
    assert result_cache_hits([0] * 5, 1, times, ttl=10.0).tolist() == [False, True, True, False, True]


def test_the_simulator_finds_in_the_prefix_cache_what_the_engine_finds(engine):
    popularity = zipf(20, 0.9)
    prompts = tenant_prompts(popularity, 60, shared=48, question=20, vocabulary=4096, seed=1)
    found = engine_hits(engine, prompts)
    assert found.tolist() == simulator_hits(prompts, kv_blocks=engine.memory.num_blocks).tolist()
    assert 0 < found.sum() < 48 * 60


def test_an_answers_blocks_are_found_by_the_next_turn():
    [prompt, answer, question] = token_prompts([20, 30, 5], 4096, seed=0)
    hits = simulator_hits([prompt, prompt + answer + question], [answer, [0]])
    assert hits.tolist() == [0, 48]  # of 50 tokens; the answer's last one was never computed


def test_salts_keep_equal_prompts_apart():
    [prompt] = token_prompts([33], 4096, seed=0)
    assert simulator_hits([prompt, prompt], salts=[b"a", b"b"]).tolist() == [0, 0]
    assert simulator_hits([prompt, prompt], salts=[b"a", b"a"]).tolist() == [0, 32]


def test_who_repeats_a_question_has_the_answer_when_the_first_has_it():
    specs = [
        RequestSpec(0.0, 10, 4),
        RequestSpec(0.01, 10, 4),
        RequestSpec(9.0, 10, 4),
        RequestSpec(9.5, 10, 4),
    ]
    run = simulate_results(specs, [7, 7, 7, 8], LAW)
    assert run.latencies[1] == pytest.approx(run.latencies[0] - 0.01)
    assert run.latencies[2] == run.ttft[2] == 0
    assert run.latencies[3] == pytest.approx(run.latencies[0])
    assert run.ttft[0] < run.latencies[0]


@pytest.mark.parametrize(("cached", "repeats"), [(0, 0.0), (592, 0.0), (592, 0.3)])
def test_the_saturated_rate_is_that_of_a_long_simulated_rush(cached, repeats):
    desk = support_desk(1.0, 600, shared=600, question=40, answer=16, repeats=repeats, vocabulary=99, seed=0)
    desk = desk.at_once(1.0)
    run = simulate_results(
        desk.workload, desk.questions, LAW, desk.prompts if cached else None, max_num_seqs=16
    )
    measured = 599 / run.latencies[1:].max()
    assert saturated_rate(LAW, 640, 16, 16, cached, desk.repeats) == pytest.approx(measured, rel=0.03)


def test_a_desk_repeats_as_often_as_it_is_told_and_repeats_are_word_for_word():
    desk = support_desk(5.0, 2000, repeats=0.3, seed=0, **BOT)
    assert desk.repeats == pytest.approx(0.3, abs=0.03)
    assert len({tuple(prompt) for prompt in desk.prompts}) == len(set(desk.questions.tolist()))
    assert np.bincount(desk.questions).max() < 100  # not always the same one
    assert {tuple(prompt[:40]) for prompt in desk.prompts} == {tuple(desk.prompts[0][:40])}
    with pytest.raises(InvalidSetting, match="repeats"):
        support_desk(5.0, 10, repeats=1.0, seed=0, **BOT)


def test_the_tree_has_a_node_for_every_block_behind_its_own_beginning():
    tree = prefix_tree(["a b c d", "a b e f", "x a b c d", "a b c d g"], block_size=2)
    assert [(node.text, node.depth, node.prompts) for node in tree] == [
        ("a b", 0, 3),
        ("c d", 1, 2),
        ("e f", 1, 1),
        ("x a", 0, 1),
        ("b c", 1, 1),
    ]
    assert tree[1].parent is tree[2].parent is tree[0]
    assert [node.row for node in tree] == [0.5, 0, 1, 2, 2]
