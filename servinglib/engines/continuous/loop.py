"""The loop: step after step for as long as there is work. Read this file first.

    orders from any thread ──> [ take orders │ plan │ compute │ commit │ tell the listeners ] ──> events
       submit, abort, stop          ^                                            │
                                    └────────────── next step ───────────────────┘

It runs in a thread of its own. No event loop ever waits for a step, and all arithmetic comes from one
thread, as OpenMP likes it. Other threads hand in orders through a queue; the loop takes them between
two steps, when nothing is half done, so that a request can be aborted at any moment. Every request
that was taken ends exactly once: with the last event of its last choice, or with an error.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from servinglib.decoder.step import Outcome
from servinglib.engines.continuous.requests import Choice, News, Ticket
from servinglib.engines.continuous.runner import Flight, Runner
from servinglib.engines.continuous.statistics import Counters, StepRecord
from servinglib.engines.streams import check_ids
from servinglib.errors import EngineFailed, ServerClosed, ServingError
from servinglib.policies.length_prediction import LengthPredictor
from servinglib.policies.sequence import StepPlan
from servinglib.policies.stepping import StepPlanner
from servinglib.request import FinishReason, Logprob


class EngineLoop:
    """Plans, computes and tells, in a thread of its own.

    Parameters
    ----------
    build : callable
        Makes the runner and the planner; called in the loop's thread, before the constructor returns.
    prefix_caching : bool
        Whether full blocks get keys by which later requests find them.
    predictor : LengthPredictor or None
        Guesses how long answers will be, for policies that ask.
    overlap : bool
        Whether a step is planned and launched before the tokens of the last one are read.

    Attributes
    ----------
    counters : Counters
        What has happened so far.
    """

    def __init__(
        self,
        build: Callable[[], tuple[Runner, StepPlanner]],
        prefix_caching: bool = True,
        predictor: LengthPredictor | None = None,
        overlap: bool = False,
    ) -> None:
        self.counters = Counters()
        self.planner: StepPlanner
        self._prefix_caching, self._predictor, self._overlap = prefix_caching, predictor, overlap
        self._launched: _Step | None = None  # whose tokens have not been read yet
        self._since = 0.0  # when the last step ended, or an idle loop got something to do
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[str, Ticket] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._numbers = itertools.count()
        self._error: ServingError | None = None  # why it takes no more orders
        self._lock = threading.RLock()  # between the last order that is taken and the end
        built: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, args=(build, built), daemon=True)
        self._thread.name = "continuous-engine"
        self._thread.start()
        if (failure := built.get()) is not None:
            raise failure

    # What other threads call

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Take requests that `planner.check` has accepted, all of them or none.

        Raises
        ------
        InvalidRequest
            If two requests in flight would have the same id.
        ServingError
            If the loop has ended.
        """
        ids = [ticket.request.request_id for ticket in tickets]
        with self._lock:
            self.must_be_open()
            check_ids([ticket.request for ticket in tickets], self._tickets)
            self._tickets.update(zip(ids, tickets, strict=True))
            self._orders.put(partial(self._take, tickets))

    def abort(self, request_id: str) -> bool:
        """End a request before the next step; False if it has ended, or never was."""
        with self._lock:
            ticket = self._tickets.get(request_id)
            if ticket is not None:
                self.drop(ticket)
            return ticket is not None

    def drop(self, ticket: Ticket) -> None:
        """End a request before the next step, if it has not ended."""
        self._orders.put(partial(self._end_ticket, ticket, "abort"))

    def stop(self) -> None:
        """End all requests with `ServerClosed` and wait for the thread."""
        with self._lock:
            self._error = self._error or ServerClosed()
            self._orders.put(_nothing)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def must_be_open(self) -> None:
        """Raise if the loop takes no more orders."""
        if self._error is not None:
            raise self._error.with_traceback(None)

    # What runs in the loop's thread

    def _main(
        self,
        build: Callable[[], tuple[Runner, StepPlanner]],
        built: queue.SimpleQueue[Exception | None],
    ) -> None:
        try:
            self._runner, self.planner = build()
        except Exception as failure:  # noqa: BLE001, it is raised where the engine was asked for
            built.put(failure)
            return
        built.put(None)
        try:
            while self._error is None:
                self._take_orders()
                self._step()
        except Exception as failure:  # noqa: BLE001, it is told to everybody who waits
            self._error = EngineFailed(failure)
            self._error.__cause__ = failure
        self._close()

    def _take_orders(self) -> None:
        """Follow all orders that are there; with nothing else to do, wait for one."""
        if not self._tickets:
            if self._orders.empty():
                self._runner.rest()
            order = self._orders.get()
            self._since = time.perf_counter()
            order()
        while not self._orders.empty():
            self._orders.get()()
        while self._deadlines and self._deadlines[0][0] <= time.perf_counter():
            self._end_ticket(heapq.heappop(self._deadlines)[2], "deadline")

    def _step(self) -> None:
        """Launch a step, then read one: the same, or with `overlap` the one before.

        Nobody has to wait for an ended sequence's last step in order to give its pages away. The GPU does
        one step after another, so whoever gets them writes to them later than that step.
        """
        launched = self._launch()
        step, self._launched = (self._launched, launched) if self._overlap else (launched, None)
        outcomes = self._read(step) if step is not None else []
        computed = time.perf_counter()
        if launched is not None:
            self._commit(outcomes, launched.plan)
        news: News = {}
        try:
            for sequence, tokens, logprobs in outcomes:
                self._tell_choice(sequence.item, tokens, logprobs, computed, news)
            if step is not None:
                self._record(step, outcomes, computed)
        finally:  # whoever has ended must hear of it, even if the next answer can't be told
            _deliver(news)

    def _launch(self) -> _Step | None:
        now = time.perf_counter()
        plan = self.planner.plan(now)
        for sequence in plan.preempted:
            self._runner.forget(sequence)
        if not plan.scheduled:
            return None
        self.counters.kv_cache_usage_peak = max(self.counters.kv_cache_usage_peak, self.planner.pool.usage)
        for sequence in plan.admitted:
            timeline = sequence.item.answer.request.timeline
            if timeline.scheduled is None:  # a preempted request is scheduled twice; the first counts
                timeline.stamp("scheduled", now)
        step = _Step(plan, plan.num_kv_tokens, self._since, time.perf_counter())
        step.computed = self._runner.start(plan) if self._overlap else self._runner.run(plan)
        return step

    def _read(self, step: _Step) -> list[Outcome]:
        """The new tokens, written down. Who has ended meanwhile was computed in vain and gets none."""
        computed = step.computed
        outcomes = computed if isinstance(computed, list) else self._runner.finish(computed)
        outcomes = [o for o in outcomes if o.sequence.item.answer.finish_reason is None]
        for sequence, tokens, _ in outcomes:
            sequence.item.tokens += tokens
            if self._prefix_caching:
                sequence.item.name_blocks(self.planner.pool.block_size)
        return outcomes

    def _commit(self, outcomes: list[Outcome], plan: StepPlan) -> None:
        """Let the planner know, which counts; who has as many tokens as it may have needs no more steps."""
        accepted = {o.sequence: len(o.tokens) - 1 for o in outcomes if len(o.tokens) > 1}
        for sequence in self.planner.commit(plan, accepted):
            if sequence.num_output_tokens >= sequence.max_tokens:
                self._leave(sequence.item)

    def _record(self, step: _Step, outcomes: list[Outcome], computed: float) -> None:
        """Write the step down, before anybody hears of its tokens; what is done from now on is the next one's."""
        self._since = time.perf_counter()
        times = (step.start, step.planned, computed, self._since)
        self.counters.step(
            StepRecord.of(step.plan, self.planner, self._runner, outcomes, step.kv_tokens, times)
        )

    def _tell_choice(
        self, choice: Choice, tokens: list[int], logprobs: Sequence[Logprob], now: float, news: News
    ) -> None:
        ticket = self._tickets[choice.answer.request.request_id]
        for i, token in enumerate(tokens):
            event = choice.answer.advance(token, now, logprobs[i] if logprobs else None)
            self.counters.generation_tokens += 1
            news.setdefault(ticket.listener, []).append((ticket.address, event))
            if event.finish_reason is not None:
                self._end_choice(ticket, choice, event.finish_reason)
                break
        while ticket.waiting_choices:
            self._queue(ticket.waiting_choices.pop(0))

    def _take(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket.deadline is not None:
                heapq.heappush(self._deadlines, (ticket.deadline, next(self._numbers), ticket))
            self._queue(ticket.first)

    def _queue(self, choice: Choice) -> None:
        if self._prefix_caching:
            choice.name_blocks(self.planner.pool.block_size)
        choice.row = self._runner.row(choice.answer.request.params, choice.answer.choice)
        self.planner.add(choice.sequence)
        choice.queued = True
        if self._predictor is not None:
            choice.sequence.predicted_output_tokens = self._predictor.predict(choice.sequence)

    def _end_choice(self, ticket: Ticket, choice: Choice, reason: FinishReason) -> None:
        """Free what a choice holds; with the last one the ticket is done."""
        self._leave(choice)
        if self._predictor is not None and reason in ("stop", "length"):
            choice.sequence.num_output_tokens = choice.answer.tokens  # without guesses behind the end
            self._predictor.observe(choice.sequence)
        ticket.open_choices.remove(choice)
        if not ticket.open_choices:
            del self._tickets[ticket.request.request_id]
            self.counters.finished[reason] += 1

    def _leave(self, choice: Choice) -> None:
        if choice.queued:
            self.planner.remove(choice.sequence)
            self._runner.forget(choice.sequence)
            choice.queued = False

    def _end_ticket(self, ticket: Ticket, reason: FinishReason) -> None:
        """End all choices of a request that are still open, by an order or by its deadline."""
        now, events = time.perf_counter(), []
        ticket.waiting_choices.clear()
        for choice in sorted(ticket.open_choices, key=lambda c: c.answer.choice):
            events.append((ticket.address, choice.answer.end(reason, now)))
            self._end_choice(ticket, choice, reason)
        if events:
            ticket.listener(events)

    def _close(self) -> None:
        """Tell everybody who still waits that nothing more will come."""
        news: News = {}
        with self._lock:
            error = self._error = self._error or ServerClosed()
            for ticket in self._tickets.values():
                news.setdefault(ticket.listener, []).append((ticket.address, error))
            self._tickets.clear()
        self._launched = None
        del self._runner  # and with it the model's memory and the pages, whoever still holds the engine
        _deliver(news)


@dataclass(slots=True)
class _Step:
    """A step on its way: `computed` holds what it gave, or with `overlap` where that is under way."""

    plan: StepPlan
    kv_tokens: int
    start: float
    planned: float
    computed: list[Outcome] | Flight = field(default_factory=list)


def _deliver(news: News) -> None:
    for listener, items in news.items():
        listener(items)


def _nothing() -> None:
    """An order that only wakes the loop."""
