"""Any engine, with a memory: what was answered before is replayed, and what is asked twice runs once.

A kitchen that gets the same order twice within a minute cooks one pot, and serves what is left in the
pot at once to whoever orders it next. `cache.result_cache` decides, for each request, whether its
answer is there, whether it joins a flight that is under way (`engines.flights`), or whether the inner
engine has to compute it. Lesson 08 shows for which traffic that pays.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from servinglib.cache.result_cache import Hit, Join, Lead, ResultCache, Transcript, cache_key
from servinglib.engines.base import Engine, Prompt
from servinglib.engines.capabilities import EngineCounters
from servinglib.engines.flights import Batch, Flight, Reader
from servinglib.engines.registry import load_engine
from servinglib.engines.streams import check_ids
from servinglib.errors import ServerClosed
from servinglib.request import Request, TokenEvent

_serial = itertools.count()


class CachedEngine(Engine):
    """An engine in front of an engine: hits are replayed at once, all else passes through.

    A hit is word for word what the inner engine said the first time. Where that depends on the company
    in the batch, as a greedy answer in bfloat16 can, so does what is replayed.

    Parameters
    ----------
    engine : Engine
        Shut down together with this one.
    cache : ResultCache
        Belongs to this engine alone, whose lock guards it.
    """

    def __init__(self, engine: Engine, cache: ResultCache[Flight]) -> None:
        self.engine, self.cache = engine, cache
        self.name, self.model_name = engine.name, engine.model_name
        self.context_length, self.capabilities = engine.context_length, engine.capabilities
        self._readers: dict[str, Reader] = {}
        self._closed = False
        # Guards the cache, the readers and the flights' books; nobody computes or waits while holding it.
        self._lock = threading.RLock()

    @classmethod
    def load(
        cls,
        model: str,
        engine: str = "transformers",
        max_bytes: int = 2**28,
        ttl: float = math.inf,
        **options: Any,
    ) -> CachedEngine:
        """Load `model` with the engine of that name and its options, behind a `ResultCache(max_bytes, ttl)`."""
        cache: ResultCache[Flight] = ResultCache(max_bytes, ttl)
        return cls(load_engine(engine, model, **options), cache)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """As the inner engine does."""
        return self.engine.tokenize(prompt)

    def validate(self, request: Request) -> list[int]:
        """As the inner engine does."""
        return self.engine.validate(request)

    def warm_up(self) -> None:
        """Warm up the inner engine; nothing is kept of it."""
        self.engine.warm_up()

    @property
    def counters(self) -> EngineCounters:
        """The inner engine's; those of the result cache are `cache.statistics`."""
        return self.engine.counters

    def now(self) -> float:
        """Seconds on the inner engine's clock."""
        return self.engine.now()

    def run(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        """Yield each request's events as soon as they are known, those of hits before anything is computed."""
        return self._events([Reader(r, p) for r, p in zip(requests, prompts, strict=True)])

    def abort(self, request_id: str) -> bool:
        """End a request before its next token; an answer that others read as well goes on for them."""
        reader = self._readers.get(request_id)
        if reader is None or reader.finished or reader.leaving:
            return False
        reader.leaving = "abort"
        return True

    def shutdown(self) -> None:
        """Shut down the inner engine; what still runs raises `ServerClosed`."""
        self._closed = True
        self.engine.shutdown()

    def _events(self, readers: list[Reader]) -> Iterator[TokenEvent]:
        self._register(readers)
        try:
            own, waiting = self._board(readers), readers
            while waiting:
                for reader in waiting:
                    if self.now() >= reader.deadline:
                        reader.leaving = reader.leaving or "deadline"
                    while not (reader.finished or reader.waits):
                        self._must_be_open()
                        yield reader.read(self.now())
                    if reader.finished:
                        self._leave(reader)
                waiting = [reader for reader in waiting if not reader.finished]
                self._advance(waiting, own)
        finally:  # also when the one who reads goes away in the middle
            for reader in readers:
                self._leave(reader)
                del self._readers[reader.request.request_id]

    def _register(self, readers: Sequence[Reader]) -> None:
        with self._lock:
            check_ids([reader.request for reader in readers], self._readers)
            self._readers.update((reader.request.request_id, reader) for reader in readers)

    def _board(self, readers: Sequence[Reader]) -> set[Batch]:
        """Give each reader an answer that is known, a flight that is under way, or one of a new batch."""
        batch = Batch(self.engine, self._land)
        with self._lock:
            for reader in readers:
                request, reader.since = reader.request, self.now()
                if request.timeout is not None:
                    reader.deadline = min(reader.deadline, reader.since + request.timeout)
                key = cache_key(self.model_name, reader.prompt, request.params)
                # Each reader minds its own deadline: another's must not end the answer that they share.
                asked = replace(request, request_id=f"flight-{next(_serial)}", timeout=None)
                flight = Flight(key, asked, reader.prompt, batch)
                match Lead() if key is None else self.cache.lookup(key, reader.since, flight):
                    case Hit(answer):
                        reader.take(tuple(answer.replay(request.request_id, reader.since)))
                    case Join(under_way):
                        reader.follow(under_way)
                    case Lead():
                        batch.add(flight)
                        reader.follow(flight)
        return {batch}

    def _advance(self, waiting: Sequence[Reader], own: set[Batch]) -> None:
        """Move the batches that readers wait for; who joined another's flight that failed asks again."""
        failed = []
        for reader in waiting:
            if reader.flight and reader.flight.error:
                if reader.flight.batch in own or reader.shown:  # two halves need not make one answer
                    raise reader.flight.error
                failed.append(reader)
        if failed:
            own |= self._board(failed)
        for reader in {r.flight.batch: r for r in waiting if r.flight and r.waits}.values():
            if reader.flight:
                reader.flight.batch.advance(reader, reader.flight)

    def _land(self, flights: Iterable[Flight], error: BaseException | None) -> None:
        """Close the books of flights that have ended: complete, or with an error."""
        with self._lock:
            for flight in flights:
                if flight.over:
                    continue
                flight.over, flight.error = True, error
                if flight.key is not None and error is None:
                    self.cache.complete(flight.key, Transcript.of(flight.events), self.now())
                elif flight.key is not None:
                    self.cache.fail(flight.key)

    def _leave(self, reader: Reader) -> None:
        flight, reader.flight, reader.finished = reader.flight, None, True
        if flight is None:
            return
        with self._lock:
            flight.readers -= 1
            given_up = not (flight.readers or flight.over)
            if given_up:
                flight.over = True
                if flight.key is not None:
                    self.cache.fail(flight.key)
        if given_up:
            flight.batch.give_up(flight)

    def _must_be_open(self) -> None:
        if self._closed:
            raise ServerClosed
