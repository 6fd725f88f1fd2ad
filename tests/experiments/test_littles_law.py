"""The gauge's arithmetic, and a real server on virtual time whose numbers can be worked out on paper."""

import asyncio

import numpy as np
import pytest

from servinglib import virtual_time
from servinglib.errors import DeadlineExceeded, InvalidSetting
from servinglib.experiments.batching_curve import Shape, poisson_arrivals
from servinglib.experiments.littles_law import Gauge, WatchedRun, measure_with_gauge, watched
from servinglib.request import Completion, Request
from simulations.theory.littles_law import littles_law, window_account

SHAPE = Shape(prompt_tokens=4, output_tokens=2)


def now() -> float:
    return asyncio.get_running_loop().time()


class TakesOneSecond:
    """A model whose batches take 1 s, whatever is in them."""

    async def generate_batch(self, requests: list[Request]) -> list[Completion]:
        start = now()
        await asyncio.sleep(1.0)
        for request in requests:
            for stage, at in (("scheduled", start), ("first_token", start + 0.25), ("finished", now())):
                request.timeline.stamp(stage, at)
        return [Completion(r.request_id, 4, (1, 2), "", "length", r.timeline, ()) for r in requests]

    def now(self) -> float:
        return now()


def run(arrivals, max_batch_size=1, **options) -> WatchedRun:
    async def main() -> WatchedRun:
        return await measure_with_gauge(
            TakesOneSecond(), max_batch_size, arrivals, SHAPE, clock=now, **options
        )

    return virtual_time.run(main())


STEPS = Gauge(np.array([0.0, 1.0, 4.0, 5.0]), np.array([2.0, 6.0, 1.0, 0.0]))


def test_a_reading_weighs_as_much_as_it_stood():
    assert STEPS.mean(0.0, 5.0) == pytest.approx((2 * 1 + 6 * 3 + 1 * 1) / 5)
    assert STEPS.mean(0.5, 2.0) == pytest.approx((2 * 0.5 + 6 * 1) / 1.5)


def test_the_bounds_take_the_lower_and_the_higher_of_two_readings():
    low, high = STEPS.bounds(0.0, 5.0)
    assert low == pytest.approx((2 * 1 + 1 * 3 + 0 * 1) / 5)
    assert high == pytest.approx((6 * 1 + 6 * 3 + 1 * 1) / 5)


def test_the_bounds_hold_the_truth_and_close_in_as_one_looks_more_often():
    changes, truth = np.array([0.0, 1.3, 2.7, 4.1]), np.array([0.0, 3.0, 4.0, 0.0])
    mean = float(truth[:-1] @ np.diff(changes)) / 5
    widths = []
    for every in (0.5, 0.05):
        times = np.arange(0, 5 + every / 2, every)
        gauge = Gauge(times, truth[np.searchsorted(changes, times, side="right") - 1])
        low, high = gauge.bounds(0.0, times[-1])
        assert low <= mean <= high
        widths.append(high - low)
    assert widths[1] < 0.2 * widths[0]


@pytest.mark.parametrize(("start", "end"), [(-1.0, 2.0), (1.0, 5.5), (3.0, 3.0), (4.0, 2.0)])
def test_a_window_beyond_the_readings_is_refused_with_the_numbers(start, end):
    with pytest.raises(InvalidSetting, match=f"from {start:g} s to {end:g} s .* last at 5 s"):
        STEPS.mean(start, end)


def test_a_gauge_is_read_at_once_then_regularly_and_at_the_end():
    async def main():
        async with watched(lambda: round(now()), clock=now, every=1.0) as readings:
            await asyncio.sleep(2.5)
        return readings

    assert virtual_time.run(main()) == [(0.0, 0), (1.0, 1), (2.0, 2), (2.5, 2)]


def test_the_gauge_counts_who_waits_and_who_is_served():
    seen = run([0.0, 0.1, 0.2])  # one at a time: they leave at 1, 2 and 3 s
    assert seen.departures == pytest.approx([1.0, 2.0, 3.0])
    at = dict(zip(np.round(seen.gauge.times, 3).tolist(), seen.gauge.numbers.tolist(), strict=True))
    assert [at[t] for t in (0.05, 0.15, 0.25, 1.05, 2.05)] == [1, 2, 3, 2, 1]
    assert seen.gauge.numbers[0] == seen.gauge.numbers[-1] == 0


def test_the_gauge_and_the_clients_clock_agree_within_the_bounds():
    seen = run(poisson_arrivals(3.0, 60, seed=4), max_batch_size=4)
    low, high = seen.gauge.bounds(0.0, seen.duration)
    inside = littles_law(len(seen.latencies) / seen.duration, seen.latencies.mean())
    assert low <= inside <= high
    assert high - low < 0.03 * inside


def test_in_a_window_they_agree_only_with_the_edges():
    seen = run(poisson_arrivals(3.0, 60, seed=4), max_batch_size=4)
    window = (2.0, 5.0)
    account = window_account(seen.arrivals, seen.departures, *window)
    low, high = seen.gauge.bounds(*window)
    inside = littles_law(account.rate, account.mean_time)
    assert not low <= inside <= high
    assert low <= inside + account.edges <= high


def test_a_run_that_starts_late_on_the_clock_is_counted_from_its_first_reading():
    async def main() -> WatchedRun:
        await asyncio.sleep(100.0)
        return await measure_with_gauge(TakesOneSecond(), 1, [0.5], SHAPE, clock=now)

    seen = virtual_time.run(main())
    assert seen.started == 100.0
    assert seen.arrivals == pytest.approx([0.5])
    assert seen.duration == pytest.approx(1.5)


def test_latency_counts_the_wait_at_the_clients_own_door_which_the_gauge_does_not_see():
    one_connection = asyncio.Semaphore(1)

    async def pooled(server, request):
        async with one_connection:
            return await server.predict(request)

    seen = run([0.0, 0.25], max_batch_size=8, client=pooled)
    assert seen.latencies == pytest.approx([1.0, 1.75])
    assert seen.gauge.numbers.max() == 1


def test_a_client_that_logs_only_answers_is_found_out_by_the_gauge_and_not_by_its_own_list():
    log: list[tuple[float, float]] = []

    async def impatient(server, request):
        start = now()
        answer = await server.predict(request, timeout=1.5)
        log.append((start, now()))
        return answer

    seen = run(poisson_arrivals(1.5, 40, seed=4), client=impatient)
    lost = [o for o in seen.outcomes if isinstance(o.error, DeadlineExceeded)]
    assert len(lost) + len(log) == len(seen.outcomes) == 40
    assert len(lost) > 4
    assert len(seen.latencies) == len(log)  # those without an answer have no latency, not a made-up one
    starts, ends = np.array(log).T
    by_its_own_list = window_account(starts, ends, 0.0, seen.duration + 1e-6).mean_number
    by_little = littles_law(len(log) / seen.duration, float((ends - starts).mean()))
    assert by_its_own_list == pytest.approx(by_little, rel=1e-5)
    assert by_little < 0.9 * seen.gauge.bounds(0.0, seen.duration)[0]
