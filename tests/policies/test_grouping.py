"""Groups of similar length, and the padding that is left in them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servinglib.errors import InvalidSetting
from servinglib.policies.grouping import group_by_length, padding_waste

LENGTHS = st.lists(st.integers(1, 5000), max_size=60)


def test_short_ones_stay_together_as_long_as_little_is_padded():
    assert group_by_length([100, 10, 90, 12], max_waste=1.25) == [[0, 2], [3, 1]]
    assert group_by_length([100, 60, 100]) == [[0, 2, 1]]


def test_a_bound_of_one_puts_equal_lengths_together_only():
    assert group_by_length([5, 7, 5, 7, 6], max_waste=1.0) == [[1, 3], [4], [0, 2]]


def test_a_bound_is_met_exactly_if_need_be():
    assert group_by_length([30, 10, 20], max_waste=1.5) == [[0, 2, 1]]  # 3 * 30 of 60
    assert group_by_length([30, 10, 19], max_waste=1.5) == [[0, 2], [1]]


@given(LENGTHS, st.floats(1, 4))
def test_each_index_is_in_one_group_and_each_group_within_its_bound(lengths, max_waste):
    groups = group_by_length(lengths, max_waste)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert max(lengths[i] for i in group) * len(group) <= max_waste * sum(lengths[i] for i in group)
    assert padding_waste(lengths, groups) <= max_waste - 1 + 1e-12
    assert padding_waste(lengths, groups) <= padding_waste(lengths) + 1e-12


@given(LENGTHS, st.floats(1, 4))
def test_no_group_could_have_taken_in_the_next_sequence(lengths, max_waste):
    groups = group_by_length(lengths, max_waste)
    for group, following in pairwise(groups):
        larger = [lengths[i] for i in (*group, following[0])]
        assert larger[0] * len(larger) > max_waste * sum(larger)


def test_waste_is_padded_per_real_token():
    assert padding_waste([10, 10, 10]) == 0
    assert padding_waste([30, 10, 20]) == 0.5
    assert padding_waste([30, 10, 20], [[0], [1, 2]]) == pytest.approx(1 / 6)
    assert padding_waste([]) == 0


@pytest.mark.parametrize(
    ("lengths", "max_waste", "message"),
    [([3, 4], 0.9, "max_waste=0.9"), ([3, 4], float("nan"), "max_waste=nan"), ([3, 0], 2.0, "length of 0")],
)
def test_what_can_not_be_grouped_is_refused(lengths, max_waste, message):
    with pytest.raises(InvalidSetting, match=message):
        group_by_length(lengths, max_waste)
