"""`check("01.2", my_function)`: is an exercise solved, and if not, what is the likely mistake?

A good tutor doesn't say "wrong"; they find the smallest case where your answer fails, and having
seen a hundred students they recognise the mistake. So an exercise lists its cases from small to
large and its *known mistakes* as runnable functions: when your function fails, and answers every
case as a known mistake does, that mistake is named. Nothing you hand in raises here: an exception,
an endless loop or an empty stub becomes part of the answer.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import PurePath
from typing import Any

from servinglib.course.lesson import LANGUAGES
from servinglib.course.verdict import WORDS, Result, Status, Text
from servinglib.errors import UnknownName

MAX_LINES = 100_000  # of the reader's code, per case; more means that a loop never ends
TOLERANCE = 1e-6  # relative


class NotSolved(AssertionError):
    """Raised by `check(..., strict=True)`, which tests use; the message is the whole result."""


class _Endless(BaseException):
    """The function ran more lines than any right answer needs; no `except Exception` can catch it."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong answer that readers are known to give, and what to tell them."""

    answer: Callable[..., Any]
    cause: Text


@dataclass(frozen=True, slots=True)
class Exercise:
    """One exercise: what is asked, how it is judged, and what usually goes wrong.

    Attributes
    ----------
    id : str
        Such as "01.2": the lesson and the number within it.
    stub, reference : callable
        What the reader starts from, and a right answer.
    cases : tuple of tuple
        Arguments to try, the smallest case first.
    mistakes : tuple of Mistake
    hint : dict
        Language to text.
    """

    id: str
    stub: Callable[..., Any]
    reference: Callable[..., Any]
    cases: tuple[tuple[Any, ...], ...]
    mistakes: tuple[Mistake, ...]
    hint: Text


@dataclass(frozen=True, slots=True)
class Raised:
    """What a function "returned" when it raised instead."""

    message: str

    def __repr__(self) -> str:
        return self.message


def check(exercise: str, answer: Any, lang: str | None = None, *, strict: bool = False) -> Result:
    """Judge an answer to an exercise.

    Parameters
    ----------
    exercise : str
        Such as "01.2".
    answer : callable
        The function that the exercise asks for.
    lang : {"zh", "en"}, optional
        Language of the explanations; by default that of the notebook, English where it can't be told.
    strict : bool
        Raise `NotSolved` unless the answer passes; for tests.

    Raises
    ------
    UnknownName
        When there is no such exercise or language.
    NotSolved
        Only with `strict`.
    """
    result = _judge(find(exercise), answer, _language(lang) or "en")
    if strict and not result.passed:
        raise NotSolved(repr(result))
    return result


class Hint(str):
    """Text that a notebook shows without quotes."""

    __repr__ = str.__str__


def hint(exercise: str, lang: str | None = None) -> Hint:
    """A hint, in the notebook's language; in both where it can't be told."""
    texts, chosen = find(exercise).hint, _language(lang)
    return Hint(texts[chosen] if chosen else "\n".join(texts[each] for each in LANGUAGES))


def find(exercise: str) -> Exercise:
    """The exercise by its id; an unknown one lists those of its lesson."""
    from servinglib.course import exercises

    name = f"{exercises.__name__}.lesson{exercise.partition('.')[0]}"
    if importlib.util.find_spec(name) is None:
        raise UnknownName("exercise", exercise, exercises.ids())
    known = {each.id: each for each in importlib.import_module(name).EXERCISES}
    if exercise not in known:
        raise UnknownName("exercise", exercise, known)
    return known[exercise]


def _judge(exercise: Exercise, answer: Any, lang: str) -> Result:
    def result(status: Status, **details: str) -> Result:
        return Result(exercise.id, status, lang, **details)

    if answer is None or answer is ...:
        return result("not solved yet", note=WORDS["unsolved"][lang])
    if not callable(answer):
        return result("not right yet", note=WORDS["not a function"][lang].format(got=repr(answer)))
    expected = [call_answer(exercise.reference, case, lang) for case in exercise.cases]
    got = [call_answer(answer, case, lang) for case in exercise.cases]
    if all(each is None or each is NotImplemented or each is ... for each in got):
        return result("not solved yet", note=WORDS["unsolved"][lang])
    for case, right, given in zip(exercise.cases, expected, got, strict=True):
        if not _same(right, given):
            return result(
                "not right yet",
                case=_show_case(exercise, case),
                expected=repr(right),
                got=_show(given),
                cause=_recognise(exercise, got, lang),
            )
    return result("passed", note=WORDS["passed"][lang].format(n=len(expected)))


def _recognise(exercise: Exercise, got: list[Any], lang: str) -> str:
    """The cause of the known mistake that answers every case in the same way."""
    for mistake in exercise.mistakes:
        theirs = [call_answer(mistake.answer, case, lang) for case in exercise.cases]
        if all(_same(one, other) for one, other in zip(theirs, got, strict=True)):
            return mistake.cause[lang]
    return ""


def call_answer(function: Callable[..., Any], case: tuple[Any, ...], lang: str) -> Any:
    """What the function returns; an exception or an endless loop becomes a `Raised`."""
    try:
        with _line_limit(MAX_LINES):
            return function(*copy.deepcopy(case))
    except NotImplementedError:
        return NotImplemented
    except _Endless:
        return Raised(WORDS["endless"][lang].format(n=MAX_LINES))
    except Exception as error:  # noqa: BLE001 - the reader's code may raise anything, and it is shown
        frames = traceback.extract_tb(error.__traceback__)[1:]
        where = f" (line {frames[0].lineno}: {frames[0].line})" if frames and frames[0].line else ""
        return Raised(f"{type(error).__name__}: {error}{where}")


@contextmanager
def _line_limit(limit: int) -> Iterator[None]:
    """Raise `_Endless` in code that runs more than `limit` lines; works where alarms don't exist."""
    left = limit
    before = sys.gettrace()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Endless
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _same(one: Any, other: Any) -> bool:
    one, other = (value.tolist() if hasattr(value, "tolist") else value for value in (one, other))  # NumPy's
    if isinstance(one, Real) and isinstance(other, Real):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Raised) and isinstance(other, Raised):
        return one.message.partition(" (line")[0] == other.message.partition(" (line")[0]
    return type(one) is type(other) and bool(one == other)


def _show_case(exercise: Exercise, case: tuple[Any, ...]) -> str:
    names = inspect.signature(exercise.reference).parameters
    return ", ".join(f"{name}={value!r}" for name, value in zip(names, case, strict=True))


def _show(value: Any) -> str:
    return repr(float(value)) if isinstance(value, Real) and not isinstance(value, int) else repr(value)


def _language(lang: str | None) -> str | None:
    """The language asked for, or else that of the folder that Jupyter says the notebook lies in."""
    if lang is not None and lang not in LANGUAGES:
        raise UnknownName("language", lang, LANGUAGES)
    folder = PurePath(os.environ.get("JPY_SESSION_NAME", "")).parent.name
    return lang or (folder if folder in LANGUAGES else None)
