"""The real queue beside M/G/1, on an engine whose service times are known."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.experiments.queue_measurement import (
    QueueColumns,
    ServiceTimes,
    TwoLengths,
    as_queue_run,
    customers,
    measure_services,
    queue_columns,
    service_times,
    spread_of_runs,
)
from servinglib.policies.step_time import StepTime
from servinglib.request import Timeline
from simulations.theory.queues import mg1_mean_wait

LAW = TwoLengths(short=1, long=5, long_share=0.25)
TIMES = ServiceTimes(LAW, {1: [0.1, 0.1], 5: [0.4, 0.6]})


def timeline(arrival: float, scheduled: float, finished: float) -> Timeline:
    stamps = {"arrival": arrival, "scheduled": scheduled, "finished": finished}
    stamps |= {"received": arrival, "first_token": scheduled, "completed": finished + 1.0}
    t = Timeline()
    for stage, seconds in stamps.items():
        t.stamp(stage, seconds)
    return t


RUN = [timeline(10.0, 10.0, 10.5), timeline(10.25, 10.75, 11.0), timeline(12.0, 12.0, 12.25)]


def test_the_moments_weigh_the_lengths_by_their_shares() -> None:
    assert TIMES.moment(1) == pytest.approx(0.75 * 0.1 + 0.25 * 0.5)
    assert TIMES.moment(2) == pytest.approx(0.75 * 0.01 + 0.25 * (0.16 + 0.36) / 2)
    assert TIMES.scv == pytest.approx(TIMES.moment(2) / 0.2**2 - 1)


def test_drawn_service_times_have_the_moments_that_theory_is_given() -> None:
    lengths = LAW.sample(np.random.default_rng(0), 100_000)
    services = TIMES.draw(lengths, seed=1)
    assert set(services[lengths == 5]) == {0.4, 0.6}
    assert services.mean() == pytest.approx(TIMES.moment(1), rel=0.02)
    assert (services**2).mean() == pytest.approx(TIMES.moment(2), rel=0.02)


def test_drift_compares_with_the_same_lengths_when_they_were_timed() -> None:
    assert TIMES.slower([1, 5, 1], [0.11, 0.55, 0.11]) == pytest.approx(0.1)


def test_service_is_the_time_that_keeps_the_server_busy() -> None:
    assert service_times(RUN) == pytest.approx([0.5, 0.25, 0.25])


def test_a_measured_run_reads_like_a_simulated_one() -> None:
    run = as_queue_run(RUN)
    assert run.arrivals == pytest.approx([0.0, 0.25, 2.0])
    assert run.waits == pytest.approx([0.0, 0.5, 0.0])
    assert run.sojourns == pytest.approx([0.5, 0.75, 0.25])


def test_hand_over_is_the_wait_that_nobody_ahead_explains() -> None:
    run = as_queue_run(RUN)
    columns = QueueColumns(0.5, 1.0, 1.0, 0.0, (0.0, 0.0), run, run, run, 0.0)
    assert columns.hand_over == pytest.approx((0.25 + 0.0) / 2)  # the second could have started at 10.5 s


def test_an_engine_with_known_step_times_is_timed_exactly() -> None:
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    engine = SimulatedEngine(StepTime(a=0.25, b=0.0), sleep=sleep, clock=lambda: clock.now)
    times = asyncio.run(measure_services(engine, LAW, repeats=3))
    assert times.samples == {1: [0.25] * 3, 5: [1.25] * 3}


def test_another_rate_brings_the_same_customers_closer_together() -> None:
    (slow, lengths), (fast, again) = (customers(rate, 50, LAW, seed=4) for rate in (1.0, 2.0))
    assert slow == pytest.approx(2 * fast)
    assert (lengths == again).all()


def test_the_spread_of_runs_holds_theory_and_narrows_as_runs_get_longer() -> None:
    rate = 0.5 / TIMES.moment(1)
    theory = mg1_mean_wait(rate, TIMES.moment(1), TIMES.moment(2))
    short, long = (spread_of_runs(rate, count, TIMES) for count in (50, 800))
    assert short[0] < long[0] < theory < long[1] < short[1]


def test_at_the_runs_own_speed_only_the_hand_over_is_left() -> None:
    # Real sleeps of some ms, so that thread hops and late timers stay small beside them.
    engine = SimulatedEngine(StepTime(a=0.006, b=0.0))
    columns = asyncio.run(queue_columns(engine, LAW, load=0.6, seconds=0.1, repeats=3))
    measured, again = columns.measured, columns.at_run_speed
    assert (measured.starts >= again.starts - 1e-6).all()
    could_start = np.maximum(measured.arrivals, np.append(0.0, measured.departures[:-1]))
    handed_over = np.cumsum(measured.starts - could_start)
    assert (measured.starts - again.starts <= handed_over + 1e-6).all()
    assert "load 0.6: 40 requests" in str(columns)
