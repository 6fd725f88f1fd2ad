"""Computes a step and decides nothing: a plan goes in, each served sequence's next tokens come out.

    plan -> spans -> packed tokens, positions -> model -> scores -> sampler -> next tokens

Only a sequence that has then read all it has gets a next token.
With speculative decoding a proposer guesses how each decoding sequence goes on. The model then reads
the guesses along with the sequence's own last token, in the same step, and `verify` keeps those that
the model itself would have chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from servinglib.decoder.model import Decoder
from servinglib.decoder.pages import Span
from servinglib.decoder.step import (
    Arrival,
    Late,
    Outcome,
    PagedAttention,
    Proposal,
    Scored,
    score,
)
from servinglib.decoder.threads import dismiss_team
from servinglib.engines.continuous.speculative import Proposer, verify
from servinglib.engines.sampler import Row, choose, new_generator
from servinglib.policies.sequence import Scheduled, SequenceState, StepPlan
from servinglib.request import Logprob, SamplingParams

if TYPE_CHECKING:
    from servinglib.decoder.graphs import DecodeGraphs


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was launched: who gets tokens, these, and the scores if somebody wants to know."""

    scored: list[Scored]
    tokens: Arrival
    scores: torch.Tensor | None


class Runner:
    """Owns the model and the pages; every call must come from one thread.

    Parameters
    ----------
    model : Decoder
    attention : PagedAttention
    proposer : Proposer, optional
        Guesses tokens, for speculative decoding.
    graphs : DecodeGraphs, optional
        Decode steps that a GPU does as one launch.

    Attributes
    ----------
    drafted : int
        Guesses that the last step checked.
    """

    def __init__(
        self,
        model: Decoder,
        attention: PagedAttention,
        proposer: Proposer | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self.model, self.attention, self.proposer, self.graphs = model, attention, proposer, graphs
        self.drafted = 0
        self._late: Late | None = None

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Outcome]:
        """Compute the step; one outcome for each sequence that has no known token left to read."""
        guesses = self.proposer.propose(plan) if self.proposer else {}
        self.drafted = sum(len(s.tokens) for s in guesses.values())
        if not guesses:
            return self.finish(self.start(plan))
        scored, scores = self._score(plan, guesses, None)
        return _with_logprobs(verify(scored, scores, guesses), scored, scores)

    @torch.inference_mode()
    def start(self, plan: StepPlan) -> Flight:
        """Launch a step without guesses; the tokens of the step before may still be in flight."""
        if self.graphs is not None and self.graphs.serve(plan):
            scores = None
            scored, tokens = self.graphs.start(plan, self._late)
        else:
            scored, scores = self._score(plan, {}, self._late)
            tokens = choose(scores, [s.sequence.item.row for s in scored])
        self._late = Late(tokens, {s.sequence: row for row, s in enumerate(scored)})
        told = any(s.sequence.item.row[0].logprobs is not None for s in scored)
        return Flight(scored, Arrival(tokens), scores if told else None)

    @torch.inference_mode()
    def finish(self, flight: Flight) -> list[Outcome]:
        """Wait for the tokens of a step that was launched."""
        tokens = flight.tokens.wait()
        outcomes = [Outcome(s.sequence, [token]) for s, token in zip(flight.scored, tokens, strict=True)]
        return outcomes if flight.scores is None else _with_logprobs(outcomes, flight.scored, flight.scores)

    def _score(
        self, plan: StepPlan, guesses: Mapping[SequenceState, Proposal], late: Late | None
    ) -> tuple[list[Scored], torch.Tensor]:
        decodes = [_span(s, guesses) for s in plan.scheduled if not s.is_prefill]
        prompts = [_span(s, guesses) for s in plan.scheduled if s.is_prefill]
        return score(self.model, self.attention, decodes, prompts, guesses, late)

    def row(self, params: SamplingParams, choice: int) -> Row:
        """How to choose the tokens of a request's answer number `choice`: each has a source of chance of its own."""
        if params.temperature == 0:
            return params, None
        seed = params.seed if params.seed is None or choice == 0 else hash((params.seed, choice))
        return params, new_generator(seed, self.model.embeddings.device)

    def rest(self) -> None:
        """There is nothing to compute for a while."""
        dismiss_team()

    @torch.inference_mode()
    def forget(self, sequence: SequenceState) -> None:
        """The sequence is finished, aborted or preempted."""
        self.attention.forget(sequence)
        if self.proposer:
            self.proposer.forget(sequence)


def _span(share: Scheduled, guesses: Mapping[SequenceState, Proposal]) -> Span:
    """The tokens of a share; of the guesses it has room for, those that were made."""
    sequence, count, _, room = share
    start = sequence.num_computed_tokens
    if room:
        made = guesses.get(sequence)
        count += min(room, len(made.tokens) if made else 0) - room
    return Span(sequence, start, start + count)


def _with_logprobs(outcomes: list[Outcome], scored: Sequence[Scored], scores: torch.Tensor) -> list[Outcome]:
    """Add what the model thought of each token to the outcomes of requests that ask for it."""
    told = []
    for outcome, (sequence, first, _) in zip(outcomes, scored, strict=True):
        likeliest = sequence.item.row[0].logprobs
        if likeliest is not None:
            rows = scores[first : first + len(outcome.tokens)].float().log_softmax(-1)
            outcome = outcome._replace(
                logprobs=[_logprob(row, t, likeliest) for row, t in zip(rows, outcome.tokens, strict=True)]
            )
        told.append(outcome)
    return told


def _logprob(row: torch.Tensor, token: int, likeliest: int) -> Logprob:
    values, tokens = row.topk(likeliest)
    return Logprob(float(row[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
