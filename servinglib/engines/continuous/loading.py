"""From a model's name and some settings to a running engine; everything that can be refused is, first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from servinglib.decoder.loading import (
    NUMBA_FORMATS,
    Checkpoint,
    Machine,
    assemble,
    best_attention,
)
from servinglib.decoder.memory import MemoryPlan, plan_memory
from servinglib.decoder.model import Decoder
from servinglib.decoder.shape import DecoderShape
from servinglib.engines.answer import eos_ids_of
from servinglib.engines.continuous.loop import EngineLoop
from servinglib.engines.continuous.runner import Runner
from servinglib.engines.continuous.settings import PROMPT_LOOKUP, Guess, Settings
from servinglib.engines.continuous.speculative import DraftModel, GuessFunction, PromptLookup, Proposer
from servinglib.engines.transformers_engine import choose_device, choose_dtype
from servinglib.errors import InvalidSetting
from servinglib.models.loading import load_tokenizer
from servinglib.policies.scheduling import scheduling_policy
from servinglib.policies.stepping import StepPlanner

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from servinglib.decoder.graphs import DecodeGraphs


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of: the running loop, and what its face has to know of the model."""

    loop: EngineLoop
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    context_length: int
    eos_ids: frozenset[int]
    memory: MemoryPlan
    attention: str


def load(model: str, settings: Settings) -> Parts:
    """Check, size the memory, then read the weights in the engine's own thread."""
    policy = settings.policy
    policy = scheduling_policy(policy) if isinstance(policy, str) else policy
    device = torch.device(choose_device(settings.device))
    dtype = getattr(torch, choose_dtype(settings.dtype, device.type))
    settings = _decided(settings, device, dtype)
    found = Checkpoint.find(model, settings.allow_download)
    draft = _draft_checkpoint(settings, found.shape)
    memory, context = _plan_memory(settings, found.shape, draft.shape if draft else None, device, dtype)

    def build() -> tuple[Runner, StepPlanner]:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        machine = Machine(settings.attention, dtype, device, settings.quantization, settings.max_num_seqs)
        pages = memory.num_blocks, memory.block_size, context
        parts = [assemble(checkpoint, machine, *pages) for checkpoint in (found, draft) if checkpoint]
        proposer: Proposer | None = None
        if settings.speculative is not None:
            proposer = DraftModel(*parts[1]) if draft else _proposer(settings.speculative)
        planner = StepPlanner(
            settings.block_pool(memory.num_blocks, memory.block_size),
            policy,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_prefill_tokens=settings.max_prefill_tokens,
            chunked_prefill=settings.chunked_prefill,
            max_draft_tokens=settings.draft_tokens if proposer else 0,
        )
        return Runner(*parts[0], proposer, _graphs(*parts[0], settings)), planner

    tokenizer = load_tokenizer(found.folder)
    loop = EngineLoop(build, settings.prefix_caching, settings.predictor, bool(settings.overlap))
    ends = eos_ids_of(_told_eos_ids(found), tokenizer)
    return Parts(loop, tokenizer, found.shape.vocabulary, context, ends, memory, settings.attention)


def _decided(settings: Settings, device: torch.device, dtype: torch.dtype) -> Settings:
    """The settings with what they leave open decided for this device and number format."""
    attention = best_attention(device, dtype) if settings.attention == "auto" else settings.attention
    if attention == "numba" and (device.type != "cpu" or dtype not in NUMBA_FORMATS):
        raise InvalidSetting(
            f"attention='numba' needs a CPU and bfloat16 or float32; here it is {dtype} on {device}"
        )
    can = {"graphs": attention == "triton" and device.type == "cuda", "overlap": attention == "triton"}
    for name, possible in can.items():
        if getattr(settings, name) and not possible:
            raise InvalidSetting(
                f"{name}=True needs attention='triton'{' on a GPU' * (name == 'graphs')}; here it is "
                f"{attention!r} on {device}"
            )
    overlap = can["graphs"] and settings.speculative is None if settings.overlap is None else settings.overlap
    graphs = can["graphs"] if settings.graphs is None else settings.graphs
    return replace(settings, attention=attention, graphs=graphs, overlap=overlap)


def _graphs(model: Decoder, attention: Any, settings: Settings) -> DecodeGraphs | None:
    if not settings.graphs:
        return None
    from servinglib.decoder.graphs import CudaCapture, DecodeGraphs

    return DecodeGraphs(model, attention, settings.max_num_seqs, CudaCapture())


def _draft_checkpoint(settings: Settings, target: DecoderShape) -> Checkpoint | None:
    if settings.speculative == PROMPT_LOOKUP or not isinstance(settings.speculative, str):
        return None
    found = Checkpoint.find(settings.speculative, settings.allow_download)
    if found.shape.vocabulary != target.vocabulary:
        raise InvalidSetting(
            f"the draft model {settings.speculative!r} has a vocabulary of {found.shape.vocabulary:,} tokens "
            f"and the model one of {target.vocabulary:,}; a draft must share the tokenizer"
        )
    return found


def _proposer(speculative: str | Guess) -> Proposer:
    return PromptLookup() if isinstance(speculative, str) else GuessFunction(speculative)


def _plan_memory(
    settings: Settings,
    shape: DecoderShape,
    draft: DecoderShape | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[MemoryPlan, int]:
    """The memory, and the context that it allows."""
    context = min(shape.context_length, draft.context_length if draft else shape.context_length)
    asked = settings.context_length
    if asked is not None and asked > context:
        raise InvalidSetting(
            f"context_length={asked:,}, and the model's context holds {context:,}; ask for less"
        )
    context = asked or context
    memory = plan_memory(
        [shape, draft] if draft else [shape],
        dtype.itemsize,
        str(device),
        settings.kv_cache_memory,
        settings.block_size,
        settings.max_num_seqs * -(-context // settings.block_size) * settings.block_size,
        copies=2 if settings.attention == "numba" and settings.quantization is None else 1,
    )
    if asked is not None and memory.kv_tokens < asked:
        raise InvalidSetting(
            f"context_length={asked:,} does not fit: {memory}; ask for less, or raise kv_cache_memory"
        )
    return memory, min(context, memory.kv_tokens)


def _told_eos_ids(found: Checkpoint) -> int | list[int] | None:
    """What ends an answer, as the checkpoint has it."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(found.folder, local_files_only=True).eos_token_id
    except OSError:  # it has none
        return found.config.eos_token_id
