"""Token for token what `generate()` of transformers says: every family, and every way through the engine.

Float32 on a CPU, greedy. The engine is stepped by hand, so that requests join and leave where the test
says; after each step all blocks must add up.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numba
import pytest
import torch
from scripted import Desk, SteppedLoop
from tiny_models import save_model

from servinglib.engines.continuous import loading
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.policies.scheduling import POLICIES

TOKENS = 24
"""Length of an answer."""
LENGTHS = (1, 5, 16, 17, 33, 33, 40, 64)
"""Of the prompts: below, at and behind the borders of blocks, two alike, one of whole blocks."""

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama with llama3 ropes": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "tie_word_embeddings": True,
        },
    ),
    "llama with linear ropes and biases": (
        "llama",
        {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "llama with yarn ropes": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "num_key_value_heads": 4,
        },
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False, "head_dim": 32}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
}


class Reference:
    """A checkpoint, and what transformers makes of it."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM

        self.folder = folder
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._answers: dict[tuple[int, ...], list[int]] = {}

    def answer(self, prompt: Sequence[int]) -> list[int]:
        """`TOKENS` tokens of `generate()`, the prompt alone."""
        key = tuple(prompt)
        if key not in self._answers:
            ids = torch.tensor([key])
            mask = torch.ones_like(ids)
            with torch.inference_mode():
                whole = self._model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS)
            self._answers[key] = whole[0, len(key) :].tolist()
            assert len(self._answers[key]) == TOKENS
        return self._answers[key]


@pytest.fixture(scope="module")
def reference_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    known: dict[str, Reference] = {}

    def get(family: str) -> Reference:
        if family not in known:
            architecture, changes = FAMILIES[family]
            folder = tmp_path_factory.mktemp("family")
            # Without an end token, which generate() would obey.
            known[family] = Reference(
                save_model(architecture, folder, varied=True, eos_token_id=None, **changes)
            )
        return known[family]

    return get


@pytest.fixture(params=["llama with llama3 ropes", "qwen2 tied", "qwen3"])
def reference(request: pytest.FixtureRequest, reference_of: Callable[[str], Reference]) -> Reference:
    """One of each architecture."""
    return reference_of(request.param)


@pytest.fixture
def qwen3(reference_of: Callable[[str], Reference]) -> Reference:
    return reference_of("qwen3")


