"""The continuous-batching server for long horizons: from event to event instead of from step to step.

Between two bus stops nobody needs to watch the passengers: they sit, and the clock runs. While the same
sequences decode, each step adds one token to every context, so the time of the next j steps is a sum
that school taught us,

    j (a + b n + c K) + c n j (j + 1) / 2,

with n sequences and K tokens computed before. So one can jump to the next stop: a sequence that ends,
or a request that comes and finds a place. Only steps that read a prompt are taken one by one. What is
kept is n, K and a heap of the steps at which sequences end; a request costs a few operations, whatever
its length. `simulations.continuous` is the same server for people to read; a test holds the two
together. Capacity planning (lesson 14) needs the speed.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from servinglib.errors import InvalidRequest, InvalidSetting
from servinglib.policies.step_time import StepTime
from servinglib.policies.stepping import check_limits
from servinglib.statistics import Values

ONLY_STEP_BY_STEP = ("kv_blocks", "block_size", "order", "block_keys", "priorities")
"""Settings of `simulate_continuous` that change what a step holds in ways that this model can't follow."""


@dataclass(frozen=True, slots=True)
class FastRun:
    """When each request passed which stage, in seconds; arrays of shape (requests,), in order of arrival.

    Attributes
    ----------
    arrivals, scheduled, first_tokens, finishes : ndarray
    num_steps : int
        Steps that the server computed.
    busy : float
        Seconds in which it computed.
    """

    arrivals: np.ndarray
    scheduled: np.ndarray
    first_tokens: np.ndarray
    finishes: np.ndarray
    num_steps: int
    busy: float

    @property
    def latencies(self) -> np.ndarray:
        """Seconds from arrival to the end of the answer."""
        return self.finishes - self.arrivals


def simulate_continuous_fast(
    arrivals: Values,
    prompt_tokens: Values,
    output_tokens: Values,
    step_time: StepTime,
    *,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 2048,
    chunked_prefill: bool = True,
    **others: Any,
) -> FastRun:
    """What `simulate_continuous` computes, for requests in order of arrival and a KV cache without end.

    Parameters
    ----------
    arrivals, prompt_tokens, output_tokens : array, shape (requests,)
        Seconds, ascending, and lengths of at least 1.
    step_time : StepTime
    max_num_seqs, max_num_batched_tokens, chunked_prefill
        As for `StepPlanner`.

    Raises
    ------
    InvalidSetting
        For any other setting of `simulate_continuous`, by its name: it has to be simulated there.
    InvalidRequest
        For a request that could never be served.
    """
    for name in others:
        if name in ONLY_STEP_BY_STEP:
            raise InvalidSetting(f"the fast simulation has no {name}; use simulate_continuous for it")
        raise TypeError(f"simulate_continuous_fast() got an unexpected keyword argument {name!r}")
    check_limits(max_num_seqs, max_num_batched_tokens)
    times = np.ascontiguousarray(arrivals, float)
    prompts, outputs = (np.ascontiguousarray(x, np.int64) for x in (prompt_tokens, output_tokens))
    _check(times, prompts, outputs, 0 if chunked_prefill else max_num_batched_tokens)
    numbers = (step_time.a, step_time.b, step_time.c, step_time.d)
    return FastRun(
        times,
        *_run(times, prompts, outputs, *numbers, max_num_seqs, max_num_batched_tokens, chunked_prefill),
    )


def _check(times: np.ndarray, prompts: np.ndarray, outputs: np.ndarray, longest: int) -> None:
    if not len(times) == len(prompts) == len(outputs):
        raise InvalidSetting(
            f"{len(times)} arrivals, {len(prompts)} prompt lengths and {len(outputs)} output lengths; "
            f"each request needs one of each"
        )
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise InvalidSetting("the arrivals are not finite and in ascending order; sort them")
    if len(times) and min(prompts.min(), outputs.min()) < 1:
        raise InvalidRequest("a prompt or an answer has less than 1 token")
    if longest and len(times) and (most := (prompts + outputs - 1).max()) > longest:
        raise InvalidRequest(
            f"a request of {most} tokens may have to be computed in one step, which holds {longest}; "
            f"use chunked prefill"
        )


