"""The builder: four notebooks, one execution a kind, and a check that notices every way to be stale."""

from __future__ import annotations

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from servinglib.course import build, editions
from servinglib.course.execute import wash
from servinglib.course.lesson import LessonError, find, read


def test_a_lesson_becomes_four_notebooks_and_a_second_build_changes_nothing(lesson_with_kernel):
    lesson = lesson_with_kernel
    assert lesson.build() == ["zh", "en", "solutions/zh", "solutions/en"]
    assert lesson.problems() == ""
    before = {
        name: lesson.notebook(name).read_bytes() for name in ("zh", "en", "solutions/zh", "solutions/en")
    }
    assert lesson.build() == []

    for name in before:
        lesson.notebook(name).unlink()
    lesson.build()  # executed anew
    assert {name: lesson.notebook(name).read_bytes() for name in before} == before

    zh, en, solution, _ = (json.loads(text) for text in before.values())
    assert [cell["id"] for cell in en["cells"]] == [cell["id"] for cell in zh["cells"]]
    assert zh["cells"][0]["source"] != en["cells"][0]["source"]
    assert [c.get("outputs") for c in zh["cells"]] == [c.get("outputs") for c in en["cells"]]
    assert "50.0" in json.dumps(en["cells"][1]["outputs"])
    assert "01.1: not solved yet" in json.dumps(zh)
    assert "raise NotImplementedError" in json.dumps(zh)
    assert "01.1: passed" in json.dumps(solution)
    assert "NotImplementedError" not in json.dumps(solution)


def test_a_built_lesson_says_what_became_of_it_after_each_kind_of_edit(lesson):
    lesson.build()

    lesson.edit("capacity(4)", "capacity(5)")
    assert re.search(r"^zh/01_mini.ipynb: cell 01-law differs from the lesson", lesson.problems(), re.M)
    assert "zh/01_mini.ipynb: the code has changed since it was executed" in lesson.problems()

    lesson.build(execute=False)
    assert "differs" not in lesson.problems()
    assert "zh/01_mini.ipynb: cell 01-law has not run" in lesson.problems()

    lesson.edit("capacity(5)", "capacity(4)")
    lesson.build()
    assert lesson.problems() == ""

    notebook = lesson.notebook("en")
    notebook.write_text(notebook.read_text(encoding="utf-8").replace("50.0", "51.0"), encoding="utf-8")
    assert "en/01_mini.ipynb: its outputs are not those of zh/01_mini.ipynb" in lesson.problems()
    lesson.notebook("zh").unlink()
    assert "zh/01_mini.ipynb: it was never built" in lesson.problems()


def run_command(*arguments: str):
    app = typer.Typer()
    app.command()(build.main)
    return CliRunner().invoke(app, arguments)


def test_the_command_builds_and_then_checks_without_writing(lesson, monkeypatch):
    monkeypatch.chdir(lesson.root)
    assert run_command("--check").exit_code == 1
    assert not lesson.notebook("zh").exists()

    built = run_command("--lesson", "01")
    assert (built.exit_code, built.stdout.splitlines()[0][:28]) == (0, "01_mini: 4 notebooks written")
    assert run_command("--check").stdout == "1 lessons: notebooks, outputs and languages are in step\n"

    lesson.edit("capacity(4)", "capacity(5)")
    before = lesson.notebook("zh").read_bytes()
    checked = run_command("--check")
    assert checked.exit_code == 1
    assert "cell 01-law differs from the lesson; run `make notebooks`" in checked.stderr
    assert lesson.notebook("zh").read_bytes() == before


def test_an_edit_to_the_text_alone_executes_nothing(lesson):
    lesson.build()
    stored = json.loads(lesson.notebook("zh").read_text(encoding="utf-8"))["cells"][1]
    lesson.edit("# ## Exercise", "# ## Your turn")
    assert lesson.build(execute=False) == ["en", "solutions/en"]
    assert json.loads(lesson.notebook("zh").read_text(encoding="utf-8"))["cells"][1] == stored
    assert "has changed since it was executed" not in lesson.problems()
    assert "01_mini/task: the en text was edited" in lesson.problems()


def test_a_solution_that_does_not_pass_is_a_problem(lesson):
    lesson.edit("return max_batch_size / (", "return 1 / (")
    lesson.build()
    assert 'solutions/zh/01_mini.ipynb: cell 01-ex1-check says "01.1: not right yet", not "passed"' in (
        lesson.problems()
    )


