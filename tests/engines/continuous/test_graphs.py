"""Decode steps by graph, and tokens read one step late: token for token what the plain loop gives.

A graph is here a function that is remembered and called again, on tensors that stay where they are; attention
gathers with plain PyTorch what the kernels would read from the same tables.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed; it comes with the extra `kernels`")

from scripted import Desk, SteppedLoop

from servinglib.cache.block_pool import BlockPool
from servinglib.decoder.graphs import DecodeGraphs, _drawn
from servinglib.decoder.loading import load_decoder
from servinglib.decoder.model import Decoder
from servinglib.decoder.paged_triton import TritonAttention
from servinglib.engines.continuous.runner import Runner
from servinglib.policies.scheduling import POLICIES, scheduling_policy
from servinglib.policies.stepping import StepPlanner

BLOCK_SIZE, CONTEXT, CPU = 4, 64, torch.device("cpu")


class GatheringAttention(TritonAttention):
    """What the kernels read and write, row by row."""

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        at, keys, values = self.layout, self.keys[layer], self.values[layer]
        for slot, key, value in zip(at.slots.tolist(), k, v, strict=True):
            if slot >= 0:
                keys[slot // self.block_size, :, slot % self.block_size] = key
                values[slot // self.block_size, :, slot % self.block_size] = value
        spans = [(i, i + 1, at.tables[i], int(at.contexts[i])) for i in range(at.decodes)]
        if at.extends is not None:
            tables, contexts, starts, _ = at.extends
            starts = (starts + at.decodes).tolist()
            spans += list(zip(starts, starts[1:], tables, contexts.tolist(), strict=False))
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        for first, last, table, length in spans:
            blocks = table[: -(-length // self.block_size)]
            if length:
                out[first:last] = self._gather(q[first:last], keys[blocks], values[blocks], length)
        return out.view(len(q), -1)

    def _gather(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, length: int) -> torch.Tensor:
        kv = [pages.transpose(0, 1).flatten(1, 2)[None, :, :length] for pages in (keys, values)]
        seen = torch.arange(length) <= torch.arange(length - len(q), length)[:, None]
        looked = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], *kv, attn_mask=seen, scale=self.scale, enable_gqa=True
        )
        return looked[0].transpose(0, 1)


class Remembered:
    """In place of `CudaCapture`; like that it runs the function once, to warm up."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], object]:
        run()

        def replay() -> None:
            self.replays += 1
            run()

        return replay


@pytest.fixture(scope="module")
def decoder(tiny_llama: str) -> Decoder:
    return load_decoder(tiny_llama, torch.float32, attention="torch")[0]


