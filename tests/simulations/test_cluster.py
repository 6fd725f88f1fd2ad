"""The simulated cluster: stories of a few requests by hand, then what holds for thousands."""

import heapq
import math

import numpy as np
import pytest
from clusters import Script, by_hand, close, customers

from servinglib.errors import InvalidSetting
from servinglib.policies.autoscaling import Autoscaler, by_requests
from servinglib.policies.routing import LeastOutstanding, PowerOfChoices, RandomChoice, RoundRobin
from servinglib.statistics import mean_interval, paired_difference, streams
from simulations.cluster import Scaling, simulate_cluster
from simulations.cluster_run import Outage, draw_outages


def test_each_replica_has_its_own_line():
    run = by_hand([0, 1, 2], [5, 0.5, 1])
    assert run.replicas.tolist() == [0, 1, 0]
    assert run.starts == close([0, 1, 5])  # the third waits behind the first though replica 1 is idle
    assert run.finishes == close([5, 1.5, 6])
    assert run.sojourns == close([5, 0.5, 4])


def test_the_least_outstanding_replica_spares_the_third_request_the_wait():
    run = by_hand([0, 1, 2], [5, 0.5, 1], LeastOutstanding())
    assert run.replicas.tolist() == [0, 1, 1]
    assert run.finishes == close([5, 1.5, 3])


def test_a_replica_serves_as_many_side_by_side_as_it_has_slots():
    run = by_hand([0, 0, 0, 0.5], [2, 3, 1, 1], replicas=1, slots=2)
    assert run.starts == close([0, 0, 2, 3])
    assert run.finishes == close([2, 3, 3, 4])


def test_a_replica_may_be_slower_than_another():
    run = simulate_cluster([0, 0], lambda i, replica: 1 + replica, RoundRobin(), replicas=2)
    assert run.finishes == close([1, 2])


def test_a_request_that_is_cut_off_starts_again_elsewhere():
    run = by_hand([0], [4], outages=[Outage(0, 1, 10)], retries=1)
    assert (run.starts[0], run.finishes[0], run.replicas[0]) == (1, 5, 1)
    assert (run.completed[0], run.cut_offs[0]) == (True, 1)


def test_a_request_that_is_cut_off_too_often_fails_and_does_so_at_once():
    run = by_hand([0], [4], outages=[Outage(0, 1, 10), Outage(1, 2, 10)], retries=1)
    assert not run.completed[0]
    assert (run.cut_offs[0], run.finishes[0]) == (2, 2)
    assert math.isnan(run.sojourns[0])


def test_those_in_the_line_of_a_broken_replica_move_and_have_lost_no_work():
    # The third waits behind the first, moves to replica 1 at 1 and waits there until 2.1.
    run = by_hand([0, 0.1, 0.2], [4, 2, 1], outages=[Outage(0, 1, 10)])
    assert run.completed.tolist() == [False, True, True]
    assert (run.starts[2], run.replicas[2], run.cut_offs[2]) == (pytest.approx(2.1), 1, 0)


def test_requests_wait_at_the_door_until_a_replica_recovers_and_go_in_in_order():
    run = by_hand([1, 2, 6], [1, 1, 1], replicas=1, outages=[Outage(0, 0.5, 3)])
    assert run.starts == close([3, 4, 6])


def test_where_no_replica_ever_recovers_the_rest_is_lost():
    run = by_hand([0, 2], [1, 1], replicas=1, outages=[Outage(0, 1.5, math.inf)])
    assert run.completed.tolist() == [True, False]
    assert run.finishes == close([1, math.nan])
    assert run.replicas.tolist() == [0, -1]
    assert run.end == 2


def test_an_outage_of_a_replica_that_is_not_there_hits_nobody():
    run = by_hand([0], [1], outages=[Outage(7, 0.5, 2)])
    assert run.completed.all()