@pytest.fixture(autouse=True, params=["numba", "torch"])
def _step_by_hand(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test, with every attention that a CPU has."""
    monkeypatch.setattr(loading, "EngineLoop", SteppedLoop)
    monkeypatch.setattr(Table, "attention", request.param)
    numba.set_num_threads(1)  # of this thread, which steps; the engine sets its own


def prompts(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    chance = torch.Generator().manual_seed(3)
    return [torch.randint(1, 250, (n,), generator=chance).tolist() for n in lengths]


class Table:
    """An engine that is stepped by hand, with a desk in front of it, and the reference beside it."""

    attention = "auto"

    def __init__(self, reference: Reference, tokens: int | None = None, **options: Any) -> None:
        self.reference = reference
        usual: dict[str, Any] = {
            "device": "cpu",
            "dtype": "float32",
            "threads": 1,
            "attention": self.attention,
        }
        usual["kv_cache_memory"] = 1 << 24
        engine = ContinuousEngine.load(reference.folder, **{**usual, **options})
        if tokens is not None:  # a pool of so many tokens and no more
            budget = tokens * engine.memory.bytes_per_token
            engine = ContinuousEngine.load(
                reference.folder, **{**usual, **options, "kv_cache_memory": budget}
            )
            assert engine.memory.kv_tokens == tokens
        self.engine = engine
        self.loop: SteppedLoop = engine._loop  # type: ignore[assignment]
        self.desk = Desk(self.loop, engine.decode)
        self.asked: dict[str, tuple[list[int], int]] = {}

    def ask(self, prompt: Sequence[int], max_tokens: int = TOKENS, **more: Any) -> None:
        name = str(len(self.asked))
        self.asked[name] = (list(prompt), max_tokens)
        self.desk.ask(name, prompt, max_tokens, arrival=float(name), **more)

    def check(self, choices: int = 1) -> None:
        """Finish, and compare all answers."""
        self.loop.finish()
        for name, (prompt, count) in self.asked.items():
            for choice in range(choices):
                told = self.desk.tokens(name, choice)
                assert told == self.reference.answer(prompt)[:count], f"request {name}, answer {choice}"

    @property
    def preemptions(self) -> int:
        return self.loop.planner.preemptions


def test_the_answers_compared_here_are_no_monotony(reference: Reference):
    answers = [reference.answer(prompt) for prompt in prompts()]
    assert len({tuple(answer) for answer in answers}) == len(answers)
    assert min(len(set(answer)) for answer in answers) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_alone_and_in_a_batch(family: str, reference_of: Callable[[str], Reference]):
    table = Table(reference_of(family))
    for prompt in prompts():
        table.ask(prompt)
        table.loop.finish()
    for prompt in prompts():
        table.ask(prompt[::-1])
    table.check()


def test_requests_join_and_leave_at_different_steps(reference: Reference):
    table = Table(reference)
    for i, prompt in enumerate(prompts()):
        table.ask(prompt, TOKENS - 3 * (i % 4))
        table.loop.turn(1 + i % 3)
    assert len(table.loop.planner.running) > 4
    table.check()


@pytest.mark.parametrize("budget", [3, 16, 50])
def test_prompts_are_read_in_chunks(reference: Reference, budget: int):
    table = Table(reference, max_num_batched_tokens=max(4, budget), max_prefill_tokens=budget, max_num_seqs=4)
    for prompt in prompts():
        table.ask(prompt)
        table.loop.turn()
    table.check()
    assert budget / 2 < max(s.prefill_tokens for s in table.engine.steps) <= budget


@pytest.mark.parametrize("caching", [True, False])
def test_sequences_are_preempted_and_come_back(reference: Reference, caching: bool):
    table = Table(reference, tokens=112, prefix_caching=caching)
    for prompt in prompts():
        table.ask(prompt)
        table.loop.turn(2)
    table.check()
    assert table.preemptions > 0


def test_a_beginning_that_was_read_before_is_not_read_again(reference: Reference):
    table = Table(reference)
    long = prompts([64])[0]
    table.ask(long)
    table.loop.turn(3)
    table.ask([*long[:40], 7, 8, 9])  # while the first runs
    table.loop.finish()
    table.ask([*long[:50], 5])  # when all have left
    table.check()
    assert table.loop.planner.prefix_hits == 32 + 48


def test_a_prompt_that_was_read_before_is_found_whole(reference: Reference):
    table = Table(reference)
    for prompt in prompts([64, 33, 64]):
        for _ in range(3):
            table.ask(prompt)
            table.loop.turn(2)
    table.check()
    assert table.loop.planner.prefix_hits == 2 * (48 + 32 + 48)


def test_an_answer_that_becomes_a_prompt_is_found_too(qwen3: Reference):
    table = Table(qwen3)
    [prompt] = prompts([33])
    table.ask(prompt)
    table.loop.finish()
    table.ask([*prompt, *qwen3.answer(prompt)][:50])
    table.check()
    assert table.loop.planner.prefix_hits == 48


@pytest.mark.parametrize("policy", POLICIES)
def test_under_every_policy(qwen3: Reference, policy: str):
    table = Table(qwen3, tokens=192, policy=policy, max_num_batched_tokens=24, max_num_seqs=5)
    for i, prompt in enumerate(prompts()):
        table.ask(prompt, priority=i % 3)
        table.loop.turn(2)
    table.check()
    assert table.preemptions > 0


@pytest.mark.parametrize("block_size", [1, 8, 16, 64])
def test_with_every_size_of_block(qwen3: Reference, block_size: int):
    table = Table(qwen3, tokens=192, block_size=block_size)
    for prompt in prompts():
        table.ask(prompt)
        table.ask(prompt)
        table.loop.turn()
    table.check()
    assert table.preemptions > 0


def liar(tokens: list[int], count: int) -> list[int]:
    """Guesses that are nearly always wrong."""
    return [(tokens[-1] + i) % 250 for i in range(count)]


class Prophet:
    """Guesses the first so many tokens rightly, and then one wrongly."""

    def __init__(self, reference: Reference) -> None:
        self._whole = [[*p, *reference.answer(p)] for p in prompts()]

    def __call__(self, tokens: list[int], count: int) -> list[int]:
        [whole] = [w for w in self._whole if w[: len(tokens)] == tokens][:1]
        right = len(tokens) % (count + 1)
        guesses = whole[len(tokens) : len(tokens) + count]
        return [g if i < right else (g + 1) % 250 for i, g in enumerate(guesses)]


@pytest.mark.parametrize("guesser", ["prompt-lookup", "liar", "prophet", "draft model", "itself"])
def test_guesses_change_no_answer(
    reference: Reference, guesser: str, reference_of: Callable[[str], Reference]
):
    """With chunks, preemption, shared beginnings and guesses of every quality, all at once."""
    guessers = {
        "prompt-lookup": "prompt-lookup",
        "liar": liar,
        "prophet": Prophet(reference),
        "draft model": reference_of("llama").folder,
        "itself": reference.folder,
    }
    table = Table(
        reference,
        tokens=208,
        speculative=guessers[guesser],
        draft_tokens=3,
        max_num_batched_tokens=24,
        max_num_seqs=6,
    )
    for prompt in prompts():
        table.ask(prompt)
        table.loop.turn(2)
        table.ask(prompt, TOKENS - 5)
    table.check()
    counters = table.loop.counters
    assert table.preemptions > 0
    assert counters.drafted > 0
    if guesser in ("prophet", "itself"):
        assert counters.accepted > 0.4 * counters.drafted
    assert counters.generation_tokens == sum(count for _, count in table.asked.values())


@pytest.mark.parametrize("guesser", [None, "prompt-lookup", "itself"])
def test_nothing_is_kept_of_a_request_that_has_ended(qwen3: Reference, guesser: str | None):
    table = Table(qwen3, speculative=qwen3.folder if guesser == "itself" else guesser)
    table.ask(prompts()[4])
    table.loop.turn(4)
    choice = weakref.ref(table.loop.planner.running[0].item)
    table.loop.finish()
    table.ask(prompts()[1])  # the last step's sequences may be remembered until the next
    table.check()
    gc.collect()
    assert choice() is None


def test_several_answers_share_a_prompt_and_each_is_its_own(qwen3: Reference):
    """At a temperature near zero each answer is the greedy one."""
    table = Table(qwen3, tokens=208)
    for prompt in prompts([33, 40]):
        table.ask(prompt, n=4, temperature=1e-6)
    table.check(choices=4)


@pytest.mark.parametrize("_step_by_hand", ["triton"], indirect=True)
@pytest.mark.parametrize("overlap", [False, True])
def test_with_the_kernels_of_a_gpu(qwen3: Reference, overlap: bool):
    """Interpreted on a CPU; with and without a step in flight while the next one is planned."""
    if torch.cuda.is_available():
        pytest.skip("where there is a GPU, the kernels are compiled for it and do not run on a CPU")
    table = Table(qwen3, tokens=80, overlap=overlap, max_num_batched_tokens=24, max_num_seqs=3)
    for prompt in prompts([5, 33, 33]):
        table.ask(prompt, 9)
        table.loop.turn(2)
    table.check()
    assert table.preemptions > 0
