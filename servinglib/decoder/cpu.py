"""The engine on a CPU: pages in memory, Numba's loops over them, PyTorch's products between.

Tokens that decode look back one by one through their block tables (`numba_kernels.look_back`). A piece
of a prompt has many queries for the same keys, which is a matrix product, so its pages are gathered
once and PyTorch's attention does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from servinglib.decoder import numba_kernels as kernels
from servinglib.decoder.attention import Gathered, alike, gather
from servinglib.decoder.linear import DenseLinear, Int8Linear, Linear, PackedLinear, packable
from servinglib.decoder.model import Layer, Operations, RotaryTable
from servinglib.decoder.pages import Span, slots_of
from servinglib.decoder.shape import DecoderShape
from servinglib.policies.sequence import SequenceState

NO_GAINS = np.empty((0, 0), np.float32)
NO_SCALE = np.empty(0, np.float32)


class NumbaAttention:
    """Paged attention for a CPU; its model needs `NumbaOperations`.

    Parameters
    ----------
    shape : DecoderShape
    num_blocks, block_size : int
        The pages, as the `BlockPool` counts them.
    dtype : torch.dtype

    Attributes
    ----------
    pages : list of Tensor
        One per layer, (slots, 2, kv_heads, head_dim): a slot holds a token's key and value.
    positions, slots : ndarray of int64, (tokens,)
        Of the tokens of this step, and where their keys and values go.
    rows : int
        How many of them, the first ones, look back one by one.
    seen : tuple
        What these rows see, as `numba_kernels.look_back` takes it.
    """

    padding = 0  # a kernel that reads pages pads nothing

    def __init__(self, shape: DecoderShape, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        self.block_size, self.rows = block_size, 0
        slots = (num_blocks * block_size, 2, shape.kv_heads, shape.head_dim)
        self.pages = [torch.zeros(slots, dtype=dtype) for _ in range(shape.layers)]
        self.page_bits = [bits(page) for page in self.pages]
        self._prompts: list[Gathered] = []

    def prepare(self, decodes: Sequence[Span], prompts: Sequence[Span]) -> list[Span]:
        """Get ready for a step; returns all spans in the order in which their tokens must be packed."""
        decodes = _shared_out(decodes, torch.get_num_threads())
        pages, starts, lengths = seen = _tables(decodes)
        self.rows, self.seen = len(lengths), (*seen, self.block_size)
        self._prompts, after = gather(alike(prompts), self.rows, self.block_size, self.pages[0])
        block, offset = np.divmod(lengths - 1, self.block_size)
        slots = [slots_of(s.sequence.blocks, s.start, s.end, self.block_size) for s in after]
        self.slots = np.concatenate((pages[starts + block] * self.block_size + offset, *slots))
        return [*decodes, *after]

    def look_back(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """What each token gathers, (tokens, heads * head_dim), from turned queries, (tokens, heads, head_dim)."""
        out = torch.empty_like(q)
        if self.rows:
            mine = slice(0, self.rows)
            kernels.look_back(
                bits(q)[mine],
                self.page_bits[layer],
                *self.seen,
                bits(out)[mine],
            )
        for group in self._prompts:
            group.attend(q, self.pages[layer], out)
        return out.view(len(q), -1)

    def forget(self, sequence: SequenceState) -> None:
        """Nothing is kept beside the pages."""


def _shared_out(spans: Sequence[Span], threads: int) -> list[Span]:
    """In an order in which each thread, which takes the next so many, gets long ones and short ones."""
    by_length = sorted(spans, key=lambda span: span.end)
    return [span for thread in range(threads) for span in by_length[thread::threads]]


def _tables(spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All block tables one behind the other, and for each token where its own begins and how far it sees."""
    tables = [span.sequence.blocks for span in spans]
    starts = np.cumsum([0, *map(len, tables)])[:-1]
    counts = np.array([span.end - span.start for span in spans], np.int64)
    firsts = np.array([span.start for span in spans], np.int64)
    before = np.cumsum(counts) - counts
    lengths = np.repeat(firsts - before, counts) + np.arange(1, counts.sum() + 1)
    return np.fromiter(chain.from_iterable(tables), np.int64), np.repeat(starts, counts), lengths


