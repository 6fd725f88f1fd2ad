"""Who is compared, and what each is told: checked before anything starts, and alike where it must be.

Before a race the scales and the rule book come out: same number format, room for the largest batch, context
for the longest request. What one engine alone is told (`vllm.enforce_eager=true`) stands in the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from servinglib.bench.engine_figures import Plan
from servinglib.config import load_configuration
from servinglib.config_choices import TOP
from servinglib.config_sources import from_flags
from servinglib.config_values import fields_of
from servinglib.engines.registry import ENGINES, entry, settings_of
from servinglib.errors import EngineUnavailable, InvalidSetting

GPU_SHARE = 0.8  # of the GPU's memory, for all engines together
COMPUTES = {
    "continuous": "torch",
    "transformers": "transformers",
}  # of those that need no package of their own


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What an engine's process is told; `shown` are the options with secrets hidden."""

    engine: str
    model: str
    options: dict[str, Any]
    shown: dict[str, Any]


def configure(
    model: str, engines: Sequence[str], plan: Plan, settings: Sequence[str], dtype: str
) -> tuple[list[EngineSetup], str, str]:
    """The engines' set-ups, and the device and the number format that all have.

    Raises
    ------
    UnknownName, InvalidSetting
        Of an engine, an option or a value; or the engines would not be told the same.
    EngineUnavailable
        An engine's package is not installed; the message says how to install it.
    """
    if not engines or len(set(engines)) < len(engines):
        raise InvalidSetting(f"engines={list(engines)} must name some engines, and each once")
    for name in engines:
        _check_installed(name)
    said = _by_engine(settings, engines)
    from servinglib.engines.transformers_engine import choose_device, choose_dtype

    device = choose_device("auto")
    dtype = choose_dtype(dtype, device)
    common = _common(plan, dtype, GPU_SHARE / len(engines) if device == "cuda" else None)
    return [_setup(name, model, said[name], common) for name in engines], device, dtype


@cache  # looking through all that is installed takes half a second
def package_of(engine: str) -> str:
    """Name and version of the package that computes; that of vLLM has one of two names."""
    module = entry(engine).package or COMPUTES.get(engine, "servinglib")
    name = metadata.packages_distributions().get(module, [module])[0]
    return f"{name} {metadata.version(name)}"


def _check_installed(name: str) -> None:
    found = entry(name)
    if found.package is not None and not found.is_installed:
        raise EngineUnavailable(name, found.package, found.install)


def _by_engine(settings: Iterable[str], engines: Sequence[str]) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {name: [] for name in engines}
    for text in settings:
        [word] = from_flags([text], ENGINES, TOP)
        if word.section not in said:
            raise InvalidSetting(
                f"--set {text} must say which of the engines {', '.join(engines)} it concerns, such as "
                f"--set {engines[0]}.dtype=float32"
            )
        said[word.section].append(text)
    return said


def _common(plan: Plan, dtype: str, share: float | None) -> dict[str, Any]:
    """What every engine is told that has a setting of that name and was not told otherwise."""
    largest = max(plan.batch_sizes)
    told = {
        "dtype": dtype,
        "max_num_seqs": largest,
        "max_running_requests": largest,
        "max_model_len": plan.longest,
    }
    memory = dict.fromkeys(("gpu_memory_utilization", "mem_fraction_static", "kv_cache_memory"), share)
    return told if share is None else told | memory


def _setup(name: str, model: str, said: Sequence[str], common: dict[str, Any]) -> EngineSetup:
    configuration = load_configuration(engine=name, model=entry(name).only_model or model, settings=said)
    known = fields_of(settings_of(name))
    options = {key: value for key, value in common.items() if key in known} | configuration.options
    if "dtype" in known and options["dtype"] not in ("auto", common["dtype"]):
        raise InvalidSetting(
            f"{name}.dtype={options['dtype']} is not {common['dtype']}, which the others compute in; give one "
            f"--dtype for all"
        )
    options |= {"dtype": common["dtype"]} if "dtype" in known else {}
    shown = {key: known[key].shown(value) for key, value in options.items()}
    return EngineSetup(name, configuration.model, options, shown)
