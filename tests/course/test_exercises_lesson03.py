"""Lesson 03's reference answers against the library, and the judge against the simulation."""

from __future__ import annotations

import numpy as np
import pytest

from servinglib.course.exercises.lesson03 import many_servers, one_server
from servinglib.policies.batching import DynamicBatching
from simulations import queues
from simulations.serving import simulate_batching
from simulations.theory import markovian
from simulations.theory.queues import mg1_mean_wait


def random_customers(load: float, count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return np.cumsum(rng.exponential(1 / load, count)), rng.lognormal(-0.5, 1.0, count)


@pytest.mark.parametrize("load", [0.3, 0.9, 1.2])
def test_the_waits_are_those_of_the_simulated_queue(load):
    arrivals, services = random_customers(load)
    waits = one_server.fifo_waits(arrivals.tolist(), services.tolist())
    assert waits == pytest.approx(queues.fifo(arrivals, services).waits, abs=1e-9)


@pytest.mark.parametrize(("offered", "servers"), many_servers.ERLANG_C.cases)
def test_erlang_c_is_the_librarys(offered, servers):
    assert many_servers.erlang_c(offered, servers) == pytest.approx(markovian.erlang_c(offered, servers))


def test_the_mean_wait_is_the_librarys_and_infinite_from_load_one_on():
    _, services = random_customers(0.5)
    mean = services.mean()
    expected = mg1_mean_wait(0.7 / mean, mean, (services**2).mean())
    assert one_server.mean_wait(0.7 / mean, services.tolist()) == pytest.approx(expected)
    assert one_server.mean_wait(1.5 / mean, services.tolist()) == np.inf


@pytest.mark.parametrize("load", [0.2, 0.95])
def test_capacity_is_that_of_the_server_however_busy_it_was(load):
    arrivals, _ = random_customers(10 * load)
    run = simulate_batching(arrivals, DynamicBatching(1, max_wait_time=0), lambda size: 0.1, network=0.02)
    stages = ("arrival", "scheduled", "first_token", "finished", "completed")
    stamps = [[getattr(t, stage) / 1e9 for t in run.timelines] for stage in stages]
    assert one_server.capacity(*stamps) == pytest.approx(10.0)


@pytest.mark.parametrize(("rate", "mean_service", "limit"), many_servers.SERVERS_NEEDED.cases)
def test_the_servers_needed_are_the_fewest_whose_p99_wait_is_within_the_limit(rate, mean_service, limit):
    servers = many_servers.servers_needed(rate, mean_service, limit)
    assert markovian.mmc_wait_quantile(rate, mean_service, servers, 0.99) <= limit
    assert markovian.mmc_wait_quantile(rate, mean_service, servers - 1, 0.99) > limit


def test_the_simulation_finds_the_reference_enough_and_one_server_fewer_too_few():
    fewer, right = many_servers.judge(many_servers.servers_needed).splitlines()[1:]
    assert fewer.endswith("too few")
    assert right.endswith("enough")


def test_the_simulation_finds_the_servers_of_the_mean_too_few():
    by_the_mean = many_servers.SERVERS_NEEDED.mistakes[1].answer
    assert all(line.endswith("too few") for line in many_servers.judge(by_the_mean).splitlines()[1:])


@pytest.mark.parametrize(
    "answer", [many_servers.SERVERS_NEEDED.stub, lambda *_: 1 / 0, lambda *_: "six", None]
)
def test_the_judge_never_raises_in_the_readers_face(answer):
    assert many_servers.judge(answer).startswith("no number of servers")
