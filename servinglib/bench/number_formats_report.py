"""The table of number formats for a terminal: speed and quality in one row, and ratios to bfloat16."""

from __future__ import annotations

from rich.table import Table

from servinglib.bench.number_formats import FormatFigures, FormatsReport

BASELINES = ("bfloat16", "float32")  # the first of them that was measured


def tables(report: FormatsReport) -> list[Table]:
    """One per model: a row for each format, for a terminal."""
    return [_table(model, figures, report.refused) for model, figures in report.models.items()]


def _table(model: str, figures: dict[str, FormatFigures], refused: dict[str, str]) -> Table:
    table = Table("format", "weights (MB)", "nats/token", "bits/byte", title=model, title_justify="left")
    batches = next((list(f.steps) for f in figures.values()), [])
    for batch in batches:
        table.add_column(f"step at {batch} (ms)")
    base = next((figures[name] for name in BASELINES if name in figures), None)
    for name, found in figures.items():
        quality = [_or_dash(found.nats_per_token), _or_dash(found.bits_per_byte)]
        table.add_row(
            name, f"{found.weight_bytes / 1e6:.1f}", *quality, *(_speed(found, base, b) for b in batches)
        )
    for name, why in refused.items():
        table.add_row(name, f"refused: {why}")
    return table


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _speed(found: FormatFigures, base: FormatFigures | None, batch: int) -> str:
    ratio = "" if base is None or base is found else f" ({found.gain_over(base, batch):.2f}x)"
    return f"{found.step_ms(batch):.2f}{ratio}"
