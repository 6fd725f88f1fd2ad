"""Little's law on a real server: how many are inside by its gauge, how long they stay by the clients' clock.

The counter at a museum's door knows how many visitors are inside, and each visitor's watch knows how
long the visit took. Neither knows of the other, and yet L = λW ties them together. So when door and
watches disagree, one of them is wrong, and that makes the law a test of measurements and not of
museums. It is a test only as long as the two stay apart: a number inside that was worked out from
the visitors' watches agrees with the watches, whatever they show. Lesson 02 sees both happen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from servinglib.bench.load import Outcome, run_open_loop
from servinglib.errors import InvalidSetting
from servinglib.experiments.batching_curve import Shape, make_requests
from servinglib.request import Completion, Request, Timeline
from servinglib.server.batch_server import BatchInferenceServer, BatchModel

READ_EVERY = 0.002  # seconds
Client = Callable[[BatchInferenceServer, Request], Awaitable[Completion]]


@dataclass(frozen=True, slots=True)
class Gauge:
    """What a gauge showed, reading by reading; each is taken to hold until the next.

    Attributes
    ----------
    times : ndarray, shape (readings,)
        Seconds, ascending.
    numbers : ndarray, shape (readings,)
    """

    times: np.ndarray
    numbers: np.ndarray

    def mean(self, start: float, end: float) -> float:
        """Time average from `start` to `end`; each reading weighs as many seconds as it stood.

        Raises
        ------
        InvalidSetting
            When the window is empty or reaches beyond the readings.
        """
        return float(self.numbers[:-1] @ self._stood(start, end)) / (end - start)

    def bounds(self, start: float, end: float) -> tuple[float, float]:
        """The time average lies between these, whatever happened while nobody looked.

        Between two readings the number was at least the smaller and at most the larger of them, unless
        it rose and fell again (or fell and rose) in that time. So the bounds come together as the
        readings do, and say nothing of what else is random about a run.
        """
        stood, pairs = self._stood(start, end), (self.numbers[:-1], self.numbers[1:])
        low, high = (float(choose(*pairs) @ stood) / (end - start) for choose in (np.minimum, np.maximum))
        return low, high

    def _stood(self, start: float, end: float) -> np.ndarray:
        """Seconds of the window in which each reading but the last stood, shape (readings - 1,)."""
        if not self.times[0] <= start < end <= self.times[-1]:
            raise InvalidSetting(
                f"a window from {start:g} s to {end:g} s needs start < end, both between the first "
                f"reading at {self.times[0]:g} s and the last at {self.times[-1]:g} s"
            )
        return np.diff(np.clip(self.times, start, end))


@dataclass(frozen=True, slots=True)
class WatchedRun:
    """A run of a server, as its clients and as its gauge saw it.

    Attributes
    ----------
    gauge : Gauge
        Its readings, from before the first request until after the last, in seconds from its first.
    outcomes : tuple of Outcome
        One per request, in order of arrival.
    started : float
        The first reading, in seconds of the clock that stamps the timelines.
    """

    gauge: Gauge
    outcomes: tuple[Outcome[Completion], ...]
    started: float

    @property
    def duration(self) -> float:
        """Seconds from an empty server to an empty server."""
        return float(self.gauge.times[-1])

    @property
    def timelines(self) -> list[Timeline]:
        """Those of the answered requests."""
        return [o.timeline for o in self.outcomes if o.error is None]

    @property
    def arrivals(self) -> np.ndarray:
        """Intended arrivals of the answered requests, seconds from the first reading."""
        return self._seconds([t.arrival for t in self.timelines])

    @property
    def departures(self) -> np.ndarray:
        """When the client held each answer, seconds from the first reading, in order of arrival."""
        return self._seconds([t.completed for t in self.timelines])

    @property
    def latencies(self) -> np.ndarray:
        """Seconds from the intended arrival to the answer, by the client's clock."""
        return self.departures - self.arrivals

    def _seconds(self, stamps: Sequence[int | None]) -> np.ndarray:
        return np.array(stamps, float) / 1e9 - self.started


@asynccontextmanager
async def watched(
    read: Callable[[], int], clock: Callable[[], float] = time.perf_counter, every: float = READ_EVERY
) -> AsyncIterator[list[tuple[float, int]]]:
    """Read a gauge now, about `every` seconds, and a last time at the end; yields (seconds, number) pairs.

    A late reading does no harm, because each is stored with the time at which it was really taken.
    """
    readings: list[tuple[float, int]] = [(clock(), read())]

    async def keep_reading() -> None:
        while True:
            await asyncio.sleep(every)
            readings.append((clock(), read()))

    reader = asyncio.create_task(keep_reading())
    try:
        yield readings
    finally:
        reader.cancel()
        readings.append((clock(), read()))


async def measure_with_gauge(
    model: BatchModel,
    max_batch_size: int,
    arrivals: Sequence[float],
    shape: Shape,
    client: Client = BatchInferenceServer.predict,
    clock: Callable[[], float] = time.perf_counter,
) -> WatchedRun:
    """Send requests at the given times to a server without a window, and watch its gauge meanwhile.

    Parameters
    ----------
    model : BatchModel
        An engine, or anything whose answers carry a timeline.
    max_batch_size : int
    arrivals : sequence of float
        Seconds, ascending.
    shape : Shape
        Of every request.
    client : callable
        `client(server, request)` asks the server and returns the awaitable answer.
    clock : callable
        What the model stamps its timelines with.
    """
    requests = make_requests(len(arrivals), shape)
    async with BatchInferenceServer(
        model, max_batch_size=max_batch_size, max_wait_time=0, max_queue_size=max(1, len(arrivals))
    ) as server:

        def inside() -> int:
            now = server.statistics
            return now.waiting + now.running

        async with watched(inside, clock) as readings:
            outcomes = await run_open_loop(lambda i: client(server, requests[i]), arrivals, clock=clock)
    times, numbers = np.array(readings, float).T
    return WatchedRun(Gauge(times - times[0], numbers), tuple(outcomes), float(times[0]))
