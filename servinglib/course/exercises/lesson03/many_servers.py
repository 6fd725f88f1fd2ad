"""Exercises on many servers: Erlang's C, and how many servers a P99 target takes.

It is the manager of a bank who asks: how many counters do I open, so that hardly anybody waits for
more than so long? A formula answers, and `judge` lets the simulation have the last word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np

from servinglib.course.checks import Exercise, Mistake, call_answer
from servinglib.statistics import mean_interval, streams
from simulations.fast_queues import fifo

JUDGED = (50.0, 0.1, 0.04)
"""Arrivals per second, mean service and P99 limit in seconds: the case that `judge` simulates."""
MOST_JUDGED = 100  # servers


def erlang_c(offered: float, servers: int) -> float:
    """The share of customers who must wait in M/M/c; `offered` = rate * mean service time, below c."""
    lost = erlang_b(offered, servers)
    return lost / (1 - offered / servers * (1 - lost))


def erlang_b(offered: float, servers: int) -> float:
    """The share who would be lost if nobody could wait, by Erlang's recursion."""
    lost = 1.0
    for k in range(1, servers + 1):
        lost = offered * lost / (k + offered * lost)
    return lost


def servers_needed(rate: float, mean_service: float, limit: float) -> int:
    """The fewest servers behind one line with a P99 wait of at most `limit` seconds (M/M/c)."""
    return next(
        servers
        for servers, must_wait, drain in _line_ups(rate, mean_service)
        if must_wait * math.exp(-drain * limit) <= 0.01
    )


def judge(answer: Callable[..., Any]) -> str:
    """What a simulation says of the number of servers that `answer` gives, and of one server fewer."""
    servers = call_answer(answer, JUDGED, "en")
    if not isinstance(servers, int | np.integer) or not 2 <= servers <= MOST_JUDGED:
        return f"no number of servers from 2 to {MOST_JUDGED} to judge yet"
    rate, mean_service, limit = JUDGED
    lines = [f"{rate:g} requests/s of {mean_service:g} s each; P99 wait allowed: {limit:g} s"]
    for tried in (int(servers) - 1, int(servers)):
        p99 = mean_interval([_p99_wait(tried, day) for day in range(20)], 0.99)
        verdict = "enough" if p99.high <= limit else "too few" if p99.low > limit else "too close to call"
        lines.append(f"{tried:3d} servers: P99 wait {p99.low:.3f} to {p99.high:.3f} s, {verdict}")
    return "\n".join(lines)


def _line_ups(rate: float, mean_service: float) -> Iterator[tuple[int, float, float]]:
    """Servers, share who must wait, and how fast a full house empties (1/s), from the fewest stable on."""
    offered = rate * mean_service
    for servers in count(math.floor(offered) + 1):
        yield servers, erlang_c(offered, servers), servers / mean_service - rate


