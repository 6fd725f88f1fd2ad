"""Who goes first? The order in which requests enter the running batch, and in which they must leave it.

A ward takes patients by the hour of their coming, or by how ill they are. When a bed is wanted and
none is free, the one who would be last in that order gives up theirs. Each rule here sorts; it holds
no clock and touches no tensor, so the engine and the simulator use the same one. Lesson 07 compares
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Schedulable(Protocol):
    """What a rule may look at.

    Attributes
    ----------
    arrival : float
        When the request came, in seconds.
    number : int
        Counts the requests in the order of coming; settles ties.
    priority : float
        Higher goes first.
    """

    arrival: float
    number: int
    priority: float


S = TypeVar("S", bound=Schedulable)


class SchedulingPolicy(Protocol):
    """Anything that can put requests in order, the first to be served first."""

    def order(self, requests: Iterable[S], now: float) -> list[S]: ...


class FirstComeFirstServed:
    """By arrival: nobody is overtaken, and a long request makes all behind it wait."""

    def order(self, requests: Iterable[S], now: float) -> list[S]:
        """Earliest arrival first."""
        return sorted(requests, key=lambda r: (r.arrival, r.number))


class ByPriority:
    """By priority, and by arrival among equals; while urgent ones keep coming, the rest starves."""

    def order(self, requests: Iterable[S], now: float) -> list[S]:
        """Highest priority first."""
        return sorted(requests, key=lambda r: (-r.priority, r.arrival, r.number))
