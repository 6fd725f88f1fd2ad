"""A lesson, read from its one source: `notebooks/lessons/NN_name.py`.

A lesson is like the score of a duet. The Markdown is written twice, one voice per language, and
each pair of cells shares a key; the code is written once and both editions play it. The format is
jupytext's percent format with our own attributes in the cell's header line:

    # %% [markdown] key="intro" lang="zh" partner="ab12cd34"
    # %% [markdown] key="intro" lang="en" partner="12cd34ab"
    # %% key="fit" tags=["nbval-check-output"]
    # %% key="ex1" exercise="01.1"            the stub that the reader fills in
    # %% key="ex1-solution" solution="01.1"   stands in its place in the solution notebooks

`course.pairs` checks the Markdown, `course.build` makes the notebooks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servinglib.errors import ServingError

LANGUAGES = ("zh", "en")
_ATTRIBUTES = {"key", "lang", "partner", "tags", "exercise", "solution"}
_FROM_JUPYTEXT = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "lines_to_end_of_markdown"}
_MAX_ID = 64  # characters in a notebook's cell id


class LessonError(ServingError):
    """A lesson's source breaks a rule of the format; the message names the lesson and the cell."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a lesson's source.

    Attributes
    ----------
    kind : {"markdown", "code"}
    key : str
        Its name within the lesson; the two languages of a Markdown cell share one.
    source : str
    lang : {"zh", "en"} or None
        Markdown only.
    partner : str or None
        Hash of the other language's text when the two were last edited together.
    tags : tuple of str
    exercise, solution : str or None
        The exercise that this code cell is the stub, or the solution, of.
    """

    kind: str
    key: str
    source: str
    lang: str | None = None
    partner: str | None = None
    tags: tuple[str, ...] = ()
    exercise: str | None = None
    solution: str | None = None


@dataclass(frozen=True, slots=True)
class Lesson:
    """A lesson's name, such as "01_batching_curve", and its cells in order."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def number(self) -> str:
        """The two digits that lessons and exercises are called by."""
        return self.name[:2]

    def cell_id(self, cell: Cell) -> str:
        """The notebook cell's id: the same in every build and in both languages."""
        return f"{self.number}-{cell.key}"

    def markdown(self, lang: str) -> dict[str, Cell]:
        """The Markdown cells of one language, by key."""
        return {cell.key: cell for cell in self.cells if cell.lang == lang}

    def edition(self, lang: str, *, solutions: bool) -> list[Cell]:
        """The cells of one notebook: one language, with the stubs or with the solutions."""
        answers = {cell.solution: cell for cell in self.cells if cell.solution}
        chosen = []
        for cell in self.cells:
            if cell.solution or cell.lang not in (None, lang):
                continue
            chosen.append(answers.get(cell.exercise, cell) if solutions and cell.exercise else cell)
        return chosen


def read(path: Path) -> Lesson:
    """Read a lesson's source.

    Raises
    ------
    LessonError
        When the name or a cell breaks the format.
    """
    import jupytext

    if not re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem):
        raise LessonError(f"{path.name}: a lesson is called NN_name.py, such as 01_batching_curve.py")
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    cells = tuple(_cell(path.stem, position, raw) for position, raw in enumerate(notebook.cells, 1))
    lesson = Lesson(path.stem, cells)
    _check_keys(lesson)
    _check_exercises(lesson)
    return lesson


def find(folder: Path, number: str | None = None) -> list[Path]:
    """The sources in `folder`, in order; only lesson `number` if it is given."""
    paths = sorted(folder.glob(f"{number or ''}*.py"))
    if number and not paths:
        known = ", ".join(path.stem for path in sorted(folder.glob("*.py"))) or "none"
        raise LessonError(f"there is no lesson {number!r} in {folder.name}/; known: {known}")
    return paths


def _cell(lesson: str, position: int, raw: Any) -> Cell:
    attributes = {name: value for name, value in raw.metadata.items() if name not in _FROM_JUPYTEXT}
    where = f"{lesson}, cell {position} ({attributes.get('key', 'without a key')})"
    unknown = sorted(set(attributes) - _ATTRIBUTES)
    if unknown:
        raise LessonError(f"{where}: unknown attributes {unknown}; known: {sorted(_ATTRIBUTES)}")
    if raw.cell_type not in ("markdown", "code"):
        raise LessonError(f"{where}: it is a {raw.cell_type} cell; write Markdown or code")
    if not re.fullmatch(r"[A-Za-z0-9-]+", attributes.get("key", "")):
        raise LessonError(f'{where}: every cell needs key="...", of letters, digits and hyphens')
    if len(attributes["key"]) + 3 > _MAX_ID:
        raise LessonError(f"{where}: the key has {len(attributes['key'])} characters, at most {_MAX_ID - 3}")
    is_markdown = raw.cell_type == "markdown"
    if is_markdown != (attributes.get("lang") in LANGUAGES):
        raise LessonError(f'{where}: Markdown needs lang="zh" or lang="en", and code has no language')
    tags = tuple(attributes.pop("tags", ()))
    return Cell(kind=raw.cell_type, source=raw.source, tags=tags, **attributes)


def _check_keys(lesson: Lesson) -> None:
    seen: set[tuple[str, str | None]] = set()
    for cell in lesson.cells:
        clashes = {(cell.key, lang) for lang in ((cell.lang, None) if cell.lang else (None, *LANGUAGES))}
        if clashes & seen:
            raise LessonError(f"{lesson.name}: two cells have the key {cell.key!r}; rename one")
        seen.add((cell.key, cell.lang))


def _check_exercises(lesson: Lesson) -> None:
    stubs = [cell.exercise for cell in lesson.cells if cell.exercise]
    answers = [cell.solution for cell in lesson.cells if cell.solution]
    if sorted(stubs) != sorted(answers) or len(set(stubs)) != len(stubs):
        raise LessonError(
            f"{lesson.name}: every exercise needs one stub and one solution; "
            f"stubs {sorted(stubs)}, solutions {sorted(answers)}"
        )
    for name in stubs:
        if not name.startswith(f"{lesson.number}."):
            raise LessonError(f"{lesson.name}: exercise {name!r} belongs to another lesson")
