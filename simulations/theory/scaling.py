"""More servers, more parts: what an extra one is worth.

Two tills open and you join the shorter queue: that alone saves most of the waiting that looking at all
twenty would save. The formulas here say how much a look is worth (power of d choices, join the shortest
queue), what a request pays that needs an answer from every part (fan-out), and why the hundredth worker
may slow the others down (Amdahl, and the universal scalability law).
"""

from __future__ import annotations

import numpy as np

from simulations.theory.domain import (
    Answer,
    Numbers,
    answer,
    require,
    require_not_negative,
    require_share,
    require_whole,
)
from simulations.theory.markovian import mm1_mean_sojourn, mmc_mean_wait

NEGLIGIBLE = 1e-17  # a term this small changes no sum that begins with 1


def power_of_d_number_tail(load: Numbers, choices: int, n: Numbers) -> Answer:
    """The share of servers with at least n customers when each joins the shortest of d random queues.

    ρ^((dⁿ-1)/(d-1)), in the limit of many servers; ρⁿ for d = 1. Service is exponential, in order.

    Parameters
    ----------
    load : float or array
        ρ, per server, in (0, 1).
    choices : int
        d, how many queues a customer looks at.
    n : int or array
        0 or more.

    Notes
    -----
    N. D. Vvedenskaya, R. L. Dobrushin and F. I. Karpelevich, Queueing system with selection of the
    shortest of two queues: an asymptotic approach, Problems of Information Transmission 32 (1996);
    M. Mitzenmacher, The power of two choices in randomized load balancing, IEEE Transactions on
    Parallel and Distributed Systems 12 (2001).
    """
    require_share(load=load)
    require_whole(1, choices=choices)
    require_whole(0, n=n)
    n = np.asarray(n, float)
    exponent = n if choices == 1 else (np.power(float(choices), np.minimum(n, 64)) - 1) / (choices - 1)
    return answer(np.power(load, exponent))


def power_of_d_mean_sojourn(load: Numbers, choices: int) -> Answer:
    """Mean time in system with d random choices, in mean service times: Σ_{i≥1} ρ^((dⁱ-d)/(d-1)).

    Arguments, limit and sources as in `power_of_d_number_tail`. d = 1 is M/M/1.
    """
    require_share(load=load)
    require_whole(1, choices=choices)
    if choices == 1:
        return mm1_mean_sojourn(load, 1.0)
    total, term, i = np.zeros(np.shape(load)), np.ones(np.shape(load)), 1
    while np.max(term, initial=0) > NEGLIGIBLE:
        total = total + term
        i += 1
        term = np.asarray(power_of_d_number_tail(load, choices, i) / load)
    return answer(total)


def jsq_sojourn_bounds(rate: Numbers, mean_service: Numbers, servers: int) -> tuple[Answer, Answer]:
    """Bounds on the mean time in system when everybody joins the shortest of all queues, seconds.

    Below: one line for all servers, M/M/c, where no server idles while somebody waits. Above: each
    customer at a random server, M/M/1 with the c-th part of the arrivals.

    Parameters
    ----------
    rate : float or array
        λ over all servers.
    mean_service : float or array
        Seconds, exponential.
    servers : int
        c.

    Notes
    -----
    W. Winston, Optimality of the shortest line discipline, Journal of Applied Probability 14 (1977),
    shows that no rule which must choose a queue on arrival, knowing only their lengths, does better.
    """
    pooled = mmc_mean_wait(rate, mean_service, servers) + mean_service
    return answer(pooled), mm1_mean_sojourn(np.divide(rate, servers), mean_service)


def fan_out_slow_share(slow_share: Numbers, parts: Numbers) -> Answer:
    """The share of requests that meet a slow part, 1 - (1-p)ⁿ, when they need all of n independent parts.

    Parameters
    ----------
    slow_share : float or array
        p, the share of slow answers of one part, 0 to 1.
    parts : int or array
        n.

    Notes
    -----
    J. Dean and L. A. Barroso, The tail at scale, Communications of the ACM 56 (2013).
    """
    require(
        np.greater_equal(slow_share, 0) & np.less_equal(slow_share, 1),
        "slow_share={x:g} is not a share; it must lie between 0 and 1",
        x=slow_share,
    )
    require_whole(1, parts=parts)
    return answer(1 - (1 - np.asarray(slow_share, float)) ** parts)


def amdahl_speedup(workers: Numbers, serial: Numbers) -> Answer:
    """Speed with N workers over that with one, N/(1 + σ(N-1)): never more than 1/σ.

    Parameters
    ----------
    workers : float or array
        N, 1 or more.
    serial : float or array
        σ, the share of the work that only one can do at a time, 0 to 1.

    Notes
    -----
    G. M. Amdahl, Validity of the single processor approach to achieving large scale computing
    capabilities, AFIPS Spring Joint Computer Conference (1967).
    """
    return usl_speedup(workers, serial, 0.0)


def usl_speedup(workers: Numbers, contention: Numbers, coherency: Numbers) -> Answer:
    """The universal scalability law, N/(1 + σ(N-1) + κN(N-1)), as a multiple of one worker's speed.

    Parameters
    ----------
    workers : float or array
        N, 1 or more.
    contention : float or array
        σ, what workers spend waiting for each other, 0 to 1.
    coherency : float or array
        κ, what each pair spends on keeping in agreement, 0 or more.

    Notes
    -----
    N. J. Gunther, Guerrilla Capacity Planning (2007).
    """
    _check_usl(contention, coherency)
    require(np.greater_equal(workers, 1), "workers={n:g} must be 1 or more", n=workers)
    others = np.subtract(workers, 1)
    return answer(workers / (1 + np.multiply(contention, others) + np.multiply(coherency, workers) * others))


def usl_peak(contention: Numbers, coherency: Numbers) -> Answer:
    """The number of workers, a real number, beyond which one more slows all down: √((1-σ)/κ).

    Infinite without coherency cost; below 1 where even the second worker makes it slower.
    """
    _check_usl(contention, coherency)
    with np.errstate(divide="ignore"):
        return answer(np.where(np.equal(coherency, 0), np.inf, np.sqrt(np.divide(1 - contention, coherency))))


def _check_usl(contention: Numbers, coherency: Numbers) -> None:
    require(
        np.greater_equal(contention, 0) & np.less(contention, 1),
        "a contention of {x:g} must be at least 0 and below 1, or no further worker helps at all",
        x=contention,
    )
    require_not_negative(coherency=coherency)
