"""Queues with a last place: who is turned away, and that Erlang's B asks for no more than a mean."""

import numpy as np
import pytest
from conformance import LOADS, SIZES, Claim, Experiment, poisson_times, time_share

from simulations import fast_queues
from simulations.theory import loss

SERVERS = 4
CUSTOMERS = {0.3: 180_000, 0.6: 70_000, 0.9: 50_000, 1.0: 50_000, 1.5: 50_000}
NUMBERS = {0.3: (0, 2), 0.6: (1, 3), 0.9: (1, 3)}


def refused(seen):
    return seen.lost.mean()


def mm1k(load):
    queue = (load, 1.0, 3)  # three places

    def simulate(draw, size):
        services = draw["services"].exponential(size=size)
        return fast_queues.loss(poisson_times(draw, load, size), services, places=3)

    claims = (
        Claim("lost", loss.mm1k_loss(*queue), refused),
        Claim("mean sojourn", loss.mm1k_mean_sojourn(*queue), lambda seen: np.nanmean(seen.sojourns)),
        *(Claim(f"P(N = {n})", loss.mm1k_number_pmf(*queue, n), time_share(n)) for n in (0, 2)),
    )
    return Experiment(f"M/M/1/3 at {load}", CUSTOMERS[load], simulate, claims)


def erlang(load, kind):
    offered = load * SERVERS

    def simulate(draw, size):
        services = SIZES[kind](draw["services"], size)
        return fast_queues.loss(poisson_times(draw, offered, size), services, SERVERS, places=SERVERS)

    claims = (
        Claim("lost", loss.erlang_b(offered, SERVERS), refused),
        *(
            Claim(f"P(N = {n})", loss.mmcc_number_pmf(offered, SERVERS, n), time_share(n))
            for n in NUMBERS[load]
        ),
    )
    return Experiment(f"M/G/4/4, {kind}, at {load}", CUSTOMERS[load], simulate, claims)


EXPERIMENTS = [mm1k(load) for load in CUSTOMERS] + [erlang(load, kind) for kind in SIZES for load in LOADS]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_theory_lies_in_the_interval_of_the_simulation(experiment):
    experiment.check()
