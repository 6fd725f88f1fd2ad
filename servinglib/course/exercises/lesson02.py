"""Lesson 02's exercises: the parts of a latency, a time average, a dashboard, two sources, goodput.

All five are about who measured what. A museum's door counts heads, the visitors' watches count minutes;
an exercise goes wrong where the one is taken for the other, or where somebody isn't counted at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from servinglib.course.checks import Exercise, Mistake


def parts(
    arrival: int, received: int, scheduled: int, first_token: int, finished: int, completed: int
) -> tuple[int, int, int, int]:
    """Network, queue, prefill and decode time, from the stamps of one request, all in ns."""
    network = (received - arrival) + (completed - finished)
    return network, scheduled - received, first_token - scheduled, finished - first_token


def time_average(times: Sequence[float], numbers: Sequence[float], end: float) -> float:
    """Mean of what is `numbers[i]` from `times[i]` (s) until the next time, and the last until `end`."""
    return float(np.dot(numbers, np.diff([*times, end])) / (end - times[0]))


def mean_latency_ms(in_flight: float, requests_per_minute: float) -> float:
    """Mean latency in ms of a service with so many requests in flight on average."""
    return in_flight / (requests_per_minute / 60) * 1000


def sources_agree(gauge_mean: float, latencies: Sequence[float], duration: float, tolerance: float) -> bool:
    """Whether the clients' latencies (s) in a run of `duration` explain the gauge's mean, within a share."""
    return abs(sum(latencies) / duration - gauge_mean) <= tolerance * gauge_mean


def goodput(latencies: Sequence[float | None], slo: float, duration: float) -> float:
    """Requests/s whose latency (s) is at most `slo`; None is a request that failed or was refused."""
    return sum(latency is not None and latency <= slo for latency in latencies) / duration


def _stub(*_: object) -> None:
    raise NotImplementedError


PARTS = Exercise(
    id="02.1",
    stub=_stub,
    reference=parts,
    cases=(
        (0, 10, 30, 60, 100, 150),
        (1_000, 1_000, 1_500, 3_500, 9_500, 9_500),
        (7_000, 7_040, 7_040, 7_300, 7_300, 7_345),
    ),
    mistakes=(
        Mistake(
            lambda a, r, s, f, e, c: (r - a, s - r, f - s, e - f),
            {
                "en": "the way back is missing, so the parts don't add up to completed - arrival; the network "
                "is there and back.",
                "zh": "漏了回程，各段加起来不等于 completed - arrival；网络时间包括去和回。",
            },
        ),
        Mistake(
            lambda a, r, s, f, e, c: (r - a + c - e, s - r, f - r, e - f),
            {
                "en": "prefill is counted from `received`, so the queue is in it a second time; it begins "
                "when the request leaves the queue.",
                "zh": "预填充从 received 算起，把排队又算了一遍；它从请求离开队列时开始。",
            },
        ),
        Mistake(
            lambda a, r, s, f, e, c: (c - e, s - a, f - s, e - f),
            {
                "en": "the queue is counted from `arrival`, but on its way to the server a request is not in "
                "the server's queue.",
                "zh": "排队从 arrival 算起了；请求在去服务器的路上时，还不在服务器的队列里。",
            },
        ),
    ),
    hint={
        "en": "Mark the six stamps on a line. Which pieces of it belong to the network? There are two.",
        "zh": "在一条线上标出六个时间戳。哪几段属于网络？一共两段。",
    },
)

TIME_AVERAGE = Exercise(
    id="02.2",
    stub=_stub,
    reference=time_average,
    cases=(
        ([0.0], [3.0], 2.0),
        ([0.0, 1.0], [0.0, 4.0], 4.0),
        ([2.0, 2.5, 3.0, 7.0], [1.0, 5.0, 2.0, 0.0], 8.0),
        ([10.0, 10.1, 10.2, 10.3, 14.0], [1.0, 2.0, 3.0, 2.0, 1.0], 15.0),
    ),
    mistakes=(
        Mistake(
            lambda times, numbers, end: float(np.mean(numbers)),
            {
                "en": "this averages over the changes, and changes crowd where much happens; weigh each "
                "number with the seconds for which it stood.",
                "zh": "这是对变化次数求平均，忙的时候变化多，就被多算了；每个数要按它持续的秒数加权。",
            },
        ),
        Mistake(
            lambda times, numbers, end: float(np.dot(numbers[:-1], np.diff(times)) / (end - times[0])),
            {
                "en": "the tail is forgotten: the last number still stands until `end`.",
                "zh": "漏了尾巴：最后一个数一直持续到 end。",
            },
        ),
        Mistake(
            lambda times, numbers, end: float(
                np.trapezoid([*numbers, numbers[-1]], [*times, end]) / (end - times[0])
            ),
            {
                "en": "the number does not slope from one change to the next, it stands and then jumps: "
                "rectangles, no trapezoids.",
                "zh": "两次变化之间人数不是斜着走的，而是保持不变再跳：用矩形，不用梯形。",
            },
        ),
    ),
    hint={
        "en": "The area under the steps, divided by the width. How wide is the last step?",
        "zh": "阶梯下的面积除以宽度。最后一级台阶有多宽？",
    },
)

MEAN_LATENCY = Exercise(
    id="02.3",
    stub=_stub,
    reference=mean_latency_ms,
    cases=((2.0, 60.0), (12.0, 2400.0), (0.5, 30.0), (300.0, 4500.0)),
    mistakes=(
        Mistake(
            lambda in_flight, per_minute: in_flight / per_minute * 1000,
            {
                "en": "60 times too small: the rate is per minute, the latency is wanted in units of seconds.",
                "zh": "小了 60 倍：到达率是每分钟的，延迟却要按秒算。",
            },
        ),
        Mistake(
            lambda in_flight, per_minute: in_flight / (per_minute / 60),
            {
                "en": "these are seconds; milliseconds are asked for.",
                "zh": "这是秒；题目要毫秒。",
            },
        ),
        Mistake(
            lambda in_flight, per_minute: per_minute / 60 / in_flight * 1000,
            {
                "en": "upside down: more requests in flight at the same rate mean that each stays longer.",
                "zh": "倒过来了：到达率不变而在途的更多，说明每个待得更久。",
            },
        ),
    ),
    hint={
        "en": "L = λW, solved for W. With λ per second, W comes in seconds.",
        "zh": "由 L = λW 解出 W。λ 按每秒算，W 的单位就是秒。",
    },
)

SOURCES_AGREE = Exercise(
    id="02.4",
    stub=_stub,
    reference=sources_agree,
    # In order: two honest runs, a busy and a quiet one; the slowest two of eight never logged;
    # milliseconds for seconds; clocks stopped at the first token; a bug under thin traffic.
    cases=(
        (2.0, [0.5, 1.0, 0.5, 1.0, 0.5, 0.5], 2.0, 0.05),
        (40.0, [10.0, 9.0, 10.0, 10.0], 1.0, 0.05),
        (2.0, [0.25, 0.5, 0.25, 0.5, 0.25, 0.25], 2.0, 0.05),
        (2.0, [500.0, 1000.0, 500.0, 1000.0, 500.0, 500.0], 2.0, 0.05),
        (2.0, [0.1, 0.2, 0.1, 0.2, 0.1, 0.1], 2.0, 0.05),
        (0.05, [0.1, 0.1, 0.1], 10.0, 0.1),
    ),
    mistakes=(
        Mistake(
            lambda gauge, latencies, duration, tolerance: (
                abs(sum(latencies) / duration - len(latencies) / duration * float(np.mean(latencies))) < 1e-9
            ),
            {
                "en": "both sides come from the clients' list, so this is true of any list; use the gauge.",
                "zh": "等式两边都来自客户端的列表，对任何列表都成立；要用仪表读数。",
            },
        ),
        Mistake(
            lambda gauge, latencies, duration, tolerance: (
                sum(latencies) / duration <= (1 + tolerance) * gauge
            ),
            {
                "en": "only too large a latency is caught; requests that were never logged make it too small.",
                "zh": "只抓住了偏大的延迟；漏记的请求会让它偏小。",
            },
        ),
        Mistake(
            lambda gauge, latencies, duration, tolerance: abs(sum(latencies) / duration - gauge) <= tolerance,
            {
                "en": "the tolerance is a share of the gauge's mean, not a number of requests.",
                "zh": "容差是相对仪表均值的比例，不是请求个数。",
            },
        ),
        Mistake(
            lambda gauge, latencies, duration, tolerance: (
                abs(float(np.mean(latencies)) - gauge) <= tolerance * gauge
            ),
            {
                "en": "a number of requests is compared with seconds; multiply by the rate, answers / duration.",
                "zh": "把请求个数和秒数相比了；要先乘到达率，即答案个数除以 duration。",
            },
        ),
    ),
    hint={
        "en": "The latencies add up to request-seconds. Per second of the run, how many requests is that?",
        "zh": "延迟加起来是「请求·秒」。除以运行的秒数，是多少个请求？",
    },
)

GOODPUT = Exercise(
    id="02.5",
    stub=_stub,
    reference=goodput,
    # 0.5 s lies on the SLO of the first case and meets it.
    cases=(
        ([0.25, 0.5, 0.75, None], 0.5, 2.0),
        ([None, None, 0.1], 1.0, 4.0),
        ([0.2, 0.3, 0.9, 1.5, 0.4, None, 0.1, None], 0.4, 2.0),
    ),
    mistakes=(
        Mistake(
            lambda latencies, slo, duration: sum(x is None or x <= slo for x in latencies) / duration,
            {
                "en": "an error counts as a hit here; whoever got no answer was not served well.",
                "zh": "这里把出错算成了达标；没拿到答案的用户并没有被服务好。",
            },
        ),
        Mistake(
            lambda latencies, slo, duration: (
                sum(x is not None and x <= slo for x in latencies)
                / sum(x is not None for x in latencies)
                * len(latencies)
                / duration
            ),
            {
                "en": "the share was taken among the successes only; errors are misses and count below "
                "the line.",
                "zh": "只在成功的请求里算比例；出错也是未达标，要算进分母。",
            },
        ),
        Mistake(
            lambda latencies, slo, duration: sum(x is not None for x in latencies) / duration,
            {
                "en": "this is throughput; the late answers are in it.",
                "zh": "这是吞吐量，迟到的答案也算进去了。",
            },
        ),
    ),
    hint={
        "en": "Count the requests that were answered in time, and divide by seconds; nothing else.",
        "zh": "数一数按时得到答案的请求，再除以秒数，别的都不要。",
    },
)

EXERCISES = (PARTS, TIME_AVERAGE, MEAN_LATENCY, SOURCES_AGREE, GOODPUT)
