"""The continuous-batching engine, from the outside: load a model, ask, listen.

A bus that leaves when it is full is a static batch. This engine is the ski lift: requests get on and
off at every step. The parts, in the order in which one reads them:

    loop               the thread that goes step by step       policies.stepping   what a step holds
    runner             has a step computed                     cache.block_pool    who holds which page
    speculative        guesses and checks                      cache.prefix        which pages are alike
    decoder.model      what a step computes                    policies.scheduling who goes first
    decoder.attention  keys and values in pages

Lessons 05 to 08 and 10 take it apart.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from servinglib.engines.answer import Answer
from servinglib.engines.base import Engine, Prompt, check_logprobs, checked_ids
from servinglib.engines.capabilities import Capabilities, EngineCounters
from servinglib.engines.continuous.requests import Choice, Ticket
from servinglib.engines.continuous.settings import Settings
from servinglib.engines.continuous.statistics import EngineStatistics, StepRecord
from servinglib.engines.settings import checked
from servinglib.engines.streams import EventStream, Item, Listener, Patience, listen, waker
from servinglib.policies.sequence import SequenceState
from servinglib.request import Request, TokenEvent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from servinglib.engines.continuous.loading import Parts


class ContinuousEngine(Engine):
    """Serves requests that come and go at every token step.

    Made by `load`. All methods may be called from any thread.

    Attributes
    ----------
    memory : MemoryPlan
        What fits, and the arithmetic behind it; `str(memory)` tells it.
    attention : str
        Which backend computes: "numba", "torch" or "triton".
    """

    name = "continuous"
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

    def __init__(self, model_name: str, parts: Parts) -> None:
        self._loop, self._tokenizer, self.model_name = parts.loop, parts.tokenizer, model_name
        self.context_length, self.vocabulary = parts.context_length, parts.vocabulary
        self.eos_ids, self.memory, self.attention = parts.eos_ids, parts.memory, parts.attention
        self.decode = _decoder(parts.tokenizer)
        self._listeners: dict[asyncio.AbstractEventLoop, Listener] = {}

    @classmethod
    def load(cls, model: str, **options: Any) -> ContinuousEngine:
        """Load a model of the zoo, a local folder or a hub id; the options are those of `Settings`.

        Raises
        ------
        UnknownName, InvalidSetting, ModelUnavailable
            Before any weight is read, if an option or the model can't be had.
        """
        settings = checked(Settings, options)
        from servinglib.engines.continuous.loading import load

        return cls(model, load(model, settings))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own; a server writes chats and the names of tokens with it."""
        return self._tokenizer

    @property
    def statistics(self) -> EngineStatistics:
        """Counters and gauges."""
        return EngineStatistics.of(self._loop.planner, self._loop.counters)

    @property
    def steps(self) -> list[StepRecord]:
        """The last steps, oldest first."""
        return list(self._loop.counters.steps)

    @property
    def counters(self) -> EngineCounters:
        """As every engine tells it; `statistics` has more."""
        return self._loop.counters.seen_by_all(self._loop.planner)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids, special tokens added as the tokenizer does by itself."""
        self._loop.must_be_open()
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt)["input_ids"]) if prompt else []
        return checked_ids(prompt, self.vocabulary)

    def validate(self, request: Request) -> list[int]:
        """The prompt's token ids, or the typed error that says why it can never be served."""
        tokens = super().validate(request)
        check_logprobs(request.params.logprobs, self.vocabulary)
        self._loop.planner.check(SequenceState(None, len(tokens), request.params.max_tokens))
        return tokens

    def run(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        """Start the requests now, and yield their events as they come; closing the iterator aborts the rest."""
        news: queue.SimpleQueue[list[Item]] = queue.SimpleQueue()
        return self._start(requests, prompts, news, news.put)

    def submit(self, request: Request) -> EventStream:
        """Start a request from a running event loop; iterate to get its events, close or drop to abort it.

        Raises
        ------
        InvalidRequest
            At the call, if it can never be served.
        """
        prompt = self.validate(request)
        events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        listener = self._listener(asyncio.get_running_loop())
        [ticket] = self._submit([request], [prompt], listener, [events])
        return EventStream(events, request.params.n, partial(self._loop.drop, ticket))

    def abort(self, request_id: str) -> bool:
        """End a request before the next step, with finish reason "abort"; False if it is not running."""
        return self._loop.abort(request_id)

    def shutdown(self) -> None:
        """Stop; what still runs ends with `ServerClosed`."""
        self._loop.stop()

    def _run_whole(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        news: queue.SimpleQueue[list[Item]] = queue.SimpleQueue()
        return self._start(requests, prompts, news, Patience(sum(r.params.n for r in requests), news.put))

    def _start(
        self,
        requests: Sequence[Request],
        prompts: Sequence[list[int]],
        news: queue.SimpleQueue[list[Item]],
        listener: Listener,
    ) -> Iterator[TokenEvent]:
        tickets = self._submit(requests, prompts, listener, [r.request_id for r in requests])
        of = {ticket.request.request_id: ticket for ticket in tickets}
        choices = {name: ticket.request.params.n for name, ticket in of.items()}
        events = listen(news, choices, lambda name: self._loop.drop(of[name]))
        next(events)  # now that it has begun, whoever drops it ends the requests
        return cast("Iterator[TokenEvent]", events)

    def _submit(
        self,
        requests: Sequence[Request],
        prompts: Sequence[list[int]],
        listener: Listener,
        addresses: Sequence[Any],
    ) -> list[Ticket]:
        now = time.perf_counter()
        tickets = []
        for request, prompt, address in zip(requests, prompts, addresses, strict=True):
            choices = [self._choice(request, prompt, i, now) for i in range(request.params.n)]
            deadline = None if request.timeout is None else now + request.timeout
            tickets.append(Ticket(request, choices, listener, address, deadline))
        self._loop.submit(tickets)
        return tickets

    def _choice(self, request: Request, prompt: list[int], index: int, now: float) -> Choice:
        answer = Answer(request, self.decode, self.eos_ids, index)
        return Choice(answer, prompt, now)

    def _listener(self, loop: asyncio.AbstractEventLoop) -> Listener:
        """The one listener of an event loop, so that a step's news for all its requests come together."""
        if loop not in self._listeners:
            self._listeners = {
                known: listen for known, listen in self._listeners.items() if not known.is_closed()
            }
            self._listeners[loop] = waker(loop)
        return self._listeners[loop]


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    """Ids to text, special tokens left out; without the wrapper's checks where those do nothing."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None and not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return lambda ids: fast.decode(list(ids), skip_special_tokens=True)
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))
