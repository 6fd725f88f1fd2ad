"""The engine on a CPU: pages in memory, Numba's loops over them, PyTorch's products between.

Tokens that decode look back one by one through their block tables (`numba_kernels.look_back`). A piece
of a prompt has many queries for the same keys, which is a matrix product, so its pages are gathered
once and PyTorch's attention does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from servinglib.engines.continuous.attention import Gathered, alike, gather
from servinglib.engines.continuous.linear import Linear
from servinglib.engines.continuous.model import Layer, RotaryTable
from servinglib.engines.continuous.numba_kernels import F, kernels, use_threads
from servinglib.engines.continuous.pages import Span, slots_of
from servinglib.engines.continuous.shape import DecoderShape
from servinglib.policies.sequence import SequenceState

NO_GAINS = np.empty((0, 0), np.float32)


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
    """

    padding = 0  # a kernel that reads pages pads nothing

    def __init__(self, shape: DecoderShape, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        self.block_size, self.rows = block_size, 0
        slots = (num_blocks * block_size, 2, shape.kv_heads, shape.head_dim)
        self.pages = [torch.zeros(slots, dtype=dtype) for _ in range(shape.layers)]
        self.page_bits = [bits(page) for page in self.pages]
        self._kernels = kernels(dtype == torch.bfloat16, shape.head_dim, shape.heads // shape.kv_heads)
        self._prompts: list[Gathered] = []

    def prepare(self, decodes: Sequence[Span], prompts: Sequence[Span]) -> list[Span]:
        """Get ready for a step; returns all spans in the order in which their tokens must be packed."""
        tables = [span.sequence.blocks for span in decodes]
        counts = np.array([span.end - span.start for span in decodes], np.int64)
        starts = np.cumsum([0, *map(len, tables)])[: len(tables)]
        self._tables = np.fromiter(chain.from_iterable(tables), np.int64)
        self._starts = np.repeat(starts, counts)
        ends = [np.arange(span.start, span.end) + 1 for span in decodes]
        self._lengths = np.concatenate(ends) if ends else np.empty(0, np.int64)
        self.rows = len(self._lengths)
        self._prompts, after = gather(alike(prompts), self.rows, self.block_size, self.pages[0])
        spans = [*decodes, *after]
        slots = [slots_of(s.sequence.blocks, s.start, s.end, self.block_size) for s in spans]
        self.slots = np.concatenate(slots)
        return spans

    def look_back(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """What each token gathers, (tokens, heads * head_dim), from turned queries, (tokens, heads, head_dim)."""
        out = torch.empty_like(q)
        if self.rows:
            mine = slice(0, self.rows)
            self._kernels.look_back(
                bits(q)[mine],
                self.page_bits[layer],
                self._tables,
                self._starts,
                self._lengths,
                self.block_size,
                bits(out)[mine],
            )
        for group in self._prompts:
            group.attend(q, self.pages[layer], out)
        return out.view(len(q), -1)

    def forget(self, sequence: SequenceState) -> None:
        """Nothing is kept beside the pages."""


class NumbaOperations:
    """What a decoder does between its matrix products; attention has to be a `NumbaAttention`."""

    def __init__(self, shape: DecoderShape, rope: RotaryTable, dtype: torch.dtype) -> None:
        self._shape, self._eps = shape, F(shape.norm_eps)
        use_threads(torch.get_num_threads())
        self._turns = torch.view_as_real(rope.turns).flatten(1).numpy()
        self._kernels = kernels(dtype == torch.bfloat16, shape.head_dim, shape.heads // shape.kv_heads)

    def turns(self, positions: torch.Tensor) -> np.ndarray:
        return positions.numpy()

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        self._kernels.normalize(bits(x), self._eps, bits(out))
        return out

    def add(self, linear: Linear, y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = linear(y, x)
        return x, self.normalize(x)

    def attend(
        self, index: int, layer: Layer, qkv: torch.Tensor, turns: np.ndarray, attention: NumbaAttention
    ) -> torch.Tensor:
        s = self._shape
        q = qkv.new_empty(len(qkv), s.heads, s.head_dim)
        self._kernels.turn_and_store(
            bits(qkv).reshape(len(qkv), -1, s.head_dim),
            NO_GAINS if layer.head_gains is None else layer.head_gains.numpy(),
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
        self._kernels.gate(bits(gate_up), bits(out))
        return out


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory as NumPy sees it: the numbers of a float32, the bits of a bfloat16."""
    if tensor.dtype == torch.float32:
        return tensor.numpy()
    return tensor.view(torch.int16).numpy().view(np.uint16)
