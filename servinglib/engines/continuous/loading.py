"""From a model's name and some settings to a running engine; everything that can be refused is, first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from servinglib.cache.block_pool import BlockPool
from servinglib.engines.continuous.attention import TorchAttention
from servinglib.engines.continuous.linear import linear_class
from servinglib.engines.continuous.loop import EngineLoop
from servinglib.engines.continuous.memory import MemoryPlan, plan_memory
from servinglib.engines.continuous.model import Decoder, RotaryTable, TorchOperations, Weights
from servinglib.engines.continuous.pages import Span
from servinglib.engines.continuous.runner import Runner
from servinglib.engines.continuous.shape import DecoderShape
from servinglib.engines.continuous.speculative import DraftModel, Guess, GuessFunction, PromptLookup, Proposer
from servinglib.engines.transformers_engine import choose_device, choose_dtype
from servinglib.errors import InvalidSetting, UnknownName
from servinglib.models.loading import find_checkpoint, load_tokenizer
from servinglib.policies.length_prediction import LengthPredictor
from servinglib.policies.scheduling import SchedulingPolicy, scheduling_policy
from servinglib.policies.sequence import SequenceState
from servinglib.policies.stepping import StepPlanner, check_limits

if TYPE_CHECKING:
    from servinglib.engines.continuous.engine import ContinuousEngine
    from servinglib.engines.continuous.graphs import DecodeGraphs

QUANTIZATIONS = ("int8",)
NUMBA_FORMATS = (torch.bfloat16, torch.float32)
ATTENTIONS = ("auto", "numba", "torch", "triton")
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
        if self.attention not in ATTENTIONS:
            raise UnknownName("attention", self.attention, ATTENTIONS)
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
        attention = self.attention
        if attention == "auto":
            on_cpu = "numba" if dtype in NUMBA_FORMATS else "torch"
            attention = "triton" if device.type == "cuda" else on_cpu
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
class _Checkpoint:
    """A model's files, read as far as its sizes."""

    folder: Path
    config: Any
    shape: DecoderShape

    @classmethod
    def find(cls, name: str, allow_download: bool | None) -> _Checkpoint:
        folder = find_checkpoint(name, allow_download=allow_download)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return cls(folder, config, DecoderShape.from_config(config))


def load(make: Callable[..., ContinuousEngine], model: str, settings: Settings) -> ContinuousEngine:
    """Check, size the memory, then read the weights in the engine's own thread."""
    policy = settings.policy
    policy = scheduling_policy(policy) if isinstance(policy, str) else policy
    device = torch.device(choose_device(settings.device))
    dtype = getattr(torch, choose_dtype(settings.dtype, device.type))
    settings = settings.on(device, dtype)
    found = _Checkpoint.find(model, settings.allow_download)
    draft = _draft_checkpoint(settings, found.shape)
    memory, context = _plan_memory(settings, found.shape, draft.shape if draft else None, device, dtype)

    def build() -> tuple[Runner, StepPlanner]:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        parts = [_load_decoder(c, settings, memory, context, device, dtype) for c in (found, draft) if c]
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
    eos_ids = _eos_ids(found, tokenizer)
    engine = make(loop, tokenizer, model, found.shape.vocabulary, context, eos_ids, memory)
    engine.attention = settings.attention
    return engine


def _load_decoder(
    found: _Checkpoint,
    settings: Settings,
    memory: MemoryPlan,
    context: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Decoder, Any]:
    """The model and the attention that its operations ask for."""
    with torch.inference_mode():
        rope, pages = RotaryTable(found.config, context, device), (memory.num_blocks, memory.block_size)
        if settings.attention == "triton":
            from servinglib.engines.continuous.paged_triton import FusedOperations, TritonAttention

            operations = FusedOperations(found.shape, rope)
            rows = -(-settings.max_num_seqs // 8) * 8  # as a graph's rows
            attention = TritonAttention(found.shape, *pages, dtype, device, rows, context)
        elif settings.attention == "numba":
            from servinglib.engines.continuous.cpu import NumbaAttention, NumbaOperations

            operations = NumbaOperations(found.shape, rope, dtype)
            attention = NumbaAttention(found.shape, *pages, dtype)
        else:
            operations = TorchOperations(found.shape, rope)
            attention = TorchAttention(found.shape, *pages, dtype, device)
        make_linear = linear_class(settings.quantization, dtype, device)
        decoder = Decoder(found.shape, Weights(found.folder, dtype, device), make_linear, operations)
        if settings.attention == "numba":  # compiles on first use, which had better not be a request's
            attention.prepare([Span(SequenceState(None, 1, 1, blocks=[0]), 0, 1)], [])
            zero = torch.zeros(1, dtype=torch.int64)
            decoder.forward(zero, zero, attention, zero)
        return decoder, attention


def _graphs(model: Decoder, attention: Any, settings: Settings) -> DecodeGraphs | None:
    if not settings.graphs:
        return None
    from servinglib.engines.continuous.graphs import CudaCapture, DecodeGraphs

    return DecodeGraphs(model, attention, settings.max_num_seqs, CudaCapture())


def _draft_checkpoint(settings: Settings, target: DecoderShape) -> _Checkpoint | None:
    if settings.speculative == PROMPT_LOOKUP or not isinstance(settings.speculative, str):
        return None
    found = _Checkpoint.find(settings.speculative, settings.allow_download)
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
    )
    if asked is not None and memory.kv_tokens < asked:
        raise InvalidSetting(
            f"context_length={asked:,} does not fit: {memory}; ask for less, or raise kv_cache_memory"
        )
    return memory, min(context, memory.kv_tokens)


def _eos_ids(found: _Checkpoint, tokenizer: Any) -> frozenset[int]:
    """What ends an answer: the checkpoint's generation settings, or else the tokenizer's end token."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(found.folder, local_files_only=True).eos_token_id
    except OSError:  # it has none
        ids = found.config.eos_token_id
    ids = tokenizer.eos_token_id if ids is None else ids
    return frozenset(int(i) for i in (ids if isinstance(ids, list) else [ids]) if i is not None)
