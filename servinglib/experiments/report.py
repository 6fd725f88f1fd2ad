"""The demo's summary for people: two tables in the terminal, and one self-contained page."""

from __future__ import annotations

import base64
import json
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jinja2
from rich.console import Console
from rich.table import Table

from servinglib.experiments.figures import draw_all

Language = Literal["zh", "en"]
Summary = dict[str, Any]
FAR = 0.15
"""A simulated latency that misses the measured one by more than this share is marked."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table; `kind` is "", "note" or "far"."""

    text: str
    kind: str = ""
    span: int = 0


@dataclass(frozen=True, slots=True)
class Grid:
    """A table before it is drawn, for the terminal and the page alike."""

    heads: list[str]
    rows: list[list[Cell]]


def write_report(summary: Summary, folder: Path, language: Language) -> Path:
    """Write summary.json, the pictures and index.html into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")
    images = {name: _data_url(path) for name, path in draw_all(summary, folder).items()}
    template = jinja2.Environment(autoescape=True).from_string(_resource("report.html"))
    page = folder / "index.html"
    page.write_text(template.render(**_page(summary, images, language)), "utf-8")
    return page


def print_tables(summary: Summary, console: Console, language: Language) -> None:
    """Both tables, for a terminal of 80 columns or more."""
    text = _texts(language)
    for title, grid in (
        (text["curve_title"], curve_grid(summary, language)),
        (text["architectures_title"], architectures_grid(summary, language)),
    ):
        notes = [row for row in grid.rows if row[-1].span]
        console.print(_table(title, grid))
        for name, reason in notes:
            console.print(f" {name.text}: {reason.text}", soft_wrap=True, markup=False)
        console.print()
    if note := continuous_note(summary, language):
        console.print(note, soft_wrap=True, markup=False, end="\n\n")


def _table(title: str, grid: Grid) -> Table:
    """A grid without its notes."""
    table = Table(
        title=title, title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for i, head in enumerate(grid.heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=not i, min_width=0 if head else 3)
    for row in grid.rows:
        if not row[-1].span:
            table.add_row(*(f"[red]{c.text}[/red]" if c.kind == "far" else c.text for c in row))
    return table


def curve_grid(summary: Summary, language: Language) -> Grid:
    """A row for each size and load and percentile."""
    text, rows = _texts(language), []
    for point in summary["curve"]:
        saturation = point["saturation"]
        size = str(point["max_batch_size"])
        rows.append(
            [Cell(size), Cell(text["saturated"]), Cell(f"{saturation['requests_per_s']:.1f}"), Cell(size)]
        )
        rows[-1] += [Cell("")] * (len(text["heads_curve"]) - 4)
        for load in ("own", "common"):
            rows += _load_rows(point[load], text[load].format(**summary["plan"]), text["unstable"])
    return Grid(text["heads_curve"], rows)


def _load_rows(columns: Summary, load: str, unstable: str) -> list[list[Cell]]:
    rows = []
    for i, quantile in enumerate(("p50", "p99")):
        theory = columns["theory"].get(quantile)
        shared = (
            [load, f"{columns['rate']:.1f}", f"{columns['measured']['mean_batch']:.1f}"]
            if not i
            else [""] * 3
        )
        rows.append([
            Cell(""),
            *(Cell(t) for t in shared),
            Cell(quantile.upper()),
            *_compared(columns, quantile),
            Cell(_ms(theory) if theory is not None else unstable),
            Cell(f"{columns['drift']:+.0%}" if not i else ""),
            Cell(f"{columns['error_at_run_speed'][quantile]:+.0%}"),
        ])  # fmt: skip
    return rows


def architectures_grid(summary: Summary, language: Language) -> Grid:
    """A row for each architecture; one that can't be measured yet says so."""
    text, rows = _texts(language), []
    for row in summary["architectures"]:
        if row.get("missing"):
            rows.append([Cell(text[row["name"]]), Cell(_reason(row, text), "note", span=11)])
            continue
        rows.append([
            Cell(text[row["name"]]),
            Cell(str(row["max_batch_size"])),
            Cell(f"{row['requests_per_s']:.1f}"),
            Cell(f"{row['tokens_per_s']:.0f}"),
            *_compared(row, "p50"),
            *_compared(row, "p99"),
            Cell(f"{row['drift']:+.0%}"),
            Cell(f"{row['error_at_run_speed']['p99']:+.0%}"),
        ])  # fmt: skip
    return Grid(text["heads_architectures"], rows)


