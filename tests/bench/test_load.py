"""The load client on virtual time: it keeps to its guest list whatever the server does."""

import asyncio
import itertools
import time

import pytest

from servinglib import virtual_time
from servinglib.bench.load import run_open_loop, saturate
from servinglib.errors import InvalidSetting
from servinglib.metrics import e2e
from servinglib.request import Completion, Timeline

SECOND = 1_000_000_000


def now():
    return asyncio.get_running_loop().time()


def open_loop(send, arrivals, **options):
    async def main():
        return await run_open_loop(send, arrivals, clock=now, **options)

    return virtual_time.run(main())


def saturated(send, **options):
    async def main():
        return await saturate(send, clock=now, **options)

    return virtual_time.run(main())


def test_requests_are_sent_when_due_though_no_answer_has_come():
    sent = {}

    async def slow(index):
        sent[index] = now()
        await asyncio.sleep(100)
        return index * 10

    outcomes = open_loop(slow, [0.0, 0.5, 0.5, 2.0])
    assert sent == {0: 0.0, 1: 0.5, 2: 0.5, 3: 2.0}
    assert [(o.index, o.result, o.error) for o in outcomes] == [(i, i * 10, None) for i in range(4)]
    assert [e2e(o.timeline) for o in outcomes] == [100.0] * 4


def test_latency_counts_from_the_intended_arrival_when_the_client_is_late():
    async def blocks_the_loop(index):
        if index == 0:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, virtual_time.VirtualTimeLoop)
            loop._now += 5.0  # computes for 5 s without giving the loop back

    outcomes = open_loop(blocks_the_loop, [1.0, 2.0])
    late = outcomes[1].timeline
    assert late.arrival == 2 * SECOND
    assert late.sent == late.completed == 6 * SECOND


def test_each_request_ends_exactly_once_with_a_result_or_an_error():
    async def fails_on_odd(index):
        await asyncio.sleep(1)
        if index % 2:
            raise ValueError(index)
        return index

    outcomes = open_loop(fails_on_odd, [0.1 * i for i in range(6)])
    assert [o.result for o in outcomes] == [0, None, 2, None, 4, None]
    assert [type(o.error) for o in outcomes] == [type(None), ValueError] * 3
    assert [o.timeline.completed is None for o in outcomes] == [False, True] * 3
    assert all(o.timeline.sent is not None for o in outcomes)


def test_an_answer_that_the_server_cancels_is_an_error_of_that_request_alone():
    async def cancelled_by_the_server(index):
        answer = asyncio.get_running_loop().create_future()
        answer.cancel() if index == 1 else answer.set_result(index)
        return await answer

    outcomes = open_loop(cancelled_by_the_server, [0.0, 1.0, 2.0])
    assert [o.result for o in outcomes] == [0, None, 2]
    assert isinstance(outcomes[1].error, asyncio.CancelledError)


def test_cancelling_the_run_cancels_what_is_in_flight_and_sends_nothing_more():
    sent, cancelled = [], []

    async def never(index):
        sent.append(index)
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            cancelled.append(index)
            raise

    async def main():
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        run = asyncio.ensure_future(run_open_loop(never, [0.0, 1.0, 2.0, 50.0], clock=now))
        await asyncio.sleep(10)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await asyncio.sleep(100)
        assert len(asyncio.all_tasks()) == 1
        assert complaints == []

    virtual_time.run(main())
    assert sorted(sent) == sorted(cancelled) == [0, 1, 2]


def test_a_completion_brings_the_stamps_of_the_server_along():
    async def served(index):
        timeline = Timeline()
        for stage in ("received", "scheduled", "first_token", "finished"):
            await asyncio.sleep(0.25)
            timeline.stamp(stage, now())
        await asyncio.sleep(0.5)
        return Completion(str(index), 3, (1, 2), "ab", "length", timeline, (0.75, 1.0))

    [outcome] = open_loop(served, [2.0])
    assert outcome.timeline.seconds == pytest.approx(
        {"network": 0.75, "queue": 0.25, "prefill": 0.25, "decode": 0.25, "total": 1.5}
    )


