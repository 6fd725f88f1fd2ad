"""Dynamic batching as a server: many callers ask for one answer each, the model is asked in batches.

A ferry takes cars one by one at the quay and crosses when its deck is full, or when the first car
has waited long enough; no driver knows of the others. `predict` is the quay: it checks what comes,
puts it in line (`policies.waiting_room`) and hands out a tag, the `Reply`. When a batch leaves is
the rule's to say (`policies.batching`), and the `Dispatcher` sees to it. Lesson 01 serves a real
model with this server; lesson 04 builds its rule.

Sharing a ferry must harm nobody: a caller that gives up, misses its deadline or sends a bad item
costs its neighbours nothing, and every request ends exactly once, with an answer or a typed error.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from servinglib.errors import InvalidRequest, InvalidSetting, QueueFull, ServerClosed, ServerNotStarted
from servinglib.policies.adaptive_batching import AdaptiveBatching
from servinglib.policies.batching import DynamicBatching
from servinglib.request import Request
from servinglib.server.batch_statistics import ServerStatistics
from servinglib.server.dispatcher import Dispatcher, State
from servinglib.server.isolation import as_error
from servinglib.server.reply import Reply


class BatchModel(Protocol):
    """Anything that answers a list of items with a list of results; `generate_batch` may be async."""

    def generate_batch(self, items: list[Any], /) -> Any: ...


class _RuleSetting:
    """A setting of the batching rule, checked and in force as soon as it is set."""

    def __set_name__(self, _: type, name: str) -> None:
        self.name = name

    def __get__(self, server: BatchInferenceServer, _: type | None = None) -> Any:
        return getattr(server._batching, self.name)

    def __set__(self, server: BatchInferenceServer, value: float) -> None:
        setattr(server._batching, self.name, value)
        server._dispatcher.look_up_soon()


class BatchInferenceServer:
    """Answers single requests by asking the model in batches.

    Use it as `async with BatchInferenceServer(model) as server: await server.predict(item)`. Leaving
    the block answers everybody first; leaving it by an exception fails who still waits.

    Parameters
    ----------
    model : BatchModel
        Has `generate_batch(list) -> list`, one result or one exception per item. A synchronous one
        runs in a thread of its own.
    max_batch_size : int, optional
        Most requests in a batch; 8 unless `batching` says otherwise.
    max_wait_time : float, optional
        How long a batch waits for company after its first request, in seconds; 0.01 unless
        `batching` says otherwise.
    max_queue_size : int
        Most requests that may wait.
    max_batch_cost : float, optional
        Most cost in a batch; no limit unless `batching` says otherwise.
    cost : callable, optional
        `cost(item)` is what an item takes up of `max_batch_cost`; 1 by default.
    batching : DynamicBatching, optional
        The rule, such as `AdaptiveBatching(latency_target=0.2)`. It belongs to this server from now on.
    isolate_failures : bool
        Whether a batch that raises is cut in half until the guilty items are found.

    Attributes
    ----------
    max_batch_size, max_wait_time, max_batch_cost, max_queue_size
        May be set at any time.
    """

    max_batch_size = _RuleSetting()
    max_wait_time = _RuleSetting()
    max_batch_cost = _RuleSetting()

    def __init__(
        self,
        model: BatchModel,
        max_batch_size: int | None = None,
        max_wait_time: float | None = None,
        max_queue_size: int = 1024,
        *,
        max_batch_cost: float | None = None,
        cost: Callable[[Any], float] | None = None,
        batching: DynamicBatching | None = None,
        isolate_failures: bool = True,
    ) -> None:
        batching = batching or DynamicBatching()
        settings = {
            "max_batch_size": max_batch_size,
            "max_wait_time": max_wait_time,
            "max_batch_cost": max_batch_cost,
        }
        for name, value in settings.items():
            if value is not None:
                setattr(batching, name, value)
        self._batching = batching
        self._dispatcher = Dispatcher(model, batching, isolate_failures)
        self._loop: asyncio.AbstractEventLoop | None = None  # until started, the running one
        self._cost = cost
        self._on_cancel = self._dispatcher.cancelled
        self._stamp_clock: Callable[[], float] = getattr(model, "now", time.perf_counter)
        self.max_queue_size = max_queue_size

    @property
    def max_queue_size(self) -> int:
        """Most requests that may wait; lowering it sends nobody away who waits already."""
        return self._max_queue_size

    @max_queue_size.setter
    def max_queue_size(self, value: int) -> None:
        if value < 1:
            raise InvalidSetting(f"max_queue_size={value} must be at least 1")
        self._max_queue_size = value

    async def start(self) -> BatchInferenceServer:
        """Open the server; done by `async with`. A stopped server stays stopped."""
        match self._dispatcher.state:
            case State.NEW:
                self._dispatcher.open()
                self._loop = self._dispatcher.loop
            case State.DRAINING | State.CLOSED:
                raise ServerClosed
        return self

    async def stop(self, drain: bool = True) -> None:
        """Close the server; it takes no more requests from this call on.

        A batch in a worker thread can't be interrupted: its callers may be told at once, but this
        method waits for it, so that the model may be freed afterwards. An asynchronous model's batch
        is cancelled. A second call waits for the first; with `drain=False` it cuts it short.

        Parameters
        ----------
        drain : bool
            Answer every admitted request, or else fail them all with `ServerClosed` now.
        """
        dispatcher = self._dispatcher
        if dispatcher.state is State.NEW:
            dispatcher.state = State.CLOSED
            return
        if not drain:
            dispatcher.shut_down()
        elif dispatcher.state is State.OPEN:
            dispatcher.drain()
        await dispatcher.ended.wait()

    def predict(self, item: Any, priority: float = 0, timeout: float | None = None) -> Reply:
        """Ask the model about one item.

        The request is in the queue when this returns; await the reply for the answer, or cancel it.

        Parameters
        ----------
        item : object
            What `generate_batch` takes a list of.
        priority : float
            Higher is served first; equal ones in the order of coming.
        timeout : float, optional
            Seconds until the caller gives up, whether the request still waits or is in service.

        Returns
        -------
        Reply
            Awaitable, and accepted by everything in asyncio that takes a future or a coroutine.

        Raises
        ------
        QueueFull, DeadlineExceeded, InvalidRequest, ServerNotStarted, ServerClosed
            When the reply is awaited, as is an exception that the model has for this item.
        """
        dispatcher, room = self._dispatcher, self._dispatcher.room
        reply = Reply(loop=self._loop)
        reply.payload, reply.priority, reply.on_cancel = item, priority, self._on_cancel
        if not dispatcher.accepting:
            reply.set_exception(ServerNotStarted() if dispatcher.state is State.NEW else ServerClosed())
            return reply
        dispatcher.books.offered += 1
        try:
            reply.cost = 1.0 if self._cost is None else self._checked_cost(item)
            if room.count >= self._max_queue_size:
                self._make_room()
            now = reply.arrival = dispatcher.time()
            reply.deadline = math.inf if timeout is None else _deadline(now, timeout)
            room.enter(reply)
        except Exception as refusal:  # noqa: BLE001 - a fault of the caller's own `cost` is its answer
            dispatcher.books.rejected += 1
            reply.set_exception(as_error(refusal))
            return reply
        if isinstance(item, Request):
            item.timeline.stamp("received", self._stamp_clock())
        if not dispatcher.batch or timeout is not None:
            dispatcher.look_up_soon()
        return reply

    @property
    def statistics(self) -> ServerStatistics:
        """The counters at this moment."""
        dispatcher, rule = self._dispatcher, self._batching
        running = sum(not reply.done() for reply in dispatcher.batch)
        reachable = rule.target_reachable if isinstance(rule, AdaptiveBatching) else None
        return dispatcher.books.snapshot(dispatcher.room.count, running, reachable)

    async def __aenter__(self) -> BatchInferenceServer:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        await self.stop(drain=kind is None)

    def _make_room(self) -> None:
        """Let a full batch leave that only waits to be looked at, or refuse."""
        room = self._dispatcher.room
        self._dispatcher.look_up()
        if room.count >= self._max_queue_size:
            raise QueueFull(room.count, self._max_queue_size, self._retry_after())

    def _checked_cost(self, item: Any) -> float:
        assert self._cost is not None
        cost, limit = self._cost(item), self._batching.max_batch_cost
        if not 0 <= cost <= limit:
            raise InvalidRequest(
                f"the item costs {cost:g}, but a cost must lie between 0 and max_batch_cost={limit:g}; "
                f"send a smaller item, or raise the limit"
            )
        return cost

    def _retry_after(self) -> float:
        """Seconds that a batch takes at the measured rate, since then a batch of places is free.

        Before the first batch has ended nothing is measured, and it is the window.
        """
        rate = self._dispatcher.books.service_rate
        return max(1, len(self._dispatcher.batch)) / rate if rate else self.max_wait_time


def _deadline(now: float, timeout: float) -> float:
    if math.isnan(timeout):
        raise InvalidRequest("timeout=nan must be a number of seconds, or None for no limit")
    return now + timeout
