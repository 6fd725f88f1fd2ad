"""What vLLM is told, checked before anything loads: a wrong word here would cost half a minute there.

The names are vLLM's own, so whoever knows its command line knows these. The file needs no vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from servinglib.errors import InvalidSetting

PROMPT_LOOKUP = "prompt-lookup"


@dataclass(frozen=True, slots=True)
class VLLMConfig:
    """Options of `VLLMEngine.load`.

    Attributes
    ----------
    tensor_parallel_size : int
        GPUs that share each layer.
    gpu_memory_utilization : float, optional
        Share of each GPU's memory for weights and KV cache together, in (0, 1]; vLLM's own choice unless
        given. On a CPU it is a share of the machine's memory, instead of `cpu_kvcache_space`.
    cpu_kvcache_space : float, optional
        GiB of KV cache on a CPU; a quarter of the free memory and at most 4 unless given.
    max_model_len : int, optional
        Most tokens of prompt and answer; the model's own unless given.
    max_num_seqs, max_num_batched_tokens : int, optional
        Most sequences, and most tokens, of a step; vLLM's own choice unless given.
    enable_prefix_caching : bool
        Whether prompts that begin alike are computed once.
    enable_chunked_prefill : bool, optional
        Whether a long prompt is read over several steps; vLLM's own choice unless given.
    quantization : str, optional
        A method that vLLM knows, such as "awq" or "gptq" (the checkpoint must be stored so) or
        "fp8_per_tensor" (done while loading).
    dtype : str
        "auto", "bfloat16", "float16" or "float32"; "auto" is what our own engines choose.
    kv_cache_dtype : str
        Format of keys and values, such as "fp8"; "auto" is that of the weights.
    speculative : str, optional
        "prompt-lookup" (vLLM's n-gram method), or a draft model.
    draft_tokens : int
        Guesses per step and sequence, if `speculative` is given.
    enforce_eager : bool
        Do without compilation and CUDA graphs: loads sooner, runs slower.
    seed : int
        Of requests that bring none.
    allow_download : bool, optional
        Fetch a hub model that isn't here yet; unset asks the environment, whose default is no.
    trust_remote_code : bool
        Run code that comes with the checkpoint.
    """

    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    cpu_kvcache_space: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool | None = None
    quantization: str | None = None
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    speculative: str | None = None
    draft_tokens: int = 4
    enforce_eager: bool = False
    seed: int = 0
    allow_download: bool | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "max_model_len", "max_num_seqs", "draft_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidSetting(f"{name}={value} must be at least 1")
        share, space = self.gpu_memory_utilization, self.cpu_kvcache_space
        if share is not None and not 0 < share <= 1:
            raise InvalidSetting(f"gpu_memory_utilization={share} must lie in (0, 1]; 0.9 is usual")
        if space is not None and space <= 0:
            raise InvalidSetting(f"cpu_kvcache_space={space} must be above 0 (GiB)")
        if share is not None and space is not None:
            raise InvalidSetting(
                f"gpu_memory_utilization={share} and cpu_kvcache_space={space} both size the KV cache; leave "
                f"one of them out"
            )
        self._check_step()

    def _check_step(self) -> None:
        tokens, longest = self.max_num_batched_tokens, self.max_model_len
        if tokens is not None and tokens < max(self.max_num_seqs or 1, 1):
            raise InvalidSetting(
                f"max_num_batched_tokens={tokens} is less than max_num_seqs={self.max_num_seqs or 1}; a step "
                f"that holds so many sequences computes at least one token of each"
            )
        whole = self.enable_chunked_prefill is False
        if whole and tokens is not None and longest is not None and tokens < longest:
            raise InvalidSetting(
                f"max_num_batched_tokens={tokens} is less than max_model_len={longest}, and with "
                f"enable_chunked_prefill=False a prompt of that length has to fit into one step; raise the "
                f"first or allow chunks"
            )

    @classmethod
    def names(cls) -> list[str]:
        """The options that there are."""
        return [f.name for f in fields(cls)]
