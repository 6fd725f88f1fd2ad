"""The page of a comparison of engines: one file with its tables and figures, to be read anywhere.

A postcard, not a parcel: nothing on it is fetched from elsewhere, so it looks the same in ten years.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from servinglib.bench.engine_comparison_report import Sheet, baseline, document, sheets, shown_range
from servinglib.bench.engine_figures import Comparison, interval
from servinglib.errors import InvalidSetting
from servinglib.plots import figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as a data URL, and what it shows in words."""

    url: str
    text: str


def check_place(output: Path) -> None:
    """Refuse, before minutes of measuring, a place where the result can't be kept."""
    if output.suffix != ".json":
        raise InvalidSetting(f"--output {output} must end in .json; the page is written beside it as .html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"--output {output} can't be written: {error.strerror}; name another") from error


def write(result: Comparison, output: Path) -> Path:
    """Write the figures to `output` and the page beside it; returns the page's path."""
    output.write_text(json.dumps(document(result), indent=1) + "\n", encoding="utf-8")
    page = output.with_suffix(".html")
    page.write_text(render(result), encoding="utf-8")
    return page


def render(result: Comparison) -> str:
    """The page's HTML."""
    text = files("servinglib.bench").joinpath("engine_comparison.html").read_text("utf-8")
    speeds, *others = sheets(result)
    template = jinja2.Environment(autoescape=True).from_string(text)
    return template.render(
        title=f"{', '.join(result.engines)} on {result.model}",
        lead=_lead(result, speeds),
        facts=list(_facts(result)),
        speeds=speeds,
        pictures=[_picture(draw, words, result) for draw, words in DRAWINGS.items()],
        sheets=others,
        birth=_flat(result.birth),
    )


def _lead(result: Comparison, speeds: Sheet) -> str:
    rounds = f"{result.plan.runs} round" + "s" * (result.plan.runs > 1)
    return (
        f"The same prompts and lengths for {len(result.engines)} engines on one machine, in turns, each in a process "
        f"of its own: {rounds}. {speeds.notes[0]}"
    )


def _facts(result: Comparison) -> Iterator[tuple[str, str]]:
    """The headline ratios, at the largest batch."""
    other, size = baseline(result), max(result.plan.batch_sizes)
    for name in result.engines:
        if name != other:
            times = result.ratio("tokens_per_s", name, other, size)
            told = shown_range(times).partition(" ")[2]
            yield f"{times.value:.2f}×", f"tokens/s of {name} over {other}, {size} at once {told}"


def draw_throughput(result: Comparison) -> Figure:
    """Output tokens/s over the batch size."""
    return _draw(result, "tokens_per_s", 1.0, "Throughput by batch size", "output tokens/s")


def draw_first_token(result: Comparison) -> Figure:
    """TTFT over the batch size."""
    return _draw(result, "ttft", 1e3, "Time to the first token by batch size", "TTFT, median request (ms)")


DRAWINGS: dict[Callable[[Comparison], Figure], str] = {
    draw_throughput: "Output tokens per second over the number of requests at once, with 95% intervals",
    draw_first_token: "Milliseconds to the first token over the number of requests at once, with 95% intervals",
}


def _draw(result: Comparison, quantity: str, scale: float, title: str, unit: str) -> Figure:
    sizes = sorted(result.plan.batch_sizes)
    fig, ax = figure(
        title, "requests at once", unit, xscale="log", yscale="log", xticks=sizes, size=(7.2, 4.0)
    )
    ax.autoscale(False)  # equal figures would leave it without any height
    tops, bottoms = [], []
    with style():
        for i, (name, engine) in enumerate(result.engines.items()):
            found = [interval(engine.values(quantity, size)) for size in sizes]
            means = np.array([each.value for each in found]) * scale
            half = (
                np.array([each.high - each.value if np.isfinite(each.high) else 0 for each in found]) * scale
            )
            # Beside each other, so that bars of equal engines can be told apart; on a logarithmic axis one
            # that reaches zero goes to the bottom of the picture.
            places, below = np.array(sizes) * 1.04**i, np.minimum(half, 0.99 * means)
            ax.errorbar(places, means, [below, half], label=name, capsize=3)
            tops.append(means.max())
            bottoms.append(means.min())
        ax.legend()
    ax.set(xlim=(sizes[0] / 1.5, sizes[-1] * 1.5), ylim=(min(bottoms) / 2, max(tops) * 2))
    return fig


def _picture(draw: Callable[[Comparison], Figure], text: str, result: Comparison) -> Picture:
    from matplotlib import pyplot

    drawn, paper = draw(result), io.BytesIO()
    drawn.savefig(paper, format="png", dpi=150, metadata={"Software": None})
    pyplot.close(drawn)
    return Picture("data:image/png;base64," + base64.b64encode(paper.getvalue()).decode(), text)


def _flat(birth: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for name, value in birth.items():
        inner = value.items() if isinstance(value, dict) else [(name, value)]
        pairs += [(str(key), str(each)) for key, each in inner if each is not None]
    return pairs
