"""Build the notebooks from the lessons: `python -m servinglib.course.build [--check]`.

Each lesson in `notebooks/lessons/` becomes four notebooks, in `zh/`, `en/` and `solutions/{zh,en}/`.
A lesson is executed only when its code, or library code that it reaches, has changed since; building
twice changes no byte. `--check`, for CI, writes nothing and executes nothing: it fails when a
notebook is not what its lesson says, when its outputs are older than the code they show, when a
cell has not run or has failed, and when the two languages have come apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import servinglib
from servinglib.course import glossary, pairs
from servinglib.course.editions import Edition, adopt, compose, differences, kinds, outputs
from servinglib.course.execute import MAX_NOTEBOOK_BYTES, machine_paths, run
from servinglib.course.lesson import Lesson, LessonError, find, read
from servinglib.course.verdict import VERDICT

LIBRARY = Path(servinglib.__file__).parent.parent
COMPARED, MUST_RAISE = "nbval-check-output", "raises-exception"
AGAIN = "run `make notebooks`"


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where lessons are read, notebooks are written, and the library stands that they import.

    Attributes
    ----------
    root : Path
        The repository: it holds `notebooks/lessons` and `glossary.yml`.
    library : Path
        The folder of the packages `servinglib` and `simulations`.
    """

    root: Path
    library: Path = LIBRARY

    @property
    def notebooks(self) -> Path:
        """The folder that all notebooks lie under."""
        return self.root / "notebooks"

    def lessons(self, number: str | None = None) -> list[Lesson]:
        """The lessons, in order, or the one asked for."""
        return [read(path) for path in find(self.notebooks / "lessons", number)]

    def build(self, lesson: Lesson, *, execute: bool = True) -> list[Path]:
        """Write a lesson's notebooks, executing it if its outputs are stale; returns what changed."""
        changed = []
        for editions in kinds(lesson):
            first = editions[0]
            executed = compose(first)
            stored = self.load(first)
            if stored is not None:
                adopt(executed, stored)
            if execute and (stored is None or self.output_problems(first, executed)):
                executed = compose(first)
                run(executed, (self.notebooks / first.path).parent, self.root, str(first.path))
                executed.metadata.servinglib.update(first.hashes(self.library))
            for edition in editions:
                notebook = compose(edition)
                adopt(notebook, executed)
                changed += self._write(edition, notebook)
        return changed

    def problems(self, lesson: Lesson) -> list[str]:
        """What is wrong with a lesson and its stored notebooks; empty when all is well."""
        found = pairs.problems(lesson)
        for editions in kinds(lesson):
            stored = [self.load(edition) for edition in editions]
            for edition, notebook in zip(editions, stored, strict=True):
                if notebook is None:
                    found.append(f"{edition.path}: it was never built; {AGAIN}")
                else:
                    found += [
                        f"{edition.path}: {what}" for what in self._notebook_problems(edition, notebook)
                    ]
            if None not in stored and outputs(stored[0]) != outputs(stored[1]):
                found.append(f"{editions[1].path}: its outputs are not those of {editions[0].path}; {AGAIN}")
        return found

    def load(self, edition: Edition) -> Any | None:
        """The stored notebook, or None."""
        import nbformat

        path = self.notebooks / edition.path
        return nbformat.read(path, as_version=4) if path.is_file() else None

    def output_problems(self, edition: Edition, notebook: Any) -> list[str]:
        """Why a notebook's outputs can't be believed."""
        hashes, stored = edition.hashes(self.library), notebook.metadata.get("servinglib", {})
        found = [
            f"the {what} has changed since it was executed; {AGAIN}"
            for what, value in hashes.items()
            if stored.get(what) != value
        ]
        for cell in notebook.cells:
            if cell.cell_type == "code" and cell.source.strip():
                found += [f"cell {cell.id} {what}" for what in _cell_problems(cell, edition.solutions)]
        return found

    def strays(self, lessons: Iterable[Lesson]) -> list[str]:
        """Notebooks that no lesson makes."""
        made = {e.path for lesson in lessons for editions in kinds(lesson) for e in editions}
        folders = {path.parent for path in made} | {Path("zh"), Path("en")}
        there = {p.relative_to(self.notebooks) for f in folders for p in (self.notebooks / f).glob("*.ipynb")}
        return [f"{path}: no lesson makes it; delete it" for path in sorted(there - made)]

    def _notebook_problems(self, edition: Edition, notebook: Any) -> list[str]:
        found = [f"{what}; {AGAIN}" for what in differences(notebook, compose(edition))]
        found += self.output_problems(edition, notebook)
        size = (self.notebooks / edition.path).stat().st_size
        if size > MAX_NOTEBOOK_BYTES:
            found.append(
                f"it has {size:,} bytes, at most {MAX_NOTEBOOK_BYTES:,}; draw fewer or simpler figures"
            )
        return found

    def _write(self, edition: Edition, notebook: Any) -> list[Path]:
        import nbformat

        path = self.notebooks / edition.path
        text = nbformat.writes(notebook) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return [path]


def _cell_problems(cell: Any, solutions: bool) -> list[str]:
    """Why one executed cell is not fit to be shown."""
    found = [f"shows a path of one machine: {path}" for path in machine_paths(cell)]
    tags = cell.metadata.get("tags", [])
    failed = any(output.output_type == "error" for output in cell.outputs)
    if cell.execution_count is None:
        found.append(f"has not run; {AGAIN}")
    elif COMPARED in tags and not cell.outputs:
        found.append(f"is tagged {COMPARED} but has no output to compare")
    if failed != (MUST_RAISE in tags):
        found.append("failed" if failed else f"is tagged {MUST_RAISE} but raised nothing")
    verdicts = VERDICT.findall("".join(o.get("data", {}).get("text/plain", "") for o in cell.outputs))
    wanted = "passed" if solutions else "not solved yet"
    found += [f'says "{name}: {verdict}", not "{wanted}"' for name, verdict in verdicts if verdict != wanted]
    return found


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if anything is stale.")] = False,
    lesson: Annotated[str | None, typer.Option(help="Only this lesson, such as 01.")] = None,
    execute: Annotated[bool, typer.Option(help="Run the lessons whose outputs are stale.")] = True,
) -> None:
    """Build or check the notebooks of the course, from the repository's root."""
    shop = Workshop(Path.cwd())
    try:
        lessons = shop.lessons(lesson)
        found = glossary.problems(shop.root)
        for each in lessons:
            if not check:
                _build(shop, each, execute)
            found += shop.problems(each) if check or execute else pairs.problems(each)
        found += [] if lesson else shop.strays(lessons)
    except LessonError as error:
        _fail([str(error)])
    else:
        _fail(found)
        typer.echo(f"{len(lessons)} lessons: notebooks, outputs and languages are in step")


def _build(shop: Workshop, lesson: Lesson, execute: bool) -> None:
    start = time.perf_counter()
    changed = shop.build(lesson, execute=execute)
    typer.echo(f"{lesson.name}: {len(changed)} notebooks written in {time.perf_counter() - start:.1f} s")


def _fail(problems: list[str]) -> None:
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
