"""Many servers: two choices, the shortest line, fan-out, and workers in each other's way.

The limit of power of d choices is for endlessly many servers. With c servers customers take a little
longer, by about 1/c of something: 10 and 100 servers are above the limit, 1,000 cannot be told from it.
"""

import heapq

import numpy as np
import pytest
from conformance import LOADS, Claim, Experiment, TaggedRun, mean_sojourn, poisson_times, share
from numba import njit

from simulations import fast_queues
from simulations.cluster import simulate_cluster
from simulations.queue_run import QueueRun
from simulations.theory import scaling
from simulations.theory.markovian import mm1_mean_sojourn

SERVERS = 4


@njit(cache=True)
def _join_shortest(arrivals, services, choices, servers, starts, departures, lengths):
    """Each joins the shortest of the lines in their row of `choices`; `lengths` is that of the first of them."""
    first = np.full(servers, -1)  # in each line: who is first, who is last, how many there are
    last = np.full(servers, -1)
    number = np.zeros(servers, np.int64)
    behind = np.full(len(arrivals), -1)
    for i in range(len(arrivals)):
        best = -1
        for server in choices[i]:
            while first[server] >= 0 and departures[first[server]] <= arrivals[i]:
                first[server] = behind[first[server]]
                number[server] -= 1
            if best < 0 or number[server] < number[best]:
                best = server
        lengths[i] = number[choices[i, 0]]
        starts[i] = arrivals[i]
        if number[best]:
            starts[i] = departures[last[best]]
            behind[last[best]] = i
        else:
            first[best] = i
        departures[i] = starts[i] + services[i]
        last[best] = i
        number[best] += 1


def join_shortest(arrivals, services, choices, servers):
    run = QueueRun.blank(arrivals, services)
    lengths = np.zeros(len(arrivals))
    _join_shortest(run.arrivals, run.services, choices, servers, run.starts, run.departures, lengths)
    return TaggedRun.of(run, lengths)


def some_of(servers, choices):
    return lambda rng, size: rng.integers(servers, size=(size, choices))


def all_of(servers):
    return lambda rng, size: np.broadcast_to(np.arange(servers), (size, servers))


def markovian(load, servers, choose):
    """Exponential services of mean 1."""

    def simulate(draw, size):
        arrivals = poisson_times(draw, load * servers, size)
        services = draw["services"].exponential(size=size)
        return join_shortest(arrivals, services, choose(draw["others"], size), servers)

    return simulate


def choices_of_many(load, d):
    servers, n = 1_000, 2 if load < 0.9 or d == 3 else 3
    claims = (
        Claim("mean sojourn", scaling.power_of_d_mean_sojourn(load, d), mean_sojourn),
        Claim(
            f"P(at least {n})",
            scaling.power_of_d_number_tail(load, d, n),
            share(lambda seen: seen.tags >= n),
        ),
    )
    simulate = markovian(load, servers, some_of(servers, d))
    return Experiment(f"{d} choices of {servers} at {load}", 500_000, simulate, claims)


def choices_of_few(servers):
    claims = (Claim("mean sojourn", scaling.power_of_d_mean_sojourn(0.9, 2), mean_sojourn, "above"),)
    size = {10: 190_000, 100: 400_000}[servers]
    return Experiment(
        f"2 choices of {servers} at 0.9", size, markovian(0.9, servers, some_of(servers, 2)), claims
    )


def shortest_line(load):
    below, above = scaling.jsq_sojourn_bounds(load * SERVERS, 1.0, SERVERS)
    claims = (
        Claim("one line", below, mean_sojourn, "above"),
        Claim("random lines", above, mean_sojourn, "below"),
    )
    simulate = markovian(load, SERVERS, all_of(SERVERS))
    return Experiment(f"shortest of {SERVERS} at {load}", 450_000, simulate, claims)


def random_line(load):
    """The upper bound is what it says, a random line for each."""
    above = scaling.jsq_sojourn_bounds(load * SERVERS, 1.0, SERVERS)[1]
    simulate = markovian(load, SERVERS, some_of(SERVERS, 1))
    claims = (Claim("random lines", above, mean_sojourn),)
    return Experiment(f"random of {SERVERS} at {load}", {0.9: 580_000}.get(load, 40_000), simulate, claims)


