"""The answer to come: what a caller holds between asking and being answered.

At a cloakroom you get a numbered tag the moment you hand your coat in, not when you come back for
it. `BatchInferenceServer.predict` works like that: the request is in the queue when the call
returns, and the tag is a `Reply` to await, or to tear up.

Why not simply `async def predict`? A coroutine must be wrapped in a task before two of them can wait
at once, and a task costs more than everything else the server does for a request. A `Reply` is a
future, which `asyncio.gather`, `wait_for`, `shield` and `as_completed` take as it is. It also has a
coroutine's three methods, so that `asyncio.create_task` and `TaskGroup.create_task` take it, too.
(`asyncio.wait` takes no coroutines, and so needs tasks.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Reply(asyncio.Future[Answer], Coroutine[Any, Any, Answer]):
    """A future that stands in line itself, and leaves it at once when its caller gives up.

    Attributes
    ----------
    payload : object
        The item that the model is asked about.
    on_cancel : callable
        Called once with this reply if the caller cancels it before it is answered.
    arrival, priority, cost, deadline, waiting
        Its place in the waiting room, as in `policies.waiting_room.Place`.
    """

    __slots__ = ("arrival", "cost", "deadline", "on_cancel", "payload", "priority", "waiting")

    payload: Any
    on_cancel: Callable[[Reply], None]
    arrival: float
    priority: float
    cost: float
    deadline: float
    waiting: bool

    def cancel(self, msg: Any | None = None) -> bool:
        """Give up; the request leaves the waiting room before this returns."""
        if not super().cancel(msg):
            return False
        self.on_cancel(self)
        return True

    def send(self, _: Any) -> Reply[Answer]:
        """As a coroutine's: wait for the answer, or return it."""
        if self.done():
            raise StopIteration(self.result())
        self._asyncio_future_blocking = True  # how `await` tells a task to wait for a future
        return self

    def throw(self, error: Any, *_: object) -> Reply[Answer]:
        """As a coroutine's: the task that waits for the answer is cancelled, or hears of an error."""
        self.cancel()
        raise error

    def close(self) -> None:
        """As a coroutine's: nobody will wait for the answer any more."""
        self.cancel()
