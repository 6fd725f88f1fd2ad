"""Theory of dynamic batching against a simulation of the same server, and where it must refuse."""

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.policies.adaptive_batching import AdaptiveBatching
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import DynamicBatching
from servinglib.statistics import mean_interval, quantile
from servinglib.workload import poisson
from simulations.serving import simulate_batching
from simulations.theory.batching import DynamicBatchingChain, mean_latency_bound
from simulations.theory.queues import md1_mean_wait, md1_wait_quantile

LAW = BatchTime(alpha=0.002, tau0=0.02)
TAKE_ALL = DynamicBatching(max_batch_size=10_000, max_wait_time=0)


def at_once(cap):
    return DynamicBatching(max_batch_size=cap, max_wait_time=0)


@pytest.mark.parametrize(("cap", "load"), [(4, 0.5), (8, 0.6), (16, 0.7)])
def test_the_chain_gives_the_simulated_mean_and_percentiles(replicate, cap, load):
    rate = load * LAW.capacity(cap)
    chain = DynamicBatchingChain(rate, LAW, at_once(cap))
    runs = replicate(rate, at_once(cap), LAW, requests=6_000)
    for theory, statistic in [
        (chain.mean_latency, np.mean),
        (chain.quantile(0.50), lambda run: quantile(run, 0.50)),
        (chain.quantile(0.99), lambda run: quantile(run, 0.99)),
    ]:
        interval = runs.interval(statistic)
        assert theory in interval
        assert interval.relative_half_width <= 0.02


def test_the_chain_holds_for_batch_times_that_are_no_straight_line(replicate):
    steps = {1: 0.02, 2: 0.02, 3: 0.035, 4: 0.035}.__getitem__
    chain = DynamicBatchingChain(70, steps, at_once(4))
    runs = replicate(70, at_once(4), steps, requests=6_000)
    interval = runs.interval(np.mean)
    assert chain.mean_latency in interval
    assert interval.relative_half_width <= 0.02
    for latency in (0.03, 0.05, 0.07):
        assert chain.cdf(latency) in runs.interval(lambda run, t=latency: np.mean(run <= t))


def test_the_chain_gives_the_simulated_batch_size_and_utilization(replicate):
    chain = DynamicBatchingChain(150, LAW, at_once(8))
    sizes, busy = [], []
    for seed in range(20):
        arrivals = [r.arrival for r in poisson(150, count=5_000, seed=seed)]
        batches = simulate_batching(arrivals, at_once(8), LAW).batches
        sizes.append(len(arrivals) / len(batches))
        busy.append(sum(b.end - b.start for b in batches) / batches[-1].end)
    for theory, values in [(chain.mean_batch_size, sizes), (chain.utilization, busy)]:
        interval = mean_interval(values, 0.99)
        assert theory in interval
        assert interval.relative_half_width <= 0.02


def test_the_law_of_the_latency_is_a_law():
    chain = DynamicBatchingChain(200, LAW, at_once(8))
    assert chain.cdf(LAW(1) - 1e-9) == 0  # nobody is served faster than alone and at once
    assert chain.cdf(10) == pytest.approx(1, abs=1e-9)
    for p in (0.1, 0.5, 0.99):
        assert chain.cdf(chain.quantile(p)) == pytest.approx(p, abs=1e-6)


def test_without_batching_the_chain_is_the_known_queue():
    rate = 0.8 / LAW(1)
    chain = DynamicBatchingChain(rate, LAW, at_once(1))
    assert chain.mean_latency == pytest.approx(md1_mean_wait(rate, LAW(1)) + LAW(1), rel=1e-6)
    for p in (0.5, 0.9, 0.99):
        assert chain.quantile(p) == pytest.approx(md1_wait_quantile(rate, LAW(1), p) + LAW(1), rel=1e-5)


def test_the_mean_is_the_integral_of_the_law():
    chain = DynamicBatchingChain(200, LAW, at_once(8))
    latencies = np.linspace(0, 0.6, 2_001)
    tail = [1 - chain.cdf(t) for t in latencies]
    assert np.trapezoid(tail, latencies) == pytest.approx(chain.mean_latency, rel=1e-3)


@pytest.mark.parametrize("x", [0.03, 0.1, 0.2, 0.5])
def test_inoues_bound_is_above_the_simulated_mean_and_near_it(replicate, x):
    rate = x / LAW.alpha
    bound = mean_latency_bound(rate, LAW)
    interval = replicate(rate, TAKE_ALL, LAW, requests=2_500).interval(np.mean)
    assert interval.relative_half_width <= 0.02
    assert interval.low <= bound <= 1.1 * interval.high


@pytest.mark.parametrize("x", [0.02, 0.5])
def test_inoues_bound_is_exact_in_light_and_in_heavy_traffic(x):
    rate = x / LAW.alpha
    exact = DynamicBatchingChain(rate, LAW, at_once(64)).mean_latency  # a cap that is never reached
    assert mean_latency_bound(rate, LAW) == pytest.approx(exact, rel=0.003)


@pytest.mark.parametrize("rate", [0, -1, 500, 501])
def test_inoues_bound_refuses_a_rate_at_which_the_queue_grows(rate):
    with pytest.raises(InvalidSetting, match="below 500/s"):
        mean_latency_bound(rate, LAW)


def test_theory_refuses_a_policy_that_waits():
    with pytest.raises(InvalidSetting, match=r"max_wait_time=0\.01.*simulate"):
        DynamicBatchingChain(10, LAW, DynamicBatching(4, max_wait_time=0.01))


def test_theory_refuses_a_rule_that_learns():
    with pytest.raises(InvalidSetting, match="AdaptiveBatching"):
        DynamicBatchingChain(10, LAW, AdaptiveBatching(max_wait_time=0))


def test_theory_refuses_a_limit_of_cost():
    with pytest.raises(InvalidSetting, match="max_batch_cost=100"):
        DynamicBatchingChain(10, LAW, DynamicBatching(4, max_wait_time=0, max_batch_cost=100))


@pytest.mark.parametrize("rate", [0, 4 / 0.028, 1000])
def test_the_chain_refuses_a_rate_beyond_capacity(rate):
    with pytest.raises(InvalidSetting, match=r"capacity of 142\.9/s"):
        DynamicBatchingChain(rate, LAW, at_once(4))


def test_the_chain_says_when_it_is_too_close_to_capacity():
    with pytest.raises(InvalidSetting, match="more than 4096 requests"):
        DynamicBatchingChain(0.9999 * LAW.capacity(2), LAW, at_once(2))


def test_a_share_outside_zero_and_one_is_refused():
    with pytest.raises(InvalidSetting, match="p=99"):
        DynamicBatchingChain(10, LAW, at_once(2)).quantile(99)
