"""Where the model runs: beside the event loop, never on it.

A cook who also takes the orders leaves the guests standing whenever a pan needs stirring. A
synchronous model is the cook with a kitchen of its own, one worker thread: orders go in through a
hatch (a queue), dishes come out through another (`call_soon_threadsafe`). There is exactly one
thread, so the model never runs twice at once and always on the same thread, as CUDA graphs and
thread-local state want it. An asynchronous model needs no thread; its batches run as tasks.

A worker is given one batch at a time and calls `on_done` on the event loop with its outcomes.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from servinglib.server.isolation import Outcome, isolate

OnDone = Callable[[list[Outcome], bool], None]  # the outcomes, and whether one call of the model did


class Worker(Protocol):
    """Runs one batch at a time."""

    def submit(self, items: list[Any], split: bool) -> None:
        """Begin a batch; `on_done` will be called on the event loop."""
        ...

    def abandon(self) -> None:
        """End the running batch as soon as can be; its outcomes are of no use any more."""
        ...

    def close(self) -> None:
        """End; no batch is running."""
        ...


def worker_for(model: Any, on_done: OnDone, on_shutdown: Callable[[], None]) -> Worker:
    """The worker that suits the model's `generate_batch`, synchronous or not."""
    call = model.generate_batch
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None)):  # noqa: B004
        return TaskWorker(call, on_done, on_shutdown)
    return ThreadWorker(call, on_done)


class ThreadWorker:
    """Runs a synchronous model in one thread of its own.

    A running batch can't be interrupted. The thread is a daemon, so a model that never returns
    can't keep the program from ending.
    """

    def __init__(self, call: Callable[[list[Any]], Any], on_done: OnDone) -> None:
        self._call, self._on_done = call, on_done
        self._loop = asyncio.get_running_loop()
        self._orders: SimpleQueue[tuple[list[Any], bool] | None] = SimpleQueue()
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="batch-worker", daemon=True)
        self._thread.start()

    def submit(self, items: list[Any], split: bool) -> None:
        self._orders.put((items, split))

    def abandon(self) -> None:
        """Let the call that is running be the last."""
        self._abandoned = True

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            outcomes, calls = self._run(*order)
            try:
                self._loop.call_soon_threadsafe(self._on_done, outcomes, calls == 1)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise
                return  # the program ended without stopping the server: nobody is left to be told

    def _run(self, items: list[Any], split: bool) -> tuple[list[Outcome], int]:
        attempts = isolate(items, split)
        batch, calls = next(attempts), 0
        while True:
            calls += 1
            try:
                got = self._call(batch)
            except BaseException as error:  # noqa: BLE001 - even a SystemExit belongs to the callers
                got = error
            if self._abandoned:
                return [], calls
            try:
                batch = attempts.send(got)
            except StopIteration as end:
                return end.value, calls


class TaskWorker:
    """Runs an asynchronous model in one task per batch, on the event loop.

    Whoever cancels that task, be it `abandon` or a loop that shuts down, ends the server:
    `on_shutdown` is called. A model that raises `CancelledError` by itself only fails its batch.
    """

    def __init__(
        self, call: Callable[[list[Any]], Any], on_done: OnDone, on_shutdown: Callable[[], None]
    ) -> None:
        self._call, self._on_done, self._on_shutdown = call, on_done, on_shutdown
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def submit(self, items: list[Any], split: bool) -> None:
        self._task = self._loop.create_task(self._run(items, split), name="batch")
        self._task.add_done_callback(self._ended)

    def abandon(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """A task that has ended needs nothing more."""

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._on_shutdown()
        elif isinstance(error := task.exception(), Exception):
            self._loop.call_exception_handler({"message": "the batching server failed", "exception": error})

    async def _run(self, items: list[Any], split: bool) -> None:
        attempts = isolate(items, split)
        batch, calls, fatal = next(attempts), 0, None
        while True:
            calls += 1
            try:
                got = await self._call(batch)
            except (KeyboardInterrupt, SystemExit) as error:
                got = fatal = error
            except BaseException as error:  # a model's failure is its callers' answer
                if self._task is not None and self._task.cancelling():
                    raise asyncio.CancelledError from error
                got = error
            try:
                batch = attempts.send(got)
            except StopIteration as end:
                self._on_done(end.value, calls == 1)
                break
        if fatal is not None:
            raise fatal  # the callers have their answers; now let the program end as it was told to
