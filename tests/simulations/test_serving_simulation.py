"""The simulated batching server: small schedules by hand, and the real server on the same arrivals."""

import asyncio
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from servinglib import virtual_time
from servinglib.bench.load import run_open_loop
from servinglib.errors import InvalidSetting
from servinglib.metrics import e2e
from servinglib.policies.adaptive_batching import AdaptiveBatching
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import DynamicBatching
from servinglib.policies.routing import LeastOutstanding, RoundRobin
from servinglib.server.batch_server import BatchInferenceServer
from servinglib.traces import load_trace
from servinglib.workload import poisson
from simulations.serving import EmpiricalBatchTime, simulate_batching

LAW = BatchTime(alpha=0.002, tau0=0.02)
AZURE = Path(__file__).parents[2].parent / "shared" / "data" / "AzureLLMInferenceTrace_code.csv"


def schedule(result):
    return [(b.members, pytest.approx(b.start), pytest.approx(b.end)) for b in result.batches]


def test_a_batch_fires_when_it_is_full_or_when_the_window_ends():
    result = simulate_batching([0.0, 0.1, 1.0, 1.1, 1.2], DynamicBatching(3, 0.5), lambda size: 0.01 * size)
    assert schedule(result) == [((0, 1), 0.5, 0.52), ((2, 3, 4), 1.2, 1.23)]


def test_a_busy_server_takes_at_once_those_whose_window_has_ended():
    result = simulate_batching([0.0, 0.1, 0.2, 0.9], DynamicBatching(8, 0.05), lambda size: 1.0)
    assert schedule(result) == [((0,), 0.05, 1.05), ((1, 2, 3), 1.05, 2.05)]


def test_without_a_window_an_idle_server_starts_at_once():
    result = simulate_batching([0.0, 0.5], DynamicBatching(8, 0.0), lambda size: 0.1)
    assert schedule(result) == [((0,), 0.0, 0.1), ((1,), 0.5, 0.6)]


def test_the_parts_of_each_timeline_are_those_of_its_batch():
    result = simulate_batching([0.0, 0.1], DynamicBatching(2, 0.5), lambda size: 0.3, network=0.02)
    assert result.timelines[0].parts == {
        "network": 20_000_000,
        "queue": 100_000_000,
        "prefill": 300_000_000,
        "decode": 0,
    }
    assert result.latencies == pytest.approx([0.42, 0.32])


def test_every_request_is_in_exactly_one_batch_and_no_batch_is_too_large():
    arrivals = [r.arrival for r in poisson(250, count=3_000, seed=3)]
    result = simulate_batching(arrivals, DynamicBatching(8, 0.01), LAW, replicas=2)
    assert sorted(i for b in result.batches for i in b.members) == list(range(3_000))
    assert max(result.batch_sizes) == 8
    assert sum(size * count for size, count in result.batch_sizes.items()) == 3_000


def test_one_replica_serves_one_batch_at_a_time_and_in_order():
    arrivals = [r.arrival for r in poisson(250, count=3_000, seed=3)]
    batches = simulate_batching(arrivals, DynamicBatching(8, 0.01), LAW).batches
    assert all(later.start >= earlier.end for earlier, later in pairwise(batches))
    assert [i for b in batches for i in b.members] == list(range(3_000))


def test_replicas_take_turns_unless_told_otherwise():
    result = simulate_batching([0.0, 0.1, 0.2], DynamicBatching(1, 0), lambda size: 1.0, replicas=2)
    assert [(b.replica, b.members) for b in result.batches] == [(0, (0,)), (1, (1,)), (0, (2,))]


def test_the_least_loaded_replica_is_the_one_with_fewest_unanswered_requests():
    result = simulate_batching(
        [0.0, 0.1, 0.2, 1.05],
        DynamicBatching(1, 0),
        lambda size: 1.0,
        replicas=2,
        routing=LeastOutstanding(),
    )
    assert {i: b.replica for b in result.batches for i in b.members} == {0: 0, 1: 1, 2: 0, 3: 0}


def test_batches_are_listed_by_when_they_started_not_by_when_they_ended():
    seconds = {1: 1.0, 2: 5.0}
    result = simulate_batching([0.0, 0.01, 0.02], DynamicBatching(2, 0.2), seconds.__getitem__, replicas=2)
    assert schedule(result) == [((0, 2), 0.02, 5.02), ((1,), 0.21, 1.21)]


