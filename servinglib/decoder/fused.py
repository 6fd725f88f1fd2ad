"""The small steps between a layer's matrix products, fused: each number is fetched once and put back once.

A cook who washes, peels and cuts a carrot while it is in the hand walks to the larder once; one who
does each chore for the whole basket walks three times. Normalising, rotating and storing keys is
almost no arithmetic and all walking, and on a GPU each chore is also a kernel launch of microseconds,
paid in every layer of every step. So these three functions do what lies between two matrix products in
one launch each. Arithmetic is float32 throughout, whatever the dtype; the result is rounded once.

Like the attention beside it (`kernels`), every launch grid follows from shapes alone, so a CUDA graph
can hold it, and Triton's interpreter runs it on a CPU.
"""

# A launch gives plain numbers for a kernel's constexpr parameters, and options that it doesn't name.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl

from servinglib.decoder.kernels import check_cache
from servinglib.errors import InvalidSetting

SILU_WIDTH = 1024  # numbers of a row per program


def add_rms_norm(x: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """RMS norm of x, or of residual + x, which then becomes the residual; its gains are in the next matrix.

    Parameters
    ----------
    x : Tensor, (tokens, hidden)
        What the last sublayer returned.
    eps : float
        Added to the mean square.
    residual : Tensor, (tokens, hidden), contiguous, optional
        The stream beside the sublayers; changed in place to residual + x, rounded to its dtype first.

    Returns
    -------
    Tensor, (tokens, hidden)
    """
    tokens, hidden = x.shape
    if x.stride(1) != 1 or (residual is not None and not residual.is_contiguous()):
        raise InvalidSetting(f"x needs dense rows and residual to be contiguous; x has strides {x.stride()}")
    out = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
    _norm_kernel[(tokens,)](
        x, out if residual is None else residual, out, eps, x.stride(0), HIDDEN=hidden,
        ADD=residual is not None, WIDTH=triton.next_power_of_2(hidden),
    )  # fmt: skip
    return out


@triton.jit
def _norm_kernel(x, residual, out, eps, stride, HIDDEN: tl.constexpr, ADD: tl.constexpr, WIDTH: tl.constexpr):
    token, column = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    real = column < HIDDEN
    row = tl.load(x + token * stride + column, mask=real, other=0.0)
    if ADD:
        place = residual + token * HIDDEN + column
        row = (row.to(tl.float32) + tl.load(place, mask=real, other=0.0).to(tl.float32)).to(row.dtype)
        tl.store(place, row, mask=real)
    row = row.to(tl.float32)
    scale = tl.rsqrt(tl.sum(row * row, 0) / HIDDEN + eps)
    tl.store(out + token * HIDDEN + column, (row * scale).to(out.dtype.element_ty), mask=real)


def norm_rope_write(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """From the fused projection to what attention reads: queries in place, keys and values in the cache.

    Each query and key head is normalised (where there are weights), then rotated by its position:
    dimension 2d turns with 2d + 1, for weights whose rows were reordered so (`model.Weights.tensor`).

    Parameters
    ----------
    qkv : Tensor, (tokens, (heads + 2 * kv_heads) * head_dim), contiguous
        Heads of queries, then of keys, then of values. The query part is changed in place; the
        key and value parts stay as they are.
    q_weight, k_weight : Tensor, (head_dim,), or None for both
        Of the RMS norm per head (Qwen3).
    eps : float
        Of that norm.
    cos, sin : Tensor, (max_positions, head_dim // 2), float32
        The rotation's table, a column per pair of dimensions that turn together.
    positions : Tensor, (tokens,), integers
    keys, values : Tensor, (num_blocks, kv_heads, block_size, head_dim)
        The cache of a layer, changed in place.
    slots : Tensor, (tokens,), int64
        `block * block_size + offset` of each token; -1 for a padding token, which writes nothing.
    """
    kv_heads, block_size, dim = check_cache(keys, values)
    heads = qkv.shape[1] // dim - 2 * kv_heads
    if qkv.shape[1] % dim or heads <= 0 or heads % kv_heads or not qkv.is_contiguous():
        raise InvalidSetting(
            f"qkv of shape {tuple(qkv.shape)}, strides {qkv.stride()}, does not hold a multiple of {kv_heads} "
            f"query heads and twice {kv_heads} heads of {dim} in contiguous rows"
        )
    if (q_weight is None) != (k_weight is None):
        raise InvalidSetting("give the norm weights of both queries and keys, or of neither")
    group = heads // kv_heads
    _rope_kernel[(qkv.shape[0], kv_heads)](
        qkv, q_weight, k_weight, eps, cos, sin, positions, keys, values, slots, NORM=q_weight is not None,
        GROUP=group, ROWS=triton.next_power_of_2(group), KV_HEADS=kv_heads, BLOCK_SIZE=block_size, DIM=dim,
        num_warps=1 if group * dim <= 512 else 4,
    )  # fmt: skip


@triton.jit
def _turn(head, weight, at, real, eps, cos, sin, NORM: tl.constexpr, DIM: tl.constexpr):
    """Norm and rotation of heads, (rows, DIM): both partners of each pair, (rows, DIM // 2) each."""
    left = tl.load(head + at, mask=real, other=0.0).to(tl.float32)
    right = tl.load(head + at + 1, mask=real, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(left * left, 1) + tl.sum(right * right, 1)
        scale = tl.rsqrt(square / DIM + eps)[:, None]
        left = left * scale * tl.load(weight + at).to(tl.float32)
        right = right * scale * tl.load(weight + at + 1).to(tl.float32)
    return left * cos - right * sin, right * cos + left * sin


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rope_kernel(
    qkv, q_weight, k_weight, eps, cos, sin, positions, keys, values, slots,
    NORM: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    token, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pair = tl.arange(0, DIM // 2)[None, :]
    at = pair * 2
    angle = tl.load(positions + token).to(tl.int64) * (DIM // 2) + pair
    cosine, sine = tl.load(cos + angle), tl.load(sin + angle)
    first = qkv + token * ((GROUP + 2) * KV_HEADS * DIM)

    row = tl.arange(0, ROWS)[:, None]
    real = (row < GROUP) & (pair < DIM // 2)
    heads = first + (kv_head * GROUP + row) * DIM
    left, right = _turn(heads, q_weight, at, real, eps, cosine, sine, NORM, DIM)
    tl.store(heads + at, left.to(qkv.dtype.element_ty), mask=real)
    tl.store(heads + at + 1, right.to(qkv.dtype.element_ty), mask=real)

    slot = tl.load(slots + token)
    if slot >= 0:
        target = ((slot // BLOCK_SIZE * KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE) * DIM + at
        head = first + (GROUP * KV_HEADS + kv_head) * DIM
        one, other = _turn(head, k_weight, at, pair < DIM // 2, eps, cosine, sine, NORM, DIM)
        tl.store(keys + target, one.to(keys.dtype.element_ty))
        tl.store(keys + target + 1, other.to(keys.dtype.element_ty))
        value = head + KV_HEADS * DIM
        tl.store(values + target, tl.load(value + at))
        tl.store(values + target + 1, tl.load(value + at + 1))


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, (tokens, width), of the fused projection, (tokens, 2 * width), gate first."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    if gate_up.shape[1] % 2 or gate_up.stride(1) != 1:
        raise InvalidSetting(
            f"gate_up must be an even number of dense columns, got shape {tuple(gate_up.shape)} "
            f"with strides {gate_up.stride()}"
        )
    out = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    _silu_kernel[(tokens, triton.cdiv(width, SILU_WIDTH))](gate_up, out, gate_up.stride(0), width, SILU_WIDTH)
    return out


@triton.jit
def _silu_kernel(gate_up, out, stride, width, WIDTH: tl.constexpr):
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    real = column < width
    place = gate_up + token * stride + column
    gate = tl.load(place, mask=real, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=real, other=0.0).to(tl.float32)
    answer = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + token * width + column, answer.to(out.dtype.element_ty), mask=real)
