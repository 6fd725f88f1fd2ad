"""From a model's name and some settings to a running engine; everything that can be refused is, first."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from servinglib.cache.block_pool import BlockPool
from servinglib.decoder.loading import (
    ATTENTIONS,
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
from servinglib.engines.continuous.speculative import DraftModel, Guess, GuessFunction, PromptLookup, Proposer
from servinglib.engines.transformers_engine import choose_device, choose_dtype
from servinglib.errors import InvalidSetting, UnknownName
from servinglib.models.loading import load_tokenizer
from servinglib.policies.length_prediction import LengthPredictor
from servinglib.policies.scheduling import SchedulingPolicy, scheduling_policy
from servinglib.policies.stepping import StepPlanner, check_limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from servinglib.decoder.graphs import DecodeGraphs

QUANTIZATIONS = ("int8",)
PROMPT_LOOKUP = "prompt-lookup"


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of `ContinuousEngine.load`.

    Attributes
    ----------
    policy : str or SchedulingPolicy
        Who goes first: a name of `policies.scheduling.POLICIES`, or an object of your own.
    predictor : LengthPredictor, optional
        Guesses how long answers will be, for the policy "shortest-remaining".
    device, dtype, threads, allow_download
        As for the Transformers engine.
    quantization : {"int8"}, optional
        Weights as 8-bit integers.
    kv_cache_memory : str, int or float, optional
        "1GiB", bytes, or a share of the free memory; a quarter of it on a CPU unless given.
    context_length : int, optional
        Most tokens of prompt and answer; the model's own, or what the KV cache holds, unless given.
    max_num_seqs, max_num_batched_tokens, max_prefill_tokens, chunked_prefill
        As for `StepPlanner`.
    block_size : int
        Tokens in a page of KV cache.
    prefix_caching : bool
        Whether prompts that begin alike are computed once.
    block_pool : type of BlockPool
        Keeps the books of the pages.
    speculative : str or callable, optional
        "prompt-lookup", the name of a draft model with the same vocabulary, or a function that guesses
        (`speculative.GuessFunction`).
    draft_tokens : int
        Guesses per step and sequence, if `speculative` is given.
    attention : {"auto", "numba", "torch", "triton"}
        "auto" is Triton's kernels on a GPU, and on a CPU Numba's, which know bfloat16 and float32, or else
        plain PyTorch; `engine.attention` tells.
    graphs : bool, optional
        Whether a decode step is launched as one CUDA graph; where it can be, unless given.
    overlap : bool, optional
        Whether a step is launched before the last one's tokens are read; as for `graphs`, and not with
        `speculative`, which guesses from the tokens.
    """

    policy: str | SchedulingPolicy = "fcfs"
    predictor: LengthPredictor | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    allow_download: bool | None = None
    quantization: str | None = None
    kv_cache_memory: str | int | float | None = None
    context_length: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_prefill_tokens: int = 2048
    chunked_prefill: bool = True
    block_size: int = 16
    prefix_caching: bool = True
    block_pool: type[BlockPool] = BlockPool
    speculative: str | Guess | None = None
    draft_tokens: int = 4
    attention: str = "auto"
    graphs: bool | None = None
    overlap: bool | None = None

    def __post_init__(self) -> None:
        check_limits(self.max_num_seqs, self.max_num_batched_tokens, self.max_prefill_tokens)
        if self.quantization not in (None, *QUANTIZATIONS):
            raise UnknownName("quantization", self.quantization, QUANTIZATIONS)
        if self.attention not in ("auto", *ATTENTIONS):
            raise UnknownName("attention", self.attention, ("auto", *ATTENTIONS))
        if self.overlap and self.speculative is not None:
            raise InvalidSetting(
                "overlap=True launches a step before the tokens are known from which speculative="
                f"{self.speculative!r} would guess; leave one of the two out"
            )
        for name in ("draft_tokens", "block_size", "threads", "context_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidSetting(f"{name}={value} must be at least 1")

    def on(self, device: torch.device, dtype: torch.dtype) -> Settings:
        """The same with what is left open decided for this device and number format."""
        attention = best_attention(device, dtype) if self.attention == "auto" else self.attention
        if attention == "numba" and (device.type != "cpu" or dtype not in NUMBA_FORMATS):
            raise InvalidSetting(
                f"attention='numba' needs a CPU and bfloat16 or float32; here it is {dtype} on {device}"
            )
        can = {"graphs": attention == "triton" and device.type == "cuda", "overlap": attention == "triton"}
        for name, possible in can.items():
            if getattr(self, name) and not possible:
                raise InvalidSetting(
                    f"{name}=True needs attention='triton'{' on a GPU' * (name == 'graphs')}; here it is "
                    f"{attention!r} on {device}"
                )
        overlap = can["graphs"] and self.speculative is None if self.overlap is None else self.overlap
        graphs = can["graphs"] if self.graphs is None else self.graphs
        return replace(self, attention=attention, graphs=graphs, overlap=overlap)

    @classmethod
    def names(cls) -> list[str]:
        """The options that there are."""
        return [f.name for f in fields(cls)]


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
    settings = settings.on(device, dtype)
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
