"""Small clusters for tests: requests given by hand or drawn, and a scaling policy that follows a script."""

import numpy as np
import pytest

from servinglib.policies.routing import RoundRobin
from servinglib.statistics import streams
from simulations.cluster import simulate_cluster


def by_hand(arrivals, services, routing=None, *, replicas=2, **settings):
    return simulate_cluster(
        arrivals, lambda i, replica: services[i], routing or RoundRobin(), replicas=replicas, **settings
    )


def close(values):
    return pytest.approx(values, nan_ok=True)


class Script:
    """A scaling policy that says what it was told to, and then repeats itself."""

    def __init__(self, *wanted):
        self.wanted, self.seen = list(wanted), []

    def decide(self, load, now):
        self.seen.append(load)
        return self.wanted.pop(0) if len(self.wanted) > 1 else self.wanted[0]


def customers(seed, rate, count):
    draw = streams(seed, "arrivals", "services", "routing", "outages")
    arrivals = np.cumsum(draw["arrivals"].exponential(1 / rate, count))
    return arrivals, draw["services"].exponential(size=count), draw
