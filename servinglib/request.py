"""One request, one timeline: the values that every engine, server and simulator passes around.

A request carries a `Timeline` that each stage stamps. Its parts add up to the total latency
*exactly*, because stamps are whole nanoseconds and each part is the difference of two stamps:

    intended arrival -> received -> scheduled -> first token -> finished -> completed
    |---- network ----|-- queue --|-- prefill --|--- decode --|-- network --|

`network` is all that happens outside the server, the client's own dispatch lag included. Lesson 02
takes these parts apart; lesson 12 shows why the clock starts at the *intended* arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from servinglib.errors import InvalidSetting, UnknownName

FinishReason = Literal["stop", "length", "abort", "deadline"]
UNKNOWN_TOKEN = -1
"""Stands for the id of a token that somebody's server has told the text of, and not the id."""
STAGES = ("arrival", "sent", "received", "scheduled", "first_token", "finished", "completed")


@dataclass(slots=True)
class Timeline:
    """When each stage of one request happened, in nanoseconds of one clock.

    Attributes
    ----------
    arrival : int or None
        When the request was *meant* to be sent, on the open-loop clock.
    sent : int or None
        When the client did send it; `sent - arrival` is the dispatch lag.
    received : int or None
        When the server took it.
    scheduled : int or None
        When it left the queue and computation began.
    first_token, finished : int or None
        First token that is not empty, and end of the last one, at the engine.
    completed : int or None
        When the client held the whole answer.
    """

    arrival: int | None = None
    sent: int | None = None
    received: int | None = None
    scheduled: int | None = None
    first_token: int | None = None
    finished: int | None = None
    completed: int | None = None

    def stamp(self, stage: str, seconds: float) -> None:
        """Record that `stage` happened at `seconds` (of `time.perf_counter`, or of a virtual clock)."""
        if stage not in STAGES:
            raise UnknownName("stage", stage, STAGES)
        setattr(self, stage, round(seconds * 1e9))

    @property
    def parts(self) -> dict[str, int]:
        """Network, queue, prefill and decode time in ns; they add up to `total` exactly.

        Raises
        ------
        InvalidSetting
            When a stage was never stamped: a part would have to be invented.
        """
        t = self._all_stamped()
        return {
            "network": (t["received"] - t["arrival"]) + (t["completed"] - t["finished"]),
            "queue": t["scheduled"] - t["received"],
            "prefill": t["first_token"] - t["scheduled"],
            "decode": t["finished"] - t["first_token"],
        }

    @property
    def total(self) -> int:
        """End-to-end latency in ns, from the intended arrival."""
        t = self._all_stamped()
        return t["completed"] - t["arrival"]

    @property
    def seconds(self) -> dict[str, float]:
        """The parts and the total in seconds, for people and plots."""
        return {name: ns / 1e9 for name, ns in {**self.parts, "total": self.total}.items()}

    def _all_stamped(self) -> dict[str, int]:
        needed = [s for s in STAGES if s != "sent"]
        stamps = {stage: getattr(self, stage) for stage in needed}
        missing = [stage for stage, ns in stamps.items() if ns is None]
        if missing:
            raise InvalidSetting(
                f"the timeline lacks the stamps {missing}; only a completed request has parts"
            )
        return stamps


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens, and when to end.

    Attributes
    ----------
    max_tokens : int
        Most tokens to generate, at least 1.
    temperature : float
        0 takes the most likely token (greedy); 1 samples from the model's own distribution.
    top_k : int
        Sample among the k most likely tokens; 0 means all.
    top_p : float
        Sample among the most likely tokens that together have this probability, in (0, 1].
    seed : int or None
        Makes this request's sampling repeatable, whatever else is in the batch.
    stop : tuple of str
        End before the first of these strings; it is not part of the text.
    ignore_eos : bool
        Go on to `max_tokens` whatever the model says; benchmarks need equal lengths.
    n : int
        How many answers to give, each drawn for itself.
    logprobs : int or None
        Tell each token's log-probability in the model's own distribution, and those of this many
        likeliest ones beside it; None tells nothing.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        checks = [
            (self.max_tokens >= 1, f"max_tokens={self.max_tokens} must be at least 1"),
            (self.temperature >= 0, f"temperature={self.temperature} must not be negative"),
            (self.top_k >= 0, f"top_k={self.top_k} must not be negative; 0 means all tokens"),
            (0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]"),
            (self.n >= 1, f"n={self.n} must be at least 1"),
            (self.n == 1 or self.temperature > 0, f"n={self.n} greedy answers would all be the same"),
            (self.logprobs is None or self.logprobs >= 0, f"logprobs={self.logprobs} must not be negative"),
            (all(self.stop), "an empty stop string would end every answer at once"),
        ]
        for fine, message in checks:
            if not fine:
                raise InvalidSetting(message)

    def updated(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed; an unknown field is refused by name, never dropped."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise UnknownName("parameter", name, known)
        return replace(self, **changes)


@dataclass(slots=True)
class Request:
    """A prompt on its way to an answer.

    Attributes
    ----------
    request_id : str
        Unique among the requests in flight; what `abort` takes.
    prompt : str or sequence of int
        Text, or token ids of the engine's own tokenizer.
    params : SamplingParams
    timeline : Timeline
        Stamped by whoever holds the request.
    priority : float
        Higher goes first, where the engine's scheduling policy looks at it.
    timeout : float or None
        Seconds from the engine's receiving it; what is not finished by then ends with "deadline".
    """

    request_id: str
    prompt: str | Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    timeline: Timeline = field(default_factory=Timeline)
    priority: float = 0.0
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely a token was in the model's own distribution, and which were the likeliest.

    Attributes
    ----------
    chosen : float
        Natural logarithm of the probability of the token that was chosen.
    likeliest : tuple of (int, float)
        Token ids and their log-probabilities, likeliest first; as many as were asked for.
    """

    chosen: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one answer, at the moment it was known.

    Attributes
    ----------
    index : int
        Position among the generated tokens, from 0; for an event without a token (an aborted
        request), the number of tokens that were generated.
    token_id : int or None
        None only in the last event of a request that ends without a new token; `UNKNOWN_TOKEN` where the
        engine's capabilities say that it knows no ids.
    text : str
        What this token adds to the text. Empty while a multi-byte character is incomplete or a stop
        string may be beginning; the concatenation of all is the completion's text.
    time : float
        Seconds of `time.perf_counter` (or of the simulated clock).
    finish_reason : FinishReason or None
        Set on the last event of each choice only.
    choice : int
        Which of the request's `n` answers, from 0.
    logprob : Logprob or None
        Where the request asked for it and there is a token.
    """

    request_id: str
    index: int
    token_id: int | None
    text: str
    time: float
    finish_reason: FinishReason | None = None
    choice: int = 0
    logprob: Logprob | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: the collected stream of one request.

    Attributes
    ----------
    logprobs : tuple of Logprob
        One per token, if asked for.
    alternatives : tuple of Completion
        The other answers, where the request asked for more than one.
    """

    request_id: str
    prompt_tokens: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    timeline: Timeline
    token_times: tuple[float, ...]
    logprobs: tuple[Logprob, ...] = ()
    alternatives: tuple[Completion, ...] = ()
