"""Steps on squared paper: a row for each request or seat, a column for each token step.

A musical score shows at a glance who plays and who pauses. `walk` writes the score of a planner, step by
step, for a handful of requests; `draw` prints it. `seat_chart` is the same for many requests, with a row
for each seat, so that the empty ones can be seen. Lesson 06 reads both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from servinglib.plots import COLOURS
from servinglib.policies.sequence import SequenceState
from servinglib.policies.stepping import StepPlanner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Deed = Literal["prompt", "token", "again", "waits"]
SHADES: dict[str, str] = {
    "prompt": COLOURS["blue"],
    "token": COLOURS["amber"],
    "again": COLOURS["orange"],
    "waits": "#DDDDDD",
}


@dataclass(frozen=True, slots=True)
class Guest:
    """A request on paper.

    Attributes
    ----------
    arrival : int
        The step in which it can first be let in.
    prompt_tokens, output_tokens : int
    """

    arrival: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Square:
    """What one request did in one step.

    Attributes
    ----------
    step : int
    name : str
    deed : {"prompt", "token", "again", "waits"}
        It read its prompt, decoded, read again what it had lost, or waited.
    tokens : int
        That were computed for it.
    """

    step: int
    name: str
    deed: Deed
    tokens: int


def walk(planner: StepPlanner, guests: Mapping[str, Guest]) -> list[Square]:
    """Let a planner serve the guests, one step after another, and write down who got what."""
    expected = {
        name: SequenceState(name, g.prompt_tokens, g.output_tokens, g.arrival) for name, g in guests.items()
    }
    squares, step = [], 0
    while expected or planner.waiting or planner.running:
        for name in [name for name, sequence in expected.items() if sequence.arrival <= step]:
            planner.add(expected.pop(name))
        plan = planner.plan(step)
        for share in plan.scheduled:
            squares.append(Square(step, share.sequence.item, _deed(share.sequence), share.num_tokens))
        squares += [Square(step, sequence.item, "waits", 0) for sequence in planner.waiting]
        for sequence in planner.commit(plan):
            if sequence.num_output_tokens == sequence.max_tokens:
                planner.remove(sequence)
        step += 1
    return squares


def _deed(sequence: SequenceState) -> Deed:
    if sequence.is_decoding:
        return "token"
    return "again" if sequence.num_preemptions else "prompt"


def draw(ax: Axes, squares: Sequence[Square]) -> None:
    """One square per request and step, with its tokens in it."""
    names = list(dict.fromkeys(square.name for square in squares))
    for square in squares:
        row = names.index(square.name)
        ax.barh(row, 0.94, 0.82, square.step - 0.47, color=SHADES[square.deed])
        text = str(square.tokens) if square.tokens else ""
        ink = "black" if square.deed == "token" else "white"
        ax.text(square.step, row, text, ha="center", va="center", color=ink, fontsize=10)
    for deed in dict.fromkeys(square.deed for square in squares):
        ax.barh(0, 0, color=SHADES[deed], label=deed)
    steps = max(square.step for square in squares) + 1
    ax.set(xlim=(-0.6, steps - 0.4), xticks=range(steps), yticks=range(len(names)), yticklabels=names)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.legend(ncols=len(SHADES), loc="upper center", bbox_to_anchor=(0.5, -0.3), frameon=False)


def seat_chart(members: Sequence[Sequence[int]], seats: int) -> np.ndarray:
    """Who sits where, shape (seats, steps), from the members of each step; -1 is an empty seat.

    Whoever comes takes the first free seat and keeps it.
    """
    chart, row = np.full((seats, len(members)), -1), [-1] * seats
    for step, present in enumerate(members):
        row = [who if who in present else -1 for who in row]
        for who in present:
            if who not in row:
                row[row.index(-1)] = who
        chart[:, step] = row
    return chart


def coach_members(outputs: Sequence[int], seats: int) -> list[list[int]]:
    """Members of each step when batches of `seats` go one after the other, finished ones left out."""
    steps = []
    for first in range(0, len(outputs), seats):
        batch = range(first, min(first + seats, len(outputs)))
        steps += [[i for i in batch if outputs[i] > done] for done in range(max(outputs[i] for i in batch))]
    return steps
