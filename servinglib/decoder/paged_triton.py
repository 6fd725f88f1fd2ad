"""Attention on a GPU, over pages where they lie, and what a GPU does between two matrix products.

A waiter with forty tables does not learn the whole order book by heart every minute: the seating plan
hangs on the wall, and only what has changed since is written on it. Here the plan is the block table:
each decoding sequence has a *seat*, a row of it that stays on the GPU from step to step, and a new
entry is sent when a sequence begins a new page, or somebody comes or goes. Seats are packed from 0 on,
so the batch is the first so many rows, and when one leaves, the last takes its place.

Tokens of a step are packed with the decoding sequences first, one token each in the order of their
seats, then whatever computes several at once: prompts, pieces of them, guesses that are to be checked.
The kernels are in `kernels.py` and `fused.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from servinglib.decoder.fused import add_rms_norm, norm_rope_write, silu_mul
from servinglib.decoder.kernels import check_cache, decode_attention, extend_attention
from servinglib.decoder.linear import Linear
from servinglib.decoder.model import Layer, Operations, RotaryTable
from servinglib.decoder.pages import Span, slots_of
from servinglib.decoder.shape import DecoderShape
from servinglib.decoder.step import upload
from servinglib.policies.sequence import SequenceState


class Extends(NamedTuple):
    """The spans of several tokens: block tables, contexts, first tokens and the longest span's tokens."""

    tables: torch.Tensor
    contexts: torch.Tensor
    starts: torch.Tensor
    longest: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of a step lie, as the kernels take it.

    Attributes
    ----------
    slots : Tensor, (tokens,) int64
        Where their keys and values go; -1 for a row of padding.
    decodes : int
        How many tokens decode; they come first.
    tables, contexts : Tensor of int32, (decodes, blocks) and (decodes,)
        Theirs: block tables, and tokens in the cache including this one; 0 for a row of padding.
    extends : Extends or None
        What comes after them.
    """

    slots: torch.Tensor
    decodes: int
    tables: torch.Tensor
    contexts: torch.Tensor
    extends: Extends | None = None


class Seats:
    """Block tables of the sequences that decode, on the GPU.

    Parameters
    ----------
    rows, width : int
        Most sequences, and most blocks of one.
    block_size : int
    device : torch.device

    Attributes
    ----------
    tables : Tensor, (rows, width) int32
    """

    def __init__(self, rows: int, width: int, block_size: int, device: torch.device) -> None:
        self.tables = torch.zeros((rows, width), dtype=torch.int32, device=device)
        self._block_size = block_size
        self._copy = np.zeros((rows, width), np.int32)  # what the GPU has, or gets with the next `take`
        self._owners: list[SequenceState] = []
        self._rows: dict[SequenceState, int] = {}
        self._ends: list[tuple[int, list[int]]] = []  # of each row: where the last entries begin, and they
        self._stale = False

    def take(self, spans: Sequence[Span]) -> list[Span]:
        """Seat these sequences and nobody else; returns the spans in the order of the seats."""
        wanted = {span.sequence: span for span in spans}
        for sequence in [each for each in self._owners if each not in wanted]:
            self.leave(sequence)
        for span in spans:
            self._write(self._row_of(span.sequence), span)
        if self._stale:
            self._send()
        return [wanted[sequence] for sequence in self._owners]

    def leave(self, sequence: SequenceState) -> None:
        """Give the seat back, if there is one."""
        row = self._rows.pop(sequence, None)
        if row is None:
            return
        last, end = self._owners.pop(), self._ends.pop()
        if last is not sequence:
            self._owners[row], self._ends[row], self._rows[last] = last, end, row
            self._copy[row] = self._copy[len(self._owners)]
            self._stale = True

    def _row_of(self, sequence: SequenceState) -> int:
        row = self._rows.setdefault(sequence, len(self._owners))
        if row == len(self._owners):
            self._owners.append(sequence)
            self._ends.append((0, []))
        return row

    def _write(self, row: int, span: Span) -> None:
        """Blocks that are full stay as they are; the others may have been given back with rejected guesses."""
        first, known = span.sequence.num_computed_tokens // self._block_size, self._ends[row]
        end = (first, span.sequence.blocks[first : -(-span.end // self._block_size)])
        if end != known:
            self._ends[row] = end
            begin = min(first, known[0])
            self._copy[row, begin : first + len(end[1])] = span.sequence.blocks[begin : first + len(end[1])]
            self._stale = True

    def _send(self) -> None:
        rows, width = len(self._owners), max((first + len(end) for first, end in self._ends), default=0)
        table = torch.from_numpy(np.ascontiguousarray(self._copy[:rows, :width]))
        self.tables[:rows, :width].copy_(upload(table, self.tables.device))
        self._stale = False


class TritonAttention:
    """Paged attention with the kernels of `kernels.py`; its model needs `FusedOperations`.

    Parameters
    ----------
    shape : DecoderShape
    num_blocks, block_size : int
        The pages, as the `BlockPool` counts them.
    dtype : torch.dtype
    device : torch.device
    rows, context : int
        Most sequences that decode at once, and most tokens of one.

    Attributes
    ----------
    keys, values : list of Tensor
        One per layer, (num_blocks, kv_heads, block_size, head_dim).
    layout : Layout
        Of the step that is being computed.
    padding : int
        KV tokens that decoding sequences read for nothing; never any.
    """

    def __init__(
        self,
        shape: DecoderShape,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        rows: int,
        context: int,
    ) -> None:
        size = (num_blocks, shape.kv_heads, block_size, shape.head_dim)
        self.keys, self.values = (
            [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)] for _ in "kv"
        )
        check_cache(self.keys[0], self.values[0])
        self.device, self.block_size, self.scale = device, block_size, shape.head_dim**-0.5
        self.seats = Seats(rows, -(-context // block_size), block_size, device)
        self.padding = 0
        self.layout: Layout

    def prepare(self, decodes: Sequence[Span], prompts: Sequence[Span]) -> list[Span]:
        """Get ready for a step; returns all spans in the order in which their tokens must be packed."""
        singles = self.seats.take([span for span in decodes if span.num_tokens == 1])
        others = [*(span for span in decodes if span.num_tokens > 1), *prompts]
        spans = singles + others
        slots = np.concatenate([slots_of(s.sequence.blocks, s.start, s.end, self.block_size) for s in spans])
        self.layout = Layout(
            self._upload(slots),
            len(singles),
            self.seats.tables[: len(singles)],
            self._upload(np.array([span.end for span in singles], np.int32)),
            self._extends(others) if others else None,
        )
        return spans

    def look(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """What queries, (tokens, heads, head_dim), gather, in the same shape; keys and values are stored."""
        at, parts, pages = self.layout, [], (self.keys[layer], self.values[layer])
        if at.decodes:
            parts = [decode_attention(q[: at.decodes], *pages, at.tables, at.contexts, self.scale)]
        if at.extends is not None:
            parts.append(extend_attention(q[at.decodes :], *pages, *at.extends, self.scale))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forget(self, sequence: SequenceState) -> None:
        """The sequence is finished, aborted or preempted."""
        self.seats.leave(sequence)

    def _extends(self, spans: Sequence[Span]) -> Extends:
        counts = [-(-span.end // self.block_size) for span in spans]
        tables = np.zeros((len(spans), max(counts)), np.int32)
        for row, span, count in zip(tables, spans, counts, strict=True):
            row[:count] = span.sequence.blocks[:count]
        lengths = [span.num_tokens for span in spans]
        starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        ends = np.array([span.end for span in spans], np.int32)
        return Extends(self._upload(tables), self._upload(ends), self._upload(starts), max(lengths))

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        return upload(torch.from_numpy(array), self.device)


class FusedOperations(Operations):
    """What stands between two matrix products, each in one launch; attention has to be a `TritonAttention`."""

    def __init__(self, shape: DecoderShape, rope: RotaryTable) -> None:
        self.shape, self.eps = shape, shape.norm_eps
        self.cos, self.sin = rope.turns.real.contiguous(), rope.turns.imag.contiguous()

    def turns(self, positions: torch.Tensor) -> torch.Tensor:
        return positions

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return add_rms_norm(x, self.eps)

    def add(self, linear: Linear, y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, add_rms_norm(linear(y), self.eps, x)  # which adds to x in place

    def attend(
        self, index: int, layer: Layer, qkv: torch.Tensor, turns: torch.Tensor, attention: TritonAttention
    ) -> torch.Tensor:
        gains = (None, None) if layer.head_gains is None else (layer.head_gains[0], layer.head_gains[-1])
        pages = attention.keys[index], attention.values[index]
        norm_rope_write(qkv, *gains, self.eps, self.cos, self.sin, turns, *pages, attention.layout.slots)
        queries = qkv.view(len(qkv), -1, self.shape.head_dim)[:, : self.shape.heads]
        return attention.look(index, queries).view(len(qkv), -1)

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return silu_mul(gate_up)
