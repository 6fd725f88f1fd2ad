"""The continuous-batching server in virtual time, on examples that fit on paper."""

import numpy as np
import pytest

from servinglib.errors import InvalidRequest, InvalidSetting
from servinglib.policies.scheduling import ByPriority
from servinglib.policies.step_time import StepTime
from servinglib.workload import LogNormal, RequestSpec, Uniform, poisson
from simulations.continuous import simulate_continuous

ONE_SECOND = StepTime(a=1, b=0)


def requests(*rows: tuple[float, int, int]) -> list[RequestSpec]:
    return [RequestSpec(*row) for row in rows]


def test_a_lone_request_takes_one_step_per_token():
    run = simulate_continuous(requests((2.0, 8, 3)), ONE_SECOND)
    assert run.timelines[0].seconds == {"network": 0, "queue": 0, "prefill": 1, "decode": 2, "total": 3}


def test_who_comes_during_a_step_joins_at_the_next():
    run = simulate_continuous(requests((0, 8, 3), (0.5, 8, 2)), ONE_SECOND)
    assert [(s.start, s.members) for s in run.steps] == [(0, (0,)), (1, (0, 1)), (2, (0, 1))]
    assert run.timelines[1].seconds["queue"] == 0.5


def test_a_step_costs_what_it_holds():
    run = simulate_continuous(requests((0, 10, 3)), StepTime(a=1, b=0.1, c=0.01, d=0.001))
    taken = [s.end - s.start for s in run.steps]
    # The prompt's ten tokens are read and attended to, then eleven, then twelve.
    assert taken == pytest.approx([1 + 0.1 + 0.10 + 0.010, 1 + 0.1 + 0.11, 1 + 0.1 + 0.12])


def test_the_parts_of_each_latency_add_up_under_preemption_and_prefix_hits():
    workload = poisson(8, count=300, seed=3, prompts=Uniform(1, 60), outputs=LogNormal(30, 0.7, 90))
    keys = [tuple(("system", i) for i in range(min(r.prompt_tokens // 16, 2))) for r in workload]
    run = simulate_continuous(
        workload, StepTime(0.01, 0.001, 1e-6, 1e-4), kv_blocks=24, max_num_batched_tokens=64, block_keys=keys
    )
    assert run.preemptions.sum() > 0
    assert (run.cached_tokens > 0).any()
    assert all(sum(t.parts.values()) == t.total > 0 for t in run.timelines)
    assert sum(s.running for s in run.steps) >= sum(r.output_tokens for r in workload)


def test_the_server_never_sleeps_while_work_waits():
    workload = poisson(3, count=200, seed=1, prompts=Uniform(1, 60), outputs=Uniform(1, 40))
    run = simulate_continuous(workload, StepTime(0.01, 0.001), kv_blocks=16, max_num_batched_tokens=64)
    ends = np.array([0.0] + [s.end for s in run.steps])
    starts = np.array([s.start for s in run.steps])
    arrivals = np.array([r.arrival for r in workload])
    finished = np.array([t.finished for t in run.timelines]) / 1e9
    for end, start in zip(ends[:-1], starts, strict=True):
        if start > end + 1e-9:
            assert not ((arrivals <= end) & (finished > end + 1e-9)).any()


def test_urgent_requests_wait_less():
    workload = poisson(30, count=400, seed=2, prompts=Uniform(1, 20), outputs=Uniform(1, 40))
    urgent = np.arange(len(workload)) % 2 == 0
    run = simulate_continuous(
        workload,
        StepTime(0.01, 0.001),
        max_num_seqs=8,
        order=ByPriority(),
        priorities=urgent.astype(float).tolist(),
    )
    queue = np.array([t.seconds["queue"] for t in run.timelines])
    assert queue[urgent].mean() < queue[~urgent].mean() / 2


def test_bad_input_is_refused_before_anything_is_simulated():
    with pytest.raises(InvalidRequest, match="which holds 32"):
        simulate_continuous(requests((0, 8, 3), (1, 40, 3)), ONE_SECOND, kv_blocks=2)
    with pytest.raises(InvalidSetting, match="sort"):
        simulate_continuous(requests((1, 8, 3), (0, 4, 3)), ONE_SECOND)
    with pytest.raises(InvalidSetting, match="1 priorities for 2 requests"):
        simulate_continuous(requests((0, 8, 3), (1, 4, 3)), ONE_SECOND, priorities=[1.0])
