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
from transformers import AutoConfig

from servinglib.engines.continuous.attention import TorchAttention
from servinglib.engines.continuous.linear import linear_class
from servinglib.engines.continuous.model import Decoder, RotaryTable, TorchOperations, Weights
from servinglib.engines.continuous.pages import Span
from servinglib.engines.continuous.shape import DecoderShape
from servinglib.engines.continuous.step import Proposal, score
from servinglib.engines.sampler import Row
from servinglib.models.loading import find_checkpoint
from servinglib.policies.sequence import SequenceState
from servinglib.request import SamplingParams

BLOCK = 16  # tokens in a page


@dataclass(slots=True)
class Text:
    """A text in place of a request."""

    tokens: list[int]
    row: Row = (SamplingParams(), None)


def load_decoder(
    model: str, dtype: torch.dtype, quantization: str | None = None, tokens: int = 2048
) -> tuple[Decoder, TorchAttention]:
    """A model on the CPU, with pages for so many tokens.

    Raises
    ------
    UnknownName, ModelUnavailable
        If the model can't be had.
    """
    folder = find_checkpoint(model)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    shape, cpu = DecoderShape.from_config(config), torch.device("cpu")
    with torch.inference_mode():
        decoder = Decoder(
            shape,
            Weights(folder, dtype, cpu),
            linear_class(quantization, dtype, cpu),
            TorchOperations(shape, RotaryTable(config, shape.context_length, cpu)),
        )
        return decoder, TorchAttention(shape, -(-tokens // BLOCK), BLOCK, dtype)


def paged_text(tokens: Sequence[int], length: int, first_block: int = 0) -> SequenceState:
    """A text as a sequence that holds its pages, for `length` tokens, from block number `first_block` on."""
    sequence = SequenceState(Text(list(tokens)), length, 1)
    sequence.blocks = list(range(first_block, first_block - (-length // BLOCK)))
    return sequence


@torch.inference_mode()
def negative_log_likelihood(
    decoder: Decoder, attention: TorchAttention, tokens: Sequence[int]
) -> torch.Tensor:
    """Nats of surprise at each token but the first, (len(tokens) - 1,) float32."""
    read = len(tokens) - 1
    sequence = paged_text(tokens[:1], read)
    rest = {sequence: Proposal(list(tokens[1:-1]))}
    _, scores = score(decoder, attention, [], [Span(sequence, 0, read)], rest)
    attention.forget(sequence)
    return torch.nn.functional.cross_entropy(scores.float(), torch.tensor(tokens[1:]), reduction="none")
