"""One queue, asked twice: what does theory say, and what do simulated customers say?

A cook who follows a recipe still tastes the soup. The recipe is a formula, the spoon a simulation, and
one spoonful proves little: so a study simulates the same queue many times over, each time with other
customers, drops the start of every run (the shop has just opened), and says between which limits the
truth lies. Each quantity becomes one `Comparison`. The same study at one load after the other gives a
curve, and shows what a single load can't: how steep the end of it is.

What can be compared is in `quantities`; the studies behind `servinglib simulate` are in `queue_studies`
and `serving_studies`, their table and figure in `study_report`. Lesson 03 takes the queues one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.experiments.quantities import Quantity, settle
from servinglib.statistics import Interval, mean_interval
from simulations.queue_run import QueueRun
from simulations.theory.domain import require_positive, require_share, require_whole

Kind = Literal["exact", "upper bound", "lower bound", "approximation"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is simulated.

    Attributes
    ----------
    customers : int
        Of each replication, the warm-up included. All replications are held in memory, 32 bytes a
        customer.
    replications : int
        Runs with customers of their own; 20 or more make Student's t narrow.
    confidence : float
        Of the intervals, in (0, 1).
    seed : int
        The same seed gives the same customers, at another rate closer together or farther apart.
    """

    customers: int
    replications: int = 20
    confidence: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(100, customers=self.customers)
        require_whole(2, replications=self.replications)
        require_share(confidence=self.confidence)
        require_whole(0, seed=self.seed)

    @property
    def seeds(self) -> list[int]:
        """One for each replication; those of seeds 1 and 2 have nothing in common."""
        return np.random.SeedSequence(self.seed).generate_state(self.replications, np.uint64).tolist()


@dataclass(frozen=True, slots=True)
class Theory:
    """What theory says at one rate.

    Attributes
    ----------
    values : mapping of str to float
        By name of the quantity; those it is silent about are missing.
    kind : {"exact", "upper bound", "lower bound", "approximation"}
    notes : tuple of str
        Where the values come from, if that isn't plain, and why some are missing.
    """

    values: Mapping[str, float]
    kind: Kind = "exact"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity as theory and simulation see it; `theory` is None where theory is silent."""

    quantity: str
    unit: str
    theory: float | None
    kind: Kind
    simulated: Interval

    @property
    def difference(self) -> float | None:
        """By how many percent the simulation lies above theory."""
        return 100 * (self.simulated.value / self.theory - 1) if self.theory else None

    @property
    def verdict(self) -> str:
        """Whether they can both be right; empty where theory makes no claim that could be refuted."""
        if self.theory is None:
            return ""
        match self.kind:
            case "exact" if self.theory in self.simulated:
                return "inside"
            case "exact":  # all runs alike give no interval: what theory speaks of never happened in them
                return "outside" if self.simulated.low < self.simulated.high else "not seen"
            case "upper bound":
                return "bound holds" if self.simulated.low <= self.theory else "bound broken"
            case "lower bound":
                return "bound holds" if self.simulated.high >= self.theory else "bound broken"
            case "approximation":
                return "approximate"

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {**asdict(self), "difference_percent": self.difference, "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Result:
    """All comparisons of one study at one rate, and what a reader should know about them."""

    rate: float
    load: float
    rows: tuple[Comparison, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {**asdict(self), "rows": [row.to_json() for row in self.rows]}


@dataclass(frozen=True, slots=True)
class Study:
    """A queue with all its settings, and the two ways to know it.

    Attributes
    ----------
    name, title : str
        As a command, and in words.
    parameters : mapping of str to float or str
        All settings but the rate.
    rate, capacity : float
        Arrivals per second, and at how many the queue would grow without end.
    quantities : tuple of Quantity
    simulate : callable
        Rate, customers and seed to a `QueueRun`.
    theory : callable
        Rate to a `Theory`.

    Raises
    ------
    InvalidSetting
        When the load, rate / capacity, is not in (0, 1).
    """

    name: str
    title: str
    parameters: Mapping[str, float | str]
    rate: float
    capacity: float
    quantities: tuple[Quantity, ...]
    simulate: Callable[[float, int, int], QueueRun]
    theory: Callable[[float], Theory]

    def __post_init__(self) -> None:
        require_positive(rate=self.rate)
        if not self.rate < self.capacity:
            raise InvalidSetting(
                f"rate={self.rate:g} requests/s is a load of {self.rate / self.capacity:.4g} and the queue "
                f"would grow without end; the load must be below 1, here the rate below {self.capacity:.4g}/s"
            )

    def run(
        self,
        effort: Effort,
        rate: float | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Result:
        """Compare theory and simulation at a rate, the study's own unless given.

        `progress` is called with the share that is done.
        """
        rate = self.rate if rate is None else rate
        theory, runs = self.theory(rate), []  # theory first: it refuses at once, the simulation takes time
        for done, seed in enumerate(effort.seeds):
            progress(done / effort.replications)
            runs.append(self.simulate(rate, effort.customers, seed))
        settled = settle(runs)
        rows = tuple(
            Comparison(
                quantity.name,
                quantity.unit,
                theory.values.get(quantity.name),
                theory.kind,
                mean_interval([float(quantity.read(run)) for run in settled], effort.confidence),
            )
            for quantity in self.quantities
        )
        load = rate / self.capacity
        return Result(rate, load, rows, (*theory.notes, *_doubts(rows, load, effort)))


def _doubts(rows: Sequence[Comparison], load: float, effort: Effort) -> list[str]:
    """What speaks against believing the table."""
    doubts = []
    # The growth is that of W. Whitt, Planning queueing simulations, Management Science 35 (1989); with
    # the factor 100 one run of M/M/1 at a heavy load knows its mean wait with a standard error of 20%.
    needed = 100 / (1 - load) ** 2
    if effort.customers < needed:
        doubts.append(
            f"A load of {load:.3g} calls for runs of about 100/(1-load)² = {needed:,.0f} customers; runs of "
            f"{effort.customers:,} may end before the long waits have come."
        )
    outside = sum(row.verdict == "outside" for row in rows)
    if outside:
        doubts.append(
            f"Theory lies outside {outside} of {len(rows)} intervals. Of {100 * effort.confidence:g}% intervals "
            f"{100 * (1 - effort.confidence):.3g}% miss the truth though nothing is wrong: try another seed."
        )
    return doubts
