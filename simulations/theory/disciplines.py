"""Who is served next: what the order of service does to the waiting time.

At a supermarket till someone with a bottle of milk waits behind a full trolley. Let the milk go first
and the average wait falls, because one short delay of the trolley saves a long one of the milk. Whether
the trolley suffers is the question of fairness. Each formula here answers for one rule: everybody at
once (processor sharing), shortest job first, shortest remaining time first, and fixed classes with and
without interruption. Lesson 03 has them beside the simulation.

Throughout, one server, Poisson arrivals with `rate` per second, times in seconds; a size is the
service time of one customer, and the load rate * mean size must be below 1.
"""

from __future__ import annotations

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.statistics import Values
from simulations.theory.domain import Answer, Numbers, answer, require, require_not_negative, stable_load
from simulations.theory.sizes import LOG_ODDS, RankedSizes, SizeLaw


def ps_slowdown(rate: Numbers, mean_service: Numbers) -> Answer:
    """Mean time in system over size, 1/(1-ρ), in M/G/1 with processor sharing: the same for every size.

    Parameters
    ----------
    rate, mean_service : float or array
        Arrivals per second, seconds.

    Notes
    -----
    Kleinrock, Queueing Systems II: Computer Applications (1976), chapter 4. Only the mean of the
    sizes matters, not their law.
    """
    return answer(1 / (1 - stable_load(rate, mean_service)))


def ps_mean_sojourn(rate: Numbers, mean_service: Numbers, size: Numbers | None = None) -> Answer:
    """Mean time in system under processor sharing, x/(1-ρ) for a customer of size x, or over all customers."""
    require_not_negative(size=mean_service if size is None else size)
    return answer((mean_service if size is None else size) * ps_slowdown(rate, mean_service))


def sjf_mean_wait_at(rate: float, law: SizeLaw, size: Numbers) -> Answer:
    """Mean wait of a customer of the given size when the shortest goes next and nobody is interrupted.

    E[W | x] = λE[S²] / (2(1-ρ(x))²), ρ(x) = λ∫₀ˣ t f(t) dt the load of the sizes up to x.

    Parameters
    ----------
    rate : float
        λ.
    law : SizeLaw
        Of the sizes, in seconds.
    size : float or array
        x.

    Raises
    ------
    InvalidSetting
        When the load is not in (0, 1), or the law has atoms, negative sizes, or an infinite E[S²].

    Notes
    -----
    T. E. Phipps, Machine repair as a priority waiting-line problem, Operations Research 4 (1956).
    """
    require_not_negative(size=size)
    ranked = RankedSizes.of(rate, law)
    return answer(rate * _second_moment(law) / (2 * (1 - ranked.at(size, ranked.load)) ** 2))


def sjf_mean_wait(rate: float, law: SizeLaw) -> float:
    """Mean wait over all customers under shortest job first, arguments as in `sjf_mean_wait_at`."""
    ranked = RankedSizes.of(rate, law)
    return ranked.mean(rate * _second_moment(law) / (2 * (1 - ranked.load) ** 2))


def srpt_mean_sojourn_at(rate: float, law: SizeLaw, size: Numbers) -> Answer:
    """Mean time in system of a customer of the given size when the shortest remaining time is served.

    E[T | x] = λ(∫₀ˣ t² f dt + x²(1-F(x))) / (2(1-ρ(x))²) + ∫₀ˣ dt/(1-ρ(t)): the wait until first
    served, then the time in service, stretched by those who come with less than what remains.

    Parameters
    ----------
    rate : float
        λ.
    law : SizeLaw
        Of the sizes, in seconds.
    size : float or array
        x.

    Raises
    ------
    InvalidSetting
        When the load is not in (0, 1), or the law has atoms or negative sizes. E[S²] may be infinite.

    Notes
    -----
    L. E. Schrage and L. W. Miller, The queue M/G/1 with the shortest remaining processing time
    discipline, Operations Research 14 (1966).
    """
    require_not_negative(size=size)
    ranked = RankedSizes.of(rate, law)
    x = np.asarray(size, float)
    load, squares, stretch = (ranked.at(x, y) for y in (ranked.load, ranked.squares, ranked.stretch))
    return answer(_srpt(rate, x, law.sf(x), load, squares, stretch))


