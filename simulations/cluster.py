"""Many replicas behind one door: routing, breakdowns, and a fleet that grows and shrinks.

A bank has several counters, each with its own line, and a guide at the door who sends every customer
to one. Now and then a counter closes without warning: those in its line go back to the guide, and
whoever was being served starts again elsewhere or goes home. When the lines grow the manager calls
for a colleague, who needs a while to arrive; one who is sent home first serves their own line.

The guide is a rule of `policies.routing` and the manager one of `policies.autoscaling`. Here are the
clock, by SimPy, and the counters: replicas with a few slots each (requests served side by side, at
full speed) and one line in order of arrival. Each request is a process; its story is `_Cluster._live`.
What a run leaves behind is a `ClusterRun` (`simulations.cluster_run`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import simpy

from servinglib.errors import InvalidSetting
from servinglib.policies.autoscaling import AutoscalingPolicy, ClusterLoad
from servinglib.policies.routing import RoutingPolicy
from servinglib.statistics import Values
from simulations.cluster_run import ClusterRun, Outage
from simulations.fleet import Fleet, Replica, State

Steps = Generator[simpy.Event, Any, None]


class ServiceTime(Protocol):
    """Anything that tells how many seconds a replica (by number) needs for a request (by index)."""

    def __call__(self, request: int, replica: int, /) -> float: ...


@dataclass(frozen=True, slots=True)
class Scaling:
    """How the fleet is managed.

    Attributes
    ----------
    policy : AutoscalingPolicy
        Says how many replicas are wanted.
    interval : float
        Seconds between two decisions.
    start_up : float
        Seconds from a decision until its new replicas serve.
    """

    policy: AutoscalingPolicy
    interval: float
    start_up: float

    def __post_init__(self) -> None:
        if not (0 < self.interval < math.inf and 0 <= self.start_up < math.inf):
            raise InvalidSetting(
                f"interval={self.interval} must be seconds above 0 and start_up={self.start_up} 0 or more"
            )


def simulate_cluster(
    arrivals: Values,
    service_time: ServiceTime,
    routing: RoutingPolicy,
    *,
    replicas: int,
    slots: int = 1,
    outages: Sequence[Outage] = (),
    retries: int = 0,
    scaling: Scaling | None = None,
) -> ClusterRun:
    """Send requests through a cluster and say what became of each.

    Parameters
    ----------
    arrivals : sequence or array of float
        Seconds, ascending.
    service_time : callable
        Request index and replica number to seconds; `lambda i, replica: services[i]` gives every
        policy the same customers.
    routing : RoutingPolicy
        Which of the ready replicas a request goes to. While there is none, requests wait at the door.
    replicas : int
        Replicas at the start, numbered from 0; those started later get the next numbers.
    slots : int
        Requests that a replica serves side by side.
    outages : sequence of Outage
        One whose replica isn't there, or hasn't started yet, hits nobody.
    retries : int
        How often a request that was cut off in service may start anew; the next time it has failed.
        Moving from one line to another costs nothing.
    scaling : Scaling, optional
        The fleet keeps its size unless given.

    Notes
    -----
    A routing or scaling policy that remembers is left as the run leaves it; use a new one per run.
    """
    _check(arrivals, replicas, slots, retries, outages)
    cluster = _Cluster(np.asarray(arrivals, float), service_time, routing, slots, retries)
    for _ in range(replicas):
        cluster.fleet.add(State.READY)
    cluster.env.process(cluster.send())
    for outage in outages:
        cluster.env.process(cluster.break_down(outage))
    if scaling is not None:
        cluster.env.process(cluster.scale(scaling))
    cluster.env.run()
    return cluster.run


class _Cluster:
    """The door, the fleet and the books of one run."""

    def __init__(
        self,
        arrivals: np.ndarray,
        service_time: ServiceTime,
        routing: RoutingPolicy,
        slots: int,
        retries: int,
    ) -> None:
        self.env = simpy.Environment()
        self.fleet = Fleet(self.env, slots)
        self.service_time, self.routing, self.retries = service_time, routing, retries
        self.present, self.running = _Gauge(self.env), _Gauge(self.env)
        self.unfinished = len(arrivals)
        self.arrivals = arrivals
        self.starts, self.finishes = np.full((2, len(arrivals)), np.nan)
        self.replicas = np.full(len(arrivals), -1)
        self.completed = np.zeros(len(arrivals), bool)
        self.cut_offs = np.zeros(len(arrivals), int)

    def send(self) -> Steps:
        for request, due in enumerate(self.arrivals.tolist()):
            if due > self.env.now:
                yield self.env.timeout(due - self.env.now)
            self.env.process(self._live(request))

    def _live(self, request: int) -> Steps:
        """One request, from its arrival to its only end."""
        self.present.move(+1)
        while not self.completed[request] and self.cut_offs[request] <= self.retries:
            while not self.fleet.ready:
                yield self.fleet.opened
            choice = self.routing.choose([len(replica.requests) for replica in self.fleet.ready])
            yield from self._visit(request, self.fleet.ready[choice])
        self.present.move(-1)
        self.finishes[request] = self.env.now
        self.unfinished -= 1

    def _visit(self, request: int, replica: Replica) -> Steps:
        """Wait for a slot and be served, unless the replica breaks down first."""
        me = self.env.active_process
        assert me is not None
        replica.requests[me] = None
        try:
            with replica.slots.request() as slot:
                yield slot
                yield from self._serve(request, replica)
        except simpy.Interrupt:
            pass  # it only waited, so it goes back to the door
        self.fleet.leave(replica, me)

    def _serve(self, request: int, replica: Replica) -> Steps:
        seconds = self.service_time(request, replica.number)
        if not 0 <= seconds < math.inf:
            raise InvalidSetting(
                f"request {request} would take {seconds} s on replica {replica.number}; "
                f"a service time must be a number, 0 or more"
            )
        self.starts[request], self.replicas[request] = self.env.now, replica.number
        self.running.move(+1)
        try:
            yield self.env.timeout(seconds)
            self.completed[request] = True
        except simpy.Interrupt:
            self.cut_offs[request] += 1
        self.running.move(-1)

    def break_down(self, outage: Outage) -> Steps:
        yield self.env.timeout(outage.start)
        replica = self.fleet.members.get(outage.replica)
        if replica is None:
            return
        if replica.state is State.READY:
            self.fleet.turn(replica, State.DOWN)
        for process in replica.requests:
            process.interrupt()
        if outage.end < math.inf:
            yield self.env.timeout(outage.end - self.env.now)
            if replica.state is State.DOWN:
                self.fleet.turn(replica, State.READY)

    def scale(self, scaling: Scaling) -> Steps:
        while self.unfinished:
            yield self.env.timeout(scaling.interval)
            active = self.fleet.active
            present, running = self.present.read(), self.running.read()
            wanted = scaling.policy.decide(ClusterLoad(len(active), running, present - running), self.env.now)
            if wanted < 1:
                raise InvalidSetting(f"the scaling policy wants {wanted} replicas; nobody would be served")
            for _ in range(wanted - len(active)):
                self.env.process(self._start(scaling.start_up))
            # Those that don't serve yet go first, then those with the least to finish, the newest first.
            active.sort(key=lambda r: (r.state is State.READY, len(r.requests), -r.number))
            for replica in active[: max(0, len(active) - wanted)]:
                self.fleet.turn(replica, State.DRAINING)

    def _start(self, start_up: float) -> Steps:
        replica = self.fleet.add(State.STARTING)
        yield self.env.timeout(start_up)
        if replica.state is State.STARTING:  # nobody sent it home meanwhile
            self.fleet.turn(replica, State.READY)

    @property
    def run(self) -> ClusterRun:
        changes, ready, paid = (np.array(column) for column in zip(*self.fleet.log, strict=True))
        books = (self.arrivals, self.starts, self.finishes, self.replicas, self.completed, self.cut_offs)
        return ClusterRun(*books, changes, ready, paid)


class _Gauge:
    """A number that moves in steps, and its time average since it was last read."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env, self.value, self._area, self._moved, self._read = env, 0, 0.0, 0.0, 0.0

    def move(self, step: int) -> None:
        self._area += self.value * (self.env.now - self._moved)
        self.value, self._moved = self.value + step, self.env.now

    def read(self) -> float:
        self.move(0)
        mean = self._area / (self.env.now - self._read)
        self._area, self._read = 0.0, self.env.now
        return mean


def _check(arrivals: Values, replicas: int, slots: int, retries: int, outages: Sequence[Outage]) -> None:
    if replicas < 1 or slots < 1 or retries < 0:
        raise InvalidSetting(
            f"replicas={replicas} and slots={slots} must be at least 1 and retries={retries} at least 0"
        )
    if len(arrivals) == 0 or not (np.diff(arrivals, prepend=0.0) >= 0).all():
        raise InvalidSetting("the arrivals must be at least one, from 0 s up, in ascending order; sort them")
    ordered = sorted(outages, key=lambda outage: (outage.replica, outage.start))
    for first, second in pairwise(ordered):
        if first.replica == second.replica and second.start < first.end:
            raise InvalidSetting(f"{first} and {second} overlap; make one outage of them")
