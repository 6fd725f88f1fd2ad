"""A step's law from token times alone, and what it predicts, on an engine whose law is known."""

from __future__ import annotations

import pytest
from clocks import VirtualClock

from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import InvalidSetting
from servinglib.experiments.boarding import simulate_backlog
from servinglib.experiments.engine_visits import (
    backlog,
    drive,
    expected_coach_seconds,
    expected_lift_seconds,
    learn_step_time,
    rates,
)
from servinglib.policies.step_time import StepTime
from servinglib.workload import RequestSpec

LAW = StepTime(a=0.010, b=0.002, d=0.0005)


@pytest.fixture
def engine() -> SimulatedEngine:
    clock = VirtualClock()
    return SimulatedEngine(LAW, sleep=clock.sleep, clock=clock)


def test_a_drive_tells_first_token_gap_and_whole_time(engine: SimulatedEngine):
    seen = drive(engine, together=4, prompt_tokens=16, output_tokens=5)
    step = LAW(4, 0, 0)
    assert seen.first == pytest.approx(step + 64 * LAW.d)
    assert seen.gap == pytest.approx(step)
    assert seen.seconds == pytest.approx(5 * step + 64 * LAW.d)


def test_the_law_is_learnt_from_outside(engine: SimulatedEngine):
    law, gaps = learn_step_time(engine, (1, 4, 16))
    assert (law.a, law.b, law.d) == pytest.approx((LAW.a, LAW.b, LAW.d))
    assert gaps == pytest.approx({1: 0.012, 4: 0.018, 16: 0.042})


def test_a_line_needs_two_numbers_of_requests(engine: SimulatedEngine):
    with pytest.raises(InvalidSetting, match="two different numbers"):
        learn_step_time(engine, (4, 4))


def test_static_batches_take_what_the_simulation_says_and_about_what_theory_says(engine: SimulatedEngine):
    work = backlog(640, 16, longest=64)
    told = rates(engine, LAW, work, 16)
    assert told.measured == pytest.approx(told.simulated)
    assert told.theory == pytest.approx(told.simulated, rel=0.02)


def test_the_lift_s_theory_is_the_simulation_without_its_tail():
    work = backlog(1600, 16, longest=64)
    simulated = simulate_backlog(work, LAW, max_num_seqs=16).seconds
    theory = expected_lift_seconds(work, LAW, 16)
    assert theory < simulated < 1.04 * theory


@pytest.mark.parametrize("seats", [1, 4, 16])
def test_by_wasting_no_seats_the_lift_gains_what_the_lesson_says(seats: int):
    work, steps_only = backlog(16_000, seats, longest=64), StepTime(a=1.0, b=0.0)
    gain = expected_coach_seconds(work, steps_only, seats) / expected_lift_seconds(work, steps_only, seats)
    assert gain == pytest.approx((64 * seats / (seats + 1) + 0.5) / 32.5, rel=0.02)


def test_a_heap_that_fills_no_whole_coaches_is_refused():
    with pytest.raises(InvalidSetting, match="count=10 must be a multiple of seats=4"):
        backlog(10, 4, longest=8)
    assert all(isinstance(spec, RequestSpec) for spec in backlog(8, 4, longest=8))
