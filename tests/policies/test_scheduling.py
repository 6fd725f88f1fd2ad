"""Who goes first, and who steps together: each rule on examples that fit on paper, and fairness as a property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servinglib.errors import InvalidSetting, UnknownName
from servinglib.policies.scheduling import (
    POLICIES,
    ShortestAligned,
    ShortestInBuckets,
    ShortestRemaining,
    ShortestWithAging,
    scheduling_policy,
)
from servinglib.policies.sequence import SequenceState


def decoding(length: int, remaining: int = 1000, **more) -> SequenceState:
    """A sequence that is `length` tokens long and would generate so many more."""
    return SequenceState(None, length - 1, remaining + 1, num_output_tokens=1, **more)


def waiting(name: str, length: int, **more) -> SequenceState:
    return SequenceState(name, length, 10, **more)


def names(sequences) -> list[str]:
    return [s.item for s in sequences]


def take_step(policy, running: list[SequenceState]) -> list[int]:
    """Each in the batch gets a token, the finished leave; the lengths before the step."""
    batch = list(policy.decode_batch(running, 0.0))
    before = [s.num_tokens for s in batch]
    for sequence in batch:
        sequence.num_output_tokens += 1
        if sequence.num_output_tokens == sequence.max_tokens:
            running.remove(sequence)
    return before


def test_whoever_is_overdue_is_served_in_the_order_of_coming():
    old, longer = waiting("old", 10, arrival=0, number=0), waiting("longer", 1000, arrival=10, number=1)
    assert names(ShortestWithAging(60.0).order([longer, old], 100.0)) == ["old", "longer"]


CROWD = [
    waiting("old", 40, arrival=1, number=0, priority=1),
    waiting("long", 90, arrival=2, number=1, priority=2, predicted_output_tokens=3),
    waiting("short", 10, arrival=3, number=2, predicted_output_tokens=50),
    waiting("late", 40, arrival=4, number=3, priority=1, predicted_output_tokens=7),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fcfs", ["old", "long", "short", "late"]),
        ("priority", ["long", "old", "late", "short"]),
        ("sjf", ["short", "old", "late", "long"]),
        ("sjf-aligned", ["short", "old", "late", "long"]),
        ("sjf-bucketed", ["short", "old", "late", "long"]),
        ("sjf-aging", ["short", "old", "late", "long"]),
        ("shortest-remaining", ["long", "late", "old", "short"]),
    ],
)
def test_each_policy_has_its_own_order(name, expected):
    assert names(scheduling_policy(name).order(reversed(CROWD), 5.0)) == expected


@pytest.mark.parametrize("name", POLICIES)
def test_equals_are_served_in_the_order_of_coming(name):
    same = [waiting(str(i), 5, arrival=0.0, number=i) for i in range(5)]
    assert names(scheduling_policy(name).order(same[::-1], 9.0)) == ["0", "1", "2", "3", "4"]


def test_a_policy_that_nothing_goes_by_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown policy 'sjf-agin' \(did you mean 'sjf-aging'"):
        scheduling_policy("sjf-agin")


@pytest.mark.parametrize("name", ["fcfs", "priority", "sjf", "sjf-aging", "shortest-remaining"])
def test_most_policies_let_all_step(name):
    running = [decoding(n) for n in (50, 3, 99)]
    assert scheduling_policy(name).decode_batch(running, 0.0) == running


def test_short_sequences_catch_up_with_longer_ones_and_form_clusters():
    policy, running = ShortestAligned(), [decoding(n) for n in (50, 52, 55, 60, 100)]
    steps = [take_step(policy, running) for _ in range(51)]
    assert steps[:2] == [[50], [51]]
    assert steps[2:5] == [[52] * 2, [53] * 2, [54] * 2]
    assert steps[5:10] == [[n] * 3 for n in range(55, 60)]
    assert steps[10:50] == [[n] * 4 for n in range(60, 100)]
    assert steps[50] == [100] * 5


def test_a_cluster_is_joined_late_or_left_early_without_losing_its_step():
    policy, running = ShortestAligned(), [decoding(50, remaining=3), decoding(52), decoding(55)]
    assert [take_step(policy, running) for _ in range(4)] == [[50], [51], [52] * 2, [53]]  # the first is done
    running.append(decoding(53))
    assert [take_step(policy, running) for _ in range(3)] == [[53], [54] * 2, [55] * 3]


def test_aligned_lets_a_long_sequence_stand_still_while_short_ones_keep_coming():
    """The weakness that its docstring admits."""
    policy, running = ShortestAligned(), [decoding(100)]
    for _ in range(200):
        running.append(decoding(10, remaining=1))
        take_step(policy, running)
    assert [s.num_tokens for s in running] == [100]


def test_buckets_take_turns_and_each_steps_as_a_whole_shortest_first():
    policy = ShortestInBuckets()
    running = [decoding(n) for n in (40, 100, 7, 60, 33, 5)]
    steps = [take_step(policy, running) for _ in range(4)]
    assert steps == [[5, 7], [33, 40, 60], [100], [6, 8]]


@pytest.mark.parametrize(("length", "bucket"), [(1, [1]), (32, [32]), (33, [33, 64]), (64, [33, 64])])
def test_a_bucket_ends_at_a_multiple_of_32(length, bucket):
    running = [decoding(n) for n in {length, 33, 64} if (n - 1) // 32 == (length - 1) // 32]
    others = [decoding(n) for n in (65, 300)]
    assert take_step(ShortestInBuckets(), running + others) == bucket


def test_a_bucket_that_fills_again_and_again_keeps_nobody_waiting():
    policy, running = ShortestInBuckets(), [decoding(100), decoding(200)]
    for _ in range(30):
        running.append(decoding(10, remaining=1))
        take_step(policy, running)
    assert [s.num_output_tokens for s in running[:2]] == [11, 11]


@given(
    st.lists(st.tuples(st.integers(2, 300), st.integers(1, 80)), min_size=1, max_size=12),
    st.lists(st.one_of(st.none(), st.tuples(st.integers(2, 300), st.integers(1, 80))), max_size=60),
)
def test_in_buckets_every_sequence_steps_once_in_as_many_steps_as_there_are_buckets(start, newcomers):
    policy, running = ShortestInBuckets(), [decoding(*row) for row in start]
    patience: dict[SequenceState, int] = {}  # within how many steps each must step
    for newcomer in newcomers:
        if newcomer:
            running.append(decoding(*newcomer))
        buckets = len({(s.num_tokens - 1) // 32 for s in running})
        had = {s: s.num_output_tokens for s in running}
        assert take_step(policy, running) or not had
        left = {s: patience.get(s, buckets) - 1 for s in had}
        patience = {s: left[s] for s in had if s.num_output_tokens == had[s]}
        assert all(patience.values())


REQUESTS = st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 300)), min_size=1, max_size=20)


@given(REQUESTS, st.floats(0, 100), st.floats(0.1, 200))
def test_who_has_waited_for_the_whole_bound_is_before_all_who_have_not(requests, after, bound):
    now = max(arrival for _, arrival in requests) + after
    crowd = [waiting(str(i), n, arrival=a, number=i) for i, (n, a) in enumerate(requests)]
    overdue = [now - s.arrival >= bound for s in ShortestWithAging(bound).order(crowd, now)]
    assert overdue == sorted(overdue, reverse=True)


def test_aging_is_shortest_first_until_waiting_counts():
    long, short = waiting("long", 100, arrival=0), waiting("short", 10, arrival=50)
    policy = ShortestWithAging()
    assert names(policy.order([long, short], 50.0)) == ["short", "long"]  # 100 / 6 against 10
    assert names(policy.order([long, short], 57.0)) == ["long", "short"]  # 5 against 8.8


def test_a_bound_of_nothing_is_refused():
    with pytest.raises(InvalidSetting, match="starvation_bound=0 s"):
        scheduling_policy("sjf-aging", starvation_bound=0.0)


def test_what_is_left_is_predicted_less_generated_and_never_less_than_one():
    nearly = waiting("nearly", 5, predicted_output_tokens=90, num_output_tokens=85)
    outlived = waiting("outlived", 5, predicted_output_tokens=2, num_output_tokens=60)
    unknown = waiting("unknown", 5)  # may generate 10
    last = waiting("last", 5, predicted_output_tokens=1)
    order = ShortestRemaining().order([unknown, nearly, last, outlived], 0.0)
    assert names(order) == ["last", "outlived", "nearly", "unknown"]
