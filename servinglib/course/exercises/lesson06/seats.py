"""Exercises on seats: who gets how many tokens of a step, and how many seats of a coach ride empty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from servinglib.course.checks import Exercise, Mistake


def fill_step(running: Sequence[int], waiting: Sequence[int], budget: int, max_num_seqs: int) -> list[int]:
    """Tokens of the next step for each running and then each waiting request.

    Parameters
    ----------
    running : sequence of int
        Tokens that each still has to have computed: 1 where it decodes, more where it reads its prompt.
    waiting : sequence of int
        Prompts in the queue, first come first.
    budget, max_num_seqs : int
        Most tokens and most requests in a step; at least one token for each that runs.
    """
    shares = [1 if left == 1 else 0 for left in running]
    for i, left in enumerate(running):
        if left > 1:
            shares[i] = min(left, budget - sum(shares))
    for i, prompt in enumerate(waiting):
        seat = len(running) + i < max_num_seqs
        shares.append(min(prompt, budget - sum(shares)) if seat else 0)
    return shares


def idle_share(lengths: Sequence[int], seats: int) -> float:
    """The expected share of empty seats, over all steps, when batches are drawn at random from the lengths."""
    ranked = np.sort(lengths)
    below = (np.arange(len(ranked) + 1) / len(ranked)) ** seats  # P(the longest is among the first i)
    return float(1 - np.mean(ranked) / np.dot(ranked, np.diff(below)))


def _stub(*_: object) -> None:
    raise NotImplementedError


def _prompts_first(
    running: Sequence[int], waiting: Sequence[int], budget: int, max_num_seqs: int
) -> list[int]:
    left, shares = budget, [0] * (len(running) + len(waiting))
    wanted = [*running, *waiting[: max(0, max_num_seqs - len(running))]]
    for decodes in (False, True):
        for i, want in enumerate(wanted):
            if (want == 1 and i < len(running)) == decodes:
                shares[i] = min(want, left)
                left -= shares[i]
    return shares


def _without_budget(
    running: Sequence[int], waiting: Sequence[int], budget: int, max_num_seqs: int
) -> list[int]:
    seats = max(0, max_num_seqs - len(running))
    return [*running, *waiting[:seats], *[0] * len(waiting[seats:])]


def _smaller_first(
    running: Sequence[int], waiting: Sequence[int], budget: int, max_num_seqs: int
) -> list[int]:
    shares, seats = fill_step(running, [], budget, max_num_seqs), max_num_seqs - len(running)
    for prompt in waiting:
        fits = seats > 0 and prompt <= budget - sum(shares)
        shares.append(prompt if fits else 0)
        seats -= fits
    return shares


FILL_STEP = Exercise(
    id="06.1",
    stub=_stub,
    reference=fill_step,
    cases=(
        ([1], [5], 8, 4),
        ([1, 1], [10], 6, 4),
        ([1, 9, 1], [4], 8, 4),
        ([1], [6, 2], 5, 4),
        ([1, 1], [2, 2, 2], 16, 4),
        ([1, 1, 3], [7, 1], 12, 5),
    ),
    mistakes=(
        Mistake(
            _prompts_first,
            {
                "en": "prompts took the step before those who decode; while prompts keep coming, nobody's answer "
                "goes on. Decode first.",
                "zh": "提示词抢在解码前面占满了这一步；只要提示词不断，谁的回答都停着。应先解码。",
            },
        ),
        Mistake(
            _without_budget,
            {
                "en": "the step holds more tokens than the budget; a prompt gets what is left and goes on in the "
                "next step.",
                "zh": "这一步的 token 超出了预算；提示词只能拿剩下的，其余下一步再读。",
            },
        ),
        Mistake(
            _smaller_first,
            {
                "en": "a smaller prompt passed the first in the queue, which can wait for ever that way; give the "
                "first one a piece.",
                "zh": "小的提示词越过了队首，队首可能永远等下去；应让队首先读一块。",
            },
        ),
        Mistake(
            lambda running, waiting, budget, max_num_seqs: fill_step(running, waiting, budget, 10**9),
            {
                "en": "more requests than seats: those that run keep theirs, so only max_num_seqs - len(running) "
                "may come in.",
                "zh": "请求比座位多：在跑的不会让座，最多只能再进 max_num_seqs - len(running) 个。",
            },
        ),
    ),
    hint={
        "en": "Three rounds over the requests: one token each for those who decode, the rest of begun prompts, "
        "then the queue in order while there are seats.",
        "zh": "分三轮：解码的每人 1 个 token；读了一半的提示词接着读；最后按顺序放队列里的，直到座位或预算用完。",
    },
)

IDLE_SHARE = Exercise(
    id="06.3",
    stub=_stub,
    reference=idle_share,
    cases=(
        ([10, 10, 10], 4),
        ([1, 3], 2),
        ([200, 8, 8, 8], 16),
        ([5, 80, 20, 10, 40, 160], 8),
    ),
    mistakes=(
        Mistake(
            lambda lengths, seats: 1 - float(np.mean(lengths)) / max(lengths),
            {
                "en": "not every batch has the longest answer of all in it; take the expected longest of `seats` "
                "draws.",
                "zh": "不是每一批都碰上全体中最长的那个；应取抽 seats 个时最长者的期望。",
            },
        ),
        Mistake(
            lambda lengths, seats: 0.0,
            {
                "en": "no seat is ever empty here, as if a batch ended with its mean answer; it ends with its "
                "longest.",
                "zh": "这里没有空座，等于假定一批在平均长度处结束；它要等到最长的那个。",
            },
        ),
        Mistake(
            lambda lengths, seats: 1 / (1 - idle_share(lengths, seats)) - 1,
            {
                "en": "this is the empty seats over the taken ones; asked is their share of all seats.",
                "zh": "这是空座与有人的座位之比；题目要空座占全部座位的比例。",
            },
        ),
    ),
    hint={
        "en": "Sorted, the i-th of n is the longest of b draws with probability (i/n)^b - ((i-1)/n)^b.",
        "zh": "排序后，第 i 个（共 n 个）恰为 b 次抽取中最长者的概率是 (i/n)^b - ((i-1)/n)^b。",
    },
)
