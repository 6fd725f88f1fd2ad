"""Who is right when file, environment and flags say different things, and what is refused before anything loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servinglib.config import load_configuration
from servinglib.engines.registry import ENGINES
from servinglib.errors import InvalidSetting, UnknownName

FILE = """\
engine: continuous
model: some/model
continuous:
  max_num_seqs: 8
  dtype: bfloat16
  kv_cache_memory: 0.5
transformers:
  dtype: float16
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "serving.yaml").write_text(FILE)
    return tmp_path / "serving.yaml"


def written(tmp_path: Path, text: str, **arguments: Any) -> Any:
    path = tmp_path / "serving.yaml"
    path.write_text(text)
    return load_configuration(path, **{"environ": {}, **arguments})


def test_nobody_says_anything_and_the_defaults_hold():
    found = load_configuration(environ={})
    assert (found.engine, found.model, found.fallback) == ("transformers", "course-tiny", None)
    assert (found.unsupported, found.speculative, found.options) == ("refuse", None, {})


def test_a_file_speaks_over_defaults_the_environment_over_the_file_and_a_flag_over_all(file: Path):
    environ = {"CONTINUOUS_DTYPE": "float32", "CONTINUOUS_BLOCK_SIZE": "32", "SERVINGLIB_MODEL": "other"}
    found = load_configuration(file, environ=environ, settings=["block_size=64"])
    assert found.options == {"max_num_seqs": 8, "dtype": "float32", "kv_cache_memory": 0.5, "block_size": 64}
    assert (found.engine, found.model) == ("continuous", "other")
    assert load_configuration(file, environ=environ, model="third").model == "third"
    assert found.origins == {
        "engine": f"{file}:1",
        "model": "$SERVINGLIB_MODEL",
        "continuous.max_num_seqs": f"{file}:4",
        "continuous.dtype": "$CONTINUOUS_DTYPE",
        "continuous.kv_cache_memory": f"{file}:6",
        "continuous.block_size": "--set block_size",
        "transformers.dtype": f"{file}:8",
    }


def test_going_back_to_another_engine_is_one_setting(file: Path):
    for arguments in (
        {"engine": "transformers"},
        {"environ": {"SERVINGLIB_ENGINE": "transformers"}},
        {"settings": ["engine=transformers"]},
    ):
        found = load_configuration(file, **{"environ": {}, **arguments})
        assert (found.engine, found.options) == ("transformers", {"dtype": "float16"})


