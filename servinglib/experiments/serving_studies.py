"""Servers of language models as studies where theory has no exact answer: token steps, and a cluster.

A bridge is computed by the book as long as it looks like one in the book; for the others the engineer
has rules of thumb, bounds, and a model in a wind tunnel. A server that batches token by token is nearly
in the book: only a customer who comes in the middle of a step must wait for its end. A cluster is where
the router tosses a coin; of better routers theory says what can't be beaten, or what very many replicas
would do. The tables tell these cases apart, and never call a bound a prediction.

Conventions and errors are those of `queue_studies`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from servinglib.experiments.quantities import MEAN_RUNNING, MEAN_SOJOURN, P99_SOJOURN, UTILISATION
from servinglib.experiments.queue_studies import named, poisson_arrivals
from servinglib.experiments.study import Study, Theory
from servinglib.policies.routing import (
    LeastOutstanding,
    PowerOfChoices,
    RandomChoice,
    RoundRobin,
    RoutingPolicy,
)
from servinglib.policies.step_time import StepTime
from servinglib.statistics import streams
from simulations.cluster import simulate_cluster
from simulations.fast import simulate_continuous_fast
from simulations.queue_run import QueueRun
from simulations.theory import continuous as decoding
from simulations.theory import fluid, markovian, queues, scaling
from simulations.theory.domain import require, require_positive, require_whole

POLICIES: dict[str, Callable[[np.random.Generator], RoutingPolicy]] = {
    "random": RandomChoice,
    "round-robin": lambda rng: RoundRobin(),
    "least-outstanding": lambda rng: LeastOutstanding(),
    "power-of-two": PowerOfChoices,
}


def continuous(
    rate: float, step: StepTime, prompt_tokens: int, output_tokens: float, max_num_seqs: int
) -> Study:
    """A server of token steps, with prompts that are all equal, each read in one step.

    Parameters
    ----------
    rate : float
    step : StepTime
    prompt_tokens : int
    output_tokens : float
        Mean of a geometric law.
    max_num_seqs : int
        Most requests in a step.
    """
    require_whole(1, prompt_tokens=prompt_tokens, max_num_seqs=max_num_seqs)
    require(1 <= output_tokens < np.inf, "output_tokens={x:g} must be at least 1, the first", x=output_tokens)

    def simulate(rate: float, customers: int, seed: int) -> QueueRun:
        outputs = streams(seed, "outputs")["outputs"].geometric(1 / output_tokens, customers)
        prompts = np.full(customers, prompt_tokens)
        run = simulate_continuous_fast(
            poisson_arrivals(rate, customers, seed),
            prompts,
            outputs,
            step,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs * prompt_tokens,
        )
        return QueueRun(run.arrivals, run.finishes - run.scheduled, run.scheduled, run.finishes)

    lengths = _typical_lengths(prompt_tokens, output_tokens)
    full_steps = step.a * output_tokens / max_num_seqs  # a request's share of the steps that it is in

    def theory(rate: float) -> Theory:
        if step.c or step.d:
            return _fluid_theory(rate, step, lengths, max_num_seqs)
        return _decode_theory(rate, step, output_tokens, max_num_seqs)

    return Study(
        "continuous",
        f"continuous batching, up to {max_num_seqs} requests",
        {
            **{name: getattr(step, name) for name in "abcd"},
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "max_num_seqs": max_num_seqs,
        },
        rate,
        1 / (full_steps + fluid.marginal_work(step, *lengths)),
        (MEAN_SOJOURN, MEAN_RUNNING, UTILISATION),
        simulate,
        theory,
    )


def _typical_lengths(prompt_tokens: int, output_tokens: float) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and outputs for the averages of `fluid`: the law's quantiles instead of a random sample."""
    ranks = (np.arange(100_000) + 0.5) / 100_000
    with np.errstate(divide="ignore"):  # answers of one token: log(0), and then 0 goes up to 1
        outputs = np.maximum(1, np.ceil(np.log1p(-ranks) / np.log1p(-1 / output_tokens)))
    return np.full(len(ranks), prompt_tokens), outputs


