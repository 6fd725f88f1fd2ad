"""The exercise on prompt templates: the same parts in another order, and the cache finds ten times as much.

A form letter is printed in stacks: what all letters share first, what each has for itself last. The
reader gives the order; `judge` has it printed by the real engine and by the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servinglib.course.checks import Exercise, Mistake, call_answer
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.experiments.caching import engine_hits, simulator_hits
from servinglib.statistics import streams
from servinglib.workload import token_prompts

Log = Sequence[Mapping[str, str]]

PARTS = {"time": (16, 24), "question": (32, 24), "shop": (64, 4), "rules": (160, 1), "article": (96, 8)}
"""Of each part of the judged prompts: tokens, and how many different texts it has in 24 requests."""


def prompt_order(log: Log) -> list[str]:
    """The parts' names, those with the fewest different texts first; as in the log where that is equal."""
    return sorted(log[0], key=lambda part: len({request[part] for request in log}))


def judge(answer: Callable[..., Any], engine: ContinuousEngine) -> str:
    """What engine and simulator find in their prefix caches if prompts are put together in this order."""
    log, tokens = _requests(engine.vocabulary)
    given = list(PARTS)
    order = call_answer(answer, (log,), "en")
    if not isinstance(order, list | tuple) or sorted(map(str, order)) != sorted(given):
        return f"no order of all the parts {given} to judge yet"
    lines = [f"{len(log)} requests, tokens found in the prefix cache"]
    for number, (name, parts) in enumerate((("as it came", given), ("your order", list(order)))):
        # Other ids for each order, so that the second finds nothing of the first.
        prompts = [[(t + number) % engine.vocabulary for p in parts for t in tokens[r[p]]] for r in log]
        total = sum(map(len, prompts))
        found = engine_hits(engine, prompts).sum(), simulator_hits(prompts).sum()
        lines.append(f"{name}: engine {found[0]:5d}, simulator {found[1]:5d} of {total}: {', '.join(parts)}")
    return "\n".join(lines)


def _requests(vocabulary: int) -> tuple[list[dict[str, str]], dict[str, list[int]]]:
    """A log of 24 requests by the texts of their parts, and the tokens of each text."""
    draw = streams(8, "log")["log"]
    tokens = {
        f"{part} {i}": ids
        for seed, (part, (length, texts)) in enumerate(PARTS.items())
        for i, ids in enumerate(token_prompts([length] * texts, vocabulary, seed=seed))
    }
    log = [
        {part: f"{part} {i if texts == 24 else draw.integers(texts)}" for part, (_, texts) in PARTS.items()}
        for i in range(24)
    ]
    return log, tokens


def _stub(*_: object) -> None:
    raise NotImplementedError


def _longest_first(log: Log) -> list[str]:
    return sorted(log[0], key=lambda part: -len(log[0][part]))


def _constants_only(log: Log) -> list[str]:
    return [part for part in prompt_order(log) if len({request[part] for request in log}) < len(log)]


PROMPT_ORDER = Exercise(
    id="08.5",
    stub=_stub,
    reference=prompt_order,
    cases=(
        (
            [
                {"time": "9:00", "rules": "Be polite."},
                {"time": "9:01", "rules": "Be polite."},
            ],
        ),
        (
            [
                {"time": "9:00", "shop": "A", "question": "Where is my parcel?", "rules": "Be polite."},
                {"time": "9:00", "shop": "A", "question": "When do you open?", "rules": "Be polite."},
                {"time": "9:01", "shop": "B", "question": "Do you sell tea?", "rules": "Be polite."},
                {"time": "9:02", "shop": "A", "question": "Can I have my money?", "rules": "Be polite."},
            ],
        ),
    ),
    mistakes=(
        Mistake(
            lambda log: list(log[0]),
            {
                "en": "the order is as it came; whatever stands behind the time is new in every request, since a "
                "block's key holds all before it.",
                "zh": "顺序没动：排在时间后面的一切，每个请求都是新的，因为块的键包含它之前的全部内容。",
            },
        ),
        Mistake(
            _longest_first,
            {
                "en": "length decides how much a hit saves, not whether there is one; count how many different "
                "texts a part has.",
                "zh": "长度决定命中能省多少，不决定能不能命中；数一数每个部分有几种不同的文本。",
            },
        ),
        Mistake(
            _constants_only,
            {
                "en": "parts are missing; what changes must still be asked, only later.",
                "zh": "少了几个部分；会变的内容还是得问，只是放到后面。",
            },
        ),
    ),
    hint={
        "en": "What is the same in all requests goes first, what is new in each goes last: sort by the number of "
        "different texts.",
        "zh": "所有请求都一样的放最前，每个请求都不同的放最后：按不同文本的个数排序。",
    },
)
