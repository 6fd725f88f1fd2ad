"""Lesson 01's exercises: capacity, the smallest batch that suffices, an honest percentile, the rule.

All four use the batch time H(b) = αb + τ₀: a bus trip costs τ₀ however many board, and α more for
each of its b passengers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from servinglib.course.checks import Exercise, Mistake


def capacity(alpha: float, tau0: float, max_batch_size: int) -> float:
    """Requests/s of a server whose batches are always full; alpha and tau0 in seconds."""
    return max_batch_size / (alpha * max_batch_size + tau0)


def smallest_batch(alpha: float, tau0: float, rate: float) -> int | None:
    """The smallest max_batch_size whose capacity exceeds `rate` (requests/s), or None if none does."""
    if alpha * rate >= 1:
        return None
    return math.floor(tau0 * rate / (1 - alpha * rate)) + 1


def open_loop_percentile(
    intended: Sequence[float], sent: Sequence[float], completed: Sequence[float], q: float
) -> float:
    """The q-th percentile of latency (s) as users feel it, linearly interpolated between ranks."""
    return float(np.percentile(np.subtract(completed, intended), q))


def fires_at(arrivals: Sequence[float], max_batch_size: int, max_wait_time: float) -> float:
    """When an idle server sends its first batch; arrivals (s) are in order."""
    timer = arrivals[0] + max_wait_time
    is_filled = len(arrivals) >= max_batch_size
    return min(timer, arrivals[max_batch_size - 1]) if is_filled else timer


def _stub(*_: object) -> None:
    raise NotImplementedError


def _size_by_trial(alpha: float, tau0: float, rate: float) -> int:
    size = 1
    while capacity(alpha, tau0, size) <= rate:
        size += 1
    return size


def _window_from_the_latest(arrivals: Sequence[float], max_batch_size: int, max_wait_time: float) -> float:
    timer = arrivals[0] + max_wait_time
    for count, arrival in enumerate(arrivals, 1):
        if arrival > timer:
            break
        if count == max_batch_size:
            return arrival
        timer = arrival + max_wait_time
    return timer


CAPACITY = Exercise(
    id="01.1",
    stub=_stub,
    reference=capacity,
    cases=((0.01, 0.04, 1), (0.01, 0.04, 4), (0.002, 0.05, 16)),
    mistakes=(
        Mistake(
            lambda alpha, tau0, size: 1 / (alpha * size + tau0),
            {
                "en": "this counts batches per second; each batch carries max_batch_size requests.",
                "zh": "这是每秒的批数；每个批里有 max_batch_size 个请求。",
            },
        ),
        Mistake(
            lambda alpha, tau0, size: 1 / alpha,
            {
                "en": "tau0 is left out; 1/alpha is only the limit for very large batches.",
                "zh": "漏掉了 tau0；1/alpha 只是批很大时的极限。",
            },
        ),
        Mistake(
            lambda alpha, tau0, size: 1000 * size / (alpha * size + tau0),
            {
                "en": "a factor of 1000: alpha and tau0 are in seconds already, not in milliseconds.",
                "zh": "差了 1000 倍：alpha 和 tau0 的单位已经是秒，不是毫秒。",
            },
        ),
    ),
    hint={
        "en": "How long does a full batch take, and how many requests leave when it ends?",
        "zh": "一个满批要用多长时间？它结束时有多少个请求离开？",
    },
)

SMALLEST_BATCH = Exercise(
    id="01.2",
    stub=_stub,
    reference=smallest_batch,
    # The second case is exact in binary: capacity(4) is 4.0, which does not exceed the rate 4.0.
    cases=((0.01, 0.04, 10.0), (0.125, 0.5, 4.0), (0.01, 0.04, 70.0), (0.25, 0.5, 4.0), (0.01, 0.04, 120.0)),
    mistakes=(
        Mistake(
            lambda alpha, tau0, rate: (
                None if alpha * rate >= 1 else max(1, math.ceil(tau0 * rate / (1 - alpha * rate)))
            ),
            {
                "en": "at equality the queue still grows without bound; the capacity must exceed the rate.",
                "zh": "两者相等时队列仍会无限增长；容量必须大于到达率。",
            },
        ),
        Mistake(
            lambda alpha, tau0, rate: (
                None if alpha * rate >= 1 else max(1, math.floor(tau0 * rate / (1 - alpha * rate)))
            ),
            {
                "en": "one too small: rounded down, the capacity is below the rate.",
                "zh": "小了一个：向下取整后，容量低于到达率。",
            },
        ),
        Mistake(
            lambda alpha, tau0, rate: None if alpha * rate >= 1 else 1,
            {
                "en": "tau0 is left out; without it a batch of one would always do.",
                "zh": "漏掉了 tau0；没有它，大小为 1 的批总是够的。",
            },
        ),
        Mistake(
            _size_by_trial,
            {
                "en": "no batch is large enough once rate * alpha reaches 1; return None there.",
                "zh": "rate * alpha 达到 1 之后，再大的批也不够；这时应返回 None。",
            },
        ),
    ),
    hint={
        "en": "Solve b/(alpha*b + tau0) > rate for b. For which rate is there no such b?",
        "zh": "解不等式 b/(alpha*b + tau0) > rate，求 b。rate 多大时没有这样的 b？",
    },
)

OPEN_LOOP_PERCENTILE = Exercise(
    id="01.3",
    stub=_stub,
    reference=open_loop_percentile,
    # In every case the client was late in sending, and the slowest request is not the last.
    cases=(
        ([0.0, 1.0], [0.5, 1.0], [2.0, 2.0], 50),
        ([0.0, 1.0, 2.0, 3.0], [0.0, 4.0, 4.5, 5.0], [4.0, 4.5, 5.0, 5.25], 90),
        ([0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 0.9, 0.9, 1.0, 1.0], [0.9, 1.3, 1.0, 1.2, 1.1], 75),
    ),
    mistakes=(
        Mistake(
            lambda intended, sent, completed, q: float(np.percentile(np.subtract(completed, sent), q)),
            {
                "en": "counted from the actual send: the wait in a late client is left out "
                "(coordinated omission). Count from the intended arrival.",
                "zh": "从实际发送时刻算起，漏掉了客户端晚发的等待（协同遗漏）。应从计划到达时刻算起。",
            },
        ),
        Mistake(
            lambda intended, sent, completed, q: float(np.mean(np.subtract(completed, intended))),
            {
                "en": "this is the mean, which says nothing about the slow ones; a percentile is asked for.",
                "zh": "这是平均值，看不出慢的请求；题目要的是百分位数。",
            },
        ),
        Mistake(
            lambda intended, sent, completed, q: float(
                np.interp(
                    q / 100 * (len(sent) - 1), range(len(sent)), np.subtract(completed, intended).tolist()
                )
            ),
            {
                "en": "the latencies are not sorted; a percentile is a place in the sorted list.",
                "zh": "延迟没有排序；百分位数是排序后的位置。",
            },
        ),
        Mistake(
            lambda intended, sent, completed, q: float(
                np.percentile(np.subtract(completed, intended), q, method="lower")
            ),
            {
                "en": "one of the latencies is returned; interpolate linearly between the two nearest.",
                "zh": "返回的是其中一个延迟；应在相邻的两个值之间线性插值。",
            },
        ),
    ),
    hint={
        "en": "When did the user start to wait? numpy.percentile does the rest.",
        "zh": "用户从什么时候开始等？剩下的交给 numpy.percentile。",
    },
)

FIRES_AT = Exercise(
    id="01.4",
    stub=_stub,
    reference=fires_at,
    cases=(
        ([5.0], 4, 0.5),
        ([5.0, 5.25], 4, 0.5),
        ([5.0, 5.1, 5.2], 3, 0.5),
        ([0.0, 0.3, 0.6, 0.9], 4, 0.5),
        ([1.0, 1.1, 1.2, 1.3], 2, 0.25),
    ),
    mistakes=(
        Mistake(
            _window_from_the_latest,
            {
                "en": "each arrival opens the window anew; it opens once, with the first request.",
                "zh": "每次到达都重新打开了窗口；窗口只在第一个请求到达时打开一次。",
            },
        ),
        Mistake(
            lambda arrivals, size, wait: arrivals[0] + wait,
            {
                "en": "the batch waits for the timer although it is full; a full batch goes at once.",
                "zh": "批已经满了却还在等计时器；满批应立即发出。",
            },
        ),
        Mistake(
            lambda arrivals, size, wait: arrivals[min(size, len(arrivals)) - 1],
            {
                "en": "the timer is left out; the first request may wait max_wait_time and no longer.",
                "zh": "漏掉了计时器；第一个请求最多等 max_wait_time。",
            },
        ),
    ),
    hint={
        "en": "Two events can send the batch: the timer of the first request, and the request that fills it.",
        "zh": "有两个事件会让批发出：第一个请求的计时器到点，或者某个请求把批填满。看哪个先发生。",
    },
)

EXERCISES = (CAPACITY, SMALLEST_BATCH, OPEN_LOOP_PERCENTILE, FIRES_AT)
