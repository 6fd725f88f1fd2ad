"""What can be read off a run: waits, times in system, how many are there, how busy the server is.

Nobody judges a restaurant by its first guests, who find it empty. So a run is read only from where it
has settled; `settle` says where that is for all runs of a study at once, and each `Quantity` makes one
number of the rest. Studies take from this list what their queue can show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from servinglib.statistics import quantile, warm_up_length
from simulations.queue_run import QueueRun

NOT_AT_ALL = 1e-6  # a wait below this share of a service may be the clock's rounding


@dataclass(frozen=True, slots=True)
class Settled:
    """A run, and the number of customers at its start to leave out."""

    run: QueueRun
    cut: int

    @property
    def sojourns(self) -> np.ndarray:
        """Seconds from arrival to departure, shape (customers - cut,)."""
        return self.run.sojourns[self.cut :]

    @property
    def waits(self) -> np.ndarray:
        """Seconds in the system without service, 0 where nothing but rounding is left of them."""
        waits, clock = self.run.waits[self.cut :], self.run.departures.max()
        return np.where(waits < max(NOT_AT_ALL * self.run.services.mean(), 8 * np.spacing(clock)), 0.0, waits)

    @property
    def window(self) -> tuple[float, float]:
        """Seconds of the first arrival that counts and of the last: after that the system only drains."""
        return self.run.arrivals[self.cut], self.run.arrivals[-1]


def settle(runs: Sequence[QueueRun]) -> list[Settled]:
    """The runs without their start; as many customers are left out of each, by MSER-5 on their averages.

    Asked are the time in system and the number whom each finds there: where servers abound, nobody
    waits from the first moment on, and only the number tells that the house was empty.
    """
    sojourns, found = np.zeros((2, len(runs[0].arrivals)))
    for run in runs:
        sojourns += run.sojourns / len(runs)
        found += np.arange(len(found)) - np.searchsorted(np.sort(run.departures), run.arrivals)
    cut = max(warm_up_length(sojourns), warm_up_length(found))
    return [Settled(run, cut) for run in runs]


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something to know about a queue: its name, its unit, and how to read it off a run."""

    name: str
    unit: str
    read: Callable[[Settled], float]


def _mean_batch_size(settled: Settled) -> float:
    """Customers over batches: those of one batch start together, and two batches never do."""
    starts = settled.run.starts[settled.cut :]
    return len(starts) / len(np.unique(starts))


def _mean_running(settled: Settled) -> float:
    """Time average of those being served: the number in a system that one enters at the start of service."""
    run = settled.run
    served = QueueRun(run.starts, run.services, run.starts, run.departures)
    return served.mean_number(*settled.window)


def _utilisation(settled: Settled) -> float:
    """Share of the time in which anybody is in the system, which is when this server works."""
    run, (start, end) = settled.run, settled.window
    last_out = np.maximum.accumulate(run.departures)[settled.cut : -1]
    return 1 - np.maximum(0, run.arrivals[settled.cut + 1 :] - last_out).sum() / (end - start)


MEAN_WAIT = Quantity("mean wait", "s", lambda s: s.waits.mean())
P99_WAIT = Quantity("P99 wait", "s", lambda s: quantile(s.waits, 0.99))
MUST_WAIT = Quantity("P(wait > 0)", "share", lambda s: (s.waits > 0).mean())
MEAN_SOJOURN = Quantity("mean sojourn", "s", lambda s: s.sojourns.mean())
P50_SOJOURN = Quantity("P50 sojourn", "s", lambda s: quantile(s.sojourns, 0.50))
P99_SOJOURN = Quantity("P99 sojourn", "s", lambda s: quantile(s.sojourns, 0.99))
MEAN_NUMBER = Quantity("mean number", "customers", lambda s: s.run.mean_number(*s.window))
MEAN_BATCH_SIZE = Quantity("mean batch size", "requests", _mean_batch_size)
MEAN_RUNNING = Quantity("mean running", "requests", _mean_running)
UTILISATION = Quantity("utilisation", "share", _utilisation)
