"""How sure is a number? Percentiles, means and the warm-up, with honest intervals.

A percentile read off a hundred answers is itself a random number: ask again and it moves. Here each
estimate comes as an `Interval` that says how far it may move. For percentiles it uses no assumption
about the law: sort the values, and the chance that the true percentile lies between the i-th and the
j-th is a binomial probability. For means it uses replications, runs with separate seeds whose results
really are independent, and Student's t. Lesson 01 quotes both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from servinglib.errors import InvalidSetting

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and how far the truth may lie from it, all in the unit of what was estimated.

    Attributes
    ----------
    value : float
    low, high : float
        Infinite where the sample is too small to bound that side.
    """

    value: float
    low: float
    high: float

    def __contains__(self, truth: float) -> bool:
        return self.low <= truth <= self.high

    @property
    def relative_half_width(self) -> float:
        """Half the interval's width as a share of the value."""
        return (self.high - self.low) / (2 * abs(self.value))


def quantile(values: Values, p: float) -> float:
    """The smallest value that at least a share `p` of the values does not exceed; always one of them."""
    ordered = _sorted(values, p)
    return float(ordered[_rank(len(ordered), p)])


def quantile_interval(values: Values, p: float, confidence: float = 0.95) -> Interval:
    """A quantile with a distribution-free confidence interval from order statistics.

    The number of values below the true p-quantile is Binomial(n, p); the interval runs between the
    two order statistics that cut at most (1 - confidence)/2 off each side of it. Where there is no
    such value (the P99 of 100 values has none above) that side is infinite.

    Parameters
    ----------
    values : sequence or array of float
        Independent draws. Waiting times that follow each other are alike, so for those the interval
        is too narrow; replications (`mean_interval` of each run's quantile) have no such fault.
    p, confidence : float
        In (0, 1).

    Notes
    -----
    H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., section 7.1.
    """
    from scipy.special import bdtr

    ordered = _sorted(values, p)
    _check_share(confidence, "confidence")
    n, cut = len(ordered), (1 - confidence) / 2
    below = bdtr(np.arange(n), n, p)  # below[k] = P(at most k of the n values lie below the quantile)
    lower = int(np.searchsorted(below, cut, side="right")) - 1  # rank of the largest safe lower value
    upper = int(np.searchsorted(below, 1 - cut))
    return Interval(
        value=float(ordered[_rank(n, p)]),
        low=float(ordered[lower]) if lower >= 0 else -math.inf,
        high=float(ordered[upper]) if upper < n else math.inf,
    )


def mean_interval(replications: Values, confidence: float = 0.95) -> Interval:
    """The mean of independent results with Student's t interval.

    Parameters
    ----------
    replications : sequence or array of float
        One number per independent run (not per request of one run), at least two.
    """
    from scipy.special import stdtrit

    x = np.asarray(replications, float)
    if len(x) < 2:
        raise InvalidSetting(f"an interval needs at least 2 replications and got {len(x)}; run more")
    _check_share(confidence, "confidence")
    half = stdtrit(len(x) - 1, (1 + confidence) / 2) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def warm_up_length(series: Values) -> int:
    """How many values to drop from the start of a run that began empty: the rule MSER-5.

    Cut where the mean of the rest would be known best, that is, where the squared standard error of
    what remains is smallest, in groups of five values, and never beyond the first half.

    Parameters
    ----------
    series : sequence or array of float
        A long run in time order; best the average over several replications, position by position.

    Notes
    -----
    K. P. White, M. J. Cobb and S. C. Spratt, Winter Simulation Conference 2000.
    """
    groups = np.asarray(series[: len(series) // 5 * 5], float).reshape(-1, 5).mean(axis=1)
    n = len(groups)
    if n < 10:
        raise InvalidSetting(f"MSER-5 needs at least 50 values and got {len(series)}; run longer")
    left = n - np.arange(n // 2)
    rest_sum = groups.sum() - np.concatenate([[0.0], np.cumsum(groups)[: n // 2 - 1]])
    rest_squares = (groups**2).sum() - np.concatenate([[0.0], np.cumsum(groups**2)[: n // 2 - 1]])
    mser = (rest_squares - rest_sum**2 / left) / left**2
    return 5 * int(np.argmin(mser))


def _sorted(values: Values, p: float) -> np.ndarray:
    _check_share(p, "p")
    if len(values) == 0:
        raise InvalidSetting("a quantile of no values does not exist; did every request fail?")
    return np.sort(np.asarray(values, float))


def _rank(n: int, p: float) -> int:
    # The tolerance keeps 0.07 * 100 = 7.000000000000001 from becoming the eighth value.
    return math.ceil(n * p - 1e-9) - 1


def _check_share(share: float, name: str) -> None:
    if not 0 < share < 1:
        raise InvalidSetting(f"{name}={share} must lie strictly between 0 and 1")
