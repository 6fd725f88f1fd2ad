"""The score of a planner, checked square by square, and the seats of coach and lift."""

from __future__ import annotations

from collections import Counter

import numpy as np

from servinglib.cache.block_pool import BlockPool
from servinglib.experiments.step_grid import Guest, coach_members, draw, seat_chart, walk
from servinglib.plots import figure
from servinglib.policies.stepping import StepPlanner

GUESTS = {"A": Guest(0, 3, 7), "B": Guest(0, 2, 3), "C": Guest(2, 12, 3), "D": Guest(3, 2, 2)}


def score(kv_blocks: int = 1000) -> list:
    planner = StepPlanner(BlockPool(kv_blocks, block_size=4), max_num_seqs=3, max_num_batched_tokens=6)
    return walk(planner, GUESTS)


def row(squares: list, name: str) -> list[tuple[int, str, int]]:
    return [(s.step, s.deed, s.tokens) for s in squares if s.name == name]


def test_a_long_prompt_is_read_in_what_the_decoding_ones_leave_of_the_budget():
    assert row(score(), "C") == [
        (2, "prompt", 4),
        (3, "prompt", 5),
        (4, "prompt", 3),
        (5, "token", 1),
        (6, "token", 1),
    ]


def test_a_free_seat_is_of_no_use_without_budget():
    assert row(score(), "D") == [(3, "waits", 0), (4, "prompt", 2), (5, "token", 1)]


def test_each_token_takes_one_square_and_the_prompts_last_square_yields_the_first():
    for name, guest in GUESTS.items():
        deeds = Counter(deed for _, deed, _ in row(score(), name))
        assert deeds["token"] == guest.output_tokens - 1


def test_no_step_holds_more_than_its_budget():
    used = Counter()
    for square in score():
        used[square.step] += square.tokens
    assert max(used.values()) == 6


def test_short_of_blocks_the_last_comers_wait_again_and_read_again():
    assert row(score(kv_blocks=6), "D") == [
        (3, "waits", 0),
        (4, "prompt", 2),
        *[(step, "waits", 0) for step in (5, 6, 7, 8)],
        (9, "again", 3),
    ]
    assert sum(tokens for _, deed, tokens in row(score(kv_blocks=6), "C") if deed == "again") == 14


def test_the_picture_has_a_row_for_each_guest_and_a_tick_for_each_step():
    _, ax = figure("", "step", "request")
    draw(ax, score())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["A", "B", "C", "D"]
    assert len(ax.get_xticks()) == 7
    assert "4" in {text.get_text() for text in ax.texts}


def test_a_coach_holds_its_batch_until_the_longest_is_done():
    assert coach_members([1, 3, 2], seats=2) == [[0, 1], [1], [1], [2], [2]]


def test_who_sits_keeps_the_seat_and_who_comes_takes_the_first_free_one():
    chart = seat_chart([(0, 1), (1,), (1, 2), (2, 3)], seats=3)
    assert np.array_equal(chart, [[0, -1, 2, 2], [1, 1, 1, 3], [-1, -1, -1, -1]])
