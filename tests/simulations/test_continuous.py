"""The continuous-batching server in virtual time, on examples that fit on paper."""

import numpy as np
import pytest
from typer.testing import CliRunner

from servinglib.cli import app
from servinglib.errors import InvalidRequest, InvalidSetting, UnknownName
from servinglib.policies.length_prediction import MeanLength, NoisyLength, Oracle
from servinglib.policies.scheduling import ByPriority, scheduling_policy
from servinglib.policies.sequence import SequenceState
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


def test_prompts_get_no_more_of_a_step_than_their_own_limit():
    run = simulate_continuous(requests((0, 10, 2), (0, 8, 1)), ONE_SECOND, max_prefill_tokens=6)
    assert [s.prefill_tokens for s in run.steps] == [6, 6, 6]


def test_a_steps_padding_is_what_its_decoding_sequences_lack_to_the_longest():
    run = simulate_continuous(requests((0, 10, 3), (0, 4, 3), (1, 50, 1)), ONE_SECOND)
    assert [s.padding for s in run.steps] == [0, 11 - 5, 12 - 6]  # prompts are not padded


def test_aligned_sequences_waste_less_padding_and_take_longer():
    workload = poisson(2, count=60, seed=4, prompts=Uniform(1, 100), outputs=Uniform(20, 80))
    plain, aligned = (
        simulate_continuous(workload, StepTime(0.01, 0.001), order=scheduling_policy(name))
        for name in ("sjf", "sjf-aligned")
    )
    assert sum(s.padding for s in aligned.steps) == 0 < sum(s.padding for s in plain.steps)
    assert aligned.latencies.mean() > plain.latencies.mean()


def test_aging_bounds_the_wait_that_shortest_first_does_not():
    short = [(0.5 * i, 4, 2) for i in range(80)]  # one server's whole time
    workload = requests((0, 4, 3), (0, 60, 2), *short)
    queues = {}
    for name, options in (("sjf", {}), ("sjf-aging", {"starvation_bound": 20.0})):
        run = simulate_continuous(
            workload, StepTime(0.5, 0), max_num_seqs=1, order=scheduling_policy(name, **options)
        )
        queues[name] = run.timelines[1].seconds["queue"]
    assert queues["sjf"] == 81.5  # last of all
    assert queues["sjf-aging"] <= 21


def test_who_knows_the_lengths_of_the_answers_waits_less_on_average():
    workload = poisson(6, count=300, seed=5, prompts=Uniform(1, 9), outputs=LogNormal(20, 1.0, 200))

    def mean_latency(name, predictor=None):
        run = simulate_continuous(
            workload, StepTime(0.03, 0.0), max_num_seqs=4, order=scheduling_policy(name), predictor=predictor
        )
        return run.latencies.mean()

    known, guessed = (mean_latency("shortest-remaining", p) for p in (Oracle(), NoisyLength(1.0)))
    assert known < 0.9 * guessed < 0.9 * mean_latency("fcfs")


def test_a_predictor_learns_from_those_that_finish():
    predictor = MeanLength(prior_tokens=5)
    simulate_continuous(requests((0, 4, 11), (0, 4, 2)), ONE_SECOND, predictor=predictor)
    assert predictor.predict(SequenceState(None, 1, 1)) == 6


def test_the_policy_of_the_command_reaches_the_simulation():
    def simulate(policy):
        arguments = [
            "simulate",
            "continuous",
            "--customers",
            "120",
            "--replications",
            "2",
            "--policy",
            policy,
        ]
        return CliRunner().invoke(app, arguments, catch_exceptions=False).output

    plain, ordered, aligned = (simulate(policy) for policy in ("fcfs", "sjf", "sjf-aligned"))
    simulated = [
        next(line for line in text.splitlines() if "mean sojourn" in line) for text in (plain, ordered)
    ]
    value = simulated[1].split()[3]
    assert value in simulated[0]  # with equal prompts sjf is fcfs, step by step as well as in leaps
    assert value not in aligned
    assert "Theory is silent" in aligned


def test_a_policy_unknown_to_the_command_is_refused_before_any_work():
    with pytest.raises(UnknownName, match="unknown policy 'lifo'"):
        CliRunner().invoke(app, ["simulate", "continuous", "--policy", "lifo"], catch_exceptions=False)


def test_bad_input_is_refused_before_anything_is_simulated():
    with pytest.raises(InvalidRequest, match="which holds 32"):
        simulate_continuous(requests((0, 8, 3), (1, 40, 3)), ONE_SECOND, kv_blocks=2)
    with pytest.raises(InvalidSetting, match="sort"):
        simulate_continuous(requests((1, 8, 3), (0, 4, 3)), ONE_SECOND)
    with pytest.raises(InvalidSetting, match="1 priorities for 2 requests"):
        simulate_continuous(requests((0, 8, 3), (1, 4, 3)), ONE_SECOND, priorities=[1.0])
