"""What a study looks like: a table for one load, a figure for many.

A doctor's letter puts each value beside its normal range, so that the reader sees at once what is out
of it. The table does the same with theory and the interval of the simulation. The figure holds the mean
time in system against the load: theory is a line, simulations are points with their intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table

from servinglib.experiments.quantities import MEAN_SOJOURN
from servinglib.experiments.study import Comparison, Effort, Result, Study
from servinglib.plots import SIMULATED, THEORY, figure
from servinglib.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOADS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
FINE_LOADS = 1 - np.geomspace(0.95, 0.05, 24)  # the line needs most points where it bends


def table(study: Study, result: Result, effort: Effort) -> Table:
    """One line per quantity; the interval is given as its half-width."""
    title = f"{study.title}: {result.rate:g} requests/s, load {result.load:.3g}"
    view = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    simulated = f"simulation, {100 * effort.confidence:g}%"
    for name in ("quantity", "unit"):
        view.add_column(name, no_wrap=True)
    for name in ("theory", simulated, "differs"):
        view.add_column(name, no_wrap=True, justify="right")
    view.add_column("theory is", no_wrap=True)
    for row in result.rows:
        view.add_row(row.quantity, row.unit, *_figures(row))
    return view


def _figures(row: Comparison) -> tuple[str, str, str, str]:
    half_width = (row.simulated.high - row.simulated.low) / 2
    return (
        "" if row.theory is None else f"{row.theory:.4g}",
        f"{row.simulated.value:.4g} ± {half_width:.2g}",
        "" if row.difference is None else f"{row.difference:+.2f}%",
        row.verdict,
    )


def curve(
    study: Study, effort: Effort, progress: Callable[[float], None] = lambda share: None
) -> list[Result]:
    """The study at each of `LOADS`, with the same customers closer together or farther apart."""
    results = []
    for done, load in enumerate(LOADS):
        results.append(
            study.run(
                effort,
                load * study.capacity,
                lambda share, done=done: progress((done + share) / len(LOADS)),
            )
        )
    return results


def draw(study: Study, results: Sequence[Result], effort: Effort) -> Figure:
    """The mean time in system at every load, theory and simulation."""
    fig, ax = figure("Near a load of 1 the time in system grows without end", "load", "mean sojourn (s)")
    theories = [study.theory(load * study.capacity) for load in FINE_LOADS]
    line = [theory.values.get(MEAN_SOJOURN.name, np.nan) for theory in theories]
    if not np.isnan(line).all():
        ax.plot(FINE_LOADS, line, label=f"theory, {theories[-1].kind}", **THEORY)
    means = [_mean_sojourn(result) for result in results]
    values = np.array([mean.value for mean in means])
    reach = [values - [mean.low for mean in means], [mean.high for mean in means] - values]
    label = f"simulated, {100 * effort.confidence:g}% interval"
    loads = [result.load for result in results]
    ax.errorbar(loads, values, reach, linestyle="", capsize=3, label=label, **SIMULATED)
    ax.set(xlim=(0, 1), ylim=0)
    ax.legend(loc="upper left", title=study.title, alignment="left", frameon=False)
    return fig


def _mean_sojourn(result: Result) -> Interval:
    return next(row.simulated for row in result.rows if row.quantity == MEAN_SOJOURN.name)


def to_json(study: Study, effort: Effort, result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """All settings and comparisons, ready for JSON; `results` are those of the curve, if there is one."""
    return {
        "study": study.name,
        **asdict(effort),
        "parameters": dict(study.parameters),
        "capacity": study.capacity,
        "result": result.to_json(),
        "curve": [other.to_json() for other in results],
    }
