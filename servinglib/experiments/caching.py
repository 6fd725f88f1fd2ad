"""Caches under traffic: how often something is found, and what the requests gain by it.

Picture a shelf on which whatever was touched last stands at the left. A book that nobody asks for
drifts to the right, pushed by all that is asked for, and falls off the end. How long the drift takes
depends on the length of the shelf and hardly on the book, so one number, the *lifetime*, tells for
each book how likely it still stands there: that is Che's approximation (`lifetime`). Lesson 08 lays it
beside the real `ResultCache`, and beside the `BlockPool` in the simulator and in the engine. The
prompts come from `experiments.cache_traffic`; `experiments.remembering_engine` puts the one cache before
the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from servinglib.cache.prefix import block_keys
from servinglib.cache.result_cache import Hit, ResultCache, Transcript
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import InvalidSetting
from servinglib.policies.step_time import StepTime
from servinglib.workload import RequestSpec
from simulations.continuous import UNLIMITED, simulate_continuous
from simulations.theory.fluid import marginal_work

PAGE = Transcript((0,), (".",), "length")  # an answer like any other, where only its being there matters


def lifetime(popularity: np.ndarray, capacity: float, size: float = 1.0, once: float = 0.0) -> float:
    """How many requests an item survives in an LRU cache that nobody asks for (Che, Tung and Wang 2002).

    In T requests, item i is asked for with probability 1 - exp(-p_i T). The lifetime is the T at which
    all that was touched in between fills the cache: size * sum of these + once * T = capacity.

    Parameters
    ----------
    popularity : ndarray, shape (items,)
        The share p_i of the requests that want item i.
    capacity, size : float
        Room in the cache, and what one item takes, in the same unit.
    once : float
        What each request brings besides that nobody will ever ask for again.

    Returns
    -------
    float
        In requests; infinite if all items fit and nothing else comes.
    """
    if not capacity > 0 or size <= 0 or once < 0:
        raise InvalidSetting(
            f"capacity={capacity} and size={size} must be more than 0, once={once} at least 0"
        )
    if not once and capacity >= size * len(popularity):
        return math.inf

    def overflow(requests: float) -> float:
        return size * -np.expm1(-popularity * requests).sum() + once * requests - capacity

    longest = 1.0
    while overflow(longest) < 0:
        longest *= 2
    return brentq(overflow, 0.0, longest)  # type: ignore[return-value]


def lru_hit_rate(popularity: np.ndarray, capacity: float, size: float = 1.0, once: float = 0.0) -> float:
    """Share of requests that find their item in an LRU cache, by `lifetime`; arguments as there."""
    survives = lifetime(popularity, capacity, size, once)
    return float(popularity @ -np.expm1(-popularity * survives))


def result_cache_hits(
    questions: Sequence[int] | np.ndarray,
    capacity: int,
    times: Sequence[float] | None = None,
    ttl: float = math.inf,
) -> np.ndarray:
    """Which of these questions the library's `ResultCache` answers, with room for so many answers.

    Each is answered before the next comes, at 0, 1, 2, … s or at its time. Returns booleans, shape (questions,).
    """
    cache: ResultCache[None] = ResultCache(capacity * PAGE.size, ttl)
    found = np.zeros(len(questions), bool)
    for i, (question, now) in enumerate(zip(questions, times or range(len(questions)), strict=True)):
        key = int(question).to_bytes(8)
        found[i] = isinstance(cache.lookup(key, now, None), Hit)
        if not found[i]:
            cache.complete(key, PAGE, now)
    return found


def engine_hits(engine: ContinuousEngine, prompts: Sequence[Sequence[int]], answer: int = 1) -> np.ndarray:
    """Tokens of each prompt that the engine found in its prefix cache, asked one after another.

    Each gets an answer of `answer` tokens. Returns whole numbers, shape (prompts,).
    """
    found = []
    for prompt in prompts:
        before = engine.statistics.prefix_cache_hits
        engine.generate([list(prompt)], max_tokens=answer, ignore_eos=True)
        found.append(engine.statistics.prefix_cache_hits - before)
    return np.array(found)


def simulator_hits(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]] | None = None,
    *,
    kv_blocks: int = UNLIMITED,
    block_size: int = 16,
    salts: Sequence[bytes] | None = None,
) -> np.ndarray:
    """What `engine_hits` would be, by the engine's own planner and pool on a virtual clock.

    Parameters
    ----------
    prompts, answers : sequence of token ids
        The answers are of one token unless given, and then their blocks can be found as well.
    kv_blocks, block_size : int
        The KV cache; without limit unless given.
    salts : sequence of bytes, optional
        One per prompt, as for `block_keys`.
    """
    answers = answers or [[0]] * len(prompts)
    salts = salts or [b""] * len(prompts)
    far_apart = [
        RequestSpec(1e6 * i, len(p), len(a)) for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]
    whole = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    keys = [block_keys(tokens, block_size, salt) for tokens, salt in zip(whole, salts, strict=True)]
    run = simulate_continuous(
        far_apart, StepTime(a=1.0, b=0.0), kv_blocks=kv_blocks, block_size=block_size, block_keys=keys
    )
    return run.cached_tokens


@dataclass(frozen=True, slots=True)
class CachedRun:
    """What became of simulated requests, hits and joins included.

    Attributes
    ----------
    ttft, latencies : ndarray of float, shape (requests,)
        In seconds from the arrival; who gets a whole answer from the cache has both at once.
    """

    ttft: np.ndarray
    latencies: np.ndarray


def simulate_results(
    workload: Sequence[RequestSpec],
    questions: Sequence[int] | np.ndarray,
    step_time: StepTime,
    prompts: Sequence[Sequence[int]] | None = None,
    *,
    max_num_seqs: int = 64,
) -> CachedRun:
    """A workload through a result cache that forgets nothing, and what it leaves through the simulator.

    The first to ask a question computes it; who asks later has the answer as soon as the first has.

    Parameters
    ----------
    workload : sequence of RequestSpec
    questions : sequence of int
        One number per request, equal for equal questions; all different for no result cache.
    step_time : StepTime
    prompts : sequence of token ids, optional
        Given if there is a prefix cache, too.
    max_num_seqs : int
        As for `StepPlanner`.
    """
    leads = np.sort(np.unique(questions, return_index=True)[1])
    keys = [block_keys(prompts[i], 16) for i in leads] if prompts else None
    run = simulate_continuous(
        [workload[i] for i in leads], step_time, block_keys=keys, max_num_seqs=max_num_seqs
    )
    done = {questions[i]: timeline for i, timeline in zip(leads, run.timelines, strict=True)}
    arrivals = np.array([spec.arrival for spec in workload])
    finished = np.array([done[q].finished / 1e9 for q in questions])  # type: ignore[operator]
    latencies = np.maximum(0.0, finished - arrivals)
    ttft = latencies.copy()
    ttft[leads] = [(t.first_token - t.arrival) / 1e9 for t in run.timelines]  # type: ignore[operator]
    return CachedRun(ttft, latencies)


def saturated_rate(
    step: StepTime, prompt: int, answer: int, batch: int, cached: int = 0, repeats: float = 0.0
) -> float:
    """Requests/s of a server that always has `batch` of them in work.

    Each takes `answer` steps, whose fixed part it shares with the others of the batch, and brings the
    work of its own (`marginal_work`) without the prefill of the `cached` tokens. Of `repeats`, the share
    that a result cache answers, it hears nothing.
    """
    work = marginal_work(step, [prompt], [answer]) - step.d * cached
    return 1 / (step.a * answer / batch + work) / (1 - repeats)
