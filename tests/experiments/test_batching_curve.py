"""The steps of the batch-size experiment, on an engine whose batch times are known."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import ServingError
from servinglib.experiments.batching_curve import (
    Shape,
    answered,
    make_requests,
    measure_batch_times,
    measure_saturation,
    poisson_arrivals,
    simulate_under_load,
    theory_under_load,
    three_columns,
)
from servinglib.experiments.columns import BatchTimes, Latencies, RunSpeed
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.step_time import StepTime
from servinglib.request import Timeline
from simulations.serving import EmpiricalBatchTime

SHAPE = Shape(prompt_tokens=4, output_tokens=2)


def exactly(times: BatchTimes) -> EmpiricalBatchTime:
    return EmpiricalBatchTime(times.samples, seed=0)


def engine_on_a_fake_clock(step_time: StepTime) -> SimulatedEngine:
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    return SimulatedEngine(step_time, sleep=sleep, clock=lambda: clock.now)


def test_the_fit_recovers_the_line_of_an_engine_that_has_one() -> None:
    engine = engine_on_a_fake_clock(StepTime(a=0.010, b=0.002))
    times = measure_batch_times(engine, sizes=(1, 3, 8), repeats=2, shape=SHAPE)
    assert [len(times.samples[size]) for size in (1, 3, 8)] == [2, 2, 2]
    assert times.law.alpha == pytest.approx(2 * 0.002)  # two steps a batch
    assert times.law.tau0 == pytest.approx(2 * 0.010)


def test_every_request_of_the_experiment_has_its_own_prompt_of_the_wanted_length() -> None:
    requests = make_requests(5, Shape(prompt_tokens=7, output_tokens=3))
    assert {len(r.prompt) for r in requests} == {7}
    assert len({tuple(r.prompt) for r in requests}) == len({r.request_id for r in requests}) == 5
    assert all(r.params.ignore_eos and r.params.max_tokens == 3 for r in requests)


def test_latencies_know_the_batches_from_their_common_start() -> None:
    def timeline(arrival: float, scheduled: float, completed: float) -> Timeline:
        t = Timeline()
        for stage, at in (("arrival", arrival), ("scheduled", scheduled), ("completed", completed)):
            t.stamp(stage, at)
        return t

    run = [timeline(0, 0, 1), timeline(0.2, 1, 2), timeline(0.4, 1, 2), timeline(0.6, 1, 2)]
    latencies = Latencies.of(run)
    assert (latencies.count, latencies.mean_batch) == (4, 2.0)
    assert latencies.p50 == pytest.approx(1.4)  # an order statistic: one of the four


def test_batch_times_read_off_a_simulated_run_are_those_it_was_given() -> None:
    given = BatchTimes({1: [0.1], 2: [0.15], 4: [0.25]})
    run = simulate_under_load(4, poisson_arrivals(12, 200, seed=3), exactly(given))
    found = BatchTimes.of(run)
    assert set(found.samples) == {1, 2, 3, 4}
    assert found.samples[4] == pytest.approx([0.25] * len(found.samples[4]))
    assert found.slower_than(given) == pytest.approx(0, abs=1e-6)


def test_a_simulation_at_the_speed_of_a_run_meets_its_slow_moments_where_they_were() -> None:
    calibrated = BatchTimes({1: [0.1], 2: [0.15], 4: [0.25]})
    arrivals = poisson_arrivals(12, 200, seed=3)
    turn = itertools.count()

    def slow_in_the_middle(size: int) -> float:
        return calibrated.expected(size) * (3 if 20 <= next(turn) < 30 else 1)

    run = simulate_under_load(4, arrivals, slow_in_the_middle)
    again = simulate_under_load(4, arrivals, RunSpeed(calibrated, run))
    assert [t.completed for t in again] == pytest.approx([t.completed for t in run], abs=1000)  # ns
    unaware = simulate_under_load(4, arrivals, exactly(calibrated))
    assert Latencies.of(unaware).p99 < 0.7 * Latencies.of(run).p99


def test_drift_is_the_share_by_which_a_run_was_slower() -> None:
    calibrated = BatchTimes({1: [0.1], 3: [0.3]})
    assert BatchTimes({2: [0.24], 3: [0.36]}).slower_than(calibrated) == pytest.approx(0.2)


def test_theory_has_no_number_where_the_queue_grows_without_end() -> None:
    law = BatchTime(alpha=0.01, tau0=0.09)
    assert theory_under_load(1, 10.0, law) is None
    stable = theory_under_load(2, 10.0, law)
    assert stable is not None
    assert law(1) < stable["p50"] < stable["p99"]


def test_another_rate_stretches_the_same_arrivals() -> None:
    slow, fast = poisson_arrivals(1.0, 20, seed=5), poisson_arrivals(4.0, 20, seed=5)
    assert [4 * t for t in fast] == pytest.approx(slow)


def test_the_three_columns_agree_when_the_batch_times_are_exact() -> None:
    # Real sleeps of a few ms: the sum of thread hops and timer lateness stays small beside them.
    engine = SimulatedEngine(StepTime(a=0.010, b=0.001))
    exact = BatchTimes({size: [2 * (0.010 + 0.001 * size)] for size in (1, 2, 3, 4)})
    rate = 0.5 * exact.law.capacity(4)
    columns = asyncio.run(three_columns(engine, 4, poisson_arrivals(rate, 40, seed=2), rate, exact, SHAPE))
    assert columns.measured.count == columns.simulated.count == 40
    assert columns.measured.p50 >= 2 * (0.010 + 0.001)
    assert columns.theory.keys() == {"p50", "p99"}
    assert columns.error["p99"] == pytest.approx(columns.simulated.p99 / columns.measured.p99 - 1)


def test_saturation_fills_every_batch() -> None:
    engine = SimulatedEngine(StepTime(a=0.004, b=0.0))
    run = asyncio.run(measure_saturation(engine, 4, SHAPE, batches=8))
    assert run.failed == 0
    scheduled = [o.result.timeline.scheduled for o in run.outcomes if o.result is not None]
    sizes = [scheduled.count(start) for start in dict.fromkeys(scheduled)]
    assert sizes.count(4) >= len(sizes) - 2


def test_an_experiment_with_a_failed_request_says_so() -> None:
    with pytest.raises(ServingError, match=r"1 of 3 requests failed; the first: .*boom"):
        answered(["fine", RuntimeError("boom"), "fine"])
