"""The queues that theory knows exactly, as studies: the classical ones, and batches of whole requests.

At a post office the question is always the same (how long will it take?), and what changes is the
number of counters, how unlike the parcels are, whether letters may go first, and how many of them fit
into the van. For all of these theory knows the means, and so they are where a simulation earns the
trust that it needs where theory ends (`serving_studies`).

Throughout, arrivals are Poisson with `rate` per second and times are in seconds. A setting outside its
domain is refused with `InvalidSetting`, an unknown name with `UnknownName`, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from servinglib.errors import InvalidSetting, UnknownName
from servinglib.experiments.quantities import (
    MEAN_BATCH_SIZE,
    MEAN_NUMBER,
    MEAN_SOJOURN,
    MEAN_WAIT,
    MUST_WAIT,
    P50_SOJOURN,
    P99_SOJOURN,
    P99_WAIT,
)
from servinglib.experiments.study import Study, Theory
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import DynamicBatching
from servinglib.statistics import streams
from simulations import fast_queues
from simulations.queue_run import QueueRun
from simulations.serving import simulate_batching
from simulations.theory import disciplines, markovian, queues
from simulations.theory.batching import DynamicBatchingChain, mean_latency_bound
from simulations.theory.domain import require_not_negative, require_positive, require_whole

CLASSICAL = (MEAN_WAIT, P99_WAIT, MEAN_SOJOURN, P99_SOJOURN, MEAN_NUMBER, MUST_WAIT)

DISCIPLINES: dict[str, Callable[[np.ndarray, np.ndarray], QueueRun]] = {
    "fifo": fast_queues.fifo,
    "ps": fast_queues.processor_sharing,
    "sjf": fast_queues.sjf,
    "srpt": fast_queues.srpt,
}
Choice = TypeVar("Choice")


def mm1(rate: float, mean_service: float) -> Study:
    """One server, exponential services, in order of arrival."""
    return mmc(rate, mean_service, servers=1, name="mm1")


def mmc(rate: float, mean_service: float, servers: int, name: str = "mmc") -> Study:
    """One line in front of several equal servers, exponential services."""
    require_positive(mean_service=mean_service)
    require_whole(1, servers=servers)

    def simulate(rate: float, customers: int, seed: int) -> QueueRun:
        arrivals = poisson_arrivals(rate, customers, seed)
        services = streams(seed, "services")["services"].exponential(mean_service, customers)
        return fast_queues.fifo(arrivals, services, servers)

    def theory(rate: float) -> Theory:
        values = _means(rate, mean_service, markovian.mmc_mean_wait(rate, mean_service, servers))
        values[P99_WAIT.name] = markovian.mmc_wait_quantile(rate, mean_service, servers, 0.99)
        values[P99_SOJOURN.name] = markovian.mmc_sojourn_quantile(rate, mean_service, servers, 0.99)
        values[MUST_WAIT.name] = markovian.erlang_c(rate * mean_service, servers)
        return Theory(values)

    settings = {"mean_service": mean_service, "servers": servers}
    title, capacity = f"M/M/{servers}", servers / mean_service
    return Study(name, title, settings, rate, capacity, CLASSICAL, simulate, theory)


def mg1(rate: float, mean_service: float, cv2: float, discipline: str) -> Study:
    """One server whose services have a gamma law, under one of the `DISCIPLINES`.

    Parameters
    ----------
    rate, mean_service : float
    cv2 : float
        Squared coefficient of variation of the services, variance / mean²: 0 makes all of them equal,
        1 exponential; more makes many short and a few long ones.
    discipline : str
    """
    require_positive(mean_service=mean_service)
    require_not_negative(cv2=cv2)
    serve = named("discipline", discipline, DISCIPLINES)

    def simulate(rate: float, customers: int, seed: int) -> QueueRun:
        rng = streams(seed, "services")["services"]
        unit = rng.gamma(1 / cv2, cv2, customers) if cv2 else np.ones(customers)
        return serve(poisson_arrivals(rate, customers, seed), unit * mean_service)

    def theory(rate: float) -> Theory:
        return _mg1_theory(rate, mean_service, cv2, discipline)

    settings = {"mean_service": mean_service, "cv2": cv2, "discipline": discipline}
    title = f"M/G/1, {discipline}, cv² = {cv2:g}"
    return Study("mg1", title, settings, rate, 1 / mean_service, CLASSICAL, simulate, theory)


def _mg1_theory(rate: float, mean_service: float, cv2: float, discipline: str) -> Theory:
    from scipy.stats import gamma

    match discipline:
        case "ps":
            wait = disciplines.ps_mean_sojourn(rate, mean_service) - mean_service
        case "sjf" if cv2:
            wait = disciplines.sjf_mean_wait(rate, gamma(1 / cv2, scale=mean_service * cv2))
        case "srpt" if cv2:
            law = gamma(1 / cv2, scale=mean_service * cv2)
            wait = disciplines.srpt_mean_sojourn(rate, law) - mean_service
        case _:  # in order of arrival: so is shortest first where all are equal
            wait = queues.mg1_mean_wait(rate, mean_service, (1 + cv2) * mean_service**2)
    in_order = discipline == "fifo" or (cv2 == 0 and discipline != "ps")
    values, notes = _means(rate, mean_service, wait), []
    if in_order or discipline == "sjf":
        values[MUST_WAIT.name] = rate * mean_service
    if in_order and cv2 == 0:
        values[P99_WAIT.name] = queues.md1_wait_quantile(rate, mean_service, 0.99)
        values[P99_SOJOURN.name] = values[P99_WAIT.name] + mean_service
    elif in_order and cv2 == 1:
        values[P99_WAIT.name] = markovian.mm1_wait_quantile(rate, mean_service, 0.99)
        values[P99_SOJOURN.name] = markovian.mm1_sojourn_quantile(rate, mean_service, 0.99)
    else:
        notes.append("Percentiles in closed form are known for fifo with cv2=0 or cv2=1 only.")
    if discipline in ("ps", "srpt"):
        notes.append("The wait is the time in system less the service: what the others cost a customer.")
    return Theory(values, notes=tuple(notes))


def batch(rate: float, alpha: float, tau0: float, max_batch_size: int, max_wait_time: float) -> Study:
    """A server that answers requests in batches of b, each in αb + τ₀ seconds, by `DynamicBatching`."""
    require_not_negative(alpha=alpha, tau0=tau0)
    if alpha + tau0 == 0:
        raise InvalidSetting("alpha=0 and tau0=0: a batch would take no time; make one of them positive")
    law, policy = BatchTime(alpha, tau0), DynamicBatching(max_batch_size, max_wait_time)

    def simulate(rate: float, customers: int, seed: int) -> QueueRun:
        arrivals = poisson_arrivals(rate, customers, seed)
        starts, departures = np.empty((2, customers))
        for served in simulate_batching(arrivals, policy, law).batches:
            members = list(served.members)
            starts[members], departures[members] = served.start, served.end
        return QueueRun(arrivals, departures - starts, starts, departures)

    def theory(rate: float) -> Theory:
        return _batch_theory(rate, law, policy)

    settings = {
        "alpha": alpha,
        "tau0": tau0,
        "max_batch_size": max_batch_size,
        "max_wait_time": max_wait_time,
    }
    quantities = (MEAN_SOJOURN, P50_SOJOURN, P99_SOJOURN, MEAN_BATCH_SIZE)
    title, capacity = f"batches of up to {max_batch_size}", law.capacity(max_batch_size)
    return Study("batch", title, settings, rate, capacity, quantities, simulate, theory)


def _batch_theory(rate: float, law: BatchTime, policy: DynamicBatching) -> Theory:
    if policy.max_wait_time > 0:
        return Theory({}, notes=("Theory is silent: no exact law is known here for a server with a window.",))
    notes = []
    if rate * law.alpha < 1:
        bound = mean_latency_bound(rate, law)
        notes.append(f"With batches of any size the mean sojourn is at most {bound:.4g} s (Inoue 2021).")
    try:
        chain = DynamicBatchingChain(rate, law, policy)
    except InvalidSetting as refusal:  # stable, yet so near the limit that the chain grows too long
        return Theory({}, notes=(f"Theory is silent: {refusal}.", *notes))
    values = {
        MEAN_SOJOURN.name: chain.mean_latency,
        P50_SOJOURN.name: chain.quantile(0.50),
        P99_SOJOURN.name: chain.quantile(0.99),
        MEAN_BATCH_SIZE.name: chain.mean_batch_size,
    }
    return Theory(values, notes=tuple(notes))


def _means(rate: float, mean_service: float, wait: float) -> dict[str, float]:
    sojourn = wait + mean_service
    return {MEAN_WAIT.name: wait, MEAN_SOJOURN.name: sojourn, MEAN_NUMBER.name: rate * sojourn}


def poisson_arrivals(rate: float, customers: int, seed: int) -> np.ndarray:
    """Arrival times in seconds, shape (customers,); at another rate the same ones, stretched."""
    return np.cumsum(streams(seed, "arrivals")["arrivals"].standard_exponential(customers)) / rate


def named(kind: str, name: str, known: Mapping[str, Choice]) -> Choice:
    """What goes by this name, or `UnknownName` with all that is known."""
    if name not in known:
        raise UnknownName(kind, name, known)
    return known[name]
