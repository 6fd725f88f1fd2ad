"""How fast do the simulations run? Each beside what it should reach, all in one process on one core.

A capacity plan asks the simulator thousands of what-ifs, and a queue near saturation needs millions of
customers before its mean stands still. So speed decides which questions can be asked at all. The model
that is written to be read (SimPy) is held against the barest SimPy script of the same queue, and the
two that are written to be fast against an absolute rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import simpy

from servinglib.bench.provenance import peak_memory_gib
from servinglib.bench.targets import Target
from servinglib.policies.step_time import StepTime
from simulations import queues

Progress = Callable[[str, float], None]
STEP = StepTime(a=0.010, b=0.0001)  # of the order of a 30M model; the speed does not depend on it
SEQUENCES, LOAD, MEAN_OUTPUT = 64, 0.8, 100


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """Rates of each simulation by round, in customers or requests per second, and the targets."""

    rates: dict[str, list[float]]
    targets: tuple[Target, ...]

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return {**asdict(self), "targets": [t.to_json() for t in self.targets]}


def measure(
    rounds: int = 5, scale: float = 1.0, progress: Progress = lambda step, share: None
) -> SpeedReport:
    """Run the benchmark; about a minute.

    Parameters
    ----------
    rounds : int
        The median counts; ratios are taken within a round.
    scale : float
        Of all numbers of customers; below 1 only to try the benchmark itself.
    progress : callable
        Called with what runs and the share that is done.
    """
    from simulations import fast_queues  # compiled at their first use
    from simulations.fast import simulate_continuous_fast

    count = {name: max(100, int(scale * n)) for name, n in COUNTS.items()}
    queue, small = mm1_customers(count["fifo"]), mm1_customers(count["simpy"])
    requests = continuous_requests(count["continuous"])
    contenders: dict[str, tuple[int, Callable[[], object]]] = {
        "fifo": (count["fifo"], lambda: fast_queues.fifo(*queue)),
        "continuous": (count["continuous"], lambda: simulate_continuous_fast(*requests, STEP)),
        "simpy": (count["simpy"], lambda: queues.fifo(*small)),
        "bare": (count["simpy"], lambda: bare_mm1(*small)),
    }
    for _, run in contenders.values():
        run()  # compiles, and warms the caches
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for i, (name, (n, run)) in enumerate(contenders.items()):
            progress(name, (turn + i / len(contenders)) / (rounds + 1))
            rates[name].append(n / seconds(run))
    progress("ten times as many requests", rounds / (rounds + 1))
    long = continuous_requests(count["long"])
    growth = (
        seconds(lambda: simulate_continuous_fast(*long, STEP)) / count["long"] * median(rates["continuous"])
    )
    return SpeedReport(rates, _targets(rates, growth, peak_memory_gib()))


COUNTS = {"fifo": 5_000_000, "continuous": 1_000_000, "simpy": 50_000, "long": 10_000_000}
"""Customers of each measurement; `long` is ten times `continuous`."""


def _targets(rates: dict[str, list[float]], growth: float, memory: float) -> tuple[Target, ...]:
    ratio = median(mine / bare for mine, bare in zip(rates["simpy"], rates["bare"], strict=True))
    return (
        Target("vectorised FIFO queue", median(rates["fifo"]), 1e7, at_least=True, unit="customers/s"),
        Target(
            f"continuous batching, skip-ahead, B={SEQUENCES}, load {LOAD}, {MEAN_OUTPUT} tokens",
            median(rates["continuous"]), 3e5, at_least=True, unit="requests/s",
        ),
        Target("SimPy M/M/1 / a bare SimPy script of it", ratio, 0.5, at_least=True),
        Target("time per request, 10 times as many requests", growth, 1.5, at_least=False, unit="times"),
        Target("peak memory of the process", memory, 1.0, at_least=False, unit="GiB"),
    )  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def mm1_customers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrivals and services of an M/M/1 queue at `LOAD`, with mean service 1 s."""
    rng = np.random.default_rng(1)
    return np.cumsum(rng.exponential(1 / LOAD, count)), rng.exponential(1.0, count)


def continuous_requests(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrivals, prompt and output lengths at `LOAD` of what a full batch can do."""
    rng = np.random.default_rng(1)
    capacity = SEQUENCES / (MEAN_OUTPUT * STEP(SEQUENCES))
    arrivals = np.cumsum(rng.exponential(1 / (LOAD * capacity), count))
    return arrivals, np.ones(count, np.int64), rng.geometric(1 / MEAN_OUTPUT, count)


def bare_mm1(arrivals: np.ndarray, services: np.ndarray) -> list[float]:
    """The least SimPy program for a FIFO queue: a resource, a process per customer, one list."""
    env = simpy.Environment()
    server = simpy.Resource(env)
    departures: list[float] = []

    def customer(service: float):
        with server.request() as turn:
            yield turn
            yield env.timeout(service)
        departures.append(env.now)

    def source():
        for arrival, service in zip(arrivals.tolist(), services.tolist(), strict=True):
            yield env.timeout(arrival - env.now)
            env.process(customer(service))

    env.process(source())
    env.run()
    return departures
