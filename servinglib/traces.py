"""Workloads in files: recorded traces come in, made ones go out.

A recorded day of traffic is the one guest list that nobody made up, with its bursts and its quiet
hours. What is read here is a `Workload` like any other, for theory, simulation and engine alike.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from servinglib.errors import InvalidSetting
from servinglib.workload import RequestSpec, Workload

OWN_COLUMNS = ("arrival", "prompt_tokens", "output_tokens")
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def load_trace(path: str | Path) -> Workload:
    """Read a workload from a CSV file; the first request arrives at 0.

    Recognised by its header: this library's own columns (`arrival` in seconds, `prompt_tokens`,
    `output_tokens`) or those of the Azure LLM inference trace of 2023 (`TIMESTAMP`,
    `ContextTokens`, `GeneratedTokens`; timestamps are kept to the microsecond).

    Raises
    ------
    InvalidSetting
        Naming the file, the line and the value that can't be read.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        header = tuple(rows.fieldnames or ())
        columns = next((c for c in (OWN_COLUMNS, AZURE_COLUMNS) if set(c) <= set(header)), None)
        if columns is None:
            raise InvalidSetting(
                f"{path}: the columns {', '.join(header) or '(none)'} are not a known trace; "
                f"use {','.join(OWN_COLUMNS)} or {','.join(AZURE_COLUMNS)}"
            )
        specs: list[RequestSpec] = []
        for row in rows:
            try:
                specs.append(_parse(row, columns, after=specs[-1].arrival if specs else -math.inf))
            except ValueError as error:
                raise InvalidSetting(f"{path}, line {rows.line_num}: {error}") from error
    if not specs:
        raise InvalidSetting(f"{path} holds a header and no requests")
    start = specs[0].arrival
    return tuple(RequestSpec(s.arrival - start, s.prompt_tokens, s.output_tokens) for s in specs)


def save_trace(path: str | Path, workload: Sequence[RequestSpec]) -> None:
    """Write a workload as CSV that `load_trace` reads back exactly (but for its start, which becomes 0)."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(OWN_COLUMNS)
        writer.writerows((repr(r.arrival), r.prompt_tokens, r.output_tokens) for r in workload)


def _parse(row: dict[str, str | None], columns: tuple[str, str, str], after: float) -> RequestSpec:
    when, *lengths = (row[c] for c in columns)
    if when is None or None in lengths:
        raise ValueError(f"a row needs the fields {', '.join(columns)}")
    arrival = float(when) if columns is OWN_COLUMNS else _azure_seconds(when)
    prompt_tokens, output_tokens = (int(n or "") for n in lengths)
    if not math.isfinite(arrival):
        raise ValueError(f"the arrival {when} is not a time")
    if arrival < after:
        raise ValueError(f"the arrival {when} is earlier than the line before; sort the file by time")
    if min(prompt_tokens, output_tokens) < 1:
        raise ValueError(f"{prompt_tokens} prompt and {output_tokens} output tokens; each must be at least 1")
    return RequestSpec(arrival, prompt_tokens, output_tokens)


def _azure_seconds(timestamp: str) -> float:
    since = datetime.fromisoformat(timestamp).replace(tzinfo=None) - datetime(2023, 1, 1)
    return since.total_seconds()
