"""What may a token see? All tokens before it in its own sequence, wherever their keys and values lie.

They lie in pages. A sequence's block table names them in order, so that nothing has to be contiguous
and nothing has to be moved:

    block table of A: [3, 0]        page 0      page 1      page 2      page 3
                                   A16..A20     free       B0..B15     A0..A15

PyTorch's attention reads no pages, so here they are gathered first, at every step, into one tensor for
each group of sequences of about the same length; the shorter ones are padded, and a mask hides the
padding. That is slow and easy to check. It serves where nothing better is at hand, it tells the kernels
(`numba_kernels.py` on a CPU, `kernels.py` on a GPU) what is right, and pieces of prompts, with many
queries for the same keys, go through it on every CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from servinglib.decoder.pages import Span, slots_of
from servinglib.decoder.shape import DecoderShape
from servinglib.policies.grouping import group_by_length
from servinglib.policies.sequence import SequenceState

CPU = torch.device("cpu")


class Gathered:
    """Spans of equally many tokens, for one operation.

    Parameters
    ----------
    spans : sequence of Span
    first : int
        Their first token in the step.
    block_size : int
    like : Tensor
        A page, for the number format and the device.

    Attributes
    ----------
    longest : int
        Tokens in the longest context, to which the others are padded.
    """

    def __init__(self, spans: Sequence[Span], first: int, block_size: int, like: torch.Tensor) -> None:
        self.spans, self.longest, self._count = spans, max(s.end for s in spans), spans[0].num_tokens
        self._tokens = slice(first, first + len(spans) * self._count)
        slots = np.zeros((len(spans), self.longest), np.int64)
        for row, span in zip(slots, spans, strict=True):
            row[: span.end] = slots_of(span.sequence.blocks, 0, span.end, block_size)
        self._slots = torch.from_numpy(slots).view(-1).to(like.device)
        self._causal = all(s.start == 0 and s.end == self.longest for s in spans)
        self._mask = None if self._causal or self._nothing_hidden() else self._hide().to(like)

    @property
    def padding(self) -> int:
        """KV tokens that are read for nothing."""
        return len(self.spans) * self.longest - sum(s.end for s in self.spans)

    def attend(self, q: torch.Tensor, pages: torch.Tensor, out: torch.Tensor) -> None:
        """Let the spans' queries look back; q and out hold all tokens of the step, (tokens, heads, head_dim)."""
        n, (_, heads, dim), kv_heads = len(self.spans), q.shape, pages.shape[2]
        seen = pages[self._slots].view(n, self.longest, 2, kv_heads, dim).permute(2, 0, 3, 1, 4)
        keys, values = seen.repeat_interleave(heads // kv_heads, 2)
        queries = q[self._tokens].view(n, self._count, heads, dim).transpose(1, 2)
        looked = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=self._mask, is_causal=self._causal
        )
        out[self._tokens] = looked.transpose(1, 2).reshape(-1, heads, dim)

    def _nothing_hidden(self) -> bool:
        return self._count == 1 and not self.padding

    def _hide(self) -> torch.Tensor:
        """Minus infinity where a key comes after the query, (sequences, 1, queries, longest)."""
        starts = torch.tensor([s.start for s in self.spans])[:, None, None]
        positions = starts + torch.arange(self._count)[:, None]
        hidden = torch.arange(self.longest) > positions
        return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None]


def alike(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans that begin and end at the same positions, together: nothing is padded."""
    groups: dict[tuple[int, int], list[Span]] = {}
    for span in spans:
        groups.setdefault((span.start, span.end), []).append(span)
    return list(groups.values())


def about_as_long(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans of equally many tokens with contexts of about the same length, together."""
    counts: dict[int, list[Span]] = {}
    for span in spans:
        counts.setdefault(span.num_tokens, []).append(span)
    return [
        [same[i] for i in group]
        for same in counts.values()
        for group in group_by_length([span.end for span in same])
    ]


class TorchAttention:
    """Paged attention in plain PyTorch, for any device; its model needs `TorchOperations`.

    Parameters
    ----------
    shape : DecoderShape
    num_blocks, block_size : int
        The pages, as the `BlockPool` counts them.
    dtype : torch.dtype
    device : torch.device

    Attributes
    ----------
    pages : list of Tensor
        One per layer, (slots, 2, kv_heads, head_dim): a slot holds a token's key and value.
    padding : int
        KV tokens that the last step's decoding sequences read for nothing.
    """

    def __init__(
        self,
        shape: DecoderShape,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device = CPU,
    ) -> None:
        self.block_size, self.padding = block_size, 0
        slots = (num_blocks * block_size, 2, shape.kv_heads, shape.head_dim)
        self.pages = [torch.zeros(slots, dtype=dtype, device=device) for _ in range(shape.layers)]
        self._groups: list[Gathered] = []
        self._slots = torch.empty(0, dtype=torch.int64)

    def prepare(self, decodes: Sequence[Span], prompts: Sequence[Span]) -> list[Span]:
        """Get ready for a step; returns all spans in the order in which their tokens must be packed."""
        together = about_as_long(decodes)
        self._groups, spans = gather([*together, *alike(prompts)], 0, self.block_size, self.pages[0])
        self.padding = sum(group.padding for group in self._groups[: len(together)])
        slots = [slots_of(s.sequence.blocks, s.start, s.end, self.block_size) for s in spans]
        self._slots = torch.from_numpy(np.concatenate(slots)).to(self.pages[0].device)
        return spans

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store k and v, (tokens, kv_heads, head_dim), and let q, (tokens, heads, head_dim), look back."""
        self.pages[layer].index_copy_(0, self._slots, torch.stack((k, v), 1))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for group in self._groups:
            group.attend(q, self.pages[layer], out)
        return out.view(len(q), -1)

    def forget(self, sequence: SequenceState) -> None:
        """Nothing is kept beside the pages."""


def gather(
    groups: Sequence[Sequence[Span]], first: int, block_size: int, like: torch.Tensor
) -> tuple[list[Gathered], list[Span]]:
    """One operation per group, and all spans in the order of their tokens, which begin at `first`."""
    gathered, spans = [], []
    for group in groups:
        gathered.append(Gathered(group, first, block_size, like))
        first += sum(span.num_tokens for span in group)
        spans += group
    return gathered, spans
