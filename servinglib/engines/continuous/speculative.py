"""Speculative decoding: guess cheaply, check all guesses in one step, keep what is right.

A minister's assistant drafts the next lines of a letter; the minister reads them all at one glance and
strikes out everything from the first word that is not the minister's own. A decode step reads all
weights to compute one token, and reading is what takes the time, so computing five tokens in it costs
little more. Whether it pays depends on how many guesses are right and on what they cost; lesson 10
has the formula.

The answer is exactly the model's own. Greedy: a guess stays if it is the token that the model would
have taken. Sampled: with p the model's probability of a guess and q the guesser's, it stays with
probability min(1, p/q), and where it falls the token is drawn anew from what p has over q
(Leviathan et al. 2023, arXiv:2211.17192, appendix A.1; Chen et al. 2023, arXiv:2302.01318).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from servinglib.decoder.model import Decoder
from servinglib.decoder.pages import Span
from servinglib.decoder.step import Outcome, PagedAttention, Proposal, Scored, score
from servinglib.engines.continuous.settings import Guess
from servinglib.engines.sampler import choose, greedy, probabilities, race
from servinglib.policies.sequence import SequenceState, StepPlan


class Proposer(Protocol):
    """Guesses how sequences go on."""

    def propose(self, plan: StepPlan) -> dict[SequenceState, Proposal]:
        """Guesses for those decoding sequences that the plan has room for; at most as many as that."""
        ...

    def forget(self, sequence: SequenceState) -> None:
        """The sequence is finished, aborted or preempted."""


class PromptLookup:
    """Guesses that what followed the last few tokens before will follow them again.

    Free of charge, and good where answers quote their prompt: summaries, edits, code.

    Parameters
    ----------
    longest, shortest : int
        Tokens that must match; longer matches are tried first, and the latest place wins.
    """

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        self.longest, self.shortest = longest, shortest

        self._tables: dict[SequenceState, tuple[dict[tuple[int, ...], int], int]] = {}

    def propose(self, plan: StepPlan) -> dict[SequenceState, Proposal]:
        found = {}
        for sequence, _, _, room in plan.scheduled:
            if room and (tokens := self.look_up(sequence, room)):
                found[sequence] = Proposal(tokens)
        return found

    def look_up(self, sequence: SequenceState, count: int) -> list[int]:
        """What followed the latest earlier occurrence of the last tokens; at most `count` tokens."""
        tokens: list[int] = sequence.item.tokens
        table, seen = self._tables.get(sequence, ({}, 1))
        lengths = range(self.shortest, self.longest + 1)
        for end in range(seen, len(tokens)):  # the ending itself stays out: it would find itself
            table.update((tuple(tokens[end - n : end]), end) for n in lengths if n <= end)
        self._tables[sequence] = table, len(tokens)
        endings = (tuple(tokens[-n:]) for n in reversed(lengths))
        at = next((table[ending] for ending in endings if ending in table), len(tokens))
        return tokens[at : at + count]

    def forget(self, sequence: SequenceState) -> None:
        self._tables.pop(sequence, None)


class GuessFunction:
    """Guesses with a function of one's own.

    Parameters
    ----------
    guess : callable
        From the tokens so far and a count to at most so many guesses; none is fine.
    """

    def __init__(self, guess: Guess) -> None:
        self.guess = guess

    def propose(self, plan: StepPlan) -> dict[SequenceState, Proposal]:
        found = {}
        for sequence, _, _, room in plan.scheduled:
            if room and (tokens := list(self.guess(list(sequence.item.tokens), room))[:room]):
                found[sequence] = Proposal(tokens)
        return found

    def forget(self, sequence: SequenceState) -> None:
        """Nothing is remembered."""


class DraftModel:
    """Guesses with a smaller model of the same vocabulary.

    It reads what the large model reads, and keeps its own keys and values in pages of the same
    numbers, so that one block table serves both, cached prefixes included.

    Parameters
    ----------
    model : Decoder
    attention : PagedAttention
    """

    def __init__(self, model: Decoder, attention: PagedAttention) -> None:
        self.model, self.attention = model, attention
        self._computed: dict[SequenceState, int] = {}

    def propose(self, plan: StepPlan) -> dict[SequenceState, Proposal]:
        prompts = [self._behind(s.sequence, s.num_tokens) for s in plan.scheduled if s.is_prefill]
        rooms = {s.sequence: s.num_draft_tokens for s in plan.scheduled if s.num_draft_tokens}
        decodes = [self._behind(sequence, 1) for sequence in rooms]
        tokens: dict[SequenceState, list[int]] = {sequence: [] for sequence in rooms}
        drawn: dict[SequenceState, list[torch.Tensor]] = {sequence: [] for sequence in rooms}
        while decodes or prompts:
            guesses = {s: Proposal(made) for s, made in tokens.items()}
            scored, scores = score(self.model, self.attention, decodes, prompts, guesses)
            wanted = [s for s in scored if s.sequence in rooms]
            for sequence, token, row in _draw(wanted, scores):
                tokens[sequence].append(token)
                drawn[sequence] += [row] if row is not None else []
            for sequence, _, end in (*decodes, *prompts):
                self._computed[sequence] = end
            decodes = [Span(s, e, e + 1) for s, _, e in decodes if len(tokens[s]) < rooms[s]]
            prompts = []
        return {s: Proposal(made, torch.stack(drawn[s]) if drawn[s] else None) for s, made in tokens.items()}

    def forget(self, sequence: SequenceState) -> None:
        self.attention.forget(sequence)
        self._computed.pop(sequence, None)

    def _behind(self, sequence: SequenceState, count: int) -> Span:
        """From where this model is in the sequence to where the large one will be."""
        known = sequence.num_computed_tokens  # what it read beyond that were guesses, perhaps wrong ones
        return Span(sequence, min(self._computed.get(sequence, known), known), known + count)


def _draw(
    scored: Sequence[Scored], scores: torch.Tensor
) -> list[tuple[SequenceState, int, torch.Tensor | None]]:
    """One guess per sequence, and for those that sample, the probabilities that it was drawn from."""
    last = scores[[s.first + s.rows - 1 for s in scored]]
    likeliest = greedy(last).tolist()
    guesses: list[tuple[SequenceState, int, torch.Tensor | None]] = []
    for (sequence, _, _), row, token in zip(scored, last, likeliest, strict=True):
        params, generator = sequence.item.row
        if params.temperature > 0:
            q = probabilities(row[None], [params])
            guesses.append((sequence, int(race(q, [generator])), q[0]))
        else:
            guesses.append((sequence, token, None))
    return guesses


def verify(
    scored: Sequence[Scored], scores: torch.Tensor, guesses: Mapping[SequenceState, Proposal]
) -> list[Outcome]:
    """Keep each sequence's right guesses and add the model's own next token."""
    likeliest = greedy(scores).tolist()
    outcomes = []
    for sequence, first, rows in scored:
        params, generator = sequence.item.row
        mine = slice(first, first + rows)
        if params.temperature == 0:
            made = guesses[sequence].tokens[: rows - 1] if rows > 1 else []
            outcomes.append(Outcome(sequence, accept_greedy(made, likeliest[mine])))
        elif rows == 1:
            outcomes.append(Outcome(sequence, choose(scores[mine], [sequence.item.row]).tolist()))
        else:
            p = probabilities(scores[mine], [params] * rows)
            outcomes.append(Outcome(sequence, accept_sampled(guesses[sequence], p, generator)))
    return outcomes


def accept_greedy(guesses: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """The guesses up to the first that the model did not choose, and the model's token there."""
    right = 0
    while right < len(guesses) and guesses[right] == chosen[right]:
        right += 1
    return list(chosen[: right + 1])


def accept_sampled(proposal: Proposal, p: torch.Tensor, generator: torch.Generator | None) -> list[int]:
    """Tokens distributed as if they had been drawn one by one from the rows of p.

    Parameters
    ----------
    proposal : Proposal
    p : Tensor, (guesses + 1, vocabulary)
        The model's probabilities at each guess, and behind the last one.
    generator : torch.Generator or None
    """
    tokens: list[int] = []
    for i, (token, row) in enumerate(zip(proposal.tokens, p[:-1], strict=False)):
        q = _certain(token, row) if proposal.probabilities is None else proposal.probabilities[i]
        if torch.rand((), generator=generator, device=p.device) * q[token] >= row[token]:
            rest = (row - q).clamp(min=0)
            return [*tokens, int(race(rest[None], [generator]))]
        tokens.append(token)
    return [*tokens, int(race(p[len(tokens)][None], [generator]))]


def _certain(token: int, like: torch.Tensor) -> torch.Tensor:
    """All probability on one token."""
    q = torch.zeros_like(like)
    q[token] = 1
    return q
