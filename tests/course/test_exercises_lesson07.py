"""Lesson 07's reference answers against the library's policies, and what a wrong bound or guess costs."""

from __future__ import annotations

import numpy as np
import pytest

from servinglib.course import check
from servinglib.course.exercises.lesson07 import ordering, promises
from servinglib.course.exercises.lesson07.ordering import Entry
from servinglib.policies.length_prediction import NoisyLength
from servinglib.policies.scheduling import ShortestAligned, ShortestWithAging
from servinglib.policies.sequence import SequenceState


def crowd(count: int, seed: int = 7) -> list[SequenceState]:
    rng = np.random.default_rng(seed)
    return [
        SequenceState(None, int(rng.integers(1, 9)) * 50, 10, float(rng.integers(0, 100)), number=i)
        for i in range(count)
    ]


def entries(sequences: list[SequenceState]) -> list[Entry]:
    return [Entry(s.number, s.num_tokens, s.arrival) for s in sequences]


@pytest.mark.parametrize("bound", [1.0, 60.0, 1000.0])
def test_the_aged_order_is_the_librarys(bound):
    requests = crowd(40)
    ours = [entry.number for entry in ordering.aged_order(entries(requests), 100.0, bound)]
    assert ours == [s.number for s in ShortestWithAging(bound).order(requests, 100.0)]


def test_a_bound_that_all_have_waited_for_is_first_come_first_served():
    ours = ordering.aged_order(entries(crowd(40)), 200.0, 1.0)
    assert ours == sorted(ours, key=lambda r: (r.arrival, r.number))


@pytest.mark.parametrize("lengths", [(50, 52, 55, 60, 100), (7, 7, 9), (3,)])
def test_the_aligned_batch_is_the_librarys(lengths):
    running = [SequenceState(None, n, 10, number=i) for i, n in enumerate(lengths)]
    ours = [entry.number for entry in ordering.aligned_batch(entries(running))]
    assert ours == [s.number for s in ShortestAligned().decode_batch(running, 0.0)]


def test_an_answer_that_takes_the_policys_own_sequences_can_be_plugged_in():
    requests = crowd(5)
    assert {s.number for s in ordering.aged_order(requests, 100.0, 60.0)} == set(range(5))  # type: ignore[arg-type]


def test_a_bound_is_chosen_by_what_was_seen_and_not_by_its_size():
    assert promises.choose_bound({10.0: 5.0, 20.0: 50.0}, 30.0) == 10.0
    assert promises.choose_bound({40.0: 30.0}, 30.0) == 40.0
    assert promises.choose_bound({1.0: 31.0}, 30.0) is None


def test_guesses_in_order_have_no_wrong_pair_and_reversed_ones_only_such():
    lengths = [3, 1, 4, 1, 5]
    assert promises.wrong_pairs(lengths, [10.0 * n + 1 for n in lengths]) == 0
    assert promises.wrong_pairs(lengths, [-float(n) for n in lengths]) == 1


def test_noise_turns_as_many_pairs_round_as_the_formula_says():
    rng, sigma = np.random.default_rng(1), 1.1
    lengths = np.maximum(1, rng.lognormal(8.0, 1.0, 800)).astype(int).tolist()
    noise = NoisyLength(sigma, seed=1)
    guesses = [noise.predict(SequenceState(None, 1, n, number=i)) for i, n in enumerate(lengths)]
    assert promises.wrong_pairs(lengths, guesses) == pytest.approx(np.arctan(sigma) / np.pi, abs=0.02)


def test_a_predictor_that_knows_nothing_is_half_wrong():
    assert promises.wrong_pairs([1, 2, 3, 4], [9.0] * 4) == 0.5


def test_the_mistakes_are_told_apart_by_what_they_do():
    overdue = check("07.1", ordering.AGED_ORDER.mistakes[3].answer, "en")
    assert "of those that are overdue the longest goes first" in overdue.cause
    alone = check("07.2", ordering.ALIGNED_BATCH.mistakes[0].answer, "en")
    assert "only one of the shortest" in alone.cause
