"""Every exercise of the course: its reference passes, its stub doesn't, each known mistake is told apart."""

from __future__ import annotations

import pytest

from servinglib.course import check, checks, exercises
from servinglib.course.exercises import lesson01
from servinglib.course.lesson import LANGUAGES
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import DynamicBatching, Fire, Waiting

IDS = exercises.ids()


@pytest.mark.parametrize("name", IDS)
def test_the_reference_passes_strictly_and_the_stub_is_not_solved_yet(name):
    exercise = checks.find(name)
    assert check(name, exercise.reference, strict=True).passed
    assert check(name, exercise.stub).status == "not solved yet"
    with pytest.raises(checks.NotSolved, match="not solved yet"):
        check(name, exercise.stub, strict=True)


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", IDS)
def test_each_known_mistake_fails_with_its_own_message(name, lang):
    exercise = checks.find(name)
    results = [check(name, mistake.answer, lang) for mistake in exercise.mistakes]
    assert [result.status for result in results] == ["not right yet"] * len(results)
    assert [result.cause for result in results] == [mistake.cause[lang] for mistake in exercise.mistakes]
    assert 2 <= len(results) == len({result.cause for result in results})


@pytest.mark.parametrize("name", IDS)
def test_every_exercise_has_a_hint_in_both_languages(name):
    assert all(len(checks.find(name).hint[lang]) > 10 for lang in LANGUAGES)


def test_lessons_start_at_one_and_exercises_are_numbered_without_gaps():
    assert IDS[:4] == ["01.1", "01.2", "01.3", "01.4"]
    assert len(IDS) == len(set(IDS))


@pytest.mark.parametrize(("alpha", "tau0", "size"), [(0.01, 0.04, 4), (0.003, 0.07, 16)])
def test_capacity_is_the_librarys(alpha, tau0, size):
    assert lesson01.capacity(alpha, tau0, size) == pytest.approx(BatchTime(alpha, tau0).capacity(size))


@pytest.mark.parametrize("rate", [1.0, 12.7, 12.8, 13.0, 32.0, 48.0, 60.0, 63.0])
def test_the_smallest_batch_is_the_first_whose_capacity_exceeds_the_rate(rate):
    alpha, tau0 = 1 / 64, 1 / 16  # exact in binary, and so is the tie at rate 32
    expected = next(size for size in range(1, 1000) if BatchTime(alpha, tau0).capacity(size) > rate)
    assert lesson01.smallest_batch(alpha, tau0, rate) == expected


@pytest.mark.parametrize("rate", [4.0, 5.0])
def test_no_batch_is_large_enough_when_the_rate_reaches_one_over_alpha(rate):
    assert lesson01.smallest_batch(0.25, 0.5, rate) is None


def test_the_percentile_counts_from_the_intended_arrival():
    latencies = [3.0, 1.0, 2.0, 5.0]
    intended = [0.0, 1.0, 2.0, 3.0]
    sent = [start + 0.9 for start in intended]
    completed = [start + latency for start, latency in zip(intended, latencies, strict=True)]
    value = lesson01.open_loop_percentile(intended, sent, completed, 50)
    assert value == 2.5


@pytest.mark.parametrize("case", lesson01.FIRES_AT.cases)
def test_the_rule_on_paper_is_the_rule_of_the_library(case):
    arrivals, size, wait = case
    policy = DynamicBatching(size, wait)
    fired = next(
        now
        for now in sorted([*arrivals, arrivals[0] + wait])
        if isinstance(policy.decide(Waiting(n := sum(a <= now for a in arrivals), n, arrivals[0]), now), Fire)
    )
    assert lesson01.fires_at(*case) == fired
