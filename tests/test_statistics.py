"""Intervals that cover the truth as often as they say, checked on samples whose truth is known."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from servinglib.errors import InvalidSetting
from servinglib.statistics import (
    Interval,
    batch_means,
    lag1_correlation,
    mean_interval,
    moving_average,
    paired_difference,
    quantile,
    quantile_interval,
    run_length,
    streams,
    warm_up_length,
)


def test_a_quantile_is_the_smallest_value_that_covers_the_share():
    values = [5, 1, 3, 2, 4]
    assert [quantile(values, p) for p in (0.2, 0.21, 0.5, 0.99)] == [1, 2, 3, 5]
    assert quantile(range(1, 101), 0.07) == 7  # 0.07 * 100 is 7.000000000000001 in floating point


@pytest.mark.parametrize(("p", "truth"), [(0.5, math.log(2)), (0.99, math.log(100))])
def test_the_quantile_interval_covers_the_truth_as_often_as_it_says(p, truth):
    rng = np.random.default_rng(3)
    trials = 1_000
    hits = sum(truth in quantile_interval(rng.exponential(size=10_000), p, 0.95) for _ in range(trials))
    # Order statistics are discrete, so the coverage is at least 95%, and not much above.
    slack = 3 * math.sqrt(0.95 * 0.05 / trials)
    assert 0.95 - slack <= hits / trials <= 0.975


def test_the_quantile_interval_is_made_of_the_textbook_order_statistics():
    # The median of 10 values lies between the 2nd and the 9th with probability 0.979.
    assert quantile_interval(range(1, 11), 0.5, 0.95) == Interval(5, 2, 9)


def test_too_few_values_leave_a_side_open():
    interval = quantile_interval(range(100), 0.99, 0.95)
    assert interval.high == math.inf
    assert math.isfinite(interval.low)
    assert quantile_interval([1.0], 0.5) == Interval(1.0, -math.inf, math.inf)


def test_the_mean_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(4)
    trials = 3_000
    hits = sum(0.0 in mean_interval(rng.normal(size=5), 0.90) for _ in range(trials))
    assert hits / trials == pytest.approx(0.90, abs=3 * math.sqrt(0.09 / trials))


def test_the_mean_interval_is_students():
    interval = mean_interval([1.0, 2.0, 3.0], 0.95)
    assert interval.value == 2
    assert interval.high - 2 == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)  # t with 2 degrees
    assert interval.relative_half_width == pytest.approx(4.30265 / math.sqrt(3) / 2, rel=1e-5)


def test_one_run_has_no_interval():
    with pytest.raises(InvalidSetting, match="got 1"):
        mean_interval([1.0])


def test_the_warm_up_of_a_run_that_starts_low_is_found():
    rng = np.random.default_rng(1)
    settled = rng.normal(10, 1, size=2_000)
    start = np.linspace(-10, 0, 200)
    series = settled + np.concatenate([start, np.zeros(1_800)])
    assert 150 <= warm_up_length(series) <= 300


def test_a_run_that_starts_settled_loses_little():
    rng = np.random.default_rng(2)
    assert warm_up_length(rng.normal(10, 1, size=2_000)) <= 600


def test_no_more_than_half_of_a_run_is_cut():
    assert warm_up_length(list(range(1_000))) < 500


def test_a_short_run_has_no_warm_up_to_find():
    with pytest.raises(InvalidSetting, match="at least 50"):
        warm_up_length([1.0] * 49)


@pytest.mark.parametrize("p", [0, 1, 99, -0.5])
def test_a_share_outside_zero_and_one_is_refused(p):
    with pytest.raises(InvalidSetting, match=f"p={p}"):
        quantile([1.0], p)


def test_a_quantile_of_nothing_is_refused():
    with pytest.raises(InvalidSetting, match="no values"):
        quantile([], 0.5)


def memory(phi: float, count: int, seed: int) -> np.ndarray:
    """A stationary series around 5 whose lag-k correlation is phi**k, shape (count,)."""
    noise = np.random.default_rng(seed).normal(size=count)
    noise[0] /= math.sqrt(1 - phi**2)
    return 5 + np.asarray(lfilter([1.0], [1.0, -phi], noise))


def waits(load: float, count: int, seed: int) -> np.ndarray:
    """Waiting times of M/M/1 with a mean service of 1 s, after Lindley, shape (count,)."""
    rng = streams(seed, "arrivals", "services")
    steps = rng["services"].exponential(size=count) - rng["arrivals"].exponential(1 / load, size=count)
    walk = np.concatenate([[0.0], np.cumsum(steps[:-1])])
    return walk - np.minimum.accumulate(walk)


def test_the_moving_average_takes_as_many_neighbours_as_there_are():
    # By hand: the first alone, the second with one neighbour a side, then two a side.
    smooth = moving_average([10, 0, 2, 4, 4, 6, 9, 8, 1, 5], 2)
    assert smooth == pytest.approx([10, 4, 4, 3.2, 5, 6.2, 5.6, 5.8])
    assert moving_average([3.0, 1.0], 0) == pytest.approx([3, 1])


@pytest.mark.parametrize("half_width", [-1, 3])
def test_a_window_that_hides_the_warm_up_is_refused(half_width):
    with pytest.raises(InvalidSetting, match=f"half_width={half_width} must be from 0 to 2"):
        moving_average(range(10), half_width)


def test_the_correlation_of_a_series_with_itself_one_later():
    assert lag1_correlation([1, -1, 1, -1]) == pytest.approx(-0.75)  # three products of -1 over four of 1
    assert lag1_correlation(memory(0.8, 20_000, seed=1)) == pytest.approx(0.8, abs=0.02)
    assert lag1_correlation([2.0, 2.0]) == 0


def test_batch_means_cover_the_truth_of_a_correlated_run_and_single_values_do_not():
    trials = 1_000
    runs = [memory(0.9, 6_000, seed) for seed in range(trials)]
    batched = sum(5.0 in batch_means(run) for run in runs) / trials
    single = sum(5.0 in mean_interval(run) for run in runs) / trials
    slack = 3 * math.sqrt(0.95 * 0.05 / trials)
    # The correlation between batches of 300 is left in: 0.9 / (1 - 0.9**2) / 300 = 0.016 widens the
    # true scatter by 1.6%, which costs 0.4% of coverage.
    assert batched >= 0.95 - slack - 0.004
    assert single < 0.5


def test_batch_means_are_students_interval_of_the_batches():
    series = [9.0, *[0.0] * 10, *[1.0] * 10, *[2.0] * 10]  # 31 values: the first fills no batch
    with pytest.raises(InvalidSetting, match="lag-1"):
        batch_means(series, batches=3)
    mixed = [9.0, *[-1.0, 1.0] * 5, *[0.0, 2.0] * 5, *[1.0, 3.0] * 5]
    assert batch_means(mixed, batches=3) == mean_interval([0.0, 1.0, 2.0])


def test_batches_that_are_too_short_say_how_long_a_run_would_do():
    with pytest.raises(InvalidSetting, match="batches of 50 values") as refusal:
        batch_means(memory(0.95, 1_000, seed=1))
    longer = float(str(refusal.value).split("about ")[1].split(" times")[0])
    assert longer > 2
    batch_means(memory(0.95, math.ceil(1_000 * longer), seed=1))  # taking the advice helps


@pytest.mark.parametrize(("values", "batches"), [(199, 20), (100, 1)])
def test_a_run_that_fills_no_batches_is_refused(values, batches):
    with pytest.raises(InvalidSetting, match=f"{values} values can't fill {batches} batches"):
        batch_means(range(values), batches)


def test_runs_of_the_advised_length_have_the_wanted_precision():
    pilots, reached = [], []
    for seed in range(20):
        pilot = batch_means(waits(0.5, 20_000, seed))
        pilots.append(pilot.relative_half_width)
        count = run_length(pilot, 20_000, 0.02)
        reached.append(batch_means(waits(0.5, count, seed + 100)).relative_half_width)
    assert min(pilots) > 0.04  # a pilot alone falls short by far
    # A width from 20 batches is uncertain by about a sixth, and twice so here; the middle of 20 is not.
    assert np.median(reached) == pytest.approx(0.02, rel=0.15)


def test_half_the_width_takes_four_times_the_run():
    assert run_length(Interval(10, 9, 11), 50, 0.05) == 200
    assert run_length(Interval(-10, -11, -9), 50, 0.1) == 50


def test_the_run_that_a_load_needs_grows_as_the_square_of_what_is_left_of_the_server():
    needed = [run_length(batch_means(waits(load, 2_000_000, seed=3)), 2_000_000, 0.02) for load in (0.6, 0.9)]
    # (1 - load)**-2 alone says 16; what it leaves out is a factor between 1 and 2 here.
    assert 8 < needed[1] / needed[0] < 32


def test_a_pilot_without_a_relative_width_is_refused():
    for pilot in (Interval(0.0, -1.0, 1.0), Interval(1.0, 0.5, math.inf)):
        with pytest.raises(InvalidSetting, match="no relative width"):
            run_length(pilot, 100, 0.02)
    with pytest.raises(InvalidSetting, match="relative_half_width=2"):
        run_length(Interval(1.0, 0.5, 1.5), 100, 2)


def test_a_stream_depends_on_the_seed_and_its_own_name_only():
    def draw(name: str, seed: int, *names: str) -> list[float]:
        return streams(seed, *names)[name].random(3).tolist()

    alone = draw("services", 7, "services")
    assert draw("services", 7, "routing", "services", "arrivals") == alone
    assert draw("services", 8, "services") != alone
    others = ("service", "servicess", "arrivals")
    assert all(draw(name, 7, name) != alone for name in others)


def test_streams_of_one_seed_know_nothing_of_each_other():
    pair = streams(1, "arrivals", "services")
    first, second = pair["arrivals"].normal(size=10_000), pair["services"].normal(size=10_000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(10_000)


def test_pairing_on_the_same_customers_sees_a_difference_that_two_intervals_hide():
    loads = {"slow": 0.81, "fast": 0.80}  # the same customers, a little closer together
    means = {name: [waits(load, 20_000, seed).mean() for seed in range(20)] for name, load in loads.items()}
    slow, fast = (mean_interval(results) for results in means.values())
    assert slow.low < fast.high  # the intervals overlap
    difference = paired_difference(means["slow"], means["fast"])
    assert difference.low > 0
    assert difference.value == pytest.approx(slow.value - fast.value)
    assert (difference.high - difference.low) < (slow.high - slow.low) / 2


def test_unpaired_results_are_refused():
    with pytest.raises(InvalidSetting, match="3 results can't be paired with 2"):
        paired_difference([1, 2, 3], [1, 2])
