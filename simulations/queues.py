"""One queue at a time: who is served, when, and who must wait.

At a post office the rules of the queue are on the wall: one line or one per counter, express letters
first, closed when the room is full; and some people look at their watch and leave. Here each set of
rules is a program that tells what one customer does in the order in which it happens: come, wait for a
turn, be served, go. SimPy plays all these lives against one clock. Lesson 03 reads them one by one and
puts the formulas of `simulations.theory` beside them.

Every system takes the customers and returns a `QueueRun`, so that two systems can be given the very
same ones. On one and the same instant arrivals come first, in the order given, then patience ends,
then services. So who comes just when a server becomes free still finds it busy, and is there when it
chooses whom to serve next.

For millions of customers `simulations.fast_queues` has the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, cast

import numpy as np
import simpy
from simpy.events import URGENT

from servinglib.errors import InvalidSetting
from servinglib.statistics import Values
from simulations.queue_run import QueueRun, check_places, check_whole, per_customer

Life = Generator[simpy.Event, Any, None]


def fifo(arrivals: Values, services: Values, servers: int = 1) -> QueueRun:
    """First in, first out: one line in front of one or more servers (G/G/c).

    Parameters
    ----------
    arrivals, services : sequence or array of float
        When each customer comes, ascending, and the work that each brings; here and below in seconds,
        shape (customers,).
    servers : int

    Raises
    ------
    InvalidSetting
        When there is no server or no customer, or one can't be (`QueueRun.blank` says which). So it
        is below for each setting that is outside its domain.
    """
    check_whole("servers", servers)
    run = QueueRun.blank(arrivals, services)
    env = simpy.Environment()
    counter = simpy.Resource(env, capacity=servers)

    def customer(i: int) -> Life:
        with counter.request() as turn:
            yield turn
            run.starts[i] = env.now
            yield env.timeout(run.services[i])
        run.departures[i] = env.now

    return _play(env, run, lambda i: env.process(customer(i)))


def loss(arrivals: Values, services: Values, servers: int = 1, *, places: int) -> QueueRun:
    """A room that can be full: who finds no place goes away for good (G/G/c/K).

    Parameters
    ----------
    places : int
        Most customers in the system, those being served included: K in M/M/1/K, c in M/M/c/c. At
        least as many as servers.
    """
    check_places(places, servers)
    run = QueueRun.blank(arrivals, services)
    env = simpy.Environment()
    counter = simpy.Resource(env, capacity=servers)

    def customer(i: int) -> Life:
        if counter.count + len(counter.queue) == places:
            return
        with counter.request() as turn:
            yield turn
            run.starts[i] = env.now
            yield env.timeout(run.services[i])
        run.departures[i] = env.now

    return _play(env, run, lambda i: env.process(customer(i)))


def reneging(arrivals: Values, services: Values, patience: Values, servers: int = 1) -> QueueRun:
    """First in, first out, but who has waited too long gives up; who is being served stays.

    Parameters
    ----------
    patience : sequence or array of float
        Longest wait that each puts up with; may be infinite.
    """
    check_whole("servers", servers)
    run = QueueRun.blank(arrivals, services)
    patience = per_customer("patience", patience, len(run.arrivals))
    env = simpy.Environment()
    counter = simpy.Resource(env, capacity=servers)

    def customer(i: int) -> Life:
        with counter.request() as turn:
            if turn not in (yield turn | env.timeout(patience[i])):
                return
            run.starts[i] = env.now
            yield env.timeout(run.services[i])
        run.departures[i] = env.now

    return _play(env, run, lambda i: env.process(customer(i)))


def priorities(arrivals: Values, services: Values, classes: Values, preemptive: bool = False) -> QueueRun:
    """One server that calls the lowest class first, and inside a class the one who came first.

    Parameters
    ----------
    classes : sequence or array of float
        The class of each; 0 is the most urgent.
    preemptive : bool
        Whether a more urgent arrival interrupts a service. Who is interrupted goes back to the old
        place in the line and later resumes at the point that the service had reached.
    """
    run = QueueRun.blank(arrivals, services)
    order = np.argsort(per_customer("classes", classes, len(run.arrivals)), kind="stable")
    ranks = np.argsort(order)  # by class alone, SimPy would send who is interrupted to the back
    env = simpy.Environment()
    counter = simpy.PreemptiveResource(env) if preemptive else simpy.PriorityResource(env)

    def customer(i: int) -> Life:
        left = run.services[i]
        while np.isnan(run.departures[i]):
            turn = counter.request(priority=ranks[i])
            with turn:
                try:
                    yield turn
                    yield env.timeout(left)
                    left = 0.0
                except simpy.Interrupt:
                    left -= env.now - cast(float, turn.usage_since)
            run.starts[i] = np.fmin(run.starts[i], cast(float, turn.usage_since))
            if left <= 0:
                run.departures[i] = env.now

    return _play(env, run, lambda i: env.process(customer(i)))


def sjf(arrivals: Values, services: Values) -> QueueRun:
    """Shortest job first, without interruption: a line with priorities where the size is the class."""
    return priorities(arrivals, services, classes=services)


def srpt(arrivals: Values, services: Values) -> QueueRun:
    """Shortest remaining processing time: serve whoever can leave soonest, interrupting the others.

    Of equals, the one who came first.
    """
    return _share_out(arrivals, services, lambda left: [min(left, key=left.__getitem__)] if left else [])


def processor_sharing(arrivals: Values, services: Values) -> QueueRun:
    """One server that attends to all n customers at once, to each at 1/n of its speed.

    Everybody starts on arrival; `waits` is what sharing costs.
    """
    return _share_out(arrivals, services, lambda left: list(left))


def _share_out(
    arrivals: Values, services: Values, choose: Callable[[dict[int, float]], list[int]]
) -> QueueRun:
    """One server that thinks again at each arrival and departure whom of those present to serve.

    `choose` is told the seconds of work left for each and says who share the server equally.
    """
    run = QueueRun.blank(arrivals, services)
    env = simpy.Environment()
    left: dict[int, float] = {}

    def serve() -> Life:
        while True:
            served, since = choose(left), env.now
            run.starts[served] = np.fmin(run.starts[served], since)
            leaver = min(served, key=left.__getitem__, default=None)
            newcomer = None
            try:
                yield env.event() if leaver is None else env.timeout(left[leaver] * len(served))
            except simpy.Interrupt as arrival:
                newcomer = arrival.cause
            for i in served:
                left[i] = max(0.0, left[i] - (env.now - since) / len(served))  # rounding may overshoot
            if newcomer is not None:
                left[newcomer] = float(run.services[newcomer])
            elif leaver is not None:
                del left[leaver]
                run.departures[leaver] = env.now

    server = env.process(serve())
    return _play(env, run, server.interrupt)


def batch_service(
    arrivals: Values, batch_time: Callable[[int], float], max_batch_size: int, max_wait_time: float
) -> QueueRun:
    """One server for up to `max_batch_size` customers together, like a lift.

    When idle it starts as soon as the batch is full or its first customer has waited `max_wait_time`.
    `simulations.serving` has the same server, run by the real server's own rule.

    Parameters
    ----------
    batch_time : callable
        Batch size to seconds.
    max_batch_size : int
    max_wait_time : float
        In seconds; 0 never waits for more customers.

    Returns
    -------
    QueueRun
        `services` holds the time of the batch that each was in.
    """
    check_whole("max_batch_size", max_batch_size)
    if not 0 <= max_wait_time < math.inf:
        raise InvalidSetting(f"max_wait_time={max_wait_time} must be a number of seconds, 0 or more")
    run = QueueRun.blank(arrivals, np.zeros(len(arrivals)))
    env = simpy.Environment()
    line = simpy.Store(env)

    def serve() -> Life:
        while True:
            batch = [(yield line.get())]
            window_end = float(run.arrivals[batch[0]]) + max_wait_time
            closing = env.timeout(max(0.0, window_end - env.now))
            while len(batch) < max_batch_size:
                newcomer = line.get()
                yield newcomer | closing
                if not newcomer.triggered:
                    newcomer.cancel()
                    break
                batch.append(newcomer.value)
            run.starts[batch] = env.now
            run.services[batch] = seconds = batch_time(len(batch))
            yield env.timeout(seconds)
            run.departures[batch] = env.now

    env.process(serve())
    return _play(env, run, line.put)


class _Arrival(simpy.Event):
    """A `Timeout` that goes before all others of its instant, whenever they were scheduled."""

    def __init__(self, env: simpy.Environment, delay: float) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, URGENT, delay)


def _play(env: simpy.Environment, run: QueueRun, welcome: Callable[[int], object]) -> QueueRun:
    """Call `welcome` with each customer's number when it arrives, and go on until all have left."""

    def door() -> Life:
        for i, arrival in enumerate(run.arrivals.tolist()):
            yield _Arrival(env, max(0.0, arrival - env.now))  # rounding must not turn the clock back
            welcome(i)

    env.process(door())
    env.run()
    return run
