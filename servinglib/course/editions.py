"""The four notebooks of a lesson, as data: two languages, each with stubs and with solutions.

Think of a print shop: one set of plates, four impressions. Cell ids come from the lesson and the
cell's key, the metadata holds no date and no machine, and the JSON is sorted; so printing twice
gives the same bytes. The two languages of a kind share one execution: the outputs of the Chinese
notebook are copied into the English one, cell by cell.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servinglib.course.freshness import code_hash, library_hash
from servinglib.course.lesson import LANGUAGES, Cell, Lesson

CODE_HASH, LIBRARY_HASH = "code", "library"
_WIDE = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"  # Chinese characters and full-width punctuation
# A break between two of them, in a line that is no heading and no table row.
_WRAP = re.compile(rf"^((?![#|]).*[{_WIDE}])\n *(?=[{_WIDE}])", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Edition:
    """One notebook of a lesson: its language, and whether it holds the solutions."""

    lesson: Lesson
    lang: str
    solutions: bool

    @property
    def path(self) -> Path:
        """Where it lies below `notebooks/`."""
        return Path("solutions" if self.solutions else "", self.lang, f"{self.lesson.name}.ipynb")

    @property
    def cells(self) -> list[Cell]:
        """Its cells, in order."""
        return self.lesson.edition(self.lang, solutions=self.solutions)

    def hashes(self, library: Path) -> dict[str, str]:
        """What its outputs depend on: its own code, and the modules under `library` that it reaches."""
        cells = self.cells
        return {
            CODE_HASH: code_hash(cells),
            LIBRARY_HASH: library_hash(cells, self.lesson.number, library),
        }


def kinds(lesson: Lesson) -> Iterator[tuple[Edition, ...]]:
    """The editions that share one execution: first the readers' notebooks, then the solutions."""
    for solutions in (False, True):
        yield tuple(Edition(lesson, lang, solutions) for lang in LANGUAGES)


def compose(edition: Edition) -> Any:
    """The notebook without outputs."""
    from nbformat import v4

    cells = []
    for cell in edition.cells:
        make = v4.new_markdown_cell if cell.kind == "markdown" else v4.new_code_cell
        metadata = {"tags": list(cell.tags)} if cell.tags else {}
        source = unwrap(cell.source) if cell.lang == "zh" else cell.source
        cells.append(make(source, id=edition.lesson.cell_id(cell), metadata=metadata))
    return v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
            "servinglib": {"lesson": edition.lesson.name, "language": edition.lang},
        },
    )


def unwrap(text: str) -> str:
    """Join the lines of Chinese paragraphs, whose line breaks would otherwise be shown as spaces."""
    parts = re.split(r"(^```.*?^```|^\$\$.*?\$\$)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_WRAP.sub(r"\1", part) for part in parts[::2]]
    return "".join(parts)


def adopt(notebook: Any, executed: Any) -> None:
    """Give `notebook`, in place, the outputs and hashes of an executed one, where the code is the same."""
    donors = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        donor = donors.get(cell.id)
        if cell.cell_type == "code" and donor is not None and donor.source == cell.source:
            cell.outputs = copy.deepcopy(donor.outputs)
            cell.execution_count = donor.execution_count
    stored = executed.metadata.get("servinglib", {})
    notebook.metadata.servinglib.update({k: stored[k] for k in (CODE_HASH, LIBRARY_HASH) if k in stored})


def differences(stored: Any, fresh: Any) -> list[str]:
    """The cells in which a stored notebook's text is not what its lesson says."""
    ours, theirs = ({cell.id: cell for cell in book.cells} for book in (stored, fresh))
    found = [f"cell {key} is missing" for key in theirs if key not in ours]
    found += [f"cell {key} is not in the lesson" for key in ours if key not in theirs]
    for key in ours.keys() & theirs.keys():
        one, other = ours[key], theirs[key]
        if (one.cell_type, one.source, one.metadata) != (other.cell_type, other.source, other.metadata):
            found.append(f"cell {key} differs from the lesson")
    if not found and list(ours) != list(theirs):
        found.append("the cells stand in another order")
    return sorted(found)


def outputs(notebook: Any) -> list[Any]:
    """The outputs of every code cell, in order."""
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