def _p99_wait(servers: int, day: int, customers: int = 50_000) -> float:
    rate, mean_service, _ = JUDGED
    draw = streams(day, "arrivals", "services")
    arrivals = np.cumsum(draw["arrivals"].exponential(1 / rate, customers))
    services = draw["services"].exponential(mean_service, customers)
    return float(np.quantile(fifo(arrivals, services, servers).waits[customers // 10 :], 0.99))


def _stub(*_: object) -> None:
    raise NotImplementedError


def _erlang_c_with_load(offered: float, servers: int) -> float:
    lost = erlang_b(offered / servers, servers)
    return lost / (1 - offered / servers * (1 - lost))


def _erlang_c_by_factorials(offered: float, servers: int) -> float:
    full = offered**servers / math.factorial(servers) / (1 - offered / servers)
    return full / (sum(offered**k / math.factorial(k) for k in range(servers)) + full)


ERLANG_C = Exercise(
    id="03.2",
    stub=_stub,
    reference=erlang_c,
    cases=((0.5, 1), (2.0, 3), (8.0, 10), (180.0, 200)),
    mistakes=(
        Mistake(
            erlang_b,
            {
                "en": "this is Erlang's B, the share lost where nobody can wait; C also counts those who "
                "come while others wait: B / (1 - load * (1 - B)).",
                "zh": "这是 Erlang B，即没有地方等时被拒的比例；C 还要算上别人在等时到来的人：B / (1 - 负载 * (1 - B))。",
            },
        ),
        Mistake(
            _erlang_c_with_load,
            {
                "en": "the recursion takes the offered load a = rate * mean service in erlang, "
                "not the load of each server, a / c.",
                "zh": "递推式里用的是总的到达负载 a = 到达率 * 平均服务时间（单位 erlang），不是每台服务器的负载 a / c。",
            },
        ),
        Mistake(
            lambda offered, servers: erlang_b(offered, servers) / (1 - offered / servers),
            {
                "en": "a share above 1, or nearly: the denominator is 1 - load * (1 - B), not 1 - load.",
                "zh": "比例接近甚至超过 1：分母是 1 - 负载 * (1 - B)，不是 1 - 负载。",
            },
        ),
        Mistake(
            _erlang_c_by_factorials,
            {
                "en": "right on paper, but powers and factorials overflow with many servers; "
                "the recursion for B stays between 0 and 1.",
                "zh": "纸上没错，但服务器一多，幂和阶乘就溢出；B 的递推式始终在 0 和 1 之间。",
            },
        ),
    ),
    hint={
        "en": "Start with B = 1 for no server; each further server k makes it a*B / (k + a*B). Then B to C.",
        "zh": "没有服务器时 B = 1；每加第 k 台，B 变成 a*B / (k + a*B)。最后由 B 求 C。",
    },
)


SERVERS_NEEDED = Exercise(
    id="03.5",
    stub=_stub,
    reference=servers_needed,
    cases=((4.0, 0.5, 0.5), JUDGED, (190.0, 0.1, 0.02)),
    mistakes=(
        Mistake(
            lambda rate, mean_service, limit: math.floor(rate * mean_service) + 1,
            {
                "en": "this is only enough for the queue not to grow without end; the wait may be any length.",
                "zh": "这只保证队列不会无限增长；等待可以任意长。",
            },
        ),
        Mistake(
            lambda rate, mean_service, limit: next(
                servers for servers, wait, drain in _line_ups(rate, mean_service) if wait / drain <= limit
            ),
            {
                "en": "the mean wait is within the limit; the 99th percentile is asked for.",
                "zh": "满足要求的是平均等待；题目要的是第 99 百分位数。",
            },
        ),
        Mistake(
            lambda rate, mean_service, limit: next(
                servers
                for servers, _, drain in _line_ups(rate, mean_service)
                if math.exp(-drain * limit) <= 0.01
            ),
            {
                "en": "this is the P99 of those who must wait; the others count too: multiply by Erlang's C.",
                "zh": "这是「非等不可的人」的 P99；不用等的人也算数：要乘上 Erlang C。",
            },
        ),
        Mistake(
            lambda rate, mean_service, limit: next(
                servers
                for servers in count(math.floor(rate * mean_service) + 1)
                if rate * mean_service / servers * math.exp((rate / servers - 1 / mean_service) * limit)
                <= 0.01
            ),
            {
                "en": "each server has a line of its own here (M/M/1 at rate/c); behind one line no server "
                "is idle while somebody waits, and fewer do.",
                "zh": "这里每台服务器各排一队（到达率为 rate/c 的 M/M/1）；共用一队时不会有人在等而服务器闲着，需要的台数更少。",
            },
        ),
    ),
    hint={
        "en": "P(W > t) = C * exp(-(c/mean_service - rate) * t). Try one server after another.",
        "zh": "P(W > t) = C * exp(-(c/mean_service - rate) * t)。一台一台往上试。",
    },
)
