"""Whole answers kept by key: age, room, and one leader at a time."""

import math
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from servinglib.cache.result_cache import Hit, Join, Lead, ResultCache, Transcript, cache_key
from servinglib.errors import InvalidSetting
from servinglib.request import SamplingParams, TokenEvent

PARAMS = SamplingParams()
ANSWER = Transcript((5, 6), ("Hel", "lo"), "stop")
KEYS = [bytes([i]) * 32 for i in range(6)]


def keep(cache: ResultCache, key: bytes, now: float = 0.0, answer: Transcript = ANSWER) -> None:
    assert cache.lookup(key, now, None) == Lead()
    cache.complete(key, answer, now)


def kept(cache: ResultCache, now: float = 0.0) -> list[int]:
    """Which of `KEYS` are there; looks each up, and leads none."""
    there = []
    for i, key in enumerate(KEYS):
        if isinstance(cache.lookup(key, now, None), Hit):
            there.append(i)
        else:
            cache.fail(key)
    return there


# Keys


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 65},
        {"stop": ("x",)},
        {"ignore_eos": True},
        {"seed": 2},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.5},
    ],
)
def test_every_parameter_that_changes_a_sampled_answer_changes_the_key(change: dict[str, Any]):
    sampled = SamplingParams(temperature=1.0, seed=1)
    assert cache_key("m", [1], sampled) != cache_key("m", [1], sampled.updated(**change))


def test_model_and_prompt_are_part_of_the_key():
    keys = [cache_key("m", [1, 2], PARAMS), cache_key("n", [1, 2], PARAMS), cache_key("m", [2, 1], PARAMS)]
    keys += [
        cache_key("m", [1], PARAMS),
        cache_key("m", [1, 2, 0], PARAMS),
        cache_key("m", [2**40 + 1, 2], PARAMS),
    ]
    assert len(set(keys)) == 6
    assert cache_key("m", [1, 2], PARAMS) == cache_key("m", (1, 2), SamplingParams())


def test_what_only_shapes_sampling_does_not_tell_greedy_answers_apart():
    ways = [{"seed": 3}, {"top_k": 5}, {"top_p": 0.5}, {"temperature": 0}]
    assert {cache_key("m", [1], PARAMS.updated(**way)) for way in ways} == {cache_key("m", [1], PARAMS)}
    assert cache_key("m", [1], PARAMS.updated(stop=("x",))) != cache_key("m", [1], PARAMS)


def test_sampling_without_a_seed_has_no_key():
    assert cache_key("m", [1], SamplingParams(temperature=0.7)) is None
    assert cache_key("m", [1], SamplingParams(temperature=0.7, seed=0)) is not None


@pytest.mark.parametrize("change", [{"n": 2}, {"logprobs": 0}])
def test_what_a_transcript_does_not_hold_has_no_key(change: dict[str, Any]):
    assert cache_key("m", [1], SamplingParams(temperature=0.7, seed=0, **change)) is None


# Transcripts


def test_a_replay_is_the_same_stream_under_another_name_and_at_another_time():
    events = [TokenEvent("a", 0, 5, "Hel", 1.0), TokenEvent("a", 1, 6, "lo", 2.0, "stop")]
    assert Transcript.of(events) == ANSWER
    assert list(ANSWER.replay("b", 9.0)) == [
        TokenEvent("b", 0, 5, "Hel", 9.0),
        TokenEvent("b", 1, 6, "lo", 9.0, "stop"),
    ]


@pytest.mark.parametrize("events", [[], [TokenEvent("a", 0, 5, "Hel", 1.0)]])
def test_a_stream_without_an_end_makes_no_transcript(events: list[TokenEvent]):
    with pytest.raises(InvalidSetting, match=f"{len(events)} events without an end"):
        Transcript.of(events)


@pytest.mark.parametrize("length", [1, 16, 64, 256])
def test_the_size_of_an_answer_is_what_keeping_it_takes(length: int):
    random, cache, count = Random(length), ResultCache(10**9), 500
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for i in range(count):
        ids = tuple(random.randrange(300, 150_000) for _ in range(length))
        texts = tuple("".join(random.choices("abcdefgh", k=5)) for _ in range(length))
        key = cache_key("m", [i], PARAMS)
        assert key is not None
        keep(cache, key, float(i), Transcript(ids, texts, "stop"))
    traced = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert traced <= cache.statistics.bytes <= 1.4 * traced


