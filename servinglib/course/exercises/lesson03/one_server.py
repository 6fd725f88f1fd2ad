"""Exercises on one server: waiting in line, uneven services, and which stamps are the service.

A shop with one till is all there is to it: who waits for whom, what a long job does to the others, and
how fast the till is, told from its receipts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from servinglib.course.checks import Exercise, Mistake


def fifo_waits(arrivals: Sequence[float], services: Sequence[float]) -> list[float]:
    """Seconds that each customer of one server waits before service, in order of arrival."""
    waits, free = [], 0.0
    for arrival, service in zip(arrivals, services, strict=True):
        waits.append(max(0.0, free - arrival))
        free = max(free, arrival) + service
    return waits


def mean_wait(rate: float, services: Sequence[float]) -> float:
    """Mean wait (s) in M/G/1 with these measured service times (s); infinite from load 1 on."""
    mean, second_moment = np.mean(services), np.mean(np.square(services))
    load = rate * mean
    return float(rate * second_moment / (2 * (1 - load))) if load < 1 else math.inf


def capacity(
    arrival: Sequence[float],
    scheduled: Sequence[float],
    first_token: Sequence[float],
    finished: Sequence[float],
    completed: Sequence[float],
) -> float:
    """Requests/s that a server of one at a time can do, from the stamps (s) of a run."""
    return float(1 / np.mean(np.subtract(finished, scheduled)))


def _stub(*_: object) -> None:
    raise NotImplementedError


def _waits_that_go_negative(arrivals: Sequence[float], services: Sequence[float]) -> list[float]:
    waits = [0.0]
    for i in range(1, len(arrivals)):
        waits.append(waits[-1] + services[i - 1] - (arrivals[i] - arrivals[i - 1]))
    return waits


def _waits_for_own_service(arrivals: Sequence[float], services: Sequence[float]) -> list[float]:
    waits = [0.0]
    for i in range(1, len(arrivals)):
        waits.append(max(0.0, waits[-1] + services[i] - (arrivals[i] - arrivals[i - 1])))
    return waits


def _waits_for_the_neighbour_only(arrivals: Sequence[float], services: Sequence[float]) -> list[float]:
    ends = [arrival + service for arrival, service in zip(arrivals, services, strict=True)]
    return [0.0] + [max(0.0, end - arrival) for end, arrival in zip(ends, arrivals[1:], strict=False)]


def _unlimited_mean_wait(rate: float, services: Sequence[float]) -> float:
    return float(rate * np.mean(np.square(services)) / (2 * (1 - rate * np.mean(services))))


def _with_another_second_moment(second_moment: Callable[[Any], Any]) -> Callable[..., float]:
    def answer(rate: float, services: Sequence[float]) -> float:
        load = rate * np.mean(services)
        return float(rate * second_moment(services) / (2 * (1 - load))) if load < 1 else math.inf

    return answer


FIFO_WAITS = Exercise(
    id="03.1",
    stub=_stub,
    reference=fifo_waits,
    # All times are exact in binary, so that a wait of nothing is 0 however it is worked out.
    cases=(
        ([0.0, 5.0], [1.0, 1.0]),
        ([0.0, 1.0, 2.0, 6.0], [3.0, 1.0, 2.0, 1.0]),
        ([0.0, 4.0, 4.5], [1.0, 2.0, 0.25]),
        ([1.0, 1.0, 1.0], [0.5, 0.25, 4.0]),
    ),
    mistakes=(
        Mistake(
            _waits_that_go_negative,
            {
                "en": "a wait below 0: after a quiet spell the server is idle, and nobody starts before "
                "coming; take the larger of 0 and the sum.",
                "zh": "等待出现了负数：空闲一阵之后服务器没有事做，谁也不会在到达之前开始；应和 0 取较大者。",
            },
        ),
        Mistake(
            _waits_for_own_service,
            {
                "en": "each waits for its own service; what one waits for is the service of the one before.",
                "zh": "加的是自己的服务时间；人等的是前一位的服务。",
            },
        ),
        Mistake(
            _waits_for_the_neighbour_only,
            {
                "en": "the one before may have waited too, and starts that much later; its wait is left out.",
                "zh": "前一位自己也可能等过，开始得更晚；漏掉了前一位的等待。",
            },
        ),
        Mistake(
            lambda arrivals, services: np.add(fifo_waits(arrivals, services), services).tolist(),
            {
                "en": "this is the time in the system; the wait ends where the service begins.",
                "zh": "这是在系统里的总时间；等待到服务开始为止。",
            },
        ),
    ),
    hint={
        "en": "Keep one number: when the server will be free. Who comes later than that waits for nothing.",
        "zh": "只记一个数：服务器什么时候空下来。比它晚到的人不用等。",
    },
)


MEAN_WAIT = Exercise(
    id="03.3",
    stub=_stub,
    reference=mean_wait,
    cases=(
        (0.5, [1.0, 1.0]),
        (4.0, [0.1, 0.1, 0.4]),
        (5.0, [0.25, 0.5, 0.125]),
    ),
    mistakes=(
        Mistake(
            _with_another_second_moment(np.var),
            {
                "en": "the variance stands where the second moment belongs: E[S²] = variance + E[S]².",
                "zh": "该用二阶矩的地方用了方差：E[S²] = 方差 + E[S]²。",
            },
        ),
        Mistake(
            _with_another_second_moment(lambda services: np.mean(services) ** 2),
            {
                "en": "the mean was squared, as if all services were alike; square first, then take the mean.",
                "zh": "先平均后平方，等于假设服务时间都一样；应先平方后平均。",
            },
        ),
        Mistake(
            _with_another_second_moment(lambda services: 2 * np.mean(services) ** 2),
            {
                "en": "this is M/M/1, where services are exponential; use the services that were measured.",
                "zh": "这是 M/M/1，它假设服务时间服从指数分布；请用实测的服务时间。",
            },
        ),
        Mistake(
            _unlimited_mean_wait,
            {
                "en": "from load 1 on the queue grows without end, and the formula means nothing; "
                "return math.inf there.",
                "zh": "负载达到 1 之后队列无限增长，公式没有意义；这时应返回 math.inf。",
            },
        ),
    ),
    hint={
        "en": "E[W] = rate * E[S²] / (2 * (1 - load)), where load = rate * E[S]. Where does it stop holding?",
        "zh": "E[W] = 到达率 * E[S²] / (2 * (1 - 负载))，负载 = 到达率 * E[S]。它在哪里不再成立？",
    },
)


CAPACITY = Exercise(
    id="03.4",
    stub=_stub,
    reference=capacity,
    # Arrival, scheduled, first token, finished, completed of each request.
    cases=(
        ([0.0], [0.0], [0.25], [0.5], [0.625]),
        ([0.0, 0.25], [0.0, 0.5], [0.25, 0.75], [0.5, 2.0], [0.5625, 2.125]),
        ([0.0, 1.0, 1.25], [0.0, 1.0, 1.5], [0.125, 1.125, 2.0], [0.25, 1.5, 3.0], [0.25, 1.5, 3.0]),
    ),
    mistakes=(
        Mistake(
            lambda arrival, scheduled, first_token, finished, completed: float(
                1 / np.mean(np.subtract(completed, arrival))
            ),
            {
                "en": "the whole latency contains the wait and the network, which keep no server busy; "
                "a queue calibrated like that looks overloaded.",
                "zh": "端到端延迟里有排队和网络，那些时间不占用服务器；这样标定出来的队列看上去总是过载。",
            },
        ),
        Mistake(
            lambda arrival, scheduled, first_token, finished, completed: float(
                1 / np.mean(np.subtract(first_token, scheduled))
            ),
            {
                "en": "this ends at the first token; decoding keeps the server busy until the last one.",
                "zh": "只算到首 token；解码会一直占用服务器到最后一个 token。",
            },
        ),
        Mistake(
            lambda arrival, scheduled, first_token, finished, completed: float(
                len(arrival) / (max(completed) - min(arrival))
            ),
            {
                "en": "this is the throughput of the run, which cannot exceed the rate at which requests "
                "came; capacity is what the server could do if it were never idle.",
                "zh": "这是这次运行的吞吐量，它超不过到达率；容量是服务器一刻不闲时能做多少。",
            },
        ),
        Mistake(
            lambda arrival, scheduled, first_token, finished, completed: float(
                np.mean(1 / np.subtract(finished, scheduled))
            ),
            {
                "en": "the mean of the rates is too high: short services count as much as long ones. "
                "Take one over the mean of the times.",
                "zh": "对各自的速率取平均会偏高：短服务和长服务算得一样重。应取时间均值的倒数。",
            },
        ),
    ),
    hint={
        "en": "Between which two stamps could nobody else have been served?",
        "zh": "在哪两个时间戳之间，服务器不可能服务别人？",
    },
)
