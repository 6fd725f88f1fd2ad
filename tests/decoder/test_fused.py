"""The fused steps between matrix products, against the same in plain PyTorch."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed; it comes with the extra `kernels`")

from servinglib.decoder.fused import (
    add_rms_norm,
    norm_rope_write,
    silu_mul,
)
from servinglib.errors import InvalidSetting

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
DTYPES = (torch.float32, torch.bfloat16)
KV_HEADS, DIM = 2, 16


def draw(*shape: int, dtype=torch.float32) -> torch.Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape).to(DEVICE, dtype)


def cache(dtype=torch.float32, block_size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Four blocks of keys and of values, NaN everywhere."""
    keys = torch.full((4, KV_HEADS, block_size, DIM), torch.nan, dtype=dtype, device=DEVICE)
    return keys, keys.clone()


def slots(*each: int) -> torch.Tensor:
    return torch.tensor(each, device=DEVICE)


def rows(pages: torch.Tensor) -> torch.Tensor:
    """A layer's keys or values in the order of their slots, (slots, kv_heads, head_dim)."""
    return pages.transpose(1, 2).flatten(0, 1)


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    tolerance = 1e-2 if got.dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(got.float(), wanted.float(), atol=tolerance, rtol=tolerance)


def plain_norm(x: torch.Tensor, eps: float, weight: torch.Tensor | None = None) -> torch.Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], None if weight is None else weight.float(), eps)


def plain_turn(heads: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Each pair of a head, (tokens, heads, dim), times exp(i angle), (tokens, dim / 2)."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 100])
def test_the_norm_without_a_residual_leaves_its_input_alone(hidden, dtype):
    x = draw(3, hidden, dtype=dtype)
    before = x.clone()
    close(add_rms_norm(x, 0.1), plain_norm(x, 0.1))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_with_a_residual_norms_the_sum_and_keeps_it(dtype):
    x, residual = draw(3, 100, dtype=dtype), draw(100, 3, dtype=dtype).T.contiguous()
    total = x + residual
    close(add_rms_norm(x, 1e-6, residual), plain_norm(total, 1e-6))
    close(residual, total)  # which is exact, but for the interpreter's rounding of bfloat16


def test_the_norm_reads_rows_of_a_wider_tensor():
    x = draw(3, 200)[:, 100:]
    close(add_rms_norm(x, 1e-6), plain_norm(x, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("group", [1, 3])
def test_one_launch_norms_turns_and_stores_what_attention_reads(group, normed, dtype):
    tokens, heads, (keys, values) = 3, group * KV_HEADS, cache(dtype)
    qkv = draw(tokens, (heads + 2 * KV_HEADS) * DIM, dtype=dtype)
    q, k, v = qkv.clone().view(tokens, -1, DIM).split([heads, KV_HEADS, KV_HEADS], 1)
    gains = (draw(DIM, dtype=dtype), draw(DIM, dtype=dtype) * 2) if normed else (None, None)
    angles, positions, where = draw(20, DIM // 2), slots(0, 19, 7), slots(9, 31, 0)

    norm_rope_write(qkv, *gains, 1e-6, angles.cos(), angles.sin(), positions, keys, values, where)

    if gains[0] is not None and gains[1] is not None:
        q, k = plain_norm(q, 1e-6, gains[0]), plain_norm(k, 1e-6, gains[1])
    close(qkv.view(tokens, -1, DIM)[:, :heads], plain_turn(q, angles[positions]))
    close(rows(keys)[where], plain_turn(k, angles[positions]))
    assert torch.equal(rows(values)[where], v)
    assert int(rows(keys)[:, 0, 0].isnan().sum()) == 32 - tokens  # nothing else was touched


def test_a_padding_token_is_turned_but_not_stored():
    keys, values = cache()
    angles = draw(4, DIM // 2)
    qkv = draw(2, 6 * DIM)
    norm_rope_write(
        qkv, None, None, 1e-6, angles.cos(), angles.sin(), slots(0, 0), keys, values, slots(-1, -1)
    )
    assert qkv.isfinite().all()
    assert keys.isnan().all()
    assert values.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 1500])
def test_the_gate_is_silu_of_the_first_half(width, dtype):
    gate_up = draw(3, 2 * width, dtype=dtype)
    gate, up = gate_up.float().chunk(2, -1)
    close(silu_mul(gate_up), F.silu(gate) * up)


def test_layouts_that_the_kernels_cannot_read_are_refused():
    keys, values = cache()
    angles, where = draw(4, DIM // 2), slots(0, 0)
    rest = (1e-6, angles, angles, where, keys, values, where)
    with pytest.raises(InvalidSetting, match="does not hold a multiple of 2"):
        norm_rope_write(draw(2, 7 * DIM), None, None, *rest)  # three query heads for two key-value heads
    with pytest.raises(InvalidSetting, match="contiguous rows"):
        norm_rope_write(draw(2, 7 * DIM)[:, DIM:], None, None, *rest)
    with pytest.raises(InvalidSetting, match="or of neither"):
        norm_rope_write(draw(2, 6 * DIM), draw(DIM), None, *rest)
    with pytest.raises(InvalidSetting, match="dense rows"):
        add_rms_norm(draw(8, 3).T, 1e-6)
    with pytest.raises(InvalidSetting, match="residual to be contiguous"):
        add_rms_norm(draw(3, 8), 1e-6, draw(8, 3).T)
    with pytest.raises(InvalidSetting, match="even number"):
        silu_mul(draw(2, 5))
