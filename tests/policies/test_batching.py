import math

import pytest

from servinglib.errors import InvalidSetting
from servinglib.policies.batching import DynamicBatching, Fire, Wait, Waiting


def test_an_empty_room_waits_for_ever() -> None:
    assert DynamicBatching().decide(Waiting(0, 0, math.inf), now=5) == Wait(math.inf)


def test_a_full_batch_fires_at_once() -> None:
    rule = DynamicBatching(max_batch_size=4, max_wait_time=1)
    assert rule.decide(Waiting(4, 4, oldest_arrival=5), now=5) == Fire(4)


def test_the_window_opens_with_the_first_request_and_then_fires() -> None:
    rule = DynamicBatching(max_batch_size=4, max_wait_time=0.5)
    assert rule.decide(Waiting(3, 3, oldest_arrival=5), now=5.25) == Wait(5.5)
    assert rule.decide(Waiting(3, 3, oldest_arrival=5), now=5.5) == Fire(4)


def test_a_window_of_zero_never_waits() -> None:
    assert DynamicBatching(8, max_wait_time=0).decide(Waiting(1, 1, 3), now=3) == Fire(8)


def test_enough_cost_fires_before_there_are_enough_requests() -> None:
    rule = DynamicBatching(8, 1, max_batch_cost=100)
    assert rule.decide(Waiting(2, 99, 0), now=0) == Wait(1)
    assert rule.decide(Waiting(2, 100, 0), now=0) == Fire(8, 100)


def test_when_nobody_else_can_come_the_rule_fires() -> None:
    assert DynamicBatching(8, 1e6).decide(Waiting(1, 1, 0), now=math.inf) == Fire(8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch_size", 0),
        ("max_batch_size", 2.5),
        ("max_wait_time", -0.1),
        ("max_wait_time", math.inf),
        ("max_wait_time", math.nan),
        ("max_batch_cost", 0),
        ("max_batch_cost", math.nan),
    ],
)
def test_a_setting_outside_its_domain_is_refused_by_name_and_the_old_one_stays(name: str, value) -> None:
    with pytest.raises(InvalidSetting, match=name):
        DynamicBatching(**{name: value})
    rule = DynamicBatching()
    with pytest.raises(InvalidSetting, match=name):
        setattr(rule, name, value)
    assert rule == DynamicBatching()
