"""One server, one line: what waiting costs when nobody is batched.

A barber cuts one head at a time. Even with time enough for all, customers wait, because they come in
clumps; how long depends on the load and on how uneven the cuts are, and these few formulas say it
exactly. They are the theory column of lesson 01 at batch size 1. Where arrivals are not Poisson, or
several barbers share the line, nothing so short is exact; Kingman's bound and Allen and Cunneen's
approximation still show the same three things multiplied: how loaded, how uneven, how long a cut.

Throughout, customers are served in order, times in seconds; arrivals are Poisson with `rate` per
second unless a function says otherwise, and the load is rate * mean service time per server, which
must be below 1.
"""

from __future__ import annotations

import math

import numpy as np

from simulations.theory.domain import (
    Answer,
    Numbers,
    answer,
    require,
    require_not_negative,
    require_share,
    stable_load,
)
from simulations.theory.markovian import mmc_mean_wait


def mg1_mean_wait(rate: Numbers, mean_service: Numbers, second_moment: Numbers) -> Answer:
    """Mean waiting time in M/G/1, before service begins.

    E[W] = rate * E[S²] / (2 (1 - load)), exact for any law of the service time S.

    Parameters
    ----------
    rate : float or array
        Arrivals per second.
    mean_service, second_moment : float or array
        E[S] in seconds and E[S²] in seconds².

    Raises
    ------
    InvalidSetting
        When the load is not in (0, 1), or no service time has these moments.

    Notes
    -----
    Pollaczek (1930) and Khinchine (1932); Kleinrock, Queueing Systems I, section 5.6.
    """
    load = stable_load(rate, mean_service)
    square = np.square(mean_service)
    require(
        np.greater_equal(second_moment, square * (1 - 1e-12)),
        "E[S²]={second:g} is below E[S]²={square:g}, which no service time has; "
        "pass the second moment, not the variance",
        second=second_moment,
        square=square,
    )
    return answer(np.multiply(rate, second_moment) / (2 * (1 - load)))


def md1_mean_wait(rate: Numbers, service: Numbers) -> Answer:
    """Mean waiting time in M/D/1, where every service takes `service` seconds: half that of M/M/1."""
    return mg1_mean_wait(rate, service, np.square(service))


def md1_wait_cdf(rate: float, service: float, wait: float) -> float:
    """The share of customers in M/D/1 that wait at most `wait` seconds.

    With k the whole number for which (k-1) D <= wait < k D, and Q_n the probability that at most
    n wait in line, P(W <= wait) = sum over j < k of Q_{k-1-j} Poisson(j; rate (k D - wait)). Unlike
    Erlang's sum of alternating terms, nothing here cancels, so it holds for long waits too.

    Raises
    ------
    InvalidSetting
        When the load is not in (0, 1).

    Notes
    -----
    G. J. Franx, A simple solution for the M/D/c waiting time distribution, Operations Research
    Letters 29 (2001), with c = 1.
    """
    load = float(stable_load(rate, service))
    if wait < 0:
        return 0.0
    k = math.floor(wait / service) + 1
    in_line = np.cumsum(_md1_numbers(load, k + 1))[1:]  # at most n wait: at most n + 1 in the system
    return float(in_line[:k][::-1] @ poisson_pmf(np.array(rate * (k * service - wait)), k))


def md1_wait_quantile(rate: float, service: float, p: float) -> float:
    """The wait in M/D/1 that a share `p` of customers does not exceed; 0 where p <= 1 - load."""
    require_share(p=p)
    high = service
    while md1_wait_cdf(rate, service, high) < p:
        high *= 2
    low = 0.0
    if md1_wait_cdf(rate, service, low) >= p:
        return low
    while high - low > 1e-10 * service:
        middle = (low + high) / 2
        low, high = (low, middle) if md1_wait_cdf(rate, service, middle) >= p else (middle, high)
    return high


def gg1_wait_bound(
    rate: Numbers, mean_service: Numbers, arrival_variance: Numbers, service_variance: Numbers
) -> Answer:
    """Upper bound on the mean wait in GI/GI/1, λ(σ_A² + σ_S²) / (2(1-ρ)) seconds.

    The times between arrivals are independent with any one law, and so are the service times. Near
    load 1 the bound is nearly reached; for Poisson arrivals it is (1+ρ)/(2λ) too high.

    Parameters
    ----------
    rate : float or array
        λ, arrivals per second.
    mean_service : float or array
        Seconds.
    arrival_variance, service_variance : float or array
        σ_A² of the times between arrivals and σ_S² of the service times, seconds².

    Notes
    -----
    J. F. C. Kingman, Some inequalities for the queue GI/G/1, Biometrika 49 (1962).
    """
    load = stable_load(rate, mean_service)
    require_not_negative(arrival_variance=arrival_variance, service_variance=service_variance)
    return answer(rate * np.add(arrival_variance, service_variance) / (2 * (1 - load)))


def ggc_wait_approximation(
    rate: Numbers, mean_service: Numbers, servers: Numbers, arrival_scv: Numbers, service_scv: Numbers
) -> Answer:
    """Mean wait in GI/GI/c, roughly: that of M/M/c times (C_A² + C_S²)/2, seconds.

    Exact for M/M/c and M/G/1, an approximation without error bound otherwise, best near load 1.

    Parameters
    ----------
    rate, mean_service : float or array
        Arrivals per second, seconds.
    servers : int or array
        c, with one line for all of them.
    arrival_scv, service_scv : float or array
        C²: variance over squared mean, of the times between arrivals and of the service times. 1 for
        exponential times, 0 for times that are all equal.

    Notes
    -----
    A. O. Allen, Probability, Statistics, and Queueing Theory with Computer Science Applications, 2nd
    ed. (1990), who names it after himself and J. Cunneen.
    """
    require_not_negative(arrival_scv=arrival_scv, service_scv=service_scv)
    return answer(mmc_mean_wait(rate, mean_service, servers) * np.add(arrival_scv, service_scv) / 2)


def poisson_pmf(mean: np.ndarray, count: int) -> np.ndarray:
    """Poisson probabilities of 0 .. count-1 for each mean, shape mean.shape + (count,)."""
    from scipy.special import gammaln, xlogy

    n = np.arange(count)
    mean = np.asarray(mean, float)[..., None]
    return np.exp(xlogy(n, mean) - mean - gammaln(n + 1))


def _md1_numbers(load: float, count: int) -> np.ndarray:
    """P(n in the system), n = 0 .. count-1, by balancing the flow up and down across each level."""
    arrivals = poisson_pmf(np.array(load), count + 1)
    more_than = 1 - np.cumsum(arrivals)  # more_than[n] = P(more than n come during one service)
    numbers = np.zeros(count)
    numbers[0] = 1 - load
    for n in range(count - 1):
        up = numbers[0] * more_than[n] + numbers[1 : n + 1] @ more_than[1 : n + 1][::-1]
        numbers[n + 1] = up / arrivals[0]
    return numbers
