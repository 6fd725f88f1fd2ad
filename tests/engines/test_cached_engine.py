"""A memory in front of an engine: hits, shared answers, and readers who come late or leave early."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import pytest
from clocks import VirtualClock
from contract import EngineContract, Loader, completed

from servinglib.cache.result_cache import Join, ResultCache
from servinglib.engines.base import Engine, collect
from servinglib.engines.cached import CachedEngine
from servinglib.engines.capabilities import Capabilities
from servinglib.engines.flights import Batch, Flight, Reader
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import ServerClosed
from servinglib.request import Logprob, Request, SamplingParams, TokenEvent


class TestContract(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def load(cls) -> Loader:
        clock = VirtualClock()
        return lambda **options: CachedEngine.load(
            "simulated", "simulated", sleep=clock.sleep, clock=clock, **options
        )

    @pytest.fixture
    def engine(self, load: Loader) -> Iterator[Engine]:
        """A new one for each test: the contract asks for the first row first, and a hit never waits."""
        with load() as engine:
            yield engine

    def decode(self, engine: Engine, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


class Broken(Exception):
    """What a test makes an engine raise."""


class Kitchen(SimulatedEngine):
    """Counts the rows and steps it computes, and breaks when told to."""

    capabilities = Capabilities(batching="static", sampling=True, real_model=False)

    def __init__(self) -> None:
        clock = VirtualClock()
        super().__init__(sleep=clock.sleep, clock=clock)
        self.clock = clock
        self.rows = self.steps_made = self.closed_runs = 0
        self.broken = False
        self.aborted: list[str] = []
        self.timeouts: list[float | None] = []

    def run(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        self.timeouts += [request.timeout for request in requests]
        return super().run(requests, prompts)

    def steps(
        self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]
    ) -> Generator[list[int], None, None]:
        self.rows += len(prompts)
        try:
            for tokens in super().steps(prompts, params):
                self.before_a_step()
                self.steps_made += 1
                yield tokens
        finally:
            self.closed_runs += 1

    def before_a_step(self) -> None:
        if self.broken:
            raise Broken

    def abort(self, request_id: str) -> bool:
        self.aborted.append(request_id)
        return super().abort(request_id)


def cached(ttl: float = 1e9, max_bytes: int = 10**6) -> tuple[CachedEngine, Kitchen]:
    kitchen = Kitchen()
    return CachedEngine(kitchen, ResultCache(max_bytes, ttl)), kitchen


def ask(engine: Engine, prompt: str, name: str = "mine", **params) -> Generator[TokenEvent, None, None]:
    yield from engine.stream(prompt, request_id=name, max_tokens=8, **params)


def text(events: Iterator[TokenEvent] | list[TokenEvent]) -> str:
    return "".join(e.text for e in events)


ANSWER = Kitchen().generate("hello", max_tokens=8)[0].text


# Hits


def test_what_was_asked_before_is_answered_at_once_and_not_computed():
    engine, kitchen = cached()
    first = list(ask(engine, "hello"))
    kitchen.clock.time = 777.0
    second = list(ask(engine, "hello"))
    assert second == [replace(event, time=777.0) for event in first]
    assert (text(second), kitchen.rows, kitchen.clock.time) == (ANSWER, 1, 777.0)


def test_a_hit_has_its_own_id_and_its_own_timeline():
    engine, kitchen = cached()
    requests = [Request(name, "hello", SamplingParams(max_tokens=8)) for name in ("first", "second")]
    [first] = completed(engine.generate_batch(requests[:1]))
    kitchen.clock.time = 777.0
    [second] = completed(engine.generate_batch(requests[1:]))
    assert (second.request_id, second.text) == ("second", first.text)
    assert second.timeline is requests[1].timeline
    assert (second.timeline.scheduled, second.timeline.finished) == (777 * 10**9, 777 * 10**9)
    assert second.token_times == (777.0,) * 8


def test_a_hit_does_not_wait_for_its_neighbours_in_the_batch():
    engine, _ = cached()
    list(ask(engine, "hello"))
    batch = [Request(prompt, prompt, SamplingParams(max_tokens=8)) for prompt in ("x", "hello")]
    events = list(engine.run(batch, [engine.validate(r) for r in batch]))
    assert [e.request_id for e in events] == ["hello"] * 8 + ["x"] * 8


def test_an_answer_that_is_too_old_is_computed_again():
    engine, kitchen = cached(ttl=60.0)
    list(ask(engine, "hello"))
    kitchen.clock.time += 59.0
    list(ask(engine, "hello"))
    assert kitchen.rows == 1
    kitchen.clock.time += 1.0
    assert text(ask(engine, "hello")) == ANSWER
    assert kitchen.rows == 2


def test_sampling_without_a_seed_is_never_answered_from_memory_nor_shared():
    engine, kitchen = cached()
    engine.generate(["hello", "hello"], temperature=1.0)
    engine.generate("hello", temperature=1.0)
    assert (kitchen.rows, engine.cache.statistics.queries) == (3, 0)
    engine.generate(["hello", "hello"], temperature=1.0, seed=5)
    assert kitchen.rows == 4


def test_an_aborted_answer_is_not_kept():
    engine, kitchen = cached()
    events = ask(engine, "hello")
    next(events)
    engine.abort("mine")
    assert [e.finish_reason for e in events] == ["abort"]
    assert text(ask(engine, "hello")) == ANSWER
    assert kitchen.rows == 2


def test_a_hit_can_be_aborted_in_the_middle():
    engine, _ = cached()
    list(ask(engine, "hello"))
    events = ask(engine, "hello")
    next(events)
    assert engine.abort("mine") is True
    assert [(e.index, e.token_id, e.finish_reason) for e in events] == [(1, None, "abort")]


def test_warming_up_puts_nothing_into_the_memory():
    engine, _ = cached()
    engine.warm_up()
    assert engine.cache.statistics.queries == engine.cache.statistics.bytes == 0


def test_after_shutdown_not_even_a_hit_is_served():
    engine, _ = cached()
    list(ask(engine, "hello"))
    request = Request("late", "hello", SamplingParams(max_tokens=8))
    prompt = engine.validate(request)
    engine.shutdown()
    with pytest.raises(ServerClosed):
        next(engine.run([request], [prompt]))


# Shared answers


def test_equal_requests_of_a_batch_are_computed_once():
    engine, kitchen = cached()
    answers = engine.generate(["hello"] * 5 + ["x"], max_tokens=8)
    assert [a.text for a in answers[:5]] == [ANSWER] * 5
    assert len({a.request_id for a in answers}) == 6
    assert kitchen.rows == 2
    statistics = engine.cache.statistics
    assert (statistics.misses, statistics.joined, statistics.hits) == (2, 4, 0)


def test_who_comes_late_hears_the_beginning_at_once_and_the_rest_as_it_comes():
    engine, kitchen = cached()
    early = ask(engine, "hello", "early")
    heard = [next(early) for _ in range(3)]
    kitchen.clock.time += 50.0
    came = kitchen.clock.time
    late = list(ask(engine, "hello", "late"))
    assert [e.time for e in late[:3]] == [came] * 3
    assert [e.time for e in late] == sorted(e.time for e in late)
    assert late[3].time > came
    assert text([*heard, *early]) == text(late) == ANSWER
    assert {e.request_id for e in late} == {"late"}
    assert kitchen.rows == 1


@pytest.mark.parametrize("leaves", ["closes", "aborts"])
def test_an_answer_goes_on_for_the_others_when_the_first_who_asked_leaves(leaves: str):
    engine, kitchen = cached()
    early, late = ask(engine, "hello", "early"), ask(engine, "hello", "late")
    next(early)
    heard = [next(late)]
    if leaves == "closes":
        early.close()
    else:
        engine.abort("early")
        assert [e.finish_reason for e in early] == ["abort"]
    assert text([*heard, *late]) == ANSWER
    assert (kitchen.rows, kitchen.steps_made, kitchen.aborted) == (1, 8, [])
    assert text(ask(engine, "hello")) == ANSWER
    assert kitchen.rows == 1, "the answer was kept"


def test_when_nobody_reads_an_answer_any_more_its_computation_ends():
    engine, kitchen = cached()
    early, late = ask(engine, "hello", "early"), ask(engine, "hello", "late")
    next(early)
    next(late)
    early.close()
    assert kitchen.closed_runs == 0
    late.close()
    assert kitchen.closed_runs == 1
    assert text(ask(engine, "hello")) == ANSWER, "the next who asks starts anew"


def test_a_row_that_nobody_reads_is_aborted_while_its_neighbour_goes_on():
    engine, kitchen = cached()
    batch = [Request(name, name, SamplingParams(max_tokens=8)) for name in ("hello", "x")]
    events = engine.run(batch, [engine.validate(r) for r in batch])
    next(events)
    engine.abort("x")
    streams = collect(events)
    assert [e.finish_reason for e in streams["x"]] == ["abort"]
    assert len(kitchen.aborted) == 1
    assert len(streams["hello"]) == 7


def test_a_finished_run_is_closed_though_the_engine_has_not_been_asked_for_its_end():
    engine, kitchen = cached()
    list(ask(engine, "hello"))
    assert kitchen.closed_runs == 1


def test_two_runs_that_wait_for_each_other_s_answers_both_end():
    engine, kitchen = cached()
    params = SamplingParams(max_tokens=8)
    one = [Request("a1", "a", params), Request("b1", "b", params)]
    a, b = ask(engine, "a", "a0"), ask(engine, "b", "b0")
    next(a)
    next(b)
    both = collect(engine.run(one, [engine.validate(r) for r in one]))
    assert [len(events) for events in both.values()] == [8, 8]
    assert [len(list(a)), len(list(b)), kitchen.rows] == [7, 7, 2]


def test_each_request_has_its_own_deadline_though_the_answer_is_shared():
    engine, kitchen = cached()
    params = SamplingParams(max_tokens=8)
    batch = [Request("hasty", "hello", params, timeout=0.03), Request("patient", "hello", params)]
    streams = collect(engine.run(batch, [engine.validate(r) for r in batch]))
    assert (streams["hasty"][-1].finish_reason, streams["hasty"][-1].token_id) == ("deadline", None)
    assert 1 < len(streams["hasty"]) < 8
    assert ANSWER.startswith(text(streams["hasty"]))
    assert (text(streams["patient"]), kitchen.rows) == (ANSWER, 1)
    assert kitchen.timeouts == [None], "the engine itself must not cut what others read"


def test_several_choices_and_log_probabilities_pass_through_whole():
    engine, kitchen = cached()

    def run(requests: Sequence[Request], _: object) -> Iterator[TokenEvent]:
        name = requests[0].request_id
        yield TokenEvent(name, 0, 7, "a", 101.0, "length", 0, Logprob(-0.5))
        yield TokenEvent(name, 0, 8, "b", 102.0, "length", 1, Logprob(-0.7))

    kitchen.run = run  # type: ignore[method-assign]
    params = SamplingParams(max_tokens=1, n=2, temperature=1.0, seed=1, logprobs=0)
    events = list(engine.run([Request("mine", "hello", params)], [[104]]))
    assert events == list(run([Request("mine", "hello", params)], None))
    assert engine.cache.statistics.queries == 0
    cut = engine.run([Request("mine", "hello", params)], [[104]])
    next(cut)
    engine.abort("mine")
    assert list(cut) == [TokenEvent("mine", 0, None, "", kitchen.now(), "abort", 1)]


# Failures


def test_an_answer_that_fails_is_computed_again_for_the_next():
    engine, kitchen = cached()
    kitchen.broken = True
    with pytest.raises(Broken):
        next(ask(engine, "hello"))
    kitchen.broken = False
    assert text(ask(engine, "hello")) == ANSWER


def test_who_has_heard_a_part_of_an_answer_that_fails_gets_the_error():
    engine, kitchen = cached()
    early, late = ask(engine, "hello", "early"), ask(engine, "hello", "late")
    next(early)
    next(late)
    kitchen.broken = True
    with pytest.raises(Broken):
        next(late)
    kitchen.broken = False
    with pytest.raises(Broken):
        next(early)
    early, late = ask(engine, "hello", "early"), ask(engine, "hello", "late")
    next(early)
    next(late)
    kitchen.broken = True
    with pytest.raises(Broken):
        next(early)
    kitchen.broken = False
    with pytest.raises(Broken):
        next(late)


def test_a_batch_makes_no_step_for_a_reader_whose_event_another_thread_just_brought():
    kitchen = Kitchen()
    batch = Batch(kitchen, lambda flights, error: None)
    flight = Flight(None, Request("f", "hello", SamplingParams(max_tokens=8)), [104], batch)
    batch.add(flight)
    reader = Reader(flight.request, flight.prompt)
    reader.follow(flight)
    batch.advance(reader, flight)
    batch.advance(reader, flight)
    assert (len(flight.events), kitchen.steps_made) == (1, 1)


class Announcing(ResultCache):
    """Tells a test when somebody has joined."""

    def __init__(self) -> None:
        super().__init__(10**6)
        self.someone_joined = threading.Event()

    def lookup(self, key, now, flight):
        outcome = super().lookup(key, now, flight)
        if isinstance(outcome, Join):
            self.someone_joined.set()
        return outcome


def test_who_has_heard_nothing_of_an_answer_that_fails_leads_it_anew():
    kitchen = Kitchen()
    engine = CachedEngine(kitchen, cache := Announcing())

    def break_once(pool: ThreadPoolExecutor) -> None:
        if not cache.someone_joined.is_set():
            joiners.append(pool.submit(lambda: text(ask(engine, "hello", "joiner"))))
            assert cache.someone_joined.wait(30)
            raise Broken

    joiners = []
    with ThreadPoolExecutor(1) as pool:
        kitchen.before_a_step = lambda: break_once(pool)
        with pytest.raises(Broken):
            next(ask(engine, "hello", "leader"))
        assert joiners[0].result(30) == ANSWER
    assert kitchen.rows == 2


def test_an_engine_that_stops_in_the_middle_of_an_answer_is_an_error_and_no_endless_wait():
    engine, kitchen = cached()
    kitchen.run = lambda requests, prompts: iter(())  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(ask(engine, "hello"))


# Threads


class Customer:
    """Reads a few streams at a time, a piece of this and a piece of that, and drops some of them."""

    def __init__(self, engine: Engine, truth: dict[str, str], number: int) -> None:
        self.engine, self.truth, self.number = engine, truth, number
        self.random = Random(number)
        self.served = 0

    def dine(self) -> int:
        table = [self.order(f"{self.number}-{i}") for i in range(60)]
        open_now = [table.pop() for _ in range(4)]
        while open_now:
            chosen = self.random.choice(open_now)
            if next(chosen, None) is None:
                open_now.remove(chosen)
                open_now += [table.pop()] if table else []
        return self.served

    def order(self, name: str) -> Iterator[str]:
        """Yield as often as it reads a piece."""
        prompt, patience = self.random.choice(sorted(self.truth)), self.random.randint(1, 16)
        events, heard = ask(self.engine, prompt, name), ""
        for read, event in enumerate(events):
            heard += event.text
            assert self.truth[prompt].startswith(heard)
            if read == patience and patience % 2:
                events.close()
                return
            if read == patience and self.engine.abort(name):
                assert [e.finish_reason for e in events] == ["abort"]
                return
            yield event.text
        assert heard == self.truth[prompt]
        self.served += 1


def test_many_threads_get_true_answers_whatever_the_others_do():
    engine, kitchen = cached(max_bytes=6000)
    prompts = [f"prompt {i}" for i in range(8)]
    truth = {p: a.text for p, a in zip(prompts, Kitchen().generate(prompts, max_tokens=8), strict=True)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda n: Customer(engine, truth, n).dine(), range(8))) > 100
    finally:
        sys.setswitchinterval(interval)
    statistics = engine.cache.statistics
    assert statistics.queries == statistics.hits + statistics.joined + statistics.misses == 480
    assert min(statistics.hits, statistics.joined, statistics.misses, statistics.evictions) > 0
    assert kitchen.rows == kitchen.closed_runs == statistics.misses, "each leader computes, and cleans up"
    assert [a.text for a in engine.generate(prompts, max_tokens=8)] == list(truth.values())
