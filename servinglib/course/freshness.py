"""Is a stored execution still true? Hashes of what a notebook's outputs depend on.

A loaf is as fresh as its ingredients. The outputs of a lesson are made of its code cells and of the
library modules that they import, and of nothing else here; so the builder stores a hash of each,
and a difference means "bake again". Text edits change neither, and comments and docstrings in the
library don't count: they can't change an output. Modules are found by following import statements
from the lesson's cells, so an edit to the HTTP server doesn't spoil a lesson on queues.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from servinglib.course.lesson import Cell

PACKAGES = ("servinglib", "simulations")


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
    start = {*_imports(code, ""), f"servinglib.course.exercises.lesson{lesson_number}"}
    modules = _reachable(start, library)
    return short_hash("".join(f"{name}\n{_meaning(modules[name])}\n" for name in sorted(modules)))


def _reachable(start: set[str], library: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        path = _file(name, library)
        if name in found or path is None:
            continue
        found[name] = path
        is_package = path.name == "__init__.py"
        waiting += _imports(path.read_text(encoding="utf-8"), name if is_package else name.rpartition(".")[0])
        waiting.append(name.rpartition(".")[0])  # importing a.b runs a/__init__.py too
    return found


def _file(module: str, library: Path) -> Path | None:
    if module.partition(".")[0] not in PACKAGES:
        return None
    base = library.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imports(code: str, package: str) -> Iterator[str]:
    """Every module that the code may import, also inside functions; names of objects do no harm."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _without_magics(source: str) -> str:
    """Cell code as plain Python: IPython's `%magic` and `!shell` lines are blanked."""
    return re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE)


def _meaning(path: Path) -> str:
    """The module's text without comments, docstrings and blank lines, alike on every Python version."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for first, last in _docstrings(ast.parse(text)):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """First and last line of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if first is not None and is_text and isinstance(first.value.value, str):  # type: ignore[attr-defined]
                yield first.lineno, first.end_lineno or first.lineno
