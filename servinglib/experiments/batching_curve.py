"""The batch-size experiment: one engine, one stream of requests, a larger and larger batch limit.

Everybody knows that a fuller bus is cheaper a seat; the question is what the passengers wait for it.
Each function here is one step, and lesson 01 takes them one by one: time the batches and fit H(b),
drive the real server to saturation, put a Poisson stream on it, put the *same* arrivals through the
simulated server, and ask theory for the long run. `experiments.demo` runs them all and lays the
three columns side by side.

The batching window is 0 throughout: an idle server starts with whoever waits. That is the rule that
theory has an exact answer for; lesson 04 opens the window and sees what it costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from servinglib.bench.load import Outcome, Saturation, run_open_loop, saturate
from servinglib.engines.base import Engine
from servinglib.errors import ServingError
from servinglib.metrics import e2e, percentiles
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import DynamicBatching
from servinglib.request import Completion, Request, SamplingParams, Timeline
from servinglib.server.batch_server import BatchInferenceServer
from servinglib.workload import poisson, token_prompts
from simulations.serving import EmpiricalBatchTime, simulate_batching
from simulations.theory.batching import DynamicBatchingChain

PROMPT_VOCABULARY = 256
"""Prompts are drawn from the first ids, which every tokenizer has and none keeps for special tokens."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What every request of the experiment looks like, in tokens; all equal, so that H depends on b alone."""

    prompt_tokens: int = 32
    output_tokens: int = 12


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latencies of one run, in seconds from the intended arrival.

    Attributes
    ----------
    p50, p99 : float
    count : int
        Requests behind them.
    mean_batch : float
        Mean size of the batches they rode in, each batch counted once.
    """

    p50: float
    p99: float
    count: int
    mean_batch: float

    @classmethod
    def of(cls, timelines: Sequence[Timeline]) -> Latencies:
        """Of completed requests; a batch is told by its members' common `scheduled` stamp."""
        seconds = [latency for t in timelines if (latency := e2e(t)) is not None]
        batches = Counter(t.scheduled for t in timelines)
        p50, p99 = percentiles(seconds)
        return cls(p50, p99, len(seconds), len(seconds) / len(batches))


@dataclass(slots=True)
class BatchTimes:
    """Measured batch times: for each batch size, the seconds that each timed batch took."""

    samples: dict[int, list[float]] = field(default_factory=dict)

    @property
    def law(self) -> BatchTime:
        """H(b) = αb + τ₀ through all samples."""
        pairs = [(size, seconds) for size, times in self.samples.items() for seconds in times]
        return BatchTime.fit([size for size, _ in pairs], [seconds for _, seconds in pairs])

    @classmethod
    def of(cls, timelines: Sequence[Timeline]) -> BatchTimes:
        """The batch times that a run itself went through, from its timelines."""
        ends: dict[int, list[int]] = {}
        for t in timelines:
            if t.scheduled is not None and t.finished is not None:
                ends.setdefault(t.scheduled, []).append(t.finished)
        samples: dict[int, list[float]] = {}
        for start, finished in ends.items():
            samples.setdefault(len(finished), []).append((max(finished) - start) / 1e9)
        return cls(dict(sorted(samples.items())))

    def slower_than(self, reference: BatchTimes) -> float:
        """How much longer these batches took than the same sizes under `reference`, as a fraction.

        Compares total times, sizes between two of the reference's are interpolated.
        """
        sizes = sorted(reference.samples)
        means = [float(np.mean(reference.samples[size])) for size in sizes]
        took = sum(sum(times) for times in self.samples.values())
        expected = sum(len(t) * float(np.interp(size, sizes, means)) for size, t in self.samples.items())
        return took / expected - 1

    def scaled(self, factor: float) -> BatchTimes:
        """The same law on a machine that is slower by `factor`."""
        return BatchTimes({size: [factor * t for t in times] for size, times in self.samples.items()})


def make_requests(count: int, shape: Shape, seed: int = 0) -> list[Request]:
    """`count` requests of one shape with random prompts, each answered to its full length."""
    params = SamplingParams(max_tokens=shape.output_tokens, ignore_eos=True)
    prompts = token_prompts([shape.prompt_tokens] * count, PROMPT_VOCABULARY, seed=seed)
    return [Request(f"request-{seed}-{i}", prompt, params) for i, prompt in enumerate(prompts)]


