"""Speculative decoding on paper: the engine's planner, a known answer, and somebody who guesses.

Whoever has the answer sheet can say at once which guesses would have been right, without asking the
model. Speculation leaves a greedy answer unchanged, so the answer sheet of one plain run serves every
way of guessing: `replay` walks along it with the planner that the engine uses, asks for guesses where
the engine would ask, and counts. Nothing is left out but the clock; steps, tokens and acceptance come
out as the engine's own. `bernoulli` and `in_stretches` stand in for a guesser where there is no text:
they say of each guess whether it is right. Lesson 10 puts all of it beside the formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from servinglib.cache.block_pool import BlockPool
from servinglib.errors import InvalidSetting
from servinglib.policies.sequence import SequenceState
from servinglib.policies.stepping import StepPlanner

Guess = Callable[[list[int], int], Sequence[int]]
Right = Callable[[int], int]
"""From how many guesses are made to how many of them stand before the first wrong one."""
BLOCK = 16  # tokens in a page of the simulated cache, which never fills up


@dataclass(frozen=True, slots=True)
class Checked:
    """The guesses of one decode step of one sequence: how many were made, and how many stayed."""

    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Speculation:
    """What came of the guesses.

    Attributes
    ----------
    steps : tuple of Checked
        One for each decode step of each sequence, those without a guess included.
    """

    steps: tuple[Checked, ...]

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a decode step gave a sequence, its own one included."""
        return float(np.mean([1 + s.accepted for s in self.steps]))

    @property
    def kept_share(self) -> float:
        """Accepted over drafted, which is what dashboards show; guesses behind a wrong one count against it."""
        return sum(s.accepted for s in self.steps) / max(1, sum(s.drafted for s in self.steps))

    @property
    def acceptance(self) -> float:
        """The formula's α: of the guesses that were looked at, the share that was right."""
        right = sum(s.accepted for s in self.steps)
        return right / max(1, right + sum(s.accepted < s.drafted for s in self.steps))

    @classmethod
    def of(cls, records: Sequence[Any]) -> Speculation:
        """From the engine's step records of one request at a time."""
        if any(record.sequences != 1 for record in records):
            raise InvalidSetting(
                "these steps held several requests, and their guesses can't be told apart; send one at a time"
            )
        return cls(tuple(Checked(r.drafted, r.accepted) for r in records if not r.prefill_tokens))


@dataclass(slots=True)
class _Reader:
    """A sequence whose answer is known: what the planner's `item` is in the simulation."""

    prompt: list[int]
    answer: list[int]
    checked: list[Checked] = field(default_factory=list)


def replay(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    guess: Guess,
    draft_tokens: int = 4,
) -> Speculation:
    """What `guess` would have brought on answers that are known, one request after another.

    Parameters
    ----------
    prompts, answers : sequence of sequence of int
        Token ids; the answers are the model's own.
    guess : callable
        From the tokens so far and a count to at most so many guesses, as for the engine.
    draft_tokens : int
        Most guesses in a step.
    """
    steps: list[Checked] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        reader = _Reader(list(prompt), list(answer))

        def look(known: int, room: int, reader: _Reader = reader) -> Checked:
            made = list(guess(reader.prompt + reader.answer[:known], room))[:room]
            return Checked(len(made), _agreement(made, reader.answer[known:]))

        steps += _walk(len(reader.prompt), len(reader.answer), draft_tokens, look)
    return Speculation(tuple(steps))


def prompt_lookup(tokens: list[int], count: int) -> list[int]:
    """The engine's own prompt lookup, as a function of the tokens alone."""
    from servinglib.decoder.likelihood import paged_text
    from servinglib.engines.continuous.speculative import PromptLookup

    return PromptLookup().look_up(paged_text(tokens, len(tokens)), count)


def simulate(answer_tokens: int, right: Right, draft_tokens: int) -> Speculation:
    """A long answer in which `right` says how many guesses of each step are right."""
    steps = _walk(1, answer_tokens, draft_tokens, lambda known, room: Checked(room, right(room)))
    return Speculation(tuple(steps))


def bernoulli(alpha: float, rng: np.random.Generator) -> Right:
    """Every guess is right with probability α, whatever came before: the formula's world."""

    def right(room: int) -> int:
        wrong = rng.random(room) >= alpha
        return int(wrong.argmax()) if wrong.any() else room

    return right


def in_stretches(copying: float, else_: float, mean_length: float, rng: np.random.Generator) -> Right:
    """Stretches of steps that copy and stretches that don't: α is `copying` in one and `else_` in the other.

    Both kinds of stretch have a geometric length in steps with mean `mean_length`.
    """
    easy = bernoulli(copying, rng)
    hard = bernoulli(else_, rng)
    state = {"copies": True}

    def right(room: int) -> int:
        if rng.random() < 1 / mean_length:
            state["copies"] = not state["copies"]
        return (easy if state["copies"] else hard)(room)

    return right


def _walk(
    prompt: int, answer: int, draft_tokens: int, look: Callable[[int, int], Checked]
) -> Iterator[Checked]:
    """Plan and commit as the engine does, until the answer is there; yields each decode step's guesses."""
    sequence = SequenceState(None, prompt, answer)
    pool = BlockPool(-(-(prompt + answer) // BLOCK) + draft_tokens, BLOCK)
    planner = StepPlanner(pool, max_draft_tokens=draft_tokens)
    planner.add(sequence)
    while sequence.num_output_tokens < answer:
        plan = planner.plan(0.0)
        [share] = plan.scheduled
        if share.is_prefill:
            planner.commit(plan)
            continue
        checked = look(sequence.num_output_tokens, share.num_draft_tokens)
        planner.commit(plan, {sequence: checked.accepted} if checked.accepted else {})
        yield checked
    planner.remove(sequence)


def _agreement(made: Sequence[int], truth: Sequence[int]) -> int:
    """How many tokens agree before the first that doesn't."""
    pairs = enumerate(zip(made, truth, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(made), len(truth)))
