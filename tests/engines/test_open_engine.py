"""From a configuration to a running engine; another one serves only if somebody asked for that, and it is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from servinglib.config import FallbackWarning, load_configuration, open_engine
from servinglib.engines.registry import ENGINES
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.engines.transformers_engine import TransformersEngine
from servinglib.errors import (
    EndpointFailed,
    EngineFailed,
    EngineUnavailable,
    InvalidSetting,
    ModelUnavailable,
    ServingError,
    UnknownName,
)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[ServingError], None]:
    """The Transformers engine loads nothing and fails as it is told."""

    def fail_with(error: ServingError) -> None:
        def load(cls: type, model: str, **options: Any) -> None:
            raise error

        monkeypatch.setattr(TransformersEngine, "load", classmethod(load))

    return fail_with


FAILURES = [
    EngineUnavailable("transformers", "a package", "make it"),
    ModelUnavailable("no such model here"),
    InvalidSetting("tensor_parallel_size=9, but torch sees 0 GPUs here"),
    EngineFailed(RuntimeError("no memory")),
    EndpointFailed("http://127.0.0.1:1/v1 can't be reached", "start the server"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_fallback_that_was_asked_for_serves_with_its_own_settings_and_a_warning(failing, error):
    failing(error)
    asked = ["fallback=simulated", "simulated.context_length=77"]
    configuration = load_configuration(environ={}, engine="transformers", settings=asked)
    with pytest.warns(FallbackWarning) as told:
        engine = open_engine(configuration)
    assert isinstance(engine, SimulatedEngine)
    assert engine.context_length == 77
    assert f"{type(error).__name__}: {error}" in str(told[0].message)
    assert "simulated serves instead, as `fallback` from --set fallback asks" in str(told[0].message)
    assert told[0].filename == __file__


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_without_a_fallback_the_error_is_the_answer(failing, error):
    failing(error)
    with pytest.raises(type(error)) as raised:
        open_engine(load_configuration(environ={}, engine="transformers"))
    assert raised.value is error


def test_a_word_that_nothing_goes_by_is_no_reason_to_fall_back(failing):
    failing(UnknownName("model", "course-tinny", ["course-tiny"]))
    configuration = load_configuration(environ={}, settings=["fallback=simulated"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnknownName, match="course-tinny"):
            open_engine(configuration)


def test_an_engine_that_loads_needs_no_fallback_and_warns_of_nothing():
    configuration = load_configuration(environ={}, engine="simulated", settings=["fallback=transformers"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(open_engine(configuration), SimulatedEngine)


def test_an_engine_that_cannot_speculate_decodes_plainly_with_a_warning_if_that_is_enough():
    asked = ["speculative=prompt-lookup", "unsupported=warn"]
    configuration = load_configuration(environ={}, engine="simulated", settings=asked)
    with pytest.warns(FallbackWarning, match=r"simulated engine can't speculate; it decodes plainly") as told:
        assert isinstance(open_engine(configuration), SimulatedEngine)
    assert told[0].filename == __file__


def test_the_settings_reach_the_engine(tiny_qwen3: str):
    settings = ["device=cpu", "dtype=float32", "threads=1", "max_num_seqs=3", "context_length=64"]
    environ = {"CONTINUOUS_KV_CACHE_MEMORY": "1MiB", "SERVINGLIB_SPECULATIVE": "prompt-lookup"}
    configuration = load_configuration(
        environ=environ, engine="continuous", model=tiny_qwen3, settings=settings
    )
    with open_engine(configuration) as engine:
        assert (engine.name, engine.context_length) == ("continuous", 64)
        engine.generate([[5, 6, 7] * 4], max_tokens=12, ignore_eos=True)
        assert engine.counters.draft_tokens, "it speculates"


def test_the_way_back_is_named_by_the_error_and_is_an_engine():
    error = EngineUnavailable("vllm", "vllm", "make vllm")
    assert "`engine: transformers`" in str(error)
    assert "transformers" in ENGINES
