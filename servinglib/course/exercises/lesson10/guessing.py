"""Exercises on guessing ahead: how many guesses pay, and a guesser of one's own.

Who finishes other people's sentences had better be right often and quick about it. The formula says
how often and how quick; `judge_guess` puts the reader's guesser to work, on paper and in the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from servinglib.course.checks import Exercise, Mistake
from servinglib.errors import ServingError
from servinglib.experiments.speculation import replay

JUDGED_TOKENS, DRAFT = 48, 4
ENOUGH = 1.5  # tokens per step, on an answer that repeats itself


def best_draft(alpha: float, cost: float, most: int) -> tuple[int, float]:
    """The best number of guesses from 0 to `most` and its speed-up; the smaller of two that are equal."""
    tokens = [sum(alpha**i for i in range(k + 1)) for k in range(most + 1)]
    speedups = [made / (1 + k * cost) for k, made in enumerate(tokens)]
    best = max(speedups)
    return speedups.index(best), best


def look_up(tokens: Sequence[int], count: int) -> list[int]:
    """What followed the last two tokens where they stood last before; at most `count` tokens."""
    for at in range(len(tokens) - 3, -1, -1):
        if tokens[at : at + 2] == tokens[-2:]:
            return list(tokens[at + 2 : at + 2 + count])
    return []


def judge_guess(guess: Callable[..., Any]) -> str:
    """The reader's guesser on an answer that is known, then in the real engine, in the same words."""
    from servinglib.engines.continuous.engine import ContinuousEngine

    options = {"dtype": "float32", "kv_cache_memory": "64MiB", "draft_tokens": DRAFT}
    prompt = "for key, value in sorted(items):\n    print(key, value)\n\nfor key, value in sorted("
    ask = {"max_tokens": JUDGED_TOKENS, "ignore_eos": True}
    with ContinuousEngine.load("course-tiny", **options) as plain:
        tokens, expected = plain.tokenize(prompt), list(plain.generate(prompt, **ask)[0].token_ids)
    try:
        paper = replay([tokens], [expected], guess, DRAFT)
        with ContinuousEngine.load("course-tiny", speculative=guess, **options) as engine:
            answer = list(engine.generate(prompt, **ask)[0].token_ids)
            engine.generate([tokens[:1]], max_tokens=1)  # by now the last step has been written down
            steps = [s for s in engine.steps if not s.prefill_tokens]
    except (NotImplementedError, TypeError):  # the latter: None, or no function
        return "no guesses to judge yet"
    except (ServingError, ArithmeticError, LookupError, ValueError) as error:
        return f"the guesser failed: {type(error).__name__}: {error}"
    reached = paper.tokens_per_step
    return "\n".join(
        (
            f"on paper:  {len(paper.steps)} steps for {JUDGED_TOKENS - 1} tokens, {reached:.2f} tokens per step",
            f"in the engine: {len(steps)} steps; the answer is unchanged: {answer == expected}",
            f"at least {ENOUGH} tokens per step: {'yes' if reached >= ENOUGH else 'no'}",
        )
    )


def _stub(*_: object) -> None:
    raise NotImplementedError


def _best(alpha: float, cost: float, most: int, speedup: Callable[[float, float, int], float]) -> Any:
    found = [speedup(alpha, cost, k) for k in range(most + 1)]
    return found.index(max(found)), max(found)


def _tokens(alpha: float, k: int) -> float:
    return sum(alpha**i for i in range(k + 1))


def _at_least_one_guess(alpha: float, cost: float, most: int) -> tuple[int, float]:
    found = [_tokens(alpha, k) / (1 + k * cost) for k in range(1, most + 1)]
    return found.index(max(found)) + 1, max(found)


def _find(tokens: Sequence[int], places: Sequence[int], count: int, skip: int = 2) -> list[int]:
    for at in places:
        if tokens[at : at + 2] == tokens[-2:]:
            return list(tokens[at + skip : at + skip + count])
    return []


def _backwards(tokens: Sequence[int], last: int) -> range:
    return range(len(tokens) - last, -1, -1)


