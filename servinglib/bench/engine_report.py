"""The engine benchmark from models to a report: who competes, what came out, and which targets it meets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.table import Table

from servinglib.bench import engine_rivals
from servinglib.bench.engine import (
    MIXED,
    MOST_BOOKED,
    PARTS,
    SHARED,
    ModelFigures,
    Plan,
    Process,
    Progress,
    measure,
)
from servinglib.bench.targets import Target, verdict_table
from servinglib.engines.registry import ENGINES
from servinglib.errors import InvalidSetting, UnknownName

OURS = "continuous"
TIMES_AS_FAST = {"vllm": 1.3, "transformers": 1.5, "transformers-cb": 20.0}
TIMES_AS_FAST_MIXED = {"vllm": 1.5, "transformers": 3.0}
MIXED_TARGET_MODEL = "bench-30m"  # elsewhere mixed lengths are measured and promised nothing
FIRST_TOKEN_SOONER = 5.0
HIT_US = 50.0
BOOKKEEPING = 0.15


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What one run of the benchmark found.

    Attributes
    ----------
    ours : str
        The engine of this library that the others were compared with.
    dtype : str
    plan : Plan
    models : dict of str to ModelFigures
    rivals : dict of str to str
        The version of each rival's package.
    """

    ours: str
    dtype: str
    plan: Plan
    models: dict[str, ModelFigures]
    rivals: dict[str, str]

    @property
    def targets(self) -> list[Target]:
        """Every figure that has a target, beside it."""
        return [t for model, figures in self.models.items() for t in _targets(model, figures, self.ours)]

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return {**asdict(self), "targets": [t.to_json() for t in self.targets]}


def run(
    models: Sequence[str],
    rivals: Sequence[str],
    plan: Plan,
    dtype: str = "bfloat16",
    ours: str = OURS,
    progress: Progress = lambda step, share: None,
    start: Callable[[str, str, str], Process] = engine_rivals.start,
) -> EngineReport:
    """Measure our engine beside its rivals on each model.

    Parameters
    ----------
    models : sequence of str
        Names of the zoo, or folders.
    rivals : sequence of str
        Keys of `engine_rivals.RIVALS`.
    plan : Plan
    dtype : str
        Of the weights and of all arithmetic, for everybody.
    ours : str
        A name of `servinglib.engines.registry.ENGINES`.
    progress : callable
        Called with what runs and the share of all that is done.
    start : callable
        Starts a contender's process from its name, the model and the dtype.

    Raises
    ------
    UnknownName, InvalidSetting
        Before anything is loaded.
    ContenderFailed
        A contender could not do what it was asked.
    """
    _check(plan, rivals, ours)
    figures = {}
    for i, model in enumerate(models):
        contenders: dict[str, Process] = {name: start(name, model, dtype) for name in (ours, *rivals)}
        figures[model] = measure(
            contenders,
            plan,
            lambda step, share, i=i, model=model: progress(f"{model}, {step}", (i + share) / len(models)),
        )
    return EngineReport(ours, dtype, plan, figures, engine_rivals.versions(rivals))


def _check(plan: Plan, rivals: Sequence[str], ours: str) -> None:
    for part in plan.parts:
        if part not in PARTS:
            raise UnknownName("part", part, PARTS)
    if ours not in ENGINES:
        raise UnknownName("engine", ours, ENGINES)
    if ours in rivals:
        raise InvalidSetting(f"{ours} can't compete with itself under one name; leave it out of the rivals")
    if any(n < 1 for n in plan.concurrency) or plan.rounds < 1:
        raise InvalidSetting(
            f"concurrency={list(plan.concurrency)} and rounds={plan.rounds} must be at least 1"
        )
    engine_rivals.check_rivals(rivals)


def _targets(model: str, figures: ModelFigures, ours: str) -> Iterator[Target]:
    for row, rates in figures.rates.items():
        promised = (
            TIMES_AS_FAST if row != MIXED else TIMES_AS_FAST_MIXED if model == MIXED_TARGET_MODEL else {}
        )
        for rival in rates.keys() & promised.keys() - {ours}:
            name = f"{model}, {_at(row)}: {ours} / {rival}"
            yield Target(name, ratio(rates, ours, rival), promised[rival], at_least=True)
    if figures.first_tokens:
        sooner = median(first / median(rest) for first, *rest in figures.first_tokens)
        name = f"{model}: first token, new prefix of {SHARED} / known prefix"
        yield Target(name, sooner, FIRST_TOKEN_SOONER, at_least=True)
    if figures.bookkeeping:
        name = f"{model}: bookkeeping at {MOST_BOOKED} sequences, of a step"
        yield Target(name, median(map(bookkeeping_share, figures.bookkeeping)), BOOKKEEPING, at_least=False)
    if figures.hits:
        microseconds = 1e6 * median(figures.hits["lookup"])
        yield Target(f"{model}: hit in the result cache", microseconds, HIT_US, at_least=False, unit="us")


def bookkeeping_share(seconds: dict[str, float]) -> float:
    """Of a step, what was not the model's."""
    ours = seconds["planning"] + seconds["telling"]
    return ours / (ours + seconds["computing"])


def ratio(rates: dict[str, list[float]], mine: str, other: str) -> float:
    """How many times as fast: within each round, then the median of the rounds."""
    return median(m / o for m, o in zip(rates[mine], rates[other], strict=True))


def _at(row: str) -> str:
    return row if row == MIXED else f"{row} at once"


def tables(report: EngineReport) -> list[Table]:
    """For people: each model's rates and ratios, then the targets met or missed."""
    speeds = [_speeds(model, f, report) for model, f in report.models.items() if f.rates]
    verdicts = verdict_table(report.targets)
    for model, figures in report.models.items():
        if figures.hits:
            whole = f"{1e6 * median(figures.hits['answer']):.3g} us"
            verdicts.add_row(
                f"{model}: that hit as a whole answer of the engine", whole, "for comparison", ""
            )
    return [*speeds, verdicts]


def _speeds(model: str, figures: ModelFigures, report: EngineReport) -> Table:
    ours, rivals = report.ours, list(report.rivals)
    title = f"{model}, {report.dtype}: output tokens/s, median of {report.plan.rounds}"
    table = Table("requests", ours, title=title, title_justify="left")
    for rival in rivals:
        table.add_column(rival)
        table.add_column("ratio")
    for row, rates in figures.rates.items():
        cells = [cell for rival in rivals for cell in _beside(rates, ours, rival)]
        table.add_row(_at(row), f"{median(rates[ours]):,.0f}", *cells)
    if figures.static_batch and MIXED in figures.rates:
        table.caption = f"transformers does the mixed lengths in static batches of {figures.static_batch}"
    return table


def _beside(rates: dict[str, list[float]], ours: str, rival: str) -> tuple[str, str]:
    if rival not in rates:
        return "", ""
    return f"{median(rates[rival]):,.0f}", f"{ratio(rates, ours, rival):.2f}"
