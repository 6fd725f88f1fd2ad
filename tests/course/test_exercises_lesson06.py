"""Lesson 06's reference answers against the planner, the simulation and the order statistics they stand for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from servinglib.cache.block_pool import BlockPool
from servinglib.course.exercises.lesson06 import budget, eviction, seats
from servinglib.experiments.boarding import simulate_backlog
from servinglib.policies.sequence import SequenceState
from servinglib.policies.step_time import StepTime
from servinglib.policies.stepping import StepPlanner
from servinglib.workload import RequestSpec


def planned_step(running: list[int], waiting: list[int], tokens: int, max_num_seqs: int) -> list[int]:
    """What the library's planner gives to requests in that state."""
    planner = StepPlanner(BlockPool(10_000, 16), max_num_seqs=max_num_seqs, max_num_batched_tokens=tokens)
    for left in running:
        sequence = SequenceState(None, 20 if left == 1 else 40 + left, 9)
        planner.add(sequence)
        planner.waiting.remove(sequence)
        planner.running.append(sequence)
        sequence.num_output_tokens = 1 if left == 1 else 0
        sequence.num_computed_tokens = sequence.num_tokens - left
        sequence.blocks = planner.pool.allocate(planner.pool.blocks_for(sequence.num_computed_tokens))
    for prompt in waiting:
        planner.add(SequenceState(None, prompt, 9))
    everybody = [*planner.running, *planner.waiting]
    shares = {share.sequence: share.num_tokens for share in planner.plan(0.0).scheduled}
    return [shares.get(sequence, 0) for sequence in everybody]


@pytest.mark.parametrize("seed", range(40))
def test_a_step_is_filled_as_the_library_fills_it(seed):
    rng = np.random.default_rng(seed)
    running = [int(rng.choice([1, 1, int(rng.integers(2, 30))])) for _ in range(rng.integers(0, 6))]
    waiting = [int(rng.integers(1, 20)) for _ in range(rng.integers(0, 5))]
    max_num_seqs = max(1, len(running) + int(rng.integers(0, 4)))
    tokens = max(max_num_seqs, int(rng.integers(1, 40)))
    case = (running, waiting, tokens, max_num_seqs)
    assert seats.fill_step(*case) == planned_step(*case)


@pytest.mark.parametrize(("lengths", "size"), seats.IDLE_SHARE.cases)
def test_the_empty_seats_are_those_of_many_random_batches(lengths, size):
    drawn = np.random.default_rng(0).choice(lengths, (50_000, size))
    simulated = 1 - drawn.mean() / drawn.max(axis=1).mean()
    assert seats.idle_share(lengths, size) == pytest.approx(simulated, abs=0.005)


def mixed_prompts(seed: int) -> list[RequestSpec]:
    rng = np.random.default_rng(seed)
    return [RequestSpec(0.0, 400 if rng.random() < 0.2 else 16, int(rng.integers(8, 201))) for _ in range(32)]


def test_sending_back_who_loses_least_recomputes_less_over_many_piles():
    options = {"kv_blocks": 112, "max_num_seqs": 16}
    recomputed = np.zeros(2)
    for seed in range(10):
        pile = mixed_prompts(seed)
        mine = simulate_backlog(pile, eviction.STEP, order=eviction.Mine(eviction.order), **options)
        recomputed += mine.recomputed, simulate_backlog(pile, eviction.STEP, **options).recomputed
    assert recomputed[0] < 0.75 * recomputed[1]


def test_the_judge_of_the_order_finds_the_same_counts_on_paper_and_on_the_engine():
    report = eviction.judge_order(eviction.order, mixed_prompts(3)[:10], kv_blocks=48, max_num_seqs=8)
    rows = [line.split()[2:] for line in report.splitlines()[1:]]
    assert len(rows) == 4
    assert all(paper == engine for paper, engine in rows)
    assert int(rows[0][0]) > 0


@pytest.mark.parametrize(
    "answer",
    [eviction.ORDER.stub, lambda requests: 1 / 0, lambda requests: [], lambda r: ["x"] * len(r), None],
)
def test_the_judge_of_the_order_never_raises_in_the_readers_face(answer):
    assert eviction.judge_order(answer, mixed_prompts(1), 48, 8).startswith("no order to judge yet")


@pytest.mark.parametrize("case", budget.TOKEN_BUDGET.cases)
def test_the_budget_is_the_largest_within_the_limit(case):
    a, b, c, d, decoding, kv_tokens, limit = case
    step, found = StepTime(a, b, c, d), budget.token_budget(*case)
    assert step(decoding + 1, kv_tokens, found - decoding) <= limit
    assert step(decoding + 1, kv_tokens, found + 1 - decoding) > limit


@pytest.mark.parametrize("answer", [budget.TOKEN_BUDGET.stub, lambda *_: 1 / 0, lambda *_: "many", None])
def test_the_judge_of_the_budget_never_raises_in_the_readers_face(answer):
    assert asyncio.run(budget.judge_budget(answer)).startswith("no budget")


def test_the_judge_of_the_budget_tries_it_and_twice_as_much(monkeypatch):
    async def calibrated(engine: object, workload: object) -> SimpleNamespace:
        return SimpleNamespace(steps=())

    monkeypatch.setattr(budget, "serve", calibrated)
    monkeypatch.setattr(budget, "fit_step_time", lambda steps: StepTime(2e-3, 5e-5, 1e-6, 4e-5))
    expected = budget.token_budget(
        2e-3, 5e-5, 1e-6, 4e-5, 8, 1500 + 640, 4 * StepTime(2e-3, 5e-5, 1e-6)(8, 640)
    )
    asked, once, twice = asyncio.run(budget.judge_budget(budget.token_budget)).splitlines()
    assert asked.endswith(f"your budget is {expected} tokens")
    assert once.startswith(f"budget {expected:4d}: longest gap simulated")
    assert twice.startswith(f"budget {2 * expected:4d}: longest gap simulated")


@pytest.mark.parametrize(("ratio", "words"), [(1.0, "within"), (1.1, "a little over"), (1.3, "over")])
def test_a_gap_is_judged_with_the_machines_scatter_in_mind(ratio, words):
    assert budget._verdict(ratio) == words