def _reason(row: Summary, text: Summary) -> str:
    if "refusal" in row:
        return text["refused"].format(**row)
    return text["missing"].format(reason=text["reasons"][row["name"]])


def continuous_note(summary: Summary, language: Language) -> str:
    """What the row of continuous batching can and can't be compared with; empty where it was not measured."""
    law = next((row["step_time"] for row in summary["architectures"] if "step_time" in row), None)
    if law is None:
        return ""
    terms = zip(("", "n", "K", "P"), law.values(), strict=True)
    formula = " + ".join(f"{seconds * 1e3:.3g}{symbol}" for symbol, seconds in terms if seconds)
    return _texts(language)["continuous_note"].format(
        law=formula, engine=summary["engine"], output=summary["shape"]["output_tokens"]
    )


def _compared(columns: Summary, quantile: str) -> list[Cell]:
    error = columns["error"][quantile]
    return [
        Cell(_ms(columns["measured"][quantile])),
        Cell(_ms(columns["simulated"][quantile])),
        Cell(f"{error:+.0%}", "far" if abs(error) > FAR else ""),
    ]


def _page(summary: Summary, images: dict[str, str], language: Language) -> dict[str, Any]:
    text, facts = _texts(language), _facts(summary)
    return {
        "t": text,
        "headline": text["headline"].format(**facts),
        "lead": text["lead"].format(**facts),
        "facts": [
            ("{gain:.1f}×".format(**facts), text["fact_gain"].format(**facts)),
            ("{capacity:.0f}".format(**facts), text["fact_capacity"].format(**facts)),
            ("{alpha:.2f}b + {tau0:.0f} ms".format(**facts), text["fact_law"]),
            ("{error_p50:.0%} / {error_p99:.0%}".format(**facts), text["fact_error"].format(**facts)),
        ],
        "sections": _sections(summary, images, language, facts),
        "birth": _flat(summary["birth"]),
    }


def _facts(summary: Summary) -> dict[str, Any]:
    """What the page's sentences are filled with; the headline is of batch size 16, or the largest below."""
    plan, law = summary["plan"], summary["batch_time"]
    best = max((p for p in summary["curve"] if p["max_batch_size"] <= 16), key=lambda p: p["max_batch_size"])
    capacity = best["saturation"]["requests_per_s"]
    errors = {q: median(abs(p["own"]["error"][q]) for p in summary["curve"]) for q in ("p50", "p99")}
    return {
        "size": best["max_batch_size"], "capacity": capacity,
        "gain": capacity / summary["curve"][0]["saturation"]["requests_per_s"],
        "load": plan["load"], "common": plan["common"], "rate": plan["common_rate"],
        "model": summary["model"], "engine": summary["engine"], "device": summary["birth"]["machine"]["device"],
        "prompt": summary["shape"]["prompt_tokens"], "output": summary["shape"]["output_tokens"],
        "alpha": law["alpha"] * 1e3, "tau0": law["tau0"] * 1e3, "limit": 1 / law["alpha"],
        "error_p50": errors["p50"], "error_p99": errors["p99"],
    }  # fmt: skip


def _sections(
    summary: Summary, images: dict[str, str], language: Language, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    text, facts = _texts(language), {**facts, "note": continuous_note(summary, language)}
    tables = {"curve": curve_grid(summary, language), "architectures": architectures_grid(summary, language)}
    pictures = {
        "batch_time": "batch_time",
        "throughput": "throughput",
        "own": "latency_own",
        "common": "latency_common",
    }
    return [
        {
            "title": text[f"{name}_title"].format(**facts),
            "text": text[f"{name}_text"].format(**facts),
            "image": images.get(pictures.get(name, "")),
            "table": tables.get(name),
            "wide": name == "curve",
        }
        for name in (*pictures, *tables)
    ]


def _flat(values: Summary, prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        pairs += _flat(value, f"{name}.") if isinstance(value, dict) else [(prefix + name, str(value))]
    return pairs


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.1f}"


@cache
def _texts(language: Language) -> Summary:
    return tomllib.loads(_resource("report_texts.toml"))[language]


def _resource(name: str) -> str:
    return (files("servinglib.experiments") / name).read_text("utf-8")


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
