"""Intervals that cover the truth as often as they say, checked on samples whose truth is known."""

import math

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.statistics import Interval, mean_interval, quantile, quantile_interval, warm_up_length


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
