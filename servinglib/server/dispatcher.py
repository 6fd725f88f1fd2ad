"""What the batching server does while it is open: it keeps the appointments.

A ferry office has a line of cars (`policies.waiting_room`), a captain who says when to cross
(`policies.batching`) and a ferry (`server.workers`). The dispatcher moves the cars. It never polls:
it looks up when something has happened that may change the captain's mind (somebody came or left,
the ferry is back) or when the moment has come that the captain or somebody's deadline had named.
However much happens at once, it looks up once, and it has at most one alarm set.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

from servinglib.errors import DeadlineExceeded, ServerClosed, ServingError
from servinglib.policies.batching import DynamicBatching, Fire
from servinglib.policies.waiting_room import Line
from servinglib.server.batch_statistics import Books
from servinglib.server.isolation import Outcome, as_error
from servinglib.server.reply import Reply
from servinglib.server.workers import worker_for


class State(Enum):
    """A server's life, in this order."""

    NEW = auto()
    OPEN = auto()
    DRAINING = auto()  # takes no more requests and answers those it has
    CLOSED = auto()


class Dispatcher:
    """Moves requests from the waiting room through the model to their callers.

    Attributes
    ----------
    room : Line of Reply
    books : Books
    batching : DynamicBatching
        The rule.
    state : State
    accepting : bool
        Whether `state` is `OPEN`.
    batch : list of Reply
        The batch in service; empty when the model is idle.
    ended : asyncio.Event
        Set once everybody is answered and the model is left alone.
    """

    def __init__(self, model: Any, batching: DynamicBatching, isolate_failures: bool) -> None:
        self.room: Line[Reply] = Line()
        self.books = Books()
        self.batching = batching
        self.state = State.NEW
        self.accepting = False
        self.batch: list[Reply] = []
        self._model, self._isolate_failures = model, isolate_failures
        self._deadlines: list[Reply] = []  # those of the batch in service, the next one last
        self._started = 0.0
        self._looking_up = False
        self._alarm: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin, on the running event loop."""
        self.loop = asyncio.get_running_loop()
        self.time = self.loop.time
        self.ended = asyncio.Event()
        self._context = contextvars.copy_context()  # not that of whichever caller happens to wake us
        self._worker = worker_for(self._model, self._batch_done, self._batch_lost)
        self.state, self.accepting = State.OPEN, True

    def look_up_soon(self) -> None:
        """Ask for a look at the state of things, once what is going on now has ended."""
        if not self._looking_up and self.state in (State.OPEN, State.DRAINING):
            self._looking_up = True
            self.loop.call_soon(self.look_up, context=self._context)

    def drain(self) -> None:
        """Take no more requests, answer those that are here, then end."""
        self.state, self.accepting = State.DRAINING, False
        self.look_up_soon()

    def shut_down(self, cause: Exception | None = None) -> None:
        """Fail everybody who waits, with `ServerClosed` or an error that names `cause`, and end."""
        if self.state is State.CLOSED:
            return
        self.state, self.accepting = State.CLOSED, False
        for reply in self.room.take(Fire(max(1, self.room.count))) + self.batch:
            if not reply.done():
                self.books.failed += 1
                reply.set_exception(ServerClosed() if cause is None else _stopped_by(cause))
        if self.batch:
            self._worker.abandon()
        else:
            self._end()

    def cancelled(self, reply: Reply) -> None:
        """Forget a caller that gave up."""
        self.books.cancelled += 1
        self.room.remove(reply)  # an alarm that was set for it rings in vain, and is set anew

    def look_up(self) -> None:
        """Do what has become due, and set the alarm for what will."""
        self._looking_up = False
        if self.state is State.CLOSED:
            return
        with self._never_silently():
            now = self.time()
            self._expire(now)
            upcoming = math.inf if self.batch or not self.room.count else self._ask_the_rule(now)
        if self.state is State.DRAINING and not self.batch and not self.room.count:
            self._end()
        else:
            in_service = self._deadlines[-1].deadline if self._deadlines else math.inf
            self._set_alarm(min(upcoming, self.room.next_deadline, in_service))

    def _ask_the_rule(self, now: float) -> float:
        """Start a batch if it is time to; else the time to ask again."""
        nobody_else_can_come = self.state is State.DRAINING
        decision = self.batching.decide(self.room.waiting, math.inf if nobody_else_can_come else now)
        if not isinstance(decision, Fire):
            return decision.until
        self.batch = self.room.take(decision)
        self._deadlines = [reply for reply in self.batch if reply.deadline != math.inf]
        self._deadlines.sort(key=lambda reply: -reply.deadline)
        self._started = now
        self.books.batch_started([reply.arrival for reply in self.batch], now)
        self._worker.submit([reply.payload for reply in self.batch], self._isolate_failures)
        return math.inf

    def _batch_done(self, outcomes: list[Outcome], clean: bool) -> None:
        """Let the next batch begin, so that the model isn't idle, and then hand out the answers."""
        batch, self.batch, self._deadlines = self.batch, [], []
        if self.state is State.CLOSED:
            self._end()
            return
        seconds = self.time() - self._started
        self.books.batch_ended(len(batch), seconds)
        try:
            with self._never_silently():
                if clean:
                    self.batching.observe(len(batch), seconds)
                self.look_up()
        finally:
            self._answer(batch, outcomes)

    def _answer(self, batch: list[Reply], outcomes: list[Outcome]) -> None:
        completed = failed = 0
        for reply, outcome in zip(batch, outcomes, strict=True):
            if reply.done():
                continue
            if isinstance(outcome, BaseException):
                failed += 1
                reply.set_exception(as_error(outcome))
            else:
                completed += 1
                reply.set_result(outcome)
        self.books.completed += completed
        self.books.failed += failed

    @contextmanager
    def _never_silently(self) -> Iterator[None]:
        """A fault in a rule ends the server with an error for everybody, not with a silence."""
        try:
            yield
        except Exception as error:
            self.shut_down(error)
            raise

    def _batch_lost(self) -> None:
        """The batch was cancelled from outside, as when the loop shuts down: no worker, no server."""
        self.shut_down()
        self.batch = []
        self._end()

    def _expire(self, now: float) -> None:
        expired = self.room.expire(now)
        while self._deadlines and self._deadlines[-1].deadline <= now:
            expired.append(self._deadlines.pop())
        for reply in expired:
            if not reply.done():
                self.books.expired += 1
                reply.set_exception(DeadlineExceeded(reply.deadline - reply.arrival))

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            if self._alarm.when() == when:
                return
            self._alarm.cancel()
            self._alarm = None
        if when != math.inf:
            self._alarm = self.loop.call_at(when, self._ring, context=self._context)

    def _ring(self) -> None:
        self._alarm = None
        self.look_up()

    def _end(self) -> None:
        self.state, self.accepting = State.CLOSED, False
        self._set_alarm(math.inf)
        self._worker.close()
        self.ended.set()


def _stopped_by(cause: Exception) -> ServingError:
    error = ServingError(f"the server stopped because its batching rule failed: {cause!r}; start a new one")
    error.__cause__ = cause
    return error