class World:
    """An engine's loop to be stepped by hand, with graphs and late tokens unless told otherwise."""

    def __init__(
        self, decoder: Decoder, *, blocks=64, graphs=True, overlap=True, most=5, policy="fcfs", **limits
    ):
        rows = -(-most // 8) * 8
        limits = {"max_num_seqs": most, "max_num_batched_tokens": 16, **limits}
        self.capture = Remembered()
        self.attention = GatheringAttention(
            decoder.shape, blocks, BLOCK_SIZE, torch.float32, CPU, rows, CONTEXT
        )

        def build() -> tuple[Runner, StepPlanner]:
            made = DecodeGraphs(decoder, self.attention, min(most, 5), self.capture) if graphs else None
            planner = StepPlanner(BlockPool(blocks, BLOCK_SIZE), scheduling_policy(policy), **limits)
            return Runner(decoder, self.attention, graphs=made), planner

        self.loop = SteppedLoop(build, overlap=overlap)
        self.desk = Desk(self.loop, lambda ids: "".join(chr(97 + i % 26) for i in ids))

    def answer(self, prompt: list[int], max_tokens: int, **params: Any) -> list[int]:
        self.desk.ask("it", prompt, max_tokens, **params)
        self.loop.finish()
        return self.desk.tokens("it")


@pytest.fixture(scope="module")
def plain(decoder: Decoder) -> Callable[..., list[int]]:
    """The answer that a request gets alone, step by step, without graphs and without delay."""
    return lambda prompt, max_tokens, **params: World(decoder, graphs=False, overlap=False).answer(
        prompt, max_tokens, **params
    )


def traffic(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests of all kinds: greedy, sampled with a seed, with log-probabilities, with an end among their tokens."""
    rng = random.Random(seed)
    shared = [rng.randrange(250) for _ in range(9)]
    for number in range(40):
        prompt = shared[: rng.choice([0, 0, 5, 9])] + [rng.randrange(250) for _ in range(rng.randint(1, 14))]
        kind: dict[str, Any] = rng.choice(
            [{"temperature": 1.0, "seed": number}, {"logprobs": 1}, {"eos": range(0, 250, 7)}, *[{}] * 9]
        )
        yield f"{seed}-{number}", {"prompt": prompt, "max_tokens": rng.randint(1, 12), **kind}


def run_traffic(world: World, requests: dict[str, dict[str, Any]], rng: random.Random) -> set[str]:
    """Let them come in at random moments, and drop some; returns who was dropped."""
    dropped: set[str] = set()
    for name, request in requests.items():
        world.desk.ask(name, **request)
        world.loop.turn(rng.choice([0, 1, 1, 2, 5]))
        if rng.random() < 0.15 and world.loop.abort(victim := rng.choice(list(requests))):
            dropped.add(victim)
    world.loop.finish()
    return dropped


@pytest.mark.parametrize("blocks", [64, 9])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_requests_that_join_and_leave_get_what_they_get_alone(decoder, plain, policy, blocks):
    """Nine blocks hold one of the longer sequences and little more, so many are preempted."""
    rng = random.Random(policy)
    world, requests = World(decoder, policy=policy, blocks=blocks), dict(traffic(rng.randrange(1000)))
    dropped = run_traffic(world, requests, rng)
    for name, request in requests.items():
        got, wanted = world.desk.tokens(name), plain(**request)
        assert got == (wanted[: len(got)] if name in dropped else wanted), name
        assert len(world.desk.ends(name)) == 1
        told = [e.logprob is not None for e in world.desk.events(name) if e.token_id is not None]
        assert told == ["logprobs" in request] * len(got)
    assert world.capture.replays > 10
    assert (world.loop.planner.preemptions > 0) == (blocks == 9)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_is_launched_before_the_last_one_is_read(decoder, graphs):
    late, at_once = World(decoder, graphs=graphs), World(decoder, graphs=graphs, overlap=False)
    for world in (late, at_once):
        world.desk.ask("a", [5, 6, 7], 8)
    for turn in range(1, 5):
        late.loop.turn()
        at_once.loop.turn()
        assert (len(late.desk.tokens("a")), len(at_once.desk.tokens("a"))) == (turn - 1, turn)


def test_the_last_tokens_are_read_when_nothing_is_left_to_launch(decoder, plain):
    world = World(decoder)
    assert world.answer([5, 6, 7], 3) == plain([5, 6, 7], 3)
    assert [record.decode_tokens for record in world.loop.counters.steps] == [0, 1, 1]


def test_a_step_too_many_after_an_end_is_computed_and_thrown_away(decoder, plain):
    prompt, tokens = [5, 6, 7], plain([5, 6, 7], 8)
    world = World(decoder)
    world.desk.ask("a", prompt, 8, eos=[tokens[3]])
    world.desk.ask("b", [9, 8], 12)
    world.loop.finish()
    end = tokens.index(tokens[3])
    assert world.desk.tokens("a") == tokens[: end + 1]
    assert world.desk.ends("a") == ["stop"]
    assert world.desk.tokens("b") == plain([9, 8], 12)


def test_nobody_is_computed_beyond_the_tokens_that_were_asked_for(decoder):
    """Else the last position of the context would be followed by one that no table has."""
    world = World(decoder, blocks=2)
    world.desk.ask("a", [1, 2, 3, 4, 5], 4)  # eight positions: two blocks, all that there are
    world.loop.finish()
    assert sum(record.decode_tokens for record in world.loop.counters.steps) == 3
    assert world.loop.planner.preemptions == 0


def test_the_pages_of_an_ended_request_go_to_the_next_at_once(decoder, plain):
    first, second = [5, 6, 7, 1, 2], [9, 8, 7, 6, 5]
    world = World(decoder, blocks=4)  # one of the two at a time
    world.desk.ask("a", first, 9, eos=[plain(first, 9)[4]])
    world.desk.ask("b", second, 9)
    world.loop.finish()
    assert world.desk.tokens("a") == plain(first, 9, eos=[plain(first, 9)[4]])
    assert world.desk.tokens("b") == plain(second, 9)


def test_the_prefix_cache_knows_tokens_that_were_read_late(decoder, plain):
    world, prompt = World(decoder), [5, 6, 7, 8, 9]
    answer = world.answer(prompt, 12)
    again = prompt + answer
    world.desk.ask("again", again, 4)
    world.loop.finish()
    assert world.desk.tokens("again") == plain(again, 4)
    assert world.loop.planner.prefix_hits == (len(again) - 1) // BLOCK_SIZE * BLOCK_SIZE


def test_a_batch_larger_than_every_graph_is_computed_without(decoder, plain):
    world = World(decoder, most=12)
    for i in range(11):
        world.desk.ask(f"{i}", [i + 1, 2, 3], 3 if i < 6 else 9)
    world.loop.finish()
    assert all(world.desk.tokens(f"{i}") == plain([i + 1, 2, 3], 3 if i < 6 else 9) for i in range(11))
    assert 0 < world.capture.replays < 9


def test_a_sampled_row_changes_nothing_for_the_others(decoder, plain):
    """The graph for sampling is captured in the middle, while tokens of the others are in flight."""
    world = World(decoder)
    world.desk.ask("a", [5, 6, 7], 12)
    world.desk.ask("b", [1, 2], 12)
    world.loop.turn(4)
    world.desk.ask("hot", [3, 3], 6, temperature=1.0)
    world.loop.finish()
    assert world.desk.tokens("a") == plain([5, 6, 7], 12)
    assert world.desk.tokens("b") == plain([1, 2], 12)
    assert len(world.desk.tokens("hot")) == 6
    assert world.capture.replays >= 10


def test_a_cold_row_beside_a_hot_one_stays_greedy_and_the_hot_one_is_drawn_fairly():
    torch.manual_seed(3)
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0], [0.0, 1.0, 2.0, -1.0]])
    rows = torch.stack([_drawn(scores, torch.tensor([0.0, 0.7]), scores.argmax(-1)) for _ in range(4000)])
    assert (rows[:, 0] == 2).all()
    share = (scores[1] / 0.7).softmax(-1)
    counts = rows[:, 1].bincount(minlength=4)
    chi_square = ((counts - 4000 * share) ** 2 / (4000 * share)).sum()
    assert chi_square < 16.3  # one in a thousand, with three degrees of freedom
