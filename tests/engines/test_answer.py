from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servinglib.engines.answer import Answer, StopGuard
from servinglib.request import Request, SamplingParams, TokenEvent


def events(text: bytes, params: SamplingParams, eos_ids: Sequence[int] = ()) -> list[TokenEvent]:
    """Feed bytes as tokens until the answer ends."""
    answer = Answer(Request("r", "p", params), lambda ids: bytes(ids).decode(errors="replace"), eos_ids)
    seen: list[TokenEvent] = []
    for time, token in enumerate(text):
        if answer.finish_reason is None:
            seen.append(answer.advance(token, float(time)))
    return seen


def shown(seen: Sequence[TokenEvent]) -> str:
    return "".join(e.text for e in seen)


def test_text_that_may_begin_a_stop_string_waits_until_it_does_not():
    seen = events(b"a</b", SamplingParams(stop=("</s>",)))
    assert [e.text for e in seen] == ["a", "", "", "</b"]


def test_a_stop_string_in_the_middle_of_a_token_ends_the_answer_before_it():
    guard = StopGuard(["END"])
    assert guard.push("to the END of") == ("to the ", True)
    assert guard.flush() == ""


def test_the_earliest_of_several_stop_strings_wins():
    seen = events(b"one, two; three", SamplingParams(stop=(";", ", ")))
    assert shown(seen) == "one"


def test_a_stop_string_that_is_held_back_by_another_is_still_shown_at_the_end():
    seen = events(b"abcd", SamplingParams(max_tokens=4, stop=("bcdX", "cY")))
    assert shown(seen) == "abcd"
    assert seen[-1].finish_reason == "length"


def test_an_end_token_inside_a_character_shows_that_it_is_broken():
    seen = events("a服".encode()[:-1] + b"\x03", SamplingParams(), eos_ids=[3])
    assert shown(seen) == "a\ufffd"
    assert (seen[-1].token_id, seen[-1].finish_reason) == (3, "stop")


def test_a_stop_string_completed_by_the_flush_is_not_shown_either():
    seen = events("a服".encode()[:-1], SamplingParams(max_tokens=3, stop=("\ufffd",)))
    assert (shown(seen), seen[-1].finish_reason) == ("a", "stop")


def test_a_stop_string_on_the_last_allowed_token_counts_as_a_stop():
    seen = events(b"ab", SamplingParams(max_tokens=2, stop=("b",)))
    assert (shown(seen), seen[-1].finish_reason) == ("a", "stop")


def test_an_aborted_answer_shows_what_was_held_back():
    answer = Answer(Request("r", "p", SamplingParams(stop=("xyz",))), lambda ids: bytes(ids).decode())
    assert answer.advance(ord("x"), 0.0).text == ""
    answer.abort()
    last = answer.advance(ord("y"), 1.0)
    assert (last.text, last.token_id, last.index, last.finish_reason) == ("x", None, 1, "abort")


@given(st.text("ab ", min_size=1, max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_always_the_text_before_the_first_stop_string(text: str, stops: list[str]):
    seen = events(text.encode(), SamplingParams(max_tokens=len(text), stop=tuple(stops)))
    ends = [end for stop in stops if (end := text.find(stop) + len(stop)) >= len(stop)]
    if not ends:
        assert shown(seen) == text
        return
    # The stop string completed first is met first; of those completed together, the longest shows least.
    first = min(ends)
    met = [stop for stop in stops if text[:first].endswith(stop)]
    assert shown(seen) == text[: first - max(map(len, met))]
    assert seen[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    "params", [SamplingParams(max_tokens=2), SamplingParams(ignore_eos=True, max_tokens=4)]
)
def test_an_answer_ends_exactly_once(params: SamplingParams):
    seen = events(b"ab\x03d", params, eos_ids=[3])
    assert [e.finish_reason is None for e in seen] == [True] * (params.max_tokens - 1) + [False]
