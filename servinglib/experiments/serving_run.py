"""A workload through the real continuous-batching engine, told in the terms of the simulator.

`serve` sends each request when it is due and waits for all answers; `fit_step_time` reads from the
engine's own step records the four numbers with which `simulations.continuous` predicts another run.
Lessons 05 to 08 stand on these two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import nnls

from servinglib.bench.load import run_open_loop
from servinglib.engines.base import complete
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.continuous.statistics import StepRecord
from servinglib.engines.streams import EventStream
from servinglib.errors import InvalidSetting
from servinglib.policies.step_time import StepTime
from servinglib.request import Completion, Request, SamplingParams, Timeline
from servinglib.workload import RequestSpec, token_prompts

FIT_ROUNDS = 6  # the weights have settled by then


@dataclass(frozen=True, slots=True)
class ServingRun:
    """What became of a workload.

    Attributes
    ----------
    completions : tuple of Completion
        One per request, in order of arrival.
    steps : tuple of StepRecord
        The engine's steps during the run.
    """

    completions: tuple[Completion, ...]
    steps: tuple[StepRecord, ...]

    @property
    def timelines(self) -> tuple[Timeline, ...]:
        """One per request; `servinglib.metrics` takes them."""
        return tuple(c.timeline for c in self.completions)

    @property
    def latencies(self) -> np.ndarray:
        """Seconds from the intended arrival to the whole answer, by request, shape (requests,)."""
        return np.array([t.total for t in self.timelines]) / 1e9

    @property
    def ttft(self) -> np.ndarray:
        """Seconds from the intended arrival to the first token, by request, shape (requests,)."""
        return np.array([t.first_token - t.arrival for t in self.timelines]) / 1e9  # type: ignore[operator]


class Submitting(Protocol):
    """An engine with continuous batching."""

    def submit(self, request: Request) -> EventStream:
        """Start a request from a running event loop."""
        ...

    def now(self) -> float:
        """Seconds on its clock."""
        ...


async def ask(engine: Submitting, request: Request) -> Completion:
    """Have a request answered, whose prompt is token ids, and collect its events."""
    request.timeline.stamp("received", engine.now())
    events = [event async for event in engine.submit(request)]
    return complete(request, len(request.prompt), events, engine.now())


async def serve(
    engine: ContinuousEngine,
    workload: Sequence[RequestSpec],
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    priorities: Sequence[float] | None = None,
    seed: int = 0,
) -> ServingRun:
    """Send a workload through the engine, open loop; every answer has exactly the length that was asked.

    Parameters
    ----------
    engine : ContinuousEngine
    workload : sequence of RequestSpec
        In order of arrival.
    prompts : sequence of sequence of int, optional
        Token ids; random ones of the right lengths unless given.
    priorities : sequence of float, optional
    seed : int
        Of the random prompts.

    Raises
    ------
    ServingError
        The first one, if a request was refused or failed.
    """
    if prompts is None:
        prompts = token_prompts([spec.prompt_tokens for spec in workload], engine.vocabulary, seed=seed)
    requests = [
        Request(f"serve-{i}", prompt, SamplingParams(spec.output_tokens, ignore_eos=True))
        for i, (spec, prompt) in enumerate(zip(workload, prompts, strict=True))
    ]
    for request, priority in zip(requests, priorities or (), strict=False):
        request.priority = priority

    start = engine.now()
    outcomes = await run_open_loop(lambda i: ask(engine, requests[i]), [spec.arrival for spec in workload])
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    completions = tuple(o.result for o in outcomes if o.result is not None)
    return ServingRun(completions, tuple(s for s in engine.steps if s.start >= start))


def serve_now(engine: ContinuousEngine, workload: Sequence[RequestSpec], **options: object) -> ServingRun:
    """`serve` from a program without an event loop."""
    return asyncio.run(serve(engine, workload, **options))  # type: ignore[arg-type]


def fit_step_time(steps: Sequence[StepRecord]) -> StepTime:
    """τ = a + bn + cK + dP by non-negative least squares over measured steps.

    Each step is weighed by 1/τ, so that short decode steps count as much as long prefills; and τ here is
    the law's, found in a few rounds. With the measured τ a step that something held up would weigh less
    than one that went well, and the law would promise 5 to 15% too much speed.

    Raises
    ------
    InvalidSetting
        With fewer than 20 steps, which four numbers would fit too well.
    """
    if len(steps) < 20:
        raise InvalidSetting(f"{len(steps)} steps are too few to fit four numbers to; run at least 20")
    taken = np.array([s.end - s.start for s in steps])
    parts = np.array([(1, s.sequences, s.kv_tokens, s.prefill_tokens) for s in steps], float)
    scale = parts.max(0)
    scale[scale == 0] = 1
    law, found = np.full(len(steps), taken.mean()), np.zeros(4)
    for _ in range(FIT_ROUNDS):
        found, _ = nnls(parts / scale / law[:, None], taken / law)
        law = parts / scale @ found
    a, b, c, d = found / scale
    return StepTime(a=a, b=b, c=c, d=d)


def drift(steps: Sequence[StepRecord], law: StepTime) -> float:
    """How much longer the steps took than the law says, as a fraction: 0.1 is a tenth."""
    expected = sum(law(s.sequences, s.kv_tokens, s.prefill_tokens) for s in steps)
    return sum(s.end - s.start for s in steps) / expected - 1
