"""The exercises, one module per lesson; each holds `EXERCISES`, in the lesson's order."""

from __future__ import annotations

import importlib
import pkgutil


def ids() -> list[str]:
    """Every exercise's id, in order."""
    modules = (
        importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    )
    return [exercise.id for module in modules for exercise in module.EXERCISES]
