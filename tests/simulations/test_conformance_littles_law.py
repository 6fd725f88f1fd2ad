"""Little's law: exact as bookkeeping, true of means, and of variances only where nobody overtakes."""

import numpy as np
import pytest
from conformance import LOADS, SIZES, Claim, Experiment, poisson_times
from scipy import stats

from servinglib.policies.step_time import StepTime
from simulations import fast_queues
from simulations.fast import simulate_continuous_fast
from simulations.queue_run import QueueRun
from simulations.theory import littles_law, queues

CUSTOMERS = {0.3: 70_000, 0.6: 110_000, 0.9: 480_000}
UNIFORM = stats.uniform(0, 2)


def number_in_time(seen):
    return seen.time_shares @ np.arange(len(seen.time_shares))


def mean_number(load):
    """The number from the clock of the house, the time from theory: nothing in common but the law."""

    def simulate(draw, size):
        services = UNIFORM.rvs(size, random_state=draw["services"])
        return fast_queues.fifo(poisson_times(draw, load, size), services)

    mean_time = queues.mg1_mean_wait(load, 1.0, UNIFORM.var() + 1) + 1
    claims = (Claim("mean number", littles_law.littles_law(load, mean_time), number_in_time),)
    return Experiment(f"L = λW in M/G/1 at {load}", CUSTOMERS[load], simulate, claims)


def variances(rate):
    """The variance of the number over what the distributional law makes of the times of the same run."""

    def ratio(seen):
        return seen.found.var() / littles_law.number_variance(rate, seen.sojourns.mean(), seen.sojourns.var())

    return ratio


def in_order(load, kind):
    def simulate(draw, size):
        return fast_queues.fifo(poisson_times(draw, load, size), SIZES[kind](draw["services"], size))

    claims = (Claim("Var N over theory", 1.0, variances(load)),)
    return Experiment(f"law in order, {kind}, at {load}", CUSTOMERS[load], simulate, claims)


def overtaking(rule):
    load = 0.6

    def simulate(draw, size):
        return rule(poisson_times(draw, load, size), draw["services"].exponential(size=size))

    claims = (Claim("Var N over theory", 1.0, variances(load), "below"),)
    return Experiment(f"law under {rule.__name__}", CUSTOMERS[load], simulate, claims)


def continuous_batching():
    """Short answers overtake long ones."""
    rate, step = 0.6, StepTime(0.01, 0.001)

    def simulate(draw, size):
        outputs = draw["services"].geometric(1 / 1_000, size)
        arrivals = poisson_times(draw, rate, size)
        run = simulate_continuous_fast(
            arrivals, np.ones(size), outputs, step, max_num_seqs=10**6, max_num_batched_tokens=10**6
        )
        return QueueRun(run.arrivals, outputs, run.scheduled, run.finishes)

    claims = (Claim("Var N over theory", 1.0, variances(rate), "below"),)
    return Experiment("law under continuous batching", 250_000, simulate, claims)


EXPERIMENTS = [
    *(mean_number(load) for load in LOADS),
    *(in_order(load, kind) for kind in SIZES for load in LOADS),
    *(overtaking(rule) for rule in (fast_queues.processor_sharing, fast_queues.sjf, fast_queues.srpt)),
    continuous_batching(),
]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_theory_lies_in_the_interval_of_the_simulation(experiment):
    experiment.check()


def customers(seed, load=0.8, count=20_000):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.exponential(1 / load, count)), rng.exponential(size=count)


RULES = {
    "fifo": fast_queues.fifo,
    "sharing": fast_queues.processor_sharing,
    "srpt": fast_queues.srpt,
    "reneging": lambda came, work: fast_queues.reneging(came, work, patience=np.ones(len(came))),
}


def area(arrivals, departures, start, end):
    """∫N(t)dt from the steps of N(t) in order of time, whoever takes them."""
    times = np.concatenate([arrivals, departures])
    order = np.argsort(times, kind="stable")
    number = np.concatenate([[0], np.cumsum(np.repeat([1, -1], len(arrivals))[order])])
    edges = np.clip(np.concatenate([[start], times[order], [end]]), start, end)
    return number @ np.diff(edges)


@pytest.mark.parametrize("rule", RULES)
def test_over_a_run_that_starts_and_ends_empty_the_books_balance_whatever_the_rule(rule):
    run = RULES[rule](*customers(1))
    arrivals, departures = run.arrivals[~run.lost], run.departures[~run.lost]
    end = departures.max()
    assert area(arrivals, departures, 0, end) == pytest.approx(run.sojourns[~run.lost].sum(), rel=1e-9)
    account = littles_law.window_account(arrivals, departures, 0, end)
    assert (account.left_at_start, account.left_at_end, account.edges) == (0, 0, 0)


@pytest.mark.parametrize("rule", RULES)
def test_over_a_window_they_balance_once_those_at_its_edges_are_counted(rule):
    run = RULES[rule](*customers(2))
    arrivals, departures = run.arrivals[~run.lost], run.departures[~run.lost]
    rng = np.random.default_rng(3)
    for _ in range(50):
        start, end = np.sort(rng.uniform(0, arrivals[-1], 2))
        account = littles_law.window_account(arrivals, departures, start, end)
        balance = account.sojourns + account.left_at_start - account.left_at_end
        assert area(arrivals, departures, start, end) == pytest.approx(balance, rel=1e-9)
        assert account.area == pytest.approx(balance, rel=1e-9)
