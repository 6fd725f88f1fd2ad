"""One decode step: how fast it can be at best, and how many tokens it can yield.

To write one more word, a model reads all its weights and all that it remembers of the conversation, as
if a clerk walked through the whole archive for each line of a letter. The walk sets the pace: with more
letters at once it is shared, until writing itself takes longer. And if a quick junior drafts a few lines
ahead, the clerk may approve several on one walk. Both are bounds to hold a measurement against.
"""

from __future__ import annotations

import numpy as np

from simulations.theory.domain import (
    Answer,
    Numbers,
    answer,
    require,
    require_not_negative,
    require_positive,
    require_whole,
)


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, value_bytes: float) -> float:
    """Bytes of KV cache that one token of context takes: a key and a value per layer and KV head."""
    require_whole(1, layers=layers, kv_heads=kv_heads, head_dim=head_dim)
    require_positive(value_bytes=value_bytes)
    return 2.0 * layers * kv_heads * head_dim * value_bytes


def decode_step_floor(
    running: Numbers,
    kv_tokens: Numbers,
    *,
    parameters: float,
    weight_bytes: float,
    token_bytes: float,
    bandwidth: float,
    flops: float,
) -> Answer:
    """No decode step is faster: the longer of reading memory and computing, seconds.

    max((weight bytes + K · bytes per token) / bandwidth, 2 · parameters · n / FLOPS). A bound from below:
    attention's own operations and the reading of activations are left out, and reading and computing
    are taken to overlap perfectly.

    Parameters
    ----------
    running : int or array
        n, requests in the step, one token each.
    kv_tokens : float or array
        K, tokens of context that they read together.
    parameters : float
        Weights that each token is multiplied with, each one multiplication and one addition.
    weight_bytes : float
        Bytes of these weights.
    token_bytes : float
        From `kv_bytes_per_token`.
    bandwidth, flops : float
        Bytes per second from memory and operations per second, both at their peak.

    Notes
    -----
    S. Williams, A. Waterman and D. Patterson, Roofline: an insightful visual performance model for
    multicore architectures, Communications of the ACM 52 (2009).
    """
    require_whole(1, running=running)
    require_not_negative(kv_tokens=kv_tokens, token_bytes=token_bytes)
    require_positive(parameters=parameters, weight_bytes=weight_bytes, bandwidth=bandwidth, flops=flops)
    reading = (weight_bytes + np.multiply(kv_tokens, token_bytes)) / bandwidth
    return answer(np.maximum(reading, 2 * parameters * np.asarray(running, float) / flops))


def speculative_tokens(acceptance: Numbers, draft_length: int) -> Answer:
    """Mean tokens per step of the target model with speculative decoding, (1-α^{γ+1})/(1-α).

    The draft proposes γ tokens; those before the first refusal stay, and the target adds one of its own.

    Parameters
    ----------
    acceptance : float or array
        α, the chance that a drafted token is accepted, 0 to 1, the same for each whatever came before.
    draft_length : int
        γ, 0 or more.

    Notes
    -----
    Y. Leviathan, M. Kalman and Y. Matias, Fast inference from transformers via speculative decoding,
    International Conference on Machine Learning (2023).
    """
    require(
        np.greater_equal(acceptance, 0) & np.less_equal(acceptance, 1),
        "acceptance={x:g} is not a share; it must lie between 0 and 1",
        x=acceptance,
    )
    require_whole(0, draft_length=draft_length)
    # The sum that the fraction stands for has no gap at α = 1.
    return answer(sum(np.asarray(acceptance, float) ** i for i in range(draft_length + 1)))


def speculative_speedup(acceptance: Numbers, draft_length: int, cost_ratio: Numbers) -> Answer:
    """Tokens per second over those without a draft, E[tokens] / (γ · cost ratio + 1).

    Holds where a target step over γ+1 tokens takes as long as over one, that is, while reading the
    weights sets the pace; arguments and source as in `speculative_tokens`.

    Parameters
    ----------
    cost_ratio : float or array
        Seconds of one draft step over those of one target step.
    """
    require_not_negative(cost_ratio=cost_ratio)
    return answer(speculative_tokens(acceptance, draft_length) / (draft_length * np.asarray(cost_ratio) + 1))
