"""The one interface that every engine has, so that a server, a benchmark or a lesson can swap them.

Streaming comes first: an engine's only primitive is `run`, which yields the token events of a batch
as they happen. A whole answer is a collected stream, so time to first token is measured on every
engine and estimated on none. `tests/engines/contract.py` holds what each engine must pass.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Self, cast

from servinglib.engines.capabilities import Capabilities, EngineCounters
from servinglib.errors import ContextTooLong, EmptyPrompt, InvalidRequest, ServingError
from servinglib.request import Completion, Request, SamplingParams, TokenEvent

Prompt = str | Sequence[int]


class Engine(ABC):
    """A loaded model that turns prompts into token events.

    Attributes
    ----------
    name : str
        The engine's registered name, such as "transformers".
    model_name : str
    context_length : int
        Most tokens of prompt and answer together.
    capabilities : Capabilities
    """

    name: str
    model_name: str
    context_length: int
    capabilities: Capabilities

    @classmethod
    @abstractmethod
    def load(cls, model: str, **options: Any) -> Engine:
        """Load a model by name, path or hub id; an unknown option is refused by name."""

    @abstractmethod
    def tokenize(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids; ids given as a prompt are checked and passed through."""

    @abstractmethod
    def run(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        """Yield the events of one batch as they happen, each with the time it was known.

        Every request ends with exactly one event whose `finish_reason` is set.
        """

    @abstractmethod
    def abort(self, request_id: str) -> bool:
        """End a running request at its next token with finish reason "abort"; False if it is not running."""

    @abstractmethod
    def shutdown(self) -> None:
        """Free the model; a second call does nothing, and any later work raises `ServerClosed`."""

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **changes: Any
    ) -> list[Completion]:
        """Answer one prompt or several, as one batch, in order.

        Parameters
        ----------
        prompts : str, list of int, or a list of those
        params : SamplingParams, optional
        **changes
            Fields of `SamplingParams` to override, such as `max_tokens=16`.

        Raises
        ------
        InvalidRequest, UnknownName, InvalidSetting
            Before any work is done, when a prompt or a parameter can't be served.
        """
        requests = self._requests(_as_list(prompts), params, changes)
        return self._answer(requests, [self.validate(request) for request in requests])

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **changes: Any,
    ) -> Iterator[TokenEvent]:
        """Yield one prompt's tokens as they are generated; the prompt is checked at the call."""
        [request] = self._requests([prompt], params, changes)
        if request_id is not None:
            request.request_id = request_id
        return self.run([request], [self.validate(request)])

    def generate_batch(self, requests: Sequence[Request]) -> list[Completion | Exception]:
        """Answer a batch: one completion, or one error, per request, in order.

        A request that can't be served fails alone. This is what `BatchInferenceServer` calls; it
        stamps `scheduled`, `first_token` and `finished` on each request's timeline.
        """
        results: dict[int, Completion | Exception] = {}
        prompts: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            try:
                prompts[i] = self.validate(request)
            except ServingError as refusal:
                results[i] = refusal
        answers = self._answer([requests[i] for i in prompts], list(prompts.values()))
        results.update(zip(prompts, answers, strict=True))
        return [results[i] for i in range(len(requests))]

    def validate(self, request: Request) -> list[int]:
        """The prompt's token ids, or the typed error that says why it can never be served."""
        tokens = self.tokenize(request.prompt)
        if not tokens:
            raise EmptyPrompt
        if len(tokens) + request.params.max_tokens > self.context_length:
            raise ContextTooLong(len(tokens), request.params.max_tokens, self.context_length)
        self._check_abilities(request.params)
        return tokens

    def _check_abilities(self, params: SamplingParams) -> None:
        can = self.capabilities
        if params.temperature > 0 and not can.sampling:
            raise InvalidRequest(f"the {self.name} engine can't sample; use temperature=0")
        if params.n > 1 and not can.choices:
            raise InvalidRequest(
                f"the {self.name} engine gives one answer; ask {params.n} times instead of n"
            )
        if params.logprobs is not None and not can.logprobs:
            raise InvalidRequest(f"the {self.name} engine tells no log-probabilities; leave logprobs out")

    def warm_up(self) -> None:
        """Pay one-time costs (allocations, kernel choice) now instead of in the first request."""
        self.generate([[0] * 8, [0] * 8], max_tokens=2, ignore_eos=True)

    @property
    def counters(self) -> EngineCounters:
        """What it tells of itself; by default nothing."""
        return EngineCounters()

    def now(self) -> float:
        """Seconds on the clock that stamps this engine's events."""
        return time.perf_counter()

    def _answer(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> list[Completion]:
        """Run requests that have been validated as one batch, and collect each one's stream."""
        if not requests:
            return []
        start = self.now()
        streams = collect(self._run_whole(requests, prompts))
        return [
            complete(request, len(prompt), streams[request.request_id], start)
            for request, prompt in zip(requests, prompts, strict=True)
        ]

    def _run_whole(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        """`run` for a reader who wants whole answers: the events may come late, their times stay true."""
        return self.run(requests, prompts)

    def _requests(
        self, prompts: Sequence[Prompt], params: SamplingParams | None, changes: dict[str, Any]
    ) -> list[Request]:
        params = (params or SamplingParams()).updated(**changes)
        return [Request(f"{self.name}-{next(_serial)}", prompt, params) for prompt in prompts]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


_serial = itertools.count()


def collect(events: Iterator[TokenEvent]) -> dict[str, list[TokenEvent]]:
    """A batch's events, by request id."""
    streams: dict[str, list[TokenEvent]] = {}
    for event in events:
        streams.setdefault(event.request_id, []).append(event)
    return streams


def complete(
    request: Request, prompt_tokens: int, events: Sequence[TokenEvent], scheduled: float
) -> Completion:
    """The completion that a finished stream amounts to; stamps the engine's part of the timeline.

    `scheduled`, in seconds, is when computation began, unless the engine has stamped that itself.
    """
    timeline = request.timeline
    if timeline.scheduled is None:  # an engine with a queue of its own knows better
        timeline.stamp("scheduled", scheduled)
    timeline.stamp("first_token", next((e.time for e in events if e.token_id is not None), events[-1].time))
    timeline.stamp("finished", events[-1].time)
    first, *others = (
        _choice(request, prompt_tokens, [e for e in events if e.choice == choice])
        for choice in range(request.params.n)
    )
    return replace(first, alternatives=tuple(others)) if others else first


def _choice(request: Request, prompt_tokens: int, events: Sequence[TokenEvent]) -> Completion:
    tokens = [e for e in events if e.token_id is not None]
    reason = events[-1].finish_reason
    assert reason is not None, f"{request.request_id} ended without a finish reason"
    return Completion(
        request_id=request.request_id,
        prompt_tokens=prompt_tokens,
        token_ids=tuple(e.token_id for e in tokens if e.token_id is not None),
        text="".join(e.text for e in events),
        finish_reason=reason,
        timeline=request.timeline,
        token_times=tuple(e.time for e in tokens),
        logprobs=tuple(e.logprob for e in tokens if e.logprob is not None),
    )


def checked_ids(prompt: Sequence[int], vocabulary: int) -> list[int]:
    """The ids of a prompt that was given as ids, each an integer from 0 to `vocabulary` - 1."""
    for position, token in enumerate(prompt):
        if not isinstance(token, Integral) or not 0 <= token < vocabulary:
            raise InvalidRequest(
                f"prompt token {token!r} at position {position} is no token id; "
                f"they are the integers 0..{vocabulary - 1} here"
            )
    return [int(token) for token in prompt]


def check_logprobs(asked: int | None, vocabulary: int) -> None:
    """Refuse to tell more of the likeliest tokens than there are."""
    if (asked or 0) > vocabulary:
        raise InvalidRequest(
            f"logprobs={asked} asks for more tokens than the vocabulary has, which is {vocabulary:,}; ask for fewer"
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral)):
        return [cast("Prompt", prompts)]
    return list(cast("Sequence[Prompt]", prompts))
