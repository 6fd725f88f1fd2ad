"""One stream of requests, several ways to serve it: one at a time, in batches, on two replicas.

The replicas are processes of their own, each with its own copy of the model and its share of the
cores; a batching server in front of each, and a routing policy in front of both. `time.perf_counter`
is one clock for all processes of a machine, so a replica's stamps fit the client's timeline.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Any

from servinglib.bench.load import Saturation, run_open_loop, saturate
from servinglib.bench.provenance import cores
from servinglib.engines.base import Engine
from servinglib.engines.registry import load_engine
from servinglib.experiments.batching_curve import Shape, answered, completed, make_requests
from servinglib.experiments.columns import BatchTimes
from servinglib.experiments.serving_run import ask
from servinglib.policies.batching import DynamicBatching
from servinglib.policies.routing import LeastOutstanding
from servinglib.request import Completion, Request, Timeline
from servinglib.server.batch_server import BatchInferenceServer
from simulations.serving import ServiceTime, simulate_batching

Predict = Callable[[Request], Awaitable[Completion]]
NOT_YET = ("vllm",)
"""Architectures that the demo leaves to `architecture_table`, so that it needs no other package."""


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


@dataclass(frozen=True, slots=True)
class Architecture:
    """A way to serve.

    Attributes
    ----------
    open : callable
        Model, device and `Plan.together` to a context that gives something which answers a request.
    together : callable
        Requests that it has in hand at once, from `Plan.together`.
    modules : set of str
        Ours that one has to know to change how it serves.
    package : str
        The one that computes.
    """

    open: Callable[[str, str, int], AbstractAsyncContextManager[Predict]]
    together: Callable[[int], int]
    modules: frozenset[str]
    package: str


@asynccontextmanager
async def _coach(model: str, device: str, size: int) -> AsyncGenerator[Predict]:
    with load_engine("transformers", model, device=device) as engine:
        engine.warm_up()
        async with BatchInferenceServer(engine, max_batch_size=size, max_wait_time=0) as server:
            yield server.predict


@asynccontextmanager
async def _two_coaches(model: str, device: str, size: int) -> AsyncGenerator[Predict]:
    options: dict[str, Any] = {"device": device}
    if device == "cpu":
        options["threads"] = max(1, cores() // 2)
    async with Replicas("transformers", model, 2, size, **options) as replicas:
        yield replicas.predict


@asynccontextmanager
async def _lift(
    engine: str, options: dict[str, Any], model: str, device: str, size: int
) -> AsyncGenerator[Predict]:
    options = options | ({"device": device} if engine == "continuous" else {})
    with load_engine(engine, model, max_num_seqs=size, **options) as loaded:
        loaded.warm_up()
        yield partial(ask, loaded)  # type: ignore[arg-type]


SERVER, STATIC = "servinglib.server.batch_server", "servinglib.engines.transformers_engine"
CONTINUOUS, VLLM = "servinglib.engines.continuous.engine", "servinglib.engines.vllm_engine"
ARCHITECTURES = {
    "one at a time": Architecture(
        lambda model, device, _: _coach(model, device, 1),
        lambda _: 1,
        frozenset({SERVER, STATIC}),
        "transformers",
    ),
    "dynamic batching": Architecture(_coach, lambda n: n, frozenset({SERVER, STATIC}), "transformers"),
    "two replicas": Architecture(
        _two_coaches,
        lambda n: 2 * n,
        frozenset({SERVER, STATIC, "servinglib.policies.routing"}),
        "transformers",
    ),
    "continuous": Architecture(
        partial(_lift, "continuous", {"prefix_caching": False}), lambda n: n, frozenset({CONTINUOUS}), "torch"
    ),
    "vllm": Architecture(
        partial(_lift, "vllm", {"enable_prefix_caching": False}), lambda n: n, frozenset({VLLM}), "vllm"
    ),
}


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