def test_a_rule_that_learns_learns_in_the_simulation_and_leaves_the_callers_copy_alone():
    policy = AdaptiveBatching(latency_target=0.1)
    arrivals = [r.arrival for r in poisson(150, count=200, seed=1)]
    assert max(simulate_batching(arrivals, policy, LAW).batch_sizes) > 1  # it begins with single requests
    assert policy.batch_time is None


def test_round_robin_goes_round_and_least_outstanding_prefers_the_first_of_equals():
    turns = RoundRobin()
    assert [turns.choose([9, 0, 0]) for _ in range(4)] == [0, 1, 2, 0]
    assert LeastOutstanding().choose([2, 1, 1]) == 1


def test_an_empirical_batch_time_draws_what_was_measured():
    draw = EmpiricalBatchTime({1: [0.1, 0.3], 2: [0.5]}, seed=0)
    assert {draw(1) for _ in range(50)} == {0.1, 0.3}
    assert draw(2) == 0.5


def test_between_two_measured_sizes_the_same_percentile_is_interpolated():
    draw = EmpiricalBatchTime({2: [0.1, 0.2], 4: [0.3, 0.6]}, seed=0)
    assert sorted({draw(3) for _ in range(50)}) == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize("size", [1, 5])
def test_outside_the_measured_sizes_no_time_is_made_up(size):
    with pytest.raises(InvalidSetting, match=f"batches of {size}, only for 2 to 4"):
        EmpiricalBatchTime({2: [0.1], 4: [0.3]}, seed=0)(size)


@pytest.mark.parametrize("samples", [{}, {1: [0.1], 2: []}])
def test_a_table_without_times_is_refused(samples):
    with pytest.raises(InvalidSetting, match="at least one measured time"):
        EmpiricalBatchTime(samples, seed=0)


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        draw = EmpiricalBatchTime({1: [0.01, 0.02, 0.03], 4: [0.05, 0.06]}, seed=seed)
        return simulate_batching(np.arange(100) / 40, DynamicBatching(4, 0), draw).latencies.tolist()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_arrivals_out_of_order_and_a_server_of_no_replicas_are_refused():
    with pytest.raises(InvalidSetting, match="ascending"):
        simulate_batching([1.0, 0.5], DynamicBatching(), LAW)
    with pytest.raises(InvalidSetting, match="replicas=0"):
        simulate_batching([1.0], DynamicBatching(), LAW, replicas=0)


class TimedModel:
    """Answers a batch of b items with the items themselves after H(b) seconds, and keeps a diary."""

    def __init__(self):
        self.batches = []

    async def generate_batch(self, items):
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.sleep(LAW(len(items)))
        self.batches.append((tuple(items), start, loop.time()))
        return items


async def serve(arrivals, policy):
    model = TimedModel()
    async with BatchInferenceServer(model, batching=policy) as server:
        clock = asyncio.get_running_loop().time
        outcomes = await run_open_loop(server.predict, arrivals, clock=clock)
    assert [outcome.result for outcome in outcomes] == list(range(len(arrivals)))
    return model.batches, outcomes


@pytest.mark.parametrize(
    ("rate", "policy"),
    [
        (30, lambda: DynamicBatching(8, 0.01)),
        (150, lambda: DynamicBatching(8, 0.01)),
        (150, lambda: DynamicBatching(8, 0)),
        (150, lambda: DynamicBatching(4, 0.03)),
        (150, lambda: AdaptiveBatching(latency_target=0.1)),
    ],
)
def test_the_real_server_and_the_simulated_one_make_the_same_batches(rate, policy):
    assert_same_batches([r.arrival for r in poisson(rate, count=400, seed=11)], policy)


@pytest.mark.skipif(not AZURE.exists(), reason=f"the Azure 2023 code trace is not at {AZURE}")
def test_they_do_so_on_a_recorded_hour_of_traffic_with_its_bursts():
    hour = load_trace(AZURE)
    arrivals = [
        r.arrival / 40 for r in hour
    ]  # the recorded service was larger: its hour in a minute and a half
    assert_same_batches(arrivals, lambda: DynamicBatching(16, 0.01))


def assert_same_batches(arrivals, policy):
    batches, outcomes = virtual_time.run(serve(arrivals, policy()))
    simulated = simulate_batching(arrivals, policy(), LAW)
    assert [b[0] for b in batches] == [b.members for b in simulated.batches]
    assert [b[1:] for b in batches] == [pytest.approx((b.start, b.end), abs=1e-9) for b in simulated.batches]
    assert [e2e(o.timeline) for o in outcomes] == pytest.approx(
        simulated.latencies, abs=2.1e-9
    )  # rounded stamps
