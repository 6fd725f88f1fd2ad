from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from importlib import import_module

import pytest

from servinglib.config_values import fields_of
from servinglib.engines.registry import ENGINES, load_engine, settings_of
from servinglib.engines.settings import SimulatedSettings
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import EngineUnavailable, InvalidSetting, UnknownName
from servinglib.policies.step_time import StepTime


def test_an_engine_is_loaded_by_name_with_its_options():
    engine = load_engine("simulated", "simulated", context_length=99, a=0.5, d=0.0)
    assert isinstance(engine, SimulatedEngine)
    assert engine.context_length == 99
    assert engine.step_time == StepTime(a=0.5, b=0.0005)


def test_an_unknown_engine_is_answered_with_the_known_ones():
    with pytest.raises(
        UnknownName, match=r"engine 'transformer' \(did you mean 'transformers'\?\).*simulated"
    ):
        load_engine("transformer", "course-tiny")


@pytest.mark.parametrize("name", ENGINES)
def test_every_registered_engine_refuses_unknown_options_whether_installed_or_not(name: str):
    options = {"base_url": "http://127.0.0.1:9/v1"} if name == "openai" else {}
    with pytest.raises(UnknownName, match="option 'colour'"):
        load_engine(name, "no such model", colour="red", **options)


@pytest.mark.parametrize("name", ENGINES)
def test_every_registered_engine_exists_under_its_name_and_speculates_as_the_registry_says(name: str):
    module, _, engine = ENGINES[name].engine.partition(":")
    found = getattr(import_module(module), engine)
    assert found.name == name
    if name != "openai":  # what it can do depends on the server
        assert found.capabilities.speculation == (ENGINES[name].speculation is not None)


@pytest.mark.parametrize("name", ENGINES)
def test_the_words_of_speculation_are_settings_of_the_engine(name: str):
    speculation = ENGINES[name].speculation
    wishes = [speculation(wish) for wish in ("prompt-lookup", "course-draft")] if speculation else []
    for options in wishes:
        assert set(options) <= set(fields_of(settings_of(name)))
        settings_of(name)(**options)


@pytest.mark.parametrize("name", ENGINES)
def test_the_settings_of_an_engine_are_described_field_by_field(name: str):
    settings = settings_of(name)
    assert [f.name for f in fields(settings) if f.name not in (settings.__doc__ or "")] == []


def test_the_settings_of_all_engines_are_known_without_torch_or_any_engine():
    code = (
        "import sys; from servinglib.engines.registry import ENGINES, settings_of; "
        "[settings_of(name) for name in ENGINES]; "
        "heavy = {'torch', 'transformers', 'vllm', 'sglang', 'aiohttp'} & set(sys.modules); sys.exit(str(heavy or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_an_engine_that_is_not_installed_names_the_command_and_the_way_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ENGINES, "vllm", replace(ENGINES["vllm"], package="no_such_package"))
    with pytest.raises(EngineUnavailable, match=r"`make vllm`.*`engine: transformers`") as refused:
        load_engine("vllm", "course-tiny")
    assert (refused.value.engine, refused.value.package) == ("vllm", "no_such_package")


def test_a_step_time_law_is_told_as_four_numbers_or_as_one_object():
    law = StepTime(1.0, 2.0)
    assert SimulatedSettings(step_time=law).law is law
    assert SimulatedSettings().law == SimulatedEngine.default_step_time
    with pytest.raises(InvalidSetting, match="step_time and a, c say the same thing twice"):
        SimulatedSettings(step_time=law, a=1.0, c=1.0)
    with pytest.raises(InvalidSetting, match="step time a=0"):
        SimulatedSettings(a=0, b=0, d=0)
    with pytest.raises(InvalidSetting, match="context_length=0"):
        SimulatedSettings(context_length=0)


def test_a_wrong_setting_of_our_engine_is_refused_without_a_model():
    settings = settings_of("continuous")
    for options, message in (
        ({"device": "auto:1"}, "device 'auto:1'"),
        ({"dtype": "int3"}, "dtype 'int3'"),
        ({"policy": "lifo"}, "policy 'lifo'"),
        ({"kv_cache_memory": "much"}, "kv_cache_memory='much'"),
        ({"attention": "flash"}, "attention 'flash'"),
        ({"overlap": True, "speculative": "prompt-lookup"}, "leave one of the two out"),
    ):
        with pytest.raises((InvalidSetting, UnknownName), match=message):
            settings(**options)
