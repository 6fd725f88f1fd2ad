"""Has this been asked before, word for word? Whole answers that are kept instead of computed again.

At an information desk a clerk writes down every question with its answer. Who asks the same gets
what is in the book. Who asks it while a colleague is still on the phone about it listens in, and
nobody calls twice. Old answers are struck out after a while, and when the book is full, the answer
that was wanted least recently gives up its page.

    lookup -> Hit(answer)     it is in the book: take it
              Join(flight)    somebody is finding out: wait there, by whatever way you can wait
              Lead()          nobody is: find out, then say `complete`, or `fail` if you could not

The book holds no clock and never waits, so a threaded engine and an asyncio server can use the same
one (under a lock, if there are threads). What `Join` hands out is the *flight* that the leader brought
along, any object by which the two can talk: a future, or `engines.cached.Flight`. After `complete` the
leader gives the answer to all who joined, whether it was stored or not. After `fail` it tells them to
ask again: the first that does leads, and the others join it, so nobody is forgotten. Lesson 08 shows
for which traffic it pays.
"""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from servinglib.errors import InvalidSetting
from servinglib.request import FinishReason, SamplingParams, TokenEvent

Flight = TypeVar("Flight")
ENTRY_BYTES = (
    450  # the transcript itself, its key, its time, and its share of two dictionaries that grow by doubling
)
PARAMETERS = tuple(f.name for f in fields(SamplingParams))
WHOLE = ("stop", "length")  # how an answer ends that wasn't cut short by what happened to its request
UNUSED_IF_GREEDY = ("temperature", "top_k", "top_p", "seed")


