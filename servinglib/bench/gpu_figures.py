"""An engine for a while, the requests that it is asked, and what is told of how it did.

Two numbers stand beside everything: how fast this GPU's memory is, by its data sheet and measured, and
how many bytes a step cannot do without: all weights once, and the keys and values of every token that
it looks back on. Bytes over bandwidth is the *roofline*, and a step time over it is how far the engine
is from what the machine could do. Lesson 05 derives it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from servinglib.bench.gpu import Notes, Options, Skip
from servinglib.bench.gpu_bandwidth import device_bandwidth, nominal_bandwidth
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import InvalidSetting
from servinglib.request import Completion, Request, SamplingParams
from servinglib.workload import token_prompts

if TYPE_CHECKING:
    from servinglib.engines.continuous.statistics import StepRecord

VOCABULARY = 4096  # of the smallest model of the zoo


@dataclass(frozen=True, slots=True)
class Run:
    """What an engine did with some requests.

    Attributes
    ----------
    answers : sequence of Completion
    steps : sequence of StepRecord
        All of them, the first one first.
    seconds : float
        From the call to the last answer.
    """

    answers: Sequence[Completion]
    steps: Sequence[StepRecord]
    seconds: float


@contextmanager
def loaded(options: Options, model: str | None = None, **settings: Any) -> Iterator[ContinuousEngine]:
    """A loaded engine, and its memory given back at the end, for the next one to have as much."""
    import torch

    if options.device == "cpu":
        settings = {"kv_cache_memory": "128MiB", "attention": "torch", **settings}
    engine = ContinuousEngine.load(model or options.model, device=options.device, **settings)
    try:
        yield engine
    finally:
        engine.shutdown()
        gc.collect()
        torch.cuda.empty_cache()


def alike(count: int, prompt: int, output: int, seed: int) -> list[Request]:
    """So many requests with prompts and answers of so many tokens."""
    prompts = token_prompts([prompt] * count, VOCABULARY, seed=seed)
    return requests(prompts, [output] * count, f"alike-{seed}-{prompt}-{output}")


def requests(
    prompts: Sequence[list[int]], outputs: Sequence[int], name: str, temperature: float = 0.0
) -> list[Request]:
    """One request for each prompt, each with an answer of exactly so many tokens."""
    return [
        Request(f"{name}-{i}", prompt, SamplingParams(n, temperature, ignore_eos=True))
        for i, (prompt, n) in enumerate(zip(prompts, outputs, strict=True))
    ]


def answer(engine: ContinuousEngine, asked: Sequence[Request]) -> Run:
    """Ask for all at once and wait for all.

    Raises
    ------
    ServingError
        What the engine says of the first request that it can't serve.
    InvalidSetting
        If the run took more steps than the engine keeps, since figures of a part would pass for all.
    """
    start = time.perf_counter()
    answers = engine.generate_batch(asked)
    seconds = time.perf_counter() - start
    for each in answers:
        if isinstance(each, Exception):
            raise each
    whole = [each for each in answers if isinstance(each, Completion)]
    steps = [step for step in engine.steps if step.start >= start]
    begun = min(each.timeline.scheduled or 0 for each in whole) / 1e9
    if steps[0].start > begun + 1e-6:  # the timeline counts in nanoseconds
        raise InvalidSetting(
            f"the run took more than the {len(steps):,} steps that the engine keeps a record of; "
            f"ask for fewer tokens than {sum(len(each.token_ids) for each in whole):,}"
        )
    return Run(whole, steps, seconds)


def figures(
    engine: ContinuousEngine, run: Run, bandwidth: float | None = None, size: int | None = None
) -> dict[str, Any]:
    """Throughput, times in milliseconds at P50 and P99, and how far from the roofline.

    With `size`, steps are those that decode so many sequences and nothing else. `bandwidth` is the
    measured one, in bytes per second.
    """
    tokens = sum(len(a.token_ids) for a in run.answers)
    pairs = zip(run.steps[1:], np.diff([step.computed for step in run.steps]), strict=True)
    steps = [gap for s, gap in pairs if size is None or (s.decode_tokens == size and not s.prefill_tokens)]
    return {
        "seconds": run.seconds,
        "prompt_tokens_computed": sum(s.prefill_tokens for s in run.steps),
        "output_tokens": tokens,
        "tokens_per_second": tokens / run.seconds,
        "steps": len(run.steps),
        "preemptions": sum(s.preemptions for s in run.steps),
        "step_ms": spread(steps),
        **_latencies(run),
        "host_ms": spread([s.bookkeeping for s in run.steps]),
        **({"decode_tokens_per_second": size / median(steps)} if steps and size else {}),
        **_roofline(engine, run, bandwidth),
    }


def _latencies(run: Run) -> dict[str, Any]:
    """Of tokens, counted from the first step."""
    begin = run.steps[0].start
    return {
        "token_gap_ms": spread([gap for a in run.answers for gap in np.diff(a.token_times)]),
        "first_token_ms": spread([a.token_times[0] - begin for a in run.answers]),
        "end_ms": spread([a.token_times[-1] - begin for a in run.answers]),
    }


def _roofline(engine: ContinuousEngine, run: Run, bandwidth: float | None) -> dict[str, Any]:
    """The bytes that could not be spared, and which share of the time the memory needs for them."""
    weights, per_token = engine.memory.weight_bytes, engine.memory.bytes_per_token
    moved = len(run.steps) * weights + sum(s.kv_tokens for s in run.steps) * per_token
    known = {"nominal": nominal_bandwidth(), "measured": bandwidth}
    return {
        "bytes_moved": moved,
        "weight_read_ms": {name: 1e3 * weights / b if b else None for name, b in known.items()},
        **{f"share_of_{name}_roofline": moved / b / run.seconds if b else None for name, b in known.items()},
    }


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median, P99 and mean in milliseconds; None of nothing."""
    if not len(seconds):
        return None
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50": 1e3 * float(p50), "p99": 1e3 * float(p99), "mean": 1e3 * float(np.mean(seconds))}


def measured_bandwidth(options: Options, notes: Notes) -> float | None:
    """Bytes per second, beside those of the data sheet in the notes; None on a CPU."""
    if options.device != "cuda":
        return None
    bandwidth = device_bandwidth()
    notes.note("bandwidth_bytes_per_second", {"measured": bandwidth, "nominal": nominal_bandwidth()})
    return bandwidth


def need_gpu(options: Options) -> None:
    """Leave the part out where there is none."""
    if options.device != "cuda":
        raise Skip("needs a GPU")
