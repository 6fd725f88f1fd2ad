"""Events come out whole however their bytes were torn on the way."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servinglib.engines.server_sent_events import EventParser


def parsed(*pieces: bytes) -> list[str]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_its_data_up_to_a_blank_line(end: bytes):
    assert parsed(b"data: one" + 2 * end + b"data: two" + 2 * end) == ["one", "two"]


def test_only_one_space_after_the_colon_is_not_data():
    assert parsed(b"data:[DONE]\n\ndata:  x\n\ndata\n\n") == ["[DONE]", " x", ""]


def test_several_lines_of_data_are_one_event():
    assert parsed(b'data: {"a":\ndata: 1}\n\n') == ['{"a":\n1}']


def test_comments_and_other_fields_are_passed_over():
    assert parsed(b": ping\n\nevent: message\nid: 7\ndata: x\nretry: 3\n\n: data: no\n\n") == ["x"]


def test_what_is_incomplete_at_the_end_was_never_said():
    assert parsed(b"data: one\n\ndata: two\n") == ["one"]


def test_other_separators_of_lines_than_these_belong_to_the_data():
    assert parsed("data: a\u2028b\x0bc\x85d\n\n".encode()) == ["a\u2028b\x0bc\x85d"]


def test_what_is_no_utf8_is_refused():
    with pytest.raises(UnicodeDecodeError):
        parsed(b"data: \xff\n\n")


LINES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])).map("data: {}".format),
        st.sampled_from(["", "", ": comment", "data:批处理", "event: x"]),
    )
)


@given(st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"]))), st.data())
def test_any_tearing_of_the_bytes_gives_the_same_events(
    parts: list[tuple[list[str], str]], data: st.DataObject
):
    tape = b"".join((line + end).encode() for lines, end in parts for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tape)))))
    pieces = [tape[a:b] for a, b in pairwise([0, *cuts, len(tape)])]
    assert parsed(*pieces) == parsed(tape)
    assert parsed(*(tape[i : i + 1] for i in range(len(tape)))) == parsed(tape)
