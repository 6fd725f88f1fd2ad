"""What comes to the server: arrival times, lengths and prompts.

A workload is a guest list, written before the doors open: each guest has an hour of arrival, a
prompt of so many tokens and an answer of so many. Theory, simulation and a real engine get the same
list, so whatever differs between them is not the guests. Lesson 01 uses Poisson arrivals.

Three random streams, one each for arrivals, prompt lengths and output lengths, come from one seed.
Another law of lengths therefore leaves the arrivals as they are, and another rate only stretches
them: two settings are compared on the same customers (common random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from servinglib.errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request to come.

    Attributes
    ----------
    arrival : float
        When it is meant to be sent, in seconds from the start of the run.
    prompt_tokens, output_tokens : int
        Lengths, each at least 1.
    """

    arrival: float
    prompt_tokens: int
    output_tokens: int


Workload = tuple[RequestSpec, ...]


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise InvalidSetting(message)


class LengthLaw(Protocol):
    """Anything that draws lengths in tokens."""

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every length is `tokens`."""

    tokens: int

    def __post_init__(self) -> None:
        _check(self.tokens >= 1, f"a length of {self.tokens} tokens is not possible; use at least 1")

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` lengths, shape (count,); draws nothing."""
        return np.full(count, self.tokens)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every whole number of tokens from `low` to `high`, both included, is equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check(1 <= self.low <= self.high, f"lengths from {self.low} to {self.high} need 1 <= low <= high")

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` lengths, shape (count,)."""
        return rng.integers(self.low, self.high, size=count, endpoint=True)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Many short, a few very long: the usual shape of real prompts and answers.

    Attributes
    ----------
    median : float
        Half the lengths lie below it, in tokens.
    sigma : float
        Standard deviation of the logarithm; the mean is median * exp(sigma**2 / 2) before cutting.
    longest : int
        Longer draws are cut to this many tokens (a context has an end).
    """

    median: float
    sigma: float
    longest: int

    def __post_init__(self) -> None:
        _check(
            1 <= self.median <= self.longest and self.sigma >= 0,
            f"median={self.median}, sigma={self.sigma}, longest={self.longest} need "
            f"1 <= median <= longest and sigma >= 0",
        )

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` lengths, shape (count,), rounded to whole tokens and at least 1."""
        draws = self.median * np.exp(self.sigma * rng.standard_normal(count))
        return np.clip(np.rint(draws), 1, self.longest).astype(np.int64)


def poisson(
    rate: float,
    *,
    count: int | None = None,
    duration: float | None = None,
    seed: int,
    prompts: LengthLaw = Fixed(64),
    outputs: LengthLaw = Fixed(16),
) -> Workload:
    """Arrivals that know nothing of each other: gaps are exponential with mean 1/rate.

    Parameters
    ----------
    rate : float
        Mean arrivals per second.
    count, duration : int or float
        Give exactly one: how many requests, or for how many seconds they come.
    seed : int
        The same seed gives the same guests; at another rate, the same guests closer or farther apart.
    prompts, outputs : LengthLaw
        Laws of the prompt and output lengths.
    """
    arrivals, *lengths = np.random.SeedSequence(seed).spawn(3)
    unit_times = _unit_poisson(np.random.default_rng(arrivals), _units(rate, count, duration), count)
    return _workload(unit_times / rate, lengths, prompts, outputs)


def constant(
    rate: float,
    *,
    count: int | None = None,
    duration: float | None = None,
    seed: int,
    prompts: LengthLaw = Fixed(64),
    outputs: LengthLaw = Fixed(16),
) -> Workload:
    """Arrivals like a clock's ticks, 1/rate seconds apart, the first at 0; parameters as for `poisson`."""
    units = _units(rate, count, duration)
    _, *lengths = np.random.SeedSequence(seed).spawn(3)
    ticks = np.arange(count if count is not None else math.ceil(units))
    return _workload(ticks / rate, lengths, prompts, outputs)


def token_prompts(lengths: Sequence[int], vocabulary: int, *, seed: int) -> list[list[int]]:
    """Random token ids, one prompt of each of the given lengths.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each prompt, such as `[r.prompt_tokens for r in workload]`.
    vocabulary : int
        Ids are drawn from 0 to vocabulary - 1. Pass less than a model's vocabulary where its last
        ids are special tokens.
    seed : int
        With the same seed, more lengths leave the first prompts as they were.
    """
    _check(vocabulary >= 1, f"vocabulary={vocabulary} must be at least 1")
    _check(all(n >= 1 for n in lengths), f"the shortest prompt would have {min(lengths, default=1)} tokens")
    ids = np.random.default_rng(seed).integers(vocabulary, size=sum(lengths)).tolist()
    ends = np.cumsum(lengths, dtype=int).tolist()
    return [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _units(rate: float, count: int | None, duration: float | None) -> float:
    """The length of the run in mean gaps (infinite when a count ends it)."""
    _check(0 < rate < math.inf, f"rate={rate} must be a positive number of requests per second")
    _check((count is None) != (duration is None), "give either count or duration, not both and not neither")
    _check(count is None or count >= 1, f"count={count} must be at least 1")
    _check(duration is None or 0 < duration < math.inf, f"duration={duration} must be positive")
    return math.inf if duration is None else rate * duration


def _unit_poisson(rng: np.random.Generator, units: float, count: int | None) -> np.ndarray:
    if count is not None:
        return np.cumsum(rng.standard_exponential(count))
    gaps = rng.standard_exponential(0)
    while gaps.sum() < units:
        gaps = np.append(gaps, rng.standard_exponential(1024))
    times = np.cumsum(gaps)
    return times[times < units]


def _workload(
    arrivals: np.ndarray, seeds: Sequence[np.random.SeedSequence], prompts: LengthLaw, outputs: LengthLaw
) -> Workload:
    lengths = [
        law.sample(np.random.default_rng(seed), len(arrivals)).tolist()
        for law, seed in zip((prompts, outputs), seeds, strict=True)
    ]
    return tuple(RequestSpec(*fields) for fields in zip(arrivals.tolist(), *lengths, strict=True))
