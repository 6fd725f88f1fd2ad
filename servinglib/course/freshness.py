"""Is a stored execution still true? Hashes of what a notebook's outputs depend on.

A loaf is as fresh as its ingredients. The outputs of a lesson are made of its code cells and of the
library modules that they import, and of nothing else here; so the builder stores a hash of each,
and a difference means "bake again". Text edits change neither, and comments and docstrings in the
library don't count: they can't change an output. Modules are found by following import statements
from the lesson's cells, so an edit to the HTTP server doesn't spoil a lesson on queues.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from servinglib.course.lesson import Cell
from servinglib.source_code import bare_code, imports, reachable


def short_hash(text: str, length: int = 16) -> str:
    """The first hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def code_hash(cells: Iterable[Cell]) -> str:
    """Hash of the code that an edition runs, tags included."""
    return short_hash(repr([(cell.key, cell.source, cell.tags) for cell in cells if cell.kind == "code"]))


def library_hash(cells: Iterable[Cell], lesson_number: str, library: Path) -> str:
    """Hash of every module under `library` that the code cells reach, through any chain of imports.

    The exercises of a lesson are looked up by number at run time, so they are added by hand.
    """
    code = "\n".join(_without_magics(cell.source) for cell in cells if cell.kind == "code")
    start = {*imports(code, ""), f"servinglib.course.exercises.lesson{lesson_number}"}
    modules = reachable(start, library)
    return short_hash(
        "".join(
            f"{name}\n{bare_code(modules[name].read_text(encoding='utf-8'))}\n" for name in sorted(modules)
        )
    )


def _without_magics(source: str) -> str:
    """Cell code as plain Python: IPython's `%magic` and `!shell` lines are blanked."""
    return re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE)
