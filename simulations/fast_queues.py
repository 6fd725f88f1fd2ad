"""The queues of `simulations.queues` again, for millions of customers.

To learn how a till works you watch one customer after another; to learn how long the line gets in a
year you only need the till roll. Near full load a queue forgets so slowly that a trustworthy mean
takes millions of customers, each of whom costs SimPy some ten microseconds. Here nobody lives a life:
times are worked out from times, about a hundred times as fast. Names, arguments, results, errors and
the order of what falls on one instant are those of `simulations.queues`, which says what each system
is; only `batch_service`, whose batch time may be any function, is not here.

A first-come queue with one server needs no loop over customers at all (`fifo` says why). The others
are compiled loops in `simulations.kernels`; the very first call of each waits for the compiler, a
second or two.
"""

from __future__ import annotations

import numpy as np

from servinglib.statistics import Values
from simulations.queue_run import QueueRun, check_places, check_whole, per_customer

BLOCK = 1 << 15  # customers; the arrays of a block stay in the processor's cache


def fifo(arrivals: Values, services: Values, servers: int = 1) -> QueueRun:
    """First in, first out; with one server at tens of millions of customers per second.

    With B_i the work that came before customer i, the server is through with i - 1 at the latest of
    A_j + B_i - B_j over the customers j < i: j found it idle, and it has worked ever since. So
    start_i = B_i + max over j <= i of (A_j - B_j): a cumulative sum and a running maximum.

    Notes
    -----
    Lindley's recursion written out. D. V. Lindley, The theory of queues with a single server,
    Mathematical Proceedings of the Cambridge Philosophical Society 48 (1952).
    """
    check_whole("servers", servers)
    run = QueueRun.blank(arrivals, services)
    if servers > 1:
        return _first_come(run, np.full(len(run.arrivals), np.inf), servers, places=len(run.arrivals) + 1)
    free = 0.0
    for first in range(0, len(run.arrivals), BLOCK):
        block = slice(first, first + BLOCK)
        came, work = run.arrivals[block], run.services[block]
        before = np.cumsum(work)
        before -= work
        begin = came - before
        begin[0] = max(begin[0], free)
        np.maximum.accumulate(begin, out=begin)
        begin += before
        np.maximum(begin, came, out=run.starts[block])  # rounding must not start anybody too early
        np.add(run.starts[block], work, out=run.departures[block])
        free = run.departures[block][-1]
    return run


def loss(arrivals: Values, services: Values, servers: int = 1, *, places: int) -> QueueRun:
    """A house with a limit; see `simulations.queues.loss`."""
    check_places(places, servers)
    run = QueueRun.blank(arrivals, services)
    return _first_come(run, np.full(len(run.arrivals), np.inf), servers, places)


def reneging(arrivals: Values, services: Values, patience: Values, servers: int = 1) -> QueueRun:
    """First in, first out with limited patience; see `simulations.queues.reneging`."""
    check_whole("servers", servers)
    run = QueueRun.blank(arrivals, services)
    limits = per_customer("patience", patience, len(run.arrivals))
    return _first_come(run, limits, servers, places=len(run.arrivals) + 1)


def priorities(arrivals: Values, services: Values, classes: Values, preemptive: bool = False) -> QueueRun:
    """The lowest class first; see `simulations.queues.priorities`."""
    run = QueueRun.blank(arrivals, services)
    keys = per_customer("classes", classes, len(run.arrivals))
    return _lowest_first(run, run.services.copy(), keys, preemptive)


def sjf(arrivals: Values, services: Values) -> QueueRun:
    """Shortest job first; see `simulations.queues.sjf`."""
    return priorities(arrivals, services, classes=services)


def srpt(arrivals: Values, services: Values) -> QueueRun:
    """Shortest remaining processing time; see `simulations.queues.srpt`."""
    run = QueueRun.blank(arrivals, services)
    left = run.services.copy()
    return _lowest_first(run, left, left, preemptive=True)


def processor_sharing(arrivals: Values, services: Values) -> QueueRun:
    """All at once; see `simulations.queues.processor_sharing`."""
    from simulations import kernels

    run = QueueRun.blank(arrivals, services)
    run.starts[:] = run.arrivals
    kernels.shared(run.arrivals, run.services, run.departures)
    return run


def _first_come(run: QueueRun, patience: np.ndarray, servers: int, places: int) -> QueueRun:
    from simulations import kernels

    kernels.first_come(run.arrivals, run.services, patience, servers, places, run.starts, run.departures)
    return run


def _lowest_first(run: QueueRun, left: np.ndarray, keys: np.ndarray, preemptive: bool) -> QueueRun:
    from simulations import kernels

    kernels.lowest_first(run.arrivals, left, keys, preemptive, run.starts, run.departures)
    return run
