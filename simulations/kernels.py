"""Queues as plain loops, compiled: what `simulations.fast_queues` calls for millions of customers.

A film of a queue spends most of its length on moments in which nothing happens. These loops keep the
clock in one variable and jump from one event to the next. Numba compiles each when it is first called
and keeps the result on disk; that is why this module is only imported when it is needed.

Each fills in `starts` and `departures`, which come full of NaN, and leaves the NaN of those who are
never served. Of what falls on the same instant arrivals come first, as in `simulations.queues`.
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

import numba
import numpy as np


@numba.njit(cache=True)
def first_come(
    arrivals: np.ndarray,
    services: np.ndarray,
    patience: np.ndarray,
    servers: int,
    places: int,
    starts: np.ndarray,
    departures: np.ndarray,
) -> None:
    """One line for all servers, with at most `places` in the system, or with limited patience.

    No system has both limits: who will give up is not counted among those who take a place.
    """
    free = [-1.0] * servers  # heap: when each server will be done with all who came so far
    leaving = [0.0 for _ in range(0)]  # heap: when those in the system will leave it
    for i in range(len(arrivals)):
        came = arrivals[i]
        while leaving and leaving[0] < came:
            heappop(leaving)
        if len(leaving) == places or free[0] >= came + patience[i]:
            continue
        starts[i] = max(came, free[0])
        departures[i] = starts[i] + services[i]
        heapreplace(free, departures[i])
        heappush(leaving, departures[i])


@numba.njit(cache=True)
def lowest_first(
    arrivals: np.ndarray,
    left: np.ndarray,
    keys: np.ndarray,
    preemptive: bool,
    starts: np.ndarray,
    departures: np.ndarray,
) -> None:
    """One server that calls the lowest key, and of equal keys who came first.

    `left` is the work still to do for each, in seconds, and is used up. When it is passed as `keys`
    too, the key of an interrupted customer is what is left of it: SRPT.
    """
    waiting = [(0.0, 0) for _ in range(0)]  # heap
    coming, now, current = 0, 0.0, -1
    while coming < len(arrivals) or current >= 0:
        if current < 0:
            current, now = coming, arrivals[coming]
            coming += 1
        if np.isnan(starts[current]):
            starts[current] = now
        end = now + left[current]
        if coming == len(arrivals) or end < arrivals[coming]:
            now = departures[current] = end
            current = heappop(waiting)[1] if waiting else -1
            continue
        if preemptive:
            left[current] -= arrivals[coming] - now
            now = arrivals[coming]
        if preemptive and keys[coming] < keys[current]:
            if left[current] > 0:
                heappush(waiting, (keys[current], current))
            else:
                departures[current] = now
            current = coming
        else:
            heappush(waiting, (keys[coming], coming))
        coming += 1


@numba.njit(cache=True)
def shared(arrivals: np.ndarray, services: np.ndarray, departures: np.ndarray) -> None:
    """One server shared equally.

    Everybody in the system is given the same amount in any stretch of time. So it is enough to count
    what somebody who is there all the time is given, and to note at what count each customer will be
    through: those notes never change.
    """
    through = [(0.0, 0) for _ in range(0)]  # heap
    coming, now, given = 0, 0.0, 0.0
    while coming < len(arrivals) or through:
        if not through:
            now = arrivals[coming]
        end = now + (through[0][0] - given) * len(through) if through else now
        if coming < len(arrivals) and arrivals[coming] <= end:
            if through:
                given += (arrivals[coming] - now) / len(through)
            now = arrivals[coming]
            heappush(through, (given + services[coming], coming))
            coming += 1
        else:
            given, current = heappop(through)
            now = departures[current] = end
