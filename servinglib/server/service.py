"""An engine as the HTTP routes see it: is it ready, does it know the model, take this job.

A hotel's reception stands between the street and the rooms. It doesn't clean rooms; it says whether the
house is open, gives each guest a number, and notices when one has left. A `Job` is what one HTTP request
asks for: one prompt or several, each a request of its own to the engine, all ended when the job is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from servinglib.engines.base import Engine, Prompt, complete
from servinglib.engines.streams import EventStream
from servinglib.errors import EngineFailed, InvalidRequest, InvalidSetting, ServingError, UnknownName
from servinglib.request import Completion, Request, SamplingParams, TokenEvent


class WarmingUp(ServingError):
    """A request came before the engine had paid its one-time costs."""

    def __init__(self) -> None:
        super().__init__("the engine is warming up; ask again when GET /ready answers 200")


@dataclass(frozen=True, slots=True)
class Job:
    """The prompts of one HTTP request, being answered.

    Attributes
    ----------
    requests : list of Request
        One per prompt.
    prompts : list of list of int
        Their token ids.
    streams : list of EventStream
        Their events.
    """

    requests: list[Request]
    prompts: list[list[int]]
    streams: list[EventStream]

    async def completions(self) -> list[Completion]:
        """The whole answers, in the order of the prompts."""
        asked = zip(self.requests, self.prompts, self.streams, strict=True)
        try:
            return [complete(r, len(p), [e async for e in s], _received(r)) for r, p, s in asked]
        finally:
            self.close()

    async def events(self) -> AsyncGenerator[tuple[int, TokenEvent]]:
        """All prompts' events as they come, each with its prompt's position."""
        try:
            if len(self.streams) == 1:
                async for event in self.streams[0]:
                    yield 0, event
                return
            async for position, event in _merged(self.streams):
                yield position, event
        finally:
            self.close()

    def close(self) -> None:
        """Abort what has not ended."""
        for stream in self.streams:
            stream.close()


class Service:
    """A warm engine behind a door.

    Parameters
    ----------
    engine : Engine
        One that takes requests from an event loop (`submit`).

    Attributes
    ----------
    opened : int
        When, in seconds since 1970.

    Raises
    ------
    InvalidSetting
        If it has no `submit`, as engines with static batches haven't.
    """

    def __init__(self, engine: Engine) -> None:
        submit: Callable[[Request], EventStream] | None = getattr(engine, "submit", None)
        if submit is None:
            raise InvalidSetting(
                f"the {engine.name} engine takes no requests while a batch runs, so it can't be served over "
                f"HTTP; use an engine with continuous batching, such as `--engine continuous`"
            )
        self.engine, self._submit = engine, submit
        self.opened = int(time.time())
        self._refusal: ServingError | None = WarmingUp()

    @property
    def tokenizer(self) -> Any:
        """The engine's tokenizer, or None if it shows none."""
        return getattr(self.engine, "tokenizer", None)

    async def warm_up(self) -> None:
        """Have the engine pay its one-time costs; after this it is ready, or has failed and says why."""
        try:
            await asyncio.to_thread(self.engine.warm_up)
            self._refusal = None
        except ServingError as error:
            self._refusal = error
        except Exception as error:  # noqa: BLE001, whoever asks is told
            self._refusal = EngineFailed(error)

    def must_be_ready(self) -> None:
        """Raise what keeps it from taking requests, if anything does."""
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)

    def must_know(self, model: str | None) -> None:
        """Refuse a model that is not the one that is served; None stands for that one."""
        if model is not None and model != self.engine.model_name:
            raise UnknownName("model", model, [self.engine.model_name])

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The token ids of a conversation, written down as the model's chat template says."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise InvalidRequest(
                f"the model {self.engine.model_name!r} has no chat template, so it can't tell who said what; "
                f"use /v1/completions"
            )
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}; see what roles it knows"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    async def submit(self, job_id: str, prompts: Sequence[Prompt], params: SamplingParams) -> Job:
        """Start answering prompts; none starts unless all can be served.

        The event loop does not wait for tokenizers, which may take long or ask another server.

        Parameters
        ----------
        job_id : str
            The engine knows the prompts as `job_id`-0, `job_id`-1, ...
        """
        requests = [Request(f"{job_id}-{i}", prompt, params) for i, prompt in enumerate(prompts)]
        job = Job(requests, await asyncio.to_thread(self._validated, requests), [])
        try:
            for request, tokens in zip(requests, job.prompts, strict=True):
                if self.engine.capabilities.token_ids:
                    request.prompt = tokens  # not to be tokenized a second time
                request.timeline.stamp("received", self.engine.now())
                job.streams.append(self._submit(request))
        except ServingError:
            job.close()
            raise
        return job

    def _validated(self, requests: Sequence[Request]) -> list[list[int]]:
        return [self.engine.validate(request) for request in requests]


def _received(request: Request) -> float:
    """When the engine got it, in seconds."""
    return (request.timeline.received or 0) / 1e9


async def _merged(streams: Sequence[EventStream]) -> AsyncGenerator[tuple[int, TokenEvent]]:
    """The events of several streams as they come; the first error ends all."""
    news: asyncio.Queue[tuple[int, TokenEvent | Exception | None]] = asyncio.Queue()

    async def pump(position: int, stream: EventStream) -> None:
        try:
            async for event in stream:
                news.put_nowait((position, event))
            news.put_nowait((position, None))
        except Exception as error:  # noqa: BLE001, it is raised where the events are read
            news.put_nowait((position, error))

    pumps = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    unfinished = len(pumps)
    try:
        while unfinished:
            position, item = await news.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                unfinished -= 1
            else:
                yield position, item
    finally:
        for task in pumps:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*pumps, return_exceptions=True)