def test_progress_is_told_of_every_request_that_ends():
    async def fails_once(index):
        if index == 1:
            raise ValueError

    told = []
    open_loop(fails_once, [0.0, 1.0, 2.0], progress=lambda ended, total: told.append((ended, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_arrivals_out_of_order_are_refused():
    with pytest.raises(InvalidSetting, match="ascending"):
        open_loop(lambda index: asyncio.sleep(0), [1.0, 0.5])


def test_no_arrivals_give_no_outcomes():
    assert open_loop(lambda index: asyncio.sleep(0), []) == []


def test_on_a_real_loop_stamps_are_on_the_clock_of_the_engines():
    async def main():
        before = time.perf_counter()
        [outcome] = await run_open_loop(lambda index: asyncio.sleep(0), [0.001])
        return before, outcome.timeline, time.perf_counter()

    before, timeline, after = asyncio.run(main())
    stamps = [(ns or 0) / 1e9 for ns in (timeline.arrival, timeline.sent, timeline.completed)]
    assert [before, *stamps, after] == sorted([before, *stamps, after])


class BatchOfFour:
    """Serves up to four at a time, in order, each batch in one second; the first two take ten."""

    def __init__(self):
        self.line, self.served = asyncio.Queue(), 0

    async def send(self, index):
        if self.served == 0:
            self.served, self.work = 1, asyncio.ensure_future(self.serve())
        answer = asyncio.get_running_loop().create_future()
        await self.line.put(answer)
        return await answer

    async def serve(self):
        for batches_before in itertools.count():
            batch = [await self.line.get()]
            batch += [self.line.get_nowait() for _ in range(min(3, self.line.qsize()))]
            await asyncio.sleep(10 if batches_before < 2 else 1)
            for answer in batch:
                answer.set_result(None)


@pytest.mark.parametrize(("concurrency", "count"), [(8, 80), (8, 81), (8, 83), (12, 82)])
def test_saturation_leaves_out_the_slow_start_and_the_drain_and_cuts_no_batch(concurrency, count):
    async def main():
        return await saturate(BatchOfFour().send, concurrency=concurrency, count=count, clock=now)

    result = virtual_time.run(main())
    assert result.requests_per_s == 4
    assert result.completed == 4 * result.window
    assert count - 4 * concurrency <= result.completed < count - 2 * concurrency
    assert result.failed == 0
    assert [o.index for o in result.outcomes] == list(range(count))


def test_saturation_keeps_as_many_in_flight_as_it_says():
    in_flight, most = 0, 0

    async def count(index):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(1 + index % 3)
        in_flight -= 1

    saturated(count, concurrency=5, count=40)
    assert most == 5


def test_cancelling_a_saturation_run_sends_nothing_more():
    sent = []

    async def slow(index):
        sent.append(index)
        await asyncio.sleep(10)

    async def main():
        run = asyncio.ensure_future(saturate(slow, concurrency=3, count=60, clock=now))
        await asyncio.sleep(15)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await asyncio.sleep(100)

    virtual_time.run(main())
    assert sent == [0, 1, 2, 3, 4, 5]


def test_failures_do_not_count_as_throughput():
    async def every_other_fails(index):
        await asyncio.sleep(1)
        if index % 2:
            raise ValueError(index)

    result = saturated(every_other_fails, concurrency=4, count=80)
    assert result.failed == 40
    assert result.requests_per_s == pytest.approx(2, rel=0.1)


def test_a_server_that_always_fails_has_no_throughput_and_says_why():
    async def fails(index):
        raise ValueError("out of paper")

    with pytest.raises(InvalidSetting, match=r"only 0 of 20.*out of paper"):
        saturated(fails, concurrency=4, count=20)


@pytest.mark.parametrize(("concurrency", "count"), [(4, 16), (0, 10)])
def test_a_saturation_run_too_short_for_a_window_is_refused(concurrency, count):
    with pytest.raises(InvalidSetting, match="no window"):
        saturated(lambda index: asyncio.sleep(1), concurrency=concurrency, count=count)
