"""One scheduling policy, one traffic, two servers: the simulator and the real engine.

At the bakery one customer wants a roll and the next a wedding cake. Who is happy depends on the order in
which the counter calls them, and the fair comparison gives each order the same customers. Here the rolls
are chat answers, the cakes are summaries of long documents, and a policy is judged by the same few
numbers wherever it ran: the time to the whole answer, of most, of nearly all, and of the one that was
served worst. `PaddingBackend` asks what else an order costs where attention must pad. Lesson 07 stands
on this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.continuous.statistics import StepRecord
from servinglib.errors import InvalidSetting
from servinglib.experiments.serving_run import ServingRun, drift, fit_step_time, serve
from servinglib.policies.length_prediction import Oracle
from servinglib.policies.scheduling import SchedulingPolicy
from servinglib.policies.sequence import SequenceState
from servinglib.policies.step_time import StepTime
from servinglib.statistics import Values, streams
from servinglib.workload import LengthLaw, RequestSpec, Workload
from simulations.continuous import ContinuousRun, Step, simulate_continuous


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one kind: the laws of their prompt and answer lengths, in tokens."""

    prompts: LengthLaw
    outputs: LengthLaw


@dataclass(frozen=True, slots=True)
class Traffic:
    """Chat and summaries, in order of arrival.

    Attributes
    ----------
    workload : Workload
    is_summary : ndarray of bool, shape (requests,)
    """

    workload: Workload
    is_summary: np.ndarray

    @classmethod
    def mixed(cls, arrivals: Values, chat: Kind, summary: Kind, share: float, seed: int) -> Traffic:
        """Requests at these seconds, each a summary with probability `share`.

        Arrivals at other seconds leave kinds and lengths as they are.
        """
        if not 0 <= share <= 1:
            raise InvalidSetting(f"a share={share:g} of summaries is not possible; use one from 0 to 1")
        draw, count = streams(seed, "kinds", "prompts", "outputs"), len(arrivals)
        is_summary = draw["kinds"].random(count) < share
        prompts, outputs = (
            np.where(is_summary, *(law.sample(draw[part], count) for law in laws)).tolist()
            for part, laws in (
                ("prompts", (summary.prompts, chat.prompts)),
                ("outputs", (summary.outputs, chat.outputs)),
            )
        )
        return cls(
            tuple(map(RequestSpec, np.asarray(arrivals, float).tolist(), prompts, outputs)), is_summary
        )

    def at(self, arrivals: Values) -> Traffic:
        """The same requests at other seconds."""
        moved = zip(np.asarray(arrivals, float).tolist(), self.workload, strict=True)
        return Traffic(
            tuple(RequestSpec(t, spec.prompt_tokens, spec.output_tokens) for t, spec in moved),
            self.is_summary,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did to the traffic; times in seconds from arrival to the whole answer.

    Attributes
    ----------
    p50, p99, slowest : float
        Over all requests.
    chat, summary : float
        Medians of either kind.
    padding : float
        KV tokens read for padding, over those read for a purpose.
    """

    p50: float
    p99: float
    slowest: float
    chat: float
    summary: float
    padding: float

    @classmethod
    def of(cls, run: ServingRun | ContinuousRun, is_summary: np.ndarray) -> Outcome:
        """Judge a run, simulated or real."""
        times = run.latencies
        return cls(
            float(np.median(times)),
            float(np.quantile(times, 0.99)),
            float(times.max()),
            float(np.median(times[~is_summary])),
            float(np.median(times[is_summary])),
            padding_share(run.steps),
        )


def padding_share(steps: Iterable[Step | StepRecord]) -> float:
    """KV tokens that the steps read for padding, over those read for a purpose."""
    read, padded = np.sum([(step.kv_tokens, step.padding) for step in steps], axis=0)
    return float(padded / read)


@dataclass(frozen=True, slots=True)
class PolicyColumns:
    """A policy in the simulator and in the engine, with the step times of the engine just before.

    Attributes
    ----------
    step_time : StepTime
    simulated, measured : Outcome
    simulated_run : ContinuousRun
    measured_run : ServingRun
    """

    step_time: StepTime
    simulated: Outcome
    measured: Outcome
    simulated_run: ContinuousRun
    measured_run: ServingRun

    @property
    def drift(self) -> float:
        """How much longer the engine's steps took in the run than the step time says, as a fraction."""
        return drift(self.measured_run.steps, self.step_time)


async def policy_columns(
    make_policy: Callable[[], SchedulingPolicy],
    traffic: Traffic,
    *,
    model: str = "course-tiny",
    max_num_seqs: int = 8,
    calibration: int = 40,
    priorities: Sequence[float] | None = None,
) -> PolicyColumns:
    """Calibrate an engine with the policy, then send the traffic through simulator and engine.

    Parameters
    ----------
    make_policy : callable
        Makes a new policy; each server gets one of its own, since some remember what they served.
    traffic : Traffic
    model, max_num_seqs
        As for the engine. Answers are known to end at their length (`Oracle`), prefixes are not cached.
    calibration : int
        So many of the first requests, all at once, are the run from which step times are read.
    priorities : sequence of float, optional
        For each request.
    """
    predictor = Oracle()
    engine = ContinuousEngine.load(
        model,
        policy=make_policy(),
        predictor=predictor,
        max_num_seqs=max_num_seqs,
        kv_cache_memory="64MiB",
        prefix_caching=False,
    )
    with engine:
        step_time = await measured_step_time(engine, traffic, calibration)
        measured = await serve(engine, traffic.workload, priorities=priorities)
    simulated = simulate_continuous(
        traffic.workload,
        step_time,
        order=make_policy(),
        predictor=predictor,
        max_num_seqs=max_num_seqs,
        priorities=priorities,
    )
    return PolicyColumns(
        step_time,
        Outcome.of(simulated, traffic.is_summary),
        Outcome.of(measured, traffic.is_summary),
        simulated,
        measured,
    )


async def measured_step_time(engine: ContinuousEngine, traffic: Traffic, count: int = 40) -> StepTime:
    """The engine's step time now, from a run with the first `count` requests at once; a few warm up before."""
    burst = [RequestSpec(0.0, s.prompt_tokens, s.output_tokens) for s in traffic.workload[:count]]
    await serve(engine, burst[:8], seed=1)
    return fit_step_time((await serve(engine, burst, seed=1)).steps)


class PaddingBackend(SchedulingPolicy):
    """A policy on a server that pads each decode batch to its longest, and pays for the padding.

    Pass it to the simulator as the order, and its `step_time` as the step time: what the policy just
    chose to decode together is what the step is charged for. Without preemption only; a sequence that
    loses its blocks is charged for nonetheless.

    Parameters
    ----------
    policy : SchedulingPolicy
    unpadded : StepTime
        `c` is charged for each KV token, real or padding.
    """

    def __init__(self, policy: SchedulingPolicy, unpadded: StepTime) -> None:
        self._policy, self._unpadded, self._padding = policy, unpadded, 0

    def order(self, requests: Iterable[SequenceState], now: float) -> list[SequenceState]:
        """As the policy says."""
        return self._policy.order(requests, now)

    def decode_batch(self, decoding: Sequence[SequenceState], now: float) -> Sequence[SequenceState]:
        """As the policy says; the padding is noted."""
        batch = self._policy.decode_batch(decoding, now)
        lengths = [sequence.num_tokens for sequence in batch]
        self._padding = max(lengths, default=0) * len(lengths) - sum(lengths)
        return batch

    def step_time(self, running: int, kv_tokens: int = 0, prefill_tokens: int = 0) -> float:
        """Seconds of the step that was just planned."""
        padding, self._padding = self._padding, 0
        return self._unpadded(running, kv_tokens + padding, prefill_tokens)
