"""The real vLLM passes what every engine must, and says early and clearly what it can't do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from contract import EngineContract, Loader
from tiny_models import save_model

from servinglib.engines.base import Engine
from servinglib.engines.transformers_engine import TransformersEngine
from servinglib.engines.vllm_config import VLLMConfig
from servinglib.engines.vllm_engine import VLLMEngine
from servinglib.errors import EngineFailed, EngineUnavailable, InvalidSetting, ModelUnavailable, UnknownName

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (make vllm)")
USUAL = {"enforce_eager": True, "dtype": "float32", "cpu_kvcache_space": 0.25, "max_num_seqs": 16}


@needs_vllm
class TestVLLMEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def load(cls, tmp_path_factory: pytest.TempPathFactory) -> Loader:
        model = save_model(
            "qwen3", tmp_path_factory.mktemp("vllm"), max_position_embeddings=4096, head_dim=32
        )
        return lambda **options: VLLMEngine.load(model, **{**USUAL, **options})

    def decode(self, engine: Engine, token_ids: Sequence[int]) -> str:
        tokenizer = cast("VLLMEngine", engine)._tokenizer
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("qwen3", tmp_path_factory.mktemp("small"), head_dim=32)


# Refused before vLLM is started


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size=0 must be at least 1"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization=1.5 must lie in \(0, 1\]"),
        ({"cpu_kvcache_space": -1}, "cpu_kvcache_space=-1 must be above 0"),
        ({"gpu_memory_utilization": 0.5, "cpu_kvcache_space": 1}, "both size the KV cache"),
        ({"max_num_batched_tokens": 8, "max_num_seqs": 16}, "max_num_batched_tokens=8 is less than"),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 100, "max_model_len": 200},
            "a prompt of that length has to fit into one step",
        ),
    ],
)
def test_settings_that_can_not_be_are_refused_with_the_numbers(options: dict[str, Any], message: str):
    with pytest.raises(InvalidSetting, match=message):
        VLLMConfig(**options)


@needs_vllm
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 257}, "max_model_len=257, and the model's context holds 256"),
        ({"tensor_parallel_size": 64}, "tensor_parallel_size=64, but torch sees"),
        ({"quantization": "gptq"}, "quantization='gptq', but the checkpoint's weights are not quantized"),
        ({"quantization": "awk"}, "unknown quantization 'awk' .did you mean 'awq'"),
        ({"dtype": "int7"}, "unknown dtype 'int7'"),
        ({"speculative": "no-such-model"}, "unknown model 'no-such-model'"),
    ],
)
def test_what_model_or_machine_do_not_have_is_refused_before_any_process_starts(
    model: str, options: dict[str, Any], message: str
):
    before = psutil.Process().children(recursive=True)
    with pytest.raises((InvalidSetting, UnknownName), match=message):
        VLLMEngine.load(model, **options)
    assert psutil.Process().children(recursive=True) == before


@needs_vllm
def test_a_checkpoint_that_is_quantized_otherwise_is_refused(model: str, tmp_path: Path):
    folder = Path(shutil.copytree(model, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "awq"}})
    )
    with pytest.raises(InvalidSetting, match="weights are stored as 'awq'"):
        VLLMEngine.load(str(folder), quantization="gptq")


@needs_vllm
def test_a_model_that_does_not_exist_is_refused():
    with pytest.raises(ModelUnavailable, match="is no folder"):
        VLLMEngine.load("/no/such/model")


def test_without_vllm_the_error_names_the_command_and_the_way_back(
    model: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("servinglib.engines.vllm_engine.find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match=r"make vllm.*engine: transformers"):
        VLLMEngine.load(model)


# A running one


@needs_vllm
def test_guesses_hits_and_preemptions_are_counted_and_change_no_answer(model: str):
    again = [40 + i % 7 for i in range(200)]  # vLLM's blocks hold 128 tokens on a CPU
    with VLLMEngine.load(model, **{**USUAL, "speculative": "prompt-lookup"}) as engine:
        first, second = (engine.generate(again, max_tokens=40, ignore_eos=True)[0] for _ in range(2))
        counters = engine.counters
    with TransformersEngine.load(model, device="cpu", dtype="float32") as plain:
        [expected] = plain.generate(again, max_tokens=40, ignore_eos=True)
    assert first.token_ids == second.token_ids == expected.token_ids
    assert counters.draft_tokens
    assert counters.accepted_tokens is not None
    assert 0 <= counters.accepted_tokens <= counters.draft_tokens
    looked_up = 2 * first.prompt_tokens
    assert counters.prefix_cache_queries == looked_up
    assert 0 < (counters.prefix_cache_hits or 0) < first.prompt_tokens
    assert counters.num_preemptions == 0
    assert 0 < (counters.kv_cache_usage_peak or 0) < 1


@needs_vllm
def test_a_start_that_fails_quotes_vllm_s_reason_and_leaves_no_process(model: str):
    before = psutil.Process().children(recursive=True)
    with pytest.raises(EngineFailed, match="did not start: ToldByProcess: ValueError: No available memory"):
        VLLMEngine.load(model, **{**USUAL, "cpu_kvcache_space": 1e-5})
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert [p for p in left if "resource_tracker" not in " ".join(p.cmdline())] == []


KILLED = """
import sys
from servinglib.engines.vllm_engine import VLLMEngine
if __name__ == "__main__":
    engine = VLLMEngine.load(sys.argv[1], enforce_eager=True, dtype="float32", cpu_kvcache_space=0.25)
    print("loaded", flush=True)
    sys.stdin.read()
"""


@needs_vllm
def test_a_process_that_is_killed_takes_vllm_with_it(model: str, tmp_path: Path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), model]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert "loaded" in owner.stdout.readline()
        family = psutil.Process(owner.pid).children(recursive=True)
        assert any("EngineCore" in p.name() for p in family), "vLLM names its process so"
        owner.kill()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
