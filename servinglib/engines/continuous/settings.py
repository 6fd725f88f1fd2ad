"""What our engine can be told, and what of it makes no sense on any machine; light, for who only asks that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from servinglib.cache.block_pool import BlockPool
from servinglib.decoder.memory import parse_budget
from servinglib.engines.settings import check_device, check_dtype
from servinglib.errors import InvalidSetting, UnknownName
from servinglib.policies.length_prediction import LengthPredictor
from servinglib.policies.scheduling import SchedulingPolicy, scheduling_policy
from servinglib.policies.stepping import check_limits

ATTENTIONS = ("numba", "torch", "triton")
QUANTIZATIONS = ("int8",)
PROMPT_LOOKUP = "prompt-lookup"
Guess = Callable[[list[int], int], Sequence[int]]


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
        check_device(self.device)
        check_dtype(self.dtype)
        if isinstance(self.policy, str):
            scheduling_policy(self.policy)
        if self.kv_cache_memory is not None:
            parse_budget(self.kv_cache_memory, 0)
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
