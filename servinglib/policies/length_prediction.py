"""How long will the answer be? Guesses for a scheduler that wants to serve the short ones first.

At the post office one would like to let those go ahead who only buy a stamp, but nobody wears a sign.
One may ask a clairvoyant, assume that everybody takes as long as people took so far, or look at the
parcels and be wrong by some factor. Which of these is enough for `ShortestRemaining`
(`policies.scheduling`) is a question of lesson 07: the clairvoyant shows what could be gained at best,
and noise, turned up step by step, how good a predictor must be to be worth having.

Whoever runs the planner asks once per sequence, after `StepPlanner.add`, keeps the answer in
`SequenceState.predicted_output_tokens`, and shows each sequence again when it is finished.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.policies.sequence import SequenceState


class LengthPredictor(Protocol):
    """Anything that guesses how many tokens a sequence will generate in all."""

    def predict(self, sequence: SequenceState) -> float: ...

    def observe(self, sequence: SequenceState) -> None:
        """Learn from a sequence that is finished; most have nothing to learn."""


class Oracle(LengthPredictor):
    """Always right, where every answer ends at its `max_tokens`.

    That is so in a simulation, and in an engine that is told to ignore the end of text. Elsewhere
    `max_tokens` is a promise of the caller, and this is the rule that believes it.
    """

    def predict(self, sequence: SequenceState) -> float:
        """The most that may be generated, in tokens."""
        return float(sequence.max_tokens)


class MeanLength(LengthPredictor):
    """The mean of all answers so far.

    It can't tell two newcomers apart: with it, those go first that have generated most already, and
    among the waiting ones those that came while the mean was low.

    Parameters
    ----------
    prior_tokens : float
        What is expected before anything is known; counts as one answer, at least 1 token.
    """

    def __init__(self, prior_tokens: float = 100.0) -> None:
        if not 1 <= prior_tokens < math.inf:
            raise InvalidSetting(f"prior_tokens={prior_tokens:g} must be a length of at least 1 token")
        self._total, self._count = prior_tokens, 1

    def predict(self, sequence: SequenceState) -> float:
        """The mean so far, in tokens, the same for everybody."""
        return self._total / self._count

    def observe(self, sequence: SequenceState) -> None:
        """Let a finished answer count."""
        self._total += sequence.num_output_tokens
        self._count += 1


class NoisyLength(LengthPredictor):
    """The truth times a lognormal error: as often too long as too short.

    A request's error depends on the seed and its number alone, so two policies, or two machines, get
    the same guesses whatever they ask first.

    Parameters
    ----------
    sigma : float
        Standard deviation of the error's logarithm, at least 0; at 0.7 one guess in three is wrong by
        a factor of 2 or more.
    seed : int
        At least 0.
    """

    def __init__(self, sigma: float, seed: int = 0) -> None:
        if not 0 <= sigma < math.inf or seed < 0:
            raise InvalidSetting(f"sigma={sigma:g} and seed={seed} must both be at least 0, and finite")
        self._sigma, self._seed = sigma, seed

    def predict(self, sequence: SequenceState) -> float:
        """The most that may be generated, times this request's error, in tokens."""
        if sequence.number < 0:
            raise InvalidSetting("the sequence has no number yet; add it to the planner before predicting")
        error = np.random.default_rng((self._seed, sequence.number)).standard_normal()
        return sequence.max_tokens * math.exp(self._sigma * error)
