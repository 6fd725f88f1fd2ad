"""Who is served next: processor sharing, shortest first, shortest remaining time, classes.

A formula for customers of one size is put to the test by the mean of T/theory(size), which is 1 over any
set of sizes if the formula holds for each of them.
"""

import numpy as np
import pytest
from conformance import (
    LOADS,
    SIZES,
    Claim,
    Experiment,
    TaggedRun,
    finding,
    mean_sojourn,
    mean_wait,
    poisson_times,
)
from scipy import stats

from simulations import fast_queues
from simulations.theory import disciplines
from simulations.theory.markovian import mm1_number_pmf

SHARING = {0.3: 50_000, 0.6: 90_000}
SHORTEST = {0.3: 100_000, 0.6: 100_000}
REMAINING = {0.3: 10_000, 0.6: 20_000}
# At 0.9, by the law of the sizes
HEAVY = {
    "fixed": 320_000,
    "exponential": 560_000,
    "two-point": 870_000,
    "uniform": 440_000,
    "lognormal": 250_000,
}
CLASSES = {0.3: 60_000, 0.6: 100_000, 0.9: 700_000}
LAWS = {"uniform": stats.uniform(0, 2), "lognormal": stats.lognorm(0.8, scale=np.exp(-0.32))}
THIRDS = {"small": (0, 1 / 3), "middle": (1 / 3, 2 / 3), "large": (2 / 3, 1)}

# Three classes: chat (short, random), search (up to 2 s), reports (2 s each).
SHARES = np.array([0.5, 0.3, 0.2])
MEANS = np.array([0.5, 1.0, 2.0])
SECOND_MOMENTS = np.array([0.5, 4 / 3, 4.0])


def processor_sharing(load, kind):
    def simulate(draw, size):
        services = SIZES[kind](draw["services"], size)
        return fast_queues.processor_sharing(poisson_times(draw, load, size), services)

    def slowdown(seen):
        return np.mean(seen.sojourns / seen.services)

    def of_largest(seen):
        large = seen.services >= np.quantile(seen.services, 0.95)
        return np.mean(seen.sojourns[large] / disciplines.ps_mean_sojourn(load, 1.0, seen.services[large]))

    claims = (
        Claim("mean sojourn", disciplines.ps_mean_sojourn(load, 1.0), mean_sojourn),
        Claim("slowdown", disciplines.ps_slowdown(load, 1.0), slowdown),
        Claim("large, over theory", 1.0, of_largest),
        *(Claim(f"P(N = {n})", mm1_number_pmf(load, 1.0, n), finding(n)) for n in (0, 2)),
    )
    return Experiment(f"PS, {kind}, at {load}", SHARING.get(load, HEAVY[kind]), simulate, claims)


def by_thirds(law, times):
    """A claim for each third of the customers, by size; each is tagged with what theory expects for it."""

    def ratio(low, high):
        def statistic(seen):
            inside = (seen.services >= law.ppf(low)) & (seen.services < law.ppf(high))
            return np.mean(times(seen)[inside] / seen.tags[inside])

        return statistic

    return (Claim(f"{name}, over theory", 1.0, ratio(*ends)) for name, ends in THIRDS.items())


def sjf(load, name):
    law = LAWS[name]

    def simulate(draw, size):
        services = law.rvs(size, random_state=draw["services"])
        run = fast_queues.sjf(poisson_times(draw, load, size), services)
        return TaggedRun.of(run, disciplines.sjf_mean_wait_at(load, law, services))

    claims = (
        Claim("mean wait", disciplines.sjf_mean_wait(load, law), mean_wait),
        *by_thirds(law, lambda seen: seen.waits),
    )
    return Experiment(f"SJF, {name}, at {load}", SHORTEST.get(load, HEAVY[name]), simulate, claims)


def srpt(load, name):
    law = LAWS[name]

    def simulate(draw, size):
        services = law.rvs(size, random_state=draw["services"])
        run = fast_queues.srpt(poisson_times(draw, load, size), services)
        return TaggedRun.of(run, disciplines.srpt_mean_sojourn_at(load, law, services))

    claims = (
        Claim("mean sojourn", disciplines.srpt_mean_sojourn(load, law), mean_sojourn),
        *by_thirds(law, lambda seen: seen.sojourns),
    )
    return Experiment(f"SRPT, {name}, at {load}", REMAINING.get(load, HEAVY[name]), simulate, claims)


def draw_classes(draw, size):
    """The class of each customer and a size by its law."""
    classes = np.searchsorted(np.cumsum(SHARES)[:-1], draw["others"].random(size), side="right")
    rng = draw["services"]
    sizes = np.choose(classes, [rng.exponential(0.5, size), rng.uniform(0, 2, size), np.full(size, 2.0)])
    return classes.astype(float), sizes


def priorities(load, preemptive):
    rate = load / (SHARES @ MEANS)
    moments = (rate * SHARES, MEANS, SECOND_MOMENTS)

    def simulate(draw, size):
        classes, sizes = draw_classes(draw, size)
        arrivals = poisson_times(draw, rate, size)
        return TaggedRun.of(fast_queues.priorities(arrivals, sizes, classes, preemptive), classes)

    def of_class(k):
        def statistic(seen):
            mine = seen.tags == k
            return (seen.sojourns if preemptive else seen.waits)[mine].mean()

        return statistic

    theory = (
        disciplines.preemptive_priority_mean_sojourns(*moments)
        if preemptive
        else disciplines.priority_mean_waits(*moments)
    )
    name = "preemptive classes" if preemptive else "classes"
    what = "sojourn" if preemptive else "wait"
    claims = tuple(Claim(f"{what} of class {k}", t, of_class(k)) for k, t in enumerate(theory))
    return Experiment(f"{name} at {load}", CLASSES[load], simulate, claims)


EXPERIMENTS = [
    *(processor_sharing(load, kind) for kind in SIZES for load in LOADS),
    *(rule(load, law) for rule in (sjf, srpt) for law in LAWS for load in LOADS),
    *(priorities(load, preemptive) for preemptive in (False, True) for load in LOADS),
]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_theory_lies_in_the_interval_of_the_simulation(experiment):
    experiment.check()
