"""The pair check: what the two languages must have in common, and the memory of joint edits."""

from __future__ import annotations

import pytest

from servinglib.course import pairs
from servinglib.course.lesson import LessonError, read


def in_step(lesson) -> list[str]:
    return pairs.problems(read(lesson.source))


def test_a_lesson_that_was_accepted_is_in_step(lesson):
    assert in_step(lesson) == []
    assert pairs.accept(lesson.source) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# ## Exercise", "# ### Exercise", r"01_mini/task: headings differ: only in zh \['##'\]"),
        (r"At batch", r"Then $x$: at batch", r"formulas differ: only in zh \[\], only in en \['x'\]"),
        ("1200 requests", "1300 requests", r"numbers differ: only in zh \['1200'\], only in en \['1300'\]"),
        ("see `capacity`", "see `size`", r"code spans differ: only in zh \['capacity'\]"),
        ("[Source](https://example.org/a)", "[Source](https://example.org/b)", "links differ"),
    ],
)
def test_each_kind_of_difference_is_named_and_cannot_be_accepted(lesson, old, new, message):
    lesson.edit(old, new)
    with pytest.raises(LessonError, match=message):
        pairs.accept(lesson.source)
    assert any("en text was edited" in problem for problem in in_step(lesson))


def test_editing_one_side_alone_fails_until_it_is_accepted(lesson):
    lesson.edit("# ## 练习", "# ## 习题")
    [problem] = in_step(lesson)
    assert problem.startswith("01_mini/task: the zh text was edited since")
    assert "--accept 01" in problem
    assert pairs.accept(lesson.source) == ["task"]
    assert in_step(lesson) == []


def test_editing_both_sides_says_so(lesson):
    lesson.edit("# ## 练习", "# ## 习题")
    lesson.edit("# ## Exercise", "# ## Task")
    [problem] = in_step(lesson)
    assert "both texts were edited" in problem


def test_a_text_without_a_partner_is_named(lesson):
    lesson.edit('key="task" lang="en"', 'key="other" lang="en"')
    assert in_step(lesson)[:2] == [
        "01_mini/task: only the zh text exists; write the other one",
        "01_mini/other: only the en text exists; write the other one",
    ]
    with pytest.raises(LessonError, match="only the zh text exists"):
        pairs.accept(lesson.source)


@pytest.mark.parametrize(
    ("zh", "en"),
    [
        ("共 10,000 个，５0％", "10000 of them, 50 %"),
        ("两个请求，P99 为 0.25 秒", "two requests, a P99 of 0.25 s"),
        (r"$\text{批} = 3$ 和 5", r"5 and $\text{batch} = 3$"),
        ("见 [说明](../zh/a.md)", "see [notes](../en/a.md)"),
        ("见 https://example.org/a。", "see <https://example.org/a>"),
        ("```python\n# 1 heading\n```", "```python\n# 1 heading\n```"),
    ],
)
def test_what_says_the_same_is_not_a_difference(zh, en):
    assert pairs.traits(zh) == pairs.traits(en)


@pytest.mark.parametrize(
    ("zh", "en"), [("占 5%", "5 of them"), ("```\na\n```", "```\nb\n```"), ("1.5", "15")]
)
def test_what_differs_in_a_sign_is_a_difference(zh, en):
    assert pairs.traits(zh) != pairs.traits(en)


def test_a_formula_may_wrap_differently_but_not_mean_something_else():
    assert pairs.traits("$$a\n= b$$") == pairs.traits("$$a = b$$")
    assert pairs.traits("$a = b$") != pairs.traits("$a = c$")
