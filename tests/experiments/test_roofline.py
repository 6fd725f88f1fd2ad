"""The floor against the theory, and the probes against what they must have touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import InvalidSetting
from servinglib.experiments import roofline
from servinglib.experiments.roofline import Roofline
from servinglib.models.shapes import BENCH_SHAPES, COURSE_SHAPES
from servinglib.policies.step_time import StepTime
from servinglib.workload import poisson
from simulations.continuous import simulate_continuous
from simulations.theory.decode import decode_step_floor

TINY = COURSE_SHAPES["course-tiny"]
A10 = Roofline.of(BENCH_SHAPES["bench-0.6b"], bandwidth=600e9, flops=125e12)


@pytest.mark.parametrize(("running", "kv_tokens"), [(1, 0), (40, 40 * 4096), (500, 500 * 8)])
def test_a_decode_steps_floor_is_that_of_the_theory(running, kv_tokens):
    shape = BENCH_SHAPES["bench-0.6b"]
    assert A10(running, kv_tokens) == pytest.approx(
        decode_step_floor(
            running,
            kv_tokens,
            parameters=shape.parameters,
            weight_bytes=2 * shape.parameters,
            token_bytes=2 * 28 * 8 * 128 * 2,
            bandwidth=600e9,
            flops=125e12,
        )
    )


def test_numbers_of_four_bytes_double_the_reading_and_leave_the_computing():
    wide = Roofline.of(TINY, bandwidth=1e10, flops=1e12, value_bytes=4)
    slim = Roofline.of(TINY, bandwidth=1e10, flops=1e12, value_bytes=2)
    assert wide.reading(100) == pytest.approx(2 * slim.reading(100))
    assert wide.computing(8) == slim.computing(8)


def test_the_floor_takes_whole_arrays():
    batches = np.array([1, 10, 1000])
    assert A10(batches, 8 * batches) == pytest.approx([A10(n, 8 * n) for n in batches.tolist()])


def test_a_prompts_tokens_meet_the_output_layer_once_only():
    body, head = 2 * A10.body / A10.flops, 2 * A10.head / A10.flops
    assert A10.computing(1, 1000) == pytest.approx(1000 * body + head)
    assert A10.computing(8) == pytest.approx(8 * (body + head))


def test_with_the_floor_for_its_steps_a_simulated_server_is_faster_than_with_anything_slower():
    workload = poisson(20.0, count=30, seed=1)
    slower = StepTime(a=2 * A10.reading(0), b=2 * A10.computing(1), c=A10.token_bytes / A10.bandwidth, d=1e-4)
    bound = simulate_continuous(workload, A10).latencies  # type: ignore[arg-type]
    real = simulate_continuous(workload, slower).latencies
    assert (bound < real).all()
    assert bound.min() >= 16 * A10(1, 64)  # an answer of 16 tokens takes 16 steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of work takes exactly one millisecond, whatever it is."""
    monkeypatch.setattr(roofline, "_typical_seconds", lambda work, seconds: (work(), 1e-3)[1])


@pytest.mark.usefixtures("clock")
def test_bandwidth_is_the_bytes_over_the_seconds():
    assert roofline.read_bandwidth(1 << 20) == pytest.approx((1 << 20) / 1e-3)


@pytest.mark.usefixtures("clock")
def test_the_rate_counts_a_multiplication_and_an_addition_per_weight_and_row():
    assert roofline.matmul_rate(torch.float32, rows=8) == pytest.approx(2 * 8 * 1024 * 1024 / 1e-3)


def test_too_few_bytes_are_refused():
    with pytest.raises(InvalidSetting, match="100 bytes"):
        roofline.read_bandwidth(100)


def test_the_undisturbed_time_is_the_lower_quartile_and_leaves_the_first_go_out(monkeypatch):
    ticks = iter([0.0, 0.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 6.0, 6.0, 6.0, 10.0, 10.0, 10.0, 15.0, 20.0])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert roofline._typical_seconds(lambda: calls.append(1), seconds=20.0) == 2.0  # of 1, 2, 3, 4, 5
    assert len(calls) == 6


def test_the_matrices_hold_all_weights_but_norms():
    numbers = sum(outputs * inputs for outputs, inputs in roofline._sizes(TINY))
    assert numbers == pytest.approx(TINY.parameters, rel=1e-3)
    assert numbers < TINY.parameters


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrices_multiply_every_number_of_tokens_asked_for(dtype):
    assert roofline.matrices_time(COURSE_SHAPES["course-draft"], dtype, (1, 5)) == [1e-3, 1e-3]


@pytest.fixture
def engine():
    with ContinuousEngine.load("course-draft", device="cpu", prefix_caching=False) as engine:
        yield engine


def test_the_decode_probe_times_steps_of_its_batch_around_its_context(engine):
    assert roofline.decode_steps(engine, running=3, context=40, steps=8) > 0
    decodes = [s for s in engine.steps if s.decode_tokens == 3]
    assert len(decodes) == 8
    assert np.mean([s.kv_tokens / 3 for s in decodes]) == pytest.approx(40, abs=1)


def test_the_prefill_probe_reads_its_prompt_in_one_step(engine):
    assert roofline.prefill_steps(engine, 100, repeats=2) > 0
    assert [s.prefill_tokens for s in engine.steps] == [100, 100]