@pytest.mark.parametrize("retries", [0, 1])
def test_every_request_ends_once_however_many_replicas_break_down(retries):
    arrivals, services, draw = customers(1, rate=2.0, count=4_000)
    outages = draw_outages(draw["outages"], 4, mean_up=20, mean_down=5, until=2_000)
    run = by_hand(
        arrivals, services, LeastOutstanding(), replicas=4, slots=2, outages=outages, retries=retries
    )
    assert np.isfinite(run.finishes).all()
    assert (run.cut_offs[~run.completed] == retries + 1).all()
    assert (run.cut_offs[run.completed] <= retries).all()
    assert 0 < (~run.completed).sum() < 1_000
    served = np.flatnonzero(run.completed)
    assert run.finishes[served] - run.starts[served] == close(services[served])  # all of it, anew
    for outage in outages:
        mine = served[run.replicas[served] == outage.replica]
        assert ((run.finishes[mine] <= outage.start) | (run.starts[mine] >= outage.end)).all()


def test_no_replica_ever_serves_more_than_its_slots():
    arrivals, services, draw = customers(2, rate=5.0, count=4_000)
    run = by_hand(arrivals, services, PowerOfChoices(draw["routing"]), replicas=3, slots=2)
    for replica in range(3):
        mine = run.replicas == replica
        times = np.concatenate([run.finishes[mine], run.starts[mine]])
        steps = np.repeat([-1, 1], mine.sum())[np.argsort(times, kind="stable")]
        assert np.cumsum(steps).max() == 2


def test_a_service_is_cut_off_as_often_as_an_exponential_lifetime_says():
    # Ups are exponential, so a service of 2 s meets a breakdown with probability 1 - exp(-2/40).
    arrivals = np.arange(20_000) * 3.0
    draw = streams(5, "outages")
    outages = draw_outages(draw["outages"], 1, mean_up=40, mean_down=1, until=60_000)
    run = by_hand(arrivals, np.full(20_000, 2.0), replicas=1, outages=outages, retries=100)
    starts, cut = len(arrivals) + run.cut_offs.sum(), run.cut_offs.sum()
    p = -math.expm1(-2 / 40)
    assert cut / starts == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / starts))


def test_drawn_outages_leave_a_replica_up_for_the_share_they_promise():
    outages = draw_outages(np.random.default_rng(1), 3, mean_up=30, mean_down=10, until=40_000)
    down = [sum(o.end - o.start for o in outages if o.replica == n) / 40_000 for n in range(3)]
    assert down == pytest.approx([0.25] * 3, abs=0.03)  # 1,000 cycles each: 4 standard errors


