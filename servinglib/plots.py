"""One quiet style for every figure of the course: `fig, ax = figure("title", "x (unit)", "y (unit)")`.

A figure is a sentence: one idea, units on the axes, and labels where the eye already is instead of
a legend. The colours are Okabe and Ito's, which colour-blind readers can tell apart; each comes
with its own marker and line, so that a black-and-white print works too. The paper stays white and
opaque, so that a figure can be read on a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design" (2008), in the order in which a figure uses them.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "amber": "#E69F00",
    "black": "#000000",
}
# The three columns look the same in every figure: theory is a line, simulation and measurement are points.
THEORY: dict[str, Any] = {"color": COLOURS["black"], "linestyle": "--", "linewidth": 1.3, "marker": ""}
SIMULATED: dict[str, Any] = {"color": COLOURS["blue"], "marker": "o", "markerfacecolor": "white"}
MEASURED: dict[str, Any] = {"color": COLOURS["orange"], "marker": "s"}

_SETTINGS: dict[Any, Any] = {
    "figure.figsize": (6.4, 3.8),
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
}


def style() -> AbstractContextManager[None]:
    """The course's style as a context: `with style(): ...`, for figures not made by `figure`."""
    import matplotlib as mpl
    from cycler import cycler

    cycle = cycler(color=list(COLOURS.values())) + cycler(marker=list("osD^vPX"))
    return mpl.rc_context({**_SETTINGS, "axes.prop_cycle": cycle})


def figure(
    title: str,
    xlabel: str,
    ylabel: str,
    *,
    xscale: str = "linear",
    yscale: str = "linear",
    xticks: Sequence[float] | None = None,
    size: tuple[float, float] | None = None,
) -> tuple[Figure, Axes]:
    """An empty figure in the course's style.

    Parameters
    ----------
    title : str
        What the reader should see, such as "Batching multiplies throughput".
    xlabel, ylabel : str
        With units: "P99 latency (ms)".
    xscale, yscale : {"linear", "log"}
    xticks : sequence of float, optional
        The places to label, as plain numbers: [1, 2, 4, 8] on a log axis.
    size : (float, float), optional
        Inches.
    """
    import matplotlib.pyplot as plt

    # Made outside the style's context: in a notebook the first figure switches the backend on, and the
    # end of the context would switch it off again, so that no further figure is shown.
    paper = {"dpi": _SETTINGS["figure.dpi"], "facecolor": "white", "layout": "constrained"}
    fig = plt.figure(figsize=size or _SETTINGS["figure.figsize"], **paper)
    with style():
        ax = fig.add_subplot()
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    if xticks is not None:
        ax.set_xticks(list(xticks), [f"{tick:g}" for tick in xticks])
        ax.minorticks_off()
    return fig, ax


def label(ax: Axes, line: Any, text: str) -> None:
    """Write `text` at the right end of a line, in its colour, instead of a legend entry."""
    x, y = line.get_xdata()[-1], line.get_ydata()[-1]
    ax.annotate(
        text,
        (x, y),
        xytext=(7, 0),
        textcoords="offset points",
        color=line.get_color(),
        va="center",
        fontsize=9.5,
    )
