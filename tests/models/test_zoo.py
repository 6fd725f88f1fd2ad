"""Names become folders, and nothing else happens on the way."""

import pytest

from servinglib.errors import ModelUnavailable, UnknownName
from servinglib.models.bench import cache_directory
from servinglib.models.shapes import BENCH_SHAPES, COURSE_SHAPES, qwen3_config
from servinglib.models.zoo import SHIPPED_DIRECTORY, known_models, resolve


def test_a_shipped_model_is_a_folder_of_the_package():
    assert resolve("course-tiny") == SHIPPED_DIRECTORY / "course-tiny"
    assert (SHIPPED_DIRECTORY / "course-tiny" / "model.safetensors").is_file()


def test_any_folder_of_the_user_is_taken_as_it_is(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


def test_a_folder_cannot_take_the_name_of_a_shipped_model(tmp_path, monkeypatch):
    (tmp_path / "course-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("course-tiny") == SHIPPED_DIRECTORY / "course-tiny"


def test_a_hub_id_is_handed_on_without_being_fetched():
    assert resolve("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'course-tiny'") as caught:
        resolve("course-tyni")
    assert caught.value.known == sorted(known_models())
    for name in ("course-tiny", "course-draft", "bench-30m", "bench-0.6b"):
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "~/models/nothing-here", "a/b/c", "x/y/"])
def test_a_path_where_nothing_is_says_so(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelUnavailable, match=r"is no folder; give a folder that holds config.json"):
        resolve(name)


def test_a_file_is_no_model(tmp_path, monkeypatch):
    (tmp_path / "weights").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelUnavailable, match="is no folder"):
        resolve("weights")


def test_the_empty_name_is_unknown():
    with pytest.raises(UnknownName):
        resolve("")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("course-tiny", 4_197_120),
        ("course-draft", 918_400),
        ("bench-30m", 29_369_856),
        ("bench-0.6b", 596_049_920),  # what Qwen3-0.6B has
    ],
)
def test_the_count_of_weights_is_that_of_the_real_model(name, parameters):
    import torch
    from transformers import Qwen3ForCausalLM

    shape = {**COURSE_SHAPES, **BENCH_SHAPES}[name]
    with torch.device("meta"):
        model = Qwen3ForCausalLM(qwen3_config(shape))
    assert known_models()[name].parameters == model.num_parameters() == parameters


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    assert cache_directory().name.startswith("zoo-cache")
    monkeypatch.delenv("SERVINGLIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "servinglib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "servinglib"