def fan_out(parts):
    slow = 0.01

    def simulate(draw, size):
        return draw["services"].random((size, parts)) < slow

    def meet_one(slow_parts):
        return slow_parts.any(axis=1).mean()

    claims = (Claim("slow", scaling.fan_out_slow_share(slow, parts), meet_one),)
    return Experiment(f"fan-out to {parts}", 200_000 // parts + 20_000, simulate, claims)


def fan_out_to_queues():
    """Parts that get their work at the same moments are slow together: fewer requests meet a slow one."""
    load, parts = 0.6, 5
    slow = 3 * mm1_mean_sojourn(load, 1.0)

    def simulate(draw, size):
        arrivals = poisson_times(draw, load, size)
        services = draw["services"].exponential(size=(parts, size))
        runs = [fast_queues.fifo(arrivals, mine) for mine in services]
        slowest = np.max([run.sojourns for run in runs], axis=0)
        return QueueRun(arrivals, services[0], arrivals, arrivals + slowest)

    theory = scaling.fan_out_slow_share(np.exp(-3), parts)
    claims = (Claim("slow", theory, share(lambda seen: seen.sojourns > slow), "below"),)
    return Experiment("fan-out to queues", 110_000, simulate, claims)


EXPERIMENTS = [
    *(choices_of_many(load, 2) for load in LOADS),
    choices_of_many(0.9, 3),
    *(choices_of_few(servers) for servers in (10, 100)),
    *(make(load) for make in (shortest_line, random_line) for load in LOADS),
    *(fan_out(parts) for parts in (1, 10, 100)),
    fan_out_to_queues(),
]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_theory_lies_in_the_interval_of_the_simulation(experiment):
    experiment.check()


class Replay:
    """A routing rule that asks the servers it is told to."""

    def __init__(self, choices):
        self.rows = iter(choices)

    def choose(self, outstanding):
        return min(next(self.rows).tolist(), key=outstanding.__getitem__)


@pytest.mark.parametrize(("servers", "choose"), [(4, all_of(4)), (7, some_of(7, 2)), (3, some_of(3, 1))])
def test_the_compiled_lines_are_those_of_the_cluster(servers, choose):
    rng = np.random.default_rng(4)
    arrivals = np.cumsum(rng.exponential(1 / (0.8 * servers), 3_000))
    services, choices = rng.exponential(size=3_000), choose(rng, 3_000)
    cluster = simulate_cluster(arrivals, lambda i, _: services[i], Replay(choices), replicas=servers)
    np.testing.assert_allclose(
        join_shortest(arrivals, services, choices, servers).departures, cluster.finishes, rtol=1e-12
    )


def one_round(workers, contention, coherency):
    """When the last of some workers is through, each with one unit of work.

    A share 1 - contention they do side by side. Then all stand before one door at the same moment: behind
    it each does the rest alone, and settles `coherency` with each of the others.
    """
    at_the_door = np.full(workers, 1 - contention)
    alone = np.full(workers, contention + coherency * (workers - 1))
    return fast_queues.fifo(at_the_door, alone).departures.max()


@pytest.mark.parametrize("workers", [1, 2, 7, 40])
def test_workers_in_step_before_one_door_are_as_fast_as_the_scalability_law(workers):
    for contention, coherency in [(0.0, 0.0), (0.05, 0.0), (0.05, 0.002), (0.4, 0.01)]:
        faster = workers / one_round(workers, contention, coherency)
        assert faster == pytest.approx(scaling.usl_speedup(workers, contention, coherency))
    assert workers / one_round(workers, 0.05, 0.0) == pytest.approx(scaling.amdahl_speedup(workers, 0.05))


def test_the_peak_is_where_one_more_worker_makes_all_slower():
    contention, coherency = 0.05, 0.0021
    workers = np.arange(1, 100)
    faster = workers / [one_round(n, contention, coherency) for n in workers]
    assert abs(workers[np.argmax(faster)] - scaling.usl_peak(contention, coherency)) < 1


def out_of_step(rng, workers, contention, tasks):
    """The same workers, but each goes on at once, and what they do takes random times."""
    ready = [(rng.exponential(1 - contention), worker) for worker in range(workers)]
    heapq.heapify(ready)
    door_free = 0.0
    for work, alone in rng.exponential([1 - contention, contention], (tasks, 2)):
        came, worker = heapq.heappop(ready)
        door_free = max(came, door_free) + alone
        heapq.heappush(ready, (door_free + work, worker))
    return tasks / door_free


def test_workers_out_of_step_get_more_done_than_amdahl_says():
    rng = np.random.default_rng(8)
    for workers in (2, 5, 20):
        assert out_of_step(rng, workers, 0.2, tasks=20_000) > scaling.amdahl_speedup(workers, 0.2)