# Age and room


def test_an_answer_is_forgotten_when_it_is_as_old_as_ttl_however_often_it_is_wanted():
    cache = ResultCache(10**6, ttl=10.0)
    keep(cache, KEYS[0], now=100.0)
    assert cache.lookup(KEYS[0], 109.9, None) == Hit(ANSWER)
    assert cache.lookup(KEYS[0], 110.0, None) == Lead()
    assert (cache.statistics.expirations, cache.statistics.bytes) == (1, 0)


def test_the_answer_that_was_wanted_least_recently_makes_room():
    cache = ResultCache(3 * ANSWER.size)
    for key in KEYS[:3]:
        keep(cache, key)
    assert cache.lookup(KEYS[0], 0.0, None) == Hit(ANSWER)
    keep(cache, KEYS[3])
    assert (kept(cache), cache.statistics.evictions) == ([0, 2, 3], 1)


def test_old_answers_make_room_before_any_live_one_does():
    cache = ResultCache(2 * ANSWER.size, ttl=10.0)
    keep(cache, KEYS[0], 0.0)
    keep(cache, KEYS[1], 5.0)
    assert cache.lookup(KEYS[0], 6.0, None) == Hit(ANSWER)  # so KEYS[1] is next by use
    assert cache.lookup(KEYS[2], 9.0, None) == Lead()
    cache.complete(KEYS[2], ANSWER, 12.0)
    assert (kept(cache, 12.0), cache.statistics.evictions, cache.statistics.expirations) == ([1, 2], 0, 1)


def test_an_answer_larger_than_the_whole_cache_is_not_kept_and_drives_nobody_out():
    cache = ResultCache(2 * ANSWER.size)
    keep(cache, KEYS[0])
    keep(cache, KEYS[1], answer=Transcript((1,), ("x" * 10_000,), "length"))
    assert (kept(cache), cache.statistics.evictions) == ([0], 0)


def test_an_answer_of_exactly_the_room_is_kept():
    cache = ResultCache(ANSWER.size)
    keep(cache, KEYS[0])
    assert kept(cache) == [0]


@pytest.mark.parametrize("reason", ["abort", "deadline"])
def test_an_answer_that_was_cut_short_is_not_kept(reason: Any):
    cache = ResultCache(10**6)
    keep(cache, KEYS[0], answer=Transcript((5, None), ("Hel", ""), reason))
    assert kept(cache) == []


@pytest.mark.parametrize(("max_bytes", "ttl"), [(0, 1.0), (1, 0.0), (1, math.nan)])
def test_a_cache_without_room_or_time_is_refused(max_bytes: int, ttl: float):
    with pytest.raises(InvalidSetting, match=f"max_bytes={max_bytes}.*ttl={ttl}"):
        ResultCache(max_bytes, ttl)


# One leader at a time


def test_who_asks_while_another_finds_out_joins_its_flight():
    cache = ResultCache(10**6)
    assert cache.lookup(KEYS[0], 0.0, "flight 0") == Lead()
    assert cache.lookup(KEYS[0], 0.0, "flight 1") == Join("flight 0")
    assert cache.lookup(KEYS[1], 0.0, "flight 2") == Lead()
    statistics = cache.statistics
    assert (statistics.queries, statistics.hits, statistics.joined, statistics.misses) == (3, 0, 1, 2)


def test_after_a_failure_the_first_who_asks_again_leads():
    cache = ResultCache(10**6)
    cache.lookup(KEYS[0], 0.0, "flight 0")
    cache.fail(KEYS[0])
    assert cache.lookup(KEYS[0], 0.0, "flight 1") == Lead()
    assert cache.lookup(KEYS[0], 0.0, "flight 2") == Join("flight 1")


