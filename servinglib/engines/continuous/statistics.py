"""What the engine counts: totals since it was loaded, and a record of each of the last steps.

The names are vLLM's where vLLM has one, so that dashboards need no second vocabulary.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from servinglib.engines.capabilities import EngineCounters

if TYPE_CHECKING:
    from servinglib.decoder.step import Outcome
    from servinglib.engines.continuous.runner import Runner
    from servinglib.policies.sequence import StepPlan
    from servinglib.policies.stepping import StepPlanner

STEPS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step.

    Attributes
    ----------
    start, planned, computed, end : float
        In seconds of `time.perf_counter`: the step before had ended, or an idle engine got something to do;
        the plan was made; the model had computed; the events were ready to be told.
    running, waiting : int
        Sequences in the batch and in the queue when it ended, those that ended with it left out.
    sequences : int
        How many it computed tokens of.
    decode_tokens, prefill_tokens : int
        Tokens computed, drafts among the first.
    kv_tokens, padding : int
        KV tokens that attention reads, and how many more, because rows of several lengths lie side by side.
    preemptions : int
    drafted, accepted : int
        Guesses that were checked, and those that stayed.
    """

    start: float
    planned: float
    computed: float
    end: float
    running: int
    waiting: int
    sequences: int
    decode_tokens: int
    prefill_tokens: int
    kv_tokens: int
    padding: int
    preemptions: int
    drafted: int
    accepted: int

    @classmethod
    def of(
        cls,
        plan: StepPlan,
        planner: StepPlanner,
        runner: Runner,
        outcomes: Sequence[Outcome],
        kv_tokens: int,
        times: tuple[float, float, float, float],
    ) -> StepRecord:
        """Write down a step that was just computed."""
        return cls(
            *times,
            len(planner.running),
            len(planner.waiting),
            len(plan.scheduled),
            plan.num_tokens - plan.num_prefill_tokens,
            plan.num_prefill_tokens,
            kv_tokens,
            runner.attention.padding,
            len(plan.preempted),
            runner.drafted,
            sum(len(tokens) - 1 for _, tokens, _ in outcomes),
        )

    @property
    def bookkeeping(self) -> float:
        """Seconds that were not the model's."""
        return self.end - self.start - (self.computed - self.planned)


@dataclass(slots=True)
class Counters:
    """Totals since the engine was loaded.

    Attributes
    ----------
    finished : Counter of FinishReason
    prompt_tokens, generation_tokens : int
        Tokens of prompts computed, and tokens generated.
    drafted, accepted : int
        Guesses checked, and those that stayed.
    kv_cache_usage_peak : float
        The largest share of the blocks that running sequences have held.
    steps : deque of StepRecord
        The last `STEPS_KEPT`.
    """

    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    generation_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    kv_cache_usage_peak: float = 0.0
    steps: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))

    def step(self, record: StepRecord) -> None:
        """Add a step."""
        self.steps.append(record)
        self.prompt_tokens += record.prefill_tokens
        self.drafted += record.drafted
        self.accepted += record.accepted

    def seen_by_all(self, planner: StepPlanner) -> EngineCounters:
        """What every engine tells, of this one."""
        return EngineCounters(
            num_requests_running=len(planner.running),
            num_requests_waiting=len(planner.waiting),
            kv_cache_usage=planner.pool.usage,
            kv_cache_usage_peak=self.kv_cache_usage_peak,
            prefix_cache_queries=planner.prefix_queries,
            prefix_cache_hits=planner.prefix_hits,
            num_preemptions=planner.preemptions,
            draft_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A look at the engine.

    Attributes
    ----------
    num_requests_running, num_requests_waiting : int
        Sequences in the batch and in the queue now.
    kv_cache_usage : float
        Share of the blocks that running sequences hold, 0 to 1.
    num_preemptions, prefix_cache_queries, prefix_cache_hits : int
        Since loading; the latter two in tokens.
    prompt_tokens, generation_tokens : int
    request_success : dict of str to int
        By finish reason.
    padding_waste : float
        KV tokens read for padding, over those read for a purpose, in the last steps.
    draft_acceptance : float or None
        Share of the guesses that stayed; None without speculation.
    """

    num_requests_running: int
    num_requests_waiting: int
    kv_cache_usage: float
    num_preemptions: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    prompt_tokens: int
    generation_tokens: int
    request_success: dict[str, int]
    padding_waste: float
    draft_acceptance: float | None

    @classmethod
    def of(cls, planner: StepPlanner, counters: Counters) -> EngineStatistics:
        """Look now; steps go on meanwhile."""
        steps = list(counters.steps)
        read = sum(s.kv_tokens for s in steps)
        return cls(
            len(planner.running),
            len(planner.waiting),
            planner.pool.usage,
            planner.preemptions,
            planner.prefix_queries,
            planner.prefix_hits,
            counters.prompt_tokens,
            counters.generation_tokens,
            dict(counters.finished),
            sum(s.padding for s in steps) / read if read else 0.0,
            counters.accepted / counters.drafted if counters.drafted else None,
        )
