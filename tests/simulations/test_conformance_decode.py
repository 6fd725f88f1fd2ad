"""One decode step: tokens drafted and accepted one by one, and a floor under every step.

`decode_step_floor` and `kv_bytes_per_token` say what they mean, so there is nothing to prove but what
follows: no pipeline of reading and computing is faster, and one of many thin layers hardly slower.
"""

import numpy as np
import pytest
from conformance import Claim, Experiment

from simulations import fast_queues
from simulations.theory import decode

MODEL = {"parameters": 1e9, "weight_bytes": 2e9, "bandwidth": 1e12, "flops": 1e14}


def speculation(acceptance, draft_length):
    cost_ratio = 0.1

    def simulate(draw, size):
        """Tokens that each step of the target yields: those before the first refusal, and its own."""
        accepted = draw["others"].random((size, draft_length)) < acceptance
        return np.logical_and.accumulate(accepted, axis=1).sum(axis=1) + 1

    def speedup(tokens):
        seconds = len(tokens) * (1 + draft_length * cost_ratio)  # of one target step each, and its draft
        return tokens.sum() / seconds

    claims = (
        Claim("tokens", decode.speculative_tokens(acceptance, draft_length), np.mean),
        Claim("speed-up", decode.speculative_speedup(acceptance, draft_length, cost_ratio), speedup),
    )
    return Experiment(f"drafts of {draft_length}, {acceptance} accepted", 5_000, simulate, claims)


EXPERIMENTS = [speculation(a, length) for a in (0.3, 0.6, 0.9) for length in (1, 4, 10)]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_theory_lies_in_the_interval_of_the_simulation(experiment):
    experiment.check()


def floor(running, contexts):
    token_bytes = decode.kv_bytes_per_token(layers=32, kv_heads=8, head_dim=128, value_bytes=2)
    return decode.decode_step_floor(running, running * contexts, token_bytes=token_bytes, **MODEL)


def pipeline(layers, running, contexts):
    """A step that computes one layer while it reads the next: two servers in a row."""
    cache = 32 * 2 * 8 * 128 * 2.0 * running * contexts  # layers, keys and values, heads, width, bytes
    reading = (MODEL["weight_bytes"] + cache) / MODEL["bandwidth"] / layers
    computing = 2 * MODEL["parameters"] * running / MODEL["flops"] / layers
    read = np.arange(1, layers + 1) * reading
    return fast_queues.fifo(read, np.full(layers, computing)).departures[-1]


@pytest.mark.parametrize(("running", "contexts"), [(1, 100), (50, 100), (200, 10), (400, 0)])
def test_a_step_that_reads_ahead_is_above_the_floor_and_reaches_it_with_many_layers(running, contexts):
    times = np.array([pipeline(layers, running, contexts) for layers in (1, 4, 32, 2_000)])
    assert (times >= floor(running, contexts) * (1 - 1e-12)).all()
    assert (np.diff(times) < 0).all()
    assert times[-1] == pytest.approx(floor(running, contexts), rel=1e-3)


def test_without_context_batching_is_free_until_computing_takes_as_long_as_reading():
    knee = MODEL["weight_bytes"] / MODEL["bandwidth"] * MODEL["flops"] / (2 * MODEL["parameters"])
    assert floor(int(knee), 0) == pytest.approx(floor(1, 0))
    assert floor(2 * int(knee), 0) == pytest.approx(2 * floor(1, 0))
