"""Staleness: an output depends on its code and on the library modules that the code reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from servinglib.course.freshness import code_hash, library_hash
from servinglib.course.lesson import Cell


def code(source: str, *tags: str) -> list[Cell]:
    return [Cell("code", "a", source, tags=tags)]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    files = {
        "servinglib/__init__.py": "",
        "servinglib/used.py": '"""Idea."""\n\n\ndef f():\n    """Doc."""\n    from .deep import inner\n    return inner.G  # why\n',
        "servinglib/deep/__init__.py": "",
        "servinglib/deep/inner.py": "G = 1\n",
        "servinglib/unused.py": "H = 1\n",
        "servinglib/course/exercises/lesson01.py": "E = 1\n",
        "simulations/__init__.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_only_modules_that_the_cells_reach_count(library):
    cells = code("%matplotlib inline\nimport servinglib.used")
    before = library_hash(cells, "01", library)

    (library / "servinglib/unused.py").write_text("H = 2\n", encoding="utf-8")
    assert library_hash(cells, "01", library) == before

    for name in (
        "servinglib/deep/inner.py",
        "servinglib/course/exercises/lesson01.py",
        "servinglib/__init__.py",
    ):
        (library / name).write_text("G = 2\n", encoding="utf-8")
        after = library_hash(cells, "01", library)
        assert after != before, name
        before = after


def test_comments_and_docstrings_in_the_library_do_not_count(library):
    cells = code("from servinglib import used")
    before = library_hash(cells, "01", library)
    path = library / "servinglib/used.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("# why", "# because").replace("Doc.", "Other\n\n    doc.").replace("Idea", "I")
    )
    assert library_hash(cells, "01", library) == before
    path.write_text(text.replace("inner.G", "inner.G + 1"))
    assert library_hash(cells, "01", library) != before


def test_the_code_hash_covers_source_and_tags_but_no_text():
    base = code_hash(code("x = 1"))
    assert code_hash([*code("x = 1"), Cell("markdown", "t", "words", lang="zh")]) == base
    assert code_hash(code("x = 2")) != base
    assert code_hash(code("x = 1", "nbval-check-output")) != base
