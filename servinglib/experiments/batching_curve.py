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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from servinglib.bench.load import Outcome, Saturation, run_open_loop, saturate
from servinglib.engines.base import Engine
from servinglib.errors import ServingError
from servinglib.experiments.columns import BatchTimes, Columns, predict_and_measure
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import DynamicBatching
from servinglib.request import Completion, Request, SamplingParams, Timeline
from servinglib.server.batch_server import BatchInferenceServer
from servinglib.workload import poisson, token_prompts
from simulations.serving import ServiceTime, simulate_batching
from simulations.theory.batching import DynamicBatchingChain

PROMPT_VOCABULARY = 256
"""Prompts are drawn from the first ids, which every tokenizer has and none keeps for special tokens."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What every request of the experiment looks like, in tokens; all equal, so that H depends on b alone."""

    prompt_tokens: int = 32
    output_tokens: int = 12


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
    max_batch_size: int, arrivals: Sequence[float], service_time: ServiceTime
) -> list[Timeline]:
    """The same arrivals through the same policy in virtual time."""
    policy = DynamicBatching(max_batch_size, max_wait_time=0)
    return list(simulate_batching(arrivals, policy, service_time).timelines)


def theory_under_load(max_batch_size: int, rate: float, law: BatchTime) -> dict[str, float] | None:
    """P50 and P99 in the long run, in seconds; None where the queue would grow without end."""
    if rate >= law.capacity(max_batch_size):
        return None
    chain = DynamicBatchingChain(rate, law, DynamicBatching(max_batch_size, max_wait_time=0))
    return {"p50": chain.quantile(0.50), "p99": chain.quantile(0.99)}


async def three_columns(
    engine: Engine,
    max_batch_size: int,
    arrivals: Sequence[float],
    rate: float,
    times: BatchTimes,
    shape: Shape,
) -> Columns:
    """Predict one server's latencies from `times`, then measure them."""
    return await predict_and_measure(
        rate,
        times,
        theory_under_load(max_batch_size, rate, times.law) or {},
        simulate=lambda service_time: simulate_under_load(max_batch_size, arrivals, service_time),
        measure=lambda: measure_under_load(engine, max_batch_size, arrivals, shape),
    )


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
