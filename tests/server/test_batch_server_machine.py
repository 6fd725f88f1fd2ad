"""The server against a random world: arrivals, cancellations, deadlines, faults, settings, stops.

The machine keeps its own list of who waits, and so knows before each batch exactly who must be in it.
"""

import asyncio
import math
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from servinglib.errors import BatchSizeMismatch, DeadlineExceeded, InvalidRequest, QueueFull, ServerClosed
from servinglib.server.batch_server import BatchInferenceServer
from servinglib.server.reply import Reply
from servinglib.virtual_time import VirtualTimeLoop

KINDS = ["good"] * 8 + ["fails alone", "raises", "drops"]


@dataclass(eq=False)
class Asked:
    """One request as the caller knows it."""

    serial: int
    kind: str
    priority: int
    cost: float
    arrival: float
    deadline: float
    reply: Reply = field(init=False)
    answers: list[float] = field(default_factory=list)  # when it was answered
    served: bool = False
    with_dropper: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        return -self.priority, self.serial

    def answered(self, reply: Reply) -> None:
        self.answers.append(reply.get_loop().time())
        if not reply.cancelled():
            reply.exception()  # heard


class BatchServerMachine(RuleBasedStateMachine):
    @initialize(size=st.integers(1, 5), wait=st.sampled_from([0, 0.1, 2.0]), queue=st.integers(1, 12))
    def open(self, size: int, wait: float, queue: int) -> None:
        self.loop = VirtualTimeLoop()
        self.asked: list[Asked] = []
        self.offered = 0
        self.busy = False
        self.closing: list[asyncio.Task] = []
        self.drained = True
        self.server = BatchInferenceServer(self, size, wait, queue, max_batch_cost=10, cost=lambda a: a.cost)
        self.run(self.server.start())

    def run(self, coroutine) -> object:
        async def settled() -> object:
            result = await coroutine
            for _ in range(10):  # let everything happen that needs no time to pass
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(settled())

    async def generate_batch(self, items: list[Asked]) -> list:
        assert not self.busy, "the model was asked twice at once"
        self.busy = True
        try:
            if not items[0].served:
                assert items == self.expected_batch()
                for item in items:
                    item.served = True
            assert all(item.served for item in items)
            await asyncio.sleep(1 + 0.125 * len(items))
        finally:
            self.busy = False
        return self.results(items)

    def waiting(self) -> list[Asked]:
        return sorted((a for a in self.asked if not a.served and not a.reply.done()), key=lambda a: a.rank)

    def expected_batch(self) -> list[Asked]:
        batch, cost = [], 0.0
        for asked in self.waiting()[: self.server.max_batch_size]:
            cost += asked.cost
            if batch and cost > self.server.max_batch_cost:
                break
            batch.append(asked)
        return batch

    def results(self, items: list[Asked]) -> list:
        for item in items:
            if item.kind == "raises":
                raise ValueError(item.serial)
        if any(item.kind == "drops" for item in items):
            for item in items:
                item.with_dropper = True
            return items[1:]
        return [KeyError(i.serial) if i.kind == "fails alone" else i.serial for i in items]

    @rule(
        kind=st.sampled_from(KINDS),
        priority=st.integers(-1, 2),
        cost=st.sampled_from([0, 1, 1, 4, 9, 11]),
        timeout=st.sampled_from([None, None, 0, 0.05, 1.0, 1.25, 6.0]),
    )
    def arrive(self, kind: str, priority: int, cost: float, timeout: float | None) -> None:
        now = self.loop.time()
        deadline = math.inf if timeout is None else now + timeout
        asked = Asked(len(self.asked), kind, priority, cost, now, deadline)
        full = len(self.waiting()) >= self.server.max_queue_size

        async def ask() -> None:
            asked.reply = self.server.predict(asked, priority, timeout)
            asked.reply.add_done_callback(asked.answered)
            self.asked.append(asked)

        self.run(ask())
        error = asked.reply.exception() if asked.reply.done() and not asked.reply.cancelled() else None
        if self.closing:
            assert isinstance(error, ServerClosed)
        else:
            self.offered += 1
            assert isinstance(error, InvalidRequest) == (cost > self.server.max_batch_cost)
            assert isinstance(error, QueueFull) == (full and cost <= self.server.max_batch_cost)

    @rule(count=st.integers(2, 10))
    def burst(self, count: int) -> None:
        for _ in range(count):
            self.arrive("good", 0, 1, None)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        asked = data.draw(st.sampled_from(self.asked))

        async def give_up() -> None:
            asked.reply.cancel()

        self.run(give_up())
        assert asked.reply.done()

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 1.125, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(
        name_value=st.one_of(
            st.tuples(st.just("max_batch_size"), st.integers(1, 6)),
            st.tuples(st.just("max_wait_time"), st.sampled_from([0, 0.3, 5.0])),
            st.tuples(st.just("max_queue_size"), st.integers(1, 12)),
            st.tuples(st.just("max_batch_cost"), st.sampled_from([2.0, 10.0, math.inf])),
        )
    )
    def change_setting(self, name_value: tuple[str, float]) -> None:
        async def change() -> None:
            setattr(self.server, *name_value)

        self.run(change())

    @precondition(lambda self: len(self.closing) < 2 and len(self.asked) > 8)
    @rule(drain=st.booleans())
    def stop(self, drain: bool) -> None:
        self.drained = self.drained and drain
        self.closing.append(self.loop.create_task(self.server.stop(drain)))
        self.run(asyncio.sleep(0))

    @invariant()
    def nothing_is_lost(self) -> None:
        books = self.server.statistics
        ended = books.completed + books.failed + books.rejected + books.expired + books.cancelled
        assert books.offered == self.offered == ended + books.waiting + books.running
        assert books.waiting == len(self.waiting())
        assert books.running == sum(a.served and not a.reply.done() for a in self.asked)

    @invariant()
    def each_is_answered_once_and_as_its_kind_deserves(self) -> None:
        for asked in self.asked:
            assert len(asked.answers) == asked.reply.done()
            if asked.reply.done() and not asked.reply.cancelled():
                self.check_answer(asked, asked.reply.exception())

    def check_answer(self, asked: Asked, error: BaseException | None) -> None:
        match error:
            case None:
                assert asked.kind == "good"
                assert asked.reply.result() == asked.serial
            case KeyError():
                assert (asked.kind, error.args) == ("fails alone", (asked.serial,))
            case ValueError() if not isinstance(error, InvalidRequest):
                assert (asked.kind, error.args) == ("raises", (asked.serial,))
            case BatchSizeMismatch():
                assert asked.with_dropper
            case DeadlineExceeded():
                assert asked.answers == [asked.deadline]
            case ServerClosed():
                assert self.closing
                assert asked.arrival <= asked.answers[0]
            case _:
                assert isinstance(error, QueueFull | InvalidRequest)
        if asked.answers and not isinstance(error, QueueFull | InvalidRequest | ServerClosed):
            assert asked.answers[0] <= asked.deadline

    @invariant()
    def nobody_waits_who_could_go(self) -> None:
        waiting = self.waiting()
        if self.busy or not waiting:
            return
        assert not self.closing
        assert len(waiting) < self.server.max_batch_size
        assert sum(a.cost for a in waiting) < self.server.max_batch_cost
        assert self.loop.time() < min(a.arrival for a in waiting) + self.server.max_wait_time

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        self.run(self.server.stop())
        self.nothing_is_lost()
        self.each_is_answered_once_and_as_its_kind_deserves()
        books = self.server.statistics
        assert (books.waiting, books.running) == (0, 0)
        assert all(a.reply.done() for a in self.asked)
        assert all(task.done() for task in self.closing)
        if self.drained:
            closed = [a for a in self.asked if is_closed(a.reply)]
            assert len(closed) == len(self.asked) - books.offered
        self.loop.close()


def is_closed(reply: Reply) -> bool:
    return not reply.cancelled() and isinstance(reply.exception(), ServerClosed)


TestBatchServer = BatchServerMachine.TestCase
TestBatchServer.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