def measure_batch_times(
    engine: Engine,
    sizes: Sequence[int],
    repeats: int,
    shape: Shape,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BatchTimes:
    """Time batches of each size, round after round, so that a slow moment hits all sizes alike."""
    times = BatchTimes({size: [] for size in sizes})
    for turn in range(repeats + 1):  # the first round warms up and is not kept
        for size in sizes:
            start = engine.now()
            answered(engine.generate_batch(make_requests(size, shape, seed=turn)))
            if turn:
                times.samples[size].append(engine.now() - start)
        progress(turn + 1, repeats + 1)
    return times


async def measure_saturation(
    engine: Engine, max_batch_size: int, shape: Shape, batches: int = 10
) -> Saturation[Completion]:
    """The most requests/s that the server completes, with twice a batch in flight at all times."""
    requests = make_requests((batches + 4) * max_batch_size + 1, shape)
    async with BatchInferenceServer(engine, max_batch_size=max_batch_size, max_wait_time=0) as server:
        run = await saturate(
            lambda i: server.predict(requests[i]), concurrency=2 * max_batch_size, count=len(requests)
        )
    answered([o.error or o.result for o in run.outcomes])
    return run


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Arrival times in seconds; at another rate the same ones, stretched."""
    return [spec.arrival for spec in poisson(rate, count=count, seed=seed)]


async def measure_under_load(
    engine: Engine, max_batch_size: int, arrivals: Sequence[float], shape: Shape
) -> list[Timeline]:
    """Send requests at the given times to a real server; the timelines of all of them."""
    requests = make_requests(len(arrivals), shape)
    async with BatchInferenceServer(
        engine, max_batch_size=max_batch_size, max_wait_time=0, max_queue_size=len(arrivals)
    ) as server:
        outcomes = await run_open_loop(lambda i: server.predict(requests[i]), arrivals)
    return completed(outcomes)


def simulate_under_load(
    max_batch_size: int, arrivals: Sequence[float], times: BatchTimes, seed: int = 0
) -> list[Timeline]:
    """The same arrivals through the same policy in virtual time, with batch times drawn from `times`."""
    policy = DynamicBatching(max_batch_size, max_wait_time=0)
    service = EmpiricalBatchTime(times.samples, seed=seed)
    return list(simulate_batching(arrivals, policy, service).timelines)


def theory_under_load(max_batch_size: int, rate: float, law: BatchTime) -> dict[str, float] | None:
    """P50 and P99 in the long run, in seconds; None where the queue would grow without end."""
    if rate >= law.capacity(max_batch_size):
        return None
    chain = DynamicBatchingChain(rate, law, DynamicBatching(max_batch_size, max_wait_time=0))
    return {"p50": chain.quantile(0.50), "p99": chain.quantile(0.99)}


@dataclass(frozen=True, slots=True)
class Columns:
    """Measurement, simulation and theory of one server under one load.

    Attributes
    ----------
    rate : float
        Offered load in requests/s.
    measured, simulated, at_run_speed : Latencies
        Of the same arrivals. `simulated` uses the batch times as calibrated, and is a prediction;
        `at_run_speed` uses them scaled by the run's drift, and so tells what is left of the error
        when the machine's change of speed is taken out.
    theory : dict of str to float
        "p50" and "p99" of an endless run, in seconds; empty where the queue would grow without end.
    drift : float
        How much longer the batches of this run took than the same sizes when they were timed, as a
        fraction. Where a machine slows down, prediction and measurement part, and this says so.
    """

    rate: float
    measured: Latencies
    simulated: Latencies
    at_run_speed: Latencies
    theory: dict[str, float]
    drift: float

    @property
    def error(self) -> dict[str, float]:
        """The prediction's relative error, negative where it was too low."""
        return relative_error(self.simulated, self.measured)

    @property
    def error_at_run_speed(self) -> dict[str, float]:
        """The part of the error that the drift does not explain."""
        return relative_error(self.at_run_speed, self.measured)


def relative_error(predicted: Latencies, measured: Latencies) -> dict[str, float]:
    """Of P50 and P99, negative where the prediction was too low."""
    return {"p50": predicted.p50 / measured.p50 - 1, "p99": predicted.p99 / measured.p99 - 1}


async def three_columns(
    engine: Engine,
    max_batch_size: int,
    arrivals: Sequence[float],
    rate: float,
    times: BatchTimes,
    shape: Shape,
) -> Columns:
    """Predict one server's latencies from `times`, then measure them."""
    theory = theory_under_load(max_batch_size, rate, times.law) or {}
    simulated = Latencies.of(simulate_under_load(max_batch_size, arrivals, times))
    timelines = await measure_under_load(engine, max_batch_size, arrivals, shape)
    drift = BatchTimes.of(timelines).slower_than(times)
    rebased = Latencies.of(simulate_under_load(max_batch_size, arrivals, times.scaled(1 + drift)))
    return Columns(rate, Latencies.of(timelines), simulated, rebased, theory, drift)


def completed(outcomes: Sequence[Outcome[Completion]]) -> list[Timeline]:
    """The timelines of a run in which every request must have been answered."""
    answered([o.error or o.result for o in outcomes])
    return [o.timeline for o in outcomes]


def answered(results: Sequence[object]) -> None:
    """Raise the first error among the results: an experiment with failed requests measured something else."""
    errors = [r for r in results if isinstance(r, BaseException)]
    if errors:
        raise ServingError(
            f"{len(errors)} of {len(results)} requests failed; the first: {errors[0]}"
        ) from errors[0]
