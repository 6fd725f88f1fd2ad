"""The exercise on chunked prefill: the largest token budget within a limit on the time between tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from servinglib.course.checks import Exercise, Mistake, call_answer
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.experiments.boarding import (
    interrupt,
    long_prompt_among,
    mixed_lengths,
    simulate_interruption,
)
from servinglib.experiments.serving_run import fit_step_time, serve

CHATS, PROMPT = 8, 1500


def token_budget(a: float, b: float, c: float, d: float, decoding: int, kv_tokens: int, limit: float) -> int:
    """The largest max_num_batched_tokens with which a step lasts at most `limit` seconds.

    The step holds `decoding` sequences and a piece of one more's prompt, and reads `kv_tokens` of cache.
    """
    piece = math.floor((limit - a - b * (decoding + 1) - c * kv_tokens) / d + 1e-9)
    return decoding + piece


async def judge_budget(answer: Callable[..., Any]) -> str:
    """Try the budget of `answer` against a limit of four times a plain step, simulated and on the engine."""
    options: dict[str, Any] = {"max_num_seqs": 16, "prefix_caching": False, "kv_cache_memory": "256MiB"}
    if not isinstance(call_answer(answer, TOKEN_BUDGET.cases[0], "en"), int | np.integer):
        return "no budget to judge yet: it must return a whole number of tokens"
    with (engine := ContinuousEngine.load("course-tiny", max_num_batched_tokens=256, **options)):
        engine.warm_up()
        step = fit_step_time((await serve(engine, mixed_lengths())).steps)
    kv_tokens = PROMPT + CHATS * 80  # at the prompt's end
    limit = 4 * step(CHATS, CHATS * 80)
    case = (float(step.a), float(step.b), float(step.c), float(step.d), CHATS, kv_tokens, float(limit))
    budget = call_answer(answer, case, "en")
    if not isinstance(budget, int | np.integer) or not 16 <= budget <= 2048:
        return f"no budget from 16 to 2048 tokens to judge yet: {budget!r}"
    lines = [f"at most {limit * 1e3:.1f} ms between two tokens; your budget is {budget} tokens"]
    event = long_prompt_among(CHATS, PROMPT)
    for tried in (int(budget), 2 * int(budget)):
        paper = simulate_interruption(event, step, max_num_batched_tokens=tried, max_num_seqs=16)
        with (engine := ContinuousEngine.load("course-tiny", max_num_batched_tokens=tried, **options)):
            engine.warm_up()
            real = min([(await interrupt(engine, event)).gap for _ in range(3)])  # a busy machine only adds
        lines.append(
            f"budget {tried:4d}: longest gap simulated {paper.gap * 1e3:5.1f} ms, engine {real * 1e3:5.1f} ms, "
            f"{_verdict(real / limit)}"
        )
    return "\n".join(lines)


def _verdict(ratio: float) -> str:
    """A measured gap over the limit, in words; the machine's own scatter is about a fifth."""
    return "within" if ratio <= 1 else "a little over" if ratio <= 1.2 else "over"


def _stub(*_: object) -> None:
    raise NotImplementedError


TOKEN_BUDGET = Exercise(
    id="06.4",
    stub=_stub,
    reference=token_budget,
    # Milliseconds are exact in binary here, so that floor meets no tie.
    cases=(
        (1.0, 0.0, 0.0, 0.0625, 4, 0, 3.0),
        (2.0, 0.25, 0.0, 0.0625, 8, 0, 8.0),
        (2.0, 0.0625, 0.0009765625, 0.03125, 16, 2048, 10.0),
        (1.5, 0.125, 0.0, 0.046875, 3, 512, 4.0),
    ),
    mistakes=(
        Mistake(
            lambda a, b, c, d, decoding, kv_tokens, limit: (
                token_budget(a, b, c, d, decoding, kv_tokens, limit) - decoding
            ),
            {
                "en": "this is the piece of the prompt; the budget counts the token of each that decodes as well.",
                "zh": "这只是提示词那一块；预算里还要算上每个解码请求的 1 个 token。",
            },
        ),
        Mistake(
            lambda a, b, c, d, decoding, kv_tokens, limit: decoding + math.floor(limit / d + 1e-9),
            {
                "en": "as if the step held the prompt alone; it costs a, b and c as well, whoever reads.",
                "zh": "好像这一步只有提示词；不管谁在读，a、b、c 那几项都要付。",
            },
        ),
        Mistake(
            lambda a, b, c, d, decoding, kv_tokens, limit: (
                token_budget(a, b, c, d, decoding - 1, kv_tokens, limit) + 1
            ),
            {
                "en": "whoever reads its prompt is in the step too: b counts decoding + 1 sequences.",
                "zh": "读提示词的那个请求也在这一步里：b 要乘 decoding + 1。",
            },
        ),
        Mistake(
            lambda a, b, c, d, decoding, kv_tokens, limit: (
                token_budget(a, b, c, d, decoding, kv_tokens, limit) + 1
            ),
            {
                "en": "rounded up, and so over the limit; take the whole number below.",
                "zh": "向上取整就超限了；应向下取整。",
            },
        ),
    ),
    hint={
        "en": "Solve a + b*(decoding + 1) + c*kv_tokens + d*piece = limit for the piece, then add those who decode.",
        "zh": "由 a + b*(decoding + 1) + c*kv_tokens + d*piece = limit 解出 piece，再加上解码的那些。",
    },
)
