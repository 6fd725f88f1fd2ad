"""The scaling rule by itself: what it wants for a given load, and when it dares to want less."""

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.policies.autoscaling import Autoscaler, ClusterLoad, by_requests, by_utilisation


def scaler(target=1.0, minimum=1, maximum=10, cool_down=60.0, tolerance=0.1):
    return Autoscaler(by_requests(target), minimum, maximum, cool_down, tolerance)


def follow(rule, loads, replicas, interval=10.0):
    """What the rule wants for each load in turn, when it gets what it wants at once."""
    wanted = []
    for step, load in enumerate(loads):
        replicas = rule.decide(ClusterLoad(replicas, load, 0.0), now=step * interval)
        wanted.append(replicas)
    return wanted


def changes(wanted):
    return int(np.count_nonzero(np.diff(wanted)))


def test_utilisation_counts_the_running_and_is_blind_for_the_waiting():
    demand = by_utilisation(0.75, slots=4)
    assert demand(ClusterLoad(2, running=6, waiting=0)) == 2
    assert demand(ClusterLoad(2, running=6, waiting=100)) == 2


def test_requests_count_the_waiting_too():
    assert by_requests(8)(ClusterLoad(2, running=8, waiting=24)) == 4


def test_more_replicas_are_wanted_at_once_and_enough_of_them():
    assert follow(scaler(), [2.0, 4.2], replicas=2) == [2, 5]


def test_a_demand_of_three_but_for_rounding_wants_three():
    assert 0.1 * 6 / 0.2 > 3
    assert follow(scaler(target=0.2), [0.1 * 6], replicas=1) == [3]


def test_a_demand_near_the_present_number_changes_nothing():
    assert follow(scaler(), [4.3, 3.7, 4.39], replicas=4) == [4, 4, 4]
    assert follow(scaler(), [4.5], replicas=4) == [5]


def test_fewer_are_wanted_only_after_a_cool_down_without_a_higher_wish():
    # Decisions are 10 s apart. The wish of 5 at 10 s is remembered up to 70 s, that of 3 at 40 s up to 100 s.
    loads = [5, 5, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1, 1]
    assert follow(scaler(), loads, replicas=5) == [5, 5, 5, 5, 5, 5, 5, 5, 3, 3, 3, 1, 1]


def test_what_was_there_at_first_stays_for_a_cool_down():
    assert follow(scaler(cool_down=20), [1, 1, 1, 1], replicas=4) == [4, 4, 4, 1]


def test_replicas_that_are_starting_are_not_ordered_twice():
    rule = scaler(target=4)
    assert rule.decide(ClusterLoad(1, running=4, waiting=8), now=0) == 3
    assert rule.decide(ClusterLoad(3, running=4, waiting=8), now=10) == 3


def test_the_bounds_hold_whatever_the_load():
    rule = scaler(minimum=2, maximum=4, cool_down=0)
    assert follow(rule, [100, 0, 0, 100], replicas=9) == [4, 2, 2, 4]
    assert rule.decide(ClusterLoad(0, 0.0, 0.0), now=40) >= 2


def test_a_noisy_constant_load_does_not_make_it_flap_and_would_without_the_two_brakes():
    loads = np.random.default_rng(1).normal(3.0, 0.4, size=1_000)
    steady = follow(scaler(), loads, replicas=3)
    nervous = follow(scaler(cool_down=0, tolerance=0), loads, replicas=3)
    no_memory = follow(scaler(cool_down=0), loads, replicas=3)
    assert changes(steady) < changes(no_memory) / 3 < changes(nervous) / 3
    assert set(steady[1:]) <= {3, 4, 5}
    quiet = np.random.default_rng(1).uniform(2.71, 3.29, size=1_000)
    assert changes(follow(scaler(), quiet, replicas=3)) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minimum": 0}, "minimum=0"),
        ({"minimum": 5, "maximum": 4}, "minimum=5 and maximum=4"),
        ({"cool_down": -1.0}, "cool_down=-1"),
        ({"tolerance": 1.0}, "tolerance=1"),
        ({"target": 0}, "0 requests per replica"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InvalidSetting, match=message):
        scaler(**settings)


@pytest.mark.parametrize("target", [0, 1.1])
def test_a_target_utilisation_is_a_share(target):
    with pytest.raises(InvalidSetting, match=f"utilisation of {target}"):
        by_utilisation(target, slots=1)
