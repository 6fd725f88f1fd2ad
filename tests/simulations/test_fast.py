"""The skip-ahead simulation against the one that takes every step."""

import itertools
from typing import Any

import numpy as np
import pytest

from servinglib.errors import InvalidRequest, InvalidSetting
from servinglib.policies.step_time import StepTime
from servinglib.workload import LogNormal, Uniform, Workload, poisson
from simulations.continuous import simulate_continuous
from simulations.fast import ONLY_STEP_BY_STEP, FastRun, simulate_continuous_fast

SLOW_KV = StepTime(0.01, 0.0003, 2e-6, 2e-5)


def fast(workload: Workload, step_time: StepTime = SLOW_KV, **options: Any) -> FastRun:
    arrivals, prompts, outputs = np.array([(r.arrival, r.prompt_tokens, r.output_tokens) for r in workload]).T
    return simulate_continuous_fast(arrivals, prompts, outputs, step_time, **options)


@pytest.mark.parametrize(
    ("rate", "sequences", "tokens", "chunked", "step_time"),
    [
        *(
            (r, *x)
            for r, x in itertools.product((0.5, 6), [(8, 64, True, SLOW_KV), (8, 400, False, SLOW_KV)])
        ),
        (20, 64, 2048, True, SLOW_KV),
        (20, 64, 2048, True, StepTime(0.01, 0.0003)),
        (3, 1, 16, True, StepTime(0.002, 0.0, 1e-7, 1e-5)),
        (6, 8, 8, True, StepTime(0.0, 0.001, 0.0, 1e-4)),
    ],
)
def test_both_simulations_tell_the_same_story(rate, sequences, tokens, chunked, step_time):
    workload = poisson(
        rate, count=400, seed=sequences, prompts=Uniform(1, 200), outputs=LogNormal(40, 0.9, 150)
    )
    options = {"max_num_seqs": sequences, "max_num_batched_tokens": tokens, "chunked_prefill": chunked}
    slow, quick = simulate_continuous(workload, step_time, **options), fast(workload, step_time, **options)
    for stage, times in (
        ("scheduled", quick.scheduled),
        ("first_token", quick.first_tokens),
        ("finished", quick.finishes),
    ):
        expected = np.array([getattr(t, stage) for t in slow.timelines]) / 1e9  # kept in whole nanoseconds
        np.testing.assert_allclose(times, expected, rtol=1e-9, atol=1e-9)
    assert quick.num_steps == len(slow.steps)
    assert quick.busy == pytest.approx(sum(s.end - s.start for s in slow.steps), rel=1e-9)


def test_an_arrival_in_the_middle_of_a_long_answer_is_seen_at_the_end_of_its_step():
    run = simulate_continuous_fast([0.0, 10.25], [1, 1], [100, 1], StepTime(1, 0))
    assert run.scheduled.tolist() == [0, 11]
    assert run.finishes.tolist() == [100, 12]
    assert run.num_steps == 100


@pytest.mark.parametrize("name", ONLY_STEP_BY_STEP)
def test_what_it_can_not_follow_is_refused_by_name(name):
    with pytest.raises(InvalidSetting, match=f"no {name}; use simulate_continuous"):
        fast(poisson(1, count=3, seed=0), SLOW_KV, **{name: 5})


def test_a_misspelt_setting_is_an_error_too():
    with pytest.raises(TypeError, match="max_seqs"):
        fast(poisson(1, count=3, seed=0), max_seqs=5)


@pytest.mark.parametrize(
    ("arrivals", "prompts", "outputs", "message"),
    [
        ([1, 0], [1, 1], [1, 1], "sort"),
        ([0, np.nan], [1, 1], [1, 1], "finite"),
        ([0, 1], [1], [1, 1], "2 arrivals, 1 prompt lengths"),
        ([0, 1], [1, 0], [1, 1], "less than 1 token"),
    ],
)
def test_bad_columns_are_refused_with_the_numbers(arrivals, prompts, outputs, message):
    with pytest.raises((InvalidSetting, InvalidRequest), match=message):
        simulate_continuous_fast(arrivals, prompts, outputs, SLOW_KV)


def test_without_chunked_prefill_a_request_larger_than_a_step_is_refused():
    with pytest.raises(InvalidRequest, match="of 40 tokens"):
        simulate_continuous_fast(
            [0.0], [30], [11], SLOW_KV, max_num_seqs=4, max_num_batched_tokens=32, chunked_prefill=False
        )


def test_limits_are_refused_as_by_the_planner():
    with pytest.raises(InvalidSetting, match=r"max_num_seqs=65 must be at least 1 and at most .*=64"):
        fast(poisson(1, count=3, seed=0), max_num_seqs=65, max_num_batched_tokens=64)


def test_no_requests_take_no_time():
    run = simulate_continuous_fast([], [], [], SLOW_KV)
    assert (len(run.latencies), run.num_steps, run.busy) == (0, 0, 0)
