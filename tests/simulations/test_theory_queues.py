"""Formulas of the queue without batching against a simulation of the same queue."""

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.policies.batching import DynamicBatching
from servinglib.statistics import quantile
from simulations.serving import EmpiricalBatchTime
from simulations.theory.queues import md1_mean_wait, md1_wait_cdf, md1_wait_quantile, mg1_mean_wait

ONE = DynamicBatching(max_batch_size=1, max_wait_time=0)


def test_pollaczek_and_khinchine_give_the_simulated_mean_latency(replicate):
    times = np.array([0.1, 0.4])
    runs = replicate(2.0, ONE, EmpiricalBatchTime({1: times}, seed=5), requests=6_000)
    interval = runs.interval(np.mean)
    assert mg1_mean_wait(2.0, times.mean(), (times**2).mean()) + times.mean() in interval
    assert interval.relative_half_width <= 0.02


def test_the_law_of_the_latency_in_md1_is_the_simulated_one(replicate):
    runs = replicate(0.3, ONE, lambda size: 1.0, requests=8_000)
    for theory, statistic in [
        (md1_mean_wait(0.3, 1.0) + 1, np.mean),
        (md1_wait_cdf(0.3, 1.0, 0.7), lambda run: np.mean(run <= 1.7)),
        (md1_wait_cdf(0.3, 1.0, 2.3), lambda run: np.mean(run <= 3.3)),
        (md1_wait_quantile(0.3, 1.0, 0.90) + 1, lambda run: quantile(run, 0.90)),
        (md1_wait_quantile(0.3, 1.0, 0.99) + 1, lambda run: quantile(run, 0.99)),
    ]:
        interval = runs.interval(statistic)
        assert theory in interval
        assert interval.relative_half_width <= 0.02


def test_the_mean_wait_is_the_integral_of_its_law():
    waits = np.linspace(0, 60, 6_001)
    tail = [1 - md1_wait_cdf(0.8, 1.0, t) for t in waits]
    assert np.trapezoid(tail, waits) == pytest.approx(md1_mean_wait(0.8, 1.0), rel=1e-4)


def test_those_who_find_the_server_idle_do_not_wait():
    assert md1_wait_cdf(0.7, 1.0, -0.1) == 0
    assert md1_wait_cdf(0.7, 1.0, 0.0) == pytest.approx(0.3)
    assert md1_wait_quantile(0.7, 1.0, 0.2) == 0


@pytest.mark.parametrize("rate", [0, -1, 1, 1.5])
def test_a_queue_without_a_stationary_law_is_refused(rate):
    for formula in (
        lambda: md1_mean_wait(rate, 1.0),
        lambda: md1_wait_cdf(rate, 1.0, 1.0),
        lambda: md1_wait_quantile(rate, 1.0, 0.5),
        lambda: mg1_mean_wait(rate, 1.0, 2.0),
    ):
        with pytest.raises(InvalidSetting, match="load"):
            formula()


def test_a_variance_given_for_the_second_moment_is_noticed():
    with pytest.raises(InvalidSetting, match="second moment"):
        mg1_mean_wait(0.25, 1.0, 0.2)


def test_a_share_outside_zero_and_one_is_refused():
    with pytest.raises(InvalidSetting, match="p=99"):
        md1_wait_quantile(0.25, 1.0, 99)