def test_a_cell_that_fails_stops_the_build_and_is_named(lesson_with_kernel):
    lesson = lesson_with_kernel
    lesson.edit("BatchTime(0.01, 0.04).capacity(4)", "1 / 0")
    with pytest.raises(LessonError, match=r"zh/01_mini.ipynb: a cell failed[\s\S]*ZeroDivisionError"):
        lesson.build()


def test_a_compared_cell_without_output_is_a_problem(lesson):
    lesson.edit("BatchTime(0.01, 0.04).capacity(4)", "x = BatchTime(0.01, 0.04)")
    lesson.build()
    assert "cell 01-law is tagged nbval-check-output but has no output" in lesson.problems()


def test_a_cell_that_should_raise_and_does_not_is_a_problem(lesson):
    lesson.edit('tags=["nbval-check-output"]', 'tags=["raises-exception"]')
    lesson.build()
    assert "cell 01-law is tagged raises-exception but raised nothing" in lesson.problems()


def test_outputs_with_paths_of_the_machine_are_washed_or_refused(lesson):
    lesson.edit("BatchTime(0.01, 0.04).capacity(4)", f"print('{lesson.root}/notebooks', '/opt/ann/x')")
    lesson.build()
    [stream] = json.loads(lesson.notebook("zh").read_text(encoding="utf-8"))["cells"][1]["outputs"]
    assert stream["text"] == ["notebooks /opt/ann/x\n"]
    assert "cell 01-law shows a path of one machine: /opt/ann/x" in lesson.problems()


def test_a_notebook_that_is_too_large_is_a_problem(lesson):
    lesson.edit("BatchTime(0.01, 0.04).capacity(4)", "print('x' * 1_600_000)")
    lesson.build()
    assert re.search(r"zh/01_mini.ipynb: it has 1,60\d,\d{3} bytes, at most 1,500,000", lesson.problems())


def test_a_notebook_that_no_lesson_makes_is_named(lesson):
    lesson.build()
    lesson.notebook("zh").with_name("02_gone.ipynb").write_text("{}", encoding="utf-8")
    assert lesson.shop.strays(lesson.shop.lessons()) == ["zh/02_gone.ipynb: no lesson makes it; delete it"]


def test_time_stamps_and_widgets_do_not_reach_the_repository(tmp_path):
    from nbformat import v4

    cell = v4.new_code_cell("1", metadata={"execution": {"iopub.execute_input": "2026-01-01T00:00:00"}})
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a1"}, "text/plain": "slider"}
    cell.outputs = [v4.new_output("display_data", data=view)]
    notebook = v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    wash(notebook, tmp_path)
    assert notebook.metadata == {}
    assert cell.metadata == {}
    assert cell.outputs[0].data == {"text/plain": "slider"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('# %% key="a" colour="red"\n1', r"unknown attributes \['colour'\]"),
        ("# %%\n1", "every cell needs key="),
        ('# %% [markdown] key="a"\n# x', "Markdown needs lang="),
        ('# %% key="a" lang="zh"\n1', "code has no language"),
        ('# %% key="a"\n1\n# %% key="a"\n2', "two cells have the key 'a'"),
        ('# %% key="a" exercise="01.1"\n1', "every exercise needs one stub and one solution"),
        ('# %% key="a" exercise="02.1"\n1\n# %% key="b" solution="02.1"\n2', "belongs to another lesson"),
    ],
)
def test_a_source_that_breaks_the_format_is_refused_with_the_reason(tmp_path, source, message):
    path = tmp_path / "01_bad.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(LessonError, match=message):
        read(path)


def test_an_unknown_lesson_lists_the_known_ones(lesson):
    with pytest.raises(LessonError, match=r"no lesson '07' in lessons/; known: 01_mini"):
        find(lesson.source.parent, "07")


def test_wrapped_chinese_paragraphs_are_joined_and_nothing_else_is():
    text = "# 标题\n一行\n接着。\n**粗体**\n- 甲\n  续\n| 表 |\n| 格 |\n\n```\n甲\n乙\n```\nGPU\n乙"
    joined = "# 标题\n一行接着。\n**粗体**\n- 甲续\n| 表 |\n| 格 |\n\n```\n甲\n乙\n```\nGPU\n乙"
    assert editions.unwrap(text) == joined
