"""The speed benchmark on a small scale: what it measures, not how fast this machine is."""

import numpy as np
import pytest

from servinglib.experiments import simulation_speed as speed
from simulations import queues


def test_every_simulation_is_timed_in_every_round_and_stands_beside_its_target():
    shares: list[float] = []
    report = speed.measure(rounds=2, scale=0.001, progress=lambda step, share: shares.append(share))
    assert {name: len(rates) for name, rates in report.rates.items()} == dict.fromkeys(
        ("fifo", "continuous", "simpy", "bare"), 2
    )
    assert all(rate > 0 for rates in report.rates.values() for rate in rates)
    assert [t["target"] for t in report.to_json()["targets"]] == [1e7, 3e5, 0.5, 1.5, 1.0]
    assert shares == sorted(shares)
    assert shares[-1] < 1


def test_the_bare_script_is_the_same_queue():
    customers = speed.mm1_customers(500)
    assert speed.bare_mm1(*customers) == pytest.approx(queues.fifo(*customers).departures)


def test_the_requests_are_at_the_load_that_the_figure_names():
    arrivals, _, outputs = speed.continuous_requests(200_000)
    per_token = speed.STEP(speed.SEQUENCES) / speed.SEQUENCES
    load = len(arrivals) / arrivals[-1] * np.mean(outputs) * per_token
    assert load == pytest.approx(speed.LOAD, rel=0.02)
