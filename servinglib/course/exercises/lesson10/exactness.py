"""The exercise on exactness: keep a guess or draw anew, so that nobody can tell that anybody guessed.

A taster who swaps one dish now and then must see to it that every dish still comes out of the kitchen
as often as the menu says. `judge_rule` counts the dishes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from servinglib.course.checks import Exercise, Mistake, Raised, call_answer

P = (0.40, 0.30, 0.15, 0.10, 0.05)  # the model's probabilities of five tokens, and the guesser's
Q = (0.20, 0.25, 0.05, 0.45, 0.05)
DRAWS = 100_000


def rule(guess: int, p: Sequence[float], q: Sequence[float]) -> tuple[float, list[float]]:
    """The probability with which the guess stays, and the law of the token that replaces it if not."""
    rest = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]
    return min(1.0, p[guess] / q[guess]), [each / sum(rest) for each in rest]


def judge_rule(answer: Callable[..., Any], seed: int = 0) -> str:
    """How often each of five tokens comes out if guesses are drawn from Q and the rule decides."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(len(P))
    for guess, drawn in enumerate(rng.multinomial(DRAWS, Q)):
        verdict = call_answer(answer, (guess, list(P), list(Q)), "en")
        law = _law(verdict)
        if law is None:
            shown = verdict if isinstance(verdict, Raised) else "no probability and five that add up to 1"
            return f"no rule to judge yet: {shown}"
        kept = rng.binomial(drawn, law[0])
        counts[guess] += kept
        counts += rng.multinomial(drawn - kept, law[1])
    doubt = stats.chisquare(counts, DRAWS * np.array(P)).pvalue
    lines = [f"token {i}: p = {P[i]:.2f}, came out {n / DRAWS:.3f}" for i, n in enumerate(counts)]
    verdict = "as from p" if doubt > 0.001 else "not p: the guesser has changed the model"
    return "\n".join([*lines, f"{DRAWS:,} draws: {verdict}"])


def _law(verdict: Any) -> tuple[float, np.ndarray] | None:
    """The verdict as numbers that can be drawn from, or None."""
    try:
        keep, rest = float(verdict[0]), np.array(verdict[1], float)
    except (TypeError, ValueError, IndexError):
        return None
    sums_up = rest.shape == (len(P),) and (rest >= 0).all() and abs(rest.sum() - 1) < 1e-6
    return (keep, rest / rest.sum()) if sums_up and 0 <= keep <= 1 else None


def _stub(*_: object) -> None:
    raise NotImplementedError


def _any_possible_guess_stays(guess: int, p: Sequence[float], q: Sequence[float]) -> Any:
    return float(p[guess] > 0), rule(guess, p, q)[1]


def _drawn_from_p(guess: int, p: Sequence[float], q: Sequence[float]) -> Any:
    return rule(guess, p, q)[0], list(p)


def _upside_down(guess: int, p: Sequence[float], q: Sequence[float]) -> Any:
    return min(1.0, q[guess] / p[guess]), rule(guess, p, q)[1]


def _not_normalised(guess: int, p: Sequence[float], q: Sequence[float]) -> Any:
    return rule(guess, p, q)[0], [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]


RULE = Exercise(
    id="10.2",
    stub=_stub,
    reference=rule,
    cases=(
        (0, [0.5, 0.5], [1.0, 0.0]),
        (0, [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]),
        (2, [0.2, 0.3, 0.5], [0.5, 0.4, 0.1]),
        (1, [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]),
    ),
    mistakes=(
        Mistake(
            _any_possible_guess_stays,
            {
                "en": "every guess that the model holds possible stays, so the guesser's favourites come too "
                "often; a guess stays with probability min(1, p/q).",
                "zh": "只要模型认为可能就保留，猜测者偏爱的 token 就会太多；应以概率 min(1, p/q) 保留。",
            },
        ),
        Mistake(
            _drawn_from_p,
            {
                "en": "drawn anew from p: tokens that were kept already come a second time. Draw from what p "
                "has over q, max(p - q, 0), scaled to 1.",
                "zh": "重抽用了 p：已经保留过的 token 又得到一次机会。应从 p 超出 q 的部分抽，即 max(p - q, 0) 归一化。",
            },
        ),
        Mistake(
            _upside_down,
            {
                "en": "the fraction is upside down: where the guesser is too eager (q > p), it must be thinned "
                "out, with p/q.",
                "zh": "分子分母颠倒了：猜测者过于积极（q > p）时才要打折，折扣是 p/q。",
            },
        ),
        Mistake(
            _not_normalised,
            {
                "en": "what is left of p does not add up to 1; divide it by its sum.",
                "zh": "剩下的部分加起来不等于 1；要除以它们的和。",
            },
        ),
    ),
    hint={
        "en": "Keeping gives token x with probability min(p, q). What is missing to p, for each token?",
        "zh": "保留这一步以概率 min(p, q) 给出 token x。每个 token 距离 p 还差多少？",
    },
)
