"""A continuous-batching server in virtual time, token step by token step.

The ski lift of `policies.stepping`, on paper: the planner is the engine's own, so who gets on at which
turn of the wheel, who is sent back when blocks run out and whose prompt is cut into pieces is not
modelled but decided by the same code. Replaced are the clock, by SimPy's, and the forward pass, by the
four numbers of a `StepTime`. What a token says never matters here; an answer ends at its length.

    arrival ──> planner.add          planner.plan ──> wait τ = a + bn + cK + dP ──> planner.commit
                                          ^                                              │
                                          └──────────── next step ──── finished? remove ─┘
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import simpy

from servinglib.cache.block_pool import BlockPool
from servinglib.errors import InvalidSetting
from servinglib.policies.length_prediction import LengthPredictor
from servinglib.policies.scheduling import SchedulingPolicy
from servinglib.policies.sequence import SequenceState, StepPlan
from servinglib.policies.stepping import StepPlanner
from servinglib.request import Timeline
from servinglib.workload import RequestSpec

UNLIMITED = 2**40
"""Blocks of a KV cache that never fills up."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step that was computed.

    Attributes
    ----------
    start, end : float
        In seconds.
    running : int
        Sequences in it.
    kv_tokens, prefill_tokens : int
        Tokens of KV cache read, and prompt tokens (or recomputed ones) read.
    padding : int
        Tokens that would be read in vain if the decoding ones were padded to their longest.
    members : tuple of int
        Indices of the requests, decoding ones first.
    """

    start: float
    end: float
    running: int
    kv_tokens: int
    prefill_tokens: int
    padding: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ContinuousRun:
    """What happened, in the terms in which a real run is told.

    Attributes
    ----------
    timelines : tuple of Timeline
        One per request, in order of arrival; `servinglib.metrics` takes them.
    steps : tuple of Step
    preemptions, cached_tokens : ndarray of int, shape (requests,)
        How often each request had to go back, and how much of its prompt it found in the cache.
    """

    timelines: tuple[Timeline, ...]
    steps: tuple[Step, ...]
    preemptions: np.ndarray
    cached_tokens: np.ndarray

    @property
    def latencies(self) -> np.ndarray:
        """Seconds from arrival to the end of the answer, by request, shape (requests,)."""
        return np.array([t.total for t in self.timelines]) / 1e9


def simulate_continuous(
    workload: Sequence[RequestSpec],
    step_time: Callable[[int, int, int], float],
    *,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 2048,
    max_prefill_tokens: int | None = None,
    chunked_prefill: bool = True,
    kv_blocks: int = UNLIMITED,
    block_size: int = 16,
    block_pool: type[BlockPool] = BlockPool,
    order: SchedulingPolicy | None = None,
    predictor: LengthPredictor | None = None,
    block_keys: Sequence[Sequence[Hashable]] | None = None,
    priorities: Sequence[float] | None = None,
) -> ContinuousRun:
    """Send a workload through one continuous-batching server and say what became of each request.

    Parameters
    ----------
    workload : sequence of RequestSpec
        In order of arrival.
    step_time : StepTime or callable
        Seconds of a step from what it holds.
    max_num_seqs, max_num_batched_tokens, chunked_prefill, order
        As for `StepPlanner`; an order that remembers what it served is used up by one run.
    max_prefill_tokens : int, optional
        Most prompt tokens in a step; as many as fit unless given.
    kv_blocks, block_size : int
        The KV cache; without limit unless given.
    block_pool : type of BlockPool
        Keeps its books.
    predictor : LengthPredictor, optional
        Guesses the length of each answer when its request comes, for an order that looks at it.
    block_keys : sequence of sequence of hashable, optional
        For each request, what the full blocks of its prompt contain; equal keys are computed once.
    priorities : sequence of float, optional
        For each request.

    Raises
    ------
    InvalidRequest
        Before anything is simulated, if one request could never be served.
    """
    for name, values in (("block_keys", block_keys), ("priorities", priorities)):
        if values is not None and len(values) != len(workload):
            raise InvalidSetting(f"{len(values)} {name} for {len(workload)} requests; give one for each")
    if any(later.arrival < earlier.arrival for earlier, later in pairwise(workload)):
        raise InvalidSetting("the arrivals are not in ascending order; sort them")
    sequences = [
        SequenceState(
            index,
            spec.prompt_tokens,
            spec.output_tokens,
            spec.arrival,
            priorities[index] if priorities else 0.0,
            block_keys[index] if block_keys else (),
        )
        for index, spec in enumerate(workload)
    ]
    planner = StepPlanner(
        block_pool(kv_blocks, block_size),
        order,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_prefill_tokens=max_num_batched_tokens if max_prefill_tokens is None else max_prefill_tokens,
        chunked_prefill=chunked_prefill,
    )
    for sequence in sequences:
        planner.check(sequence)
    env = simpy.Environment()
    server = _Server(env, planner, step_time, predictor, len(workload))
    env.process(server.receive(sequences))
    env.process(server.serve())
    env.run()
    planner.check_integrity()
    return ContinuousRun(
        tuple(server.timelines),
        tuple(server.steps),
        np.array([s.num_preemptions for s in sequences], int),
        np.array([s.num_cached_tokens for s in sequences], int),
    )


@dataclass(slots=True)
class _Server:
    """The engine loop and the door in front of it."""

    env: simpy.Environment
    planner: StepPlanner
    step_time: Callable[[int, int, int], float]
    predictor: LengthPredictor | None
    num_requests: int
    timelines: list[Timeline] = field(init=False)
    steps: list[Step] = field(default_factory=list)
    arrived: simpy.Event = field(init=False)

    def __post_init__(self) -> None:
        self.timelines = [Timeline() for _ in range(self.num_requests)]
        self.arrived = self.env.event()

    def receive(self, sequences: Sequence[SequenceState]) -> Generator[simpy.Event, Any, None]:
        """Let each request in at its time."""
        for sequence in sequences:
            if sequence.arrival > self.env.now:
                yield self.env.timeout(sequence.arrival - self.env.now)
            self._stamp(sequence, "arrival", "sent", "received")
            self.planner.add(sequence)
            if self.predictor:
                sequence.predicted_output_tokens = self.predictor.predict(sequence)
            if not self.arrived.triggered:
                self.arrived.succeed()

    def serve(self) -> Generator[simpy.Event, Any, None]:
        """Step after step while there is work, and asleep while there is none."""
        while True:
            plan = self.planner.plan(self.env.now)
            if not plan.scheduled:
                self.arrived = self.env.event()
                yield self.arrived
                continue
            start, content = self.env.now, (len(plan.scheduled), plan.num_kv_tokens, plan.num_prefill_tokens)
            for sequence in plan.admitted:
                self._stamp(sequence, "scheduled")
            yield self.env.timeout(self.step_time(*content))
            members = tuple(s.sequence.item for s in plan.scheduled)
            self.steps.append(Step(start, self.env.now, *content, _padding(plan), members))
            for sequence in self.planner.commit(plan):
                self._answer(sequence)

    def _answer(self, sequence: SequenceState) -> None:
        """A sequence got a token: its first one, its last one, or one in between."""
        if sequence.num_output_tokens == 1:
            self._stamp(sequence, "first_token")
        if sequence.num_output_tokens == sequence.max_tokens:
            self._stamp(sequence, "finished", "completed")
            self.planner.remove(sequence)
            if self.predictor:
                self.predictor.observe(sequence)

    def _stamp(self, sequence: SequenceState, *stages: str) -> None:
        timeline = self.timelines[sequence.item]
        for stage in stages:
            if getattr(timeline, stage) is None:  # a preempted request is scheduled twice; the first counts
                timeline.stamp(stage, self.env.now)


def _padding(plan: StepPlan) -> int:
    read = [s.sequence.num_computed_tokens + s.num_tokens for s in plan.scheduled if not s.is_prefill]
    return max(read, default=0) * len(read) - sum(read)
