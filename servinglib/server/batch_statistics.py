"""What became of the requests: the books of a batching server.

A shop that counts its goods at the door and at the till finds out if something is lost between.
Here too, each request that comes is in exactly one place, at any moment:

    offered = completed + failed + rejected + expired + cancelled + waiting + running

and when the server is idle the last two are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FORGET = 0.9  # weight of what was known about the service rate, at each new batch


@dataclass(frozen=True, slots=True)
class Times:
    """Durations in short.

    Attributes
    ----------
    count : int
    mean, max : float
        In seconds; 0 when there are none yet.
    """

    count: int
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A server's counters at one moment.

    Attributes
    ----------
    offered : int
        Requests that came while the server was open.
    completed, failed : int
        Answered by the model with a result, or with an exception of their own.
    rejected : int
        Refused at once: the queue was full, or the request invalid.
    expired, cancelled : int
        Given up at their deadline, or by their caller, before they were answered.
    waiting, running : int
        In the queue, and in the batch in service, whose callers still wait.
    batch_sizes : dict of int to int
        How many batches of each size went to the model.
    queue_time : Times
        From arrival to the start of the batch, per request that was served.
    service_time : Times
        From the start of a batch to its answers, per batch.
    service_rate : float or None
        Requests/s while the model works, with recent batches counting most; None before the first.
    latency_target_reachable : bool or None
        With adaptive batching, whether even single requests meet the target; None otherwise.
    """

    offered: int
    completed: int
    failed: int
    rejected: int
    expired: int
    cancelled: int
    waiting: int
    running: int
    batch_sizes: dict[int, int]
    queue_time: Times
    service_time: Times
    service_rate: float | None
    latency_target_reachable: bool | None


@dataclass(slots=True)
class _TimeSum:
    count: int = 0
    total: float = 0.0
    max: float = 0.0

    def add(self, total: float, largest: float, count: int = 1) -> None:
        self.count += count
        self.total += total
        self.max = max(self.max, largest)

    def times(self) -> Times:
        return Times(self.count, self.total / self.count if self.count else 0.0, self.max)


@dataclass(slots=True)
class Books:
    """The running totals, written by the server."""

    offered: int = 0
    completed: int = 0
    failed: int = 0
    rejected: int = 0
    expired: int = 0
    cancelled: int = 0
    batch_sizes: dict[int, int] = field(default_factory=dict)
    _queue: _TimeSum = field(default_factory=_TimeSum)
    _service: _TimeSum = field(default_factory=_TimeSum)
    _recent_items: float = 0.0
    _recent_seconds: float = 0.0

    def batch_started(self, arrivals: list[float], now: float) -> None:
        """Enter a batch of requests that came at `arrivals` (seconds) and start now."""
        size = len(arrivals)
        self.batch_sizes[size] = self.batch_sizes.get(size, 0) + 1
        self._queue.add(size * now - sum(arrivals), now - min(arrivals), size)

    def batch_ended(self, size: int, seconds: float) -> None:
        """Enter a batch's service time."""
        self._service.add(seconds, seconds)
        self._recent_items = FORGET * self._recent_items + size
        self._recent_seconds = FORGET * self._recent_seconds + seconds

    @property
    def service_rate(self) -> float | None:
        """Requests/s while the model works; None before the first batch has ended."""
        return self._recent_items / self._recent_seconds if self._recent_seconds else None

    def snapshot(self, waiting: int, running: int, target_reachable: bool | None) -> ServerStatistics:
        """The books as they stand now, with what the server counts in its rooms at this moment."""
        return ServerStatistics(
            offered=self.offered,
            completed=self.completed,
            failed=self.failed,
            rejected=self.rejected,
            expired=self.expired,
            cancelled=self.cancelled,
            waiting=waiting,
            running=running,
            batch_sizes=dict(self.batch_sizes),
            queue_time=self._queue.times(),
            service_time=self._service.times(),
            service_rate=self.service_rate,
            latency_target_reachable=target_reachable,
        )
