"""Who goes first? The order in which requests enter the running batch, and in which they must leave it.

A ward takes patients by the hour of their coming, or by how ill they are, or those first who will be
out again soon. When a bed is wanted and none is free, the one who would be last in that order gives
up theirs. And on the round not every patient need be seen each time: a rule may pick those who can be
treated together. So a rule answers two questions:

    order         who is let in first, and who, being last, is preempted first?
    decode_batch  which of the sequences that decode get a token in this step? All, if nothing is said.

Each rule is a few lines that sort; it holds no clock and touches no tensor, so the engine and the
simulator use the same one. *Length* below is the current position of a sequence: its prompt and what
it has generated so far. What it will still generate nobody knows; `length_prediction` guesses.

Lesson 07 compares the rules: whom each of them helps, and whom it starves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from servinglib.errors import InvalidSetting, UnknownName
from servinglib.policies.sequence import SequenceState

BUCKET_WIDTH = 32
"""Lengths that `ShortestInBuckets` takes for equal: 0 to 32, 33 to 64, and so on."""


class SchedulingPolicy(Protocol):
    """Anything that can put sequences in order and say which of them step together.

    With `decode_batch` a rule owes the planner one thing: among sequences that decode, at least one
    must step. Whether each of them does at some time is what makes a rule fair.
    """

    def order(self, requests: Iterable[SequenceState], now: float) -> list[SequenceState]:
        """The same sequences, the first to be served first; `now` is in seconds."""
        ...

    def decode_batch(self, decoding: Sequence[SequenceState], now: float) -> Sequence[SequenceState]:
        """Those of the `decoding` sequences that take a token in this step."""
        return decoding


class FirstComeFirstServed(SchedulingPolicy):
    """By arrival: nobody is overtaken, and a long request makes all behind it wait."""

    def order(self, requests: Iterable[SequenceState], now: float) -> list[SequenceState]:
        """Earliest arrival first."""
        return sorted(requests, key=lambda s: (s.arrival, s.number))


class ByPriority(SchedulingPolicy):
    """By priority, and by arrival among equals; while urgent ones keep coming, the rest starves."""

    def order(self, requests: Iterable[SequenceState], now: float) -> list[SequenceState]:
        """Highest priority first."""
        return sorted(requests, key=lambda s: (-s.priority, s.arrival, s.number))


class ShortestFirst(SchedulingPolicy):
    """By length, shortest first: the mean wait falls, and while short ones keep coming, long ones starve."""

    def order(self, requests: Iterable[SequenceState], now: float) -> list[SequenceState]:
        """Least length first."""
        return sorted(requests, key=lambda s: (s.num_tokens, s.arrival, s.number))


class ShortestAligned(ShortestFirst):
    """Shortest first, and only the shortest step, until they have caught up with the next longer ones.

    From lengths [50, 52, 55, 60, 100] the first steps alone; at 52 it is joined by the second, at 55
    by the third, at 60 by the fourth. A step then holds sequences of one length only, so nothing is
    padded, but it holds few of them before the clusters have formed. With a paged attention kernel,
    which pads nothing anyway, that price buys nothing.

    Everybody moves on in the end if no shorter ones come: the shortest either catch up or finish. If
    shorter ones come without end, a long sequence stands still for as long, inside the batch and with
    its blocks held. Nothing here prevents that.
    """

    def decode_batch(self, decoding: Sequence[SequenceState], now: float) -> Sequence[SequenceState]:
        """All that have the least length."""
        least = min((s.num_tokens for s in decoding), default=0)
        return [s for s in decoding if s.num_tokens == least]


class ShortestInBuckets(ShortestFirst):
    """Shortest first, and each step takes the sequences of one bucket of lengths, the buckets in turn.

    The lengths in a step then differ by less than a bucket, so little is padded. The turns go round a
    table: the bucket that was served sits down at the back, and so does one that was empty until now.
    The second half matters: if a bucket that fills again went to the front, then a few short requests,
    coming one by one, would keep all others waiting. A sequence stays in its bucket until it has
    stepped, and only the buckets before its own can be served earlier: with k buckets in use it steps
    within k steps.
    """

    def __init__(self) -> None:
        self._turns: list[int] = []  # buckets in use, the one that waits longest first

    def decode_batch(self, decoding: Sequence[SequenceState], now: float) -> Sequence[SequenceState]:
        """The bucket whose turn it is, shortest first."""
        buckets: dict[int, list[SequenceState]] = {}
        for sequence in self.order(decoding, now):
            buckets.setdefault((sequence.num_tokens - 1) // BUCKET_WIDTH, []).append(sequence)
        seated = [bucket for bucket in self._turns if bucket in buckets]
        self._turns = seated + [bucket for bucket in buckets if bucket not in seated]
        if not buckets:
            return []
        served = self._turns.pop(0)
        self._turns.append(served)
        return buckets[served]


class ShortestWithAging(ShortestFirst):
    """Shortest first, but a request shrinks while it waits: to nothing, after `starvation_bound` seconds.

    By length * max(0, 1 - waited / bound). A request that has waited for the whole bound counts as
    nothing, and those that count as nothing go in the order of their coming: so from then on nobody
    overtakes it. It still waits for those that are before it at that moment.

    Parameters
    ----------
    starvation_bound : float
        In seconds, above 0.
    """

    def __init__(self, starvation_bound: float = 60.0) -> None:
        if not starvation_bound > 0:
            raise InvalidSetting(
                f"starvation_bound={starvation_bound:g} s must be above 0; a small bound is nearly fcfs, "
                f"a large one nearly sjf"
            )
        self.starvation_bound = starvation_bound

    def order(self, requests: Iterable[SequenceState], now: float) -> list[SequenceState]:
        """Least length first, as shrunk by waiting since arrival."""

        def shrunk(s: SequenceState) -> float:
            return s.num_tokens * max(0.0, 1 - (now - s.arrival) / self.starvation_bound)

        return sorted(requests, key=lambda s: (shrunk(s), s.arrival, s.number))


class ShortestRemaining(SchedulingPolicy):
    """By what is left to generate, as predicted: those who are nearly done leave first and make room.

    A sequence without a prediction counts with the most that it may generate, `max_tokens`. One that
    has outlived its prediction counts as one token from its end, since each next one may be the last.
    While short answers keep coming, long ones starve.
    """

    def order(self, requests: Iterable[SequenceState], now: float) -> list[SequenceState]:
        """Least remaining output first."""

        def remaining(s: SequenceState) -> float:
            predicted = s.max_tokens if s.predicted_output_tokens is None else s.predicted_output_tokens
            return max(1.0, predicted - s.num_output_tokens)

        return sorted(requests, key=lambda s: (remaining(s), s.arrival, s.number))


POLICIES: dict[str, type[SchedulingPolicy]] = {
    "fcfs": FirstComeFirstServed,
    "priority": ByPriority,
    "sjf": ShortestFirst,
    "sjf-aligned": ShortestAligned,
    "sjf-bucketed": ShortestInBuckets,
    "sjf-aging": ShortestWithAging,
    "shortest-remaining": ShortestRemaining,
}


def scheduling_policy(name: str, **options: Any) -> SchedulingPolicy:
    """A new policy by its name in `POLICIES`; the options are those of its class.

    One planner, one policy object: some remember what they served.

    Raises
    ------
    UnknownName
        If nothing goes by the name.
    """
    if name not in POLICIES:
        raise UnknownName("policy", name, POLICIES)
    return POLICIES[name](**options)
