"""What the commands have in common: how far they are, and where the figures stay.

Every oven has a clock on the door and every kitchen a book in which the bakes are written down, with
date and oven, or nobody could repeat them. `progress_bar` is the clock and `keep` the book.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def progress_bar(first_step: str, console: Console | None = None) -> Generator[Callable[[str, float], None]]:
    """A bar that shows what runs now and the share of all that is done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(first_step, total=1.0)
        yield lambda step, share: bar.update(task, description=step, completed=share)
        bar.update(task, description="done", completed=1.0)


def keep(figures: dict[str, Any], output: Path | None) -> None:
    """Write figures and their birth certificate into a JSON file, if one was asked for."""
    import json

    from servinglib.bench.provenance import birth_certificate

    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({**birth_certificate(), **figures}, indent=2) + "\n")
