"""Dynamic batching without a simulation: two ways to know the latency of a batching server.

A ferry takes whoever waits at the quay and leaves again as soon as it is back. How late is a
passenger? That depends on how full the ferry goes, which depends on how long it was away, which
depends on how full it went before. `mean_latency_bound` answers with a line of algebra for a ferry
of any size; `DynamicBatchingChain` follows the passengers from crossing to crossing and gives the
exact law, percentiles included, for a ferry with a limit. Lesson 01 puts it beside the measurement.

Throughout, arrivals are Poisson with `rate` per second, a batch of b takes a fixed time H(b), and an
idle server starts at once (`max_wait_time=0`). With a window theory does not apply here: simulate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import DynamicBatching
from simulations.theory.domain import Answer, Numbers, answer, require, require_not_negative, require_whole
from simulations.theory.queues import poisson_pmf

GRID = 256  # steps of the integral over the moment of arrival within a batch
NEGLIGIBLE = 1e-12  # probability that may be cut off
MOST_STATES = 4096


def mean_latency_bound(rate: Numbers, batch_time: BatchTime) -> Answer:
    """Upper bound on the mean latency when the server takes all that wait, min(φ₀, φ₁), in seconds.

    φ₀ = (α+τ₀) / (2(1-λα)) · [1 + 2λτ₀ + (1-λτ₀)/(1+λα)], tight when traffic is light;
    φ₁ = 3τ₀ / (2(1-λα)) + (α/2)(λα+2)/(1-λ²α²), tight when it is heavy.

    Parameters
    ----------
    rate : float or array
        λ, requests per second; stable if λα < 1.
    batch_time : BatchTime
        α and τ₀, in seconds. A server with a cap is slower than this, so the bound is not its.

    Raises
    ------
    InvalidSetting
        When the server can't keep up.

    Notes
    -----
    Y. Inoue, Queueing analysis of GPU-based inference servers with dynamic batching: a closed-form
    characterization, Performance Evaluation 147 (2021).
    """
    alpha, tau0 = batch_time.alpha, batch_time.tau0
    x = np.multiply(rate, alpha)
    require(
        np.greater(rate, 0) & (x < 1),
        "{rate:g} requests/s of {alpha:g} s each is a load of {x:.3g} even in endless batches; "
        "the rate must be positive and below {limit:.4g}/s",
        rate=rate,
        alpha=alpha,
        x=x,
        limit=1 / alpha if alpha else np.inf,
    )
    light = (alpha + tau0) / (2 * (1 - x)) * (1 + 2 * rate * tau0 + (1 - rate * tau0) / (1 + x))
    heavy = 1.5 * tau0 / (1 - x) + alpha / 2 * (x + 2) / (1 - x**2)
    return answer(np.minimum(light, heavy))


def cost_per_request(batch_time: BatchTime, batch_size: Numbers, price: Numbers) -> Answer:
    """What a request costs on a server that always runs batches of b: price · H(b)/b, down to price · α.

    Parameters
    ----------
    batch_time : BatchTime
    batch_size : int or array
        b.
    price : float or array
        Of a second of the server, in money, or its watts for joules per request. A server that also
        idles costs price/rate per request instead, however it batches.
    """
    require_whole(1, batch_size=batch_size)
    require_not_negative(price=price)
    return answer(price * (batch_time.alpha + batch_time.tau0 / np.asarray(batch_size)))


class DynamicBatchingChain:
    """The exact law of the latency of a capped batching server, by an embedded Markov chain.

    Look at the server each time a batch ends. If n requests wait then, the next batch has
    b = min(n, B) of them (an idle server waits for one request and serves it alone), and while it
    runs a Poisson(λH(b)) number comes. That is a Markov chain in n. A request that comes at moment u
    of that batch, with a others waiting, sees the rest of it, floor(a/B) full batches, and its own
    batch, whose size still depends on how many come in the meantime.

    Parameters
    ----------
    rate : float
        Requests per second.
    batch_time : callable
        H: batch size to seconds, such as a `BatchTime`.
    policy : DynamicBatching
        Its `max_batch_size` is B.

    Attributes
    ----------
    waiting_at_end : ndarray, shape (states,)
        Probability that n requests wait when a batch ends.
    mean_batch_size : float
    utilization : float
        Share of the time in which the server works.

    Raises
    ------
    InvalidSetting
        When `rate` is at or beyond the capacity B/H(B), so near to it that more than 4096 states
        matter, or when the policy waits, learns or limits cost, where this theory doesn't apply.

    Notes
    -----
    The chain is Bailey's bulk queue (1954) with a service time that depends on the batch; Neuts, A
    general class of bulk queues with Poisson input (1967). The relative numerical error is below
    1e-5, from the grid of u.
    """

    def __init__(self, rate: float, batch_time: Callable[[int], float], policy: DynamicBatching) -> None:
        self.rate, self.cap = rate, policy.max_batch_size
        self._times = np.array([0.0] + [batch_time(b) for b in range(1, self.cap + 1)])  # index is b
        self._check(policy)
        self.waiting_at_end = self._stationary()
        states = np.arange(len(self.waiting_at_end))
        sizes = np.clip(states, 1, self.cap)
        self.mean_batch_size = float(self.waiting_at_end @ sizes)
        busy = float(self.waiting_at_end @ self._times[sizes])
        self.utilization = busy / (busy + float(self.waiting_at_end[0]) / rate)
        self._groups = [self._group(b) for b in np.unique(sizes)]

    @property
    def mean_latency(self) -> float:
        """Mean of arrival to answer, in seconds."""
        found_idle = self.waiting_at_end[0] * self._times[1]
        return float(found_idle + sum(g.time for g in self._groups)) / self.mean_batch_size

    def cdf(self, latency: float) -> float:
        """The share of requests that are answered within `latency` seconds."""
        found_idle = self.waiting_at_end[0] * (latency >= self._times[1])
        return (
            float(found_idle + sum(g.answered_within(latency) for g in self._groups)) / self.mean_batch_size
        )

    def quantile(self, p: float) -> float:
        """The latency in seconds that a share `p` of requests does not exceed."""
        if not 0 < p < 1:
            raise InvalidSetting(f"p={p} must lie strictly between 0 and 1")
        low, high = 0.0, max(g.longest for g in self._groups)
        while high - low > 1e-10 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.cdf(middle) >= p else (middle, high)
        return float(high)

    def _check(self, policy: DynamicBatching) -> None:
        plain = type(policy) is DynamicBatching and policy.max_batch_cost == float("inf")
        if policy.max_wait_time > 0 or not plain:
            raise InvalidSetting(
                f"theory does not apply to {policy}; use plain DynamicBatching with max_wait_time=0 and "
                f"no cost limit, or simulate"
            )
        full = self._times[self.cap]
        if not 0 < self.rate < self.cap / full:
            raise InvalidSetting(
                f"{self.rate} requests/s is not below the capacity of {self.cap / full:.4g}/s (batches of "
                f"{self.cap} in {full:.4g} s), or not positive; the queue would grow without end"
            )

    def _stationary(self) -> np.ndarray:
        states = 4 * self.cap + 64
        while states <= MOST_STATES:
            probability = self._solve(states)
            if probability[-self.cap - 32 :].sum() < NEGLIGIBLE:
                return probability
            states *= 2
        raise InvalidSetting(
            f"{self.rate} requests/s is so close to the capacity of {self.cap / self._times[self.cap]:.4g}/s "
            f"that more than {MOST_STATES} requests may wait; simulate, or lower the rate"
        )

    def _solve(self, states: int) -> np.ndarray:
        """Stationary probabilities of a chain cut at `states`; what would jump beyond stays at the end."""
        move = np.zeros((states, states))
        arrivals = poisson_pmf(self.rate * self._times, states)  # [b, k]: k come during a batch of b
        for n in range(states):
            size = min(max(n, 1), self.cap)
            left = max(n - size, 0)
            move[n, left:] = arrivals[size, : states - left]
        move[:, -1] += 1 - move.sum(axis=1)
        equations = move.T - np.eye(states)
        equations[-1] = 1  # the balance equations say one thing twice; this one says "they sum to 1"
        return np.clip(np.linalg.solve(equations, np.eye(states)[-1]), 0, None)

    def _group(self, size: int) -> _Group:
        """All requests that come during batches of `size`, by when they come and what awaits them."""
        B, full, duration = self.cap, self._times[self.cap], self._times[size]
        u = np.linspace(0, duration, GRID + 1)
        ahead = self._ahead(size, u)  # (u, full batches first, ahead in the own batch)
        remaining = duration - u[:, None] + full * np.arange(ahead.shape[1])
        behind = poisson_pmf(self.rate * remaining, B)  # (u, full batches first, came later)
        own = np.zeros((*ahead.shape[:2], B + 1))  # (u, full batches first, size of the own batch)
        for a in range(B):
            own[:, :, a + 1 : B] += ahead[:, :, a, None] * behind[:, :, : B - 1 - a]
        own[:, :, B] = ahead.sum(axis=2) - own[:, :, :B].sum(axis=2)
        after_this = full * np.arange(ahead.shape[1])[:, None] + self._times
        likely = own.max(axis=0) > NEGLIGIBLE
        return _Group(duration, after_this[likely], self.rate * own[:, likely])

    def _ahead(self, size: int, u: np.ndarray) -> np.ndarray:
        """Probability of `a` requests ahead of one that comes at moment u, split as a = j B + a'."""
        left_behind = self.waiting_at_end[size:] if size == self.cap else self.waiting_at_end[size : size + 1]
        left_behind = left_behind.copy()
        if size == 1:
            left_behind[0] += self.waiting_at_end[0]  # an idle server's first request runs alone
        came = poisson_pmf(self.rate * u, len(self.waiting_at_end))
        rows = -(-(len(left_behind) + came.shape[1]) // self.cap)
        ahead = np.zeros((len(u), rows * self.cap))
        for r in np.flatnonzero(left_behind > NEGLIGIBLE):
            ahead[:, r : r + came.shape[1]] += left_behind[r] * came
        return ahead.reshape(len(u), rows, self.cap)


@dataclass(frozen=True, slots=True)
class _Group:
    """Requests that come during a batch of one size.

    `density[i, c]` is how many per second of u, at the i-th grid point, will need `after_this[c]`
    seconds beyond the end of the running batch, which lasts `duration`; counted per batch.
    """

    duration: float
    after_this: np.ndarray
    density: np.ndarray

    @property
    def longest(self) -> float:
        return self.duration + float(self.after_this.max(initial=0))

    @property
    def time(self) -> float:
        """Sum of the latencies of the group's requests, per batch."""
        u = np.linspace(0, self.duration, GRID + 1)
        latency = self.duration - u[:, None] + self.after_this
        return float(np.trapezoid(self.density * latency, u, axis=0).sum())

    def answered_within(self, latency: float) -> float:
        """How many of the group's requests, per batch, take at most `latency`: those that come late enough."""
        step = self.duration / GRID
        steps = (self.density[1:] + self.density[:-1]) * step / 2
        from_end = np.vstack([np.zeros(len(self.after_this)), np.cumsum(steps[::-1], axis=0)])
        place = np.clip((latency - self.after_this) / step, 0, GRID)
        index = np.minimum(place.astype(int), GRID - 1)
        column = np.arange(len(place))
        below, above = from_end[index, column], from_end[index + 1, column]
        return float((below + (place - index) * (above - below)).sum())
