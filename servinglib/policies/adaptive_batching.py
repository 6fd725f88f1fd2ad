"""Dynamic batching that sets itself: learn how long batches take, then choose size and wait.

A ferry captain with a timetable to keep learns how long the crossing takes with few and with many
cars aboard, and from that how many he may take. Here the crossing is H(b) = αb + τ₀
(`policies.batch_time`), and the timetable is a latency target T.

**The choice.** A request that comes just after a batch of b has left waits for that batch to come
back, H(b), and then travels in one of its own, H(b). One that comes to an idle server waits for the
window w and then travels, w + H(b). So as long as no more than one batch waits, every latency is at
most 2H(b) + w, and the rule keeps 2H(b) + w ≤ T:

    b = the largest size with 2H(b) ≤ T, since a larger batch means more capacity,
    w = what that leaves, T - 2H(b).

When even b = 1 is too slow the target can't be kept; the rule then serves one at a time, without
waiting, and `target_reachable` says so. When the load exceeds the capacity b/H(b) the queue grows
and no rule keeps the target: bound the queue, or give requests deadlines.

**The fit** is least squares on the relative error, in which each observation counts `MEMORY` times
as much as the one after it, so that the rule follows a model that becomes slower or faster. Five
sums are all that it has to remember.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from servinglib.errors import InvalidSetting
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import DynamicBatching, Fire, Wait, Waiting

MEMORY = 0.95  # about the last 20 batches count
SPREAD = 1e-6  # relative variance of the sizes below which they say nothing about the slope


@dataclass(slots=True)
class ForgettingFit:
    """Fits H(b) = αb + τ₀ to batch times as they come, forgetting old ones.

    With weights v = (forgetting)/seconds², the five sums are those of v, vb, vb², vy and vby; the
    1/seconds² makes the error relative, as in `BatchTime.fit`.
    """

    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    _alpha: float = 0.0  # the last slope that the sizes told us

    def observe(self, size: int, seconds: float) -> None:
        """Learn that a batch of `size` took `seconds`; a clock too coarse to see it teaches nothing."""
        if seconds <= 0:
            return
        weight = 1 / seconds**2
        terms = (1.0, size, size * size, seconds, size * seconds)
        self._sums = [MEMORY * s + weight * t for s, t in zip(self._sums, terms, strict=True)]

    @property
    def batch_time(self) -> BatchTime | None:
        """The fitted law, neither part of it negative; None before the first observation.

        While all recent batches had one size, that size's time is known but not the slope: the last
        slope stays and the line is moved to go through the recent mean.
        """
        v, vb, vbb, vy, vby = self._sums
        if not v:
            return None
        size, seconds = vb / v, vy / v
        variance = vbb / v - size**2
        if variance > SPREAD * size**2:
            self._alpha = (vby / v - size * seconds) / variance
        alpha = min(max(self._alpha, 0.0), seconds / size)
        return BatchTime(alpha, seconds - alpha * size)


@dataclass(slots=True)
class AdaptiveBatching(DynamicBatching):
    """Choose batch size and window for a latency target, from batch times measured on the way.

    It starts with single requests and never takes more than twice the largest batch that it has
    seen, so that an unknown model isn't tried on a full batch first.

    Attributes
    ----------
    latency_target : float
        Longest wished time from arrival to answer, in seconds; may be changed at any time.
    max_batch_size, max_wait_time, max_batch_cost
        Bounds of the choice, as in `DynamicBatching`.
    """

    max_batch_size: int = 64
    latency_target: float = 0.2
    _fit: ForgettingFit = field(default_factory=ForgettingFit, init=False, repr=False)
    _largest: int = field(default=0, init=False, repr=False)  # largest batch seen

    def __setattr__(self, name: str, value: float) -> None:
        if name == "latency_target" and not 0 < value < math.inf:
            raise InvalidSetting(f"latency_target={value!r} must be a number of seconds above 0")
        DynamicBatching.__setattr__(self, name, value)

    def decide(self, waiting: Waiting, now: float) -> Fire | Wait:
        """As `DynamicBatching`, with the size and the window chosen now."""
        size, wait = self.choice
        return self.fire_or_wait(waiting, now, size, wait)

    def observe(self, size: int, seconds: float) -> None:
        """Learn that a batch of `size` took `seconds`."""
        self._largest = max(self._largest, size)
        self._fit.observe(size, seconds)

    @property
    def choice(self) -> tuple[int, float]:
        """The batch size and the window (seconds) chosen now."""
        law = self.batch_time
        if law is None or not self.target_reachable:
            return 1, 0.0
        affordable = (self.latency_target / 2 - law.tau0) / law.alpha if law.alpha else math.inf
        size = max(1, math.floor(min(affordable, self.max_batch_size, 2 * self._largest)))
        return size, max(0.0, min(self.max_wait_time, self.latency_target - 2 * law(size)))

    @property
    def batch_time(self) -> BatchTime | None:
        """The law that was learned; None before the first batch."""
        return self._fit.batch_time

    @property
    def target_reachable(self) -> bool:
        """False when even a batch of one takes more than half of the target."""
        law = self.batch_time
        return law is None or 2 * law(1) <= self.latency_target
