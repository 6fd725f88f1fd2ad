"""Where a setting comes from, and how many steps the same answers take in coaches and at a lift."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

from servinglib.course.checks import Exercise, Mistake

Settings = Mapping[str, Any]
NAMES = ("default", "file", "environment", "flag")


def effective(
    defaults: Settings, file: Settings, environment: Settings, flags: Settings
) -> dict[str, tuple[Any, str]]:
    """Value and origin of every setting; whoever speaks later is right."""
    found: dict[str, tuple[Any, str]] = {}
    for name, source in zip(NAMES, (defaults, file, environment, flags), strict=True):
        found.update({key: (value, name) for key, value in source.items()})
    return found


def steps(lengths: Sequence[int], seats: int) -> tuple[int, int]:
    """Steps that answers of these lengths take in static batches, and with continuous batching."""
    coaches = sum(max(lengths[i : i + seats]) for i in range(0, len(lengths), seats))
    free = [0] * seats  # when each seat of the lift is free
    for length in lengths:
        heapq.heappush(free, heapq.heappop(free) + length)
    return coaches, max(free)


def _stub(*_: object) -> None:
    raise NotImplementedError


def _truthy(
    defaults: Settings, file: Settings, environment: Settings, flags: Settings
) -> dict[str, tuple[Any, str]]:
    told = {}
    for key, value in defaults.items():
        sources = (flags.get(key), "flag"), (environment.get(key), "environment"), (file.get(key), "file")
        told[key] = next((each for each in sources if each[0]), (value, "default"))
    return told


def _perfect_lift(lengths: Sequence[int], seats: int) -> tuple[int, int]:
    return steps(lengths, seats)[0], -(-sum(lengths) // seats)


EFFECTIVE = Exercise(
    id="09.1",
    stub=_stub,
    reference=effective,
    cases=(
        ({"dtype": "auto"}, {}, {}, {}),
        ({"max_num_seqs": 64}, {"max_num_seqs": 16}, {"max_num_seqs": 32}, {}),
        ({"max_num_seqs": 64}, {"max_num_seqs": 16}, {"max_num_seqs": 32}, {"max_num_seqs": 8}),
        (
            {"prefix_caching": True, "seed": 7},
            {"prefix_caching": True},
            {"seed": 0},
            {"prefix_caching": False},
        ),
    ),
    mistakes=(
        Mistake(
            lambda defaults, file, environment, flags: (
                effective(defaults, environment, file, flags)
                | {k: (v, "file") for k, v in file.items() if k not in flags}
            ),
            {
                "en": "the file won against the environment; a file is for every day, a variable for this start.",
                "zh": "文件压过了环境变量；文件管平时，变量管这一次启动。",
            },
        ),
        Mistake(
            _truthy,
            {
                "en": "a setting of False, 0 or None was taken for one that nobody has said; ask whether the key is "
                "there, not whether its value is true.",
                "zh": "把 False、0、None 当成了「没说」；要问键在不在，别问值真不真。",
            },
        ),
        Mistake(
            lambda defaults, *sources: {
                k: (v, "default")
                for k, v in {**dict(kv for s in sources for kv in s.items()), **defaults}.items()
            },
            {
                "en": "the default was the last to speak; it is the first, and everybody else may contradict it.",
                "zh": "默认值说了最后一句；它应该最先说，谁都可以改它。",
            },
        ),
    ),
    hint={
        "en": "Go from the weakest source to the strongest and let each overwrite what it mentions.",
        "zh": "从最弱的来源走到最强的，每个来源只改它提到的键。",
    },
)
COACH_STEPS = Exercise(
    id="09.2",
    stub=_stub,
    reference=steps,
    cases=(
        ([5], 1),
        ([1, 4], 2),
        ([1, 4, 3], 2),
        ([2, 9, 1, 1, 6, 3, 8], 3),
        ([40, 1, 1, 1, 1, 1, 1, 1], 4),
    ),
    mistakes=(
        Mistake(
            lambda lengths, seats: (-(-sum(lengths) // seats), steps(lengths, seats)[1]),
            {
                "en": "your coach comes home with the average passenger; it waits for the longest answer.",
                "zh": "你的班车按平均时间回来；它要等最长的那个回答。",
            },
        ),
        Mistake(
            _perfect_lift,
            {
                "en": "your lift is full to the very end; towards the end, nobody is left to take a free seat.",
                "zh": "你的缆车一直满座到最后一刻；快结束时，空出的座位没人来坐。",
            },
        ),
        Mistake(
            lambda lengths, seats: steps(sorted(lengths), seats),
            {
                "en": "the answers were sorted; a server does not know their lengths beforehand, they come as they come.",
                "zh": "你给回答排了序；服务器事先不知道长度，来什么是什么。",
            },
        ),
    ),
    hint={
        "en": "Coaches: the longest of each group of `seats`, summed. Lift: keep a list of when each seat becomes "
        "free; the next answer takes the earliest.",
        "zh": "班车：每 `seats` 个一组，取最长的相加。缆车：记下每个座位何时空出，下一个回答坐最早空出的那个。",
    },
)
