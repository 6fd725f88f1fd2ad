"""One stream of requests, several ways to serve it: one at a time, in batches, on two replicas.

The replicas are processes of their own, each with its own copy of the model and its share of the
cores; a batching server in front of each, and a routing policy in front of both. `time.perf_counter`
is one clock for all processes of a machine, so a replica's stamps fit the client's timeline.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter
from types import TracebackType
from typing import Any

from servinglib.bench.load import Saturation, run_open_loop, saturate
from servinglib.engines.base import Engine
from servinglib.engines.registry import load_engine
from servinglib.experiments.batching_curve import Shape, answered, completed, make_requests
from servinglib.experiments.columns import BatchTimes
from servinglib.policies.batching import DynamicBatching
from servinglib.policies.routing import LeastOutstanding
from servinglib.request import Completion, Request, Timeline
from servinglib.server.batch_server import BatchInferenceServer
from simulations.serving import ServiceTime, simulate_batching

NOT_YET = ("vllm",)
"""Architectures of the course that this experiment can't measure; the report says why."""


class ReplicaProcess:
    """An engine in a process of its own, with the `generate_batch` that a batching server calls."""

    def __init__(self, engine: str, model: str, options: dict[str, Any]) -> None:
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_load, initargs=(engine, model, options)
        )

    async def generate_batch(self, requests: list[Request]) -> list[Completion | Exception]:
        """Answer a batch over there, while this process's event loop stays free."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, _generate_batch, requests)

    def shutdown(self) -> None:
        """End the process once its running batch is done."""
        self._pool.shutdown()


class Replicas:
    """Replicas behind one `predict`; a request goes where the fewest are outstanding."""

    def __init__(self, engine: str, model: str, count: int, max_batch_size: int, **options: Any) -> None:
        self.processes = [ReplicaProcess(engine, model, options) for _ in range(count)]
        self._servers = [
            BatchInferenceServer(process, max_batch_size=max_batch_size, max_wait_time=0)
            for process in self.processes
        ]
        self._outstanding = [0] * count
        self._routing = LeastOutstanding()

    async def predict(self, request: Request) -> Completion:
        """Route one request to a replica and wait for its answer."""
        replica = self._routing.choose(self._outstanding)
        self._outstanding[replica] += 1
        try:
            return await self._servers[replica].predict(request)
        finally:
            self._outstanding[replica] -= 1

    async def measure_batch_times(self, sizes: Sequence[int], repeats: int, shape: Shape) -> BatchTimes:
        """Time batches on all replicas *at once*: they share caches and memory, so they slow each other."""
        times = BatchTimes({size: [] for size in sizes})
        for turn in range(repeats + 1):
            for size in sizes:
                took = await asyncio.gather(*(_timed(p, size, shape, turn) for p in self.processes))
                times.samples[size] += took if turn else []
        return times

    async def measure_saturation(
        self, max_batch_size: int, shape: Shape, batches: int
    ) -> Saturation[Completion]:
        """The most requests/s of all replicas together."""
        in_flight = 2 * max_batch_size * len(self.processes)
        requests = make_requests(batches * max_batch_size * len(self.processes) + 2 * in_flight + 1, shape)
        run = await saturate(lambda i: self.predict(requests[i]), concurrency=in_flight, count=len(requests))
        answered([o.error or o.result for o in run.outcomes])
        return run

    async def measure_under_load(self, arrivals: Sequence[float], shape: Shape) -> list[Timeline]:
        """Send requests at the given times; the timelines of all of them."""
        requests = make_requests(len(arrivals), shape)
        return completed(await run_open_loop(lambda i: self.predict(requests[i]), arrivals))

    async def __aenter__(self) -> Replicas:
        for server in self._servers:
            await server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            await server.__aexit__(kind, error, trace)
        for process in self.processes:
            process.shutdown()


def simulate_replicas(
    count: int, max_batch_size: int, arrivals: Sequence[float], service_time: ServiceTime
) -> list[Timeline]:
    """The same arrivals, routing rule and batching rule in virtual time."""
    result = simulate_batching(
        arrivals,
        DynamicBatching(max_batch_size, max_wait_time=0),
        service_time,
        replicas=count,
        routing=LeastOutstanding(),
    )
    return list(result.timelines)


async def _timed(process: ReplicaProcess, size: int, shape: Shape, seed: int) -> float:
    batch = make_requests(size, shape, seed)
    start = perf_counter()
    answered(await process.generate_batch(batch))
    return perf_counter() - start


_engine: Engine | None = None  # this process's model, where this process is a replica


def _load(engine: str, model: str, options: dict[str, Any]) -> None:
    global _engine
    _engine = load_engine(engine, model, **options)
    _engine.warm_up()


def _generate_batch(requests: list[Request]) -> list[Completion | Exception]:
    assert _engine is not None, "the pool's initializer loads the engine"
    return _engine.generate_batch(requests)
