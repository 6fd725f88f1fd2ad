"""One forward pass over spans: which numbers go into the model, and which of its scores come out.

The tokens of all spans are packed one behind the other. Of the scores only those matter that follow a
sequence's last known token, or one of the guesses behind it:

    span          A: 41..42     B: 17..20 (one token, two guesses)     C: 0..5, more of it to come
    tokens        a41           b17  g1  g2                            c0 c1 c2 c3 c4
    scores        one           three                                  none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from servinglib.decoder.model import Decoder
from servinglib.decoder.pages import Span
from servinglib.policies.sequence import SequenceState
from servinglib.request import Logprob


class PagedAttention(Protocol):
    """What a step asks of an attention backend, which must also be what the model's operations ask for.

    Attributes
    ----------
    padding : int
        KV tokens that the last step's decoding sequences read for nothing.
    """

    padding: int

    def prepare(self, decodes: Sequence[Span], prompts: Sequence[Span]) -> list[Span]: ...
    def forget(self, sequence: SequenceState) -> None: ...


@dataclass(frozen=True, slots=True)
class Proposal:
    """Guesses of how a sequence goes on, and the probability each token had when they were drawn.

    `probabilities`, (tokens, vocabulary), is None where the guesser was sure of each.
    """

    tokens: list[int]
    probabilities: torch.Tensor | None = None


class Outcome(NamedTuple):
    """What a step gave to one sequence: accepted guesses and one token more, or just that one.

    `logprobs` has one entry per token if they were asked for, else none.
    """

    sequence: SequenceState
    tokens: list[int]
    logprobs: Sequence[Logprob] = ()


class Scored(NamedTuple):
    """A sequence that gets tokens in this step: its scores are rows `first` to `first + rows`."""

    sequence: SequenceState
    first: int
    rows: int


class Late(NamedTuple):
    """Tokens of the last step that nobody has read yet: (tokens,) int64, and which of them is whose."""

    tokens: torch.Tensor
    rows: Mapping[SequenceState, int]


@torch.inference_mode()
def score(
    model: Decoder,
    attention: PagedAttention,
    decodes: Sequence[Span],
    prompts: Sequence[Span],
    guesses: Mapping[SequenceState, Proposal] | None = None,
    late: Late | None = None,
) -> tuple[list[Scored], torch.Tensor]:
    """Compute the spans; who gets tokens, and the scores, (rows, vocabulary), for it.

    A span that ends behind its sequence's known tokens reads the guesses from there on, or, where
    there are none, the sequence's one token in `late`.
    """
    spans = attention.prepare(decodes, prompts)
    packed, device = _pack(spans, guesses or {}, late), model.embeddings.device
    ids = upload(torch.tensor(packed.tokens), device)
    if late is not None and packed.late:
        at, rows = upload(torch.tensor(packed.late).T, device)
        ids[at] = late.tokens[rows]
    wanted = None
    if len(packed.wanted) < len(packed.tokens):
        wanted = upload(torch.tensor(packed.wanted, dtype=torch.int64), device)
    return packed.scored, model.forward(ids, upload(_positions(spans), device), attention, wanted)


class _Packed(NamedTuple):
    """Tokens one behind the other, which of them are scored and for whom, and (place, row) of late ones."""

    tokens: list[int]
    wanted: list[int]
    scored: list[Scored]
    late: list[tuple[int, int]]


def _pack(spans: Sequence[Span], guesses: Mapping[SequenceState, Proposal], late: Late | None) -> _Packed:
    tokens, wanted, scored, places = packed = _Packed([], [], [], [])
    for sequence, start, end in spans:
        known = sequence.item.tokens
        tokens += known[start:end]
        extra, rows = end - len(known), 1
        if late is not None and start == len(known):
            places.append((len(tokens), late.rows[sequence]))
            tokens.append(0)
        elif extra > 0:
            tokens += guesses[sequence].tokens[max(0, extra - (end - start)) : extra]
            rows = min(extra + 1, end - start)
        if extra >= 0:
            scored.append(Scored(sequence, len(wanted), rows))
            wanted += range(len(tokens) - rows, len(tokens))
    return packed


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device, for which nobody waits: from pinned memory, in the order of the stream."""
    if device.type == "cpu" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Arrival:
    """Tokens on their way to the host, in pinned memory; on a CPU they are there already."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._there: torch.cuda.Event | None = None
        self._tokens = self._depart(tokens) if tokens.is_cuda and len(tokens) else tokens.tolist()

    def wait(self) -> list[int]:
        """The tokens; blocks until they are there."""
        if self._there is not None:
            self._there.synchronize()
        return self._tokens if isinstance(self._tokens, list) else self._tokens.tolist()

    def _depart(self, tokens: torch.Tensor) -> torch.Tensor:
        host = torch.empty(len(tokens), dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        self._there = torch.cuda.Event()
        self._there.record()
        return host


def _positions(spans: Sequence[Span]) -> torch.Tensor:
    if all(end - start == 1 for _, start, end in spans):
        return torch.tensor([start for _, start, _ in spans])
    return torch.from_numpy(np.concatenate([np.arange(start, end) for _, start, end in spans]))
