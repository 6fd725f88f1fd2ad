"""Which engines there are, by name. An engine's module, and what it imports, is loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from servinglib.engines.base import Engine
from servinglib.errors import UnknownName

ENGINES = {
    "continuous": "servinglib.engines.continuous.engine:ContinuousEngine",
    "simulated": "servinglib.engines.simulated_engine:SimulatedEngine",
    "transformers": "servinglib.engines.transformers_engine:TransformersEngine",
}


def load_engine(name: str, model: str, **options: Any) -> Engine:
    """Load `model` with the engine called `name`.

    Parameters
    ----------
    name : str
        A key of `ENGINES`.
    model : str
        A model's name, path or hub id.
    **options
        What that engine's `load` takes.

    Raises
    ------
    UnknownName
        No engine, option or model goes by that name.
    """
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
    module, _, engine = ENGINES[name].partition(":")
    return getattr(import_module(module), engine).load(model, **options)