BEST_DRAFT = Exercise(
    id="10.1",
    stub=_stub,
    reference=best_draft,
    cases=((0.5, 0.0, 1), (0.5, 0.75, 3), (0.8, 0.1, 8), (0.6, 0.2, 4), (1.0, 0.05, 5)),
    mistakes=(
        Mistake(
            lambda alpha, cost, most: _best(
                alpha, cost, most, lambda a, c, k: sum(a**i for i in range(k)) / (1 + k * c)
            ),
            {
                "en": "the model's own token is left out: even with every guess wrong, a step gives one.",
                "zh": "漏掉了模型自己的那个 token：猜测全错，一步也会给出一个。",
            },
        ),
        Mistake(
            lambda alpha, cost, most: _best(
                alpha, cost, most, lambda a, c, k: _tokens(a, k) / (1 + (c if k else 0))
            ),
            {
                "en": "the draft runs once per guess, so k guesses cost k * cost.",
                "zh": "每猜一个，草稿模型就要跑一次，k 个猜测的成本是 k * cost。",
            },
        ),
        Mistake(
            lambda alpha, cost, most: _best(alpha, cost, most, lambda a, c, k: (1 + k * a) / (1 + k * c)),
            {
                "en": "1 + k * alpha counts right guesses behind a wrong one; those are thrown away.",
                "zh": "1 + k * alpha 把错误之后的猜测也算上了；它们都会被丢掉。",
            },
        ),
        Mistake(
            _at_least_one_guess,
            {
                "en": "no guess at all (k = 0, speed-up 1) is a choice too, and sometimes the best one.",
                "zh": "一个也不猜（k = 0，加速比为 1）也是一种选择，有时是最好的。",
            },
        ),
        Mistake(
            lambda alpha, cost, most: _best(
                alpha, cost, most, lambda a, c, k: (1 - a ** (k + 1)) / (1 - a) / (1 + k * c)
            ),
            {
                "en": "at alpha = 1 the fraction is 0/0; add up the powers, or treat that case by itself.",
                "zh": "alpha = 1 时分式是 0/0；改用幂的和，或者单独处理这种情况。",
            },
        ),
    ),
    hint={
        "en": "Tokens per step: 1 + alpha + ... + alpha**k. Its cost: 1 + k * cost. Try every k from 0 on.",
        "zh": "每步 token 数是 1 + alpha + ... + alpha**k，成本是 1 + k * cost。从 0 开始逐个试 k。",
    },
)

LOOK_UP = Exercise(
    id="10.3",
    stub=_stub,
    reference=look_up,
    cases=(
        ([1, 2, 3, 1, 2], 2),
        ([7], 2),
        ([1, 2, 3, 4], 2),
        ([5, 5, 5], 3),
        ([1, 2, 3, 9, 1, 2, 4, 8, 1, 2], 2),
        ([1, 2, 3, 4, 1, 2], 1),
    ),
    mistakes=(
        Mistake(
            lambda tokens, count: _find(tokens, _backwards(tokens, 2), count),
            {
                "en": "the ending found itself, and nothing follows it; look at earlier places only.",
                "zh": "结尾找到了它自己，后面什么也没有；只看更早的位置。",
            },
        ),
        Mistake(
            lambda tokens, count: _find(tokens, _backwards(tokens, 3), count, skip=0),
            {
                "en": "this returns the matching tokens themselves; the guess is what came after them.",
                "zh": "返回的是匹配到的 token 本身；要猜的是它们后面的内容。",
            },
        ),
        Mistake(
            lambda tokens, count: _find(tokens, range(len(tokens) - 2), count),
            {
                "en": "the earliest place was taken; the latest is the better guess.",
                "zh": "取的是最早的位置；最近的一处猜得更准。",
            },
        ),
        Mistake(
            lambda tokens, count: _find(tokens, _backwards(tokens, 3), len(tokens)),
            {
                "en": "more guesses than `count`; the step has room for so many and no more.",
                "zh": "猜测的个数超过了 `count`；这一步只有这么多位置。",
            },
        ),
    ),
    hint={
        "en": "Walk backwards from the place before the ending; compare two tokens; slice what follows.",
        "zh": "从结尾之前的位置往回走，比较两个 token，再切出后面的部分。",
    },
)
