"""What goes into a cluster's run besides its customers, and what comes out.

The logbook of a bank's branch: on one page the breakdowns, on the next a line per customer (when
they came, when they were served, by whom, how often they had to start again), and on the last the
number of counters at each hour, which is what the branch paid for. `simulations.cluster` writes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from servinglib.errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class Outage:
    """Replica number `replica` is down from `start` to `end` (seconds; infinite for good)."""

    replica: int
    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise InvalidSetting(f"an outage from {self.start} to {self.end} s needs 0 <= start < end")


def draw_outages(
    rng: np.random.Generator, replicas: int, mean_up: float, mean_down: float, until: float
) -> tuple[Outage, ...]:
    """Breakdowns at random: each replica is up and down in turn, for exponential times.

    Parameters
    ----------
    rng : numpy.random.Generator
        A stream of its own, so that two policies meet the same breakdowns.
    replicas : int
        Numbered from 0.
    mean_up, mean_down : float
        Seconds; in the long run a replica is up for a share mean_up / (mean_up + mean_down).
    until : float
        No outage starts later, in seconds.
    """
    if not (0 < mean_up < math.inf and 0 < mean_down < math.inf and until < math.inf):
        raise InvalidSetting(
            f"mean_up={mean_up} and mean_down={mean_down} must be seconds above 0 and until={until} finite"
        )
    outages = []
    for replica in range(replicas):
        start = rng.exponential(mean_up)
        while start < until:
            end = start + rng.exponential(mean_down)
            outages.append(Outage(replica, start, end))
            start = end + rng.exponential(mean_up)
    return tuple(outages)


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """What became of each request, and how large the fleet was; times in seconds.

    Attributes
    ----------
    arrivals, starts, finishes : ndarray of float, shape (requests,)
        In order of arrival. `starts` is when service last began, `finishes` when the request was
        answered or failed; NaN for what never happened.
    replicas : ndarray of int, shape (requests,)
        Who last served it; -1 for nobody.
    completed : ndarray of bool, shape (requests,)
        The others failed: they were cut off too often, or no replica was left.
    cut_offs : ndarray of int, shape (requests,)
        How often a replica broke down while serving it.
    changes : ndarray of float, shape (changes,)
        When the fleet changed; the first is 0.
    ready, paid : ndarray of int, shape (changes,)
        Replicas that take requests, and all that cost money (starting, down and draining ones
        too), from each change to the next.
    """

    arrivals: np.ndarray
    starts: np.ndarray
    finishes: np.ndarray
    replicas: np.ndarray
    completed: np.ndarray
    cut_offs: np.ndarray
    changes: np.ndarray
    ready: np.ndarray
    paid: np.ndarray

    @property
    def sojourns(self) -> np.ndarray:
        """Seconds from arrival to answer, shape (requests,); NaN for those that failed."""
        return np.where(self.completed, self.finishes - self.arrivals, np.nan)

    @property
    def end(self) -> float:
        """When the last request arrived, was answered or failed, in seconds."""
        return float(max(self.arrivals[-1], np.nanmax(self.finishes, initial=0.0)))

    @property
    def replica_seconds(self) -> float:
        """What the fleet cost until `end`, in replicas times seconds."""
        held = np.diff(np.minimum(np.append(self.changes, math.inf), self.end))
        return float(held @ self.paid)

    def ready_at(self, time: float) -> int:
        """How many replicas took requests at this time (seconds, 0 or later)."""
        return int(self.ready[np.searchsorted(self.changes, time, side="right") - 1])
