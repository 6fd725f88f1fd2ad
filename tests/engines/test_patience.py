"""The listener of those who want whole answers."""

from servinglib.engines.streams import Item, Patience
from servinglib.errors import ServerClosed
from servinglib.request import TokenEvent


def event(reason=None, choice=0):
    return TokenEvent("a", 0, 1, "x", 0.0, reason, choice)


def test_the_reader_of_whole_answers_is_woken_once_when_the_last_has_ended():
    told: list[list[Item]] = []
    patience = Patience(2, told.append)
    steps: list[list[Item]] = [
        [("a", event()), ("b", event())],
        [("a", event("stop"))],
        [("b", event())],
        [("b", event("length"))],
    ]
    for news in steps:
        assert not told
        patience(news)
    assert told == [[item for news in steps for item in news]]


def test_an_error_is_told_at_once_with_what_was_held_back():
    told: list[list[Item]] = []
    error = ServerClosed()
    patience = Patience(2, told.append)
    patience([("a", event())])
    patience([("a", error), ("b", error)])
    assert told == [[("a", event()), ("a", error), ("b", error)]]
