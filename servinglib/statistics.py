"""How sure is a number? Percentiles, means and differences, with honest intervals.

A percentile read off a hundred answers is itself a random number: ask again and it moves. Here each
estimate comes as an `Interval` that says how far it may move. For percentiles it uses no assumption
about the law: sort the values, and the chance that the true percentile lies between the i-th and the
j-th is a binomial probability. For means it uses replications, runs with separate seeds whose results
really are independent, and Student's t. Lesson 01 quotes both.

Two policies are compared like two shoes on one runner: on the same customers (`streams`), and by the
difference within each run (`paired_difference`). One long run serves too: drop its warm-up
(`servinglib.warm_up`), cut the rest into batches (`batch_means`), and ask how much longer it must be
(`run_length`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.warm_up import moving_average, warm_up_length

__all__ = [
    "Interval",
    "Values",
    "batch_means",
    "lag1_correlation",
    "mean_interval",
    "moving_average",
    "paired_difference",
    "quantile",
    "quantile_interval",
    "run_length",
    "streams",
    "warm_up_length",
]

Values = Sequence[float] | np.ndarray

TENTHS = 10  # parts of a batch on which `batch_means` checks that batches are long enough
MOST_CORRELATED = 0.4


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


def paired_difference(first: Values, second: Values, confidence: float = 0.95) -> Interval:
    """How much larger one policy's results are than another's, on the same customers.

    A run with many customers is hard for both policies, and in the difference that cancels: these
    are common random numbers. The policies differ where 0 lies outside the interval.

    Parameters
    ----------
    first, second : sequence or array of float
        One result per replication of each policy; replication i of both draws from `streams(i, ...)`.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape:
        raise InvalidSetting(
            f"{len(a)} results can't be paired with {len(b)}; run both policies on the same replications"
        )
    return mean_interval(a - b, confidence)


def streams(seed: int, *names: str) -> dict[str, np.random.Generator]:
    """A random stream for each purpose: `streams(7, "arrivals", "services")`.

    A stream depends on the seed and its own name only, so one more name leaves the others as they
    were: a policy that draws random numbers of its own still meets the same customers.
    """
    keys = {name: np.random.SeedSequence(seed, spawn_key=tuple(name.encode())) for name in names}
    return {name: np.random.default_rng(key) for name, key in keys.items()}


def batch_means(series: Values, batches: int = 20, confidence: float = 0.95) -> Interval:
    """The mean of one long settled run, from the means of consecutive batches.

    Neighbours in a queue wait alike, so single values are far from independent; the means of long
    batches nearly are. Whether the batches are long enough is checked on tenths of them, because a
    correlation estimated from 20 numbers could hide a large one. 0.4 between tenths is about 0.05
    between batches where it dies out geometrically.

    Parameters
    ----------
    series : sequence or array of float
        In time order, without the warm-up; values that don't fill the batches are left out at the start.
    batches : int
        At least 2; 20 or more make Student's t narrow.

    Raises
    ------
    InvalidSetting
        When there are fewer than 10 values per batch, or tenths of batches are correlated above 0.4.

    Notes
    -----
    A. M. Law and J. S. Carson, A sequential procedure for determining the length of a steady-state
    simulation, Operations Research 27 (1979), also test many small batches before they use few large ones.
    """
    values, parts = np.asarray(series, float), TENTHS * batches
    if batches < 2 or len(values) < parts:
        raise InvalidSetting(
            f"{len(values)} values can't fill {batches} batches; use at least 2 batches and {parts} values"
        )
    tenths = values[len(values) % parts :].reshape(parts, -1).mean(axis=1)
    correlation = lag1_correlation(tenths)
    if correlation > MOST_CORRELATED:
        # Half the limit, or the advised run would fall short as often as not.
        longer = math.log(MOST_CORRELATED / 2) / math.log(correlation)
        raise InvalidSetting(
            f"batches of {len(values) // batches} values are too short: their tenths have a lag-1 "
            f"correlation of {correlation:.2f} and {MOST_CORRELATED} is the limit; run about "
            f"{longer:.1f} times as long, or use fewer batches"
        )
    return mean_interval(tenths.reshape(batches, TENTHS).mean(axis=1), confidence)


def lag1_correlation(series: Values) -> float:
    """The correlation of each value with the next one, from -1 to 1; 0 where nothing varies."""
    deviations = np.asarray(series, float) - np.mean(series)
    power = deviations @ deviations
    return float(deviations[:-1] @ deviations[1:] / power) if power > 0 else 0.0


def run_length(pilot: Interval, count: int, relative_half_width: float) -> int:
    """How long a run must be for a wanted precision, from a shorter one.

    Half-widths shrink as one over the square root of the length, so half the width takes four times
    the run. The length needed at a load near 1 grows as (1 - load)**-2 besides.

    Parameters
    ----------
    pilot : Interval
        What the short run gave (`mean_interval`, `batch_means`); the answer is as rough as its width.
    count : int
        What the short run consisted of: replications, or customers of one run.
    relative_half_width : float
        The wanted half-width as a share of the estimate, such as 0.02.

    Returns
    -------
    int
        Replications or customers, in the unit of `count`.

    Notes
    -----
    W. Whitt, Planning queueing simulations, Management Science 35 (1989).
    """
    _check_share(relative_half_width, "relative_half_width")
    if pilot.value == 0 or not math.isfinite(pilot.high - pilot.low):
        raise InvalidSetting(
            f"a pilot of {pilot.value} in [{pilot.low}, {pilot.high}] has no relative width; run it longer"
        )
    return math.ceil(count * (pilot.relative_half_width / relative_half_width) ** 2)


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
