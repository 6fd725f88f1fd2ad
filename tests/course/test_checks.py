"""`check` never raises in the reader's face, and says what it saw in the reader's language."""

from __future__ import annotations

import itertools
import sys

import pytest

from servinglib.course import check, hint
from servinglib.course.checks import NotSolved, _same
from servinglib.errors import UnknownName


def divides_by_zero(alpha, tau0, max_batch_size):
    return max_batch_size / (alpha - alpha)


def loops_forever(alpha, tau0, rate):
    size = 0
    while True:
        try:
            size += 1
        except Exception:  # noqa: BLE001 - a reader's habit; the loop must end even so
            continue


def test_the_smallest_failing_case_is_shown_with_names():
    result = check("01.1", lambda alpha, tau0, max_batch_size: 20.0)
    assert result.case == "alpha=0.01, tau0=0.04, max_batch_size=4"  # 20.0 is right for the first case
    assert (result.expected, result.got, result.cause) == ("50.0", "20.0", "")
    assert repr(result).splitlines() == [
        "01.1: not right yet",
        "  input: alpha=0.01, tau0=0.04, max_batch_size=4",
        "  expected: 50.0",
        "  got: 20.0",
        '  for a hint: hint("01.1")',
    ]


def test_an_exception_in_the_answer_is_shown_with_its_line():
    result = check("01.1", divides_by_zero)
    assert result.got.startswith("ZeroDivisionError: ")
    assert result.got.endswith(": return max_batch_size / (alpha - alpha))")


def test_an_endless_loop_ends_even_if_it_catches_exceptions():
    before = sys.gettrace()
    assert "no answer after 100,000 lines" in check("01.2", loops_forever).got
    assert check("01.1", divides_by_zero).got
    assert sys.gettrace() is before


def test_an_endless_generator_ends_as_well():
    result = check(
        "01.2", lambda a, t, rate: next(b for b in itertools.count(1) if b / (a * b + t) > rate), lang="zh"
    )
    assert "循环" in result.got
    assert "应返回 None" in result.cause


@pytest.mark.parametrize("answer", [None, ..., lambda *_: None, lambda *_: ...])
def test_an_empty_stub_is_not_solved_yet(answer):
    assert check("01.1", answer).status == "not solved yet"


def test_a_value_instead_of_a_function_is_explained():
    assert "hand in the function itself" in check("01.1", 12.5).note


@pytest.mark.parametrize("answer", [lambda: 1, lambda *_: "text", lambda *_: [1, 2], lambda *_: float("nan")])
def test_strange_answers_fail_without_raising(answer):
    assert check("01.1", answer).status == "not right yet"


def test_an_answer_that_changes_its_input_harms_no_other_case():
    def sorts_in_place(intended, sent, completed, q):
        intended.clear()
        return 0.0

    result = check("01.3", sorts_in_place)
    assert result.case.startswith("intended=[0.0, 1.0]")


def test_html_is_escaped():
    html = check("01.1", lambda *_: "<b>")._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>&#x27;" not in html


def test_the_language_is_that_of_the_notebooks_folder(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert "write the function" in check("01.1", None).note
    assert hint("01.1").count("\n") == 1  # both languages
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/zh/01_batching_curve.ipynb")
    assert "写出函数" in check("01.1", None).note
    assert repr(hint("01.1")).startswith("一个满批")
    assert hint("01.1", lang="en").startswith("How long")


def test_an_unknown_exercise_or_language_lists_the_known_ones():
    with pytest.raises(UnknownName, match=r"known: 01\.1, 01\.2"):
        check("01.9", None)
    with pytest.raises(UnknownName, match=r"unknown exercise '77\.1'"):
        check("77.1", None)
    with pytest.raises(UnknownName, match="unknown language 'fr'"):
        check("01.1", None, lang="fr")


def test_strict_raises_with_the_whole_result():
    with pytest.raises(NotSolved, match="likely cause: this counts batches per second"):
        check("01.1", lambda a, t, b: 1 / (a * b + t), strict=True)


def test_values_are_compared_with_a_tolerance_and_by_their_kind():
    import numpy as np

    same = [(0.1 + 0.2, 0.3), (np.float64(2), 2), (np.array([1.0, 2.0]), [1, 2]), (None, None)]
    assert all(_same(one, other) for one, other in same)
    different = [(None, 0), ([1], [1, 2]), ("1", 1), (1.0, 1.001)]
    assert not any(_same(one, other) for one, other in different)
