"""The row of continuous batching: on paper against arithmetic, and what its calibration may know."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from servinglib.engines.continuous.statistics import StepRecord
from servinglib.experiments.batching_curve import Shape, make_requests
from servinglib.experiments.continuous_row import Lift, StepSpeed, load_lift
from servinglib.policies.step_time import StepTime

SHAPE = Shape(prompt_tokens=4, output_tokens=6)
LAW = StepTime(1.0, 0.0)
SOON = [0.001 * i for i in range(16)]  # 96 tokens of at most 4 a step


@pytest.fixture(scope="module")
def lift() -> Iterator[Lift]:
    with load_lift("course-tiny", "cpu", max_num_seqs=4) as engine:
        yield Lift(engine, 4, SHAPE)


def record(seconds: float) -> StepRecord:
    """A step of one sequence that took so long."""
    return StepRecord(0.0, 0.0, seconds, seconds, 1, 0, 1, 1, 0, 10, *[0] * 4)


def test_on_paper_a_newcomer_gets_on_at_the_next_step_and_shares_it(lift: Lift) -> None:
    paper = lift.simulate([0.0, 0.5, 100.0], LAW)
    assert (paper.p50, paper.p99) == (6.0, 6.5)  # the second waited half a step
    assert paper.mean_batch == pytest.approx(18 / 13)


def test_on_paper_whoever_finds_no_seat_waits_for_one(lift: Lift) -> None:
    assert lift.simulate([0.0] * 5, LAW).p99 == 12


def test_each_step_is_as_slow_as_its_counterpart_in_the_run() -> None:
    speed = StepSpeed(LAW, [record(2.0), record(0.5)])
    assert [speed(1, 10, 0) for _ in range(3)] == [2.0, 0.5, 0.5]


def test_a_run_that_kept_to_the_law_is_simulated_as_the_law_says(lift: Lift) -> None:
    kept = StepSpeed(LAW, [record(1.0)])
    assert lift.simulate([0.0, 2.5], kept) == lift.simulate([0.0, 2.5], LAW)


def test_the_law_is_fitted_to_prompts_that_the_measured_run_does_not_have(
    lift: Lift, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    submit = lift.engine.submit
    monkeypatch.setattr(
        lift.engine, "submit", lambda request: (sent.append(request.prompt), submit(request))[1]
    )
    law = asyncio.run(lift.measure_step_time(SOON))
    calibration = sent.copy()
    sent.clear()
    columns = asyncio.run(lift.three_columns(50.0, SOON, law))
    assert sent == [request.prompt for request in make_requests(len(SOON), SHAPE)]
    assert not any(prompt in sent for prompt in calibration)
    assert columns.measured.count == columns.simulated.count == columns.at_run_speed.count == len(SOON)
    assert (columns.rate, columns.theory) == (50.0, {})


def test_the_calibration_has_steps_enough_even_where_all_requests_come_at_once(lift: Lift) -> None:
    law = asyncio.run(lift.measure_step_time([0.0] * lift.calibration_requests))
    assert law(1, 10, 0) > 0


def test_saturation_counts_whole_answers_of_the_real_engine(lift: Lift) -> None:
    run = asyncio.run(lift.measure_saturation(batches=4))
    assert run.requests_per_s > 0
    assert all(o.result is not None and len(o.result.token_ids) == 6 for o in run.outcomes)
