"""vLLM's own metrics, as it tells them after each step, in the words that all engines share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from servinglib.engines.capabilities import EngineCounters


@dataclass(slots=True)
class Recorder:
    """Takes what vLLM tells after each step: the interface of its `StatLoggerBase`."""

    counters: EngineCounters = field(default_factory=lambda: EngineCounters(0, 0, 0.0, 0.0, 0, 0, 0, 0, 0))

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """Add a step."""
        now = self.counters
        if scheduler_stats is not None:
            prefix, drafts = scheduler_stats.prefix_cache_stats, scheduler_stats.spec_decoding_stats
            now = replace(
                now,
                num_requests_running=scheduler_stats.num_running_reqs,
                num_requests_waiting=scheduler_stats.num_waiting_reqs,
                kv_cache_usage=scheduler_stats.kv_cache_usage,
                kv_cache_usage_peak=max(now.kv_cache_usage_peak or 0.0, scheduler_stats.kv_cache_usage),
                prefix_cache_queries=(now.prefix_cache_queries or 0) + prefix.queries,
                prefix_cache_hits=(now.prefix_cache_hits or 0) + prefix.hits,
                draft_tokens=(now.draft_tokens or 0) + (drafts.num_draft_tokens if drafts else 0),
                accepted_tokens=(now.accepted_tokens or 0) + (drafts.num_accepted_tokens if drafts else 0),
            )
        if iteration_stats is not None:
            preempted = (now.num_preemptions or 0) + iteration_stats.num_preempted_reqs
            now = replace(now, num_preemptions=preempted)
        self.counters = now

    def log(self) -> None:
        """vLLM calls it from time to time; there is nothing to write."""

    log_engine_initialized = log

    def record_sleep_state(self, *_: Any) -> None:
        """vLLM tells it when its weights are put away, which nobody here asks for."""
