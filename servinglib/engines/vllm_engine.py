"""vLLM in this process, behind the one interface.

The engine that most people serve with. What it does inside is what lessons 05 to 08 build by hand: paged
KV cache, continuous batching, prefix cache; its loop runs in a process of its own, and `AsyncLLM`, its
asynchronous face, in our engine's event loop. Tokens come as ids, each with the time at which it reached
this process; text, stop strings and ends are decided by the same `Answer` as on all engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servinglib.engines.answer import Answer, eos_ids_of
from servinglib.engines.base import Prompt, check_logprobs, checked_ids
from servinglib.engines.capabilities import Capabilities, EngineCounters
from servinglib.engines.checkpoint_checks import (
    check_context,
    check_parallel,
    check_quantization,
    read_config,
)
from servinglib.engines.event_loop import EventLoopEngine
from servinglib.engines.vllm_arguments import quantization_methods
from servinglib.engines.vllm_config import VLLMConfig
from servinglib.engines.vllm_process import VLLMProcess
from servinglib.errors import EngineFailed, EngineUnavailable, UnknownName
from servinglib.models.loading import checkpoint_eos_ids, find_checkpoint, load_tokenizer
from servinglib.request import Logprob, Request, TokenEvent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STORED = (
    "awq",
    "awq_marlin",
    "auto_awq",
    "gptq",
    "gptq_marlin",
    "auto_gptq",
    "compressed-tensors",
    "modelopt",
)
"""Methods that read weights which somebody has quantized before; the others quantize while loading."""


class VLLMEngine(EventLoopEngine):
    """Serves requests with vLLM, on GPUs or (x86-64 Linux) on the CPU. Made by `load`.

    Attributes
    ----------
    config : VLLMConfig
    """

    name = "vllm"
    capabilities = Capabilities(
        "continuous",
        sampling=True,
        real_model=True,
        choices=True,
        logprobs=True,
        speculation=True,
        prefix_caching=True,
        quantization=True,
    )

    def __init__(
        self, model_name: str, folder: Path, tokenizer: PreTrainedTokenizerBase, config: VLLMConfig
    ) -> None:
        self.model_name, self.config, self._tokenizer = model_name, config, tokenizer
        self.vocabulary = int(read_config(folder)["vocab_size"])
        self.eos_ids = eos_ids_of(checkpoint_eos_ids(folder), tokenizer)
        super().__init__()
        start = asyncio.run_coroutine_threadsafe(VLLMProcess.start(folder, config), self._loop)
        try:
            self._vllm = start.result()
        except BaseException:  # also Ctrl-C, which only this thread hears of
            start.add_done_callback(lambda start: start.exception() or start.result().stop())
            self._stop_loop()
            raise
        self.context_length = self._vllm.context_length

    @classmethod
    def load(cls, model: str, **options: Any) -> VLLMEngine:
        """Load a model of the zoo, a local folder or a hub id; the options are those of `VLLMConfig`.

        Raises
        ------
        UnknownName, InvalidSetting, ModelUnavailable, EngineUnavailable
            Before vLLM is started: an option or a model that can't be had, or vLLM isn't installed.
        EngineFailed
            vLLM could not start; the message tells its own reason. None of its processes is left.
        """
        for option in options:
            if option not in VLLMConfig.names():
                raise UnknownName("option", option, VLLMConfig.names())
        config = VLLMConfig(**options)
        if find_spec("vllm") is None:
            raise EngineUnavailable("vllm", "vllm", "make vllm")
        folder = find_checkpoint(
            model, trust_remote_code=config.trust_remote_code, allow_download=config.allow_download
        )
        _check(config, folder)
        return cls(model, folder, load_tokenizer(folder, config.trust_remote_code), config)

    @property
    def counters(self) -> EngineCounters:
        """vLLM's own metrics, as of its last step."""
        return self._vllm.counters

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids, special tokens added as the tokenizer does by itself."""
        self._must_be_open()
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt)["input_ids"]) if prompt else []
        return checked_ids(prompt, self.vocabulary)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Ids to text, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def validate(self, request: Request) -> list[int]:
        """The prompt's token ids, or the typed error that says why it can never be served."""
        check_logprobs(request.params.logprobs, self.vocabulary)
        return super().validate(request)

    async def _events(self, request: Request, prompt: list[int]) -> AsyncGenerator[TokenEvent]:
        answers = [Answer(request, self.decode, self.eos_ids, i) for i in range(request.params.n)]
        try:
            async with aclosing(self._vllm.generate(request, prompt)) as outputs:
                async for output in outputs:
                    now = self.now()
                    if request.timeline.scheduled is None and output.metrics is not None:
                        request.timeline.stamp("scheduled", output.metrics.scheduled_ts)
                    for told in output.outputs:
                        for event in _advance(answers[told.index], told, now):
                            yield event
                    if all(answer.finish_reason for answer in answers):
                        return  # which ends it over there, if a stop string came first
        except self._vllm.died as error:
            self._error = EngineFailed(self._vllm.why_dead(error))
            raise self._error from error

    async def _close(self) -> None:
        self._vllm.stop()


def _advance(answer: Answer, told: Any, now: float) -> Iterator[TokenEvent]:
    """The events of what vLLM has told of one answer: none, one or several tokens, perhaps the end."""
    for position, token in enumerate(told.token_ids):
        if answer.finish_reason is None:
            yield answer.advance(token, now, _logprob(told, position, token, answer.request.params.logprobs))
    if told.finish_reason is not None and answer.finish_reason is None:
        reason = told.finish_reason if told.finish_reason in ("stop", "length") else "abort"
        yield answer.end(reason, now)


def _logprob(told: Any, position: int, token: int, asked: int | None) -> Logprob | None:
    if asked is None or told.logprobs is None:
        return None
    told_here = told.logprobs[position]
    ranked = sorted(told_here.items(), key=lambda item: item[1].rank)
    return Logprob(told_here[token].logprob, tuple((i, each.logprob) for i, each in ranked[:asked]))


def _check(config: VLLMConfig, folder: Path) -> None:
    """Refuse what can be told without starting vLLM, which takes it half a minute."""
    stored = read_config(folder)
    check_context(config.max_model_len, stored, "max_model_len")
    check_parallel(config.tensor_parallel_size, "tensor_parallel_size")
    if config.quantization is not None:
        check_quantization(config.quantization, stored, quantization_methods(), STORED)
