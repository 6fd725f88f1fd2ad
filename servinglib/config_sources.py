"""Where settings are said: a YAML file, the environment, flags. Each word keeps its place of origin.

A clerk takes minutes: who said what, and where. What it means, and who is right when two say different
things, is decided in `servinglib.config`; here only form is judged, so that every later complaint can
name a line, a variable or a flag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from servinglib.config_values import Field
from servinglib.errors import InvalidSetting, UnknownName

NEAR = 0.85  # how alike a variable must be to one of ours to count as a misspelling of it


@dataclass(frozen=True, slots=True)
class Word:
    """One thing that was said.

    Attributes
    ----------
    section : str or None
        The engine that it concerns; None at the top of the file.
    key : str
    value : object
        None for a section of a file that says nothing.
    origin : str
        "serving.yaml:12", "$VLLM_DTYPE", "--set dtype".
    is_text : bool
        Whether the value is text that has still to be read, as from the environment.
    """

    section: str | None
    key: str
    value: Any
    origin: str
    is_text: bool = False

    def read(self, field: Field) -> Any:
        """The value, as the type that the field takes."""
        return (field.convert_text if self.is_text else field.convert)(self.value, self.origin)


def from_file(path: Path, sections: Iterable[str], top: Iterable[str]) -> Iterator[Word]:
    """What a YAML file says; `sections` and `top` are the keys that may stand at its top.

    Raises
    ------
    InvalidSetting
        No such file, no YAML, no mapping, or a key that stands there twice.
    UnknownName
        A key at the top that is neither a setting nor an engine.
    """
    loader = _loader(path)
    try:
        for key, node, line in _pairs(loader.get_single_node(), path, loader):
            origin = f"{path}:{line}"
            if key in sections:
                for name, inner, place in _pairs(node, path, loader):
                    yield Word(key, name, loader.construct_object(inner, deep=True), f"{path}:{place}")
            elif key in top:
                yield Word(None, key, loader.construct_object(node, deep=True), origin)
            else:
                raise UnknownName("key", key, [*top, *sections], origin)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InvalidSetting(
            f"{place} can't be read as YAML: {getattr(error, 'problem', None) or error}"
        ) from error
    finally:
        loader.dispose()


def _loader(path: Path) -> yaml.SafeLoader:
    try:
        return yaml.SafeLoader(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidSetting(f"the configuration {path} can't be read: {reason}; check the path") from error


def _pairs(
    node: yaml.Node | None, path: Path, loader: yaml.SafeLoader
) -> Iterator[tuple[str, yaml.Node, int]]:
    """Key, value and line of what stands in a mapping; an empty place is an empty mapping."""
    if node is None or (isinstance(node, yaml.ScalarNode) and loader.construct_object(node) is None):
        return
    if not isinstance(node, yaml.MappingNode):
        place = f"{path}:{node.start_mark.line + 1}"
        raise InvalidSetting(f"{place} must hold settings, one `key: value` a line, and holds {_kind(node)}")
    lines: dict[str, int] = {}
    for key_node, value in node.value:
        key, line = str(loader.construct_object(key_node, deep=True)), key_node.start_mark.line + 1
        if key in lines:
            raise InvalidSetting(f"{path}:{line} says {key!r} again, after line {lines[key]}; keep one")
        lines[key] = line
        yield key, value, line


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else f"{node.value!r}"


def from_environment(
    environ: Mapping[str, str], prefix: str, names: Iterable[str], section: str | None, package: str = ""
) -> Iterator[Word]:
    """What variables that begin with a prefix say; an empty variable says nothing.

    Prefixes such as `VLLM_` belong to a package as well, so a variable that is no setting of ours is left
    to it, unless it looks like a misspelt one of ours.

    Parameters
    ----------
    package : str
        The source text in which the package names its own variables.
    """
    ours = {prefix + name.upper(): name for name in names}
    for variable, text in environ.items():
        if variable in ours and text:
            yield Word(section, ours[variable], text, f"${variable}", is_text=True)
        elif variable.startswith(prefix) and variable not in ours:
            suffixes = [name.removeprefix(prefix) for name in ours]
            near = get_close_matches(variable.removeprefix(prefix), suffixes, n=1, cutoff=NEAR)
            if near and not re.search(rf"\b{re.escape(variable)}\b", package):
                raise UnknownName("variable", variable, ours, "the environment")


def variables_of(package: str | None, file: str | None) -> str:
    """The source text in which a package names its variables; nothing where it is not installed."""
    spec = find_spec(package) if package and file else None
    folders = (spec.submodule_search_locations or []) if spec else []
    found = [Path(folder, str(file)) for folder in folders]
    return "".join(path.read_text(encoding="utf-8") for path in found if path.is_file())


def from_flags(assignments: Sequence[str], sections: Iterable[str], top: Iterable[str]) -> Iterator[Word]:
    """What `key=value` and `engine.key=value` say; a bare key has the section "" until the engine is known.

    Raises
    ------
    InvalidSetting
        If there is no "=".
    UnknownName
        If what stands before the dot is no engine.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, key = path.strip().rpartition(".")
        if not equals or not key:
            raise InvalidSetting(
                f"--set {assignment!r} must be key=value or engine.key=value, such as --set max_model_len=1024"
            )
        if dot and section not in sections:
            raise UnknownName("engine", section, sections, f"--set {path}")
        top_level = not dot and key in top
        yield Word(None if top_level else section, key, text, f"--set {path.strip()}", is_text=True)
