"""The same few questions to any engine, seen from outside only: what does a step cost, and what follows from it?

A visitor can't look under the bonnet of a hired car, but can drive it, empty and full, with a stopwatch. Two
drives give the law of a step, from nothing but the times at which tokens came; the law predicts a third
drive, a backlog of mixed lengths, by theory and by simulation, before it is driven. So one prediction serves
our engine, somebody else's and a server far away. Part of lesson 09.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from servinglib.engines.base import Engine
from servinglib.errors import InvalidSetting
from servinglib.experiments.batching_curve import answered
from servinglib.experiments.boarding import make_requests, simulate_backlog
from servinglib.policies.step_time import StepTime
from servinglib.request import Completion
from servinglib.workload import RequestSpec


@dataclass(frozen=True, slots=True)
class Drive:
    """What was seen of requests that were handed over together.

    Attributes
    ----------
    together : int
        Requests.
    first : float
        Seconds until the last of them had its first token.
    gap : float
        Mean seconds from a token to the next.
    seconds : float
        Until the last token of all.
    """

    together: int
    first: float
    gap: float
    seconds: float


def drive(engine: Engine, together: int, prompt_tokens: int, output_tokens: int) -> Drive:
    """Hand over equal requests at once; at least two tokens each."""
    specs = [RequestSpec(0.0, prompt_tokens, output_tokens)] * together
    requests = make_requests(specs, "drive")
    start = engine.now()
    results = engine.generate_batch(requests)
    answered(results)
    times = [result.token_times for result in results if isinstance(result, Completion)]
    return Drive(
        together,
        max(each[0] for each in times) - start,
        float(np.mean([(each[-1] - each[0]) / (len(each) - 1) for each in times])),
        max(each[-1] for each in times) - start,
    )


def learn_step_time(
    engine: Engine, sizes: Sequence[int] = (1, 4, 16), prompt_tokens: int = 16, repeats: int = 3
) -> tuple[StepTime, Mapping[int, float]]:
    """The law of a step from what a client sees, and the median gap (s) at each number of requests at once.

    Gaps give a + bn, and what the first token takes beyond a gap gives d, the price of a prompt token. The
    growth with context, c, is left out: answers here are short.
    """
    if len(set(sizes)) < 2:
        raise InvalidSetting(f"sizes={list(sizes)} must hold two different numbers of requests, for a line")
    drives = [
        drive(engine, size, prompt_tokens, 24)
        for _ in range(repeats + 1)  # the first warms up
        for size in sizes
    ][len(sizes) :]
    gaps = {size: median(d.gap for d in drives if d.together == size) for size in sizes}
    weights = 1 / np.array(list(gaps.values()))
    b, a = np.polyfit(list(gaps), list(gaps.values()), 1, w=weights)
    extra = [(d.first - gaps[d.together]) / (d.together * prompt_tokens) for d in drives]
    return StepTime(a=max(float(a), 0.0), b=max(float(b), 0.0), d=max(median(extra), 0.0)), gaps


@dataclass(frozen=True, slots=True)
class BacklogRates:
    """Output tokens/s of one backlog, three times."""

    theory: float
    simulated: float
    measured: float


def backlog(
    count: int, seats: int, longest: int, prompt_tokens: int = 16, seed: int = 0
) -> list[RequestSpec]:
    """Requests that are all there at once, with answers of 1 to `longest` tokens, uniformly; whole coaches of them."""
    if count % seats:
        raise InvalidSetting(f"count={count} must be a multiple of seats={seats}")
    outputs = np.random.default_rng(seed).integers(1, longest, count, endpoint=True)
    return [RequestSpec(0.0, prompt_tokens, int(n)) for n in outputs]


def rates(engine: Engine, law: StepTime, work: Sequence[RequestSpec], seats: int) -> BacklogRates:
    """Predict a backlog by the law, then have it done: in coaches of `seats`, or all at once if the engine can."""
    static = engine.capabilities.batching == "static"
    tokens = sum(spec.output_tokens for spec in work)
    measured = _take(engine, work, seats if static else len(work))
    if static:
        expected, simulated = expected_coach_seconds(work, law, seats), _coaches(work, law, seats)
    else:
        expected = expected_lift_seconds(work, law, seats)
        simulated = simulate_backlog(work, law, max_num_seqs=seats).seconds
    return BacklogRates(tokens / expected, tokens / simulated, tokens / measured)


def expected_coach_seconds(work: Sequence[RequestSpec], law: StepTime, seats: int) -> float:
    """Seconds in static batches, by the mean of the longest of `seats` uniform answers, Lb/(b+1) + 1/2.

    Every step is taken to be full, as its rows are computed to the end; the lengths are uniform on 1..L.
    """
    longest = max(spec.output_tokens for spec in work)
    steps = longest * seats / (seats + 1) + 0.5
    prompts = sum(spec.prompt_tokens for spec in work)
    return len(work) / seats * steps * law(seats, 0, 0) + prompts * law.d


def expected_lift_seconds(work: Sequence[RequestSpec], law: StepTime, seats: int) -> float:
    """Seconds with continuous batching while there is enough to do: every step has `seats` tokens of use."""
    tokens = sum(spec.output_tokens for spec in work)
    return tokens / seats * law(seats, 0, 0) + sum(spec.prompt_tokens for spec in work) * law.d


def _take(engine: Engine, work: Sequence[RequestSpec], size: int) -> float:
    requests = make_requests(work, "backlog")
    start = engine.now()
    for i in range(0, len(requests), size):
        answered(engine.generate_batch(requests[i : i + size]))
    return engine.now() - start


def _coaches(work: Sequence[RequestSpec], law: StepTime, seats: int) -> float:
    """Coach after coach, each as long as its longest answer; who is done is computed along."""
    longest = [max(s.output_tokens for s in work[i : i + seats]) for i in range(0, len(work), seats)]
    return sum(longest) * law(seats, 0, 0) + sum(spec.prompt_tokens for spec in work) * law.d
