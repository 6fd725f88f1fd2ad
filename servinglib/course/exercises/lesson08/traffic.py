"""Exercises on what a cache sees: who leads, who joins, who finds; and how often something is found.

A kettle on the office stove: who comes first puts it on, who comes while it heats waits for the same
water, who comes soon after has tea at once, and after an hour it is cold again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from servinglib.course.checks import Exercise, Mistake


def fates(requests: Sequence[tuple[float, str]], seconds: float, ttl: float) -> list[str]:
    """ "lead", "join" or "hit" for each (time, key); an answer takes `seconds`, and lives `ttl` from then."""
    ready: dict[str, float] = {}
    told = []
    for now, key in requests:
        if key not in ready or now - ready[key] >= ttl:
            ready[key] = now + seconds
            told.append("lead")
        else:
            told.append("join" if now < ready[key] else "hit")
    return told


def hit_rate(popularity: Sequence[float], capacity: float) -> float:
    """Share of requests that an LRU cache for `capacity` of the items answers, by Che's approximation."""
    low, high = 0.0, 1.0
    while _touched(popularity, high) < capacity:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _touched(popularity, middle) < capacity else (low, middle)
    return _found(popularity, high)


def _touched(popularity: Sequence[float], requests: float) -> float:
    return sum(1 - math.exp(-p * requests) for p in popularity)


def _found(popularity: Sequence[float], requests: float) -> float:
    return sum(p * (1 - math.exp(-p * requests)) for p in popularity)


def _stub(*_: object) -> None:
    raise NotImplementedError


def _without_single_flight(requests: Sequence[tuple[float, str]], seconds: float, ttl: float) -> list[str]:
    ready: dict[str, float] = {}
    told = []
    for now, key in requests:
        found = key in ready and ready[key] <= now < ready[key] + ttl
        told.append("hit" if found else "lead")
        if not found:
            ready[key] = now + seconds
    return told


def _ttl_from_the_question(requests: Sequence[tuple[float, str]], seconds: float, ttl: float) -> list[str]:
    asked: dict[str, float] = {}
    told = []
    for now, key in requests:
        if key not in asked or now - asked[key] >= max(ttl, seconds):
            asked[key] = now
            told.append("lead")
        else:
            told.append("join" if now < asked[key] + seconds else "hit")
    return told


def _renewed_by_hits(requests: Sequence[tuple[float, str]], seconds: float, ttl: float) -> list[str]:
    ready: dict[str, float] = {}
    wanted: dict[str, float] = {}
    told = []
    for now, key in requests:
        if key not in ready or now - max(ready[key], wanted[key]) >= ttl:
            ready[key] = now + seconds
            told.append("lead")
        else:
            told.append("join" if now < ready[key] else "hit")
        wanted[key] = now
    return told


FATES = Exercise(
    id="08.3",
    stub=_stub,
    reference=fates,
    # An answer takes 2 s; times are exact in binary.
    cases=(
        ([(0.0, "a"), (3.0, "a")], 2.0, 10.0),
        ([(0.0, "a"), (1.0, "a"), (1.5, "b")], 2.0, 10.0),
        ([(0.0, "a"), (11.0, "a"), (12.0, "a"), (12.5, "a")], 2.0, 10.0),
        ([(0.0, "a"), (5.0, "a"), (9.0, "a"), (13.0, "a"), (16.0, "a")], 2.0, 10.0),
    ),
    mistakes=(
        Mistake(
            _without_single_flight,
            {
                "en": "who comes while the answer is being computed computes it once more; the first crowd of a "
                "popular question hits the engine in full. It should join.",
                "zh": "答案正在算的时候来的人又算了一遍；热门问题的第一波会全部砸到引擎上。应当搭车（join）。",
            },
        ),
        Mistake(
            _ttl_from_the_question,
            {
                "en": "the lifetime is counted from the question; an answer gets old from when it was stored, "
                "that is `seconds` later.",
                "zh": "寿命从提问时算起了；答案从存入时开始变旧，要晚 seconds 秒。",
            },
        ),
        Mistake(
            _renewed_by_hits,
            {
                "en": "a hit renews the lifetime here, so a popular answer never gets renewed, however wrong it "
                "has become; hits count for LRU, not for the TTL.",
                "zh": "命中会续命：热门答案永远不更新，错了也没人知道。命中影响的是 LRU，不是 TTL。",
            },
        ),
    ),
    hint={
        "en": "One number per key is enough: when its answer is, or will be, ready.",
        "zh": "每个键记一个数就够了：它的答案什么时候算好（或将要算好）。",
    },
)


HIT_RATE = Exercise(
    id="08.4",
    stub=_stub,
    reference=hit_rate,
    cases=(
        ([0.5, 0.5], 1),
        ([0.7, 0.2, 0.1], 1),
        ([0.4, 0.3, 0.2, 0.1], 2),
        ([0.5, 0.2, 0.1, 0.1, 0.05, 0.05], 3),
    ),
    mistakes=(
        Mistake(
            lambda popularity, capacity: sum(sorted(popularity)[-int(capacity) :]),
            {
                "en": "this keeps the most popular items for ever, which takes knowing them; LRU lets rare ones "
                "in and finds less.",
                "zh": "这是永远只留最热门的几个，得事先知道谁热门；LRU 会放冷门的进来，命中更少。",
            },
        ),
        Mistake(
            lambda popularity, capacity: _found(popularity, capacity),
            {
                "en": "the lifetime T is not the capacity: some of T requests repeat each other, so it takes more "
                "than that to fill the cache. Solve the sum for T.",
                "zh": "寿命 T 不等于容量：T 个请求里有重复的，要更多请求才能填满缓存。要解方程求 T。",
            },
        ),
        Mistake(
            lambda popularity, capacity: capacity / len(popularity),
            {
                "en": "this is the share of the items that are in the cache; requests go to popular ones more "
                "often, so weigh each with its popularity.",
                "zh": "这是缓存里的条目所占的比例；请求更常找热门的，每个要按流行度加权。",
            },
        ),
    ),
    hint={
        "en": "The left side of sum(1 - exp(-p*T)) = capacity grows with T: double T until it is too much, then "
        "halve the interval. The hit rate is sum(p * (1 - exp(-p*T))).",
        "zh": "sum(1 - exp(-p*T)) = capacity 的左边随 T 增长：先把 T 翻倍到超过，再二分。命中率是 sum(p * (1 - exp(-p*T)))。",
    },
)
