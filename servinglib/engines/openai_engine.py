"""Somebody's server behind the one interface: everything that speaks OpenAI's protocol over HTTP.

An order by telephone: the kitchen is elsewhere, and what we know of it is what it says. So the times are
those at which the words arrived here, with the network in them, and what a server does not tell is not
made up: where it keeps the ids of tokens to itself, `capabilities.token_ids` is False, answers have
`UNKNOWN_TOKEN` for each token, prompts must be text, and the server has the last word on what fits.

A server that tells ids (vLLM, SGLang, ours) passes the same contract as an engine in this process.
`openai_answers` makes events of what is told, `openai_http` keeps the connection, and `openai_discovery`
finds out what the server can do.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

from servinglib.engines.base import Prompt, checked_ids, complete
from servinglib.engines.capabilities import Capabilities
from servinglib.engines.event_loop import EventLoopEngine
from servinglib.engines.openai_answers import AnswerReader
from servinglib.engines.openai_discovery import Discovery, discover, tokenize_body
from servinglib.engines.openai_http import Draw, Endpoint, Sleep
from servinglib.engines.openai_settings import OpenAISettings
from servinglib.engines.openai_wording import WORDINGS, request_body
from servinglib.engines.settings import checked
from servinglib.engines.streams import EventStream, Item, waker
from servinglib.errors import EmptyPrompt, EndpointFailed, InvalidRequest, ServingError
from servinglib.models.loading import find_checkpoint, load_tokenizer
from servinglib.models.zoo import resolve
from servinglib.request import Completion, Request, TokenEvent

UNTOLD_CONTEXT = sys.maxsize
"""The context length where neither the server nor the settings tell one: the server refuses what is too long."""
UNTOLD_VOCABULARY = 2**31
"""Ids are checked against this where only the server knows its vocabulary."""


class OpenAIEngine(EventLoopEngine):
    """Serves requests with an OpenAI-compatible server. Made by `load`.

    Parameters
    ----------
    model_name : str
        As the server calls it.
    settings : OpenAISettings
    sleep, draw : callable
        Wait some seconds (awaited), and draw a number from [0, 1); tests give others.
    """

    name = "openai"

    def __init__(
        self,
        model_name: str,
        settings: OpenAISettings,
        *,
        sleep: Sleep = asyncio.sleep,
        draw: Draw = random.random,
    ) -> None:
        self.model_name, self.settings = model_name, settings
        self._wording = WORDINGS[settings.api]
        self._tokenizer = _load_tokenizer(settings.tokenizer) if settings.tokenizer else None
        self._endpoint = Endpoint(settings, self.now, sleep, draw)
        self._prompt_tokens: dict[
            int, int
        ] = {}  # as the server counted, by id() of requests whose reader asks
        super().__init__()
        try:
            self._found = self._call(self._connect())
        except BaseException:
            self.shutdown()
            raise
        counts = self._tokenizer is not None or self._found.tokenize_field is not None
        self._counts_prompts = counts
        self.capabilities = Capabilities(
            "continuous",
            sampling=True,
            real_model=True,
            choices=True,
            logprobs=self._found.logprobs,
            token_ids=self._found.token_ids and counts,
        )
        self.context_length = settings.context_length or self._found.context_length or UNTOLD_CONTEXT

    @classmethod
    def load(cls, model: str, **options: Any) -> OpenAIEngine:
        """Connect to a server that serves `model`; the options are those of `OpenAISettings`.

        Raises
        ------
        UnknownName, InvalidSetting, ModelUnavailable
            An option, the model, or the tokenizer is not to be had.
        EndpointFailed
            The server can't be reached or refuses us.
        """
        return cls(model, checked(OpenAISettings, options))

    @property
    def retries(self) -> int:
        """Requests that were sent again, since loading."""
        return self._endpoint.retries

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids, by the tokenizer of the settings, or else by the server's."""
        self._must_be_open()
        if not isinstance(prompt, str):
            return self._checked_ids(prompt)
        if not prompt:
            return []
        if self._tokenizer is not None:
            return list(self._tokenizer(prompt)["input_ids"])
        if self._found.tokenize_field is None:
            raise InvalidRequest(
                f"the server of {self.model_name!r} does not count tokens; load the engine with the setting "
                f"tokenizer, a model or a folder that has the same one"
            )
        return self._call(self._tokenize_there(self._found.tokenize_field, prompt))

    def validate(self, request: Request) -> list[int]:
        """As for all engines; where nobody here knows the prompt's ids, none, and the server checks the rest."""
        if self._counts_prompts or not isinstance(request.prompt, str):
            return super().validate(request)
        return self._validate_here(request)

    def submit(self, request: Request) -> EventStream:
        """As for all engines, but what only the server can check it refuses later, as the first item.

        The caller's event loop must not stand still until a server answers, least of all if it runs there.
        """
        asking = isinstance(request.prompt, str) and self._tokenizer is None
        prompt = self._validate_here(request) if asking else self.validate(request)
        events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self._begin([request], [prompt], waker(asyncio.get_running_loop()), [events])
        return EventStream(events, request.params.n, partial(self.abort, request.request_id))

    def generate_batch(self, requests: Sequence[Request]) -> list[Completion | Exception]:
        """As for all engines; what the server refuses fails alone, too."""
        checks = [self._ids_or_refusal(request) for request in requests]
        sound = [
            (r, ids) for r, ids in zip(requests, checks, strict=True) if not isinstance(ids, ServingError)
        ]
        answers = iter(self._outcomes([r for r, _ in sound], [ids for _, ids in sound]))
        return [ids if isinstance(ids, ServingError) else next(answers) for ids in checks]

    def warm_up(self) -> None:
        """Open a connection, and let the server do the same."""
        self.generate("warm up", max_tokens=2)

    def _answer(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> list[Completion]:
        answers = []
        for outcome in self._outcomes(requests, prompts):
            if isinstance(outcome, Exception):
                raise outcome
            answers.append(outcome)
        return answers

    def _outcomes(
        self, requests: Sequence[Request], prompts: Sequence[list[int]]
    ) -> list[Completion | Exception]:
        """Each request's completion, or the error that it ended with; 0 prompt tokens if nobody counted."""
        if not requests:
            return []
        start, gathering = self.now(), _Gathering(requests)
        self._prompt_tokens.update((id(r), len(ids)) for r, ids in zip(requests, prompts, strict=True))
        try:
            self._begin(requests, prompts, gathering, [r.request_id for r in requests])
            try:
                gathering.over.wait()
            finally:
                for request_id in list(gathering.left):
                    self.abort(request_id)
        finally:
            counted = [self._prompt_tokens.pop(id(r), 0) for r in requests]
        return [
            gathering.failed.get(r.request_id) or complete(r, count, gathering.events[r.request_id], start)
            for r, count in zip(requests, counted, strict=True)
        ]

    async def _connect(self) -> Discovery:
        self._endpoint.open()
        return await discover(self._endpoint, self.model_name, self.settings)

    async def _close(self) -> None:
        await self._endpoint.close()

    async def _events(self, request: Request, prompt: list[int]) -> AsyncGenerator[TokenEvent]:
        body = request_body(self.model_name, request, self.settings, self.capabilities.token_ids)
        patience, begun = self._endpoint.patience(), False
        while True:
            reader = AnswerReader(request, self._wording, self.capabilities.token_ids)
            try:
                async with aclosing(self._endpoint.stream(self._wording.path, body)) as chunks:
                    async for now, chunk in chunks:
                        for event in reader.read(chunk, now):
                            begun = True
                            yield event
                reader.check_complete()
            except EndpointFailed as error:
                if not reader.complete:
                    await patience.again(error, begun=begun)
                    continue
            break
        if reader.prompt_tokens is not None and id(request) in self._prompt_tokens:
            self._prompt_tokens[id(request)] = reader.prompt_tokens
        for event in reader.finish():
            yield event

    async def _tokenize_there(self, field: str, text: str) -> list[int]:
        answer = await self._endpoint.ask("//tokenize", tokenize_body(self.model_name, field, text))
        return [int(token) for token in answer["tokens"]]

    def _validate_here(self, request: Request) -> list[int]:
        self._must_be_open()
        if not request.prompt:
            raise EmptyPrompt
        self._check_abilities(request.params)
        return []

    def _ids_or_refusal(self, request: Request) -> list[int] | ServingError:
        try:
            return self.validate(request)
        except ServingError as refusal:
            return refusal

    def _checked_ids(self, prompt: Sequence[int]) -> list[int]:
        if prompt and not self.capabilities.token_ids:
            raise InvalidRequest(
                f"the server of {self.model_name!r} tells no token ids, so a prompt can't be given as ids; "
                f"give text"
            )
        return checked_ids(prompt, UNTOLD_VOCABULARY if self._tokenizer is None else len(self._tokenizer))


class _Gathering:
    """Hears the news of a batch, in the engine's thread, until each request has ended in its own way."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.left = {request.request_id: request.params.n for request in requests}
        self.events: dict[str, list[TokenEvent]] = {request.request_id: [] for request in requests}
        self.failed: dict[str, Exception] = {}
        self.over = threading.Event()

    def __call__(self, items: list[Item]) -> None:
        for request_id, item in items:
            if isinstance(item, Exception):
                self.failed[request_id] = item
                del self.left[request_id]
                continue
            self.events[request_id].append(item)
            self.left[request_id] -= item.finish_reason is not None
            if not self.left[request_id]:
                del self.left[request_id]
        if not self.left:
            self.over.set()


def _load_tokenizer(name: str) -> Any:
    found = resolve(name)
    return load_tokenizer(found if isinstance(found, Path) else find_checkpoint(name))
