"""A busy server on average: prompts, context and answers in one balance.

The level of a lake settles where as much flows out as flows in, however unevenly it rains. A server of
token steps settles in the same way: the longer its step, the more requests begin in it, and the more
requests run, the longer the step. The balance needs no law of prompts or answers, only the seconds that
one request adds, and it says at which rate there is no balance any more.

Throughout, a step takes a + bn + cK + dP seconds (`StepTime`) for n running requests that read K tokens
of context and P new prompt tokens; no more than that limits how many run.
"""

from __future__ import annotations

import numpy as np

from servinglib.errors import InvalidSetting
from servinglib.policies.step_time import StepTime
from servinglib.statistics import Values
from simulations.theory.domain import Answer, Numbers, answer, require, require_positive, require_whole


def marginal_work(step: StepTime, prompts: Values, outputs: Values) -> float:
    """Seconds that one more request adds to a busy server, E[bo + c(po + o(o-1)/2) + dp].

    In its o steps it costs b each, reads a context of p, p+1, …, p+o-1 tokens, and its prompt once.

    Parameters
    ----------
    step : StepTime
    prompts, outputs : sequence or array of float, shape (requests,)
        p and o of a sample of requests, pairwise: long prompts may go with long answers.
    """
    p, o = np.asarray(prompts, float), np.asarray(outputs, float)
    if p.shape != o.shape or not p.size:
        raise InvalidSetting(f"{p.size} prompts and {o.size} outputs; give one of each per request")
    require_whole(0, prompts=p)
    require_whole(1, outputs=o)
    return float(np.mean(step.b * o + step.c * (p * o + o * (o - 1) / 2) + step.d * p))


def fluid_step_time(rate: Numbers, step: StepTime, prompts: Values, outputs: Values) -> Answer:
    """The step time at which arrivals and ends balance, a/(1-λw) seconds with w = `marginal_work`.

    In a step of τ seconds λτ requests begin and as many end, so it does λτw seconds of their work beside
    the a of its own. That is exactly the mean over all steps of a server that is never idle. One that
    works only a share β of the time has a/(1-λw/β), and where few requests run that is far longer.

    Parameters
    ----------
    rate : float or array
        λ, below 1/w, where the balance is lost.
    step, prompts, outputs
        As in `marginal_work`.
    """
    load = _fluid_load(rate, marginal_work(step, prompts, outputs))
    return answer(step.a / (1 - load))


def fluid_mean_sojourn(rate: Numbers, step: StepTime, prompts: Values, outputs: Values) -> Answer:
    """Mean time in system, about (aE[o] + w)/(1-λw) seconds, arguments as in `fluid_step_time`.

    A request's time T is a for each of its steps, its own work w, and the work for others, λw in each
    second of T. The fluid step time times E[o] would forget w, the request's own part. Exact without
    context and prompts, where it is `decode_mean_sojourn`, and near where many run and none adds much.
    Where whole prompts fill a step, or a few long contexts do, requests meet more than the average of the
    others' work, and take longer, several times longer near the limit: simulate.
    """
    work = marginal_work(step, prompts, outputs)
    load = _fluid_load(rate, work)
    return answer((step.a * np.mean(np.asarray(outputs, float)) + work) / (1 - load))


def work_conserving_rate_limit(
    tokens_per_step: Numbers, step_seconds: Numbers, mean_prompt: Numbers, mean_output: Numbers
) -> Answer:
    """Requests/s below which any work-conserving scheduler is stable, (B/t_B)/(E[p]+E[o]), and beyond which none is.

    Work-conserving: whenever enough tokens, of prompts or answers, are ready, the step is full. A
    scheduler that lets prompts wait for answers, or the reverse, may be unstable at a lower rate.

    Parameters
    ----------
    tokens_per_step : int or array
        B, most tokens in a step.
    step_seconds : float or array
        t_B, seconds that a full step takes.
    mean_prompt, mean_output : float or array
        E[p] and E[o], tokens to process per request. Where the step that reads the end of a prompt
        yields the first token, and the last token is never read, as in `simulations.continuous` and in
        real engines, pass one less than the mean answer.

    Notes
    -----
    Y. Li, J. Dai and T. Peng, Throughput-optimal scheduling algorithms for LLM inference and AI agents
    (2025), arXiv:2504.07347.
    """
    require_whole(1, tokens_per_step=tokens_per_step)
    require_positive(step_seconds=step_seconds, mean_prompt=mean_prompt, mean_output=mean_output)
    return answer(np.divide(tokens_per_step, step_seconds) / np.add(mean_prompt, mean_output))


def _fluid_load(rate: Numbers, work: float) -> np.ndarray:
    require_positive(rate=rate)
    load = np.asarray(np.multiply(rate, work))
    require(
        load < 1,
        "{rate:g} requests/s that add {work:.4g} s each are a load of {load:.3g}; it must be below 1, here "
        "a rate below {limit:.4g}/s",
        rate=rate,
        work=work,
        load=load,
        limit=1 / work if work else np.inf,
    )
    return load
