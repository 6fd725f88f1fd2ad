"""Lesson 10's reference answers against the library, and its two judges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from servinglib.course.exercises.lesson10 import eight_bits, exactness, guessing
from servinglib.decoder.linear import quantize
from servinglib.decoder.step import Proposal
from servinglib.engines.continuous.speculative import accept_sampled
from servinglib.experiments.speculation import prompt_lookup
from simulations.theory.decode import speculative_speedup


@pytest.mark.parametrize(("alpha", "cost", "most"), guessing.BEST_DRAFT.cases)
def test_the_best_draft_is_the_best_of_the_librarys_speedups(alpha, cost, most):
    speedups = [float(speculative_speedup(alpha, k, cost)) for k in range(most + 1)]
    k, speedup = guessing.best_draft(alpha, cost, most)
    assert speedup == pytest.approx(max(speedups))
    assert speedups[k] == pytest.approx(max(speedups))


@pytest.mark.parametrize("seed", range(5))
def test_the_look_up_is_the_engines_where_the_last_three_tokens_are_new(seed):
    tokens = np.random.default_rng(seed).integers(0, 6, 40).tolist()
    tokens[-3] = 99
    assert guessing.look_up(tokens, 3) == prompt_lookup(tokens, 3)


def test_the_rule_is_the_one_by_which_the_engine_accepts():
    p, q = torch.tensor([[0.5, 0.2, 0.3], [1.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.6, 0.3]])
    generator = torch.Generator().manual_seed(3)
    firsts = [accept_sampled(Proposal([1], q), p, generator) for _ in range(4000)]
    keep, rest = exactness.rule(1, p[0].tolist(), q[0].tolist())
    kept = [tokens for tokens in firsts if len(tokens) == 2]
    assert len(kept) / len(firsts) == pytest.approx(keep, abs=0.03)
    assert {tokens[0] for tokens in firsts if len(tokens) == 1} == {i for i, r in enumerate(rest) if r > 0}


def test_the_judge_of_rules_finds_the_reference_exact():
    assert exactness.judge_rule(exactness.rule).endswith("as from p")


@pytest.mark.parametrize("index", range(3))
def test_the_judge_of_rules_catches_each_mistake_that_can_be_drawn_from(index):
    wrong = exactness.RULE.mistakes[index].answer
    assert "not p" in exactness.judge_rule(wrong)


@pytest.mark.parametrize("answer", [exactness.RULE.stub, lambda *_: None, lambda *_: (2.0, [1] * 5), None])
def test_the_judge_of_rules_never_raises_in_the_readers_face(answer):
    assert exactness.judge_rule(answer).startswith("no rule to judge yet")


def test_the_judge_of_guesses_sees_the_same_steps_on_paper_and_in_the_engine():
    paper, engine, verdict = guessing.judge_guess(guessing.look_up).splitlines()
    steps = [int(line.split(":")[1].split()[0]) for line in (paper, engine)]
    assert steps[0] == steps[1] < guessing.JUDGED_TOKENS - 1
    assert engine.endswith("unchanged: True")
    assert verdict.endswith("yes")


def test_guesses_that_are_always_wrong_change_nothing_and_are_not_enough():
    paper, engine, verdict = guessing.judge_guess(lambda tokens, count: [0] * count).splitlines()
    assert f"{guessing.JUDGED_TOKENS - 1} steps" in paper
    assert engine.endswith("unchanged: True")
    assert verdict.endswith("no")


@pytest.mark.parametrize("guess", [guessing.LOOK_UP.stub, lambda tokens, count: None, None])
def test_the_judge_of_guesses_says_that_there_is_nothing_to_judge(guess):
    assert guessing.judge_guess(guess) == "no guesses to judge yet"


def test_the_judge_of_guesses_tells_what_the_guesser_raised():
    assert "ZeroDivisionError" in guessing.judge_guess(lambda tokens, count: [1 // 0])


@pytest.mark.parametrize("case", eight_bits.QUANTIZE.cases)
def test_the_integers_are_those_of_the_engines_weights(case):
    integers, scales = quantize(torch.tensor(case[0]))
    ours = eight_bits.quantize(case[0])
    assert ours[0] == integers.tolist()
    assert ours[1] == pytest.approx(scales.tolist(), rel=1e-5)
