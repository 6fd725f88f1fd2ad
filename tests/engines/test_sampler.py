from __future__ import annotations

import math

import pytest
import torch

from servinglib.engines.sampler import Sampler, keep_likely
from servinglib.request import SamplingParams

CPU = torch.device("cpu")
PROBABILITIES = [0.4, 0.3, 0.2, 0.1]
SCORES = torch.tensor([PROBABILITIES]).log()


def shares(draws: int = 20_000, **changes: float) -> list[float]:
    """How often each of four tokens is drawn, all rows from one seed each."""
    params = [SamplingParams(**{"temperature": 1.0, "seed": 3, **changes})]  # type: ignore[arg-type]
    sampler = Sampler(params, CPU)
    tokens = torch.cat([sampler.choose(SCORES) for _ in range(draws)])
    return (tokens.bincount(minlength=4) / draws).tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_with_the_model_s_probabilities(temperature: float):
    weights = [p ** (1 / temperature) for p in PROBABILITIES]
    expected = [w / sum(weights) for w in weights]
    # five standard errors of a share of 1/2 over 20,000 draws
    assert shares(temperature=temperature) == pytest.approx(expected, abs=5 * math.sqrt(0.25 / 20_000))


def test_top_k_keeps_the_k_likeliest():
    drawn = shares(2000, top_k=2)
    assert min(drawn[:2]) > 0
    assert drawn[2:] == [0, 0]


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, 1), (0.39, 1), (0.41, 2), (0.71, 3), (0.95, 4)])
def test_top_p_keeps_the_fewest_tokens_that_have_that_probability(top_p: float, kept: int):
    drawn = shares(2000, top_p=top_p)
    assert [share > 0 for share in drawn] == [True] * kept + [False] * (4 - kept)


def test_top_p_applies_to_what_top_k_left():
    # Of the two likeliest, renormalised to 4/7 and 3/7, the first alone has p = 0.5.
    kept = keep_likely(SCORES, torch.tensor([[2]]), torch.tensor([[0.5]]))
    assert kept.isfinite().tolist() == [[True, False, False, False]]


def test_each_row_is_filtered_by_its_own_rule():
    scores = torch.tensor([[0.1, 0.4, 0.3, 0.2]] * 3).log()
    kept = keep_likely(scores, torch.tensor([[1], [4], [3]]), torch.tensor([[1.0], [0.5], [1.0]]))
    assert kept.isfinite().tolist() == [
        [False, True, False, False],
        [False, True, True, False],
        [False, True, True, True],
    ]


def test_greedy_and_sampled_rows_stand_side_by_side():
    params = [SamplingParams(), SamplingParams(temperature=1.0, seed=1), SamplingParams()]
    sampler = Sampler(params, CPU)
    draws = torch.stack([sampler.choose(SCORES.repeat(3, 1)) for _ in range(50)])
    assert draws[:, 0].unique().tolist() == draws[:, 2].unique().tolist() == [0]
    assert len(draws[:, 1].unique()) > 1


def test_a_row_s_draws_depend_on_its_seed_alone():
    mine = SamplingParams(temperature=1.0, seed=5)
    crowd = [SamplingParams(temperature=0.7, seed=8), mine, SamplingParams(temperature=1.0)]
    alone, crowded = Sampler([mine], CPU), Sampler(crowd, CPU)
    scores = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    first = [int(alone.choose(scores[1:2])[0]) for _ in range(30)]
    second = [int(crowded.choose(scores)[1]) for _ in range(30)]
    assert first == second
    assert len(set(first)) > 5


def test_without_a_seed_two_samplers_differ():
    params = SamplingParams(temperature=1.0)
    scores = torch.zeros(1, 10_000)
    one, two = (
        [int(s.choose(scores)) for _ in range(4)] for s in (Sampler([params], CPU), Sampler([params], CPU))
    )
    assert one != two


def test_any_integer_is_a_seed():
    for seed in (-1, 2**80):
        Sampler([SamplingParams(temperature=1.0, seed=seed)], CPU).choose(SCORES)
