"""What happens between two matrix products, in loops that a processor likes.

PyTorch has an operation for each step of the arithmetic, and a decode step of a small model calls a
thousand of them; each call costs more than the few numbers it works on. Here the steps between two
matrix products are written as one loop each, and Numba compiles them when the engine is first loaded.
`look_back` is paged attention itself: it reads keys and values in the pages where they lie, through
the block table, and no copy is ever made.

bfloat16 is the upper half of a float32. Numba knows no bfloat16, so the kernels see 16-bit integers
and put the lower half there, or round it away. float32 passes through unchanged.
"""

from __future__ import annotations

import ctypes
import math
import threading
from typing import Any

import numba
import numpy as np
from numba import njit, prange, types
from numba.extending import overload
from numba.np.ufunc import parallel

setattr(numba.config, "THREADING_LAYER_PRIORITY", ["omp", "tbb", "workqueue"])  # noqa: B010, made at run time
launched = threading.Event()
OPTIONS = {"fastmath": True, "error_model": "numpy", "nogil": True, "cache": True}
F = np.float32
ENOUGH_ROWS = 8  # for every thread to have some


def use_threads(count: int) -> None:
    """Let this thread's kernels run on `count` threads; the first call of a process sets the most there will be.

    Where Numba and PyTorch share an OpenMP library, Numba switches nested teams on for both; MKL then
    starts a team inside each thread of PyTorch's attention, which is three hundred times as slow.
    """
    if not launched.is_set():  # threads that are there meet in every kernel, whether they have work or not
        parallel.NUM_THREADS = min(count, parallel.NUM_THREADS)  # which NUMBA_NUM_THREADS may have lowered
        launched.set()
    numba.set_num_threads(min(count, parallel.NUM_THREADS))
    shared = ctypes.CDLL(None)  # what is visible to all, PyTorch's library among it
    if hasattr(shared, "omp_set_max_active_levels"):
        shared.omp_set_max_active_levels(1)


@njit(inline="always")
def widen(x):
    """A bfloat16's bits, or a float32, as float32."""
    return np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def narrow(x):
    """The bits of the nearest bfloat16, to even among equals."""
    bits = F(x).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


def load(x: Any) -> Any:
    """A number out of an array, as float32."""
    raise NotImplementedError("only in kernels")


def put(array: Any, place: Any, x: Any) -> None:
    """A float32 into an array, in its own format."""
    raise NotImplementedError("only in kernels")


@overload(load, inline="always")
def _load(x):
    return (lambda x: widen(x)) if x == types.uint16 else (lambda x: F(x))  # a float32, or a small integer


@overload(put, inline="always")
def _put(array, place, x):
    def rounded(array, place, x):
        array[place] = narrow(x)

    def as_it_is(array, place, x):
        array[place] = x

    return rounded if array.dtype == types.uint16 else as_it_is


@njit(inline="always")
def exponential(x):
    """e^x to 2e-7, in operations that a processor does sixteen at a time.

    2^(k+f) with a whole k is k in the exponent's bits times 2^f, a polynomial on 0..1.
    """
    y = min(max(x * F(1.44269504), F(-126.0)), F(126.0))
    k = np.floor(y)
    f = y - k
    p = F(1.8775767e-3)
    for coefficient in (8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1):
        p = p * f + F(coefficient)
    return np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32) * p


@njit(parallel=True, **OPTIONS)
def normalize(x, eps, out):
    """RMSNorm without gains, (tokens, size)."""
    tokens, size = x.shape
    for i in prange(tokens):
        squares = F(0)
        for j in range(size):
            squares += load(x[i, j]) * load(x[i, j])
        factor = F(1) / math.sqrt(squares / F(size) + eps)
        for j in range(size):
            put(out, (i, j), load(x[i, j]) * factor)


@njit(parallel=True, **OPTIONS)
def gate(gate_up, out):
    """silu(gate) * up, from (tokens, 2 size) to (tokens, size)."""
    tokens, size = out.shape
    for i in prange(tokens):
        for j in range(size):
            g = load(gate_up[i, j])
            put(out, (i, j), g / (F(1) + exponential(-g)) * load(gate_up[i, size + j]))


@njit(parallel=True, **OPTIONS)
def turn_and_store(qkv, gains, eps, turns, positions, slots, pages, q):
    """Normalise (where there are gains) and turn queries and keys; keys and values go to their slots.

    qkv (tokens, heads + 2 kv_heads, dim), turns (positions, dim) with cosine and sine in turns,
    pages (slots, 2, kv_heads, dim), q (tokens, heads, dim) for the turned queries.
    """
    (tokens, heads, dim), kv_heads = q.shape, pages.shape[2]
    for i in prange(tokens):
        place, turn = slots[i], turns[positions[i]]
        for h in range(heads + kv_heads):
            head = np.empty(dim, np.float32)
            squares = F(0)
            for d in range(dim):
                head[d] = load(qkv[i, h, d])
                squares += head[d] * head[d]
            if gains.shape[0] > 0:
                factor = F(1) / math.sqrt(squares / F(dim) + eps)
                for d in range(dim):
                    head[d] *= factor * gains[h, d]
            for d in range(0, dim, 2):
                even = head[d] * turn[d] - head[d + 1] * turn[d + 1]
                head[d + 1] = head[d] * turn[d + 1] + head[d + 1] * turn[d]
                head[d] = even
            for d in range(dim):
                if h < heads:
                    put(q, (i, h, d), head[d])
                else:
                    put(pages, (place, 0, h - heads, d), head[d])
        for h in range(kv_heads):
            for d in range(dim):
                pages[place, 1, h, d] = qkv[i, heads + kv_heads + h, d]


