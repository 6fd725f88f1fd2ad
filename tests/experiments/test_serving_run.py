"""The step-time law that is read from an engine's own step records."""

import numpy as np
import pytest

from servinglib.engines.continuous.statistics import StepRecord
from servinglib.errors import InvalidSetting
from servinglib.experiments.serving_run import drift, fit_step_time
from servinglib.policies.step_time import StepTime

LAW = StepTime(a=4e-4, b=1e-4, c=1e-7, d=8e-5)


def record(seconds: float, sequences: int, kv_tokens: int, prefill_tokens: int) -> StepRecord:
    return StepRecord(
        0.0, 0.0, seconds, seconds, sequences, 0, sequences, sequences, prefill_tokens, kv_tokens, *[0] * 4
    )


def steps(count: int, held_up: float = 0.0, seed: int = 0) -> list[StepRecord]:
    """Steps that follow `LAW`; a share of them, `held_up`, takes four times as long."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        n, prefill = int(rng.integers(1, 17)), int(rng.choice([0, 0, 0, 32]))
        kv = n * int(rng.integers(20, 200))
        late = 4.0 if rng.random() < held_up else 1.0
        made.append(record(late * LAW(n, kv, prefill), n, kv, prefill))
    return made


def test_steps_that_follow_a_law_give_back_the_law():
    found = fit_step_time(steps(200))
    assert (found.a, found.b, found.c, found.d) == pytest.approx((LAW.a, LAW.b, LAW.c, LAW.d), rel=1e-6)


def test_a_law_fitted_to_steps_that_were_held_up_promises_the_time_that_they_took():
    noisy = steps(2_000, held_up=0.1)
    assert drift(noisy, fit_step_time(noisy)) == pytest.approx(0, abs=0.02)


def test_drift_is_what_the_steps_took_beyond_the_law_and_slower_makes_up_for_it():
    measured = steps(50)
    assert drift(measured, LAW) == pytest.approx(0)
    assert drift(measured, LAW.slower(-0.2)) == pytest.approx(0.25)
    assert drift(measured, LAW.slower(-0.2).slower(0.25)) == pytest.approx(0)


def test_too_few_steps_are_refused():
    with pytest.raises(InvalidSetting, match="19 steps are too few"):
        fit_step_time(steps(19))
