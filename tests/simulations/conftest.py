"""Replications: independent simulated runs of one setting, with the warm-up cut off."""

from collections.abc import Callable

import numpy as np
import pytest

from servinglib.policies.batching import DynamicBatching
from servinglib.statistics import Interval, mean_interval, warm_up_length
from servinglib.workload import poisson
from simulations.serving import ServiceTime, simulate_batching

RUNS = 20
# Fixed seeds: a test passes or fails for good. Over 300 blocks of 20 other seeds, 99% intervals made
# like these held the known mean wait of M/D/1 in 98% of the blocks.
FIRST_SEED = 7_000


class Replications:
    """`RUNS` simulated runs; `values` has shape (runs, requests), after the warm-up."""

    def __init__(self, values: np.ndarray) -> None:
        cut = warm_up_length(values.mean(axis=0).tolist())
        self.values = values[:, cut:]

    def interval(self, statistic: Callable[[np.ndarray], float]) -> Interval:
        """99% interval of one statistic over the runs."""
        return mean_interval([statistic(run) for run in self.values], confidence=0.99)


@pytest.fixture
def replicate():
    """Latencies of a server simulated `RUNS` times, in seconds."""

    def run(
        rate: float,
        policy: DynamicBatching,
        service_time: ServiceTime,
        *,
        requests: int,
    ) -> Replications:
        values = []
        for seed in range(FIRST_SEED, FIRST_SEED + RUNS):
            arrivals = [r.arrival for r in poisson(rate, count=requests, seed=seed)]
            values.append(simulate_batching(arrivals, policy, service_time).latencies)
        return Replications(np.array(values))

    return run
