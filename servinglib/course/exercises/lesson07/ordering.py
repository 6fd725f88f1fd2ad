"""Exercises on the two questions that a policy answers: who is let in first, and who steps together?

At a bakery's counter the single roll may go ahead of the wedding cake, but not for ever; and into one
oven goes what bakes equally long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from servinglib.course.checks import Exercise, Mistake


class Entry(NamedTuple):
    """A sequence as a policy sees it: what `SequenceState` calls by the same names."""

    number: int
    num_tokens: int
    arrival: float = 0.0


def aged_order(requests: Iterable[Entry], now: float, bound: float) -> list[Entry]:
    """Shortest first, each shrunk by its wait, to nothing once it has waited for `bound` seconds."""

    def shrunk(request: Entry) -> float:
        return request.num_tokens * max(0.0, 1 - (now - request.arrival) / bound)

    return sorted(requests, key=lambda r: (shrunk(r), r.arrival, r.number))


def aligned_batch(decoding: Sequence[Entry]) -> list[Entry]:
    """Those that step now, if the shortest are to catch up with the next longer ones."""
    least = min(sequence.num_tokens for sequence in decoding)
    return [sequence for sequence in decoding if sequence.num_tokens == least]


def _stub(*_: object) -> None:
    raise NotImplementedError


def _newest_first(requests: Iterable[Entry], now: float, bound: float) -> list[Entry]:
    def shrunk(r: Entry) -> float:
        return r.num_tokens * max(0.0, 1 - (now - r.arrival) / bound)

    return sorted(requests, key=lambda r: (shrunk(r), -r.arrival, -r.number))


def _clock_for_wait(requests: Iterable[Entry], now: float, bound: float) -> list[Entry]:
    return sorted(requests, key=lambda r: (r.num_tokens * max(0.0, 1 - now / bound), r.arrival, r.number))


def _never_aging(requests: Iterable[Entry], now: float, bound: float) -> list[Entry]:
    return sorted(requests, key=lambda r: (r.num_tokens, r.arrival, r.number))


def _below_nothing(requests: Iterable[Entry], now: float, bound: float) -> list[Entry]:
    return sorted(
        requests, key=lambda r: (r.num_tokens * (1 - (now - r.arrival) / bound), r.arrival, r.number)
    )


AGED_ORDER = Exercise(
    id="07.1",
    stub=_stub,
    reference=aged_order,
    # In order: two that have hardly waited; equals, given backwards; a long one nearly due; little waited
    # long after the clock began; two overdue, the longer one later.
    cases=(
        ([Entry(0, 40, 5.0), Entry(1, 10, 6.0)], 7.0, 60.0),
        ([Entry(2, 5, 1.0), Entry(1, 5, 1.0), Entry(0, 5, 1.0)], 9.0, 60.0),
        ([Entry(0, 100, 0.0), Entry(1, 10, 50.0)], 57.0, 60.0),
        ([Entry(0, 500, 990.0), Entry(1, 20, 995.0)], 1000.0, 60.0),
        ([Entry(1, 1000, 10.0), Entry(0, 10, 0.0)], 100.0, 60.0),
    ),
    mistakes=(
        Mistake(
            _newest_first,
            {
                "en": "of equals the latest comer goes first; by (…, arrival, number) the one who came "
                "earlier does.",
                "zh": "打平时让后来的先走了；按 (…, arrival, number) 排，先来的在前。",
            },
        ),
        Mistake(
            _clock_for_wait,
            {
                "en": "everybody is shrunk alike, by the clock; what counts is how long each has waited, "
                "now - arrival.",
                "zh": "所有人按时钟缩了同样的比例；要看的是各自等了多久，即 now - arrival。",
            },
        ),
        Mistake(
            _never_aging,
            {
                "en": "waiting buys nothing here: this is plain SJF, and a long one waits without bound.",
                "zh": "等待不起作用：这是普通的 SJF，长请求可以一直等下去。",
            },
        ),
        Mistake(
            _below_nothing,
            {
                "en": "beyond the bound the length turns negative, and of those that are overdue the longest "
                "goes first; stop at 0, and let arrival decide.",
                "zh": "超过上限之后长度变成负数，过期的请求里最长的反而最先；缩到 0 为止，再由 arrival 决定。",
            },
        ),
    ),
    hint={
        "en": "One `sorted` with a key of three: length * max(0, 1 - waited / bound), arrival, number.",
        "zh": "一个 sorted，键有三项：length * max(0, 1 - waited / bound)、arrival、number。",
    },
)

ALIGNED_BATCH = Exercise(
    id="07.2",
    stub=_stub,
    reference=aligned_batch,
    cases=(
        ([Entry(0, 50), Entry(1, 52)],),
        ([Entry(0, 52), Entry(1, 52), Entry(2, 55), Entry(3, 60)],),
        ([Entry(0, 100), Entry(1, 55), Entry(2, 100), Entry(3, 100), Entry(4, 55)],),
    ),
    mistakes=(
        Mistake(
            lambda decoding: [min(decoding, key=lambda s: s.num_tokens)],
            {
                "en": "only one of the shortest steps, so a cluster falls apart as soon as it has formed; let "
                "all of that length step.",
                "zh": "最短的里面只走了一个，队伍刚对齐就散了；同样长的都要走。",
            },
        ),
        Mistake(
            lambda decoding: [s for s in decoding if s.num_tokens == _most_common(decoding)],
            {
                "en": "this is the largest cluster, and it runs away from the short ones, which never catch up.",
                "zh": "这选的是最大的一簇，它只会越走越远，短的永远追不上。",
            },
        ),
        Mistake(
            lambda decoding: [s for s in decoding if s.num_tokens == max(d.num_tokens for d in decoding)],
            {
                "en": "the longest step and get still longer; it is for the short ones to catch up.",
                "zh": "走的是最长的，只会更长；该让短的追上来。",
            },
        ),
        Mistake(
            lambda decoding: list(decoding),
            {
                "en": "all step, so the gaps stay as they are and the short ones are padded for ever.",
                "zh": "全都走，差距永远不变，短的一直要填充。",
            },
        ),
    ),
    hint={
        "en": "First the least `num_tokens`, then all that have it.",
        "zh": "先求最小的 num_tokens，再取所有等于它的。",
    },
)


def _most_common(decoding: Sequence[Entry]) -> int:
    return Counter(s.num_tokens for s in decoding).most_common(1)[0][0]
