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
    """Anything that can tell an idle server what to do."""

    def decide(self, waiting: Waiting, now: float) -> Fire | Wait: ...


@dataclass(slots=True)
class DynamicBatching:
    """Fire when the batch is full, or when the oldest request has waited `max_wait_time`.

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

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise InvalidSetting(f"max_batch_size={self.max_batch_size} must be at least 1")
        if not 0 <= self.max_wait_time < math.inf:
            raise InvalidSetting(f"max_wait_time={self.max_wait_time} must be a number of seconds, 0 or more")
        if not self.max_batch_cost > 0:
            raise InvalidSetting(f"max_batch_cost={self.max_batch_cost} must be positive")

    def decide(self, waiting: Waiting, now: float) -> Fire | Wait:
        """`Fire` if the batch is full or the window is over, else `Wait` until it will be."""
        if not waiting.count:
            return Wait(math.inf)
        full = waiting.count >= self.max_batch_size or waiting.cost >= self.max_batch_cost
        window_end = waiting.oldest_arrival + self.max_wait_time
        if full or now >= window_end:
            return Fire(self.max_batch_size, self.max_batch_cost)
        return Wait(window_end)
