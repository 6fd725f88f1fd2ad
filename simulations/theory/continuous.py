"""Continuous batching without a simulation: how many requests run, and how long one takes.

In a language class everybody reads one sentence aloud per round; newcomers join at the next round and
leave after their last sentence. The more there are, the longer a round, so the more newcomers come in
the meantime, and so on: where does it settle? A server that adds requests to its batch at every token
step lives by the same feedback. If each round is short beside a whole visit, requests share the server
as under processor sharing with a speed that depends on how many run, and the law of their number can
be written down. Lessons on continuous batching hold it against the token-by-token simulation.

Throughout, arrivals are Poisson with `rate` per second, only decoding counts, and a step of n requests
takes a + bn seconds (`StepTime` with c = d = 0; `fluid` has prompts and context). A real newcomer waits
for the step that runs; that is not in these laws and adds about half a step to the time in system, a
little less where all answers are equally long. The laws are the limit of long answers.
"""

from __future__ import annotations

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.policies.step_time import StepTime
from simulations.theory.domain import Answer, Numbers, answer, require, require_positive, require_whole


def decode_mean_sojourn(rate: Numbers, mean_tokens: Numbers, step: StepTime) -> Answer:
    """Mean time in system, m(a+b)/(1-λmb) seconds, when any number may run.

    Insensitive: of the number of output tokens only the mean matters.

    Parameters
    ----------
    rate : float or array
        λ.
    mean_tokens : float or array
        m, mean output tokens per request.
    step : StepTime
        With c = d = 0.

    Raises
    ------
    InvalidSetting
        When λmb, the load that remains in endless batches, is not below 1, or `step` has c or d.

    Notes
    -----
    A symmetric queue with a total speed of n/(a+bn) tokens/s: F. P. Kelly, Reversibility and Stochastic
    Networks (1979), section 3.3.
    """
    load = _decode_load(rate, mean_tokens, step)
    return answer(np.multiply(mean_tokens, step(1)) / (1 - load))


def decode_number_pmf(rate: Numbers, mean_tokens: Numbers, step: StepTime, n: Numbers) -> Answer:
    """P(n requests run), negative binomial with r = a/b + 1 and x = λmb; Poisson(λma) where b = 0.

    p_n = p_{n-1} · λm(a+bn)/n: as many requests begin at n-1 as end at n. Arguments as in
    `decode_mean_sojourn`.
    """
    require_whole(0, n=n)
    load = _decode_load(rate, mean_tokens, step)
    per_step = np.multiply(rate, mean_tokens)
    falls = np.where(load > 0, np.log1p(-load) / np.where(load > 0, load, 1.0), -1.0)
    log_empty = np.log1p(-load) + step.a * per_step * falls  # r log(1-x), written to hold at b = 0 too
    return answer(np.exp(log_empty + _log_weight(per_step, step, int(np.max(n)), n)))


def capped_mean_sojourn(rate: Numbers, mean_tokens: Numbers, step: StepTime, max_running: int) -> Answer:
    """Mean time in system when at most B run and the others wait in order, seconds: E[N]/λ.

    Arguments as in `capped_number_pmf`.
    """
    load, probability = _capped_levels(rate, mean_tokens, step, max_running)
    n = np.arange(max_running)
    full = probability[..., -1] * (max_running / (1 - load) + load / (1 - load) ** 2)
    return answer(((probability[..., :-1] * n).sum(axis=-1) + full) / rate)


def capped_number_pmf(
    rate: Numbers, mean_tokens: Numbers, step: StepTime, max_running: int, n: Numbers
) -> Answer:
    """P(n in the system, running or waiting) when at most B run: a birth-death chain.

    Ends come at rate min(n, B)/(m τ(min(n, B))). That holds for geometric lengths of many tokens; no
    longer for any law, since those who wait do so in order. Lengths that are all equal wait less.

    Parameters
    ----------
    rate : float or array
        λ.
    mean_tokens : float or array
        m.
    step : StepTime
        τ(n) = a + bn, with c = d = 0.
    max_running : int
        B.
    n : int or array
        0 or more; broadcasts with `rate`.

    Raises
    ------
    InvalidSetting
        When λ reaches B/(m τ(B)), what full steps can bear.
    """
    require_whole(0, n=n)
    load, probability = _capped_levels(rate, mean_tokens, step, max_running)
    level = np.minimum(n, max_running)
    shape = np.broadcast_shapes(load.shape, np.shape(n))
    table = np.broadcast_to(probability, (*shape, max_running + 1))
    at_level = np.take_along_axis(table, np.broadcast_to(level, shape)[..., None], axis=-1)[..., 0]
    return answer(at_level * load ** np.subtract(n, level))


def _check_decode(rate: Numbers, mean_tokens: Numbers, step: StepTime) -> None:
    require_positive(rate=rate)
    require(
        np.greater_equal(mean_tokens, 1) & np.isfinite(mean_tokens),
        "mean_tokens={m:g} must be 1 or more, since every answer takes a step",
        m=mean_tokens,
    )
    if step.c or step.d:
        raise InvalidSetting(
            f"this law is for decoding alone and {step} counts context or prompt tokens; use "
            f"fluid_mean_sojourn, or simulate"
        )


def _decode_load(rate: Numbers, mean_tokens: Numbers, step: StepTime) -> np.ndarray:
    _check_decode(rate, mean_tokens, step)
    load = np.asarray(np.multiply(rate, mean_tokens) * step.b)
    require(
        load < 1,
        "{rate:g} requests/s of {tokens:g} tokens and {b:g} s each are a load of {load:.3g} even in endless "
        "batches; it must be below 1",
        rate=rate,
        tokens=mean_tokens,
        b=step.b,
        load=load,
    )
    return load


def _log_weight(per_step: np.ndarray, step: StepTime, most: int, n: Numbers) -> np.ndarray:
    """log of p_n/p_0 = Π_{k≤n} λm τ(k)/k for n up to `most`."""
    k = np.arange(1, most + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(step.a + step.b * k) - np.log(k))])
    return np.asarray(n * np.log(per_step) + logs[np.asarray(n)])


def _capped_levels(
    rate: Numbers, mean_tokens: Numbers, step: StepTime, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """λmτ(B)/B, and the probabilities of 0 .. B in the system, shape (..., B+1)."""
    from scipy.special import logsumexp

    require_whole(1, max_running=most)
    _check_decode(rate, mean_tokens, step)
    per_step = np.asarray(np.multiply(rate, mean_tokens), float)
    load = np.asarray(per_step * step(most) / most)
    require(
        load < 1,
        "{rate:g} requests/s is a load of {load:.3g} on steps of {most} running requests; it must be below "
        "1, here a rate below {limit:.4g}/s",
        rate=rate,
        load=load,
        most=most,
        limit=np.divide(rate, load),
    )
    logs = _log_weight(per_step[..., None], step, most, np.arange(most + 1))
    beyond = np.zeros_like(logs)
    beyond[..., -1] = -np.log1p(-load)  # level B stands for B, B+1, … in the sum
    return load, np.exp(logs - logsumexp(logs + beyond, axis=-1, keepdims=True))
