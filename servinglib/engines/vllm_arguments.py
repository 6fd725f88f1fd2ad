"""From our settings to vLLM's own: what it takes as arguments, and what it only reads from the environment."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from servinglib.engines.transformers_engine import choose_device, choose_dtype
from servinglib.engines.vllm_config import PROMPT_LOOKUP, VLLMConfig
from servinglib.models.loading import find_checkpoint

GIB = 2**30
MOST_KV_GIB = 4.0  # of a KV cache on a CPU whose size nobody has given
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}  # unless the user has set them
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""On a CPU the worker joins the engine's process: half the time to start, and faster steps on few cores."""


def quantization_methods() -> list[str]:
    """The names that this vLLM knows."""
    return list(import_module("vllm.model_executor.layers.quantization").QUANTIZATION_METHODS)


def arguments(folder: Path, config: VLLMConfig) -> dict[str, Any]:
    """vLLM's own arguments; what nobody has set is left to it."""
    device = choose_device("auto")
    dtype = "auto" if config.quantization and config.dtype == "auto" else choose_dtype(config.dtype, device)
    passed = ("gpu_memory_utilization", "max_model_len", "max_num_seqs", "max_num_batched_tokens")
    passed += ("enable_chunked_prefill", "quantization")
    given = {name: value for name in passed if (value := getattr(config, name)) is not None}
    if device == "cpu":
        if config.tensor_parallel_size == 1:
            given["distributed_executor_backend"] = "uni"
        if config.gpu_memory_utilization is None:
            given["kv_cache_memory_bytes"] = round(_kv_gib(config) * GIB)
    if config.speculative is not None:
        given["speculative_config"] = _speculative(config)
    return given | {
        "model": str(folder),
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": config.enable_prefix_caching,
        "dtype": dtype,
        "kv_cache_dtype": config.kv_cache_dtype,
        "enforce_eager": config.enforce_eager,
        "seed": config.seed,
        "trust_remote_code": config.trust_remote_code,
        "max_logprobs": -1,  # as many as the vocabulary has
        "disable_log_stats": True,  # of its own; the recorder is told all the same
    }


def _kv_gib(config: VLLMConfig) -> float:
    if config.cpu_kvcache_space is not None:
        return config.cpu_kvcache_space
    import psutil

    return min(MOST_KV_GIB, psutil.virtual_memory().available / GIB / 4)


def _speculative(config: VLLMConfig) -> dict[str, Any]:
    if config.speculative == PROMPT_LOOKUP:
        ends = {
            "prompt_lookup_min": 2,
            "prompt_lookup_max": 3,
        }  # tokens of the end that is looked up, as ours
        return {"method": "ngram", "num_speculative_tokens": config.draft_tokens, **ends}
    assert config.speculative is not None, "asked only then"
    draft = find_checkpoint(config.speculative, allow_download=config.allow_download)
    return {"model": str(draft), "num_speculative_tokens": config.draft_tokens}


def variables(config: VLLMConfig) -> dict[str, str | None]:
    """What vLLM reads from the environment only, while it starts."""
    import torch

    wanted: dict[str, str | None] = {name: value for name, value in QUIET.items() if name not in os.environ}
    if not torch.cuda.is_available() and config.tensor_parallel_size == 1:
        wanted |= ONE_PROCESS
    if config.cpu_kvcache_space is not None:  # else the variable would win
        wanted["VLLM_CPU_KVCACHE_SPACE"] = None
    # vLLM sets this one for good, and other libraries of this process would hear of it.
    method = "VLLM_WORKER_MULTIPROC_METHOD"
    return wanted | {method: os.environ.get(method)}
