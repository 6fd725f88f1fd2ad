"""How many replicas should there be?

A supermarket opens a checkout when the lines grow and closes one when cashiers sit idle, but not at
every customer: opening takes minutes, and closing what is needed again a moment later costs twice.
The rule here has therefore two parts.

**Demand.** How many replicas would the present load fill exactly to the target? `by_utilisation` asks
how many slots were busy. It can't see a queue: full replicas look alike however many wait, so it
climbs a large step in several stages, each a start-up delay long. `by_requests` counts the waiting
too and climbs at once. Both may climb too far, since the queue that built up during the start-up is
load as well, and only for a while.

**Steadiness.** A demand within `tolerance` of the present number changes nothing (hysteresis). More
replicas are wanted at once, fewer only when every wish of the last `cool_down` seconds was lower,
and then only down to the highest of them. So noise can hold replicas, but never make them flap.

This is, in short, what the Horizontal Pod Autoscaler of Kubernetes does. The rule knows no clock and
starts nothing; `simulations.cluster` drives it with virtual time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from servinglib.errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class ClusterLoad:
    """What a scaling rule may look at.

    Attributes
    ----------
    replicas : int
        Those that serve and those that are starting; neither broken ones nor ones about to leave.
    running, waiting : float
        Requests in service and in line, averaged over the time since the last decision.
    """

    replicas: int
    running: float
    waiting: float


Demand = Callable[[ClusterLoad], float]


class AutoscalingPolicy(Protocol):
    """Anything that can say how many replicas are wanted; `now` is in seconds."""

    def decide(self, load: ClusterLoad, now: float) -> int: ...


def by_utilisation(target: float, slots: int) -> Demand:
    """As many replicas of `slots` places each as have a share `target` of their places busy."""
    if not 0 < target <= 1:
        raise InvalidSetting(f"a target utilisation of {target} must be above 0 and at most 1")
    return lambda load: load.running / (target * slots)


def by_requests(target: float) -> Demand:
    """As many replicas as have `target` requests each, waiting or in service."""
    if not 0 < target < math.inf:
        raise InvalidSetting(f"a target of {target} requests per replica must be a number above 0")
    return lambda load: (load.running + load.waiting) / target


@dataclass(slots=True)
class Autoscaler:
    """Up at once, down only after `cool_down` seconds in which no more were wanted.

    Attributes
    ----------
    demand : callable
        `ClusterLoad` to the number of replicas that it would fill exactly to the target.
    minimum, maximum : int
        Bounds of what is wanted; at least 1, or nobody would be served.
    cool_down : float
        Seconds for which a higher wish is remembered; 0 forgets at once.
    tolerance : float
        Share of the present number by which demand may differ without a change.
    """

    demand: Demand
    minimum: int
    maximum: int
    cool_down: float = 60.0
    tolerance: float = 0.1
    _wishes: deque[tuple[float, int]] = field(default_factory=deque, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.maximum:
            raise InvalidSetting(
                f"minimum={self.minimum} and maximum={self.maximum} need 1 <= minimum <= maximum"
            )
        if not (0 <= self.cool_down < math.inf and 0 <= self.tolerance < 1):
            raise InvalidSetting(
                f"cool_down={self.cool_down} must be seconds, 0 or more, and tolerance={self.tolerance} "
                f"a share from 0 to below 1"
            )

    def decide(self, load: ClusterLoad, now: float) -> int:
        """How many replicas are wanted, from `minimum` to `maximum`; `now` in seconds, ascending."""
        if not self._wishes:
            # What was there before had its reasons, so a cool-down comes before the first scale-down.
            self._wishes.append((now, min(load.replicas, self.maximum)))
        self._wishes.append((now, self._wish(load)))
        while self._wishes[0][0] < now - self.cool_down:
            self._wishes.popleft()
        highest = max(wish for _, wish in self._wishes)
        return max(self._wishes[-1][1], min(highest, load.replicas))

    def _wish(self, load: ClusterLoad) -> int:
        demand = self.demand(load)
        near = abs(demand - load.replicas) <= self.tolerance * load.replicas
        wish = load.replicas if near else math.ceil(demand - 1e-9)  # 3.0000000000000004 is 3
        return min(max(wish, self.minimum), self.maximum)
