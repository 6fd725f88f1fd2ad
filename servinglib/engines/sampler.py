"""Which token comes next? From one row of scores per request to one token id each.

Greedy rows take the highest score. The others run a race: every token starts with a random delay
drawn from an exponential law, divided by its probability, and the first to arrive is the sample
(the smallest of independent Exp(1)/pᵢ is token i with probability pᵢ exactly). Each request draws
its delays from its own generator, so with a seed it gets the same tokens whatever else is in the
batch. A race is also kinder to rounding than adding up probabilities until they pass a threshold:
scores that differ in the last bit, as they do between batch sizes, change the winner only if two
tokens arrive at the same moment, not whenever the threshold falls near a border.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from servinglib.request import SamplingParams


class Sampler:
    """Chooses the next token of every row of a batch.

    Parameters
    ----------
    params : sequence of SamplingParams
        One per row.
    device : torch.device
        Where the scores will be.
    """

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        self._rows = [row for row, p in enumerate(params) if p.temperature > 0]
        chosen = [params[row] for row in self._rows]
        self._generators = [_generator(p.seed, device) for p in chosen]
        self._temperature = torch.tensor([[p.temperature] for p in chosen], device=device)
        self._top_k = torch.tensor([[p.top_k or 2**31] for p in chosen], device=device)
        self._top_p = torch.tensor([[p.top_p] for p in chosen], device=device)
        self._filtered = any(p.top_k or p.top_p < 1 for p in chosen)

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Token ids, (batch,), from logits, (batch, vocabulary)."""
        tokens = logits.argmax(-1)
        if self._rows:
            scaled = logits[self._rows].float() / self._temperature
            if self._filtered:
                scaled = keep_likely(scaled, self._top_k, self._top_p)
            tokens[self._rows] = self._race(scaled.softmax(-1))
        return tokens

    def _race(self, probabilities: torch.Tensor) -> torch.Tensor:
        """One winner per row of probabilities, (rows, vocabulary)."""
        delays = torch.empty_like(probabilities)
        for row, generator in zip(delays, self._generators, strict=True):
            row.exponential_(generator=generator)
        return (probabilities / delays).argmax(-1)


def keep_likely(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Scores with all but the likeliest tokens of each row set to minus infinity.

    Parameters
    ----------
    scores : Tensor, (rows, vocabulary)
        Logits, already divided by the temperature.
    top_k, top_p : Tensor, (rows, 1)
        Keep at most k tokens, and of those (renormalised) the fewest that together have
        probability p. The likeliest token always stays.
    """
    ordered, token = scores.sort(descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    ordered = ordered.masked_fill(rank >= top_k, -torch.inf)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability  # of all tokens likelier than this one
    ordered = ordered.masked_fill((before >= top_p) & (rank > 0), -torch.inf)
    return torch.full_like(scores, -torch.inf).scatter(-1, token, ordered)


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed % 2**63)  # torch's range; any integer is a seed
    return generator
