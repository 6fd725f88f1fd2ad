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
    """Chooses the next token of every row of a batch that stays together.

    Parameters
    ----------
    params : sequence of SamplingParams
        One per row.
    device : torch.device
        Where the scores will be.
    """

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        self._rows = [(p, new_generator(p.seed, device) if p.temperature > 0 else None) for p in params]

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Token ids, (batch,), from logits, (batch, vocabulary)."""
        return choose(logits, self._rows)


Row = tuple[SamplingParams, torch.Generator | None]
"""How to choose one row's token; the generator is None where nothing is drawn."""


def choose(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Token ids, (rows,), from logits, (rows, vocabulary)."""
    tokens = greedy(logits)
    drawn = [i for i, (params, _) in enumerate(rows) if params.temperature > 0]
    if drawn:
        p = probabilities(logits[drawn], [rows[i][0] for i in drawn])
        tokens[drawn] = race(p, [rows[i][1] for i in drawn])
    return tokens


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, (rows,), the first one among equals.

    On a CPU NumPy looks for the maximum, among the numbers' bit patterns read as integers: the order of
    positive floating-point numbers is that of their bits, and negative ones come out below them all.
    That is a hundred times as fast as torch's argmax (64 rows of 8,192 bfloat16 scores: 14 us).
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    bits = logits.contiguous().view(_BITS[logits.element_size()]).numpy()
    tokens = bits.argmax(-1)
    if (bits[range(len(bits)), tokens] <= 0).any():  # a row without a positive score
        return logits.argmax(-1)
    return torch.from_numpy(tokens)


_BITS = {2: torch.int16, 4: torch.int32}


def probabilities(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """What each row draws from, (rows, vocabulary) float32; every temperature must be above zero."""
    device = logits.device
    scaled = logits.float() / torch.tensor([[p.temperature] for p in params], device=device)
    if any(p.top_k or p.top_p < 1 for p in params):
        top_k = torch.tensor([[p.top_k or 2**31] for p in params], device=device)
        scaled = keep_likely(scaled, top_k, torch.tensor([[p.top_p] for p in params], device=device))
    return scaled.softmax(-1)


def race(probabilities: torch.Tensor, generators: Sequence[torch.Generator | None]) -> torch.Tensor:
    """One winner per row of probabilities, (rows, vocabulary)."""
    delays = torch.empty_like(probabilities)
    for row, generator in zip(delays, generators, strict=True):
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


def new_generator(seed: int | None, device: torch.device) -> torch.Generator:
    """A request's own source of chance; without a seed, a different one every time."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed % 2**63)  # torch's range; any integer is a seed
    return generator
