"""Exercises on what one can promise: which starvation bound keeps a limit, and how good a guess must be.

A bakery that promises a longest wait must try out its rule on busy days, and a baker who judges by the
size of their bags who will be quick need not know the minutes, only who is quicker than whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from servinglib.course.checks import Exercise, Mistake


def choose_bound(slowest: Mapping[float, float], limit: float) -> float | None:
    """The largest bound whose slowest answer (s) is within the limit (s); None if there is none."""
    return max((bound for bound, seconds in slowest.items() if seconds <= limit), default=None)


def wrong_pairs(lengths: Sequence[int], guesses: Sequence[float]) -> float:
    """Of the pairs of unequal lengths, the share that the guesses put in the wrong order; a tie is half wrong."""
    wrong, pairs = 0.0, 0
    for (one, guess), (other, other_guess) in combinations(zip(lengths, guesses, strict=True), 2):
        if one != other:
            pairs += 1
            wrong += 0.5 if guess == other_guess else (one < other) != (guess < other_guess)
    return wrong / pairs


def _stub(*_: object) -> None:
    raise NotImplementedError


CHOOSE_BOUND = Exercise(
    id="07.3",
    stub=_stub,
    reference=choose_bound,
    # 80.0 lies on the limit of the first case and is within it.
    cases=(
        ({15.0: 60.0, 30.0: 80.0, 120.0: 130.0}, 80.0),
        ({10.0: 45.0, 20.0: 50.0, 40.0: 66.0, 80.0: 112.0}, 70.0),
        ({5.0: 31.0, 60.0: 90.0, 30.0: 30.0}, 40.0),
        ({5.0: 110.0, 60.0: 111.0}, 100.0),
    ),
    mistakes=(
        Mistake(
            lambda slowest, limit: max((bound for bound in slowest if bound <= limit), default=None),
            {
                "en": "the bound is taken for the longest time, but it only says from when on nobody else is let "
                "ahead; what is ahead by then, and the answer itself, come on top.",
                "zh": "把上限当成了最长时间；上限只保证到那时不再有人插队，前面已有的和自己的生成时间还要另加。",
            },
        ),
        Mistake(
            lambda slowest, limit: min(
                (b for b, seconds in slowest.items() if seconds <= limit), default=None
            ),
            {
                "en": "the limit is met, at the highest price: the smallest bound is nearly fcfs. Take the "
                "largest that meets it.",
                "zh": "达标了，但代价最高：最小的上限几乎就是 fcfs。应取达标的里面最大的。",
            },
        ),
        Mistake(
            lambda slowest, limit: min(slowest, key=lambda bound: slowest[bound]),
            {
                "en": "this minimises the slowest answer and doesn't look at the limit; a limit is to be met, not "
                "undercut.",
                "zh": "这只是让最慢的最小，没有看目标；目标达到即可，不必压到最低。",
            },
        ),
    ),
    hint={
        "en": "Keep the bounds whose slowest answer is at most the limit. Which of them helps chat most?",
        "zh": "留下最慢回答不超过目标的那些上限。其中哪个对聊天最好？",
    },
)

WRONG_PAIRS = Exercise(
    id="07.4",
    stub=_stub,
    reference=wrong_pairs,
    # In order: ten times too long and all in order; one pair wrong; all tied; two equal lengths.
    cases=(
        ([10, 20, 30], [100.0, 200.0, 300.0]),
        ([10, 20, 30], [10.0, 31.0, 30.0]),
        ([5, 50, 500], [80.0, 80.0, 80.0]),
        ([8, 8, 64, 128], [9.0, 7.0, 120.0, 60.0]),
    ),
    mistakes=(
        Mistake(
            lambda lengths, guesses: (
                sum(abs(g / n - 1) for n, g in zip(lengths, guesses, strict=True)) / len(lengths)
            ),
            {
                "en": "this measures how large the errors are; a guess ten times too long for everybody orders "
                "them perfectly.",
                "zh": "这量的是误差大小；如果每个都猜成十倍，次序照样全对。",
            },
        ),
        Mistake(
            lambda lengths, guesses: _share(lengths, guesses, tie=0.0),
            {
                "en": "ties of the guess count as right, so a predictor that knows nothing is perfect; the order "
                "is then left to chance, and half wrong.",
                "zh": "猜成一样的算对了，于是什么都不知道的预测器成了满分；猜平时次序靠运气，算一半错。",
            },
        ),
        Mistake(
            lambda lengths, guesses: _share(lengths, guesses, equal_lengths=True),
            {
                "en": "pairs of equal length are counted below the line, but neither order of them is wrong; "
                "leave them out.",
                "zh": "分母里算进了一样长的对；它们谁先谁后都不算错，应该去掉。",
            },
        ),
    ),
    hint={
        "en": "Go through `itertools.combinations`; skip pairs of equal lengths; compare who is shorter in "
        "truth with who is shorter by the guess.",
        "zh": "用 itertools.combinations 逐对看；跳过一样长的；比较真实谁短和猜测谁短。",
    },
)


def _share(
    lengths: Sequence[int], guesses: Sequence[float], tie: float = 0.5, equal_lengths: bool = False
) -> float:
    pairs = list(combinations(zip(lengths, guesses, strict=True), 2))
    unequal = [(a, b) for a, b in pairs if a[0] != b[0]]
    wrong = sum(tie if a[1] == b[1] else (a[0] < b[0]) != (a[1] < b[1]) for a, b in unequal)
    return wrong / len(pairs if equal_lengths else unequal)
