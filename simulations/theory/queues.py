"""One server, one line: what waiting costs when nobody is batched.

A barber cuts one head at a time. Even with time enough for all, customers wait, because they come in
clumps; how long depends on the load and on how uneven the cuts are, and these few formulas say it
exactly. They are the theory column of lesson 01 at batch size 1.

Throughout, arrivals are Poisson with `rate` per second, served in order, times in seconds, and the
load is rate * mean service time, which must be below 1.
"""

from __future__ import annotations

import math

import numpy as np

from servinglib.errors import InvalidSetting


def mg1_mean_wait(rate: float, mean_service: float, second_moment: float) -> float:
    """Mean waiting time in M/G/1, before service begins.

    E[W] = rate * E[S²] / (2 (1 - load)), exact for any law of the service time S.

    Parameters
    ----------
    rate : float
        Arrivals per second.
    mean_service, second_moment : float
        E[S] in seconds and E[S²] in seconds².

    Raises
    ------
    InvalidSetting
        When the load is not in (0, 1), or no service time has these moments.

    Notes
    -----
    Pollaczek (1930) and Khinchine (1932); Kleinrock, Queueing Systems I, section 5.6.
    """
    load = _load(rate, mean_service)
    if second_moment < mean_service**2 * (1 - 1e-12):
        raise InvalidSetting(
            f"E[S²]={second_moment} is below E[S]²={mean_service**2}, which no service time has; "
            f"pass the second moment, not the variance"
        )
    return rate * second_moment / (2 * (1 - load))


def md1_mean_wait(rate: float, service: float) -> float:
    """Mean waiting time in M/D/1, where every service takes `service` seconds: half that of M/M/1."""
    return mg1_mean_wait(rate, service, service**2)


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
    load = _load(rate, service)
    if wait < 0:
        return 0.0
    k = math.floor(wait / service) + 1
    in_line = np.cumsum(_md1_numbers(load, k + 1))[1:]  # at most n wait: at most n + 1 in the system
    return float(in_line[:k][::-1] @ poisson_pmf(np.array(rate * (k * service - wait)), k))


def md1_wait_quantile(rate: float, service: float, p: float) -> float:
    """The wait in M/D/1 that a share `p` of customers does not exceed; 0 where p <= 1 - load."""
    if not 0 < p < 1:
        raise InvalidSetting(f"p={p} must lie strictly between 0 and 1")
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


def _load(rate: float, mean_service: float) -> float:
    load = rate * mean_service
    if not (rate > 0 and mean_service > 0 and load < 1):
        raise InvalidSetting(
            f"{rate} requests/s of {mean_service} s each is a load of {load:.3g}; a stationary queue "
            f"needs a positive load below 1"
        )
    return load
