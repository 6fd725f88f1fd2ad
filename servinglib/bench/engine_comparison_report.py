"""A comparison of engines for people and programs: tables, sentences, and the JSON that is kept.

The same sheets hang in the terminal and on the page (`engine_comparison_page.py`), so nobody can read two
different results out of one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from servinglib.bench.engine_expectations import Finding, findings
from servinglib.bench.engine_figures import Comparison, EngineFigures, interval
from servinglib.statistics import Interval

BASELINE = "transformers"
QUANTITIES = ("tokens_per_s", "requests_per_s", "ttft", "latency")
NOT_TOLD = "not told"
LABELS = ("", "at once", "engine")  # heads of columns that hold no figures


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table before it is drawn; `notes` say how to read it, and in a wordy one the cells are sentences."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    notes: list[str]
    wordy: bool = False


def baseline(result: Comparison) -> str:
    """Whom the others are compared with: transformers, or who was named first."""
    return BASELINE if BASELINE in result.engines else next(iter(result.engines))


def sheets(result: Comparison) -> list[Sheet]:
    """All tables of a comparison, in the order of reading."""
    found = findings(result)
    return [_speeds(result), _resources(result), *([_expected(result, found)] if found else [])]


def views(result: Comparison) -> Iterator[RenderableType]:
    """The sheets for a terminal: figures as tables, sentences as paragraphs, each with its notes below."""
    for sheet in sheets(result):
        body = _paragraphs(sheet) if sheet.wordy else [_table(sheet)]
        yield Group(*body, *(Text(note, style="dim") for note in sheet.notes), "")


def _table(sheet: Sheet) -> Table:
    view = Table(
        title=sheet.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for head in sheet.heads:
        is_label = head in LABELS
        view.add_column(head, justify="left" if is_label else "right", no_wrap=is_label)
    for row in sheet.rows:
        view.add_row(*map(Text, row))
    return view


def _paragraphs(sheet: Sheet) -> Iterator[RenderableType]:
    yield Text(sheet.title, style="italic")
    for what, *cells in sheet.rows:
        yield Text(f"\n{what}", style="bold")
        for head, cell in zip(sheet.heads[1:], cells, strict=True):
            for line in cell.splitlines():
                yield Padding(Text(f"{head}: {line}"), (0, 0, 0, 2))


def _speeds(result: Comparison) -> Sheet:
    plan, other = result.plan, baseline(result)
    rows = []
    for size in plan.batch_sizes:
        for name, figures in result.engines.items():
            parts = {q: interval(figures.values(q, size)) for q in QUANTITIES}
            times = "" if name == other else shown_range(result.ratio("tokens_per_s", name, other, size))
            speeds = [shown(parts["tokens_per_s"]), shown(parts["requests_per_s"])]
            rows.append(
                [str(size), name, *speeds, *(shown(parts[q], 1e3) for q in ("ttft", "latency")), times]
            )
    heads = ["at once", "engine", "tokens/s", "requests/s", "TTFT (ms)", "latency (ms)", "ratio"]
    title = (
        f"{result.model} in {result.dtype} on {result.device}: {plan.prompt_tokens} + {plan.output_tokens} tokens a "
        f"request, {plan.runs} rounds"
    )
    notes = [
        "TTFT and latency count from handing over the batch, and are those of the median request.",
        f"The ratio is that of tokens/s to those of {other}, taken within each round.",
        "± is half of the 95% interval of the mean over the rounds (Student's t), as a share of the mean; brackets hold "
        "the interval of the ratio.",
    ]
    return Sheet(title, heads, rows, notes if plan.runs > 1 else [*notes[:2], "One round has no interval."])


def _resources(result: Comparison) -> Sheet:
    plan = result.plan
    cells: dict[str, Callable[[EngineFigures], str]] = {
        "computed by": lambda e: e.package,
        "batching": lambda e: e.batching,
        "load (s)": lambda e: f"{e.load_seconds:.1f}",
        "peak memory (GiB)": lambda e: f"{e.peak_memory_gib:.2f}",
        "KV cache used": lambda e: _share(e.counters.kv_cache_usage_peak),
        "preemptions": lambda e: NOT_TOLD if (n := e.counters.num_preemptions) is None else str(n),
    }
    if any(e.counters.draft_tokens for e in result.engines.values()):
        cells["guesses that stayed"] = lambda e: _share(e.counters.draft_acceptance)
    if result.gpu.off is None:
        cells["GPU memory (GiB)"] = lambda e: _optional(e.gpu_memory_gib)
        cells["J/token"] = lambda e: _optional(_joules(e, max(plan.batch_sizes)))
    if plan.shared_prefix:
        cells["prefix hits"] = lambda e: _share(_median([p.hit_rate for p in e.prefixes]))
        cells["TTFT, new prefix (ms)"] = lambda e: shown(interval([p.alone for p in e.prefixes]), 1e3)
        cells["TTFT, known prefix (ms)"] = lambda e: shown(interval([p.sharing for p in e.prefixes]), 1e3)
    rows = [[what, *map(cell, result.engines.values())] for what, cell in cells.items()]
    title = "What each took" + (", and what a shared prefix saves" if plan.shared_prefix else "")
    return Sheet(title, ["", *result.engines], rows, _notes(result))


def _notes(result: Comparison) -> list[str]:
    notes = [
        "Peak memory: the most that each of an engine's processes had resident, added up; shared pages count for "
        "each process.",
        "KV cache used: the largest share since loading, of a cache whose size is each engine's own choice.",
    ]
    if result.plan.shared_prefix:
        length = result.plan.shared_prefix
        notes.append(
            f"Prefix: requests one after another, with {length} tokens before the prompt that are new each time, or "
            f"known from an earlier request; hits are the share of the latter's prompt tokens."
        )
    told = {name: e.options for name, e in result.engines.items() if e.options}
    notes += [
        f"{name} was told " + ", ".join(f"{k}={v}" for k, v in o.items()) + "." for name, o in told.items()
    ]
    return [*notes, f"GPU: {result.gpu}."]


def _expected(result: Comparison, found: Sequence[Finding]) -> Sheet:
    groups: dict[str, list[Finding]] = {}
    for each in found:
        what = each.expectation
        quantity = "TTFT, times sooner" if what.quantity == "ttft" else "tokens/s, times"
        groups.setdefault(f"{what.engine} over {what.than}: {quantity}", []).append(each)
    rows = []
    for what, group in groups.items():
        here = [f"{size} at once: {shown_range(ratio)}" for size, ratio in group[0].ratios.items()]
        claims = [f"{f.expectation.claim} ({f.expectation.source}); found: {f.verdict}" for f in group]
        reasons = dict.fromkeys(reason for f in group for reason in f.reasons)  # each once, in order
        rows.append([what, *map("\n".join, (here, claims, reasons))])
    notes = [
        f"Judged at {max(result.plan.batch_sizes)} at once: what was found here is below, above or as published, or "
        f"the question stays open. Reasons are those that this run's figures bear out."
    ]
    title = "What others have published, and what was found here"
    return Sheet(title, ["what", "found here", "published", "why"], rows, notes, wordy=True)


def document(result: Comparison) -> dict[str, Any]:
    """All figures with their birth certificate, intervals and findings, ready for JSON."""
    summary = [
        {"engine": name, "batch_size": size, **{q: _bounds(interval(e.values(q, size))) for q in QUANTITIES}}
        for size in result.plan.batch_sizes
        for name, e in result.engines.items()
    ]
    published = [
        {**asdict(f), "ratios": {size: _bounds(ratio) for size, ratio in f.ratios.items()}}
        for f in findings(result)
    ]
    figures = {key: value for key, value in asdict(result).items() if key != "birth"}
    return {**result.birth, **figures, "summary": summary, "expectations": published}


def _bounds(of: Interval) -> dict[str, float | None]:
    """An interval for JSON, which has no infinity."""
    edges = {"value": of.value, "low": of.low, "high": of.high}
    bounded = math.isfinite(of.high)
    return {key: edge if bounded or key == "value" else None for key, edge in edges.items()}


def shown(of: Interval, scale: float = 1.0) -> str:
    """A mean and half its interval as a share of it; the mean alone where nothing bounds it."""
    value = _rounded(of.value * scale)
    return f"{value} ±{(of.high - of.low) / 2 / of.value:.0%}" if math.isfinite(of.high) else value


def shown_range(of: Interval) -> str:
    """A ratio and the ends of its interval."""
    return f"{of.value:.3g} [{of.low:.3g}, {of.high:.3g}]" if math.isfinite(of.high) else f"{of.value:.3g}"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return NOT_TOLD if value is None else f"{100 * value:.2g}%" if value < 0.1 else f"{value:.1%}"


def _optional(value: float | None) -> str:
    return NOT_TOLD if value is None else f"{value:.3g}"


def _joules(engine: EngineFigures, size: int) -> float | None:
    return _median([turn.joules_per_token for turn in engine.turns[size]])


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
