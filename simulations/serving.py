"""A batching server in virtual time: the same decisions as the real one, without the waiting.

A model railway runs by the timetable of the real one, only an hour takes a second. Here the
timetable is the server's own code: `policies.batching` says when a batch fires, `policies.
waiting_room` who is in it, `policies.routing` which replica a request goes to. Only two things are
replaced: the clock, by SimPy's, and the model, by a `BatchTime`, measured or assumed. So where this
simulation and the real server differ, the batch times are to blame, or something outside the rules
(lesson 01 looks for it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import simpy

from servinglib.errors import InvalidSetting
from servinglib.policies.batching import DynamicBatching, Fire
from servinglib.policies.routing import RoundRobin, RoutingPolicy
from servinglib.policies.waiting_room import WaitingRoom
from servinglib.request import Timeline
from servinglib.statistics import Values


class ServiceTime(Protocol):
    """Anything that tells how many seconds the next batch of `size` requests takes."""

    def __call__(self, size: int, /) -> float: ...


class EmpiricalBatchTime:
    """Batch times drawn from measured ones, so that their scatter is in the prediction too.

    For a size that was measured, one of its times is drawn. Between two measured sizes both are read
    at the same random percentile and joined by a straight line: a slow moment is slow for any size.
    Outside the measured sizes nothing is known and nothing is made up.

    Parameters
    ----------
    samples : mapping of int to sequence or array of float
        Measured seconds for each batch size.
    seed : int
        Makes the draws repeatable.
    """

    def __init__(self, samples: Mapping[int, Values], *, seed: int) -> None:
        if not samples or any(len(times) == 0 for times in samples.values()):
            raise InvalidSetting("every batch size in the table needs at least one measured time")
        self._sorted = {size: sorted(samples[size]) for size in sorted(samples)}
        self._rng = np.random.default_rng(seed)
        self._neighbours = {size: (size, size, 0.0) for size in self._sorted}
        for below, above in pairwise(self._sorted):
            for size in range(below + 1, above):
                self._neighbours[size] = (below, above, (size - below) / (above - below))

    def __call__(self, size: int) -> float:
        """Seconds that one batch of `size` takes, at random."""
        if size not in self._neighbours:
            raise InvalidSetting(
                f"no time was measured for batches of {size}, only for {min(self._sorted)} to "
                f"{max(self._sorted)}; measure the smallest and the largest batch that can occur"
            )
        below, above, weight = self._neighbours[size]
        u = self._rng.random()
        low, high = (times[int(u * len(times))] for times in (self._sorted[below], self._sorted[above]))
        return low + weight * (high - low)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch that was served.

    Attributes
    ----------
    replica : int
    start, end : float
        In seconds.
    members : tuple of int
        Indices of its requests, in the order in which they were taken.
    """

    replica: int
    start: float
    end: float
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What happened, in the terms in which a real run is told.

    Attributes
    ----------
    timelines : tuple of Timeline
        One per request, in order of arrival; `servinglib.metrics` takes them.
    batches : tuple of Batch
        In the order in which they started.
    """

    timelines: tuple[Timeline, ...]
    batches: tuple[Batch, ...]

    @property
    def batch_sizes(self) -> Counter[int]:
        """How many batches there were of each size."""
        return Counter(len(batch.members) for batch in self.batches)

    @property
    def latencies(self) -> np.ndarray:
        """Seconds from arrival to answer, by request, shape (requests,)."""
        return np.array([t.total for t in self.timelines]) / 1e9


def simulate_batching(
    arrivals: Values,
    policy: DynamicBatching,
    service_time: ServiceTime,
    *,
    replicas: int = 1,
    routing: RoutingPolicy | None = None,
    network: float = 0.0,
) -> SimulationResult:
    """Send arrivals through batching servers and say what became of each.

    Parameters
    ----------
    arrivals : sequence or array of float
        Seconds, ascending.
    policy : DynamicBatching
        The rule; each replica has a copy, so what one learns stays its own.
    service_time : callable
        Batch size to seconds: a `BatchTime`, an `EmpiricalBatchTime`, or any function.
    replicas : int
        Servers side by side, each with its own queue.
    routing : RoutingPolicy, optional
        Which replica a request goes to; each in turn unless given.
    network : float
        Seconds added to every answer that keep no replica busy.

    Notes
    -----
    An answer's tokens are all held back until the batch ends, so `first_token` equals `finished`.
    """
    if replicas < 1:
        raise InvalidSetting(f"replicas={replicas} must be at least 1")
    if any(later < earlier for earlier, later in pairwise(arrivals)):
        raise InvalidSetting("the arrivals are not in ascending order; sort them")
    env = simpy.Environment()
    batches: list[Batch] = []
    pool = [_Replica(env, n, deepcopy(policy), service_time, batches) for n in range(replicas)]
    env.process(_send(env, arrivals, pool, routing or RoundRobin()))
    env.run()
    batches.sort(key=lambda batch: batch.start)
    return SimulationResult(_timelines(arrivals, batches, network), tuple(batches))


class _Replica:
    """One server: a waiting room, and a process that serves it batch by batch."""

    def __init__(
        self,
        env: simpy.Environment,
        number: int,
        policy: DynamicBatching,
        service_time: ServiceTime,
        batches: list[Batch],
    ) -> None:
        self.env, self.number, self.batches = env, number, batches
        self.policy, self.service_time = policy, service_time
        self.room: WaitingRoom[int] = WaitingRoom()
        self.outstanding = 0
        self.idle = env.event()
        env.process(self._serve())

    def receive(self, request: int) -> None:
        self.outstanding += 1
        self.room.add(request, now=self.env.now)
        if not self.idle.triggered:
            self.idle.succeed()

    def _serve(self) -> Generator[simpy.Event, Any, None]:
        while True:
            action = self.policy.decide(self.room.waiting, self.env.now)
            if isinstance(action, Fire):
                yield from self._run_batch(action)
                continue
            self.idle = self.env.event()
            if self.room.waiting.count:
                yield self.idle | self.env.timeout(action.until - self.env.now)
            else:
                yield self.idle

    def _run_batch(self, fire: Fire) -> Generator[simpy.Event, Any, None]:
        start = self.env.now
        members = tuple(entry.item for entry in self.room.take(fire))
        yield self.env.timeout(self.service_time(len(members)))
        self.policy.observe(len(members), self.env.now - start)
        self.outstanding -= len(members)
        self.batches.append(Batch(self.number, start, self.env.now, members))


def _send(
    env: simpy.Environment, arrivals: Values, pool: Sequence[_Replica], routing: RoutingPolicy
) -> Generator[simpy.Event, Any, None]:
    for request, due in enumerate(arrivals):
        if due > env.now:
            yield env.timeout(due - env.now)
        pool[routing.choose([replica.outstanding for replica in pool])].receive(request)


def _timelines(arrivals: Values, batches: Sequence[Batch], network: float) -> tuple[Timeline, ...]:
    timelines: dict[int, Timeline] = {}
    for batch in batches:
        start, end, answered = (round(s * 1e9) for s in (batch.start, batch.end, batch.end + network))
        for request in batch.members:
            arrival = round(arrivals[request] * 1e9)
            timelines[request] = Timeline(arrival, arrival, arrival, start, end, end, answered)
    return tuple(timelines[request] for request in range(len(arrivals)))
