"""What an engine can do, and what it has counted: asked of the engine itself, never guessed from its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do.

    Attributes
    ----------
    batching : {"static", "continuous"}
        Whether requests join and leave only between batches, or at every step.
    sampling : bool
        False where temperature, top_k and top_p are refused.
    real_model : bool
        False where the tokens come from a model of time, not of language.
    choices : bool
        False where a request for more than one answer (n > 1) is refused.
    logprobs : bool
        False where a request for log-probabilities is refused.
    token_ids : bool
        False where ids stay on somebody's server: answers then have `UNKNOWN_TOKEN` for each token, and
        a prompt can't be given as ids.
    speculation : bool
        Whether it can guess tokens ahead and check them (a setting of its own switches it on).
    prefix_caching : bool
        Whether prompts that begin alike can be computed once.
    quantization : bool
        Whether it can serve weights of 8 bits or fewer.
    """

    batching: Literal["static", "continuous"]
    sampling: bool
    real_model: bool
    choices: bool = False
    logprobs: bool = False
    token_ids: bool = True
    speculation: bool = False
    prefix_caching: bool = False
    quantization: bool = False


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """What an engine tells of itself; None where it doesn't count that, or doesn't tell.

    Attributes
    ----------
    num_requests_running, num_requests_waiting : int or None
        Now.
    kv_cache_usage : float or None
        Share of the KV cache that running requests hold now, 0 to 1.
    kv_cache_usage_peak : float or None
        The largest share since loading.
    prefix_cache_queries, prefix_cache_hits : int or None
        Tokens of prompts that were looked up, and those found; since loading, as all that follow.
    num_preemptions : int or None
        Requests that had to give their KV cache back and start again.
    draft_tokens, accepted_tokens : int or None
        Guesses that were checked, and those that stayed.
    """

    num_requests_running: int | None = None
    num_requests_waiting: int | None = None
    kv_cache_usage: float | None = None
    kv_cache_usage_peak: float | None = None
    prefix_cache_queries: int | None = None
    prefix_cache_hits: int | None = None
    num_preemptions: int | None = None
    draft_tokens: int | None = None
    accepted_tokens: int | None = None

    @property
    def prefix_hit_rate(self) -> float | None:
        """Share of the prompt tokens that were found in the prefix cache; None if none was looked up."""
        if not self.prefix_cache_queries or self.prefix_cache_hits is None:
            return None
        return self.prefix_cache_hits / self.prefix_cache_queries

    @property
    def draft_acceptance(self) -> float | None:
        """Share of the guesses that stayed; None if there was none."""
        if not self.draft_tokens or self.accepted_tokens is None:
            return None
        return self.accepted_tokens / self.draft_tokens
