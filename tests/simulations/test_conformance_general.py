"""One server, any service times: Pollaczek and Khinchine, M/D/1 to its percentiles, Kingman's bound.

Allen and Cunneen's approximation promises nothing outside M/M/c and M/G/1, so only the latter is
claimed here (the former is Erlang's C by construction). In the G/G/1 systems below it is off by 27% to
330% at a load of 0.3 and by 4% to 8% at 0.9.
"""

import numpy as np
import pytest
from conformance import LOADS, SIZES, Claim, Experiment, mean_wait, poisson_times, share
from scipy import stats

from simulations import fast_queues
from simulations.theory import queues

CUSTOMERS = {0.3: 120_000, 0.6: 100_000, 0.9: 870_000}
LAWS = {"uniform": stats.uniform(0, 2), "lognormal": stats.lognorm(0.8, scale=np.exp(-0.32))}
GAPS = {"regular gaps": 4.0, "clumped gaps": 0.5}  # shapes of a gamma law: C² is 1/4 and 2


def md1(load):
    late = 1 - load / 10

    def simulate(draw, size):
        return fast_queues.fifo(poisson_times(draw, load, size), SIZES["fixed"](draw["services"], size))

    claims = (
        Claim("mean wait", queues.md1_mean_wait(load, 1.0), mean_wait),
        Claim("P(W > 0)", 1 - queues.md1_wait_cdf(load, 1.0, 0.0), share(lambda seen: seen.waits > 1e-6)),
        Claim("P(W > 0.7)", 1 - queues.md1_wait_cdf(load, 1.0, 0.7), share(lambda seen: seen.waits > 0.7)),
        Claim(
            "late wait",
            queues.md1_wait_quantile(load, 1.0, late),
            lambda seen: np.quantile(seen.waits, late),
        ),
    )
    return Experiment(f"M/D/1 at {load}", CUSTOMERS[load], simulate, claims)


def mg1(load, law):
    """Three formulas for one wait."""
    second = LAWS[law].var() + 1

    def simulate(draw, size):
        services = LAWS[law].rvs(size, random_state=draw["services"])
        return fast_queues.fifo(poisson_times(draw, load, size), services)

    bound = queues.gg1_wait_bound(load, 1.0, 1 / load**2, second - 1)
    claims = (
        Claim("mean wait", queues.mg1_mean_wait(load, 1.0, second), mean_wait),
        Claim("Allen-Cunneen", queues.ggc_wait_approximation(load, 1.0, 1, 1, second - 1), mean_wait),
        Claim("Kingman less (1+ρ)/2λ", bound - (1 + load) / (2 * load), mean_wait),
    )
    return Experiment(f"M/G/1, {law}, at {load}", CUSTOMERS[load], simulate, claims)


def gg1(load, gaps, law):
    shape = GAPS[gaps]

    def simulate(draw, size):
        arrivals = np.cumsum(draw["arrivals"].gamma(shape, 1 / (load * shape), size))
        return fast_queues.fifo(arrivals, LAWS[law].rvs(size, random_state=draw["services"]))

    bound = queues.gg1_wait_bound(load, 1.0, 1 / (shape * load**2), LAWS[law].var())
    claims = (Claim("Kingman", bound, mean_wait, simulation_is="below"),)
    return Experiment(f"G/G/1, {gaps}, {law}, at {load}", CUSTOMERS[load], simulate, claims)


EXPERIMENTS = [
    *(md1(load) for load in LOADS),
    *(mg1(load, law) for law in LAWS for load in LOADS),
    *(gg1(load, gaps, law) for gaps in GAPS for law in LAWS for load in LOADS),
]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_theory_lies_in_the_interval_of_the_simulation(experiment):
    experiment.check()
