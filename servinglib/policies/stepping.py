"""What does one token step hold? Continuous batching as a plan that is made anew before each step.

A ski lift doesn't wait until everybody on it has arrived; at each turn of the wheel some get off and
others get on. Before each step the planner fills a budget of tokens: first one token for every
sequence that decodes, then prompts, in pieces if need be, so that a long prompt never stops the
others (chunked prefill). Keys and values go into blocks of the `BlockPool`; when those run out, the
sequence that is last in the order loses its blocks and will be computed anew (preemption by
recompute). A prompt that begins like an earlier one starts behind the blocks that are still there.

There is no prefill state and no decode state: a sequence has so many tokens, so many of them are
computed, and the difference is what remains to be scheduled. When nothing remains, the step yields
the next token. No clock, no tensor: the engine and the simulator make the same plans. Lesson 06
builds it up.
"""

from __future__ import annotations

import itertools

from servinglib.cache.block_pool import BlockPool
from servinglib.errors import InvalidRequest, InvalidSetting
from servinglib.policies.scheduling import FirstComeFirstServed, SchedulingPolicy
from servinglib.policies.sequence import SequenceState, StepPlan


def check_limits(max_num_seqs: int, max_num_batched_tokens: int) -> None:
    """Refuse limits under which not every running sequence could get its token in a step."""
    if not 1 <= max_num_seqs <= max_num_batched_tokens:
        raise InvalidSetting(
            f"max_num_seqs={max_num_seqs} must be at least 1 and at most max_num_batched_tokens="
            f"{max_num_batched_tokens}, since each running sequence takes a token of every step"
        )