@njit(cache=True)
def _skip(t: float, fixed: float, growth: float, most: int, until: float) -> int:
    """How many steps end before or at the one at which the clock reaches `until`; at least 1, at most `most`.

    The j-th of them takes fixed + growth * j seconds.
    """
    if t + most * fixed + growth * most * (most + 1) / 2 < until:
        return most
    p = fixed + growth / 2  # growth j²/2 + p j = until - t
    gap = until - t
    j = math.ceil(2 * gap / (p + math.sqrt(p * p + 2 * growth * gap)))
    j = min(max(j, 1), most)
    while j > 1 and t + (j - 1) * fixed + growth * (j - 1) * j / 2 >= until:
        j -= 1
    while j < most and t + j * fixed + growth * j * (j + 1) / 2 < until:
        j += 1
    return j


@njit(cache=True)
def _run(
    arrivals: np.ndarray,
    prompts: np.ndarray,
    outputs: np.ndarray,
    a: float,
    b: float,
    c: float,
    d: float,
    max_num_seqs: int,
    max_tokens: int,
    chunked: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, float]:
    """The simulation itself, compiled; returns scheduled, first tokens, finishes, steps, busy."""
    count = len(arrivals)
    scheduled, first, finish = np.empty(count), np.empty(count), np.empty(count)
    ends = [(0, 0)]  # (step after which it ends, request), a heap; the first entry only tells the type
    ends.pop()
    begun = [0]  # requests whose prompts end in this step
    begun.pop()
    t, busy, step = 0.0, 0.0, 0
    n, K = 0, 0  # decoding sequences, and the tokens computed for them
    head = 0  # next request to admit
    partial, done = -1, 0  # the request whose prompt is read in pieces, and how much of it is
    while head < count or n or partial >= 0:
        if n == 0 and partial < 0 and arrivals[head] > t:
            t = arrivals[head]
        # What does this step read? First the rest of a prompt, then whoever comes in.
        budget, P, read, kv = max_tokens - n, 0, 0, K + n
        begun.clear()
        if partial >= 0:
            tokens = min(prompts[partial] - done, budget)
            done += tokens
            budget, P, read, kv = budget - tokens, P + tokens, read + 1, kv + done
            if done == prompts[partial]:
                begun.append(partial)
                partial = -1
        while head < count and arrivals[head] <= t and n + read < max_num_seqs and budget > 0:
            tokens = min(prompts[head], budget)
            if tokens < prompts[head] and not chunked:
                break
            scheduled[head] = t
            budget, P, read, kv = budget - tokens, P + tokens, read + 1, kv + tokens
            if tokens == prompts[head]:
                begun.append(head)
            else:
                partial, done = head, tokens
            head += 1
        steps = 1
        if read:
            duration = a + b * (n + read) + c * kv + d * P
        else:  # nobody reads: jump to the next end, or to the next arrival if it would find a place
            steps = ends[0][0] - step
            fixed, growth = a + b * n + c * K, c * n
            if head < count and arrivals[head] > t and n < max_num_seqs:
                steps = _skip(t, fixed, growth, steps, arrivals[head])
            duration = steps * fixed + growth * steps * (steps + 1) / 2
        t, busy, step, K = t + duration, busy + duration, step + steps, K + n * steps
        while ends and ends[0][0] == step:
            _, gone = heapq.heappop(ends)
            finish[gone] = t
            n -= 1
            K -= prompts[gone] + outputs[gone] - 1
        for new in begun:
            first[new] = t
            if outputs[new] == 1:
                finish[new] = t
            else:
                n += 1
                K += prompts[new]
                heapq.heappush(ends, (step + outputs[new] - 1, new))
    return scheduled, first, finish, step, busy