def means(policy, *, load, replicas, seeds, count, slots=1):
    """The mean sojourn in each replication, without the first fifth; the customers depend on the seed only."""
    results = []
    for seed in seeds:
        arrivals, services, draw = customers(seed, load * replicas * slots, count)
        run = by_hand(arrivals, services, policy(draw["routing"]), replicas=replicas, slots=slots)
        results.append(run.sojourns[count // 5 :].mean())
    return results


def test_the_more_a_rule_sees_the_shorter_the_wait_and_one_common_line_beats_them_all():
    setting = {"load": 0.8, "seeds": range(10), "count": 2_000}
    blind = means(RandomChoice, replicas=5, **setting)
    two = means(PowerOfChoices, replicas=5, **setting)
    shortest = means(lambda rng: LeastOutstanding(), replicas=5, **setting)
    pooled = means(lambda rng: RoundRobin(), replicas=1, slots=5, **setting)
    for longer, shorter in [(blind, two), (two, shortest), (shortest, pooled)]:
        assert paired_difference(longer, shorter, confidence=0.99).low > 0


@pytest.mark.parametrize("routing", [RandomChoice, PowerOfChoices])
@pytest.mark.parametrize("slots", [1, 3])
def test_each_replica_is_a_queue_in_order_of_arrival(routing, slots):
    arrivals, services, draw = customers(7, rate=2.4 * slots, count=3_000)
    run = by_hand(arrivals, services, routing(draw["routing"]), replicas=3, slots=slots)
    for replica in range(3):
        free = [0.0] * slots  # when each slot is free: the recursion of Kiefer and Wolfowitz
        for request in np.flatnonzero(run.replicas == replica):
            start = max(arrivals[request], heapq.heappop(free))
            heapq.heappush(free, start + services[request])
            assert run.starts[request] == pytest.approx(start, rel=1e-9)


def test_two_choices_come_near_the_limit_of_many_replicas():
    limit = sum(0.7 ** (2**i - 2) for i in range(1, 8))
    setting = {"load": 0.7, "seeds": range(10)}
    few = mean_interval(means(PowerOfChoices, replicas=4, count=4_000, **setting), confidence=0.99)
    many = mean_interval(means(PowerOfChoices, replicas=100, count=4_000, **setting), confidence=0.99)
    assert limit < few.low  # two of four are far from two of infinitely many
    assert limit in many
    assert many.relative_half_width <= 0.05  # a limit for infinitely many asks for no more


def test_the_least_outstanding_rule_avoids_a_slow_replica_and_round_robin_feeds_it():
    arrivals, services, _ = customers(3, rate=2.0, count=4_000)

    def run(routing):
        return simulate_cluster(
            arrivals, lambda i, replica: services[i] * (5 if replica == 0 else 1), routing, replicas=4
        )

    blind, seeing = run(RoundRobin()), run(LeastOutstanding())
    assert np.mean(blind.replicas == 0) == 0.25  # 0.5/s of 5 s each: two and a half times what it can do
    assert np.mean(seeing.replicas == 0) < 0.25
    assert seeing.sojourns.mean() < blind.sojourns.mean() / 10


def test_the_same_seed_gives_the_same_run_and_another_policy_the_same_customers():
    def run(seed, policy):
        arrivals, services, draw = customers(seed, 3.0, 500)
        outages = draw_outages(draw["outages"], 4, 50, 5, until=100)
        rule = Autoscaler(by_requests(2), minimum=2, maximum=8, cool_down=20)
        return by_hand(
            arrivals,
            services,
            policy(draw["routing"]),
            replicas=4,
            outages=outages,
            retries=2,
            scaling=Scaling(rule, 5, 10),
        )

    first, again, other = run(1, PowerOfChoices), run(1, PowerOfChoices), run(2, PowerOfChoices)
    assert np.array_equal(first.finishes, again.finishes, equal_nan=True)
    assert np.array_equal(first.changes, again.changes)
    assert not np.array_equal(first.finishes, other.finishes, equal_nan=True)
    assert np.array_equal(first.arrivals, run(1, RandomChoice).arrivals)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 0}, "replicas=0"),
        ({"slots": 0}, "slots=0"),
        ({"retries": -1}, "retries=-1"),
        ({"arrivals": [1, 0.5]}, "ascending"),
        ({"arrivals": []}, "at least one"),
        ({"arrivals": [-1.0]}, "from 0 s up"),
        ({"arrivals": [math.nan]}, "from 0 s up"),
        ({"services": [-2.0]}, "request 0 would take -2.0 s on replica 0"),
        ({"services": [math.nan]}, "would take nan s"),
        ({"outages": [Outage(0, 1, 3), Outage(0, 2, 4)]}, "overlap"),
        ({"scaling": Scaling(Script(0), 0.5, 1)}, "wants 0 replicas"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(InvalidSetting, match=message):
        by_hand(**{"arrivals": [0.0], "services": [1.0], **settings})


def test_outages_and_scaling_check_their_own_times():
    with pytest.raises(InvalidSetting, match="from 3 to 2 s"):
        Outage(0, 3, 2)
    with pytest.raises(InvalidSetting, match="interval=0"):
        Scaling(Script(1), 0, 1)
    with pytest.raises(InvalidSetting, match="mean_up=0"):
        draw_outages(np.random.default_rng(1), 1, 0, 1, until=10)
