"""From what somebody wrote to what a setting takes: types are checked here, domains where the setting lives.

A customs officer reads the declaration in whatever hand it was written: `64` from a file and "64" from
the environment are the same number, 64.5 is no count of sequences, and a guess is never made. What a
setting takes stands in its dataclass alone; a type that no file can hold (a function, a class) is left to
programs.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import reduce
from operator import or_
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from servinglib.errors import InvalidSetting

SECRET = re.compile(r"(^|_)(key|token|secret|password|headers)$")
PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
CONTAINERS = {list: "a list", tuple: "a list", Sequence: "a list", dict: "a mapping", Mapping: "a mapping"}


@dataclass(frozen=True, slots=True)
class Field:
    """A setting that a file, the environment or a flag may give.

    Attributes
    ----------
    name : str
    kinds : tuple
        The types that it takes.
    default : object
        `MISSING` if it has none.
    """

    name: str
    kinds: tuple[Any, ...]
    default: Any

    @property
    def is_secret(self) -> bool:
        """Whether its value may be shown to nobody."""
        return SECRET.search(self.name) is not None

    def shown(self, value: Any) -> Any:
        """The value, or three stars."""
        return "***" if self.is_secret and value is not None else value

    def convert(self, value: Any, origin: str) -> Any:
        """A value from a YAML file, as the type that the setting has.

        Raises
        ------
        InvalidSetting
            If it is of another type; the message says where it stands and what is expected.
        """
        from pydantic import ConfigDict, TypeAdapter, ValidationError

        kind: Any = reduce(or_, self.kinds)
        adapter = TypeAdapter[Any](kind, config=ConfigDict(allow_inf_nan=False))
        try:
            if isinstance(value, bool) and not {bool, Any} & set(self.kinds):
                raise self._refusal(value, origin)
            return adapter.validate_python(value)
        except ValidationError:  # its own text may hold a secret
            raise self._refusal(value, origin) from None

    def convert_text(self, text: str, origin: str) -> Any:
        """A value from the environment or a flag: read as YAML, or as the text that it is where that fits."""
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        try:
            return self.convert(text if isinstance(value, str) else value, origin)
        except InvalidSetting:
            if str in self.kinds:
                return text
            raise self._refusal(text, origin) from None

    def _refusal(self, value: Any, origin: str) -> InvalidSetting:
        quote = "; put it into quotes" if str in self.kinds else ""
        expected = " or ".join(_words(kind) for kind in self.kinds)
        return InvalidSetting(
            f"{self.name}: {self.shown(value)!r} from {origin} is not {expected}, which is expected here{quote}"
        )


def fields_of(settings: type) -> dict[str, Field]:
    """The fields of a settings dataclass that a file can hold, by name."""
    hints = get_type_hints(settings)
    found = {}
    for field in fields(settings):
        kinds = tuple(_plain(hints[field.name]))
        if set(kinds) - {type(None)}:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            found[field.name] = Field(field.name, kinds, default)
    return found


def _plain(hint: Any) -> list[Any]:
    """Those members of a type that YAML can write."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return [kind for member in get_args(hint) for kind in _plain(member)]
    members = [member for member in get_args(hint) if member is not Ellipsis]
    if origin in CONTAINERS or (origin is None and hint in CONTAINERS):
        return [hint] if all(_plain(member) for member in members) else []
    return [hint] if origin is Literal or hint in (*PLAIN, Any) else []


def _words(kind: Any) -> str:
    """A type, as a person would say it."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return PLAIN.get(kind) or CONTAINERS.get(get_origin(kind) or kind) or "any value"
