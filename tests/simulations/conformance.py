"""How a formula is put to the test: the same system is simulated, many times, and asked.

A scale is trusted after it has weighed a kilogram whose weight was known from elsewhere, more than
once, and did not vary. Here formula and simulation take turns at being the kilogram: they have nothing
in common but the system, so where they agree, both are right or the same mistake was made twice. An
`Experiment` says how to simulate a system once; its `Claim`s say what theory expects of it; `verdicts`
runs it often enough to know.

The rules, the same for every claim
- 64 replications with streams of their own for arrivals, services and whatever else is drawn. Seeds are
  fixed by the experiment's name, so a test passes or fails for good.
- Each run starts empty. How much of its start is dropped says MSER-5 on the average of 20 shorter runs
  with other seeds, a fifth as long.
- A Student-t interval over the replications must contain theory, and half of its width must be at most
  2% of the estimate. A bound must lie on its side of the whole interval.
- The intervals are wide ones: each fails to hold a true value with probability 1 - CONFIDENCE =
  2e-7, so that all comparisons of the suite together raise a false alarm with probability below 1e-4
  (`test_conformance.py` counts them). Being that sure costs about five times the customers of a 99%
  interval of the same width.

How many customers a replication needs was found with `servinglib.statistics.run_length`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from servinglib.statistics import Interval, mean_interval, streams, warm_up_length
from simulations.queue_run import QueueRun

CONFIDENCE = 1 - 2e-7
FALSE_ALARM = 1e-4
HALF_WIDTH = 0.02
REPLICATIONS = 64
PILOTS = 20
LOADS = (0.3, 0.6, 0.9)

Draw = dict[str, np.random.Generator]
Relation = Literal["equal", "above", "below"]

# Laws of a size with mean 1, in order of how much sizes differ: C² is 0, 1 and 2.25.
SIZES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "fixed": lambda rng, size: np.ones(size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    "two-point": lambda rng, size: np.where(rng.random(size) < 0.9, 0.5, 5.5),
}


@dataclass(frozen=True, slots=True, eq=False)
class TaggedRun(QueueRun):
    """A run that knows one thing more about each customer, such as a class; `tags` is in order of arrival."""

    tags: np.ndarray

    @classmethod
    def of(cls, run: QueueRun, tags: np.ndarray) -> TaggedRun:
        return cls(run.arrivals, run.services, run.starts, run.departures, tags)


@dataclass(frozen=True)
class Settled:
    """A run without its warm-up: what the customers saw who came after it.

    Attributes
    ----------
    run : QueueRun
        All of it.
    first : int
        The first customer who counts.
    """

    run: QueueRun
    first: int

    @property
    def services(self) -> np.ndarray:
        return self.run.services[self.first :]

    @cached_property
    def sojourns(self) -> np.ndarray:
        return self.run.sojourns[self.first :]

    @cached_property
    def waits(self) -> np.ndarray:
        """Seconds before service; exact zeros for those who find a server free."""
        return (self.run.starts - self.run.arrivals)[self.first :]

    @property
    def starts(self) -> np.ndarray:
        return self.run.starts[self.first :]

    @property
    def departures(self) -> np.ndarray:
        return self.run.departures[self.first :]

    @property
    def lost(self) -> np.ndarray:
        return self.run.lost[self.first :]

    @property
    def tags(self) -> np.ndarray:
        assert isinstance(self.run, TaggedRun)
        return self.run.tags[self.first :]

    @cached_property
    def found(self) -> np.ndarray:
        """How many each customer finds in the system; Poisson arrivals see what time averages see."""
        served = ~self.run.lost
        came = np.cumsum(served) - served
        left = np.searchsorted(np.sort(self.run.departures[served]), self.run.arrivals)
        return (came - left)[self.first :]

    @cached_property
    def time_shares(self) -> np.ndarray:
        """Share of the time in which n are in the system, n = 0, 1, ..., with a clock that starts late."""
        opened, run = self.run.arrivals[self.first], self.run
        there = run.departures > opened
        arrivals = np.maximum(run.arrivals[there] - opened, 0)
        departures = run.departures[there] - opened
        return QueueRun(arrivals, run.services[there], run.starts[there], departures).number_shares()


@dataclass(frozen=True)
class Claim:
    """What theory expects.

    Attributes
    ----------
    name : str
    theory : float
    statistic : callable
        The same quantity in one simulated run: a `Settled`, or what the experiment's `simulate`
        returns where that is not a `QueueRun`.
    simulation_is : str
        "equal" to theory, or a bound: "above" it, "below" it.
    control : tuple of callable and float, optional
        A control variate, where plain simulation would take too long: another quantity of the same run
        and its known mean, which has a plain claim of its own.
    """

    name: str
    theory: float
    statistic: Callable[[Any], float]
    simulation_is: Relation = "equal"
    control: tuple[Callable[[Any], float], float] | None = None

    def measure(self, seen: Any) -> tuple[float, float]:
        """The quantity in one run, and how far the control is off in it."""
        off = self.control[0](seen) - self.control[1] if self.control else 0.0
        return float(self.statistic(seen)), float(off)

    def holds(self, interval: Interval) -> bool:
        match self.simulation_is:
            case "equal":
                return self.theory in interval
            case "above":
                return interval.low > self.theory
            case "below":
                return interval.high < self.theory


@dataclass(frozen=True)
class Experiment:
    """A system and what is claimed of it.

    Attributes
    ----------
    name : str
        Fixes the seeds.
    size : int
        Customers, requests or samples in one replication.
    simulate : callable
        Streams and size to one run.
    claims : tuple of Claim
    """

    name: str
    size: int
    simulate: Callable[[Draw, int], Any]
    claims: tuple[Claim, ...]

    def __str__(self) -> str:
        return self.name

    def verdicts(self) -> list[tuple[Claim, Interval]]:
        """Each claim with the interval that the simulation gives for its quantity."""
        first = self._warm_up()
        values = np.array([self._replicate(number, first) for number in range(REPLICATIONS)])
        by_claim = np.moveaxis(values, 0, -1)  # (claims, quantity and control, replications)
        return [
            (claim, controlled_interval(*v) if claim.control else mean_interval(v[0], CONFIDENCE))
            for claim, v in zip(self.claims, by_claim, strict=True)
        ]

    def check(self) -> None:
        """Assert every claim, with all numbers in the message."""
        for claim, interval in self.verdicts():
            numbers = (
                f"{self.name}, {claim.name}: theory {claim.theory:.6g}, simulation {interval.value:.6g} in "
                f"[{interval.low:.6g}, {interval.high:.6g}], half-width {interval.relative_half_width:.2%}"
            )
            assert claim.holds(interval), numbers
            assert interval.relative_half_width <= HALF_WIDTH, numbers

    def _warm_up(self) -> int:
        pilots = [self.simulate(self._draw(-1 - n), self.size // 5) for n in range(PILOTS)]
        if not isinstance(pilots[0], QueueRun):
            return 0  # independent samples have no start
        return warm_up_length(np.nanmean([run.sojourns for run in pilots], axis=0))

    def _replicate(self, number: int, first: int) -> list[tuple[float, float]]:
        run = self.simulate(self._draw(number), self.size)
        seen = Settled(run, first) if isinstance(run, QueueRun) else run
        return [claim.measure(seen) for claim in self.claims]

    def _draw(self, number: int) -> Draw:
        seed = zlib.crc32(self.name.encode()) * 1_000 + PILOTS + number
        return streams(seed, "arrivals", "services", "others")


def controlled_interval(values: np.ndarray, off: np.ndarray) -> Interval:
    """The mean that `values` would have if the control were right: where their regression line crosses 0.

    Runs in which customers happen to wait long have late percentiles too, so most of what differs between
    runs is explained by how far a known mean is off. A. M. Law, Simulation Modeling and Analysis, 5th
    ed. (2015), chapter 11, on control variates; the interval is that of a regression line's intercept.
    """
    n, spread = len(values), off - off.mean()
    slope = spread @ values / (spread @ spread)
    rest = values - slope * off
    variance = ((rest - rest.mean()) ** 2).sum() / (n - 2) * (1 / n + off.mean() ** 2 / (spread @ spread))
    half = stdtrit(n - 2, (1 + CONFIDENCE) / 2) * np.sqrt(variance)
    return Interval(float(rest.mean()), float(rest.mean() - half), float(rest.mean() + half))


def poisson_times(draw: Draw, rate: float, size: int) -> np.ndarray:
    """Arrivals at random, `rate` per second."""
    return np.cumsum(draw["arrivals"].exponential(1 / rate, size))


def share(condition: Callable[[Settled], np.ndarray]) -> Callable[[Settled], float]:
    """The share of customers of whom something is true."""
    return lambda seen: float(np.mean(condition(seen)))


def mean_sojourn(seen: Settled) -> float:
    return float(seen.sojourns.mean())


def mean_wait(seen: Settled) -> float:
    return float(seen.waits.mean())


def finding(n: int) -> Callable[[Settled], float]:
    """The share of customers who find n others."""
    return share(lambda seen: seen.found == n)


def time_share(n: int) -> Callable[[Settled], float]:
    """The share of the time in which n are in the system."""
    return lambda seen: float(seen.time_shares[n])
