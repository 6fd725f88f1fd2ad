"""SGLang in this process, behind the one interface.

An engine built around its prefix cache: a tree of all prompts and answers that it remembers, in which a new
prompt looks for its longest beginning, as a reader finds the page by the words at the top. Its scheduler is
a process of its own; `sglang.Engine`, which talks to it, lives in our engine's event loop. Tokens come as
ids; text, stop strings and ends are decided by the same `Answer` as on all engines.

Written after the source of SGLang 0.5.23, which is too exacting about its neighbours to be installed next
to vLLM (each wants another torch): `INSTALL` gives it an environment of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

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
from servinglib.engines.sglang_chunks import Telling
from servinglib.engines.sglang_config import STORED, WHILE_LOADING, SGLangConfig
from servinglib.engines.sglang_process import SGLangProcess, heed_failures
from servinglib.errors import EngineFailed, EngineUnavailable, InvalidRequest, UnknownName
from servinglib.models.loading import checkpoint_eos_ids, find_checkpoint, load_tokenizer
from servinglib.request import Request, TokenEvent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTALL = (
    "python -m venv .venv-sglang && .venv-sglang/bin/pip install -e '.[models]' 'sglang==0.5.23'"
    " (it needs an NVIDIA GPU)"
)


class SGLangEngine(EventLoopEngine):
    """Serves requests with SGLang. Made by `load`.

    Attributes
    ----------
    config : SGLangConfig
    """

    name = "sglang"
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
        self, model_name: str, folder: Path, tokenizer: PreTrainedTokenizerBase, config: SGLangConfig
    ) -> None:
        self.model_name, self.config, self._tokenizer = model_name, config, tokenizer
        self.vocabulary = int(read_config(folder)["vocab_size"])
        self.eos_ids = eos_ids_of(checkpoint_eos_ids(folder), tokenizer)
        self._counters = _counters_at_start(config)
        super().__init__()
        self._unheed = heed_failures(self._process_failed)
        try:
            self._sglang = self._call(SGLangProcess.start(folder, config))
        except BaseException:
            self._unheed()
            self._stop_loop()
            raise
        self.context_length = self._sglang.context_length

    @classmethod
    def load(cls, model: str, **options: Any) -> SGLangEngine:
        """Load a model of the zoo, a local folder or a hub id; the options are those of `SGLangConfig`.

        Raises
        ------
        UnknownName, InvalidSetting, ModelUnavailable, EngineUnavailable
            Before SGLang is started: an option or a model that can't be had, or SGLang isn't installed.
        EngineFailed
            SGLang could not start; it writes its reason to the terminal. None of its processes is left.
        """
        for option in options:
            if option not in SGLangConfig.names():
                raise UnknownName("option", option, SGLangConfig.names())
        config = SGLangConfig(**options)
        if find_spec("sglang") is None:
            raise EngineUnavailable("sglang", "sglang", INSTALL)
        folder = find_checkpoint(
            model, trust_remote_code=config.trust_remote_code, allow_download=config.allow_download
        )
        stored = read_config(folder)
        check_context(config.context_length, stored, "context_length")
        check_quantization(config.quantization, stored, (*STORED, *WHILE_LOADING), STORED)
        check_parallel(config.tp_size, "tp_size")
        return cls(model, folder, load_tokenizer(folder, config.trust_remote_code), config)

    @property
    def counters(self) -> EngineCounters:
        """What SGLang has told with its answers; of what runs and waits it tells nothing."""
        return self._counters

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
        params = request.params
        check_logprobs(params.logprobs, self.vocabulary)
        heeds_seeds = self.config.enable_deterministic_inference
        if params.seed is not None and params.temperature > 0 and not heeds_seeds:
            raise InvalidRequest(
                f"seed={params.seed}, but SGLang heeds seeds only if it was loaded with "
                f"enable_deterministic_inference=True; load it so, or leave the seed out"
            )
        tokens = super().validate(request)
        if len(tokens) > self._sglang.longest_prompt:
            raise InvalidRequest(
                f"the prompt has {len(tokens)} tokens, and SGLang takes {self._sglang.longest_prompt} at "
                f"most with this context of {self.context_length}; shorten it"
            )
        return tokens

    def shutdown(self) -> None:
        """End what runs with `ServerClosed`, free everything, and wait for that."""
        super().shutdown()
        self._unheed()

    async def _events(self, request: Request, prompt: list[int]) -> AsyncGenerator[TokenEvent]:
        # Ids of equal length, since SGLang aborts all whose ids begin with the one given; and fresh ones,
        # since it keeps an aborted one until its scheduler has confirmed it.
        tellings = [
            Telling(uuid4().hex, Answer(request, self.decode, self.eos_ids, i))
            for i in range(request.params.n)
        ]
        ids = [telling.request_id for telling in tellings]
        try:
            async with aclosing(
                await self._sglang.generate(request.params, prompt, ids, self.eos_ids)
            ) as chunks:
                async for chunk in chunks:
                    telling = tellings[chunk.get("index", 0)]
                    self._counters = telling.count(chunk["meta_info"], self._counters)
                    for event in telling.read(chunk, self.now()):
                        yield event
                    if telling.ended_here:
                        self._sglang.abort(telling.request_id)
                    if all(each.answer.finish_reason for each in tellings):
                        return
        finally:
            for telling in tellings:
                if not telling.ended_there:
                    self._sglang.abort(telling.request_id)

    async def _close(self) -> None:
        await self._sglang.stop()

    def _process_failed(self) -> None:
        """In the main thread, between any two of its instructions: no lock may be taken here."""
        with suppress(RuntimeError):  # the loop is closed, and nobody is left to tell
            self._loop.call_soon_threadsafe(self._fail)

    def _fail(self) -> None:
        error = EngineFailed(
            RuntimeError("one of SGLang's processes has failed; its reason is on the terminal")
        )
        with self._lock:
            self._error = self._error or error
        for request_id in list(self._conversations):
            self._leave(request_id, error)


def _counters_at_start(config: SGLangConfig) -> EngineCounters:
    looked_up = None if config.disable_radix_cache else 0
    guesses = None if config.speculative_algorithm is None else 0
    return EngineCounters(
        prefix_cache_queries=looked_up,
        prefix_cache_hits=looked_up,
        num_preemptions=0,
        draft_tokens=guesses,
        accepted_tokens=guesses,
    )
