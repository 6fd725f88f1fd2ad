"""What was chosen: engine, model, fallback and every setting that somebody gave, each with its origin.

The order slip as it goes to the kitchen: complete, legible, and looked through once more at the pass,
since two lines of it may be right alone and wrong together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

from servinglib.config_values import fields_of
from servinglib.engines.registry import ENGINES, entry, settings_of
from servinglib.engines.settings import checked
from servinglib.errors import InvalidSetting, ServingError


@dataclass(frozen=True, slots=True)
class Choices:
    """What stands at the top of the file.

    Attributes
    ----------
    engine, model : str
    fallback : str, optional
        The engine that takes over if the first can't be loaded.
    unsupported : {"refuse", "warn"}
        What becomes of a wish that the engine can't fulfil: an error, or a warning and plain serving.
    speculative : str, optional
        "prompt-lookup" or a draft model; every engine that can speculate understands it in its own words.
    """

    engine: str = "transformers"
    model: str = "course-tiny"
    fallback: str | None = None
    unsupported: Literal["refuse", "warn"] = "refuse"
    speculative: str | None = None


TOP = fields_of(Choices)


@dataclass(frozen=True, slots=True)
class Configuration(Choices):
    """All that was said, checked.

    Attributes
    ----------
    sections : dict of str to dict
        The settings that somebody gave, by engine; defaults stay with the engines.
    origins : dict of str to str
        Where each was given, by key ("engine", "vllm.dtype").
    """

    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)  # may hold secrets
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def used(self) -> list[str]:
        """The engine, and its fallback if there is one."""
        return [self.engine, self.fallback] if self.fallback else [self.engine]

    @property
    def options(self) -> dict[str, Any]:
        """What the engine is told."""
        return self.options_of(self.engine)

    def said(self, key: str) -> str:
        """Where something was said; what nobody said is a default."""
        return self.origins.get(key, "default")

    def options_of(self, engine: str) -> dict[str, Any]:
        """What an engine would be told: its section, and how it fulfils the wishes that it can."""
        return {**self.sections.get(engine, {}), **self.fulfilled(engine)}

    def fulfilled(self, engine: str) -> dict[str, Any]:
        """The options with which an engine does what was said at the top for all engines."""
        speculation = entry(engine).speculation
        return speculation(self.speculative) if self.speculative and speculation else {}

    def model_of(self, engine: str) -> str:
        """The model that an engine would be given; a fallback that has only one serves that."""
        return self.model if engine == self.engine else entry(engine).only_model or self.model

    def origin(self, engine: str, key: str) -> str:
        """Where an engine's setting was said."""
        return self.said("speculative" if key in self.fulfilled(engine) else f"{engine}.{key}")

    def unfulfilled(self, engine: str) -> str | None:
        """The wish that an engine can't fulfil, in words."""
        if self.speculative is None or entry(engine).speculation:
            return None
        place = self.said("speculative")
        return f"speculative={self.speculative!r} from {place}: the {engine} engine can't speculate"


def check(found: Configuration) -> None:
    """Refuse settings outside their domains, wishes that nobody can fulfil, and words against words."""
    for engine in found.used:
        wish = found.unfulfilled(engine)
        if wish and found.unsupported == "refuse":
            able = ", ".join(name for name, known in ENGINES.items() if known.speculation)
            raise InvalidSetting(
                f"{wish}; leave it out, take an engine that can ({able}), or have it decode plainly with "
                f"`unsupported: warn`"
            )
        own = found.sections.get(engine, {})
        for key, value in found.fulfilled(engine).items():
            if own.get(key, value) != value:
                raise InvalidSetting(
                    f"speculative={found.speculative!r} from {found.said('speculative')} contradicts "
                    f"{key}={own[key]!r} from {found.said(f'{engine}.{key}')}; keep one"
                )
        _check_section(found, engine)


def _check_section(found: Configuration, engine: str) -> None:
    options, kind = found.options_of(engine), settings_of(engine)
    missing = [f.name for f in fields_of(kind).values() if f.default is MISSING and f.name not in options]
    if missing:
        raise InvalidSetting(f"the {engine} engine needs {', '.join(missing)}; give it under `{engine}:`")
    try:
        checked(kind, options)
    except ServingError as error:
        told = [key for key in options if _mentions(str(error), key)]
        places = ", ".join(f"{key} from {found.origin(engine, key)}" for key in told)
        raise InvalidSetting(f"{engine}: {error}{f' ({places})' * bool(places)}") from error


def _mentions(text: str, key: str) -> bool:
    """Whether a message is about a setting; a name of one letter may be a word of its own."""
    return f"{key}=" in text if len(key) == 1 else re.search(rf"\b{key}\b", text) is not None
