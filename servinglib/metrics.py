"""One definition per number, for the client, the server, the simulator and the lessons alike.

A run ends as a list of timelines; here they become the few numbers that people compare: latency
percentiles, time to first token, time per output token, throughput. Everything is counted from the
*intended* arrival, so a server, or a client, that falls behind can't hide it (lesson 12).

Two ends of a run are not like its middle: at the start the server is still empty, and after the last
arrival it only empties itself. Both are left out, and the summary says how much was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.request import Timeline
from servinglib.statistics import Interval, Values, quantile, quantile_interval

CLIENT_LIMIT = 0.010
"""A run whose P99 dispatch lag exceeds this many seconds measured the client, not the server."""


def dispatch_lag(t: Timeline) -> float | None:
    """Intended arrival to actual send, in seconds."""
    return _between(t.arrival, t.sent)


def e2e(t: Timeline) -> float | None:
    """Intended arrival to the end of the answer, in seconds."""
    return _between(t.arrival, t.completed)


def ttft(t: Timeline) -> float | None:
    """Intended arrival to the first token that is not empty, in seconds."""
    return _between(t.arrival, t.first_token)


def tpot(t: Timeline, output_tokens: int) -> float | None:
    """Mean time per token after the first, in seconds; None for answers of fewer than two tokens."""
    decode = _between(t.first_token, t.finished)
    return None if decode is None or output_tokens < 2 else decode / (output_tokens - 1)


def percentiles(values: Values, levels: Sequence[float] = (0.50, 0.99)) -> tuple[float, ...]:
    """The quantiles of `values` at `levels` (each in (0, 1)), in that order and in the values' unit."""
    return tuple(quantile(values, level) for level in levels)


@dataclass(frozen=True, slots=True)
class Latency:
    """One latency over the requests of a run, in seconds.

    The intervals are distribution-free 95% ones for independent values. Requests that queue behind
    each other are alike, so under load the truth is less certain than they say; repeat the run to
    know (`statistics.mean_interval`).
    """

    count: int
    mean: float
    p50: Interval
    p90: Interval
    p99: Interval

    @classmethod
    def of(cls, values: Values) -> Latency:
        """Summarize at least one latency."""
        levels = [quantile_interval(values, p) for p in (0.50, 0.90, 0.99)]
        return cls(len(values), float(np.mean(values)), *levels)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What one run came to.

    Attributes
    ----------
    offered, completed, failed : int
        Requests that were meant to arrive in the measured window, and how they ended.
    warm_up, window, drain : float
        Seconds left out at the start, measured, and left out after the last arrival.
    requests_per_s, tokens_per_s : float
        Answers, and output tokens, that were completed within the window, per second of it. An
        answer's tokens count at its end. `tokens_per_s` is NaN if the token counts weren't given.
    latencies : dict of str to Latency
        "e2e", "ttft", "tpot", "dispatch_lag" and the timeline's parts "network", "queue",
        "prefill", "decode": those that were stamped, of the window's completed requests.
    client_limited : bool
        The client sent so late that its own lag spoils the result.
    """

    offered: int
    completed: int
    failed: int
    warm_up: float
    window: float
    drain: float
    requests_per_s: float
    tokens_per_s: float
    latencies: dict[str, Latency]
    client_limited: bool


def summarize(
    timelines: Sequence[Timeline], output_tokens: Sequence[int] | None = None, *, warm_up: float = 0.0
) -> RunSummary:
    """Summarize a run of at least two requests.

    Parameters
    ----------
    timelines : sequence of Timeline
        One per request offered, each with `arrival`; one without `completed` is a failed request.
    output_tokens : sequence of int, optional
        Tokens of each answer, in the same order; without it there is no TPOT and no tokens/s.
    warm_up : float
        Seconds after the first arrival to leave out. Latencies are then those of requests that were
        meant to arrive in the window, which ends with the last arrival.

    Raises
    ------
    InvalidSetting
        When the window holds no arrival, or no request in it was completed.
    """
    tokens = [0] * len(timelines) if output_tokens is None else output_tokens
    if len(tokens) != len(timelines):
        raise InvalidSetting(f"{len(timelines)} timelines and {len(tokens)} token counts; give one for each")
    rows = list(zip(timelines, tokens, strict=True))
    start, end = _window([_arrival(t) for t in timelines], warm_up)
    offered = [(t, n) for t, n in rows if _arrival(t) >= start]
    done = [(t, n) for t, n in offered if t.completed is not None]
    if not done:
        raise InvalidSetting(f"none of the {len(offered)} requests in the window was completed")
    inside = [n for t, n in rows if t.completed is not None and start < t.completed <= end]
    window = (end - start) / 1e9
    lags = _values(dispatch_lag, (t for t, _ in offered))
    return RunSummary(
        offered=len(offered),
        completed=len(done),
        failed=len(offered) - len(done),
        warm_up=warm_up,
        window=window,
        drain=max(0, max(t.completed for t, _ in done if t.completed is not None) - end) / 1e9,
        requests_per_s=len(inside) / window,
        tokens_per_s=math.nan if output_tokens is None else sum(inside) / window,
        latencies=_latencies(done),
        client_limited=bool(lags) and quantile(lags, 0.99) > CLIENT_LIMIT,
    )


def _window(arrivals: Sequence[int], warm_up: float) -> tuple[int, int]:
    """Start and end of what is measured, in ns of the timelines' clock."""
    first, last = min(arrivals, default=0), max(arrivals, default=0)
    start = first + round(warm_up * 1e9)
    if not first <= start < last:
        raise InvalidSetting(
            f"a warm-up of {warm_up} s leaves no window in a run of {len(arrivals)} requests whose "
            f"arrivals span {(last - first) / 1e9:.3g} s"
        )
    return start, last


def _latencies(done: Sequence[tuple[Timeline, int]]) -> dict[str, Latency]:
    timelines = [t for t, _ in done]
    columns = {
        "e2e": _values(e2e, timelines),
        "ttft": _values(ttft, timelines),
        "tpot": [v for t, n in done if (v := tpot(t, n)) is not None],
        "dispatch_lag": _values(dispatch_lag, timelines),
    }
    if all(t.received is not None and t.scheduled is not None for t in timelines) and columns["ttft"]:
        parts = [t.parts for t in timelines]
        columns |= {name: [p[name] / 1e9 for p in parts] for name in parts[0]}
    return {name: Latency.of(values) for name, values in columns.items() if values}


def _values(definition: Callable[[Timeline], float | None], timelines: Iterable[Timeline]) -> list[float]:
    return [v for t in timelines if (v := definition(t)) is not None]


def _between(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else (end - start) / 1e9


def _arrival(t: Timeline) -> int:
    if t.arrival is None:
        raise InvalidSetting("a timeline has no intended arrival; stamp `arrival` on every request")
    return t.arrival
