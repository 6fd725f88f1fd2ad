"""How much code something stands on: which modules a module reaches, and what in them is code.

Comments and docstrings don't count, so explaining a thing better makes it neither longer nor newer. The
course asks whether a lesson's outputs are older than what they show; a comparison of architectures asks
what each costs to read.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import servinglib

PACKAGES = ("servinglib", "simulations")
LIBRARY = Path(servinglib.__file__).parent.parent


def reachable(start: set[str], library: Path = LIBRARY) -> dict[str, Path]:
    """Every module of ours that some modules reach, through any chain of imports, by name."""
    found: dict[str, Path] = {}
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        path = _file(name, library)
        if name in found or path is None:
            continue
        found[name] = path
        is_package = path.name == "__init__.py"
        waiting += imports(path.read_text(encoding="utf-8"), name if is_package else name.rpartition(".")[0])
        waiting.append(name.rpartition(".")[0])  # importing a.b runs a/__init__.py too
    return found


def imports(code: str, package: str) -> Iterator[str]:
    """Every module that the code may import, also inside functions; names of objects do no harm."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def bare_code(text: str) -> str:
    """A module's text without comments, docstrings and blank lines, alike on every Python version."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for first, last in _docstrings(ast.parse(text)):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def count_lines(modules: set[str], library: Path = LIBRARY) -> int:
    """Lines of code of these modules of ours and of all that they reach."""
    return sum(
        len(bare_code(path.read_text(encoding="utf-8")).splitlines())
        for path in reachable(modules, library).values()
    )


def _file(module: str, library: Path) -> Path | None:
    if module.partition(".")[0] not in PACKAGES:
        return None
    base = library.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """First and last line of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if first is not None and is_text and isinstance(first.value.value, str):  # type: ignore[attr-defined]
                yield first.lineno, first.end_lineno or first.lineno
