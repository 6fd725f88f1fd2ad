"""An event loop whose clock jumps: asyncio programs run exactly, and in no time.

A film is cut so that nobody sees the actors wait: when all have said their lines, the next scene
begins at once. This loop does the same. When no task can go on, it doesn't sleep until the next
timer, it sets its clock to that timer's time. An hour of waiting takes a millisecond, and a program
that decides by the clock does precisely the same at every run. Tests, the checks of exercises and
the comparison of the real server with the simulator use it.

Only what happens inside the loop can be sped up like this: a program that waits for a thread or a
socket finds the clock standing still, so the loop refuses to wait for ever and says so.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from servinglib.errors import ServingError

Result = TypeVar("Result")


class NothingWillHappen(ServingError):
    """Every task waits and no timer is set, so virtual time would stand still for ever."""

    def __init__(self, now: float) -> None:
        super().__init__(
            f"at virtual time {now:.6g} s every task waits and no timer is set; "
            f"something is never answered, or waits for a thread or a socket (use a real loop for those)"
        )


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of sleeping until the next timer, sets the clock to it."""

    jump: Callable[[], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self.jump()
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop on virtual time, which begins at 0 s."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._serial = itertools.count()
        selector = _JumpingSelector()
        selector.jump = self._jump
        super().__init__(selector)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's own; remembers the time, so that the clock can be set to it exactly."""
        handle = super().call_at(when, callback, *args, context=context)
        heapq.heappush(self._timers, (when, next(self._serial), handle))
        return handle

    def _jump(self) -> None:
        while self._timers and (self._timers[0][0] <= self._now or self._timers[0][2].cancelled()):
            heapq.heappop(self._timers)
        upcoming = self._timers[0][0] if self._timers else math.inf
        if upcoming == math.inf:
            raise NothingWillHappen(self._now)
        self._now = upcoming


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` to its end on virtual time, as `asyncio.run` does on real time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
