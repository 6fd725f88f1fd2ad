"""A small but whole lesson, and a repository around it to build it in."""

from __future__ import annotations

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from servinglib.course import build, pairs
from servinglib.course.build import Workshop
from servinglib.course.execute import wash

LESSON = """\
# %% [markdown] key="intro" lang="zh"
# # 第 1 课：批处理
#
# 容量是 $b/(\\alpha b+\\tau_0)$，见 `capacity`。批大小为 16 时为 1,200 个请求。[源码](https://example.org/a)
# %% [markdown] key="intro" lang="en"
# # Lesson 1: batching
#
# The capacity is $b/(\\alpha b+\\tau_0)$, see `capacity`. At batch size 16 it is 1200 requests. [Source](https://example.org/a)
# %% key="law" tags=["nbval-check-output"]
from servinglib.policies.batch_time import BatchTime

BatchTime(0.01, 0.04).capacity(4)
# %% [markdown] key="task" lang="zh"
# ## 练习
# %% [markdown] key="task" lang="en"
# ## Exercise
# %% key="ex1" exercise="01.1"
def capacity(alpha, tau0, max_batch_size):
    raise NotImplementedError
# %% key="ex1-solution" solution="01.1"
def capacity(alpha, tau0, max_batch_size):
    return max_batch_size / (alpha * max_batch_size + tau0)
# %% key="ex1-check"
from servinglib.course import check

check("01.1", capacity)
"""


class LessonFolder:
    """A repository in a temporary folder, with one lesson that can be edited."""

    def __init__(self, root: Path) -> None:
        self.source = root / "notebooks" / "lessons" / "01_mini.py"
        self.source.parent.mkdir(parents=True)
        self.source.write_text(LESSON, encoding="utf-8")
        (root / "glossary.yml").write_text(
            "- {en: latency, zh: 延迟, forbidden_zh: [时延]}\n", encoding="utf-8"
        )
        self.root = root
        self.shop = Workshop(root)
        pairs.accept(self.source)

    def edit(self, old: str, new: str) -> None:
        text = self.source.read_text(encoding="utf-8")
        assert old in text
        self.source.write_text(text.replace(old, new), encoding="utf-8")

    def notebook(self, name: str) -> Path:
        return self.root / "notebooks" / name / "01_mini.ipynb"

    def build(self, *, execute: bool = True) -> list[str]:
        [lesson] = self.shop.lessons()
        changed = self.shop.build(lesson, execute=execute)
        return [path.relative_to(self.root / "notebooks").parent.as_posix() for path in changed]

    def problems(self) -> str:
        [lesson] = self.shop.lessons()
        return "\n".join(self.shop.problems(lesson))


def in_process(notebook: Any, folder: Path, root: Path, name: str) -> None:
    """Stands in for a kernel, which takes a second to start: runs the cells right here."""
    from nbformat import v4

    names: dict[str, Any] = {}
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        *statements, last = ast.parse(cell.source).body
        cell.execution_count, printed, value = count, io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(statements, []), name, "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), name, "eval"), names)
            else:
                exec(compile(ast.Module([last], []), name, "exec"), names)
        if printed.getvalue():
            cell.outputs.append(v4.new_output("stream", text=printed.getvalue()))
        if value is not None:
            data = {"text/plain": repr(value)}
            cell.outputs.append(v4.new_output("execute_result", data=data, execution_count=count))
    wash(notebook, root)


@pytest.fixture
def lesson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LessonFolder:
    """A lesson whose cells run in the test's own process."""
    monkeypatch.setattr(build, "run", in_process)
    return LessonFolder(tmp_path)


@pytest.fixture
def lesson_with_kernel(tmp_path: Path) -> LessonFolder:
    return LessonFolder(tmp_path)