def _decode_theory(rate: float, step: StepTime, output_tokens: float, max_num_seqs: int) -> Theory:
    numbers = np.arange(max_num_seqs)
    shares = decoding.capped_number_pmf(rate, output_tokens, step, max_num_seqs, numbers)
    values = {
        MEAN_SOJOURN.name: decoding.capped_mean_sojourn(rate, output_tokens, step, max_num_seqs),
        MEAN_RUNNING.name: float(shares @ numbers + (1 - shares.sum()) * max_num_seqs),
        UTILISATION.name: float(1 - shares[0]),
    }
    seconds = step(max(1, round(values[MEAN_RUNNING.name])))
    note = (
        f"Theory (birth and death) lets newcomers in at once; really they wait for the end of a step that "
        f"takes about {seconds:.2g} s."
    )
    return Theory(values, "approximation", (note,))


def _fluid_theory(
    rate: float, step: StepTime, lengths: tuple[np.ndarray, np.ndarray], max_num_seqs: int
) -> Theory:
    sojourn = fluid.fluid_mean_sojourn(rate, step, *lengths)
    running, load = rate * sojourn, rate * fluid.marginal_work(step, *lengths)
    most = running + 3 * math.sqrt(running / (1 - load))  # the variance is that of the negative binomial law
    if most >= max_num_seqs:
        note = (
            f"Theory is silent: in the fluid balance {running:.3g} requests run, at times {most:.3g}, and "
            f"max_num_seqs={max_num_seqs} makes some of them wait."
        )
        return Theory({}, "approximation", (note,))
    note = (
        "Theory is the fluid balance: good where many run and no prompt or context is large beside the rest."
    )
    return Theory({MEAN_SOJOURN.name: sojourn, MEAN_RUNNING.name: running}, "approximation", (note,))


def cluster(rate: float, mean_service: float, replicas: int, policy: str) -> Study:
    """Replicas that serve one request at a time, exponential services, behind one of the `POLICIES`.

    `rate` counts the arrivals at all replicas together.
    """
    require_positive(rate=rate, mean_service=mean_service)
    require_whole(1, replicas=replicas)
    make_policy = named("policy", policy, POLICIES)

    def simulate(rate: float, customers: int, seed: int) -> QueueRun:
        rng = streams(seed, "services", "routing")
        services = rng["services"].exponential(mean_service, customers).tolist()
        run = simulate_cluster(
            poisson_arrivals(rate, customers, seed),
            lambda request, replica: services[request],
            make_policy(rng["routing"]),
            replicas=replicas,
        )
        return QueueRun(run.arrivals, np.array(services), run.starts, run.finishes)

    def theory(rate: float) -> Theory:
        return _cluster_theory(rate, mean_service, replicas, policy)

    settings = {"mean_service": mean_service, "replicas": replicas, "policy": policy}
    title, quantities = f"{replicas} replicas, {policy}", (MEAN_SOJOURN, P99_SOJOURN)
    return Study("cluster", title, settings, rate, replicas / mean_service, quantities, simulate, theory)


def _cluster_theory(rate: float, mean_service: float, replicas: int, policy: str) -> Theory:
    share, mean = rate / replicas, MEAN_SOJOURN.name
    match policy:
        case "round-robin":
            # Each replica gets every n-th arrival, so the gaps are sums of n exponential ones.
            bound = queues.gg1_wait_bound(share, mean_service, replicas / rate**2, mean_service**2)
            note = "Theory is Kingman's upper bound, for the regular arrivals that one replica sees."
            return Theory({mean: bound + mean_service}, "upper bound", (note,))
        case "least-outstanding":
            pooled, split = scaling.jsq_sojourn_bounds(rate, mean_service, replicas)
            note = f"Theory is one line for all replicas, M/M/{replicas}; with random routing it is {split:.4g} s."
            return Theory({mean: pooled}, "lower bound", (note,))
        case "power-of-two":
            limit = mean_service * scaling.power_of_d_mean_sojourn(share * mean_service, 2)
            note = "Theory is the limit of very many replicas; with few of them it takes longer."
            return Theory({mean: limit}, "approximation", (note,))
    p99 = markovian.mm1_sojourn_quantile(share, mean_service, 0.99)
    values = {mean: markovian.mm1_mean_sojourn(share, mean_service), P99_SOJOURN.name: p99}
    return Theory(values, notes=("Theory is M/M/1 at each replica, with its share of the arrivals.",))
