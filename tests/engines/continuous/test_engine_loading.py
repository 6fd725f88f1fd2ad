"""What is refused before a model is read, and that memory is what the arithmetic says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_model

from servinglib.decoder import memory
from servinglib.decoder.attention import TorchAttention
from servinglib.decoder.memory import parse_budget, plan_memory
from servinglib.decoder.shape import DecoderShape
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import ContextTooLong, InvalidRequest, InvalidSetting, ModelUnavailable, UnknownName

USUAL = {"device": "cpu", "dtype": "float32", "threads": 1}
SHAPE = DecoderShape("qwen3", 300, 64, 2, 4, 2, 16, 96, 256, 1e-6, True, True)
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4
"""Layers, keys and values, heads, numbers per head, bytes per number."""


def load(folder: str, **options: Any) -> ContinuousEngine:
    return ContinuousEngine.load(folder, **{**USUAL, **options})


# Refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"polcy": "fcfs"}, UnknownName, r"option 'polcy' \(did you mean 'policy'\?\)"),
        ({"policy": "lifo"}, UnknownName, "policy 'lifo'.*fcfs"),
        ({"quantization": "int2"}, UnknownName, "quantization 'int2'.*int8"),
        ({"dtype": "int3"}, UnknownName, "dtype 'int3'"),
        ({"device": "tpu"}, UnknownName, "device 'tpu'"),
        ({"threads": 0}, InvalidSetting, "threads=0"),
        ({"block_size": 0}, InvalidSetting, "block_size=0"),
        ({"draft_tokens": 0}, InvalidSetting, "draft_tokens=0"),
        ({"context_length": 0}, InvalidSetting, "context_length=0"),
        ({"max_num_seqs": 0}, InvalidSetting, "max_num_seqs=0"),
        ({"max_num_seqs": 9, "max_num_batched_tokens": 8}, InvalidSetting, "max_num_batched_tokens=8"),
        ({"max_prefill_tokens": 0}, InvalidSetting, "max_prefill_tokens=0"),
    ],
)
def test_a_wrong_option_is_refused_before_the_model_is_looked_for(
    options: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        load("no such model", **options)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("use_sliding_window", True, "use_sliding_window=True"),
        ("hidden_act", "gelu", "hidden_act='gelu'"),
        (
            "rope_parameters",
            {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            "rope_type='dynamic'",
        ),
        (
            "rope_parameters",
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            "partial",
        ),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "quantization_config"),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused_by_name(
    tmp_path: Path, field: str, value: object, message: str
):
    folder = Path(save_model("qwen2", tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ModelUnavailable, match=f"{message}.*use engine='transformers'"):
        load(str(folder))


def test_a_model_of_another_family_is_refused_by_name(tmp_path: Path):
    folder = save_model("mistral", tmp_path)
    with pytest.raises(
        ModelUnavailable, match="llama, qwen2, qwen3 and not 'mistral'; use engine='transformers'"
    ):
        load(folder)


def test_a_context_longer_than_the_model_s_is_refused(tiny_qwen3: str):
    with pytest.raises(InvalidSetting, match="context_length=257, and the model's context holds 256"):
        load(tiny_qwen3, context_length=257)


def test_a_context_that_the_cache_cannot_hold_is_refused_with_the_arithmetic(tiny_qwen3: str):
    with pytest.raises(
        InvalidSetting, match=rf"context_length=200.*/ {TOKEN_BYTES:,} bytes per token = 192 tokens"
    ):
        load(tiny_qwen3, context_length=200, kv_cache_memory=195 * TOKEN_BYTES)


def test_a_prompt_longer_than_the_pool_is_refused_with_the_numbers_and_nobody_waits(tiny_qwen3: str):
    with load(tiny_qwen3, kv_cache_memory=64 * TOKEN_BYTES) as engine:
        assert engine.context_length == 64
        with pytest.raises(ContextTooLong, match=r"70 prompt tokens \+ max_tokens=1 = 71 tokens.*holds 64"):
            engine.stream([5] * 70, max_tokens=1)
        [answer] = engine.generate([[5] * 60], max_tokens=4, ignore_eos=True)
        assert len(answer.token_ids) == 4


def test_without_chunks_a_prompt_that_no_step_could_hold_is_refused_at_the_call(tiny_qwen3: str):
    limits = {"max_num_batched_tokens": 64, "max_prefill_tokens": 32, "chunked_prefill": False}
    with load(tiny_qwen3, **limits) as engine:
        with pytest.raises(InvalidRequest, match="one step, which holds 32 tokens"):
            engine.stream([5] * 40, max_tokens=2)
        assert engine.generate([[5] * 20], max_tokens=2)


def test_a_model_larger_than_the_memory_is_refused(tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 100_000)
    with pytest.raises(
        InvalidSetting,
        match=r"weights of 4 bytes, kept in two orders, are .* 0\.1 MiB of memory are free on cpu",
    ):
        load(tiny_qwen3)


def test_a_cache_larger_than_the_memory_is_refused(tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**20)
    with pytest.raises(
        InvalidSetting, match=r"kv_cache_memory='1GiB' is 1\.00 GiB, and 1\.0 MiB free memory"
    ):
        load(tiny_qwen3, kv_cache_memory="1GiB")


def test_a_cache_smaller_than_a_block_is_refused(tiny_qwen3: str):
    with pytest.raises(InvalidSetting, match=f"one block of 16 tokens .* needs {16 * TOKEN_BYTES:,}"):
        load(tiny_qwen3, kv_cache_memory=16 * TOKEN_BYTES - 1)


def test_a_draft_of_another_vocabulary_is_refused(tiny_qwen3: str, tmp_path: Path):
    other = save_model("llama", tmp_path, vocab_size=77)
    with pytest.raises(InvalidSetting, match="vocabulary of 77 tokens"):
        load(tiny_qwen3, speculative=other)


@pytest.mark.parametrize("budget", ["", "lots", "1gib", "1 TiB", "-1GiB", 0, -1, 0.0, 1.5, -0.5])
def test_a_budget_that_is_no_amount_of_memory_is_refused(budget: str | float):
    with pytest.raises(InvalidSetting, match="kv_cache_memory"):
        parse_budget(budget, 10**9)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("1GiB", 2**30),
        (" 1.5 MiB ", 1_572_864),
        ("3KB", 3000),
        ("2MB", 2_000_000),
        ("4096", 4096),
        (4096, 4096),
        (0.25, 2**18),
        (1.0, 2**20),
    ],
)
def test_a_budget_is_bytes_units_or_a_share(budget: str | float, expected: int):
    assert parse_budget(budget, 2**20) == expected


# Memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_size", [1, 16, 48])
def test_the_pages_have_the_size_that_was_told(dtype: torch.dtype, block_size: int):
    budget = 100_000
    plan = plan_memory([SHAPE], dtype.itemsize, "cpu", budget, block_size, 10**9)
    assert plan.kv_tokens == plan.num_blocks * block_size
    assert budget - block_size * plan.bytes_per_token < plan.kv_bytes <= budget
    assert plan.kv_bytes == plan.kv_tokens * plan.bytes_per_token
    attention = TorchAttention(SHAPE, plan.num_blocks, block_size, dtype)
    assert sum(page.nbytes for page in attention.pages) == plan.kv_bytes


def test_an_engine_s_pages_have_the_size_that_was_told(tiny_qwen3: str):
    with load(tiny_qwen3, kv_cache_memory=640 * TOKEN_BYTES) as engine:
        pages = engine._loop._runner.attention.pages  # type: ignore[attr-defined]
        assert engine.memory.kv_tokens == 640
        assert [page.shape[0] for page in pages] == [640, 640]
        assert "640 tokens in 40 blocks of 16" in str(engine.memory)


def test_more_than_all_sequences_can_use_is_never_allocated():
    plan = plan_memory([SHAPE], 4, "cpu", "64MiB", 16, 1000)
    assert plan.num_blocks == 63


def test_all_sequences_that_may_run_fit_at_their_longest_if_memory_allows(tiny_qwen3: str):
    with load(tiny_qwen3, context_length=250, max_num_seqs=4, kv_cache_memory="64MiB") as engine:
        engine.generate([[i + 1] * 200 for i in range(4)], max_tokens=50, ignore_eos=True)
        assert engine.statistics.num_preemptions == 0


def test_a_draft_model_s_keys_and_values_are_counted(tiny_qwen3: str, tiny_llama: str):
    with load(tiny_qwen3, speculative=tiny_llama, kv_cache_memory="1MiB") as engine:
        assert engine.memory.bytes_per_token == 2 * TOKEN_BYTES


def test_int8_weights_answer_nearly_like_those_that_they_stand_for(tmp_path: Path):
    folder = save_model("llama", tmp_path, varied=True)
    answers = []
    for options in ({}, {"quantization": "int8"}):
        with load(folder, **options) as engine:
            answers.append(engine.generate([[5, 6, 7]], max_tokens=1, logprobs=300 // 2)[0].logprobs[0])
    exact, rounded = (dict(answer.likeliest) for answer in answers)
    both = exact.keys() & rounded.keys()
    assert len(both) > 100
    assert max(abs(exact[t] - rounded[t]) for t in both if exact[t] > -6) < 0.3


def test_a_number_format_that_the_processor_lacks_is_slow_and_no_error(tiny_qwen3: str):
    with load(tiny_qwen3, dtype="float16") as engine:
        assert engine.attention == "torch"
        assert engine.generate([[5] * 20], max_tokens=2)
