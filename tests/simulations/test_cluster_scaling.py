"""A simulated cluster that grows and shrinks: first by hand, then after a step and under a constant load."""

import math

import numpy as np
import pytest
from clusters import Script, by_hand, close, customers

from servinglib.policies.autoscaling import Autoscaler, by_requests, by_utilisation
from servinglib.policies.routing import LeastOutstanding
from simulations.cluster import Scaling, simulate_cluster
from simulations.cluster_run import Outage


def test_a_new_replica_serves_after_its_start_up_and_costs_from_its_order():
    # Ordered at 10, ready at 15, and the next request goes there.
    run = by_hand(
        [0, 16, 16, 39], [30, 1, 1, 1], LeastOutstanding(), replicas=1, scaling=Scaling(Script(2), 10, 5)
    )
    assert [run.ready_at(t) for t in (0, 14.9, 15, 39)] == [1, 1, 2, 2]
    assert run.replicas.tolist() == [0, 1, 0, 0]
    assert run.end == 40
    assert run.replica_seconds == 40 + 30


def test_what_is_ordered_after_the_last_answer_costs_nothing():
    assert by_hand([0], [5], replicas=1, scaling=Scaling(Script(2), 10, 5)).replica_seconds == 5


def test_a_replica_that_is_sent_home_serves_its_line_and_gets_nobody_new():
    # At 10 replica 0 has three requests and replica 1 two; the one with less to finish drains.
    run = by_hand([0, 1, 2, 3, 4, 11], [9, 8, 9, 8, 9, 1], scaling=Scaling(Script(1), 10, 5))
    assert run.replicas.tolist() == [0, 1, 0, 1, 0, 0]
    assert run.finishes == close([9, 9, 18, 17, 27, 28])
    assert [run.ready_at(t) for t in (9, 10)] == [2, 1]
    assert run.replica_seconds == 28 + 17


def test_a_replica_that_has_not_started_is_sent_home_before_one_that_works():
    run = by_hand([0], [40], replicas=1, scaling=Scaling(Script(2, 1), 10, 15))
    assert run.ready.max() == 1
    assert run.replica_seconds == 40 + 10


def test_an_outage_during_the_start_up_hits_nobody():
    settings = {"replicas": 1, "scaling": Scaling(Script(2), 10, 5), "outages": [Outage(1, 12, 30)]}
    run = by_hand([0, 16], [20, 1], LeastOutstanding(), **settings)
    assert (run.replicas[1], run.finishes[1]) == (1, 17)


def test_a_draining_replica_that_breaks_down_is_gone():
    run = by_hand([0, 1], [30, 30], outages=[Outage(1, 20, 25)], retries=1, scaling=Scaling(Script(1), 10, 0))
    assert run.replicas.tolist() == [0, 0]  # of equals the newest drains; its request starts again behind
    assert run.finishes == close([30, 60])
    assert run.replica_seconds == 60 + 20


def test_the_scaling_policy_sees_averages_since_its_last_decision():
    # From 0 to 10: one in service all the time, a second in line from 5 on. From 10 to 20: served to 18.
    script = Script(1)
    by_hand([0, 5], [12, 6], replicas=1, scaling=Scaling(script, 10, 0))
    assert [(load.replicas, load.running, load.waiting) for load in script.seen] == [
        (1, 1.0, pytest.approx(0.5)),
        (1, pytest.approx(0.8), pytest.approx(0.2)),
    ]


def step_in_load():
    """2 requests/s to 100 s, 10/s to 600 s, 2/s to 900 s, each of 0.5 s."""
    return np.concatenate([np.arange(0, 100, 0.5), np.arange(100, 600, 0.1), np.arange(600, 900, 0.5)])


def autoscaled(demand, maximum):
    rule = Autoscaler(demand, minimum=1, maximum=maximum, cool_down=60)
    return simulate_cluster(
        step_in_load(),
        lambda i, replica: 0.5,
        LeastOutstanding(),
        replicas=2,
        scaling=Scaling(rule, interval=5, start_up=20),
    )


def test_the_autoscaler_follows_a_step_after_the_start_up_and_returns_after_the_cool_down():
    run = autoscaled(by_utilisation(0.5, slots=1), maximum=16)
    assert run.completed.all()
    # Half busy is the target: 1 busy slot asks for 2 replicas, 5 busy slots for 10.
    assert {run.ready_at(t) for t in np.arange(0, 125, 0.5).tolist()} == {2}  # decided at 105, ready at 125
    assert run.ready_at(125.5) > 2
    assert {run.ready_at(t) for t in np.arange(400, 660, 0.5).tolist()} == {10}
    assert {run.ready_at(t) for t in np.arange(675, 895, 0.5).tolist()} == {2}


def test_counting_the_waiting_climbs_faster_than_counting_the_busy():
    cautious, eager = (autoscaled(each, 16) for each in (by_utilisation(0.5, 1), by_requests(0.5)))
    assert eager.ready_at(126) > cautious.ready_at(126)
    assert np.mean(eager.sojourns) < np.mean(cautious.sojourns)


def test_under_a_constant_random_load_the_fleet_stays_and_a_rule_without_brakes_flaps():
    arrivals, services, _ = customers(4, rate=12.0, count=24_000)

    def fleet_changes(**brakes):
        rule = Autoscaler(by_utilisation(0.6, slots=4), minimum=1, maximum=20, **brakes)
        run = by_hand(
            arrivals, services, LeastOutstanding(), replicas=5, slots=4, scaling=Scaling(rule, 15, 30)
        )
        return len(run.changes) - 5  # five of them made the fleet

    assert fleet_changes(cool_down=300, tolerance=0.1) <= 8
    assert fleet_changes(cool_down=0, tolerance=0) > 80


def test_a_broken_replica_is_replaced_by_the_autoscaler():
    arrivals, services, _ = customers(6, rate=4.0, count=1_600)
    two = Scaling(Autoscaler(by_utilisation(0.5, slots=4), minimum=2, maximum=2), interval=10, start_up=20)
    settings = {"replicas": 2, "slots": 4, "outages": [Outage(0, 101, math.inf)], "retries": 1}
    alone = by_hand(arrivals, services, LeastOutstanding(), **settings)
    managed = by_hand(arrivals, services, LeastOutstanding(), scaling=two, **settings)
    assert alone.ready_at(300) == 1
    assert [managed.ready_at(t) for t in (100, 102, 129, 131)] == [2, 1, 1, 2]
    assert managed.completed.all()
    assert np.nanmean(managed.sojourns[arrivals > 150]) < np.nanmean(alone.sojourns[arrivals > 150]) / 2
