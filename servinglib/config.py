"""Which engine serves, with which settings: one file, and whoever speaks later is right.

A restaurant's standing orders hang in the kitchen (`serving.yaml`), the manager's note of today goes
before them (the environment), and what the guest says at the table before both (flags):

    default < serving.yaml < environment < flag

    engine: vllm              # switching back is this one word: transformers
    model: course-tiny
    fallback: transformers    # only if asked, and with a warning that names the reason
    vllm:
      max_model_len: 1024

The file is read if `--config` or SERVINGLIB_CONFIG names it, and never by itself. Variables are
SERVINGLIB_ENGINE, SERVINGLIB_MODEL and so on for what stands at the top, and <ENGINE>_<SETTING>, such as
VLLM_MAX_MODEL_LEN, for the engine and its fallback; those of other engines count for nothing, and
`servinglib config show` tells of them. All is checked before anything loads.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from servinglib.config_choices import TOP, Choices, Configuration, check
from servinglib.config_sources import Word, from_environment, from_file, from_flags, variables_of
from servinglib.config_values import Field, fields_of
from servinglib.engines.base import Engine
from servinglib.engines.registry import ENGINES, entry, load_engine, settings_of
from servinglib.errors import (
    EndpointFailed,
    EngineFailed,
    EngineUnavailable,
    InvalidSetting,
    ModelUnavailable,
    UnknownName,
)

CAN_FALL_BACK = (EngineUnavailable, ModelUnavailable, InvalidSetting, EngineFailed, EndpointFailed)


class FallbackWarning(UserWarning):
    """Something else is served than was asked for first, as the configuration allows."""


def load_configuration(
    file: str | Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    engine: str | None = None,
    model: str | None = None,
    settings: Sequence[str] = (),
) -> Configuration:
    """Read and check what file, environment and flags say; nothing is loaded.

    Parameters
    ----------
    file : str or Path, optional
        A YAML file; the one that SERVINGLIB_CONFIG names, unless given.
    environ : mapping, optional
        The environment; that of the process unless given.
    engine, model : str, optional
        As the flags `--engine` and `--model`.
    settings : sequence of str
        As the flag `--set`: "max_model_len=1024" for the engine that is chosen, or "vllm.dtype=float32".

    Raises
    ------
    UnknownName
        A key, engine or variable that nothing goes by, with the nearest and where it was said.
    InvalidSetting
        No such file or no YAML; a value of a wrong type or outside its domain; two that contradict.
    """
    environ = os.environ if environ is None else environ
    ambient = list(from_environment(environ, "SERVINGLIB_", [*TOP, "config"], None))
    named = next((word.value for word in ambient if word.key == "config"), None)
    path = file or named
    written = list(from_file(Path(path), ENGINES, TOP)) if path else []
    short = {"engine": engine, "model": model}
    flags = [Word(None, key, text, f"--{key}", True) for key, text in short.items() if text is not None]
    flags += from_flags(settings, ENGINES, TOP)

    choices, origins = _choices([*written, *ambient, *flags])
    used = [choices["engine"], choices["fallback"]] if choices.get("fallback") else [choices["engine"]]
    flags = [_addressed(word, used) for word in flags]
    _refuse_contradictions(flags)
    sections, more = _sections([*written, *_variables(environ, used), *flags])
    found = Configuration(**choices, sections=sections, origins={**origins, **more})
    check(found)
    return found


def open_engine(configuration: Configuration) -> Engine:
    """Load the engine; if that fails and a fallback was asked for, warn and load the fallback.

    Raises
    ------
    ServingError
        What the engine's `load` raises, or the fallback's.
    """
    check(configuration)
    try:
        return _load(configuration, configuration.engine)
    except CAN_FALL_BACK as error:
        if configuration.fallback is None:
            raise
        warnings.warn(
            f"the {configuration.engine} engine could not be loaded ({type(error).__name__}: {error}); "
            f"{configuration.fallback} serves instead, as `fallback` from {configuration.said('fallback')} asks",
            FallbackWarning,
            stacklevel=2,
        )
        return _load(configuration, configuration.fallback)


def _load(configuration: Configuration, engine: str) -> Engine:
    if wish := configuration.unfulfilled(engine):
        text = f"{wish}; it decodes plainly, as `unsupported: warn` from {configuration.said('unsupported')} asks"
        warnings.warn(text, FallbackWarning, stacklevel=3)
    return load_engine(engine, configuration.model_of(engine), **configuration.options_of(engine))


def _choices(words: Iterable[Word]) -> tuple[dict[str, Any], dict[str, str]]:
    """What stands at the top, and where it was said; the last word counts."""
    said = {word.key: word for word in words if word.section is None and word.key in TOP}
    origins = {key: word.origin for key, word in said.items()}
    choices = {"engine": Choices().engine} | {key: word.read(TOP[key]) for key, word in said.items()}
    engine, fallback = choices["engine"], choices.get("fallback")
    only_model = entry(engine, origins.get("engine")).only_model
    if fallback is not None:
        entry(fallback, origins["fallback"])
    if fallback == engine:
        raise InvalidSetting(
            f"fallback={fallback!r} from {origins['fallback']} is the engine itself; name another"
        )
    return {"model": only_model or Choices().model} | choices, origins


def _addressed(word: Word, used: Sequence[str]) -> Word:
    """A flag's word with the engine that it concerns, which must be one that may serve."""
    if word.section is None or word.section in used:
        return word
    if word.section:
        raise InvalidSetting(
            f"{word.origin} concerns {word.section}, and what serves is {' or '.join(used)}; leave it out"
        )
    names = fields_of(settings_of(used[0]))
    if word.key not in names:
        raise UnknownName(f"{used[0]} setting", word.key, {*names, *TOP}, word.origin)
    return Word(used[0], word.key, word.value, word.origin, word.is_text)


def _refuse_contradictions(flags: Iterable[Word]) -> None:
    said: dict[tuple[str | None, str], Word] = {}
    for word in flags:
        other = said.setdefault((word.section, word.key), word)
        if other.value != word.value:
            raise InvalidSetting(
                f"{other.origin} and {word.origin} give {word.key} two values, {other.value!r} and "
                f"{word.value!r}; keep one"
            )


def _variables(environ: Mapping[str, str], used: Iterable[str]) -> Iterable[Word]:
    for engine in used:
        found, names = entry(engine), fields_of(settings_of(engine))
        package = variables_of(found.package, found.variables)
        yield from from_environment(environ, f"{engine.upper()}_", names, engine, package)


def _sections(words: Iterable[Word]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The engines' settings and where they were said; the last word counts."""
    sections: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    for word in words:
        if word.section is None:
            continue
        names: dict[str, Field] = fields_of(settings_of(word.section))
        if word.key not in names:
            raise UnknownName(f"{word.section} setting", word.key, names, word.origin)
        sections.setdefault(word.section, {})[word.key] = word.read(names[word.key])
        origins[f"{word.section}.{word.key}"] = word.origin
    return sections, origins
