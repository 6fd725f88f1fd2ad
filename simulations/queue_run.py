"""What happened in a queue: when each customer came, was served and left.

A restaurant that wants to know its queue needs no model of it, only the bill of every guest with three
times on it: in at the door, first attended to, out again. How long people stay, how full the house is
and how many were turned away can all be read off the bills. `QueueRun` is that pile of bills; the
simulations in `simulations.queues` and `simulations.fast_queues` fill it in and lesson 03 reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.statistics import Values


@dataclass(frozen=True, slots=True, eq=False)
class QueueRun:
    """The customers of one run in the order in which they came; all arrays have shape (customers,).

    Attributes
    ----------
    arrivals : array of float
        In seconds from the opening of the system, ascending.
    services : array of float
        Work that each brings, in seconds of one server that has no other customer.
    starts : array of float
        When a server first turned to the customer, in seconds; NaN if none ever did.
    departures : array of float
        When the customer left, served, in seconds; NaN for one who was turned away or gave up.
    """

    arrivals: np.ndarray
    services: np.ndarray
    starts: np.ndarray
    departures: np.ndarray

    @classmethod
    def blank(cls, arrivals: Values, services: Values) -> QueueRun:
        """The customers of a run that is still to be simulated: no start and no departure is known.

        Raises
        ------
        InvalidSetting
            When there is nobody, an arrival is negative or earlier than the one before it, or a
            service is negative; when one is infinite or NaN, or the two differ in length.
        """
        came = np.asarray(arrivals, float)
        if came.ndim != 1 or not len(came):
            raise InvalidSetting(f"arrivals of shape {came.shape}: give one time for each customer")
        _refuse(came, ~((came >= 0) & (came < np.inf)), "arrivals", "must be a finite time, 0 or later")
        if not (came[:-1] <= came[1:]).all():
            late = int(np.argmax(came[:-1] > came[1:]))
            raise InvalidSetting(
                f"arrivals[{late + 1}]={came[late + 1]} comes before arrivals[{late}]={came[late]}; "
                f"sort the customers by arrival"
            )
        work = per_customer("services", services, len(came))
        _refuse(work, work == np.inf, "services", "must be finite")
        return cls(came, work, np.full(len(came), np.nan), np.full(len(came), np.nan))

    @property
    def sojourns(self) -> np.ndarray:
        """Seconds from arrival to departure; NaN for those who were never served."""
        return self.departures - self.arrivals

    @property
    def waits(self) -> np.ndarray:
        """Seconds in the system without being served: sojourn less service.

        As a difference of clock readings it carries their rounding errors, about 1e-16 of the time
        of day: who did not wait at all may be given a wait a little above or below 0.
        """
        return self.sojourns - self.services

    @property
    def lost(self) -> np.ndarray:
        """Who was never served, because the system was full or patience came to an end (bool)."""
        return np.isnan(self.starts)

    def mean_number(self, start: float, end: float) -> float:
        """Time average of the number in the system from `start` to `end` (seconds).

        Those who are never served are not counted, not even while they wait and lose patience.

        Raises
        ------
        InvalidSetting
            When the window has no length.
        """
        if not start < end:
            raise InvalidSetting(f"the window from {start} s to {end} s is empty; end it after its start")
        inside = np.clip(self.departures, start, end) - np.clip(self.arrivals, start, end)
        return float(np.nansum(inside) / (end - start))

    def number_shares(self) -> np.ndarray:
        """Share of the time in which n are in the system, n = 0, 1, ..., largest seen.

        The time runs from the opening, 0, to the last arrival: after that the queue only drains.
        Who counts is as in `mean_number`.

        Raises
        ------
        InvalidSetting
            When everybody comes at time 0, so that no time passes.
        """
        horizon = self.arrivals[-1]
        if horizon <= 0:
            raise InvalidSetting("the last customer comes at 0 s, so there is no time to average over")
        served = ~self.lost
        times = np.concatenate([self.arrivals[served], self.departures[served]])
        steps = np.repeat([1, -1], served.sum())
        order = np.argsort(times, kind="stable")  # of equal times arrivals stay first: never below 0
        number = np.concatenate([[0], np.cumsum(steps[order])])
        edges = np.concatenate([[0.0], np.minimum(times[order], horizon), [horizon]])
        return np.trim_zeros(np.bincount(number, weights=np.diff(edges)) / horizon, "b")


def per_customer(name: str, values: Values, customers: int) -> np.ndarray:
    """A number of 0 or more for each customer, as floats of shape (customers,).

    Raises
    ------
    InvalidSetting
        When there are more or fewer numbers than customers, or one is negative or NaN.
    """
    column = np.asarray(values, float)
    if column.shape != (customers,):
        raise InvalidSetting(
            f"{name} has shape {column.shape} for {customers} customers; give one number for each"
        )
    _refuse(column, ~(column >= 0), name, "must be a number, 0 or more")
    return column


def check_whole(name: str, value: int) -> None:
    """Refuse a count that is not a whole number from 1 on."""
    if not (isinstance(value, Integral) and value >= 1):
        raise InvalidSetting(f"{name}={value!r} must be a whole number, at least 1")


def check_places(places: int, servers: int) -> None:
    """Refuse a room that is too small for its own servers."""
    check_whole("servers", servers)
    check_whole("places", places)
    if places < servers:
        raise InvalidSetting(
            f"places={places} is below servers={servers}, but who is served takes a place too; "
            f"give at least {servers} places"
        )


def _refuse(column: np.ndarray, wrong: np.ndarray, name: str, rule: str) -> None:
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InvalidSetting(f"{name}[{first}]={column[first]} {rule} ({wrong.sum()} such in all)")
