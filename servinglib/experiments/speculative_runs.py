"""Speculative decoding on the real engine: what a wider step costs, and who decodes faster.

Two questions, and the formula has a symbol for each. A waiter who carries five plates walks a little
slower than with one: `measure_step_cost` times steps that check so many guesses, right or wrong. And
`race` lets engines answer the same prompts in turns, so that a slow moment of the machine is shared, and
counts the time of their decode steps. The simulations of `speculation.py` predict its result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.continuous.statistics import StepRecord
from servinglib.experiments.speculation import Speculation
from servinglib.workload import token_prompts

PROMPT = 32  # tokens of the prompts behind which step costs are measured


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a decode step costs that checks so many guesses per sequence.

    Attributes
    ----------
    seconds : dict of int to dict of int to float
        By batch size and number of guesses; 0 guesses is plain decoding.
    """

    seconds: dict[int, dict[int, float]]

    def __call__(self, guesses: float, batch: int = 1) -> float:
        """Seconds, linear between the numbers that were measured."""
        known = self.seconds[batch]
        return float(np.interp(guesses, list(known), list(known.values())))

    def relative(self, guesses: float, batch: int = 1) -> float:
        """The same in plain decode steps of that batch: the formula's r(k)."""
        return self(guesses, batch) / self(0, batch)

    def of(self, run: Speculation) -> float:
        """Seconds of all steps of a run, one request at a time."""
        return sum(self(step.drafted) for step in run.steps)


def measure_step_cost(
    model: str,
    batches: Sequence[int] = (1,),
    guesses: Sequence[int] = (0, 1, 2, 4, 8),
    tokens: int = 12,
    rounds: int = 2,
    **options: Any,
) -> StepCost:
    """Time decode steps with guesses that are all wrong, so that every step checks as many as it is told.

    Parameters
    ----------
    model : str
    batches, guesses : sequence of int
        Ascending; the numbers of guesses begin with 0.
    tokens : int
        Of each answer: so many steps are timed per round.
    rounds : int
        Turns of each number of guesses.
    options
        For `ContinuousEngine.load`.
    """
    width = 0

    def wrong(known: list[int], room: int) -> list[int]:
        return [0] * min(width, room)  # the end of the text, which a greedy model does not see coming

    found: dict[int, dict[int, list[float]]] = {b: {g: [] for g in guesses} for b in batches}
    options = {"speculative": wrong, "draft_tokens": max(guesses), "max_num_seqs": max(batches)} | options
    with ContinuousEngine.load(model, **options) as engine:
        for turn in range(-1, rounds):  # the first turn warms up
            for batch in batches:
                for width in guesses:
                    prompts = token_prompts([PROMPT] * batch, engine.vocabulary, seed=turn + 1)
                    start = time.perf_counter()
                    engine.generate(prompts, max_tokens=tokens + width + 1, ignore_eos=True)
                    steps = _decode_steps(engine, [(start, time.perf_counter())])
                    full = [s.end - s.start for s in steps if s.drafted == batch * width]
                    if turn >= 0:
                        found[batch][width] += full[:tokens]
    return StepCost({b: {g: median(times) for g, times in by.items()} for b, by in found.items()})


@dataclass(slots=True)
class Decoded:
    """What one engine did in a race.

    Attributes
    ----------
    answers : list of list of int
        Token ids, by prompt.
    steps : list of StepRecord
        Decode steps; those that read prompts don't count.
    """

    answers: list[list[int]] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all decode steps."""
        return sum(step.end - step.start for step in self.steps)

    @property
    def speculation(self) -> Speculation:
        """What came of its guesses, if requests came one at a time."""
        return Speculation.of(self.steps)


def race(
    engines: Mapping[str, ContinuousEngine],
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    batch: int = 1,
    temperature: float = 0.0,
) -> dict[str, Decoded]:
    """Let the engines answer the same prompts, `batch` at a time, one engine after another for each batch.

    A first batch warms up and doesn't count.
    """
    found = {name: Decoded() for name in engines}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    starts = range(0, len(prompts), batch)
    for turn, first in enumerate([0, *starts]):
        for name, engine in engines.items():
            group = [list(p) for p in prompts[first : first + batch]]
            start = time.perf_counter()
            answers = engine.generate(
                group, max_tokens=max_tokens, ignore_eos=True, temperature=temperature, seed=first
            )
            if turn:
                turns[name].append((start, time.perf_counter()))
                found[name].answers += [list(a.token_ids) for a in answers]
    for name, engine in engines.items():
        found[name].steps = _decode_steps(engine, turns[name])
    return found


def _decode_steps(engine: ContinuousEngine, turns: Sequence[tuple[float, float]]) -> list[StepRecord]:
    """The decode steps that began in one of the turns.

    A step is written down after its tokens have been told, so the last one may still be missing; it is
    there once the engine has answered something else.
    """
    engine.generate([[1]], max_tokens=1)
    within = [s for s in engine.steps if any(start <= s.start <= end for start, end in turns)]
    return [s for s in within if not s.prefill_tokens]
