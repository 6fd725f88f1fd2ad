"""What a setting takes: numbers are numbers in whatever hand they are written, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

import pytest

from servinglib.config_values import fields_of
from servinglib.errors import InvalidSetting


class Thing:
    """What no file can hold."""


@dataclass(frozen=True)
class Sample:
    needed: int
    count: int = 1
    share: float | None = None
    flag: bool = False
    name: str = "x"
    memory: str | int | float | None = None
    mode: Literal["a", "b"] = "a"
    names: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    thing: Thing | None = None
    guess: str | Callable[[int], int] | None = None
    kind: type[Thing] = Thing
    api_key: str | None = None
    token_key: int = 0


FIELDS = fields_of(Sample)


def test_what_no_file_can_hold_is_left_to_programs():
    assert {"thing", "kind"}.isdisjoint(FIELDS)
    assert FIELDS["guess"].kinds == (str, type(None))
    assert (FIELDS["needed"].default, FIELDS["names"].default) == (MISSING, [])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 64, 64),
        ("count", "64", 64),
        ("count", 64.0, 64),
        ("share", 1, 1.0),
        ("share", "1e-5", 1e-5),
        ("share", None, None),
        ("flag", True, True),
        ("flag", 0, False),
        ("flag", "yes", True),
        ("memory", 0.5, 0.5),
        ("memory", 64, 64),
        ("memory", "1GiB", "1GiB"),
        ("mode", "b", "b"),
        ("names", ["a", "b"], ["a", "b"]),
        ("extra", {"min_p": 0.1, "on": True}, {"min_p": 0.1, "on": True}),
    ],
)
def test_a_value_of_a_file_becomes_what_the_setting_takes(name: str, value: Any, expected: Any):
    found = FIELDS[name].convert(value, "serving.yaml:1")
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 64.5, "a whole number, which"),
        ("count", "many", "a whole number"),
        ("count", True, "a whole number"),
        ("count", None, "a whole number"),
        ("share", float("nan"), "a number or null"),
        ("share", "often", "a number or null"),
        ("flag", 2, "true or false"),
        ("name", 5, "text, which is expected here; put it into quotes"),
        ("name", False, "text"),
        ("memory", True, "text or a whole number or a number or null"),
        ("mode", "c", "one of a, b"),
        ("names", "a", "a list"),
        ("extra", [1], "a mapping"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_place_and_what_is_expected(
    name: str, value: Any, expected: str
):
    with pytest.raises(InvalidSetting) as refused:
        FIELDS[name].convert(value, "serving.yaml:7")
    assert str(refused.value).startswith(f"{name}: {value!r} from serving.yaml:7 is not {expected}")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("count", "64", 64),
        ("share", "null", None),
        ("share", "1e-5", 1e-5),
        ("flag", "false", False),
        ("flag", "1", True),
        ("name", "5", "5"),
        ("name", "12:30", "12:30"),
        ("name", "a: b # c", "a: b # c"),
        ("name", "sk #1", "sk #1"),
        ("name", "[", "["),
        ("memory", "0.5", 0.5),
        ("memory", "64", 64),
        ("memory", "1GiB", "1GiB"),
        ("names", "[a, b]", ["a", "b"]),
        ("extra", "{min_p: 0.1}", {"min_p": 0.1}),
        ("api_key", "123", "123"),
    ],
)
def test_text_is_read_as_yaml_or_taken_as_the_text_that_it_is(name: str, text: str, expected: Any):
    found = FIELDS[name].convert_text(text, "$X")
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "text"), [("count", "64.5"), ("count", "true"), ("flag", "2"), ("share", ".inf")]
)
def test_text_that_is_neither_is_refused(name: str, text: str):
    with pytest.raises(InvalidSetting, match=rf"{name}: '{text}' from \$X is not"):
        FIELDS[name].convert_text(text, "$X")


def test_a_secret_appears_in_no_error():
    for convert in (FIELDS["token_key"].convert, FIELDS["token_key"].convert_text):
        with pytest.raises(InvalidSetting) as refused:
            convert("hush", "$TOKEN_KEY")
        assert "'***' from $TOKEN_KEY" in str(refused.value)
        assert "hush" not in str(refused.getrepr(showlocals=False, style="value", chain=True))
