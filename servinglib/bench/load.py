"""The load client: sends each request when it is due, whatever became of the ones before.

Visitors to a museum don't stay at home because the queue is long; they come when they come. A client
that waits for an answer before it sends again does stay at home, so it is kind to a slow server and
reports latencies that no visitor has (coordinated omission, lesson 12). `run_open_loop` follows the
guest list: it sends by the clock, and measures every latency from the *intended* arrival, so that its
own lateness counts too. `saturate` asks another question, how much the server can do at most, and
for that keeps a fixed number of requests in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from servinglib.errors import InvalidSetting
from servinglib.request import Completion, Timeline

T = TypeVar("T")
Send = Callable[[int], Awaitable[T]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How one request ended: with a result or with an error, never with both or neither.

    Attributes
    ----------
    index : int
        Which request of the run.
    timeline : Timeline
        Has `arrival` (intended), `sent`, and, if it was answered, `completed`. If the result is a
        `Completion` it has the stamps of the server and the engine too.
    result : T or None
    error : Exception or None
    """

    index: int
    timeline: Timeline
    result: T | None
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Saturation(Generic[T]):
    """Throughput of a server that always has enough to do.

    Attributes
    ----------
    requests_per_s : float
        Answers per second of the window.
    window : float
        Seconds measured, start-up and drain excluded.
    completed, failed : int
        Answers within the window, and errors in the whole run.
    outcomes : tuple of Outcome
        Of the whole run, in order of index.
    """

    requests_per_s: float
    window: float
    completed: int
    failed: int
    outcomes: tuple[Outcome[T], ...]


async def run_open_loop(
    send: Send[T],
    arrivals: Sequence[float],
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Outcome[T]]:
    """Call `send(i)` at each `arrivals[i]`, and wait for all answers.

    Parameters
    ----------
    send : callable
        Takes the index of the request, returns an awaitable of its answer.
    arrivals : sequence of float
        Seconds from the start of the run, in ascending order.
    progress : callable, optional
        Called with (ended, total) each time a request ends.
    clock : callable
        What the server under test stamps its timelines with. Requests are sent by the event loop's
        own clock; on a virtual-time loop pass that loop's `time`.

    Returns
    -------
    list of Outcome
        Exactly one per arrival, in order. Cancelling the call cancels all that is in flight.
    """
    if any(later < earlier for earlier, later in pairwise(arrivals)):
        raise InvalidSetting("the arrivals are not in ascending order; sort them")
    loop = asyncio.get_running_loop()
    offset = clock() - loop.time()
    start = loop.time()
    outcomes: dict[int, Outcome[T]] = {}

    async def flight(index: int, due: float) -> None:
        outcomes[index] = await _send(send, index, due, clock)
        if progress is not None:
            progress(len(outcomes), len(arrivals))

    async with asyncio.TaskGroup() as flights:
        for index, arrival in enumerate(arrivals):
            await _sleep_until(start + arrival, loop)
            flights.create_task(flight(index, start + arrival + offset))
    return [outcomes[index] for index in range(len(arrivals))]


async def saturate(
    send: Send[T],
    *,
    concurrency: int,
    count: int,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Saturation[T]:
    """Measure throughput with `concurrency` requests in flight until `count` were sent.

    The window leaves out at least the first and the last `concurrency` answers, so that neither the
    first wave nor the emptying counts. A batch's answers come all at once; a window that ended in
    the middle of them would count a part of the batch and all of its time. So each end of the window
    is moved inwards, by less than `concurrency` answers, to just before the longest pause there.

    Parameters
    ----------
    send, progress, clock
        As for `run_open_loop`.
    concurrency, count : int
        Twice the batch size in flight keeps a server busy; `count` must exceed four times
        `concurrency`, or no window is left.
    """
    if not 1 <= concurrency < count / 4:
        raise InvalidSetting(
            f"count={count} must be more than four times concurrency={concurrency}, or no window is left "
            f"between the start-up and the drain"
        )
    outcomes: dict[int, Outcome[T]] = {}
    indices = iter(range(count))

    async def keep_sending() -> None:
        for index in indices:
            outcomes[index] = await _send(send, index, clock(), clock)
            if progress is not None:
                progress(len(outcomes), count)

    async with asyncio.TaskGroup() as senders:
        for _ in range(concurrency):
            senders.create_task(keep_sending())
    return _measured(tuple(outcomes[index] for index in range(count)), concurrency)


def _measured(outcomes: tuple[Outcome[T], ...], concurrency: int) -> Saturation[T]:
    ends = sorted(o.timeline.completed for o in outcomes if o.timeline.completed is not None)
    if len(ends) <= 4 * concurrency:
        error = next(o.error for o in outcomes if o.error is not None)
        raise InvalidSetting(
            f"only {len(ends)} of {len(outcomes)} requests were answered, too few to measure; "
            f"one error: {error!r}"
        ) from error
    first = _before_a_pause(ends, concurrency - 1, 2 * concurrency - 1)
    last = _before_a_pause(ends, len(ends) - 2 * concurrency - 1, len(ends) - concurrency - 1)
    window = (ends[last] - ends[first]) / 1e9
    rate = (last - first) / window if window else float("inf")
    return Saturation(rate, window, last - first, len(outcomes) - len(ends), outcomes)


def _before_a_pause(ends: Sequence[int], low: int, high: int) -> int:
    """The position in [low, high) that the longest pause follows."""
    return max(range(low, high), key=lambda i: ends[i + 1] - ends[i])


async def _send(send: Send[T], index: int, due: float, clock: Callable[[], float]) -> Outcome[T]:
    sent = clock()
    result, error, timeline = None, None, Timeline()
    try:
        result = await send(index)
    except asyncio.CancelledError as cancelled:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        error = cancelled  # the server cancelled this request, not somebody the whole run
    except Exception as failure:  # noqa: BLE001 - whatever a server raises is that request's outcome
        error = failure
    else:
        timeline = result.timeline if isinstance(result, Completion) else timeline
        timeline.stamp("completed", clock())
    timeline.stamp("arrival", due)
    timeline.stamp("sent", sent)
    return Outcome(index, timeline, result, error)


async def _sleep_until(due: float, loop: asyncio.AbstractEventLoop) -> None:
    if due <= loop.time():
        return
    woken = loop.create_future()
    timer = loop.call_at(due, woken.set_result, None)
    try:
        await woken
    finally:
        timer.cancel()
