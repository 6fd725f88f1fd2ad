"""`greedy` looks at bit patterns; what it finds is what argmax finds."""

from __future__ import annotations

import pytest
import torch

from servinglib.engines.sampler import choose, greedy
from servinglib.request import SamplingParams

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0], ids=["all negative", "mixed", "all positive"])
def test_the_likeliest_token_is_found(dtype: torch.dtype, shift: float):
    scores = torch.randn(50, 333, generator=torch.Generator().manual_seed(1)) * 5 + shift
    scores = scores.to(dtype)  # which makes equals of neighbours
    assert greedy(scores).tolist() == scores.argmax(-1).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("row", "first"),
    [
        ([1.0, 3.0, 3.0], 1),
        ([-2.0, -1.0, -1.0], 1),
        ([-1.0, -0.0, -2.0], 1),
        ([-1.0, 0.0, -2.0], 1),
        ([-0.0, 0.0, -1.0], 0),
        ([-1.0, 0.0, -0.0], 1),
        ([-torch.inf, -5.0, -torch.inf], 1),
        ([0.0, torch.inf, 1.0], 1),
        ([-3.0, 1e-5, 0.0], 1),
    ],
)
def test_of_equals_the_first_is_taken_whatever_their_sign(dtype: torch.dtype, row: list[float], first: int):
    other = [1.0, 2.0, 3.0]
    scores = torch.tensor([other, row, other], dtype=dtype)
    assert greedy(scores).tolist() == [2, first, 2] == scores.argmax(-1).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart_in_memory(dtype: torch.dtype):
    scores = torch.randn(40, 20, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert greedy(scores.T).tolist() == scores.T.argmax(-1).tolist()
    assert greedy(scores[:, ::2]).tolist() == scores[:, ::2].argmax(-1).tolist()


def test_a_greedy_row_beside_a_sampled_one_is_greedy():
    scores = torch.tensor([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]])
    sampled = SamplingParams(temperature=1e-3)
    generator = torch.Generator().manual_seed(0)
    rows = [(SamplingParams(), None), (sampled, generator), (SamplingParams(), None)]
    assert choose(scores, rows).tolist() == [1, 0, 1]