class StepPlanner:
    """Keeps the queue and the running batch, and plans step after step.

    Call `add` for each request, then in turn `plan`, compute, `commit`, and `remove` for those that
    are finished; `remove` also serves for an abort, at any moment between `commit` and `plan`.

    Parameters
    ----------
    pool : BlockPool
    order : SchedulingPolicy
        Who is admitted first; who is last is preempted first.
    max_num_seqs : int
        Most sequences in a step.
    max_num_batched_tokens : int
        Most tokens in a step.
    chunked_prefill : bool
        Whether a prompt may be computed in pieces; otherwise it waits for a step with room for all.
    """

    def __init__(
        self,
        pool: BlockPool,
        order: SchedulingPolicy | None = None,
        *,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        chunked_prefill: bool = True,
    ) -> None:
        check_limits(max_num_seqs, max_num_batched_tokens)
        self.pool, self.order = pool, order or FirstComeFirstServed()
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.chunked_prefill = chunked_prefill
        self.waiting: list[SequenceState] = []
        self.running: list[SequenceState] = []
        self._numbers = itertools.count()

    def add(self, sequence: SequenceState) -> None:
        """Queue a sequence, or refuse one that could never be finished, as `check` does."""
        self.check(sequence)
        sequence.number = next(self._numbers)
        self.waiting.append(sequence)

    def check(self, sequence: SequenceState) -> None:
        """Refuse a sequence that could never be finished.

        Raises
        ------
        InvalidRequest
            Without a token, larger than the pool, or, without chunked prefill, larger than a step.
        """
        if sequence.num_prompt_tokens < 1 or sequence.max_tokens < 1:
            raise InvalidRequest(
                f"{sequence.num_prompt_tokens} prompt tokens and max_tokens={sequence.max_tokens}: "
                f"both must be at least 1"
            )
        most = sequence.num_prompt_tokens + sequence.max_tokens - 1  # the last token is never read
        room = self.pool.num_blocks * self.pool.block_size
        if most > room:
            raise InvalidRequest(
                f"{sequence.num_prompt_tokens} prompt tokens and max_tokens={sequence.max_tokens} need "
                f"{most} tokens of KV cache, which holds {room}; ask for less, or give the cache more memory"
            )
        if not self.chunked_prefill and most > self.max_num_batched_tokens:
            raise InvalidRequest(
                f"{sequence.num_prompt_tokens} prompt tokens and max_tokens={sequence.max_tokens} may have to "
                f"be computed in one step, which holds {self.max_num_batched_tokens} tokens; use chunked prefill"
            )

    def plan(self, now: float) -> StepPlan:
        """What the next step holds; blocks are taken and preempted sequences queued by the time it returns."""
        plan, budget = StepPlan(), self.max_num_batched_tokens
        in_order = self.order.order(self.running, now)
        for sequence in sorted(in_order, key=lambda s: not s.is_decoding):
            if sequence in plan.preempted:
                continue
            count = self._next_tokens(sequence, budget - plan.num_tokens)
            if count and self._make_room(sequence, count, in_order, plan):
                plan.schedule(sequence, count)
        if not plan.preempted:
            self._admit(plan, now)
        return plan

    def commit(self, plan: StepPlan) -> list[SequenceState]:
        """Note that the step was computed; returns the sequences that it gave a new token, in plan order."""
        served = []
        for share in plan.scheduled:
            sequence = share.sequence
            first_new = sequence.num_computed_tokens // self.pool.block_size
            sequence.num_computed_tokens += share.num_tokens
            full = sequence.num_computed_tokens // self.pool.block_size
            for i in range(first_new, min(full, len(sequence.block_keys))):
                self.pool.publish(sequence.blocks[i], sequence.block_keys[i])
            if sequence.num_computed_tokens == sequence.num_tokens:
                sequence.num_output_tokens += 1
                served.append(sequence)
        return served

    def remove(self, sequence: SequenceState) -> None:
        """Forget a sequence that is finished or aborted; its blocks are free again."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._release(sequence)

    def check_integrity(self) -> None:
        """Raise if a block is lost, or held by nobody that runs."""
        self.pool.check_integrity(s.blocks for s in (*self.running, *self.waiting))

    def _next_tokens(self, sequence: SequenceState, budget: int) -> int:
        remaining = sequence.num_tokens - sequence.num_computed_tokens
        return min(remaining, budget) if self.chunked_prefill or remaining <= budget else 0

    def _make_room(
        self, sequence: SequenceState, count: int, in_order: list[SequenceState], plan: StepPlan
    ) -> bool:
        """Give the sequence blocks for its next `count` tokens, from others if need be; False if it had to go itself."""
        while not self._grow(sequence, count):
            victim = next(s for s in reversed(in_order) if s not in plan.preempted)
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        return True

    def _grow(self, sequence: SequenceState, count: int) -> bool:
        total = self.pool.blocks_for(sequence.num_computed_tokens + count)
        missing = total - len(sequence.blocks)
        if missing > self.pool.num_available:
            return False
        sequence.blocks += self.pool.allocate(missing)
        return True

    def _preempt(self, victim: SequenceState, plan: StepPlan) -> None:
        self._release(victim)
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        self.running.remove(victim)
        self.waiting.append(victim)
        plan.preempt(victim)

    def _admit(self, plan: StepPlan, now: float) -> None:
        """Let the first in the queue in, as long as there is room; nobody is passed over for a smaller one."""
        for sequence in self.order.order(self.waiting, now):
            if len(self.running) == self.max_num_seqs or not self._start(sequence, plan):
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            plan.admitted.append(sequence)

    def _start(self, sequence: SequenceState, plan: StepPlan) -> bool:
        """Schedule the first tokens behind what the prefix cache has; False, and nothing changed, if they don't fit."""
        reusable = (sequence.num_tokens - 1) // self.pool.block_size  # the last token must be computed
        found = self.pool.find(sequence.block_keys[:reusable])
        sequence.num_computed_tokens = len(found) * self.pool.block_size
        count = self._next_tokens(sequence, self.max_num_batched_tokens - plan.num_tokens)
        needed = self.pool.blocks_for(sequence.num_computed_tokens + count) - len(found)
        if not count or needed + self.pool.num_idle(found) > self.pool.num_available:
            sequence.num_computed_tokens = 0
            return False
        self.pool.share(found)
        sequence.num_cached_tokens = sequence.num_computed_tokens
        sequence.blocks = found + self.pool.allocate(needed)
        plan.schedule(sequence, count)
        return True

    def _release(self, sequence: SequenceState) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
