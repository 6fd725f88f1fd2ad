"""Lesson 02's references say what the library says, and the two-source check tells honest runs from bugs."""

from __future__ import annotations

import numpy as np
import pytest

from servinglib.course.exercises import lesson02
from servinglib.experiments.littles_law import Gauge
from servinglib.policies.batching import DynamicBatching
from servinglib.request import STAGES, Timeline
from simulations.serving import SimulationResult, simulate_batching
from simulations.theory.littles_law import littles_law, window_account


def simulated_run() -> SimulationResult:
    arrivals = np.random.default_rng(5).exponential(1 / 30, 300).cumsum()
    return simulate_batching(arrivals, DynamicBatching(8, 0), lambda size: 0.1 + 0.01 * size, network=0.02)


def test_the_parts_are_the_timelines_own_and_add_up():
    stamps = (1_000, 1_007, 1_100, 1_950, 4_800, 4_813)
    timeline = Timeline(**dict(zip([s for s in STAGES if s != "sent"], stamps, strict=True)))
    assert lesson02.parts(*stamps) == tuple(timeline.parts.values())
    assert sum(lesson02.parts(*stamps)) == stamps[-1] - stamps[0]


@pytest.mark.parametrize("case", lesson02.TIME_AVERAGE.cases)
def test_the_time_average_is_the_gauges(case):
    times, numbers, end = case
    gauge = Gauge(
        np.array([*times, end]), np.array([*numbers, 0.0])
    )  # the reading at `end` stands for no time
    assert lesson02.time_average(times, numbers, end) == pytest.approx(gauge.mean(times[0], end))


@pytest.mark.parametrize(("in_flight", "per_minute"), lesson02.MEAN_LATENCY.cases)
def test_the_dashboards_latency_satisfies_littles_law(in_flight, per_minute):
    seconds = lesson02.mean_latency_ms(in_flight, per_minute) / 1000
    assert littles_law(per_minute / 60, seconds) == pytest.approx(in_flight)


def by_two_sources(latencies: np.ndarray) -> bool:
    """The exercise's verdict on latencies that a client reports of a simulated run.

    The gauge counts heads: one more at each arrival, one fewer at each departure.
    """
    run = simulated_run()
    came, left = (
        np.array([getattr(t, stage) for t in run.timelines]) / 1e9 for stage in ("arrival", "completed")
    )
    changes = np.concatenate([came, left])
    order = np.argsort(changes)
    inside = np.repeat([1.0, -1.0], len(came))[order].cumsum()
    end = float(changes.max())
    gauge_mean = lesson02.time_average(changes[order].tolist(), inside.tolist(), end)
    return lesson02.sources_agree(gauge_mean, latencies.tolist(), end - float(changes.min()), 0.05)


def test_two_sources_accept_a_client_that_logs_every_request():
    assert by_two_sources(simulated_run().latencies)


def test_two_sources_reject_a_client_that_never_logs_its_timeouts():
    latencies = simulated_run().latencies
    assert not by_two_sources(latencies[latencies < np.quantile(latencies, 0.8)])


def test_two_sources_reject_milliseconds_for_seconds():
    assert not by_two_sources(simulated_run().latencies * 1000)


def test_two_sources_reject_a_stopwatch_that_leaves_the_queue_out():
    in_service = np.array([t.total - t.parts["queue"] for t in simulated_run().timelines]) / 1e9
    assert not by_two_sources(in_service)


def test_one_source_accepts_a_client_that_never_logs_its_timeouts():
    came = np.array([t.arrival for t in simulated_run().timelines]) / 1e9
    latencies = simulated_run().latencies
    logged = latencies < np.quantile(latencies, 0.8)
    account = window_account(came[logged], (came + latencies)[logged], 0.0, float((came + latencies).max()))
    assert account.mean_number == pytest.approx(littles_law(account.rate, account.mean_time), rel=1e-9)


def test_goodput_and_its_misses_make_up_the_offered_load():
    latencies = [0.2, 0.4, 0.4, 3.0, None, 0.1]
    met = lesson02.goodput(latencies, slo=0.4, duration=2.0)
    missed = sum(latency is None or latency > 0.4 for latency in latencies) / 2.0
    assert met + missed == len(latencies) / 2.0
