"""From the thread that makes events to those who read them: the counter at which orders are called out.

An engine with a thread of its own calls out news in batches, each item with the address that its reader
gave. Readers come in three kinds: one that blocks until the next event (`listen`), one in an event loop
(`EventStream`), and one who only wants the whole (`Patience`) and is not to be woken at every token.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

from servinglib.errors import InvalidRequest
from servinglib.request import Request, TokenEvent

Item = tuple[Any, TokenEvent | Exception]
"""An event, or the error that ends a request, and the address that its listener gave to the request."""
Listener = Callable[[list[Item]], None]
"""Takes some news for all its requests together; called in the engine's thread."""


def check_ids(requests: Sequence[Request], running: Collection[str]) -> None:
    """Refuse requests of which two in flight would have the same id."""
    ids = [request.request_id for request in requests]
    taken = sorted(set(running) & set(ids))
    if taken or len(set(ids)) < len(ids):
        raise InvalidRequest(
            f"request ids must be unique among running requests; running already: {taken}, new: {ids}"
        )


def listen(
    news: queue.SimpleQueue[list[Item]], choices: dict[str, int], drop: Callable[[str], object]
) -> Iterator[TokenEvent | None]:
    """Yield None at once, then the events, until all has ended; `drop` gets the ids that a reader leaves.

    The None lets a caller step inside, so that whoever closes the iterator ends the requests even before
    the first event. `choices` says how many answers each request id has.
    """
    left = dict(choices)
    try:
        yield None
        while left:
            for request_id, item in news.get():
                if isinstance(item, Exception):
                    raise item
                if item.finish_reason is not None:
                    left[request_id] -= 1
                    if not left[request_id]:
                        del left[request_id]
                yield item
    finally:
        for request_id in left:
            drop(request_id)


class Patience:
    """Passes on the news of a batch when all of it has ended; nobody is woken at every step.

    Parameters
    ----------
    open_choices : int
        Answers that have to end.
    listener : Listener
        Gets all news then, or at once when there is an error among them.
    """

    def __init__(self, open_choices: int, listener: Listener) -> None:
        self._open_choices, self._listener = open_choices, listener
        self._held: list[Item] = []

    def __call__(self, items: list[Item]) -> None:
        self._held += items
        failed = any(isinstance(item, Exception) for _, item in items)
        self._open_choices -= sum(
            not isinstance(e, Exception) and e.finish_reason is not None for _, e in items
        )
        if failed or not self._open_choices:
            held, self._held = self._held, []
            self._listener(held)


class EventStream:
    """One request's events, for `async for`; closing or dropping it aborts the request."""

    def __init__(
        self, events: asyncio.Queue[TokenEvent | Exception], choices: int, abort: Callable[[], object]
    ) -> None:
        self._events, self._open_choices, self._abort = events, choices, abort
        self._closed = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> TokenEvent:
        if self._closed or not self._open_choices:
            raise StopAsyncIteration
        try:
            item = await self._events.get()
        except asyncio.CancelledError:
            self.close()
            raise
        if isinstance(item, Exception):
            self._open_choices = 0
            raise item
        self._open_choices -= item.finish_reason is not None
        return item

    def close(self) -> None:
        """Abort the request, unless it has ended; a read under way gets its last event."""
        if self._open_choices and not self._closed:
            self._closed = True
            self._abort()

    async def aclose(self) -> None:
        """`close`, by the name that asynchronous generators give it."""
        self.close()

    def __del__(self) -> None:
        self.close()


def waker(loop: asyncio.AbstractEventLoop) -> Listener:
    """A listener whose addresses are queues of `loop`; it may be called from any thread."""
    return partial(_wake, loop)


def _wake(loop: asyncio.AbstractEventLoop, news: list[Item]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop is closed, and nobody there reads
        loop.call_soon_threadsafe(_distribute, news)


def _distribute(news: list[Item]) -> None:
    for events, item in news:
        events.put_nowait(item)
