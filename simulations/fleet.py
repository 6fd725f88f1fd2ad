"""The replicas of a simulated cluster, and who of them takes requests at the moment.

A bank's staff list on a day: who is on the way, who sits at an open counter, who has gone to the
doctor, who serves the rest of a line before going home. Only open counters get new customers, but
everybody on the list is paid, so the list also keeps the times at which it changed.
`simulations.cluster` tells what happens to the customers.
"""

from __future__ import annotations

from enum import Enum, auto

import simpy


class State(Enum):
    """What a replica is doing; only a ready one gets requests."""

    STARTING = auto()
    READY = auto()
    DOWN = auto()
    DRAINING = auto()


class Replica:
    """A few slots, and the processes of the requests that were sent here.

    Attributes
    ----------
    number : int
        From 0, in the order in which replicas were added; never given twice.
    state : State
        Changed by `Fleet.turn` only.
    slots : simpy.Resource
        Places in service; behind them one line in order of arrival.
    requests : dict of simpy.Process to None
        All that came and haven't left, oldest first: a set that keeps its order.
    """

    def __init__(self, env: simpy.Environment, number: int, slots: int, state: State) -> None:
        self.number, self.state = number, state
        self.slots = simpy.Resource(env, slots)
        self.requests: dict[simpy.Process, None] = {}


class Fleet:
    """All replicas that cost money, from the day they are ordered to the day they are gone.

    Attributes
    ----------
    members : dict of int to Replica
        By number.
    ready : list of Replica
        Those that take requests, by number.
    opened : simpy.Event
        Happens when a replica becomes ready; for requests that find none.
    log : list of (float, int, int)
        After each change: the time in seconds, how many were ready, how many were paid.
    """

    def __init__(self, env: simpy.Environment, slots: int) -> None:
        self.env, self.slots = env, slots
        self.members: dict[int, Replica] = {}
        self.ready: list[Replica] = []
        self.opened = env.event()
        self.log: list[tuple[float, int, int]] = []
        self._added = 0

    def add(self, state: State) -> Replica:
        """A new replica."""
        replica = Replica(self.env, self._added, self.slots, state)
        self._added += 1
        self.members[replica.number] = replica
        self.turn(replica, state)
        return replica

    def leave(self, replica: Replica, process: simpy.Process) -> None:
        """A request goes: it was answered, or the replica broke down."""
        del replica.requests[process]
        if replica.state is State.DRAINING:
            self.turn(replica, State.DRAINING)

    def turn(self, replica: Replica, state: State) -> None:
        """Change what a replica is doing; one that drains and has nothing left to do is gone."""
        replica.state = state
        if state is State.DRAINING and not replica.requests:
            del self.members[replica.number]
        self.ready = [each for each in self.members.values() if each.state is State.READY]
        self.log.append((self.env.now, len(self.ready), len(self.members)))
        if self.ready:
            self.opened.succeed()
            self.opened = self.env.event()

    @property
    def active(self) -> list[Replica]:
        """Those that serve or will soon."""
        return [each for each in self.members.values() if each.state in (State.STARTING, State.READY)]