class CpuLinear:
    """oneDNN's order of the weights for many rows; a loop over the weights as they are for a few.

    With one row there is one multiplication per weight, and all the time goes into reading: what counts
    is that the weights come in one long stream. oneDNN's blocks are made to be used many times; with one
    row they cost 1.3 to 3 times as much. So both orders are kept, which takes the memory twice; integers
    (`int8`) have one order for both.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, int8: bool = False) -> None:
        quantized = Int8Linear(weight, bias) if int8 else None
        packed = PackedLinear if packable(weight.dtype) else DenseLinear
        self._many: Linear = quantized or packed(weight, bias)
        self.num_bytes, self.outputs = self._many.num_bytes, len(weight)
        self.few = few_rows(weight.numel(), weight.dtype)
        nothing = bits(weight[0, :0])
        self.plain = (
            bits(weight) if quantized is None else quantized.weight.numpy(),
            NO_SCALE if quantized is None else quantized.scale.float().numpy(),
            nothing if bias is None else bits(bias),
        )
        self._no_residual = nothing[:, None]

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if len(x) > self.few:
            return self._many(x, residual)
        out = x.new_empty(len(x), self.outputs)
        added = self._no_residual if residual is None else bits(residual)
        kernels.multiply(bits(x), added, bits(out), *self.plain)
        return out


def few_rows(weights: int, dtype: torch.dtype) -> int:
    """Rows up to which the loop was the faster one: the processor multiplies bfloat16 in pairs, the loop does not."""
    return 4 if dtype == torch.float32 or weights <= 2**20 else 2


class NumbaOperations(Operations):
    """What a decoder does between its matrix products; attention has to be a `NumbaAttention`."""

    def __init__(self, shape: DecoderShape, rope: RotaryTable, dtype: torch.dtype) -> None:
        self._shape, self._eps = shape, np.float32(shape.norm_eps)
        kernels.use_threads(torch.get_num_threads())
        self._turns = torch.view_as_real(rope.turns).flatten(1).numpy()
        self._whole: dict[int, tuple[int, Any, np.ndarray]] = {}

    def turns(self, positions: torch.Tensor) -> np.ndarray:
        return positions.numpy()

    def layer(
        self, index: int, layer: Layer, x: torch.Tensor, y: torch.Tensor, turns: np.ndarray, attention: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if index not in self._whole:
            self._whole[index] = _whole(layer, x.dtype)
        few, weights, gains = self._whole[index]
        if len(x) > min(few, attention.rows):
            return super().layer(index, layer, x, y, turns, attention)
        kernels.layer(
            bits(x),
            bits(y),
            weights,
            gains,
            self._eps,
            self._turns,
            turns,
            attention.slots,
            attention.page_bits[index],
            *attention.seen,
        )
        return x, y

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        kernels.normalize(bits(x), self._eps, bits(out))
        return out

    def add(self, linear: Linear, y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = linear(y, x)
        return x, self.normalize(x)

    def attend(
        self, index: int, layer: Layer, qkv: torch.Tensor, turns: np.ndarray, attention: NumbaAttention
    ) -> torch.Tensor:
        s = self._shape
        q = qkv.new_empty(len(qkv), s.heads, s.head_dim)
        kernels.turn_and_store(
            bits(qkv).reshape(len(qkv), -1, s.head_dim),
            _gains(layer),
            self._eps,
            self._turns,
            turns,
            attention.slots,
            attention.page_bits[index],
            bits(q),
        )
        return attention.look_back(index, q)

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        kernels.gate(bits(gate_up), bits(out))
        return out


def _whole(layer: Layer, dtype: torch.dtype) -> tuple[int, Any, np.ndarray]:
    """Up to how many rows `kernels.layer` does this layer, and what it takes of it: matrices and gains."""
    matrices: Any = (layer.qkv, layer.output, layer.gate_up, layer.down)  # each a CpuLinear
    few = few_rows(sum(m.plain[0].size for m in matrices), dtype)
    return few, tuple(m.plain for m in matrices), _gains(layer)


def _gains(layer: Layer) -> np.ndarray:
    return NO_GAINS if layer.head_gains is None else layer.head_gains.numpy()


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory as NumPy sees it: the numbers of a float32, the bits of a bfloat16."""
    if tensor.dtype == torch.float32:
        return tensor.numpy()
    return tensor.view(torch.uint16).numpy()
