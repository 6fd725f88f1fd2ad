"""What does batching itself cost? A batching server around a model that does nothing.

To weigh a letter you weigh the envelope first. Around a model that returns its input at once, all
the time that passes is the server's own. Four contenders answer the same requests, all in flight at
once, in turns within one run, so that a noisy machine is equally noisy for all:

- the server under test;
- the PyPI package `batched`, as its documentation says to use it;
- the textbook loop, an `asyncio.Queue` emptied with `asyncio.wait_for`;
- the floor: bare futures, resolved in batches. No waiting room, no rule, no deadlines, no books;
  nothing that answers futures in batches can be faster.

Each meets a synchronous model, whose batches go to a worker thread and back, and an asynchronous
one, which is awaited on the event loop. Then the server answers single requests and full batches
while it is otherwise idle.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from importlib import metadata
from statistics import median, quantiles
from typing import Any

from rich.table import Table

from servinglib.bench import batcher_contenders as contenders
from servinglib.bench.batcher_contenders import AskAll, Contender, LoopModel, ServerClass, ThreadModel
from servinglib.bench.targets import Target, verdict_table

WINDOW = 0.01  # seconds; every contender's default or usual value


@dataclass(frozen=True, slots=True)
class BatcherReport:
    """What one run of the benchmark found.

    Attributes
    ----------
    requests, batch_size, rounds : int
    rates : dict of str to dict of str to list of float
        Items/s by kind of model, contender and round.
    targets : tuple of Target
    timer_p99_ms : float
        99th percentile of a bare `asyncio.sleep` of the window, in turns with the single requests: what
        of their latency is the machine's and not the server's.
    """

    requests: int
    batch_size: int
    rounds: int
    rates: dict[str, dict[str, list[float]]]
    targets: tuple[Target, ...]
    timer_p99_ms: float

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        report = asdict(self)
        report["targets"] = [t.to_json() for t in self.targets]
        report["batched_version"] = metadata.version("batched")
        return report


def measure(
    server: ServerClass, requests: int = 20_000, batch_size: int = 64, rounds: int = 5
) -> BatcherReport:
    """Run the whole benchmark, about half a minute on an idle machine.

    Parameters
    ----------
    server : callable
        `BatchInferenceServer`, or a class with its constructor and `predict`.
    requests : int
        How many are in flight at once.
    batch_size : int
        Most requests in a batch, for every contender.
    rounds : int
        How often each contender runs; ratios are taken within a round, and then their median.
    """
    runners: dict[str, Contender] = {
        "server": contenders.server(server, requests),
        "batched": contenders.batched,
        "textbook": contenders.textbook,
        "floor": contenders.floor,
    }
    models = {"worker thread": ThreadModel(), "event loop": LoopModel()}
    rates: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in runners} for kind in models}
    for turn in range(rounds):
        for kind, model in models.items():
            order = list(runners)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                rate = asyncio.run(_rate(runners[name](model, batch_size, WINDOW), requests))
                rates[kind][name].append(rate)
    targets, timer = asyncio.run(_idle(server))
    ratios = [ratio for kind in models for ratio in _ratios(kind, rates[kind])]
    return BatcherReport(requests, batch_size, rounds, rates, (*ratios, *targets), timer)


def _ratios(kind: str, rates: dict[str, list[float]]) -> list[Target]:
    def ratio(other: str) -> float:
        return median(mine / theirs for mine, theirs in zip(rates["server"], rates[other], strict=True))

    return [
        Target(f"{kind}: server / batched", ratio("batched"), 2.0, at_least=True),
        Target(f"{kind}: server / textbook", ratio("textbook"), 1.0, at_least=True),
        Target(f"{kind}: server / floor", ratio("floor"), 0.6, at_least=True),
    ]


async def _rate(contender: AbstractAsyncContextManager[AskAll], requests: int) -> float:
    async with contender as ask_all:
        await ask_all(requests // 10)  # the first batch pays for threads and caches
        gc.collect()
        start = time.perf_counter()
        await ask_all(requests)
        return requests / (time.perf_counter() - start)


class _WatchedModel:
    """Does nothing, but remembers when it was last asked."""

    def __init__(self) -> None:
        self.asked = 0.0

    def generate_batch(self, items: list[Any]) -> list[Any]:
        self.asked = time.perf_counter()
        return items


async def _idle(server: ServerClass, times: int = 300) -> tuple[list[Target], float]:
    """Latency of single requests, departure of full batches, and a bare timer, one at a time, in ms."""
    latencies, timers, departures, model = [], [], [], _WatchedModel()
    async with server(model, 8, WINDOW) as running:
        for i in range(times):
            latencies.append(await _milliseconds(running.predict(i)))
            timers.append(await _milliseconds(asyncio.sleep(WINDOW)))
    async with server(model, 8, 60.0) as running:
        for _ in range(times):
            replies = [running.predict(i) for i in range(8)]
            full = time.perf_counter()
            await asyncio.gather(*replies)
            departures.append(1000 * (model.asked - full))
    targets = [
        Target("idle: one request, p99", _p99(latencies), 1000 * WINDOW + 1, at_least=False, unit="ms"),
        Target("idle: a full batch leaves, median", median(departures), 1.0, at_least=False, unit="ms"),
    ]
    return targets, _p99(timers)


async def _milliseconds(work: Awaitable[Any]) -> float:
    start = time.perf_counter()
    await work
    return 1000 * (time.perf_counter() - start)


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


def tables(report: BatcherReport) -> list[Table]:
    """The report for people: what each contender did, and the targets met or missed."""
    speeds = Table(
        "model on the", *next(iter(report.rates.values())), title="items/s, median", title_justify="left"
    )
    for kind, rates in report.rates.items():
        speeds.add_row(kind, *(f"{median(values):,.0f}" for values in rates.values()))
    verdicts = verdict_table(report.targets)
    verdicts.add_row(
        "a bare timer of the same window, p99", f"{report.timer_p99_ms:.3g} ms", "for comparison", ""
    )
    return [speeds, verdicts]