def cache_key(model: str, prompt_ids: Sequence[int], params: SamplingParams) -> bytes | None:
    """What two requests have in common if one answer does for both; None if no answer does.

    Parameters
    ----------
    model : str
        Name of the model; one cache may serve several.
    prompt_ids : sequence of int
        Token ids of the whole prompt, each of at most 64 bits.
    params : SamplingParams
        All fields count, but for a greedy answer not those that only shape the sampling.

    Returns
    -------
    bytes or None
        A SHA-256 digest, so that two requests don't share one by accident. None for sampling without
        a seed, since who asks that twice wants two answers, and for what a `Transcript` doesn't hold:
        several answers to one request, and log-probabilities.
    """
    greedy = params.temperature == 0
    if (not greedy and params.seed is None) or params.n > 1 or params.logprobs is not None:
        return None
    settings = [(p, getattr(params, p)) for p in PARAMETERS if not (greedy and p in UNUSED_IF_GREEDY)]
    return hashlib.sha256(repr((model, settings)).encode() + array("q", prompt_ids).tobytes()).digest()


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said, without who asked or when.

    Attributes
    ----------
    token_ids : tuple of int or None
        One per event; None only at the end, where an engine ended an answer without a new token.
    texts : tuple of str
        What each event added to the text.
    finish_reason : FinishReason
    """

    token_ids: tuple[int | None, ...]
    texts: tuple[str, ...]
    finish_reason: FinishReason

    @classmethod
    def of(cls, events: Sequence[TokenEvent]) -> Transcript:
        """The transcript of one request's stream, from its first event to its last."""
        reason = events[-1].finish_reason if events else None
        if reason is None:
            raise InvalidSetting(f"a stream of {len(events)} events without an end can't be kept; read on")
        return cls(tuple(e.token_id for e in events), tuple(e.text for e in events), reason)

    def replay(self, request_id: str, now: float) -> Iterator[TokenEvent]:
        """The same stream for another request, all of it known at `now` (seconds)."""
        last = len(self.texts) - 1
        for i, (token, text) in enumerate(zip(self.token_ids, self.texts, strict=True)):
            yield TokenEvent(request_id, i, token, text, now, self.finish_reason if i == last else None)

    @property
    def size(self) -> int:
        """Bytes of memory that keeping it costs, an upper estimate.

        Counted are the ids and the texts, each as a Python object in steps of 16 bytes and a place in
        a tuple, and `ENTRY_BYTES` for the rest. Objects that Python shares, such as small numbers and
        one-letter texts, are counted as if they weren't; a 64-token answer comes to about 7 kB.
        """
        parts = (self.token_ids, self.texts, *self.token_ids, *self.texts)
        return ENTRY_BYTES + sum(-(-sys.getsizeof(part) // 16) * 16 for part in parts)


@dataclass(frozen=True, slots=True)
class Hit:
    """The answer is here."""

    answer: Transcript


@dataclass(frozen=True, slots=True)
class Join(Generic[Flight]):
    """The answer is being computed; `flight` is what its leader brought along."""

    flight: Flight


@dataclass(frozen=True, slots=True)
class Lead:
    """Nobody has the answer or computes it; whoever is told this does, and reports back."""


@dataclass(slots=True)
class CacheStatistics:
    """Counts since the start, and what is kept now.

    Attributes
    ----------
    queries : int
        Lookups; each is a hit, a join or a miss.
    hits, joined, misses : int
        Answered from the cache; sent to a computation under way; told to compute.
    expirations, evictions : int
        Answers forgotten because of their age, and to make room.
    bytes : int
        Size of the answers that are kept now.
    """

    queries: int = 0
    hits: int = 0
    joined: int = 0
    misses: int = 0
    expirations: int = 0
    evictions: int = 0
    bytes: int = 0


class ResultCache(Generic[Flight]):
    """Keeps answers by key, no longer than `ttl` and within `max_bytes`; equal questions are led once.

    Parameters
    ----------
    max_bytes : int
        Most memory for answers, as `Transcript.size` counts it.
    ttl : float
        Seconds after which an answer is forgotten, counted from when it was stored.
    """

    def __init__(self, max_bytes: int, ttl: float = math.inf) -> None:
        if max_bytes < 1 or not ttl > 0:
            raise InvalidSetting(f"max_bytes={max_bytes} must be at least 1, and ttl={ttl} s more than 0")
        self.max_bytes, self.ttl = max_bytes, ttl
        self.statistics = CacheStatistics()
        self._answers: OrderedDict[bytes, Transcript] = OrderedDict()  # wanted least recently first
        self._stored_at: OrderedDict[bytes, float] = (
            OrderedDict()
        )  # oldest first; as a dict, slow at forgetting it
        self._flights: dict[bytes, Flight] = {}

    def lookup(self, key: bytes, now: float, flight: Flight) -> Hit | Join[Flight] | Lead:
        """Who answers this request: the cache, the flight that is under way, or the caller with `flight`.

        Parameters
        ----------
        key : bytes
            As `cache_key` gives it.
        now : float
            Seconds on a clock that never runs backwards.
        flight : Flight
            What others will be handed who ask while this caller leads.
        """
        self._forget_old(now)
        self.statistics.queries += 1
        if key in self._answers:
            self.statistics.hits += 1
            self._answers.move_to_end(key)
            return Hit(self._answers[key])
        if key in self._flights:
            self.statistics.joined += 1
            return Join(self._flights[key])
        self.statistics.misses += 1
        self._flights[key] = flight
        return Lead()

    def complete(self, key: bytes, answer: Transcript, now: float) -> None:
        """The leader has the answer: keep it, unless it was cut short or is larger than the whole cache."""
        self._land(key)
        self._forget_old(now)
        size = answer.size
        if answer.finish_reason not in WHOLE or size > self.max_bytes:
            return
        while self.statistics.bytes + size > self.max_bytes:
            self._forget(next(iter(self._answers)))
            self.statistics.evictions += 1
        self._answers[key], self._stored_at[key] = answer, now
        self.statistics.bytes += size

    def fail(self, key: bytes) -> None:
        """The leader has no answer, or was aborted: the next who looks this key up leads."""
        self._land(key)

    def _land(self, key: bytes) -> None:
        if key not in self._flights:
            raise InvalidSetting(
                f"nobody leads key {key.hex()[:12]}; only who was told Lead reports, and once"
            )
        del self._flights[key]

    def _forget_old(self, now: float) -> None:
        while self._stored_at and now - self._stored_at[oldest := next(iter(self._stored_at))] >= self.ttl:
            self._forget(oldest)
            self.statistics.expirations += 1

    def _forget(self, key: bytes) -> None:
        self.statistics.bytes -= self._answers.pop(key).size
        del self._stored_at[key]