@pytest.mark.parametrize("report", [lambda c: c.fail(KEYS[0]), lambda c: c.complete(KEYS[0], ANSWER, 0.0)])
def test_only_a_leader_reports_and_only_once(report: Callable[[ResultCache], None]):
    cache = ResultCache(10**6)
    keep(cache, KEYS[0])
    with pytest.raises(InvalidSetting, match="nobody leads key 000000000000"):
        report(cache)


class Asking:
    """A caller who asks until it is answered."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.answers: list[Transcript] = []


class Flight:
    """What a leader brings along: the list of those who wait for it."""

    def __init__(self, leader: Asking) -> None:
        self.leader = leader
        self.joined: list[Asking] = []


class ResultCacheMachine(RuleBasedStateMachine):
    """Against a list of what was stored, and a book of who waits for whom."""

    @initialize(room=st.integers(300, 3000), ttl=st.sampled_from([1.0, 5.0, math.inf]))
    def open(self, room: int, ttl: float) -> None:
        self.cache: ResultCache[Flight] = ResultCache(room, ttl)
        self.now, self.evictions, self.expirations = 0.0, 0, 0
        self.stored: list[tuple[bytes, Transcript, float]] = []  # wanted least recently first
        self.flights: dict[bytes, Flight] = {}
        self.asked: list[Asking] = []

    def forget_old(self) -> None:
        live = [each for each in self.stored if self.now - each[2] < self.cache.ttl]
        self.expirations += len(self.stored) - len(live)
        self.stored = live

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=st.sampled_from(KEYS[:4]))
    def somebody_asks(self, key: bytes) -> None:
        self.asked.append(Asking(key))
        self.ask(self.asked[-1])

    def ask(self, caller: Asking) -> None:
        self.forget_old()
        known = [each for each in self.stored if each[0] == caller.key]
        flight = Flight(caller)
        match self.cache.lookup(caller.key, self.now, flight):
            case Hit(answer):
                assert [answer] == [each[1] for each in known]
                self.stored.sort(key=lambda each: each[0] == caller.key)
                caller.answers.append(answer)
            case Join(leader):
                assert not known
                assert leader is self.flights[caller.key]
                leader.joined.append(caller)
            case Lead():
                assert not known
                assert caller.key not in self.flights
                self.flights[caller.key] = flight

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), letters=st.integers(0, 1500), aborted=st.booleans())
    def a_leader_completes(self, data: st.DataObject, letters: int, aborted: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.flights)))
        flight, answer = (
            self.flights.pop(key),
            Transcript((1,), ("x" * letters,), "abort" if aborted else "stop"),
        )
        self.cache.complete(key, answer, self.now)
        for caller in (flight.leader, *flight.joined):
            caller.answers.append(answer)
        self.forget_old()
        if aborted or answer.size > self.cache.max_bytes:
            return
        self.stored.append((key, answer, self.now))
        while sum(each[1].size for each in self.stored) > self.cache.max_bytes:
            self.stored.pop(0)
            self.evictions += 1

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def a_leader_fails(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.flights)))
        flight = self.flights.pop(key)
        self.cache.fail(key)
        self.asked.remove(flight.leader)
        for caller in flight.joined:
            self.ask(caller)

    @invariant()
    def the_books_agree(self) -> None:
        statistics = self.cache.statistics
        assert statistics.bytes == sum(each[1].size for each in self.stored) <= self.cache.max_bytes
        assert (statistics.evictions, statistics.expirations) == (self.evictions, self.expirations)
        assert statistics.queries == statistics.hits + statistics.joined + statistics.misses

    @invariant()
    def everybody_is_answered_once_or_waits_for_one_leader(self) -> None:
        waiting = [c for flight in self.flights.values() for c in (flight.leader, *flight.joined)]
        for caller in self.asked:
            assert len(caller.answers) + waiting.count(caller) == 1


class TestResultCacheMachine(ResultCacheMachine.TestCase):
    settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.text(), st.text(), st.lists(st.integers(0, 2**63 - 1)), st.lists(st.integers(0, 2**63 - 1)))
def test_keys_are_equal_only_if_model_and_prompt_are(m: str, n: str, a: list[int], b: list[int]):
    assert (cache_key(m, a, PARAMS) == cache_key(n, b, PARAMS)) == ((m, a) == (n, b))
