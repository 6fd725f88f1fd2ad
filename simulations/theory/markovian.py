"""Queues without memory: M/M/1 and M/M/c, with percentiles.

At a bank counter nobody can tell from the past how long the present customer will still take, or when
the next one comes through the door. Where neither service nor arrivals remember anything, the whole
law of the waiting time fits on a line. One queue in front of c counters beats c queues with a counter
each, and Erlang's C says by how much. Lesson 03 has these beside the simulation.

Throughout, arrivals are Poisson with `rate` per second, service times are exponential with
`mean_service` seconds, served in order of arrival; the load rate * mean_service / servers must be
below 1, or the formula refuses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simulations.theory.domain import Answer, Numbers, answer, require_share, stable_load
from simulations.theory.loss import erlang_b


def mm1_mean_sojourn(rate: Numbers, mean_service: Numbers) -> Answer:
    """Mean time in system in M/M/1, 1/(μ-λ) seconds (Kleinrock, Queueing Systems I (1975), section 3.2)."""
    return answer(mean_service / (1 - stable_load(rate, mean_service)))


def mm1_number_pmf(rate: Numbers, mean_service: Numbers, n: Numbers) -> Answer:
    """P(n in the system) in M/M/1, (1-ρ)ρⁿ; 0 for negative n."""
    load = stable_load(rate, mean_service)
    return answer(np.where(np.less(n, 0), 0.0, (1 - load) * load ** np.maximum(n, 0)))


def mm1_sojourn_cdf(rate: Numbers, mean_service: Numbers, time: Numbers) -> Answer:
    """P(T <= time) in M/M/1: the time in system is exponential with rate μ-λ."""
    mean = mm1_mean_sojourn(rate, mean_service)
    return answer(-np.expm1(-np.maximum(time, 0) / mean))


def mm1_sojourn_quantile(rate: Numbers, mean_service: Numbers, p: Numbers) -> Answer:
    """The time in system that a share `p` of customers does not exceed, seconds."""
    require_share(p=p)
    return answer(-mm1_mean_sojourn(rate, mean_service) * np.log1p(np.negative(p)))


def mm1_wait_cdf(rate: Numbers, mean_service: Numbers, wait: Numbers) -> Answer:
    """P(W <= wait) in M/M/1, 1 - ρe^{-(μ-λ)t}: a share 1-ρ does not wait at all."""
    load = stable_load(rate, mean_service)
    tail = load * np.exp(-np.maximum(wait, 0) / mm1_mean_sojourn(rate, mean_service))
    return answer(np.where(np.less(wait, 0), 0.0, 1 - tail))


def mm1_wait_quantile(rate: Numbers, mean_service: Numbers, p: Numbers) -> Answer:
    """The wait that a share `p` of customers does not exceed, seconds; 0 where p <= 1-ρ."""
    require_share(p=p)
    load = stable_load(rate, mean_service)
    beyond = np.log(load) - np.log1p(np.negative(p))
    return answer(np.maximum(0, beyond * mm1_mean_sojourn(rate, mean_service)))


def erlang_c(offered: Numbers, servers: Numbers) -> Answer:
    """The share of customers who must wait in M/M/c, C = B / (1 - ρ(1-B)) with Erlang's B.

    Parameters
    ----------
    offered : float or array
        a = rate * mean service time, in erlang, below c.
    servers : int or array
        c; ρ = a/c.

    Notes
    -----
    A. K. Erlang (1917); Kleinrock, Queueing Systems I (1975), section 3.5.
    """
    load = stable_load(offered, 1.0, servers)
    lost = erlang_b(offered, servers)
    return answer(lost / (1 - load * (1 - lost)))


def mmc_mean_wait(rate: Numbers, mean_service: Numbers, servers: Numbers) -> Answer:
    """Mean wait before service in M/M/c, C/(cμ-λ) seconds."""
    must_wait, drain = _waiting(rate, mean_service, servers)
    return answer(must_wait / drain)


def mmc_wait_cdf(rate: Numbers, mean_service: Numbers, servers: Numbers, wait: Numbers) -> Answer:
    """P(W <= wait) in M/M/c, 1 - Ce^{-(cμ-λ)t}."""
    must_wait, drain = _waiting(rate, mean_service, servers)
    return answer(np.where(np.less(wait, 0), 0.0, 1 - must_wait * np.exp(-drain * np.maximum(wait, 0))))


def mmc_wait_quantile(rate: Numbers, mean_service: Numbers, servers: Numbers, p: Numbers) -> Answer:
    """The wait in M/M/c that a share `p` of customers does not exceed, seconds; 0 where p <= 1-C."""
    require_share(p=p)
    must_wait, drain = _waiting(rate, mean_service, servers)
    return answer(np.maximum(0, (np.log(must_wait) - np.log1p(np.negative(p))) / drain))


def mmc_sojourn_cdf(rate: Numbers, mean_service: Numbers, servers: Numbers, time: Numbers) -> Answer:
    """P(T <= time) in M/M/c, where T is the wait plus an exponential service independent of it.

    P(T > t) = e^{-μt} + Cμ(e^{-μt} - e^{-δt})/(δ-μ) with δ = cμ-λ, and Cμte^{-μt} in its place at δ = μ.
    """
    return answer(1 - _sojourn_tail(rate, mean_service, servers, time))


def mmc_sojourn_quantile(rate: Numbers, mean_service: Numbers, servers: Numbers, p: Numbers) -> Answer:
    """The time in M/M/c that a share `p` of customers does not exceed, seconds, to a relative 1e-12."""
    require_share(p=p)
    left = np.asarray(1 - np.asarray(p))
    tail = _sojourn_tail(rate, mean_service, servers, 0.0) + 0 * left
    high = np.zeros_like(tail) + mean_service
    return answer(_solve_falling(lambda t: _sojourn_tail(rate, mean_service, servers, t), left, high))


def mmc_number_pmf(rate: Numbers, mean_service: Numbers, servers: Numbers, n: Numbers) -> Answer:
    """P(n in the system) in M/M/c: Poisson(a) weights up to c, then each ρ times the one before.

    Parameters
    ----------
    rate, mean_service : float or array
        a = rate * mean_service, in erlang.
    servers : int or array
        c; ρ = a/c.
    n : int or array
        Negative n have probability 0.
    """
    from scipy.special import gammaln, pdtr

    load = stable_load(rate, mean_service, servers)
    offered = np.multiply(rate, mean_service)

    def poisson(k: np.ndarray) -> np.ndarray:
        return np.exp(k * np.log(offered) - offered - gammaln(k + 1))

    total = pdtr(np.subtract(servers, 1), offered) + poisson(np.asarray(servers)) / (1 - load)
    waiting = np.maximum(np.subtract(n, servers), 0)
    weight = poisson(np.clip(n, 0, servers)) * load**waiting
    return answer(np.where(np.less(n, 0), 0.0, weight / total))


def _waiting(rate: Numbers, mean_service: Numbers, servers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Erlang's C, and δ = cμ-λ: how fast a full house gets shorter, customers per second."""
    stable_load(rate, mean_service, servers)
    must_wait = np.asarray(erlang_c(np.multiply(rate, mean_service), servers))
    return must_wait, np.asarray(np.divide(servers, mean_service) - rate)


def _sojourn_tail(rate: Numbers, mean_service: Numbers, servers: Numbers, time: Numbers) -> np.ndarray:
    from scipy.special import exprel

    must_wait, drain = _waiting(rate, mean_service, servers)
    t, finish = np.maximum(time, 0), np.divide(1, mean_service)
    # (e^{-μt} - e^{-δt})/(δ-μ) = t e^{-min(μ,δ)t} (1 - e^{-|δ-μ|t})/(|δ-μ|t): nothing cancels or overflows
    slower, apart = np.minimum(finish, drain), np.abs(drain - finish)
    return np.asarray(np.exp(-finish * t) + must_wait * finish * t * np.exp(-slower * t) * exprel(-apart * t))


def _solve_falling(
    tail: Callable[[np.ndarray], np.ndarray], left: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Where a falling function of time takes the value `left`, by halving, element by element."""
    while (tail(high) > left).any():
        high = np.where(tail(high) > left, 2 * high, high)
    low = np.zeros_like(high)
    while (high - low > 1e-12 * high).any():
        middle = (low + high) / 2
        above = tail(middle) > left
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return high
