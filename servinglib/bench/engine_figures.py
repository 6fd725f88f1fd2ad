"""What a comparison of engines is told and what it finds: figures by engine, batch size and round.

The judges' sheets: a line for each tasting as it was, so that whoever doubts a mean can take another one.
Filled in by `engine_comparison.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from servinglib.bench.gpu_report import GpuReport
from servinglib.engines.capabilities import EngineCounters
from servinglib.errors import InvalidSetting
from servinglib.statistics import Interval, mean_interval

SHORT = 4  # tokens of an answer that only warms up, or whose first token is all that counts


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    batch_sizes : sequence of int
        Numbers of requests that are handed over at once.
    runs : int
        Rounds in which every engine does everything once.
    prompt_tokens, output_tokens : int
        Of each request; with a shared prefix the prompt is longer by that.
    shared_prefix : int
        Tokens; 0 leaves that part out.
    """

    batch_sizes: Sequence[int] = (1, 4, 16, 64)
    runs: int = 5
    prompt_tokens: int = 27
    output_tokens: int = 64
    shared_prefix: int = 256

    def __post_init__(self) -> None:
        sizes = list(self.batch_sizes)
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise InvalidSetting(
                f"batch sizes {sizes} must be different whole numbers from 1, such as 1,4,16"
            )
        for name in ("runs", "prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name}={getattr(self, name)} must be at least 1")
        if self.shared_prefix < 0:
            raise InvalidSetting(f"shared_prefix={self.shared_prefix} must not be negative; 0 leaves it out")

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and answer."""
        sharing = self.shared_prefix + self.prompt_tokens + SHORT if self.shared_prefix else 0
        return max(self.prompt_tokens + max(self.output_tokens, SHORT), sharing)


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch; seconds from the moment it was handed over.

    Attributes
    ----------
    seconds : float
        To the last answer.
    first_tokens, latencies : list of float
        By request.
    tokens : int
        Of all answers.
    joules_per_token : float or None
        Of all GPUs; None without one, or if it does not tell.
    """

    seconds: float
    first_tokens: list[float]
    latencies: list[float]
    tokens: int
    joules_per_token: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens by second."""
        return self.tokens / self.seconds

    @property
    def requests_per_s(self) -> float:
        """Answers by second."""
        return len(self.latencies) / self.seconds

    @property
    def ttft(self) -> float:
        """Seconds to the first token, the median request's."""
        return median(self.first_tokens)

    @property
    def latency(self) -> float:
        """Seconds to the whole answer, the median request's."""
        return median(self.latencies)


@dataclass(frozen=True, slots=True)
class PrefixTurn:
    """Requests one after another; `alone` and `sharing` are the median seconds to the first token.

    `hit_rate` is the share of the sharing requests' prompt tokens that were found in the prefix cache; None
    if the engine doesn't tell.
    """

    alone: float
    sharing: float
    hit_rate: float | None


@dataclass(slots=True)
class EngineFigures:
    """What one engine did.

    Attributes
    ----------
    options : dict
        What it was told, secrets hidden.
    package : str
        Name and version of what computes.
    batching : str
        "static" or "continuous".
    load_seconds : float
    turns : dict of int to list of Turn
        By batch size, a turn per round.
    prefixes : list of PrefixTurn
        By round.
    peak_memory_gib : float
        Resident memory of all its processes (`EngineInProcess.peak_memory`).
    gpu_memory_gib : float or None
        The most that it added to what the GPUs held.
    counters : EngineCounters
        Its own, at the end.
    """

    options: dict[str, Any]
    package: str
    batching: str
    load_seconds: float
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    prefixes: list[PrefixTurn] = field(default_factory=list)
    peak_memory_gib: float = 0.0
    gpu_memory_gib: float | None = None
    counters: EngineCounters = field(default_factory=EngineCounters)

    def values(self, quantity: str, size: int) -> list[float]:
        """A property of `Turn` by round."""
        return [getattr(turn, quantity) for turn in self.turns[size]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of a run; `birth` says where, when and how it was made."""

    model: str
    device: str
    dtype: str
    plan: Plan
    engines: dict[str, EngineFigures]
    gpu: GpuReport
    birth: dict[str, Any]

    def ratios(self, quantity: str, mine: str, other: str, size: int) -> list[float]:
        """How many times another engine's figure this one's is, in each round."""
        pairs = zip(
            self.engines[mine].values(quantity, size), self.engines[other].values(quantity, size), strict=True
        )
        return [own / others for own, others in pairs]

    def ratio(self, quantity: str, mine: str, other: str, size: int) -> Interval:
        """The same over all rounds."""
        return geometric_interval(self.ratios(quantity, mine, other, size))


def interval(values: Sequence[float]) -> Interval:
    """The mean with Student's t interval; of one value nothing bounds it."""
    if len(values) == 1:
        return Interval(values[0], -np.inf, np.inf)
    return mean_interval(values)


def geometric_interval(ratios: Sequence[float]) -> Interval:
    """The geometric mean of ratios with its interval: twice and half as fast cancel out."""
    logs = interval(np.log(ratios).tolist())
    return Interval(*(float(np.exp(edge)) for edge in (logs.value, logs.low, logs.high)))
