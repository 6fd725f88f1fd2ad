"""Coach and lift, the long prompt and the short cache: on paper against arithmetic, on the engine against paper."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.experiments import boarding
from servinglib.policies.scheduling import ShortestFirst
from servinglib.policies.step_time import StepTime
from servinglib.request import Timeline
from servinglib.workload import RequestSpec, Uniform, poisson

STEP = StepTime(0.5, 0.25, 0.125, 0.0625)
ONE = StepTime(1.0, 0.0)


def at_once(*lengths: tuple[int, int]) -> list[RequestSpec]:
    return [RequestSpec(0.0, prompt, output) for prompt, output in lengths]


def timeline(**seconds: float) -> Timeline:
    made = Timeline()
    for stage, value in seconds.items():
        made.stamp(stage, value)
    return made


@pytest.fixture(scope="module")
def engine():
    with ContinuousEngine.load(
        "course-tiny", max_num_seqs=8, prefix_caching=False, kv_cache_memory="64MiB"
    ) as loaded:
        yield loaded


def test_a_coach_takes_as_many_steps_as_its_longest_answer_and_pays_only_for_those_who_are_left():
    trip = boarding.CoachTime(at_once((2, 1), (3, 2)), STEP)
    first = 0.5 + 2 * 0.25 + 5 * 0.125 + 5 * 0.0625
    second = 0.5 + 0.25 + (3 + 1) * 0.125
    assert trip(2) == first + second


def test_coaches_take_the_workload_in_order_of_arrival():
    trip = boarding.CoachTime(at_once((1, 5), (1, 2), (1, 3)), ONE)
    assert [trip(1), trip(2)] == [5, 3]


def test_an_idle_coach_leaves_at_once_and_the_next_takes_all_who_came_meanwhile():
    workload = [RequestSpec(t, 1, length) for t, length in ((0.0, 4), (1.0, 2), (2.0, 6))]
    ends = [t.finished for t in boarding.simulate_coaches(workload, ONE, seats=8)]
    assert ends == [4e9, 10e9, 10e9]


def test_a_backlog_without_shortage_computes_nothing_twice():
    paper = boarding.simulate_backlog(at_once((4, 3), (4, 5)), ONE, max_num_seqs=2)
    assert paper == boarding.Backlog(seconds=5.0, steps=5, preemptions=0, recomputed=0)


def test_arrivals_don_t_matter_to_a_backlog():
    spread = [RequestSpec(7.0 * i, 4, 3) for i in range(3)]
    assert boarding.simulate_backlog(spread, ONE).steps == 3


@pytest.mark.parametrize("policy", ["fcfs", ShortestFirst()])
def test_short_of_blocks_the_engine_preempts_and_recomputes_exactly_as_the_simulation_says(policy):
    lengths = Uniform(8, 60)
    workload = poisson(1, count=12, seed=2, prompts=Uniform(4, 70), outputs=lengths)
    order = ShortestFirst() if policy != "fcfs" else None
    paper = boarding.simulate_backlog(workload, ONE, kv_blocks=16, max_num_seqs=6, order=order)
    options: dict[str, Any] = {"max_num_seqs": 6, "prefix_caching": False}
    with (any_size := ContinuousEngine.load("course-tiny", kv_cache_memory=2**22, **options)):
        block = any_size.memory.bytes_per_token * any_size.memory.block_size
    memory = 16 * block
    with (short := ContinuousEngine.load("course-tiny", kv_cache_memory=memory, policy=policy, **options)):
        real = boarding.run_backlog(short, workload)
    assert paper.preemptions > 0
    assert paper.recomputed > 0
    assert (real.steps, real.preemptions, real.recomputed) == (
        paper.steps,
        paper.preemptions,
        paper.recomputed,
    )


def test_batches_take_the_engine_the_steps_of_their_longest_answers(engine):
    before = len(engine.steps)
    assert boarding.in_batches(engine, at_once((4, 3), (4, 9), (4, 2), (4, 5)), seats=2) > 0
    assert len(engine.steps) - before == 9 + 5


def test_the_batching_server_answers_the_whole_workload():
    workload = [RequestSpec(0.001 * i, 4, 3) for i in range(5)]
    quick = SimulatedEngine(StepTime(1e-4, 0.0))
    timelines = asyncio.run(boarding.serve_coaches(quick, workload, seats=2))
    assert len(timelines) == 5
    assert all(t.completed is not None for t in timelines)


def test_the_gap_is_the_longest_between_two_tokens_that_ends_after_the_prompt_came():
    prompt = timeline(arrival=2.0, first_token=5.0)
    seen = boarding.Interruption.of([[-9.0, 0.0, 1.75, 5.0], [2.5, 5.5]], prompt)
    assert (seen.gap, seen.ttft) == (3.25, 3.0)  # it may begin before, and the 9 s were over by then
    assert seen.ends == (-11.0, -2.0, -0.25, 0.5, 3.0, 3.5)


@pytest.mark.parametrize(("budget", "pieces"), [(2048, 1), (18, 10)])
def test_on_paper_pieces_shorten_the_gap_and_delay_the_prompt(budget, pieces):
    per_step = StepTime(1e-3, 0.0, 0.0, 1e-4)
    event = boarding.long_prompt_among(chats=8, prompt_tokens=100)
    paper = boarding.simulate_interruption(event, per_step, max_num_batched_tokens=budget, max_num_seqs=16)
    assert paper.gap == pytest.approx(1e-3 + 1e-2 / pieces)
    begun = 1e-3 * pieces + 1e-2
    assert begun <= paper.ttft <= begun + 1e-3  # it first waits for the step that runs


def test_the_engine_reads_a_long_prompt_while_the_others_go_on(engine):
    event = boarding.long_prompt_among(chats=3, prompt_tokens=300)
    real = asyncio.run(boarding.interrupt(engine, event))
    assert 0 < real.gap < 60
    assert real.ttft > 0
    assert any(end > 0 for end in real.ends)
