"""Four mistakes, each with the check that one would write first, which misses it, and one that finds it.

A smoke detector that is tested with its own test button passes, with or without a sensor. What passes
for a test of a server is often of that kind: both sides of the equation come from the same list. Lessons
02 and 03 teach the checks that are not; here each must find a mistake that was put there on purpose,
must stay silent without it, and the tautology must miss it.
"""

import numpy as np
import pytest
from conformance import CONFIDENCE

from servinglib.statistics import mean_interval, streams
from simulations import fast_queues
from simulations.queue_run import QueueRun
from simulations.theory.littles_law import window_account
from simulations.theory.markovian import mm1_mean_sojourn, mm1_sojourn_quantile

CUSTOMERS, RUNS = 40_000, 20
SERVICE = 0.5  # seconds
NETWORK = 0.1  # seconds on the way that keep no server busy
RATE = 1.2  # per second: a load of 0.6


def runs(server=fast_queues.fifo, rate=RATE):
    """Independent runs of a server with exponential times."""
    for seed in range(RUNS):
        draw = streams(seed, "arrivals", "services")
        arrivals = np.cumsum(draw["arrivals"].exponential(1 / rate, CUSTOMERS))
        yield server(arrivals, draw["services"].exponential(SERVICE, CUSTOMERS))


def settled(latencies):
    return latencies[CUSTOMERS // 10 :]


def interval(statistic, **setting):
    return mean_interval([statistic(run) for run in runs(**setting)], CONFIDENCE)


def mean_latency(run):
    return settled(run.sojourns).mean()


def books_balance(arrivals, latencies):
    """The tautology: the number inside is worked out from the latencies that it is to confirm."""
    end = (arrivals + latencies).max()
    account = window_account(arrivals, arrivals + latencies, 0, end)
    return account.mean_number == pytest.approx(account.rate * account.mean_time, rel=1e-9)


class Gauge:
    """The server's own count of who is inside, added up over time; it has never seen a client's clock."""

    def __init__(self, run):
        times = np.concatenate([run.arrivals, run.departures])
        order = np.argsort(times, kind="stable")
        number = np.cumsum(np.repeat([1, -1], len(run.arrivals))[order])
        self.area = number[:-1] @ np.diff(times[order])

    def agrees(self, latencies):
        """Little's law with two sources, over a run that starts and ends empty."""
        return self.area == pytest.approx(latencies.sum(), rel=1e-9)


# A server that idles while work waits


def sleepy(arrivals, services):
    """A server that looks for work every 0.2 s only, as a worker with a polling loop does."""
    run, every, free = QueueRun.blank(arrivals, services), 0.2, 0.0
    for i, (came, work) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        run.starts[i] = np.ceil(max(came, free) / every) * every
        free = run.departures[i] = run.starts[i] + work
    return run


def idles_while_work_waits(run):
    """Whether anybody was let wait by a server that had nothing else to do."""
    could_start = np.maximum(run.arrivals, np.concatenate([[0.0], run.departures[:-1]]))
    return bool((run.starts > could_start + 1e-9).any())


def test_a_server_that_idles_while_work_waits_balances_its_books():
    run = next(runs(sleepy))
    assert books_balance(run.arrivals, run.sojourns)
    assert Gauge(run).agrees(run.sojourns)  # even from two sources: the law holds for bad servers too


def test_theory_and_the_timeline_find_it():
    theory = mm1_mean_sojourn(RATE, SERVICE)
    assert theory in interval(mean_latency)
    assert theory not in interval(mean_latency, server=sleepy)
    assert idles_while_work_waits(next(runs(sleepy)))
    assert not idles_while_work_waits(next(runs()))


# A service rate taken from the time between question and answer

LIGHT = 0.2  # per second, a load of 0.1: "hardly anybody waits, so what we measure is the service"


def from_end_to_end(run):
    """The mean service time for which M/M/1 gives the latency that a client measured."""
    latency = mean_latency(run) + NETWORK
    return latency / (1 + LIGHT * latency)


def from_the_server(run):
    """Seconds that a request occupies the server."""
    return settled(run.departures - run.starts).mean()


def busy_share(run):
    return (run.departures - run.starts).sum() / run.departures[-1]


def test_a_service_time_from_end_to_end_reproduces_what_it_was_fitted_to():
    light = next(runs(rate=LIGHT))
    assert mm1_mean_sojourn(LIGHT, from_end_to_end(light)) == pytest.approx(mean_latency(light) + NETWORK)


def test_another_load_finds_it_and_so_does_the_utilization():
    wrong, right = (
        float(np.mean([service(run) for run in runs(rate=LIGHT)]))
        for service in (from_end_to_end, from_the_server)
    )
    latency, busy = interval(lambda run: mean_latency(run) + NETWORK), interval(busy_share)
    assert mm1_mean_sojourn(RATE, wrong) > 1.1 * latency.high
    assert wrong * RATE > 1.1 * busy.high
    assert mm1_mean_sojourn(RATE, right) + NETWORK in latency
    assert right * RATE in busy


# A clock that starts when the request is really sent


def one_connection(run):
    """A client that sends the next request after the last answer: when it sends each, and what it reports."""
    sent = np.maximum(run.arrivals, np.concatenate([[0.0], run.departures[:-1]]))
    return sent, run.departures - sent


def test_latencies_that_omit_the_wait_before_sending_balance_their_books():
    for run in runs():
        assert books_balance(*one_connection(run))


def test_percentiles_from_the_intended_time_and_the_delay_of_sending_find_it():
    def p99(latencies):
        return np.quantile(settled(latencies), 0.99)

    theory = mm1_sojourn_quantile(RATE, SERVICE, 0.99)
    assert theory in interval(lambda run: p99(run.sojourns))
    reported = interval(lambda run: p99(one_connection(run)[1]))
    assert reported.high < theory / 2
    late = interval(lambda run: settled(one_connection(run)[0] - run.arrivals).mean())
    assert late.low > SERVICE / 2  # an open loop would send on time


# Little's law from one source


def drop_the_slowest(run):
    """A client that gives up on the slowest hundredth and forgets them."""
    kept = run.sojourns <= np.quantile(run.sojourns, 0.99)
    return run.arrivals[kept], run.sojourns[kept]


def start_late(run):
    """A clock that starts when the server takes the request up."""
    return run.arrivals, run.departures - run.starts


def mistake_the_unit(run):
    """Milliseconds in a column of seconds."""
    return run.arrivals, run.sojourns * 1_000


def tell_the_truth(run):
    return run.arrivals, run.sojourns


@pytest.mark.parametrize("client", [drop_the_slowest, start_late, mistake_the_unit, tell_the_truth])
def test_from_one_source_littles_law_confirms_every_client(client):
    assert books_balance(*client(next(runs())))


@pytest.mark.parametrize("client", [drop_the_slowest, start_late, mistake_the_unit])
def test_from_two_sources_it_finds_each_that_is_wrong(client):
    run = next(runs())
    assert not Gauge(run).agrees(client(run)[1])


def test_from_two_sources_it_believes_the_honest_client():
    for run in runs():
        assert Gauge(run).agrees(tell_the_truth(run)[1])
