"""Which engines there are, by name. An engine's module, and what it imports, is loaded on first use.

A telephone book: it names who can be called and on which number, and nobody in it is rung up for that.
Whoever needs to know an engine's name, options or package reads it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from servinglib.engines.base import Engine
from servinglib.engines.settings import checked
from servinglib.errors import EngineUnavailable, UnknownName


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """Where an engine is found.

    Attributes
    ----------
    engine, settings : str
        The engine's class and the dataclass of its options, as "module:Class". The second imports
        no torch and no package of others.
    package, install : str, optional
        What must be importable beside the course's own packages, and the command that installs it.
    variables : str, optional
        The file of `package` that names the environment variables which are its own.
    only_model : str, optional
        The one model that the engine serves, if there is only one.
    speculation : callable, optional
        From "prompt-lookup" or a draft model to the options with which this engine speculates so; None
        where it can't.
    """

    engine: str
    settings: str
    package: str | None = None
    install: str = ""
    variables: str | None = None
    only_model: str | None = None
    speculation: Callable[[str], dict[str, str]] | None = None

    @property
    def is_installed(self) -> bool:
        """Whether its package is here; that is looked up and not imported."""
        return self.package is None or find_spec(self.package) is not None


def _speculative(wish: str) -> dict[str, str]:
    return {"speculative": wish}


def _sglang_speculation(wish: str) -> dict[str, str]:
    if wish == "prompt-lookup":
        return {"speculative_algorithm": "NGRAM"}
    return {"speculative_algorithm": "STANDALONE", "speculative_draft_model_path": wish}


ENGINES = {
    "continuous": EngineEntry(
        "servinglib.engines.continuous.engine:ContinuousEngine",
        "servinglib.engines.continuous.settings:Settings",
        speculation=_speculative,
    ),
    "openai": EngineEntry(
        "servinglib.engines.openai_engine:OpenAIEngine",
        "servinglib.engines.openai_settings:OpenAISettings",
        "aiohttp",
        "pip install aiohttp",
    ),
    "sglang": EngineEntry(
        "servinglib.engines.sglang_engine:SGLangEngine",
        "servinglib.engines.sglang_config:SGLangConfig",
        "sglang",
        "python -m venv .venv-sglang && .venv-sglang/bin/pip install -e '.[models]' 'sglang==0.5.23'"
        " (it needs an NVIDIA GPU)",
        "srt/environ.py",
        speculation=_sglang_speculation,
    ),
    "simulated": EngineEntry(
        "servinglib.engines.simulated_engine:SimulatedEngine",
        "servinglib.engines.settings:SimulatedSettings",
        only_model="simulated",
    ),
    "transformers": EngineEntry(
        "servinglib.engines.transformers_engine:TransformersEngine",
        "servinglib.engines.settings:TransformersSettings",
    ),
    "vllm": EngineEntry(
        "servinglib.engines.vllm_engine:VLLMEngine",
        "servinglib.engines.vllm_config:VLLMConfig",
        "vllm",
        "make vllm",
        "envs.py",
        speculation=_speculative,
    ),
}


def entry(name: str, origin: str | None = None) -> EngineEntry:
    """The entry of an engine; an unknown name is answered with the nearest, and with where it was said."""
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES, origin)
    return ENGINES[name]


def settings_of(name: str) -> type:
    """The dataclass of an engine's options."""
    return _found(entry(name).settings)


def load_engine(name: str, model: str, **options: Any) -> Engine:
    """Load `model` with the engine called `name`.

    Parameters
    ----------
    name : str
        A key of `ENGINES`.
    model : str
        A model's name, path or hub id.
    **options
        Fields of `settings_of(name)`.

    Raises
    ------
    UnknownName, InvalidSetting
        No engine, option or model goes by that name, or an option makes no sense.
    EngineUnavailable
        The engine's package is not installed; the message says how to install it, or go back.
    """
    found = entry(name)
    checked(settings_of(name), options)  # a wrong option is refused before anything heavy is imported
    if found.package is not None and not found.is_installed:
        raise EngineUnavailable(name, found.package, found.install)
    return _found(found.engine).load(model, **options)


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
