"""Which replica gets the next request?

Two checkouts, one customer with a basket: go to the one whose turn it is, or to the shorter line?
A rule here sees how many requests each replica has taken and not yet answered, and names one. The
dispatcher in front of real replicas and the simulator use the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class RoutingPolicy(Protocol):
    """Anything that can name a replica."""

    def choose(self, outstanding: Sequence[int]) -> int: ...


class RoundRobin:
    """Each replica in turn, whatever it has to do."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, outstanding: Sequence[int]) -> int:
        """The index of the next replica; `outstanding` counts each one's unanswered requests."""
        replica = self._turn % len(outstanding)
        self._turn = replica + 1
        return replica


class LeastOutstanding:
    """The replica with the fewest unanswered requests; of equals, the first."""

    def choose(self, outstanding: Sequence[int]) -> int:
        """The index of the least loaded replica; `outstanding` counts each one's unanswered requests."""
        return min(range(len(outstanding)), key=outstanding.__getitem__)
