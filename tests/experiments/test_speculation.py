"""Speculation on paper: the formula's world, the answer sheet, and the engine itself."""

from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import InvalidSetting
from servinglib.experiments.speculation import (
    Checked,
    Speculation,
    bernoulli,
    in_stretches,
    prompt_lookup,
    replay,
    simulate,
)
from servinglib.experiments.speculative_runs import StepCost, measure_step_cost, race
from servinglib.statistics import mean_interval
from simulations.theory.decode import speculative_tokens

OPTIONS = {"dtype": "float32", "kv_cache_memory": "32MiB", "max_num_seqs": 4}
PROMPTS = [[5, 9, 300, 5, 9, 300, 5, 9], [40, 41, 42, 43, 40, 41]]


@pytest.mark.parametrize(("alpha", "k"), [(0.3, 2), (0.8, 4), (0.95, 8)])
def test_independent_guesses_give_the_tokens_of_the_formula(alpha, k):
    means = [
        simulate(4000, bernoulli(alpha, np.random.default_rng(seed)), k).tokens_per_step for seed in range(20)
    ]
    found = mean_interval(means, 0.99)
    assert found.low <= speculative_tokens(alpha, k) * 1.002
    assert found.high >= speculative_tokens(alpha, k) * 0.998


def test_the_acceptance_counts_only_guesses_that_were_looked_at():
    run = Speculation((Checked(4, 1), Checked(4, 4), Checked(0, 0)))
    assert run.acceptance == pytest.approx(5 / 6)
    assert run.kept_share == pytest.approx(5 / 8)
    assert run.tokens_per_step == pytest.approx(8 / 3)


def test_acceptance_recovers_alpha_whatever_the_number_of_guesses():
    for k in (1, 4, 8):
        run = simulate(20_000, bernoulli(0.7, np.random.default_rng(1)), k)
        assert run.acceptance == pytest.approx(0.7, abs=0.02)


def test_guesses_right_in_stretches_betray_themselves_by_an_acceptance_that_rises():
    worlds = [in_stretches(0.98, 0.3, 20, np.random.default_rng(2)) for _ in range(2)]
    short, long = (simulate(20_000, world, k) for world, k in zip(worlds, (1, 8), strict=True))
    assert long.acceptance > short.acceptance + 0.1
    assert long.tokens_per_step < speculative_tokens(long.acceptance, 8)


def test_a_guesser_that_knows_the_answer_fills_every_step():
    answer = list(range(100, 121))
    run = replay([[1]], [answer], lambda tokens, room: answer[len(tokens) - 1 :][:room], 4)
    assert [s.accepted for s in run.steps] == [4, 4, 4, 4]


def test_guesses_behind_a_wrong_one_do_not_count():
    answer = [10, 11, 12, 13, 14, 15]
    run = replay([[1]], [answer], lambda tokens, room: [answer[len(tokens) - 1], 99, 12][:room], 3)
    assert run.steps[0] == Checked(3, 1)


def test_more_guesses_than_there_is_room_for_are_cut_off():
    run = replay([[1]], [[7] * 10], lambda tokens, room: [7] * 50, 2)
    assert max(s.drafted for s in run.steps) == 2


@pytest.mark.parametrize("k", [1, 4])
def test_paper_and_engine_agree_in_every_step(k):
    engines = {
        "plain": ContinuousEngine.load("course-tiny", **OPTIONS),
        "lookup": ContinuousEngine.load(
            "course-tiny", speculative="prompt-lookup", draft_tokens=k, **OPTIONS
        ),
    }
    runs = race(engines, PROMPTS, max_tokens=40)
    for engine in engines.values():
        engine.shutdown()
    assert runs["lookup"].answers == runs["plain"].answers
    assert runs["lookup"].speculation == replay(PROMPTS, runs["plain"].answers, prompt_lookup, k)
    assert len(runs["plain"].steps) == 2 * 39
    assert runs["lookup"].seconds > 0
    assert len(runs["lookup"].steps) < 2 * 39


def test_steps_of_several_requests_at_once_are_refused():
    engine = ContinuousEngine.load("course-tiny", **OPTIONS)
    runs = race({"plain": engine}, PROMPTS, max_tokens=4, batch=2)
    engine.shutdown()
    with pytest.raises(InvalidSetting, match="one at a time"):
        _ = runs["plain"].speculation


def test_step_costs_are_measured_for_each_batch_and_number_of_guesses():
    cost = measure_step_cost(
        "course-tiny", (1, 2), (0, 2), tokens=3, rounds=1, dtype="float32", kv_cache_memory="32MiB"
    )
    assert {batch: list(by) for batch, by in cost.seconds.items()} == {1: [0, 2], 2: [0, 2]}
    assert all(seconds > 0 for by in cost.seconds.values() for seconds in by.values())


def test_the_cost_of_a_run_adds_up_its_steps():
    cost = StepCost({1: {0: 0.010, 4: 0.018}})
    assert cost(2) == pytest.approx(0.014)
    assert cost.relative(4) == pytest.approx(1.8)
    assert cost.of(Speculation((Checked(0, 0), Checked(4, 2)))) == pytest.approx(0.028)


def test_stretches_last_as_many_steps_as_they_are_told_to():
    run = simulate(20_000, in_stretches(1.0, 0.0, 25, np.random.default_rng(3)), 4)
    accepted = [step.accepted for step in run.steps]
    turns = sum(one != other for one, other in pairwise(accepted))
    assert len(accepted) / turns == pytest.approx(25, rel=0.15)


class LateEngine:
    """Writes the last step of a request down only when the next request comes, as a loop in a thread may."""

    def __init__(self):
        self.steps, self._late = [], None

    def generate(self, prompts, max_tokens, **_):
        for _ in range(max_tokens):
            self.steps += [self._late] if self._late else []
            now = time.perf_counter()
            self._late = SimpleNamespace(
                start=now, end=now, sequences=1, prefill_tokens=0, drafted=0, accepted=0
            )
        return [SimpleNamespace(token_ids=[7] * max_tokens) for _ in prompts]


def test_a_race_counts_the_last_step_though_it_is_written_down_late():
    engines: Any = {"late": LateEngine()}
    runs = race(engines, [[1], [2]], max_tokens=5)
    assert len(runs["late"].steps) == 2 * 5
