"""Guesses change no distribution, and a seed repeats its answer in any company."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from scipy.stats import chi2
from tiny_models import save_model

from servinglib.decoder.step import Proposal
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.continuous.speculative import accept_greedy, accept_sampled
from servinglib.engines.sampler import race
from servinglib.request import Completion, Request, SamplingParams

FALSE_ALARM = 1e-4
"""How probable it is that a right sampler fails one of these tests; the seed being fixed, it never does by turns."""

P = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.5, 0.0]])
Q = torch.tensor([[0.2, 0.2, 0.2, 0.4], [0.4, 0.3, 0.2, 0.1]])


def fits(counts: Sequence[int], probabilities: Sequence[float]) -> bool:
    """Pearson's chi-square test."""
    draws = sum(counts)
    assert all(p > 0 or n == 0 for n, p in zip(counts, probabilities, strict=True)), "an impossible token"
    cells = [(n, draws * p) for n, p in zip(counts, probabilities, strict=True) if p > 0]
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    return bool(statistic < chi2.isf(FALSE_ALARM, len(cells) - 1))


def continued(tokens: list[int], generator: torch.Generator) -> tuple[int, ...]:
    """The first three tokens: those of the step, and where it ended early, draws as later steps make them."""
    while len(tokens) < 3:
        tokens = [*tokens, int(race(P[len(tokens)][None], [generator]))]
    return tuple(tokens)


@pytest.mark.parametrize("sure", [False, True], ids=["a draft model", "prompt lookup"])
def test_guesses_do_not_change_the_distribution_of_what_is_sampled(sure: bool):
    generator = torch.Generator().manual_seed(11)
    draws: Counter[tuple[int, ...]] = Counter()
    for _ in range(20_000):
        drawn = Proposal([int(race(row[None], [generator])) for row in Q], Q)
        proposal = Proposal([2, 3]) if sure else drawn
        draws[continued(accept_sampled(proposal, P, generator), generator)] += 1
    whole = list(product(range(4), repeat=3))
    target = [float(P[0, a] * P[1, b] * P[2, c]) for a, b, c in whole]
    assert fits([draws[tokens] for tokens in whole], target)


def test_a_guesser_that_is_as_good_as_the_model_is_always_right():
    generator = torch.Generator().manual_seed(3)
    for _ in range(300):
        guesses = [int(race(row[None], [generator])) for row in P[:2]]
        assert accept_sampled(Proposal(guesses, P[:2]), P, generator)[:2] == guesses


def test_a_guess_that_the_model_would_never_make_is_never_kept():
    generator = torch.Generator().manual_seed(3)
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert all(accept_sampled(Proposal([2]), p, generator)[0] != 2 for _ in range(300))


@pytest.mark.parametrize(
    ("guesses", "kept"), [([7, 8], [7, 8, 9]), ([7, 1], [7, 8]), ([1, 8], [7]), ([], [7])]
)
def test_greedy_keeps_guesses_up_to_the_first_wrong_one_and_adds_its_own(guesses: list[int], kept: list[int]):
    assert accept_greedy(guesses, [7, 8, 9][: len(guesses) + 1]) == kept


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    mild = {"initializer_range": 0.1, "varied": True}  # probabilities neither near 0 nor near 1
    return {name: save_model(name, tmp_path_factory.mktemp(name), **mild) for name in ("qwen3", "llama")}


def load(models: dict[str, str], **options: object) -> ContinuousEngine:
    usual = {"device": "cpu", "dtype": "float32", "threads": 1, "kv_cache_memory": "8MiB"}
    return ContinuousEngine.load(models["qwen3"], **{**usual, **options})


def pairs(engine: ContinuousEngine, count: int) -> Counter[tuple[int, ...]]:
    """How often each pair follows the first token, with a narrow choice of tokens."""
    params = SamplingParams(max_tokens=3, temperature=1.0, top_k=3, ignore_eos=True)
    asked = [Request(str(i), [5, 6, 7, 5, 6, 7, 5, 6], params.updated(seed=i)) for i in range(count)]
    answers = [a for a in engine.generate_batch(asked) if isinstance(a, Completion)]
    assert len(answers) == count
    return Counter(a.token_ids for a in answers)


@pytest.mark.parametrize("speculative", ["prompt-lookup", "llama", "guesses"])
def test_an_engine_that_guesses_samples_like_one_that_does_not(models: dict[str, str], speculative: str):
    """A two-sample chi-square test over the answers of 3 tokens, the rare ones together."""

    def likely(tokens: list[int], count: int) -> list[int]:
        return [common[len(tokens) - 8]] * count

    with load(models) as plain:
        expected = pairs(plain, 1500)
    common = expected.most_common(1)[0][0]
    chosen = {"prompt-lookup": "prompt-lookup", "guesses": likely, "llama": models["llama"]}[speculative]
    with load(models, speculative=chosen, draft_tokens=2) as engine:
        found = pairs(engine, 1500)
        if speculative != "prompt-lookup":
            assert engine._loop.counters.accepted > 100
            assert engine._loop.counters.accepted < engine._loop.counters.drafted
    often = [tokens for tokens, n in (expected + found).items() if n >= 20]
    assert len(often) > 4
    cells = [(expected[t], found[t]) for t in often]
    rest = 1500 - sum(n for n, _ in cells), 1500 - sum(n for _, n in cells)
    cells += [rest] if sum(rest) else []
    statistic = sum((a - b) ** 2 / (a + b) for a, b in cells)
    assert statistic < chi2.isf(FALSE_ALARM, len(cells) - 1)


@pytest.mark.parametrize("options", [{}, {"speculative": "prompt-lookup"}], ids=["plain", "guessing"])
def test_a_seed_repeats_its_answers_whatever_else_is_in_the_batch(models: dict[str, str], options: dict):
    mine = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=5, ignore_eos=True)
    with load(models, **options) as engine:
        [alone] = engine.generate([[3, 4, 5]], mine)
        crowd = [
            Request(f"other {i}", [9 + i] * (7 * i + 1), mine.updated(seed=i, temperature=0.3 * i))
            for i in range(6)
        ]
        answers = engine.generate_batch([*crowd, Request("mine", [3, 4, 5], mine)])
        assert answers[-1].token_ids == alone.token_ids  # type: ignore[union-attr]


def test_a_seed_repeats_its_answers_even_if_they_are_preempted_and_come_back(models: dict[str, str]):
    params = SamplingParams(max_tokens=30, temperature=1.0, ignore_eos=True)
    asked = [Request(str(i), [3 + i] * 20, params.updated(seed=i)) for i in range(4)]
    with load(models) as roomy:
        alone = [roomy.generate([r.prompt], r.params)[0].token_ids for r in asked]
        budget = 112 * roomy.memory.bytes_per_token
    with load(models, kv_cache_memory=budget) as cramped:
        answers = cramped.generate_batch(asked)
        assert cramped.statistics.num_preemptions > 0
    assert [a.token_ids for a in answers] == alone  # type: ignore[union-attr]