def test_a_file_is_read_only_if_somebody_names_it(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(file.parent)
    assert load_configuration(environ={}).engine == "transformers"
    assert load_configuration(environ={"SERVINGLIB_CONFIG": str(file)}).engine == "continuous"
    with pytest.raises(InvalidSetting, match=r"nowhere\.yaml can't be read: No such file"):
        load_configuration("nowhere.yaml", environ={"SERVINGLIB_CONFIG": str(file)})


def test_an_engine_with_a_single_model_serves_it_unless_somebody_asks_for_another():
    assert load_configuration(environ={}, engine="simulated").model == "simulated"
    assert load_configuration(environ={}, engine="simulated", model="x").model == "x"


def test_variables_of_vllm_itself_are_left_to_it_and_ours_are_heard():
    environ = {
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_TENSOR_PARALLEL_SIZE": "2",
        "VLLM_ENABLE_PREFIX_CACHING": "0",
        "VLLM_QUANTIZATION": "",
    }
    found = load_configuration(environ=environ, engine="vllm")
    assert found.options == {
        "cpu_kvcache_space": 2.0,
        "tensor_parallel_size": 2,
        "enable_prefix_caching": False,
    }


def test_a_misspelt_variable_is_refused_unless_the_package_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    environ = {"VLLM_MAX_MODL_LEN": "64"}
    with pytest.raises(UnknownName, match=r"'VLLM_MAX_MODL_LEN'.*did you mean 'VLLM_MAX_MODEL_LEN'"):
        load_configuration(environ=environ, engine="vllm")
    (tmp_path / "pretended").mkdir()
    (tmp_path / "pretended" / "envs.py").write_text("VLLM_MAX_MODL_LEN: int = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "vllm", replace(ENGINES["vllm"], package="pretended"))
    assert load_configuration(environ=environ, engine="vllm").options == {}


def test_variables_of_engines_that_do_not_serve_count_for_nothing():
    environ = {"VLLM_MAX_NUM_SEQS": "not a number", "VLLM_MAX_MODL_LEN": "1", "OPENAI_API_KEY": "sk-1"}
    assert load_configuration(environ=environ).sections == {}
    with pytest.raises(InvalidSetting, match=r"'not a number' from \$VLLM_MAX_NUM_SEQS"):
        load_configuration(environ={"VLLM_MAX_NUM_SEQS": "not a number"}, settings=["fallback=vllm"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engin: vllm", r"unknown key 'engin' from .*serving.yaml:1 \(did you mean 'engine'\?\)"),
        ("model: x\nvlm:\n  dtype: auto", r"unknown key 'vlm' from .*:2 \(did you mean 'vllm'\?\)"),
        ("engine: vlm", r"unknown engine 'vlm' from .*:1 \(did you mean 'vllm'\?\)"),
        ("fallback: transformer", r"unknown engine 'transformer' from .*:1 \(did you mean 'transformers'"),
        ("vllm:\n  max_modl_len: 1", r"vllm setting 'max_modl_len' from .*:2 \(did you mean 'max_model_len'"),
        ("continuous:\n  block_pool: x", r"unknown continuous setting 'block_pool'"),
    ],
)
def test_a_key_that_nothing_goes_by_is_refused_with_its_line_and_the_nearest(tmp_path, text, message):
    with pytest.raises(UnknownName, match=message):
        written(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- engine", "serving.yaml:1 must hold settings.*a list"),
        ("transformers", "serving.yaml:1 must hold settings.*'transformers'"),
        ("vllm: 3", "serving.yaml:1 must hold settings.*'3'"),
        ("engine: a\nmodel: [1", "serving.yaml:2 can't be read as YAML"),
        ("model: x\nengine: !!python/name:os.system x", "serving.yaml:2 can't be read as YAML"),
        ("model: x\nengine: vllm\nmodel: y", "serving.yaml:3 says 'model' again, after line 1"),
        ("vllm:\n  seed: 1\n  seed: 2", "serving.yaml:3 says 'seed' again, after line 2"),
        ("model: \x00", "can't be read"),
        ("unsupported: maybe", "'maybe' from .*:1 is not one of refuse, warn"),
        ("engine: vllm\nfallback: vllm", "fallback='vllm' from .*:2 is the engine itself"),
    ],
)
def test_a_file_that_says_nothing_clear_is_refused_with_its_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(InvalidSetting, match=message):
        written(tmp_path, text)


def test_an_empty_file_and_an_empty_section_say_nothing(tmp_path: Path):
    assert written(tmp_path, "").sections == {}
    assert written(tmp_path, "# nothing\nvllm:\n").sections == {}


def test_a_value_outside_its_domain_is_refused_with_the_place_that_said_it(tmp_path: Path):
    with pytest.raises(InvalidSetting, match=r"vllm: gpu_memory_utilization=1.5.*from .*serving.yaml:3"):
        written(tmp_path, "engine: vllm\nvllm:\n  gpu_memory_utilization: 1.5")
    both = {"VLLM_CPU_KVCACHE_SPACE": "2"}
    with pytest.raises(
        InvalidSetting, match=r"both size the KV cache.*:3, cpu_kvcache_space from \$VLLM_CPU"
    ):
        written(tmp_path, "engine: vllm\nvllm:\n  gpu_memory_utilization: 0.5", environ=both)
    with pytest.raises(InvalidSetting, match=r"a=-1.0.*\(a from --set a\)"):
        load_configuration(environ={}, engine="simulated", settings=["a=-1"])


def test_the_section_of_the_fallback_is_checked_before_the_engine_loads(tmp_path: Path):
    with pytest.raises(InvalidSetting, match=r"transformers: unknown dtype 'int3'.*dtype from .*:3"):
        written(tmp_path, "fallback: transformers\ntransformers:\n  dtype: int3\nengine: vllm")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["max_num_seqs"], InvalidSetting, "'max_num_seqs' must be key=value"),
        (["=3"], InvalidSetting, "'=3' must be key=value"),
        (
            ["max_num_seq=3"],
            UnknownName,
            r"'max_num_seq' from --set max_num_seq \(did you mean 'max_num_seqs'",
        ),
        (["vlm.dtype=auto"], UnknownName, "engine 'vlm' from --set vlm.dtype"),
        (["vllm.dtype=auto"], InvalidSetting, "concerns vllm, and what serves is continuous; leave it out"),
        (["block_size=8", "continuous.block_size=9"], InvalidSetting, "two values, '8' and '9'"),
        (["engine=vllm"], InvalidSetting, "--engine and --set engine give engine two values"),
    ],
)
def test_a_flag_that_nothing_hears_or_that_contradicts_another_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        load_configuration(environ={}, engine="continuous", settings=settings)


def test_a_flag_may_concern_the_fallback():
    settings = ["fallback=transformers", "transformers.dtype=float32", "continuous.block_size=8"]
    found = load_configuration(environ={}, engine="continuous", settings=settings)
    assert found.options_of("transformers") == {"dtype": "float32"}
    assert found.options == {"block_size": 8}


@pytest.mark.parametrize(
    ("engine", "wish", "options"),
    [
        ("continuous", "prompt-lookup", {"speculative": "prompt-lookup"}),
        ("vllm", "course-draft", {"speculative": "course-draft"}),
        ("sglang", "prompt-lookup", {"speculative_algorithm": "NGRAM"}),
        (
            "sglang",
            "course-draft",
            {"speculative_algorithm": "STANDALONE", "speculative_draft_model_path": "course-draft"},
        ),
    ],
)
def test_speculation_is_asked_for_in_one_word_and_told_to_each_engine_in_its_own(engine, wish, options):
    found = load_configuration(environ={}, engine=engine, settings=[f"speculative={wish}"])
    assert found.options == options


def test_an_engine_without_speculation_refuses_it_unless_a_warning_is_enough():
    environ = {"SERVINGLIB_SPECULATIVE": "prompt-lookup"}
    message = (
        r"from \$SERVINGLIB_SPECULATIVE: the transformers engine can't speculate.*continuous, sglang, vllm"
    )
    with pytest.raises(InvalidSetting, match=message):
        load_configuration(environ=environ)
    with pytest.raises(InvalidSetting, match=message):
        load_configuration(environ=environ, engine="vllm", settings=["fallback=transformers"])
    found = load_configuration(environ={**environ, "SERVINGLIB_UNSUPPORTED": "warn"})
    assert found.options == {}


def test_speculation_said_in_two_ways_is_refused_if_they_differ(tmp_path: Path):
    text = "engine: continuous\nspeculative: prompt-lookup\ncontinuous:\n  speculative: "
    with pytest.raises(InvalidSetting, match=r"from .*:2 contradicts speculative='course-draft' from .*:4"):
        written(tmp_path, text + "course-draft")
    assert written(tmp_path, text + "prompt-lookup").options == {"speculative": "prompt-lookup"}


def test_a_configuration_shows_no_secret():
    environ = {"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    found = load_configuration(environ=environ, engine="openai")
    assert found.options["api_key"] == "sk-secret"
    assert "sk-secret" not in repr(found)
