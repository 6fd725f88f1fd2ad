"""When does a batch fire? Dynamic batching as a rule without a clock.

A lift is the everyday picture: it leaves when it is full, or when its first passenger has waited
long enough. Longer waiting fills the lift better and makes that passenger later; lesson 04 finds
out when that pays. Here stands only the rule: `decide` looks at the waiting room and the time it
is told, and says `Fire` or `Wait`. The asyncio server (`server.batch_server`) drives it with real
time and the simulator (`simulations.serving`) with virtual time, so they can't come to differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

from servinglib.errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a batching rule may look at.

    Attributes
    ----------
    count : int
        Requests that wait.
    cost : float
        Sum of their costs (tokens, say; equal to `count` where cost isn't used).
    oldest_arrival : float
        When the longest-waiting of them came, in seconds.
    """

    count: int
    cost: float
    oldest_arrival: float


@dataclass(frozen=True, slots=True)
class Fire:
    """Send a batch now: at most `max_size` requests of together at most `max_cost`."""

    max_size: int
    max_cost: float = math.inf


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing before `until` (seconds; infinite when nobody waits) unless somebody arrives."""

    until: float


class BatchingPolicy(Protocol):
    """Anything that can tell an idle server what to do.

    `now` is infinite when no more requests can come (a server that drains): waiting is pointless.
    """

    def decide(self, waiting: Waiting, now: float) -> Fire | Wait: ...


@dataclass(slots=True)
class DynamicBatching:
    """Fire when the batch is full, or when the oldest request has waited `max_wait_time`.

    The settings may be changed at any time; each is checked when it is set.

    Attributes
    ----------
    max_batch_size : int
        Most requests in a batch, at least 1.
    max_wait_time : float
        How long the window stays open after its first request, in seconds; 0 never waits.
    max_batch_cost : float
        Most cost in a batch, in the caller's unit; infinite means no such limit.
    """

    max_batch_size: int = 8
    max_wait_time: float = 0.01
    max_batch_cost: float = math.inf

    def __setattr__(self, name: str, value: float) -> None:
        match name:
            case "max_batch_size" if not (isinstance(value, Integral) and value >= 1):
                raise InvalidSetting(f"max_batch_size={value!r} must be a whole number, at least 1")
            case "max_wait_time" if not 0 <= value < math.inf:
                raise InvalidSetting(f"max_wait_time={value!r} must be a number of seconds, 0 or more")
            case "max_batch_cost" if not value > 0:
                raise InvalidSetting(f"max_batch_cost={value!r} must be positive")
        object.__setattr__(self, name, value)

    def decide(self, waiting: Waiting, now: float) -> Fire | Wait:
        """`Fire` if the batch is full or the window is over, else `Wait` until it will be."""
        return self.fire_or_wait(waiting, now, self.max_batch_size, self.max_wait_time)

    def observe(self, size: int, seconds: float) -> None:
        """Hear how long a batch took; this rule learns nothing from it, `AdaptiveBatching` does."""

    def fire_or_wait(self, waiting: Waiting, now: float, size: int, wait: float) -> Fire | Wait:
        """The rule itself, for a given batch size and window (seconds)."""
        if not waiting.count:
            return Wait(math.inf)
        full = waiting.count >= size or waiting.cost >= self.max_batch_cost
        window_end = waiting.oldest_arrival + wait
        if full or now >= window_end:
            return Fire(size, self.max_batch_cost)
        return Wait(window_end)
