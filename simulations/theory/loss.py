"""Turned away at the door: queues with a last place.

A car park with 50 places sends the 51st car on. How often that happens depends on how many places
there are and on how many cars want one, and not on how evenly they stay. A server that refuses
requests when its waiting room is full keeps its latency bounded at any load, and these formulas say
what that costs. Lesson 03 has them beside the simulation.

Arrivals are Poisson and the service times of M/M/1/K are exponential; those of M/M/c/c may follow any
law with the same mean. No load is too high, because who finds no place does not come back.
"""

from __future__ import annotations

import numpy as np

from simulations.theory.domain import Answer, Numbers, answer, require_positive, require_whole


def mm1k_number_pmf(rate: Numbers, mean_service: Numbers, places: Numbers, n: Numbers) -> Answer:
    """P(n in the system) in M/M/1/K, (1-ρ)ρⁿ/(1-ρᴷ⁺¹), and 1/(K+1) for each n at ρ = 1.

    Parameters
    ----------
    rate : float or array
        λ, arrivals per second, those refused included.
    mean_service : float or array
        Seconds; ρ = rate * mean_service.
    places : int or array
        K, the most in the system, the one in service included.
    n : int or array
        Outside 0 .. K the probability is 0.

    Notes
    -----
    Kleinrock, Queueing Systems I (1975), section 3.6.
    """
    from scipy.special import exprel

    require_positive(rate=rate, mean_service=mean_service)
    require_whole(1, places=places)
    log_load = np.log(np.multiply(rate, mean_service))
    # With ρ > 1 the free places follow the law of the customers at 1/ρ, so no power ever overflows;
    # exprel(x) = (eˣ-1)/x is 1 at 0, so ρ = 1 is no special case.
    steps = np.where(log_load > 0, np.subtract(places, n), n)
    decay, states = -np.abs(log_load), np.add(places, 1)
    inside = np.greater_equal(n, 0) & np.less_equal(n, places)
    falls = np.exp(decay * np.where(inside, steps, 0))
    return answer(np.where(inside, falls * exprel(decay) / (states * exprel(states * decay)), 0.0))


def mm1k_loss(rate: Numbers, mean_service: Numbers, places: Numbers) -> Answer:
    """The share of arrivals that M/M/1/K refuses: P(K in the system), since Poisson arrivals see time averages."""
    return mm1k_number_pmf(rate, mean_service, places, places)


def mm1k_mean_sojourn(rate: Numbers, mean_service: Numbers, places: int) -> Answer:
    """Mean time in system of those whom M/M/1/K lets in, seconds, by Little's law.

    Parameters
    ----------
    rate, mean_service : float or array
        As in `mm1k_number_pmf`.
    places : int
        K.
    """
    n = np.arange(places + 1)
    pmf = mm1k_number_pmf(np.asarray(rate)[..., None], np.asarray(mean_service)[..., None], places, n)
    return answer((pmf * n).sum(axis=-1) / (np.asarray(rate) * (1 - pmf[..., -1])))


def erlang_b(offered: Numbers, servers: Numbers) -> Answer:
    """The share of arrivals lost in M/G/c/c: B₀ = 1, B_k = aB_{k-1} / (k + aB_{k-1}).

    Parameters
    ----------
    offered : float or array
        a = rate * mean service time, in erlang; any positive number.
    servers : int or array
        c, 0 or more.

    Notes
    -----
    A. K. Erlang (1917) for exponential service; it holds for any law with the same mean. The
    recursion needs no factorial, so thousands of servers do not overflow.
    """
    require_positive(offered=offered)
    require_whole(0, servers=servers)
    offered, servers = np.broadcast_arrays(np.asarray(offered, float), servers)
    step = np.ones(offered.shape)
    lost = step.copy()
    for k in range(1, int(servers.max(initial=0)) + 1):
        step = offered * step / (k + offered * step)
        lost = np.where(servers == k, step, lost)
    return answer(lost)


def mmcc_number_pmf(offered: Numbers, servers: int, n: Numbers) -> Answer:
    """P(n servers busy) in M/G/c/c: Poisson with mean a, cut at c.

    Parameters
    ----------
    offered : float or array
        a, in erlang.
    servers : int
        c, 1 or more.
    n : int or array
        Outside 0 .. c the probability is 0.

    Notes
    -----
    Kleinrock, Queueing Systems I (1975), section 3.7.
    """
    from scipy.special import gammaln, logsumexp

    require_positive(offered=offered)
    require_whole(1, servers=servers)
    log_offered, k = np.log(offered), np.arange(servers + 1)
    total = logsumexp(k * log_offered[..., None] - gammaln(k + 1), axis=-1)
    inside = np.greater_equal(n, 0) & np.less_equal(n, servers)
    m = np.where(inside, n, 0)
    return answer(np.where(inside, np.exp(m * log_offered - gammaln(m + 1) - total), 0.0))
