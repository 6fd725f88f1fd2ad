"""The demo's pictures, each drawn from the summary that is also stored as JSON.

One idea a figure; measured values are filled, simulated ones hollow, theory is a line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from servinglib.plots import COLOURS, MEASURED, THEORY, figure

Summary = dict[str, Any]


SIZE = (7.2, 4.2)  # inches
BLUE, ORANGE = COLOURS["blue"], COLOURS["orange"]


def draw_all(summary: Summary, folder: Path) -> dict[str, Path]:
    """Write every figure as a PNG into `folder`; returns their paths by name."""
    drawings: dict[str, Callable[[Summary], Figure]] = {
        "batch_time": draw_batch_time,
        "throughput": draw_throughput,
        "latency_own": draw_latency_at_own_load,
        "latency_common": draw_latency_at_common_load,
    }
    paths = {}
    for name, draw in drawings.items():
        paths[name] = folder / f"{name}.png"
        drawn = draw(summary)
        drawn.savefig(paths[name], dpi=150, metadata={"Software": None})
        pyplot.close(drawn)
    return paths


def draw_batch_time(summary: Summary) -> Figure:
    """Measured batch times and the fitted line."""
    fig, ax = figure(
        "A batch costs a fixed part and a part per request", "batch size b", "batch time (ms)", size=SIZE
    )
    law = summary["batch_time"]
    for size, times in law["samples"].items():
        ax.plot([int(size)] * len(times), np.multiply(times, 1e3), linestyle="", alpha=0.6, **MEASURED)
    sizes = np.array([0, max(int(s) for s in law["samples"])])
    line = (law["alpha"] * sizes + law["tau0"]) * 1e3
    ax.plot(sizes, line, **THEORY)
    formula = f"H(b) = {law['alpha'] * 1e3:.2f} ms · b + {law['tau0'] * 1e3:.1f} ms"
    ax.annotate(formula, (sizes[1] / 2, line.mean()), (12, -14), textcoords="offset points")
    ax.set(xlim=0, ylim=0)
    return fig


def draw_throughput(summary: Summary) -> Figure:
    """Saturation throughput against the capacity that the fitted line predicts."""
    curve, law = summary["curve"], summary["batch_time"]
    sizes = [p["max_batch_size"] for p in curve]
    rates = [p["saturation"]["requests_per_s"] for p in curve]
    fig, ax = _over_sizes("Throughput climbs, ever more slowly", "requests/s at saturation", sizes)
    fine = np.geomspace(sizes[0], sizes[-1], 100)
    ax.plot(fine, fine / (law["alpha"] * fine + law["tau0"]), label="predicted: b/(αb+τ₀)", **THEORY)
    ax.plot(sizes, rates, linestyle="", label="measured", **MEASURED)
    for size, rate in zip(sizes[1:], rates[1:], strict=True):
        ax.annotate(
            f"{rate / rates[0]:.1f}×", (size, rate), (0, -18), textcoords="offset points", ha="center"
        )
    ax.set_ylim(0, 1.15 * max(rates))
    ax.legend(loc="upper left")
    return fig


def draw_latency_at_own_load(summary: Summary) -> Figure:
    """P50 and P99 where every server carries the same share of its own capacity."""
    title = f"Each at {summary['plan']['load']:.0%} of its own capacity: more traffic, similar waits"
    fig, ax = _latencies(title, summary["curve"], "own")
    ax.set_ylim(bottom=0)
    return fig


def draw_latency_at_common_load(summary: Summary) -> Figure:
    """P50 and P99 where every server gets the same traffic."""
    title = f"All under the same {summary['plan']['common_rate']:.1f} requests/s: batching empties the queue"
    fig, ax = _latencies(title, summary["curve"], "common")
    ax.set_yscale("log")
    for axis_format in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        axis_format(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    return fig


def _latencies(title: str, curve: list[Summary], load: str) -> tuple[Figure, Axes]:
    sizes = np.array([p["max_batch_size"] for p in curve], float)
    fig, ax = _over_sizes(title, "latency (s)", [p["max_batch_size"] for p in curve])
    for quantile, colour in (("p50", BLUE), ("p99", ORANGE)):
        name = quantile.upper()
        measured = [p[load]["measured"][quantile] for p in curve]
        simulated = [p[load]["simulated"][quantile] for p in curve]
        theory = [p[load]["theory"].get(quantile, np.nan) for p in curve]
        ax.plot(sizes * 0.97, measured, "s", color=colour, label=f"{name} measured")
        ax.plot(sizes * 1.03, simulated, "o", color=colour, mfc="white", label=f"{name} simulated")
        ax.plot(sizes, theory, "--", color=colour, marker="", lw=1.3, label=f"{name} theory (long run)")
    ax.legend(ncols=2, fontsize=9)
    return fig, ax


def _over_sizes(title: str, ylabel: str, sizes: list[int]) -> tuple[Figure, Axes]:
    return figure(title, "max_batch_size", ylabel, xscale="log", xticks=sizes, size=SIZE)
