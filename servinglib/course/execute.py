"""Run a notebook once and keep only what any machine may show.

Outputs go into the repository, so they are washed first: no paths of the machine that ran them, no
time stamps, no widget ids that change from run to run. What can't be washed off is refused.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from servinglib.course.lesson import LessonError

CELL_TIMEOUT = 120  # seconds
MAX_NOTEBOOK_BYTES = 1_500_000
_LIVE_ONLY = "application/vnd.jupyter.widget-view+json"  # needs a kernel and a random model id
_MACHINE_PATH = re.compile(r"(?<![\w.~/-])(?:/(?:home|Users|root|tmp|var|opt|mnt)/|[A-Z]:\\)[^\s'\"<>]*")


def run(notebook: Any, folder: Path, root: Path, name: str) -> None:
    """Execute `notebook` in place, in `folder`, at most `CELL_TIMEOUT` seconds a cell, and wash its outputs.

    Raises
    ------
    LessonError
        When a cell fails, runs too long, or shows a path of this machine.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    folder.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("JPY_SESSION_NAME", "MPLBACKEND")}
    try:
        client.execute(env=environment)
    except CellTimeoutError as late:
        raise LessonError(f"{name}: a cell ran longer than {CELL_TIMEOUT} s; make it do less") from late
    except CellExecutionError as failure:
        raise LessonError(f"{name}: a cell failed\n{failure}") from failure
    wash(notebook, root)


def wash(notebook: Any, root: Path) -> None:
    """Remove from the outputs, in place, what belongs to one machine or one run."""
    notebook.metadata.pop("widgets", None)
    replacements = _replacements(root)

    def clean(text: str) -> str:
        for pattern, replacement in replacements:
            text = pattern.sub(replacement, text)
        return text

    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(_LIVE_ONLY, None)
            _rewrite(output, clean)


def machine_paths(cell: Any) -> list[str]:
    """Absolute paths that a cell's outputs still show."""
    return [path for output in cell.get("outputs", ()) for t in _texts(output) for path in _found(t)]


def _found(text: str) -> list[str]:
    return [match.group() for match in _MACHINE_PATH.finditer(text)]


def _replacements(root: Path) -> list[tuple[re.Pattern[str], str]]:
    temporary = {tempfile.gettempdir(), os.path.realpath(tempfile.gettempdir()), "/tmp"}
    cells = "|".join(re.escape(folder) for folder in sorted(temporary))
    return [
        (re.compile(rf"(?:{cells})/ipykernel_\d+/\d+\.py"), "<cell>"),
        (re.compile(re.escape(str(root.resolve()) + os.sep)), ""),
        (re.compile(re.escape(sys.prefix + os.sep)), "<python>/"),
        (re.compile(re.escape(sys.base_prefix + os.sep) + "(?=lib/)"), "<python>/"),
        (re.compile(re.escape(str(Path.home()) + os.sep)), "~/"),
    ]


def _texts(output: Any) -> Iterator[str]:
    """Every piece of text that an output shows."""
    seen: list[str] = []
    _rewrite(output, lambda text: seen.append(text) or text)
    yield from seen


def _rewrite(output: Any, change: Callable[[str], str]) -> None:
    for field in ("text", "ename", "evalue"):
        if field in output:
            output[field] = change(output[field])
    if "traceback" in output:
        output["traceback"] = [change(line) for line in output["traceback"]]
    for kind, value in output.get("data", {}).items():
        if isinstance(value, str) and (kind.startswith("text/") or kind == "image/svg+xml"):
            output["data"][kind] = change(value)