@njit(parallel=True, **OPTIONS)
def look_back(q, pages, tables, starts, lengths, block_size, out):
    """Attention of single tokens over the pages of their sequences.

    q and out (rows, heads, dim); row i sees `lengths[i]` tokens, in the blocks that `tables` names
    from `starts[i]` on. A task is one row, so that whoever has fetched a block reads all heads' keys in it, which
    lie side by side. Where rows are few, a task is one key head of a row with the query heads that share it.
    """
    (rows, heads, dim), kv_heads = q.shape, pages.shape[2]
    fold, scale = heads // kv_heads, F(1 / math.sqrt(dim))
    parts = 1 if rows >= ENOUGH_ROWS else kv_heads
    mine = kv_heads // parts
    for task in prange(rows * parts):
        i, part = task // parts, task % parts * mine
        length = lengths[i]
        query, seen = np.empty((mine, fold, dim), np.float32), np.zeros((mine, fold, dim), np.float32)
        scores = np.empty((mine, fold, length), np.float32)
        for h in range(mine):
            for g in range(fold):
                for d in range(dim):
                    query[h, g, d] = load(q[i, (part + h) * fold + g, d]) * scale
        for first in range(0, length, block_size):
            block = tables[starts[i] + first // block_size] * block_size - first
            for h in range(mine):
                for t in range(first, min(first + block_size, length)):
                    for g in range(fold):
                        product = F(0)
                        for d in range(dim):
                            product += query[h, g, d] * load(pages[block + t, 0, part + h, d])
                        scores[h, g, t] = product
        total = np.empty((mine, fold), np.float32)
        for h in range(mine):
            for g in range(fold):
                total[h, g] = _to_weights(scores[h, g])
        for first in range(0, length, block_size):
            block = tables[starts[i] + first // block_size] * block_size - first
            for h in range(mine):
                for t in range(first, min(first + block_size, length)):
                    for g in range(fold):
                        for d in range(dim):
                            seen[h, g, d] += scores[h, g, t] * load(pages[block + t, 1, part + h, d])
        for h in range(mine):
            for g in range(fold):
                for d in range(dim):
                    put(out, (i, (part + h) * fold + g, d), seen[h, g, d] / total[h, g])


@njit(parallel=True, **OPTIONS)
def multiply(x, residual, out, weight, scale, bias):
    """x Wᵀ + b for a few rows, and a residual on top.

    x (rows, inputs), weight (outputs, inputs); residual as out, scale and bias (outputs,) each, or empty.
    """
    rows, inputs = x.shape
    wide = np.empty((rows, inputs), np.float32)
    for i in range(rows):
        for j in range(inputs):
            wide[i, j] = load(x[i, j])
    for o in prange(len(weight)):
        for i in range(rows):
            y = F(0)
            for j in range(inputs):
                y += wide[i, j] * load(weight[o, j])
            if len(scale) > 0:
                y *= scale[o]
            if len(bias) > 0:
                y += load(bias[o])
            if len(residual) > 0:
                y += load(residual[i, o])
            put(out, (i, o), y)


@njit(**OPTIONS)
def layer(x, y, matrices, gains, eps, turns, positions, slots, pages, tables, starts, lengths, block_size):
    """A decoder's layer for a few decoding rows: x and what it is normalised to, y, become the next layer's.

    A small step spends more time on finding out what to call than on the call; so this is one call.
    matrices are qkv, output, gate_up and down, each with its scale and bias; the rest is as above.
    """
    (rows, _), (kv_heads, dim), nothing = x.shape, pages.shape[2:], x[:0]
    qkv = np.empty((rows, len(matrices[0][0]) // dim, dim), x.dtype)
    multiply(y, nothing, qkv.reshape(rows, -1), *matrices[0])
    q = np.empty((rows, qkv.shape[1] - 2 * kv_heads, dim), x.dtype)
    seen = np.empty_like(q)
    turn_and_store(qkv, gains, eps, turns, positions, slots, pages, q)
    look_back(q, pages, tables, starts, lengths, block_size, seen)
    multiply(seen.reshape(rows, -1), x, x, *matrices[1])
    normalize(x, eps, y)
    gate_up = np.empty((rows, len(matrices[2][0])), x.dtype)
    multiply(y, nothing, gate_up, *matrices[2])
    gated = np.empty((rows, len(matrices[2][0]) // 2), x.dtype)
    gate(gate_up, gated)
    multiply(gated, x, x, *matrices[3])
    normalize(x, eps, y)


@njit(**OPTIONS)
def _to_weights(scores):
    """Turn scores into e^(score - largest), in place; returns their sum."""
    largest, total = scores.max(), F(0)
    for t in range(len(scores)):
        scores[t] = exponential(scores[t] - largest)
        total += scores[t]
    return total
