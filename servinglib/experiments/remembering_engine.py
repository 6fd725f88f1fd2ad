"""The continuous engine behind a result cache, in one event loop: Redis in front of the model, in small.

A receptionist who keeps a notebook: a question that is in it she answers herself, one that a colleague
is working on waits for that colleague, and only the rest go upstairs. The notebook is
`cache.result_cache`, which never waits itself. Lesson 08 sends a workload through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from servinglib.cache.result_cache import Hit, Join, Lead, ResultCache, Transcript, cache_key
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.continuous.statistics import StepRecord
from servinglib.request import Request, TokenEvent


class RememberingEngine:
    """A `ContinuousEngine` behind a `ResultCache`, for `serving_run.serve`.

    The cache never waits; here the flight that it hands out is an asyncio future, and who joins waits
    for that one for the whole answer.

    Parameters
    ----------
    engine : ContinuousEngine
    cache : ResultCache
    single_flight : bool
        Otherwise who finds a question under way computes it once more, as a plain key-value store has it.
    """

    def __init__(
        self,
        engine: ContinuousEngine,
        cache: ResultCache[asyncio.Future[Transcript | None]],
        single_flight: bool = True,
    ) -> None:
        self.engine, self.cache, self.single_flight = engine, cache, single_flight
        self.vocabulary, self.now = engine.vocabulary, engine.now

    @property
    def steps(self) -> list[StepRecord]:
        """The engine's last steps."""
        return self.engine.steps

    async def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        """The request's events, from the cache or from the engine."""
        key = cache_key(self.engine.model_name, self.engine.validate(request), request.params)
        answer = None
        while answer is None:
            mine = asyncio.get_running_loop().create_future()
            match Lead() if key is None else self.cache.lookup(key, self.now(), mine):
                case Hit(known):
                    answer = known
                case Join(flight) if self.single_flight:
                    answer = await asyncio.shield(flight)  # None if whoever led it gave up: ask again
                case Lead() if key is not None:
                    async with aclosing(self._lead(request, key, mine)) as events:
                        async for event in events:
                            yield event
                    return
                case _:
                    async for event in self.engine.submit(request):
                        yield event
                    return
        for event in answer.replay(request.request_id, self.now()):
            yield event

    async def _lead(
        self, request: Request, key: bytes, flight: asyncio.Future[Transcript | None]
    ) -> AsyncGenerator[TokenEvent]:
        events = []
        try:
            async for event in self.engine.submit(request):
                events.append(event)
                if event.finish_reason is not None:
                    answer = Transcript.of(events)
                    self.cache.complete(key, answer, self.now())
                    flight.set_result(answer)
                yield event
        finally:
            if not flight.done():
                self.cache.fail(key)
                flight.set_result(None)
