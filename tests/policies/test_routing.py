"""Routing rules by themselves: what they name for given counts, and how often."""

import math
from collections import Counter

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.policies.routing import LeastOutstanding, PowerOfChoices, RandomChoice, RoundRobin


def chosen(policy, outstanding, times=6_000):
    return Counter(policy.choose(outstanding) for _ in range(times))


def about(share, times=6_000):
    """`times * share` hits, give or take four standard deviations."""
    return pytest.approx(times * share, abs=4 * math.sqrt(times * share * (1 - share)))


def test_round_robin_goes_on_when_replicas_come_and_go():
    turns = RoundRobin()
    assert [turns.choose([0] * replicas) for replicas in (3, 3, 3, 2, 2, 4, 4)] == [0, 1, 2, 1, 0, 1, 2]


def test_a_random_choice_looks_at_nothing():
    assert chosen(RandomChoice(np.random.default_rng(1)), [50, 0, 9]) == {n: about(1 / 3) for n in range(3)}


def test_two_choices_never_take_the_longest_line_and_often_the_shortest():
    # Of the 3 pairs of 3 replicas, 2 hold the shortest line, and the third goes to the middle one.
    counts = chosen(PowerOfChoices(np.random.default_rng(1)), [5, 1, 3])
    assert counts == {1: about(2 / 3), 2: about(1 / 3)}


def test_equals_are_chosen_equally_often():
    counts = chosen(PowerOfChoices(np.random.default_rng(2)), [2, 2, 2, 2])
    assert counts == {n: about(1 / 4) for n in range(4)}


def test_one_choice_is_random_and_as_many_as_there_are_is_least_outstanding():
    rng = np.random.default_rng(3)
    assert chosen(PowerOfChoices(rng, choices=1), [9, 0]) == {n: about(1 / 2) for n in range(2)}
    for outstanding in rng.permuted([[1, 2, 3, 4]] * 50, axis=1).tolist():
        least = LeastOutstanding().choose(outstanding)
        assert PowerOfChoices(rng, choices=4).choose(outstanding) == least
        assert outstanding[least] == 1


def test_a_single_replica_is_chosen_by_every_rule():
    rng = np.random.default_rng(4)
    for rule in (RoundRobin(), RandomChoice(rng), PowerOfChoices(rng), LeastOutstanding()):
        assert [rule.choose([7]) for _ in range(3)] == [0, 0, 0]


def test_the_same_seed_gives_the_same_choices():
    def choices(seed):
        rule = PowerOfChoices(np.random.default_rng(seed))
        return [rule.choose([0] * 10) for _ in range(20)]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)


def test_no_choice_at_all_is_refused():
    with pytest.raises(InvalidSetting, match="choices=0"):
        PowerOfChoices(np.random.default_rng(1), choices=0)