def srpt_mean_sojourn(rate: float, law: SizeLaw) -> float:
    """Mean time in system over all customers under SRPT, arguments as in `srpt_mean_sojourn_at`."""
    ranked = RankedSizes.of(rate, law)
    larger = 1 / (1 + np.exp(LOG_ODDS))
    return ranked.mean(_srpt(rate, ranked.sizes, larger, ranked.load, ranked.squares, ranked.stretch))


def priority_mean_waits(rates: Values, mean_services: Values, second_moments: Values) -> np.ndarray:
    """Mean wait of each class when the first class goes first and nobody is interrupted.

    E[W_k] = R / ((1-σ_{k-1})(1-σ_k)), R = Σ λᵢE[Sᵢ²]/2 over all classes, σ_k the load of the first k.

    Parameters
    ----------
    rates, mean_services, second_moments : array, shape (..., classes)
        λᵢ per second, E[Sᵢ] in seconds, E[Sᵢ²] in seconds²; the most urgent class first.

    Returns
    -------
    ndarray, shape (..., classes)

    Notes
    -----
    A. Cobham, Priority assignment in waiting line problems, Operations Research 2 (1954).
    """
    before, upto = _loads(rates, mean_services, second_moments)
    residual = (np.multiply(rates, second_moments) / 2).sum(axis=-1, keepdims=True)
    return residual / ((1 - before) * (1 - upto))


def preemptive_priority_mean_sojourns(
    rates: Values, mean_services: Values, second_moments: Values
) -> np.ndarray:
    """Mean time in system of each class when a more urgent customer interrupts, and the other resumes later.

    E[T_k] = E[S_k]/(1-σ_{k-1}) + R_k/((1-σ_{k-1})(1-σ_k)), R_k = Σ_{i≤k} λᵢE[Sᵢ²]/2: the less urgent
    classes might as well not exist. Arguments and shape as in `priority_mean_waits`.

    Notes
    -----
    M. Harchol-Balter, Performance Modeling and Design of Computer Systems (2013), chapter 32.
    """
    before, upto = _loads(rates, mean_services, second_moments)
    residual = np.cumsum(np.multiply(rates, second_moments) / 2, axis=-1)
    return np.asarray(mean_services) / (1 - before) + residual / ((1 - before) * (1 - upto))


def _srpt(
    rate: float, x: np.ndarray, larger: np.ndarray, load: np.ndarray, squares: np.ndarray, stretch: np.ndarray
) -> np.ndarray:
    waiting = rate * (squares + x**2 * larger) / (2 * (1 - load) ** 2)
    return waiting + x / (1 - load) - stretch


def _second_moment(law: SizeLaw) -> float:
    second = float(law.var() + law.mean() ** 2)
    if not np.isfinite(second):
        raise InvalidSetting(
            "E[S²] of these sizes is infinite, and so is the mean wait without interruption; use SRPT"
        )
    return second


def _loads(rates: Values, mean_services: Values, second_moments: Values) -> tuple[np.ndarray, np.ndarray]:
    """σ_{k-1} and σ_k for each class k."""
    loads = stable_load(np.asarray(rates, float), np.asarray(mean_services, float))
    upto = np.cumsum(loads, axis=-1)
    require(
        upto < 1,
        "the classes up to this one have a load of {load:.3g} together; a stationary queue needs a load "
        "below 1, so lower the rates or shorten the service",
        load=upto,
    )
    require(
        np.greater_equal(second_moments, np.square(mean_services) * (1 - 1e-12)),
        "E[S²]={second:g} is below E[S]² for a mean of {mean:g} s; pass the second moment, not the variance",
        second=np.asarray(second_moments),
        mean=np.asarray(mean_services),
    )
    return upto - loads, upto
