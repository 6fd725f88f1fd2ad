"""The contenders of the batching benchmark: everything that can answer many requests in batches.

Each is a context manager that yields one function, "answer so many requests, all in flight at once",
and each sends its batches to the model as its users would: a synchronous model by way of a worker
thread, an asynchronous one by awaiting it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

Ask = Callable[[int], Awaitable[Any]]
AskAll = Callable[[int], Awaitable[Any]]
Contender = Callable[[Any, int, float], AbstractAsyncContextManager[AskAll]]
ServerClass = Callable[..., AbstractAsyncContextManager[Any]]


class ThreadModel:
    """Does nothing, synchronously."""

    def generate_batch(self, items: list[Any]) -> list[Any]:
        """The items themselves."""
        return items


class LoopModel:
    """Does nothing, asynchronously."""

    async def generate_batch(self, items: list[Any]) -> list[Any]:
        """The items themselves."""
        return items


def _together(ask: Ask) -> AskAll:
    async def ask_all(count: int) -> None:
        answers = await asyncio.gather(*[ask(i) for i in range(count)])
        if answers != list(range(count)):
            raise ValueError("a contender mixed up its answers; its speed means nothing")

    return ask_all


def server(server_class: ServerClass, requests: int) -> Contender:
    """The server under test, its queue as long as all requests together."""

    @asynccontextmanager
    async def contender(model: Any, batch_size: int, window: float) -> AsyncIterator[AskAll]:
        async with server_class(model, batch_size, window, max_queue_size=requests) as running:
            yield _together(running.predict)

    return contender


@asynccontextmanager
async def batched(model: Any, batch_size: int, window: float) -> AsyncIterator[AskAll]:
    """The PyPI package `batched`: its asyncio decorator around the model's function."""
    from batched import aio

    dynamically = aio.dynamically(batch_size=batch_size, timeout_ms=window * 1000)
    yield _together(dynamically(model.generate_batch))


@asynccontextmanager
async def textbook(model: Any, batch_size: int, window: float) -> AsyncIterator[AskAll]:
    """The loop that most introductions show: fill a batch from a queue until it is full or late."""
    queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
    loop, run = asyncio.get_running_loop(), _runner(model)

    async def ask(item: Any) -> Any:
        future = loop.create_future()
        await queue.put((item, future))
        return await future

    async def serve() -> None:
        while True:
            batch = [await queue.get()]
            end = loop.time() + window
            while len(batch) < batch_size:
                try:
                    batch.append(await asyncio.wait_for(queue.get(), end - loop.time()))
                except TimeoutError:
                    break
            results = await run([item for item, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)

    serving = asyncio.create_task(serve())
    yield _together(ask)
    serving.cancel()


@asynccontextmanager
async def floor(model: Any, batch_size: int, window: float) -> AsyncIterator[AskAll]:
    """Bare futures, resolved in batches; there is no window, since all requests are known."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        run = _runner(model, thread)

        async def resolve(futures: Sequence[asyncio.Future[Any]]) -> None:
            for first in range(0, len(futures), batch_size):
                batch = futures[first : first + batch_size]
                results = await run(list(range(first, first + len(batch))))
                for future, result in zip(batch, results, strict=True):
                    future.set_result(result)

        async def ask_all(count: int) -> None:
            futures = [loop.create_future() for _ in range(count)]
            resolving = loop.create_task(resolve(futures))
            await asyncio.gather(*futures)
            await resolving

        yield ask_all


def _runner(
    model: Any, thread: ThreadPoolExecutor | None = None
) -> Callable[[list[Any]], Awaitable[list[Any]]]:
    """How a batch gets to the model: awaited, or by way of a thread (asyncio's own by default)."""
    if inspect.iscoroutinefunction(model.generate_batch):
        return model.generate_batch
    loop = asyncio.get_running_loop()
    return lambda items: loop.run_in_executor(thread, model.generate_batch, items)
