"""Which replica gets the next request?

Two checkouts, one customer with a basket: go to the one whose turn it is, or to the shorter line?
A rule here sees how many requests each replica has taken and not yet answered, and names one. The
dispatcher in front of real replicas and the simulators (`simulations.serving`, `simulations.cluster`)
use the same rule.

From blind to all-seeing: `RandomChoice` looks at nothing, `RoundRobin` remembers its last choice,
`PowerOfChoices` asks two replicas, `LeastOutstanding` asks all. Theory calls the last one
join-shortest-queue: its queue counts those waiting and the one in service, which is just what is
outstanding as long as requests and answers take no time on the way. So there is one class for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from servinglib.errors import InvalidSetting


class RoutingPolicy(Protocol):
    """Anything that can name a replica."""

    def choose(self, outstanding: Sequence[int]) -> int: ...


class RandomChoice:
    """Any replica, each as likely as the others.

    Parameters
    ----------
    rng : numpy.random.Generator
        A stream of its own (`servinglib.statistics.streams`), so that the customers stay the same.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, outstanding: Sequence[int]) -> int:
        """The index of a random replica; `outstanding` counts each one's unanswered requests."""
        return int(self._rng.integers(len(outstanding)))


class RoundRobin:
    """Each replica in turn, whatever it has to do."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, outstanding: Sequence[int]) -> int:
        """The index of the next replica; `outstanding` counts each one's unanswered requests."""
        replica = self._turn % len(outstanding)
        self._turn = replica + 1
        return replica


class PowerOfChoices:
    """The less loaded of a few different random replicas; of equals, the one drawn first.

    Two choices give most of what looking at all of them gives, at the price of two questions.

    Parameters
    ----------
    rng : numpy.random.Generator
        A stream of its own.
    choices : int
        How many replicas are asked; all of them where there are no more.

    Notes
    -----
    M. Mitzenmacher, The power of two choices in randomized load balancing, IEEE Transactions on
    Parallel and Distributed Systems 12 (2001).
    """

    def __init__(self, rng: np.random.Generator, choices: int = 2) -> None:
        if choices < 1:
            raise InvalidSetting(f"choices={choices} must be at least 1; 2 is the power of two choices")
        self._rng, self._choices = rng, choices

    def choose(self, outstanding: Sequence[int]) -> int:
        """The index of a replica; `outstanding` counts each one's unanswered requests."""
        sample: list[int] = []
        while len(sample) < min(self._choices, len(outstanding)):
            replica = int(self._rng.integers(len(outstanding)))
            if replica not in sample:
                sample.append(replica)
        return min(sample, key=outstanding.__getitem__)


class LeastOutstanding:
    """The replica with the fewest unanswered requests; of equals, the first."""

    def choose(self, outstanding: Sequence[int]) -> int:
        """The index of the least loaded replica; `outstanding` counts each one's unanswered requests."""
        return min(range(len(outstanding)), key=outstanding.__getitem__)
