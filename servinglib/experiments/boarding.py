"""Who gets on when? Requests in coaches, at a ski lift, behind a long prompt, and short of beds.

A coach leaves with those who are there and comes back when the last of them has seen enough; a ski lift
takes a passenger whenever a seat goes by. Each function here puts one workload through one way of
boarding, in the simulator and on the real engine, and tells both in the same terms. Lesson 06 lays them
side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from servinglib.bench.load import run_open_loop
from servinglib.engines.base import Engine
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.experiments.batching_curve import answered, completed
from servinglib.experiments.serving_run import serve
from servinglib.policies.batching import DynamicBatching
from servinglib.policies.step_time import StepTime
from servinglib.request import Request, SamplingParams, Timeline
from servinglib.server.batch_server import BatchInferenceServer
from servinglib.workload import RequestSpec, Workload, token_prompts
from simulations.continuous import simulate_continuous
from simulations.serving import simulate_batching

PROMPT_VOCABULARY = 256


def make_requests(workload: Sequence[RequestSpec], name: str) -> list[Request]:
    """One request per spec, with a random prompt and an answer of exactly the length that was asked."""
    prompts = token_prompts([spec.prompt_tokens for spec in workload], PROMPT_VOCABULARY, seed=0)
    return [
        Request(f"{name}-{i}", prompt, SamplingParams(spec.output_tokens, ignore_eos=True))
        for i, (spec, prompt) in enumerate(zip(workload, prompts, strict=True))
    ]


def in_batches(engine: Engine, workload: Sequence[RequestSpec], seats: int) -> float:
    """Seconds that an engine takes for a backlog, batch after batch, each as long as its longest answer."""
    requests = make_requests(workload, "batch")
    start = engine.now()
    for i in range(0, len(requests), seats):
        answered(engine.generate_batch(requests[i : i + seats]))
    return engine.now() - start


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a backlog cost: requests that are all there at once, so nothing depends on the clock.

    Attributes
    ----------
    seconds : float
        From the first step to the last token.
    steps, preemptions : int
    recomputed : int
        Tokens that were computed a second time, since their sequence had lost its blocks.
    """

    seconds: float
    steps: int
    preemptions: int
    recomputed: int


def run_backlog(engine: ContinuousEngine, workload: Sequence[RequestSpec]) -> Backlog:
    """All requests handed to the engine in one piece."""
    start = engine.now()
    answered(engine.generate_batch(make_requests(workload, "backlog")))
    end = engine.now()
    steps = [s for s in engine.steps if s.start >= start]
    read = sum(s.prefill_tokens for s in steps) - sum(spec.prompt_tokens for spec in workload)
    return Backlog(end - start, len(steps), sum(s.preemptions for s in steps), read)


def simulate_backlog(workload: Sequence[RequestSpec], step_time: StepTime, **options: Any) -> Backlog:
    """The same on paper; options as for `simulate_continuous`."""
    at_once = [RequestSpec(0.0, spec.prompt_tokens, spec.output_tokens) for spec in workload]
    run = simulate_continuous(at_once, step_time, **options)
    read = sum(s.prefill_tokens for s in run.steps) - sum(spec.prompt_tokens for spec in workload)
    return Backlog(run.steps[-1].end, len(run.steps), int(run.preemptions.sum()), read)


class CoachTime:
    """Seconds of a batch from those who ride in it; batches take the workload in order of arrival.

    Each step computes the answers that are not finished yet, and the batch ends with the longest.
    """

    def __init__(self, workload: Sequence[RequestSpec], step_time: StepTime) -> None:
        self._next, self._step_time = iter(workload), step_time

    def __call__(self, size: int) -> float:
        """Seconds that the next `size` requests of the workload take together."""
        members = [next(self._next) for _ in range(size)]
        prompts, outputs = (
            np.array([getattr(m, name) for m in members]) for name in ("prompt_tokens", "output_tokens")
        )
        seconds = 0.0
        for done in range(outputs.max()):
            left = outputs > done
            read = int(prompts.sum()) if not done else 0
            seconds += self._step_time(int(left.sum()), int((prompts[left] + done).sum()), read)
        return seconds


def simulate_coaches(workload: Sequence[RequestSpec], step_time: StepTime, seats: int) -> list[Timeline]:
    """An open-loop workload through dynamic batching: an idle server leaves with whoever waits."""
    rule = DynamicBatching(seats, max_wait_time=0)
    run = simulate_batching([s.arrival for s in workload], rule, CoachTime(workload, step_time))
    return list(run.timelines)


async def serve_coaches(engine: Engine, workload: Sequence[RequestSpec], seats: int) -> list[Timeline]:
    """The same through the real batching server and any engine."""
    requests = make_requests(workload, "coach")
    async with BatchInferenceServer(
        engine, max_batch_size=seats, max_wait_time=0, max_queue_size=len(requests)
    ) as server:
        outcomes = await run_open_loop(
            lambda i: server.predict(requests[i]), [spec.arrival for spec in workload]
        )
    return completed(outcomes)


@dataclass(frozen=True, slots=True)
class Interruption:
    """What a long prompt did to others and what it got.

    Attributes
    ----------
    gap : float
        The longest time between two tokens of anybody else, in seconds, once the prompt had come.
    ttft : float
        The long prompt's own time to first token, in seconds.
    ends : tuple of float
        When the others' steps ended since it came, in seconds.
    """

    gap: float
    ttft: float
    ends: tuple[float, ...]

    @classmethod
    def of(cls, others: Sequence[Sequence[float]], prompt: Timeline) -> Interruption:
        """From the token times of the others (s), and the timeline of the prompt."""
        stamps = prompt.arrival, prompt.first_token
        arrival, first = (ns / 1e9 for ns in stamps if ns is not None)
        gaps = [b - a for times in others for a, b in pairwise(times) if b > arrival]
        ends = sorted({time - arrival for times in others for time in times})
        return cls(max(gaps), first - arrival, tuple(ends))


def long_prompt_among(chats: int, prompt_tokens: int, arrival: float = 0.05) -> Workload:
    """Chats that are generating when a long prompt comes; the long prompt is the last of the workload."""
    return (*[RequestSpec(0.0, 16, 150)] * chats, RequestSpec(arrival, prompt_tokens, 4))


def mixed_lengths() -> Workload:
    """For a fit: batches from eight down to one, and prompts of several lengths among them."""
    chats = [RequestSpec(0.0, 16, 30 * i) for i in range(1, 9)]
    return (*chats, *[RequestSpec(0.04 + 0.05 * i, p, 2) for i, p in enumerate((60, 150, 300, 600, 1200))])


async def interrupt(engine: ContinuousEngine, workload: Workload) -> Interruption:
    """Send the chats and the long prompt to the engine."""
    run = await serve(engine, workload)
    return Interruption.of([c.token_times for c in run.completions[:-1]], run.timelines[-1])


def simulate_interruption(workload: Workload, step_time: StepTime, **options: Any) -> Interruption:
    """The same on paper; options as for `simulate_continuous`."""
    run = simulate_continuous(workload, step_time, **options)
    chats = range(len(workload) - 1)
    return Interruption.of([[s.end for s in run.steps if i in s.members] for i in chats], run.timelines[-1])
