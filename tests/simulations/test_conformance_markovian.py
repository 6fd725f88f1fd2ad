"""M/M/1 and M/M/c: means, percentiles and the law of the number in the system."""

import numpy as np
import pytest
from conformance import (
    LOADS,
    Claim,
    Experiment,
    finding,
    mean_sojourn,
    mean_wait,
    poisson_times,
    share,
)

from simulations import fast_queues
from simulations.theory import markovian as mm

SERVICE = 0.5  # seconds
SERVERS = 4
MM1 = {0.3: 40_000, 0.6: 150_000, 0.9: 950_000}
MMC = {0.3: 400_000, 0.6: 210_000, 0.9: 800_000}
NUMBERS = {0.3: (0, 1, 2), 0.6: (0, 2, 5), 0.9: (0, 5, 15)}


def markovian(rate, servers=1):
    def simulate(draw, size):
        services = draw["services"].exponential(SERVICE, size)
        return fast_queues.fifo(poisson_times(draw, rate, size), services, servers)

    return simulate


def mm1(load):
    queue = (load / SERVICE, SERVICE)
    median, rare = mm.mm1_sojourn_quantile(*queue, np.array([0.5, 0.99]))
    late = mm.mm1_wait_quantile(*queue, 0.95)
    control = (mean_sojourn, mm.mm1_mean_sojourn(*queue))
    claims = (
        Claim("mean sojourn", mm.mm1_mean_sojourn(*queue), mean_sojourn),
        Claim("median sojourn", median, lambda seen: np.quantile(seen.sojourns, 0.5)),
        Claim("99% sojourn", rare, lambda seen: np.quantile(seen.sojourns, 0.99), control=control),
        Claim("95% wait", late, lambda seen: np.quantile(seen.waits, 0.95), control=control),
        Claim("P(T > 1 s)", 1 - mm.mm1_sojourn_cdf(*queue, 1.0), share(lambda seen: seen.sojourns > 1.0)),
        Claim("P(W > 0.5 s)", 1 - mm.mm1_wait_cdf(*queue, 0.5), share(lambda seen: seen.waits > 0.5)),
        *(Claim(f"P(N = {n})", mm.mm1_number_pmf(*queue, n), finding(n)) for n in NUMBERS[load]),
    )
    return Experiment(f"M/M/1 at {load}", MM1[load], markovian(queue[0]), claims)


def mmc(load):
    queue = (load * SERVERS / SERVICE, SERVICE, SERVERS)
    median, rare = mm.mmc_sojourn_quantile(*queue, np.array([0.5, 0.99]))
    control = (mean_wait, mm.mmc_mean_wait(*queue))
    late = 1 - mm.erlang_c(load * SERVERS, SERVERS) / 3
    claims = (
        Claim("share who wait", mm.erlang_c(load * SERVERS, SERVERS), share(lambda seen: seen.waits > 0)),
        Claim("mean wait", mm.mmc_mean_wait(*queue), mean_wait),
        Claim("P(W > 0.1 s)", 1 - mm.mmc_wait_cdf(*queue, 0.1), share(lambda seen: seen.waits > 0.1)),
        Claim("late wait", mm.mmc_wait_quantile(*queue, late), lambda seen: np.quantile(seen.waits, late)),
        Claim("P(T > 1 s)", 1 - mm.mmc_sojourn_cdf(*queue, 1.0), share(lambda seen: seen.sojourns > 1.0)),
        Claim("median sojourn", median, lambda seen: np.quantile(seen.sojourns, 0.5)),
        Claim("99% sojourn", rare, lambda seen: np.quantile(seen.sojourns, 0.99), control=control),
        *(Claim(f"P(N = {n})", mm.mmc_number_pmf(*queue, n), finding(n)) for n in NUMBERS[load]),
    )
    return Experiment(f"M/M/{SERVERS} at {load}", MMC[load], markovian(queue[0], SERVERS), claims)


EXPERIMENTS = [make(load) for make in (mm1, mmc) for load in LOADS]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_theory_lies_in_the_interval_of_the_simulation(experiment):
    experiment.check()
