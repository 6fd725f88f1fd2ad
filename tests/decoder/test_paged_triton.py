"""The GPU's attention in the whole engine: interpreted on a CPU, compiled where there is a GPU."""

from __future__ import annotations

import gc
import os
import random
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; it comes with the extra `kernels`")

from tiny_models import save_model

from servinglib.cache.block_pool import BlockPool
from servinglib.decoder.paged_triton import Seats
from servinglib.decoder.pages import Span
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.transformers_engine import TransformersEngine
from servinglib.errors import InvalidSetting, UnknownName
from servinglib.policies.sequence import SequenceState

ON_CPU = os.environ["TRITON_INTERPRET"] == "1"
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
PROMPTS = [[9, 8, 7, 6, 5, 4, 3, 2, 1, 9, 9, 8], [5, 6, 7], [11]]


@pytest.fixture(scope="module", params=["qwen3", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Norms of heads in the one, biases in the other."""
    return save_model(request.param, tmp_path_factory.mktemp(request.param), varied=True, **SMALL)


@pytest.fixture(scope="module")
def truth(model: str) -> list[tuple[int, ...]]:
    with TransformersEngine.load(model, dtype="float32") as engine:
        return [engine.generate([prompt], max_tokens=6, ignore_eos=True)[0].token_ids for prompt in PROMPTS]


def load(model: str, **options: Any) -> ContinuousEngine:
    fixed = {"attention": "triton", "dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 8}
    return ContinuousEngine.load(model, **{**fixed, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"overlap": True},
        {"overlap": False, "block_size": 4, "kv_cache_memory": 6 * 4 * 2 * 16 * 4},
    ],
    ids=["late tokens", "preemption"],
)
def test_answers_are_those_of_transformers(model, truth, options):
    """Prompts come in pieces of eight tokens; in the second case six small pages hold only one of them at a time."""
    with load(model, **options) as engine:
        answers = engine.generate(PROMPTS, max_tokens=6, ignore_eos=True)
        assert [a.token_ids for a in answers] == truth
        assert isinstance(engine, ContinuousEngine)
        assert (engine.statistics.num_preemptions > 0) == ("block_size" in options)


def test_a_prefix_hit_and_guesses_change_nothing(model, truth):
    """The guesser knows the answer and errs at every third token."""
    full = PROMPTS[0] + list(truth[0])

    def guess(tokens: list[int], count: int) -> list[int]:
        return [t if (i + len(tokens)) % 3 else 0 for i, t in enumerate(full[len(tokens) :][:count])]

    with load(model, block_size=4, speculative=guess, draft_tokens=5) as engine:
        first, again = (
            engine.generate([PROMPTS[0]], max_tokens=6, ignore_eos=True)[0].token_ids for _ in "ab"
        )
        assert first == again == truth[0]
        assert isinstance(engine, ContinuousEngine)
        assert engine.statistics.prefix_cache_hits == 8
        assert 0 < (engine.statistics.draft_acceptance or 0) < 1


def test_a_request_for_logprobs_beside_others_gets_them_late(model):
    with load(model, overlap=True) as late, load(model, overlap=False) as plain:
        answers = [e.generate([PROMPTS[1]], max_tokens=3, logprobs=2)[0].logprobs for e in (late, plain)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3


def test_an_engine_that_is_shut_down_keeps_no_pages(model):
    engine = load(model)
    pages = weakref.ref(engine._loop._runner.attention)
    engine.shutdown()
    gc.collect()
    assert pages() is None


class Holder:
    """Sequences that hold blocks of a pool, as a planner lets them."""

    def __init__(self, block_size: int) -> None:
        self.pool = BlockPool(200, block_size)

    def new(self, tokens: int) -> SequenceState:
        sequence = SequenceState(None, tokens, 100)
        assert sequence.grow(self.pool, tokens)
        sequence.advance(self.pool, tokens)
        return sequence


def check_seats(seats: Seats, spans: list[Span], block_size: int) -> None:
    ordered = seats.take(spans)
    assert sorted(map(id, ordered)) == sorted(map(id, spans))
    for row, span in zip(seats.tables.tolist(), ordered, strict=False):
        needed = -(-span.end // block_size)
        assert row[:needed] == span.sequence.blocks[:needed]


@pytest.mark.parametrize("block_size", [1, 2, 5])
def test_the_block_table_follows_sequences_that_come_go_and_grow(block_size):
    rng, holder = random.Random(block_size), Holder(block_size)
    seats = Seats(8, 120, block_size, torch.device("cpu"))
    running: list[SequenceState] = []
    for _ in range(200):
        if len(running) < 8 and rng.random() < 0.5:
            running.append(holder.new(rng.randint(1, 9)))
        if running and rng.random() < 0.2:
            gone = running.pop(rng.randrange(len(running)))
            gone.release(holder.pool)
            seats.leave(gone)
        batch = [s for s in running if rng.random() < 0.9]
        for sequence in batch:
            assert sequence.grow(holder.pool, rng.choice([1, 1, 4]))  # room for guesses, some of the time
        spans = [Span(s, s.num_computed_tokens, s.num_computed_tokens + 1) for s in batch]
        check_seats(seats, spans, block_size)
        for sequence in batch:
            sequence.advance(holder.pool, 1)
            sequence.shrink(holder.pool)
        for sequence in [s for s in running if s.num_computed_tokens > 20]:
            running.remove(sequence)
            sequence.release(holder.pool)
            seats.leave(sequence)


def test_a_page_that_was_given_back_with_its_guesses_is_not_looked_for_again():
    """A draft model writes beyond the accepted tokens, and gets another page there the next time."""
    holder, seats = Holder(2), Seats(4, 10, 2, torch.device("cpu"))
    one, other = holder.new(3), holder.new(2)
    for _ in range(3):
        assert one.grow(holder.pool, 3)
        check_seats(seats, [Span(one, 3, 6)], 2)
        one.shrink(holder.pool)
        assert other.grow(holder.pool, 1)  # takes the page that was free
        other.advance(holder.pool, 1)
        other.advance(holder.pool, 1)


def test_a_batch_that_stays_sends_nothing_until_a_page_is_full():
    holder, seats = Holder(4), Seats(4, 10, 4, torch.device("cpu"))
    sequence, sent = holder.new(4), []
    for _ in range(9):
        assert sequence.grow(holder.pool, 1)
        before = seats.tables.clone()
        seats.tables.fill_(-1)
        seats.take([Span(sequence, sequence.num_computed_tokens, sequence.num_computed_tokens + 1)])
        sent.append(bool((seats.tables >= 0).any()))
        seats.tables.copy_(torch.where(seats.tables < 0, before, seats.tables))
        sequence.advance(holder.pool, 1)
    assert sent == [True, False, False, False, True, False, False, False, True]


def test_settings_that_cannot_be_had_are_refused_before_weights_are_read(tmp_path: Path, model: str):
    with pytest.raises(UnknownName, match="flash"):
        load(model, attention="flash")
    with pytest.raises(InvalidSetting, match="leave one of the two out"):
        load(model, overlap=True, speculative="prompt-lookup")
    with pytest.raises(InvalidSetting, match="overlap=True needs attention='triton'"):
        load(model, attention="torch", overlap=True)
    if ON_CPU:
        with pytest.raises(InvalidSetting, match="graphs=True needs attention='triton' on a GPU"):
            load(model, graphs=True)
    odd = save_model("llama", tmp_path, **{**SMALL, "head_dim": 24})
    with pytest.raises(InvalidSetting, match="use the torch attention"):
        load(odd)
