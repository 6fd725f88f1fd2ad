"""Little's law: how many are inside, from how often they come and how long they stay.

A café where 20 guests come each hour and stay half an hour has 10 guests inside, on average, whoever
they are and whatever they order. No law of arrivals or service is assumed, which makes it the one
formula that a real server must obey. Over a window of time the books balance only after those at its
two edges are accounted for: who was inside when it opened, and who still is when it closes. Lesson 02
reads the number inside from the server's gauge and the time from the client's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.statistics import Values
from simulations.theory.domain import Answer, Numbers, answer, require_not_negative


def littles_law(rate: Numbers, mean_time: Numbers) -> Answer:
    """Mean number in the system, L = λW.

    Parameters
    ----------
    rate : float or array
        Arrivals per second, only those that enter.
    mean_time : float or array
        Mean seconds that each spends inside.

    Notes
    -----
    J. D. C. Little, A proof for the queuing formula L = λW, Operations Research 9 (1961).
    """
    require_not_negative(rate=rate, mean_time=mean_time)
    return answer(np.multiply(rate, mean_time))


@dataclass(frozen=True, slots=True)
class WindowAccount:
    """Little's law for one window, exact: area = sojourns + left_at_start - left_at_end.

    Attributes
    ----------
    duration : float
        Seconds from the start of the window to its end.
    arrived : int
        Customers who came within it.
    area : float
        ∫ N(t) dt over the window, customer-seconds, from each customer's seconds within it.
    sojourns : float
        Whole times in system of those who arrived in the window, added up.
    left_at_start, left_at_end : float
        Seconds that those present at the start (at the end) still had to stay, added up.
    """

    duration: float
    arrived: int
    area: float
    sojourns: float
    left_at_start: float
    left_at_end: float

    @property
    def mean_number(self) -> float:
        """L, the time average of the number in the system."""
        return self.area / self.duration

    @property
    def rate(self) -> float:
        """λ, arrivals per second in the window."""
        return self.arrived / self.duration

    @property
    def mean_time(self) -> float:
        """W, the mean time in system of those who arrived in the window."""
        if not self.arrived:
            raise InvalidSetting(f"nobody arrived within the {self.duration:g} s; take a longer window")
        return self.sojourns / self.arrived

    @property
    def edges(self) -> float:
        """L - λW in this window: what those at its two edges add. It vanishes as the window grows."""
        return (self.left_at_start - self.left_at_end) / self.duration


def window_account(arrivals: Values, departures: Values, start: float, end: float) -> WindowAccount:
    """Balance Little's law over the window from `start` to `end`.

    Parameters
    ----------
    arrivals, departures : array of float, shape (customers,)
        Seconds, in any order, also of customers who came before the window; each leaves at or after
        the moment in which they came. One who comes at `start` counts as an arrival in the window.
    start, end : float
        Seconds.

    Raises
    ------
    InvalidSetting
        When the window is empty, or a customer has no departure or leaves before they came.

    Notes
    -----
    S.-H. Kim and W. Whitt, Statistical analysis with Little's law, Operations Research 61 (2013).
    """
    came, left = np.asarray(arrivals, float), np.asarray(departures, float)
    if came.shape != left.shape:
        raise InvalidSetting(f"{came.size} arrivals but {left.size} departures; give one of each")
    if not start < end:
        raise InvalidSetting(f"the window from {start:g} s to {end:g} s is empty; end it later")
    if not (left >= came).all():
        bad = int(np.argmin(left >= came))
        raise InvalidSetting(
            f"customer {bad} came at {came[bad]:g} s and left at {left[bad]:g} s; leave out those who were "
            f"never inside, and give every other a departure"
        )
    new = (came >= start) & (came < end)
    return WindowAccount(
        duration=end - start,
        arrived=int(new.sum()),
        area=float(np.clip(np.minimum(left, end) - np.maximum(came, start), 0, None).sum()),
        sojourns=float((left - came)[new].sum()),
        left_at_start=float((left - start)[(came < start) & (left > start)].sum()),
        left_at_end=float((left - end)[(came < end) & (left > end)].sum()),
    )


def number_variance(rate: Numbers, mean_time: Numbers, time_variance: Numbers) -> Answer:
    """Variance of the number in the system under the distributional law, λE[T] + λ²Var T.

    Whoever leaves sees behind them those who came during their time T, a Poisson(λT) number. That
    needs Poisson arrivals, customers who leave in the order in which they came, and times that do not
    depend on who comes later. With overtaking, as in continuous batching, it fails.

    Parameters
    ----------
    rate : float or array
        Arrivals per second.
    mean_time, time_variance : float or array
        E[T] in seconds and Var T in seconds².

    Notes
    -----
    J. Keilson and L. D. Servi, A distributional form of Little's law, Operations Research Letters 7
    (1988).
    """
    require_not_negative(rate=rate, mean_time=mean_time, time_variance=time_variance)
    return answer(np.multiply(rate, mean_time) + np.square(rate) * time_variance)
