import heapq

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.policies.adaptive_batching import AdaptiveBatching
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import Fire, Wait
from servinglib.policies.waiting_room import WaitingRoom

LAW = BatchTime(alpha=0.002, tau0=0.03)


def taught(
    rule: AdaptiveBatching, law: BatchTime, batches: int = 200, noise: float = 0.0
) -> AdaptiveBatching:
    """Let the rule see batches of the sizes it would fire itself, up to a random number waiting."""
    rng = np.random.default_rng(1)
    for _ in range(batches):
        size = min(int(rng.integers(1, 100)), rule.choice[0])
        rule.observe(size, law(size) * float(rng.uniform(1 - noise, 1 + noise)))
    return rule


def latencies(rule: AdaptiveBatching, law: BatchTime, rate: float, requests: int, seed: int) -> np.ndarray:
    """Latencies in seconds of a Poisson stream, served on a virtual clock that starts with the stream."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, requests)
    arrivals = list(np.cumsum(gaps))
    heapq.heapify(arrivals)
    room, now, done = WaitingRoom(), 0.0, []
    while arrivals or len(room):
        decision = rule.decide(room.waiting, now)
        if isinstance(decision, Fire):
            batch = room.take(decision)
            now += law(len(batch))
            rule.observe(len(batch), law(len(batch)))
            done += [now - entry.arrival for entry in batch]
        else:
            upcoming = arrivals[0] if arrivals else decision.until
            now = max(now, min(decision.until, upcoming))
        while arrivals and arrivals[0] <= now:
            arrival = heapq.heappop(arrivals)
            room.add(None, now=arrival)
    return np.array(done)


def test_it_finds_the_law_of_the_batch_times() -> None:
    rule = taught(AdaptiveBatching(latency_target=0.2), LAW)
    assert rule.batch_time is not None
    assert rule.batch_time.alpha == pytest.approx(LAW.alpha, rel=1e-6)
    assert rule.batch_time.tau0 == pytest.approx(LAW.tau0, rel=1e-6)


def test_it_chooses_the_largest_size_whose_two_batches_fit_into_the_target() -> None:
    size, wait = taught(AdaptiveBatching(latency_target=0.201), LAW).choice
    assert size == 35  # 2 * (0.002 * 35 + 0.03) = 0.2
    assert wait == pytest.approx(0.001)


def test_when_the_size_is_bounded_the_window_gets_what_is_left() -> None:
    rule = taught(AdaptiveBatching(latency_target=0.2, max_batch_size=10, max_wait_time=1.0), LAW)
    size, wait = rule.choice
    assert size == 10
    assert wait == pytest.approx(0.2 - 2 * LAW(10))
    rule.max_wait_time = 0.01
    assert rule.choice == (10, 0.01)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8])
def test_it_keeps_the_target_under_load(load: float) -> None:
    rule = AdaptiveBatching(latency_target=0.2)
    rate = load * LAW.capacity(35)
    times = latencies(rule, LAW, rate, requests=5000, seed=7)
    assert np.quantile(times, 0.99) <= 0.2


def test_a_fixed_rule_of_one_would_not_have_kept_it() -> None:
    alone = AdaptiveBatching(latency_target=0.2, max_batch_size=1)
    times = latencies(alone, LAW, 0.5 * LAW.capacity(35), requests=5000, seed=7)
    assert np.quantile(times, 0.99) > 1.0


def test_it_follows_a_model_that_becomes_slower_and_then_faster() -> None:
    rule = taught(AdaptiveBatching(latency_target=0.2), LAW, noise=0.05)
    before = rule.choice[0]
    taught(rule, BatchTime(alpha=0.006, tau0=0.03), noise=0.05)
    slower = rule.choice[0]
    taught(rule, LAW, noise=0.05)
    assert slower == pytest.approx(11, abs=1)  # 2 * (0.006 * 11 + 0.03) < 0.2
    assert before == pytest.approx(35, abs=4)
    assert rule.choice[0] == pytest.approx(35, abs=4)


def test_a_target_out_of_reach_means_single_requests_and_says_so() -> None:
    rule = taught(AdaptiveBatching(latency_target=0.05), LAW)
    assert rule.choice == (1, 0.0)
    assert not rule.target_reachable
    rule.latency_target = 0.2
    assert rule.target_reachable


def test_it_comes_back_from_single_requests_when_the_model_recovers() -> None:
    slow = BatchTime(alpha=0.002, tau0=0.5)
    rule = taught(AdaptiveBatching(latency_target=0.2), slow)
    assert not rule.target_reachable
    taught(rule, LAW)
    assert rule.choice[0] == pytest.approx(35, abs=1)


def test_an_unknown_model_is_tried_with_one_request_and_then_at_most_twice_as_many() -> None:
    rule = AdaptiveBatching(latency_target=10.0, max_batch_size=64)
    sizes = []
    for _ in range(8):
        sizes.append(rule.choice[0])
        rule.observe(sizes[-1], LAW(sizes[-1]))
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 64]


def test_batches_of_one_size_keep_the_slope_and_move_the_line() -> None:
    rule = taught(AdaptiveBatching(latency_target=0.2), LAW)
    moved, rng = BatchTime(LAW.alpha, LAW.tau0 + 0.02), np.random.default_rng(3)
    for _ in range(2000):
        rule.observe(19, moved(19) * rng.uniform(0.95, 1.05))
        assert rule.batch_time is not None
        assert rule.batch_time.alpha == pytest.approx(LAW.alpha, rel=0.1)
    assert rule.batch_time is not None
    assert rule.batch_time(19) == pytest.approx(moved(19), rel=0.03)


def test_neither_part_of_the_law_becomes_negative_however_odd_the_times() -> None:
    rule = AdaptiveBatching()
    for size, seconds in [(1, 1.0), (8, 0.1), (2, 1e-9), (64, 5.0), (3, 0.0)]:
        rule.observe(size, seconds)
        law = rule.batch_time
        assert law is not None
        assert law.alpha >= 0
        assert law.tau0 >= 0
        assert rule.choice[0] >= 1


def test_it_waits_for_nobody_while_nobody_waits() -> None:
    assert isinstance(AdaptiveBatching().decide(WaitingRoom().waiting, now=0), Wait)


@pytest.mark.parametrize("target", [0, -1, float("inf"), float("nan")])
def test_a_latency_target_must_be_a_positive_time(target: float) -> None:
    with pytest.raises(InvalidSetting, match="latency_target"):
        AdaptiveBatching(latency_target=target)
