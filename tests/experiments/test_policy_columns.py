"""The same requests for every policy, the same numbers from both servers, and a price for padding."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.experiments.policy_columns import (
    Kind,
    Outcome,
    PaddingBackend,
    Traffic,
    padding_share,
    policy_columns,
)
from servinglib.policies.scheduling import FirstComeFirstServed, ShortestAligned, ShortestFirst
from servinglib.policies.step_time import StepTime
from servinglib.workload import Fixed, RequestSpec, Uniform
from simulations.continuous import simulate_continuous

CHAT, SUMMARY = Kind(Uniform(4, 8), Uniform(2, 6)), Kind(Fixed(40), Fixed(12))


def mixed(arrivals, share: float = 0.3, seed: int = 1) -> Traffic:
    return Traffic.mixed(arrivals, CHAT, SUMMARY, share, seed)


def burst(*lengths: tuple[int, int]) -> list[RequestSpec]:
    return [RequestSpec(0.0, prompt, output) for prompt, output in lengths]


def test_each_request_has_the_lengths_of_its_kind():
    traffic = mixed(np.arange(200.0))
    assert 0.2 < traffic.is_summary.mean() < 0.4
    for spec, is_summary in zip(traffic.workload, traffic.is_summary, strict=True):
        assert (spec.prompt_tokens == 40) == (spec.output_tokens == 12) == is_summary


def test_other_arrivals_bring_the_same_requests():
    early, late = mixed(np.arange(20.0)), mixed(np.arange(20.0) * 3)
    assert early.at(np.arange(20.0) * 3).workload == late.workload
    assert (early.is_summary == late.is_summary).all()


def test_a_share_above_one_is_refused():
    with pytest.raises(InvalidSetting, match=r"share=1\.5"):
        mixed([0.0], share=1.5)


def test_an_outcome_tells_the_kinds_apart_and_names_the_worst():
    traffic = Traffic(tuple(burst((10, 1), (10, 1), (10, 9))), np.array([False, False, True]))
    run = simulate_continuous(traffic.workload, StepTime(a=1.0, b=0.0), max_num_seqs=3)
    outcome = Outcome.of(run, traffic.is_summary)
    assert (outcome.chat, outcome.summary, outcome.p50, outcome.slowest) == (1.0, 9.0, 1.0, 9.0)
    assert outcome.p50 < outcome.p99 <= outcome.slowest


def test_padding_is_counted_per_token_read():
    run = simulate_continuous(burst((10, 3), (30, 3)), StepTime(a=1.0, b=0.0), max_num_seqs=2)
    read = 40 + (11 + 31) + (12 + 32)
    assert padding_share(run.steps) == pytest.approx((20 + 20) / read)


def seconds(workload, policy, padded: bool) -> float:
    unpadded = StepTime(a=0.0, b=0.0, c=1.0)
    backend = PaddingBackend(policy, unpadded)
    step_time = backend.step_time if padded else unpadded
    order = backend if padded else policy
    return simulate_continuous(workload, step_time, max_num_seqs=4, order=order).steps[-1].end  # type: ignore[arg-type]


def test_a_padding_backend_charges_the_longest_for_everybody():
    workload = burst((10, 3), (30, 3))
    without = seconds(workload, FirstComeFirstServed(), padded=False)
    assert seconds(workload, FirstComeFirstServed(), padded=True) == without + 20 + 20


def test_an_aligned_batch_is_charged_nothing_for_padding():
    workload = burst((10, 8), (12, 8), (17, 8), (30, 8))
    assert seconds(workload, ShortestAligned(), True) == seconds(workload, ShortestAligned(), False)


def test_a_step_that_decodes_nothing_is_not_charged_for_the_one_before():
    backend = PaddingBackend(ShortestFirst(), StepTime(a=0.0, b=0.0, c=1.0))
    workload = [RequestSpec(0.0, 10, 2), RequestSpec(0.0, 30, 2), RequestSpec(500.0, 5, 1)]
    run = simulate_continuous(workload, backend.step_time, max_num_seqs=2, order=backend)  # type: ignore[arg-type]
    assert [step.end - step.start for step in run.steps] == [40, 42 + 20, 5]


class Recorded(ShortestFirst):
    """Remembers which objects were made, and which of them were asked."""

    made: list[Recorded]

    def __init__(self) -> None:
        self.asked = 0
        Recorded.made.append(self)

    def order(self, requests, now):
        self.asked += 1
        return super().order(requests, now)


@pytest.fixture(scope="module")
def columns():
    Recorded.made = []
    return asyncio.run(policy_columns(Recorded, mixed(np.zeros(16)), max_num_seqs=2, calibration=16))


def test_simulator_and_engine_serve_the_same_requests(columns):
    lengths = [spec.output_tokens for spec in mixed(np.zeros(16)).workload]
    assert [len(c.token_ids) for c in columns.measured_run.completions] == lengths
    assert len(columns.simulated_run.timelines) == 16


def test_simulator_and_engine_ask_a_policy_object_of_their_own(columns):
    assert len(Recorded.made) == 2
    assert all(policy.asked > 0 for policy in Recorded.made)


def test_the_simulated_burst_is_taken_up_in_the_policys_order(columns):
    prompts = np.array([spec.prompt_tokens for spec in mixed(np.zeros(16)).workload])
    started = np.argsort([t.scheduled for t in columns.simulated_run.timelines], kind="stable")
    assert (np.diff(prompts[started][2:]) >= 0).all()  # the first two find free seats, whoever they are


def test_drift_is_what_the_steps_took_over_what_was_expected(columns):
    steps = columns.measured_run.steps
    taken = sum(s.end - s.start for s in steps)
    expected = sum(columns.step_time(s.sequences, s.kv_tokens, s.prefill_tokens) for s in steps)
    assert (1 + columns.drift) * expected == pytest.approx(taken)
