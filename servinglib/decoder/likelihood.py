"""How much does a text surprise the model? The decoder alone, without an engine around it.

A reader who knows how the sentence ends isn't surprised by its last word. The surprise of a token is
minus the logarithm of the probability that the model had given it; its mean over text that the model
has not seen is the one figure by which number formats can be compared. The text goes through the same
`score` as everything else: one known token, and the rest of the text as guesses to be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from servinglib.decoder.loading import BLOCK
from servinglib.decoder.model import Decoder
from servinglib.decoder.pages import Span
from servinglib.decoder.step import PagedAttention, Proposal, score
from servinglib.policies.sequence import SequenceState


@dataclass(slots=True)
class Text:
    """A text in place of a request."""

    tokens: list[int]


def paged_text(tokens: Sequence[int], length: int, first_block: int = 0) -> SequenceState:
    """A text as a sequence that holds its pages, for `length` tokens, from block number `first_block` on."""
    sequence = SequenceState(Text(list(tokens)), length, 1)
    sequence.blocks = list(range(first_block, first_block - (-length // BLOCK)))
    return sequence


@torch.inference_mode()
def negative_log_likelihood(
    decoder: Decoder, attention: PagedAttention, tokens: Sequence[int]
) -> torch.Tensor:
    """Nats of surprise at each token but the first, (len(tokens) - 1,) float32."""
    read = len(tokens) - 1
    sequence = paged_text(tokens[:1], read)
    rest = {sequence: Proposal(list(tokens[1:-1]))}
    _, scores = score(decoder, attention, [], [Span(sequence, 0, read)], rest)
    attention.forget(sequence)
    return torch.nn.functional.cross_entropy(scores.float(), torch.tensor(tokens[1:]), reduction="none")
