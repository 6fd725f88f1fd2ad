"""`servinglib bench architectures`: five ways to serve the same requests, by what they give and what they cost.

A rowing boat, a ferry, two ferries, a cable car and somebody else's airline cross the same lake. Each is
opened by itself, loaded until it can't do more, then given the same arrivals as the others, and closed
before the next one comes: two engines that share cores would measure each other. Beside speed and latency
stands what there is to read and to maintain: lines of our code, and lines of the package it calls.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from servinglib.bench.load import run_open_loop, saturate
from servinglib.errors import InvalidSetting, UnknownName
from servinglib.experiments.architectures import ARCHITECTURES
from servinglib.experiments.batching_curve import Shape, answered, completed, make_requests, poisson_arrivals
from servinglib.experiments.columns import Latencies
from servinglib.metrics import percentiles, ttft
from servinglib.source_code import bare_code, count_lines

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    together : int
        Most requests in a batch, or in a step; with two replicas, of each.
    rounds : int
        Times that every architecture is opened, in another order each time.
    batches : int
        Batches' worth of requests in the measurement of throughput.
    common : float
        The offered load, as a multiple of what one at a time can do.
    seconds, min_requests : float, int
        The load runs for so long, and until so many requests were sent.
    """

    together: int = 16
    rounds: int = 3
    batches: int = 10
    common: float = 1.25
    seconds: float = 7.0
    min_requests: int = 60


QUICK = Plan(rounds=1, batches=4, seconds=2.0, min_requests=20)


INSTALL = {"vllm": "make vllm"}


@dataclass(slots=True)
class Row:
    """What one architecture did, a figure per round.

    Attributes
    ----------
    requests_per_s : list of float
        With always enough to do.
    p50, p99, ttft_p50 : list of float
        Seconds from the intended arrival under the common load: the whole answer, and the first token.
    lines : int
        Code of ours, comments and docstrings not counted.
    package, package_lines
        What computes, and the code in those of its modules that this process has loaded; 0 for torch,
        whose work is not done in Python.
    missing : str or None
        Why it was not measured.
    """

    requests_per_s: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    ttft_p50: list[float] = field(default_factory=list)
    lines: int = 0
    package: str = ""
    package_lines: int = 0
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of a run; `rates` are the requests/s of the common load, by round."""

    model: str
    plan: Plan
    shape: Shape
    rates: list[float]
    rows: dict[str, Row]

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return asdict(self)


def compare(
    model: str,
    names: Sequence[str] = tuple(ARCHITECTURES),
    plan: Plan | None = None,
    device: str = "auto",
    progress: Progress = lambda step, share: None,
) -> Comparison:
    """Measure some architectures on one model; "one at a time" has to be the first, it sets the load."""
    from servinglib.engines.transformers_engine import choose_device

    plan, device, shape = plan or Plan(), choose_device(device), Shape()
    rows = {name: _empty_row(name) for name in names}
    if next(iter(names), None) != "one at a time":
        raise InvalidSetting(
            f"names={list(names)} must begin with 'one at a time', which sets the common load"
        )
    present = [name for name in names if rows[name].missing is None]
    rates: list[float] = []
    for turn in range(plan.rounds):
        order = present[:1] + _rotated(present[1:], turn)
        for i, name in enumerate(order):
            progress(f"round {turn + 1}: {name}", (turn + i / len(order)) / plan.rounds)
            asyncio.run(_measure(name, rows[name], model, device, plan, shape, rates, turn))
    for name in present:
        rows[name].package_lines = _loaded_lines(rows[name].package)
    return Comparison(model, plan, shape, rates, rows)


def _rotated(names: list[str], turn: int) -> list[str]:
    start = turn % max(len(names), 1)
    return names[start:] + names[:start]


def _empty_row(name: str) -> Row:
    if name not in ARCHITECTURES:
        raise UnknownName("architecture", name, ARCHITECTURES)
    way = ARCHITECTURES[name]
    missing = f"not installed here; {INSTALL[name]} does it" if find_spec(way.package) is None else None
    return Row(lines=count_lines(set(way.modules)), package=way.package, missing=missing)


async def _measure(
    name: str, row: Row, model: str, device: str, plan: Plan, shape: Shape, rates: list[float], turn: int
) -> None:
    way = ARCHITECTURES[name]
    together = way.together(plan.together)
    async with way.open(model, device, plan.together) as predict:
        requests = make_requests(max(plan.batches * together, 24) + 9 * together, shape, seed=2 * turn)
        run = await saturate(lambda i: predict(requests[i]), concurrency=2 * together, count=len(requests))
        answered([o.error or o.result for o in run.outcomes])
        row.requests_per_s.append(run.requests_per_s)
        if len(rates) == turn:
            rates.append(plan.common * run.requests_per_s)
        arrivals = poisson_arrivals(
            rates[turn], max(plan.min_requests, round(rates[turn] * plan.seconds)), turn
        )
        loaded = make_requests(len(arrivals), shape, seed=2 * turn + 1)
        timelines = completed(await run_open_loop(lambda i: predict(loaded[i]), arrivals))
    latencies = Latencies.of(timelines)
    row.p50.append(latencies.p50)
    row.p99.append(latencies.p99)
    row.ttft_p50.append(percentiles([t for each in timelines if (t := ttft(each)) is not None])[0])


def _loaded_lines(package: str) -> int:
    if package == "torch":
        return 0
    own = (module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package)
    files = {file for module in own if (file := getattr(module, "__file__", None)) and file.endswith(".py")}
    return sum(len(bare_code(Path(file).read_text(encoding="utf-8")).splitlines()) for file in files)


def table(result: Comparison) -> Any:
    """For people: a row for each architecture, medians over the rounds."""
    from rich import box
    from rich.table import Table

    shape, plan = result.shape, result.plan
    title = (
        f"{result.model}: {shape.prompt_tokens} + {shape.output_tokens} tokens a request; latencies in ms, at "
        f"{median(result.rates):.1f} requests/s; median of {plan.rounds}"
    )
    view = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    view.add_column("", no_wrap=True)
    for head in ("requests/s", "times", "TTFT", "P50", "P99", "our lines"):
        view.add_column(head, justify="right", no_wrap=True)
    view.add_column("stands on (lines)")
    first = next(iter(result.rows.values()))
    for name, row in result.rows.items():
        view.add_row(name, *_figures(row, first), f"{row.lines:,}", _ground(row))
    return view


def _figures(row: Row, first: Row) -> list[str]:
    if row.missing is not None:
        return [""] * 5
    times = median(r / one for r, one in zip(row.requests_per_s, first.requests_per_s, strict=True))
    latencies = (f"{1e3 * median(each):,.0f}" for each in (row.ttft_p50, row.p50, row.p99))
    return [f"{median(row.requests_per_s):.1f}", f"{times:.1f}", *latencies]


def _ground(row: Row) -> str:
    if row.missing is not None:
        return f"{row.package}: {row.missing}"
    return row.package + (f" ({row.package_lines:,})" if row.package_lines else "")
