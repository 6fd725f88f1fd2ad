"""Loading takes numbers out of a checkpoint, runs nothing that lies in it, and fetches nothing unasked."""

import json
import pickle
import shutil

import pytest

from servinglib.errors import ModelUnavailable, UnknownName
from servinglib.models.loading import load_model
from servinglib.models.zoo import resolve


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of course-draft that a test may spoil."""
    return shutil.copytree(resolve("course-draft"), tmp_path / "checkpoint")


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def plant_code(folder, marker):
    """Python files beside the weights that leave a trace when imported, and configs that name them."""
    trace = f"open({str(marker)!r}, 'w').close()\n"
    config = "from transformers import Qwen3Config\nclass C(Qwen3Config):\n    model_type = 'planted'\n"
    model = "from transformers import Qwen3ForCausalLM\nfrom .planted_config import C\n"
    model += "class M(Qwen3ForCausalLM):\n    config_class = C\n"
    tokenizer = (
        "from transformers import PreTrainedTokenizerFast\nclass T(PreTrainedTokenizerFast):\n    pass\n"
    )
    for name, text in {
        "planted_config": config,
        "planted_model": model,
        "planted_tokenizer": tokenizer,
    }.items():
        (folder / f"{name}.py").write_text(trace + text)
    edit_json(
        folder / "config.json",
        auto_map={"AutoConfig": "planted_config.C", "AutoModelForCausalLM": "planted_model.M"},
    )
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "planted_tokenizer.T"]})


class OpensADoor:
    """A pickle that acts when it is opened."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_the_weights_come_in_the_type_that_is_asked_for():
    assert str(load_model("course-draft")[0].dtype) == "torch.float32"
    assert str(load_model("course-draft", dtype="bfloat16")[0].dtype) == "torch.bfloat16"
    assert str(load_model("course-draft", dtype="auto")[0].dtype) == "torch.bfloat16"


def test_the_model_is_ready_for_batches_of_prompts_of_unequal_length(checkpoint):
    edit_json(checkpoint / "tokenizer_config.json", padding_side="right")
    model, tokenizer = load_model(str(checkpoint))
    assert not model.training
    batch = tokenizer(["import os", "def f(x):\n    return x\n"], padding=True, return_tensors="pt")
    assert batch.attention_mask[0, 0] == 0  # padded on the left
    assert batch.attention_mask[:, -1].tolist() == [1, 1]


def test_a_checkpoint_without_padding_token_pads_with_end_of_text(checkpoint):
    edit_json(checkpoint / "tokenizer_config.json", pad_token=None)
    tokenizer = load_model(str(checkpoint))[1]
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"


def test_an_unknown_dtype_lists_the_known_ones():
    with pytest.raises(UnknownName, match="auto, bfloat16, float16, float32"):
        load_model("course-draft", dtype="int4")  # type: ignore[arg-type]


def test_a_hub_id_that_is_not_here_says_what_to_do():
    with pytest.raises(ModelUnavailable) as caught:
        load_model("no-such-organisation/no-such-model")
    for advice in (
        "SERVINGLIB_ALLOW_DOWNLOAD=1",
        "allow_download=True",
        "`hf download no-such-organisation/no-such-model`",
        "local folder",
        "course-tiny, course-draft, bench-30m, bench-0.6b",
    ):
        assert advice in str(caught.value)


def test_a_download_that_fails_says_why(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def no_network(*_, **__):
        raise LocalEntryNotFoundError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(ModelUnavailable, match=r"could not be downloaded \(no route to host\)"):
        load_model("some/model", allow_download=True)


@pytest.mark.parametrize(
    ("environment", "argument", "local_only"),
    [(None, None, True), ("1", None, False), ("0", None, True), ("1", False, True), (None, True, False)],
)
def test_the_hub_is_asked_only_when_the_user_says_so(environment, argument, local_only, monkeypatch):
    asked = []

    def snapshot_download(hub_id, *, allow_patterns, local_files_only):
        asked.append(local_files_only)
        assert not any("bin" in pattern or "py" in pattern for pattern in allow_patterns)
        return str(resolve("course-draft"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    if environment is not None:
        monkeypatch.setenv("SERVINGLIB_ALLOW_DOWNLOAD", environment)
    load_model("some/model", allow_download=argument)
    assert asked == [local_only]


def test_pickled_weights_are_refused_unopened(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    marker = tmp_path / "opened"
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(OpensADoor(marker)))
    with pytest.raises(ModelUnavailable, match=r"only as pickle files \(pytorch_model.bin\).*safetensors"):
        load_model(str(checkpoint))
    assert not marker.exists()


def test_a_pickle_beside_safetensors_is_left_alone(checkpoint, tmp_path):
    marker = tmp_path / "opened"
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(OpensADoor(marker)))
    load_model(str(checkpoint))
    assert not marker.exists()


def test_code_of_a_checkpoint_is_not_run_where_transformers_knows_the_architecture(checkpoint, tmp_path):
    marker = tmp_path / "ran"
    plant_code(checkpoint, marker)
    model, tokenizer = load_model(str(checkpoint))
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert tokenizer.decode(tokenizer("import os").input_ids) == "import os"
    assert not marker.exists()


def test_a_checkpoint_that_needs_its_own_code_is_refused_and_says_how_to_allow_it(checkpoint, tmp_path):
    marker = tmp_path / "ran"
    plant_code(checkpoint, marker)
    edit_json(checkpoint / "config.json", model_type="planted")
    with pytest.raises(ModelUnavailable, match="trust_remote_code=True"):
        load_model(str(checkpoint))
    assert not marker.exists()


def test_code_of_a_checkpoint_runs_when_the_user_trusts_it(checkpoint, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    plant_code(checkpoint, marker)
    edit_json(checkpoint / "config.json", model_type="planted")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, _ = load_model(str(checkpoint), trust_remote_code=True)
    assert type(model).__name__ == "M"
    assert marker.exists()


def test_a_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(ModelUnavailable, match=r"holds no config\.json"):
        load_model(str(tmp_path))


def test_a_folder_without_weights_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="no weights"):
        load_model(str(checkpoint))


def test_a_checkpoint_that_lacks_a_shard_names_it(checkpoint):
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match=r"lacks model-00002\.safetensors"):
        load_model(str(checkpoint))


def test_a_name_that_loads_nothing_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import servinglib.models.loading, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
