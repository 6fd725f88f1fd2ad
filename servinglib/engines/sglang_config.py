"""What SGLang is told, checked before anything loads: a wrong word here would cost half a minute there.

The names are SGLang's own (`ServerArgs`), so whoever knows its command line knows these. The file needs no
SGLang.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from servinglib.errors import InvalidSetting, UnknownName

DEVICES = ("cpu", "cuda", "hpu", "musa", "npu", "xpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")
ALGORITHMS = ("EAGLE", "EAGLE3", "NEXTN", "NGRAM", "STANDALONE")
LOG_LEVELS = ("critical", "debug", "error", "info", "warning")
STORED = ("awq", "awq_marlin", "compressed-tensors", "gptq", "gptq_marlin")
"""Methods that read weights which somebody has quantized before."""
WHILE_LOADING = (
    "bitsandbytes",
    "fp8",
    "modelopt_fp8",
    "mxfp4",
    "mxfp8",
    "nvfp4_online",
    "w8a8_fp8",
    "w8a8_int8",
)
AT_LEAST_1 = (
    "tp_size",
    "max_running_requests",
    "context_length",
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
)


@dataclass(frozen=True, slots=True)
class SGLangConfig:
    """Options of `SGLangEngine.load`.

    Attributes
    ----------
    tp_size : int
        GPUs that share each layer.
    mem_fraction_static : float, optional
        Share of each GPU's memory for weights and KV cache together, in (0, 1); SGLang's own choice unless
        given, as with all that follow.
    chunked_prefill_size : int, optional
        Most prompt tokens of a step; -1 reads every prompt in one.
    disable_radix_cache : bool
        Compute prompts that begin alike each for itself.
    max_running_requests : int, optional
        Most sequences of a step.
    context_length : int, optional
        Most tokens of prompt and answer; the model's own unless given.
    dtype : str
        "auto", "bfloat16", "float16" or "float32"; "auto" is what our own engines choose.
    quantization : str, optional
        One of `STORED` (the checkpoint must be stored so) or of `WHILE_LOADING`.
    device : str, optional
        One of `DEVICES`.
    attention_backend : str, optional
        Kernels of attention, such as "flashinfer", "fa3" or "triton".
    speculative_algorithm : str, optional
        One of `ALGORITHMS`. NGRAM guesses from the text so far; STANDALONE and EAGLE3 need a draft model.
    speculative_draft_model_path : str, optional
        Anything that `load` takes as a model.
    speculative_num_steps, speculative_eagle_topk, speculative_num_draft_tokens : int, optional
        Steps of the draft model, branches of each, and guesses that are checked together.
    enable_deterministic_inference : bool
        Kernels that give a row the same numbers in any company, and sampling that heeds a request's seed:
        without it SGLang ignores seeds, so requests that bring one are refused.
    allow_download : bool, optional
        Fetch a hub model that isn't here yet; unset asks the environment, whose default is no.
    trust_remote_code : bool
        Run code that comes with the checkpoint.
    log_level : str
        From which level on SGLang writes to the terminal.
    """

    tp_size: int = 1
    mem_fraction_static: float | None = None
    chunked_prefill_size: int | None = None
    disable_radix_cache: bool = False
    max_running_requests: int | None = None
    context_length: int | None = None
    dtype: str = "auto"
    quantization: str | None = None
    device: str | None = None
    attention_backend: str | None = None
    speculative_algorithm: str | None = None
    speculative_draft_model_path: str | None = None
    speculative_num_steps: int | None = None
    speculative_eagle_topk: int | None = None
    speculative_num_draft_tokens: int | None = None
    enable_deterministic_inference: bool = False
    allow_download: bool | None = None
    trust_remote_code: bool = False
    log_level: str = "error"

    def __post_init__(self) -> None:
        for name in AT_LEAST_1:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidSetting(f"{name}={value} must be at least 1")
        share, chunk = self.mem_fraction_static, self.chunked_prefill_size
        if share is not None and not 0 < share < 1:
            raise InvalidSetting(f"mem_fraction_static={share} must lie between 0 and 1; 0.85 is usual")
        if chunk is not None and chunk < 1 and chunk != -1:
            raise InvalidSetting(f"chunked_prefill_size={chunk} must be at least 1, or -1 for whole prompts")
        self._check_names()
        self._check_speculation()

    def _check_names(self) -> None:
        choices = {
            "dtype": DTYPES,
            "device": (None, *DEVICES),
            "log_level": LOG_LEVELS,
            "speculative_algorithm": (None, *ALGORITHMS),
            "quantization": (None, *STORED, *WHILE_LOADING),
        }
        for option, known in choices.items():
            value = getattr(self, option)
            if value not in known:
                raise UnknownName(option, str(value), [name for name in known if name is not None])

    def _check_speculation(self) -> None:
        given = [f.name for f in fields(self) if f.name.startswith("speculative_") and getattr(self, f.name)]
        if given and self.speculative_algorithm is None:
            raise InvalidSetting(
                f"{', '.join(given)} without speculative_algorithm has no effect; give one of "
                f"{', '.join(ALGORITHMS)}, or leave it out"
            )
        needs_draft = self.speculative_algorithm in ("EAGLE3", "STANDALONE")
        if needs_draft and self.speculative_draft_model_path is None:
            raise InvalidSetting(
                f"speculative_algorithm={self.speculative_algorithm!r} guesses with a second model; give "
                f"speculative_draft_model_path, or use NGRAM, which needs none"
            )

    @classmethod
    def names(cls) -> list[str]:
        """The options that there are."""
        return [f.name for f in fields(cls)]

    def arguments(self) -> dict[str, Any]:
        """What SGLang's `ServerArgs` take of it; what nobody has set is left to SGLang."""
        ours = ("allow_download",)
        return {k: v for k, v in asdict(self).items() if v is not None and k not in ours}
