import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servinglib.errors import InvalidRequest
from servinglib.policies.batching import Fire
from servinglib.policies.waiting_room import Entry, WaitingRoom


def taken(room: WaitingRoom, size: int = 100, cost: float = math.inf) -> list:
    return [entry.item for entry in room.take(Fire(size, cost))]


def test_higher_priorities_go_first_and_equal_ones_in_the_order_of_coming() -> None:
    room = WaitingRoom()
    for now, (item, priority) in enumerate([("a", 0), ("b", 5), ("c", 0), ("d", -1), ("e", 5), ("f", 0.5)]):
        room.add(item, now=now, priority=priority)
    assert taken(room) == ["b", "e", "f", "a", "c", "d"]


def test_a_batch_keeps_to_its_size_and_the_rest_waits_on() -> None:
    room = WaitingRoom()
    for now in range(5):
        room.add(now, now=now)
    assert taken(room, size=3) == [0, 1, 2]
    assert (room.waiting.count, room.waiting.oldest_arrival) == (2, 3)


def test_a_batch_ends_before_the_first_that_does_not_fit_so_nobody_is_overtaken() -> None:
    room = WaitingRoom()
    for item, cost in [("a", 3), ("b", 4), ("c", 1)]:
        room.add(item, now=0, cost=cost)
    assert taken(room, cost=5) == ["a"]
    assert taken(room, cost=5) == ["b", "c"]


def test_the_first_is_taken_whatever_it_costs_so_the_line_always_moves() -> None:
    room = WaitingRoom()
    room.add("dear", now=0, cost=100)
    room.add("cheap", now=0, cost=1)
    assert taken(room, cost=5) == ["dear"]


def test_who_leaves_early_is_not_counted_and_not_taken() -> None:
    room = WaitingRoom()
    first = room.add("first", now=1, cost=2)
    room.add("second", now=2, cost=3)
    assert room.remove(first)
    assert (room.waiting.count, room.waiting.cost, room.waiting.oldest_arrival) == (1, 3, 2)
    assert not room.remove(first)
    assert taken(room) == ["second"]


def test_who_was_taken_cannot_leave_again() -> None:
    room = WaitingRoom()
    entry = room.add("a", now=0)
    room.take(Fire(1))
    assert not room.remove(entry)
    assert len(room) == 0


def test_the_room_empties_of_those_whose_deadline_has_come() -> None:
    room = WaitingRoom()
    for item, deadline in [("late", 9.0), ("never", math.inf), ("soon", 3.0), ("also soon", 3.0)]:
        room.add(item, now=0, deadline=deadline)
    assert room.next_deadline == 3.0
    assert room.expire(2.9) == []
    assert [entry.item for entry in room.expire(3.0)] == ["soon", "also soon"]
    assert (len(room), room.next_deadline) == (2, 9.0)


def test_deadlines_of_those_who_left_are_forgotten() -> None:
    room = WaitingRoom()
    room.add("taken", now=0, deadline=1.0)
    taken(room)
    room.remove(room.add("gone", now=0, deadline=2.0))
    assert room.next_deadline == math.inf
    assert room.expire(5.0) == []


def test_the_oldest_arrival_is_that_of_a_low_priority_that_others_overtake() -> None:
    room = WaitingRoom()
    room.add("patient", now=1, priority=0)
    for now in range(2, 500):
        room.add("urgent", now=now, priority=1)
        assert taken(room, size=1) == ["urgent"]
        assert room.waiting.oldest_arrival == 1


def test_an_empty_room_has_no_oldest_arrival() -> None:
    assert WaitingRoom().waiting.oldest_arrival == math.inf


@pytest.mark.parametrize("priority", [math.nan, "high", None, 1j])
def test_a_priority_that_cannot_be_compared_is_refused_and_harms_nothing(priority) -> None:
    room = WaitingRoom()
    room.add("a", now=0)
    with pytest.raises(InvalidRequest, match="must be a number"):
        room.add("b", now=0, priority=priority)
    assert taken(room) == ["a"]
    assert len(room) == 0


def test_rounding_errors_of_the_cost_do_not_pile_up() -> None:
    room = WaitingRoom()
    for _ in range(1000):
        entries = [room.add(None, now=0, cost=cost) for cost in (0.1, 0.2, 0.3)]
        for entry in entries:
            room.remove(entry)
    assert room.waiting.cost == 0


def names_kept(room: WaitingRoom) -> int:
    return len(room._arrivals) + sum(map(len, room._lanes.values())) + len(room._deadlines)


@pytest.mark.parametrize("leave", ["remove", "take"])
def test_a_room_through_which_many_pass_does_not_grow(leave: str) -> None:
    room = WaitingRoom()
    room.add("starves", now=0, priority=-1)
    for now in range(10_000):
        entry = room.add("passes", now=now, priority=now % 7, deadline=1e9)
        if leave == "remove":
            room.remove(entry)
        else:
            room.take(Fire(1))
    assert names_kept(room) < 1000


operations = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "remove", "take", "expire"]), st.integers(0, 4)),
    max_size=300,
)


@given(operations)
def test_the_room_does_what_a_sorted_list_does(operations: list[tuple[str, int]]) -> None:
    room, line = WaitingRoom(), []

    def forget(entry: Entry) -> None:
        line.remove(entry)

    for now, (operation, n) in enumerate(operations):
        match operation:
            case "add":
                deadline = now + 10 * n if n else math.inf
                line.append(room.add(now, now=now, priority=n % 3, cost=n, deadline=deadline))
            case "remove" if line:
                entry = line[n % len(line)]
                assert room.remove(entry)
                forget(entry)
            case "take":
                order = sorted(line, key=lambda e: (-e.priority, e.arrival))
                expected = [e for i, e in enumerate(order[: n + 1]) if i == 0 or cost_to(order, i) <= 6]
                assert room.take(Fire(n + 1, 6)) == expected
                line = [e for e in line if e not in expected]
            case "expire":
                due = [e for e in line if e.deadline <= now]
                assert room.expire(now) == sorted(due, key=lambda e: e.deadline)
                line = [e for e in line if e not in due]
        assert room.waiting.count == len(room) == len(line)
        assert room.waiting.cost == sum(e.cost for e in line)
        assert room.waiting.oldest_arrival == min((e.arrival for e in line), default=math.inf)
        assert room.next_deadline == min((e.deadline for e in line), default=math.inf)


def cost_to(order: list[Entry], index: int) -> float:
    return sum(e.cost for e in order[: index + 1])
