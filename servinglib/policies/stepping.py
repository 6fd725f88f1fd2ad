"""What does one token step hold? Continuous batching as a plan that is made anew before each step.

A ski lift doesn't wait until everybody on it has arrived; at each turn of the wheel some get off and
others get on. Before each step the planner fills a budget of tokens: first one token for every
sequence that decodes, then prompts, in pieces if need be, so that a long prompt never stops the
others (chunked prefill). Keys and values go into blocks of the `BlockPool`; when those run out, the
sequence that is last in the order loses its blocks and will be computed anew (preemption by
recompute). A prompt that begins like an earlier one starts behind the blocks that are still there.

There is no prefill state and no decode state: a sequence has so many tokens, so many of them are
computed, and the difference is what remains to be scheduled. When nothing remains, the step yields
the next token. Guesses at the tokens after it (speculative decoding) get what is left of a step: the
room and the blocks that nobody else wants. No clock, no tensor: the engine and the simulator make the
same plans. Lesson 06 builds it up.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from servinglib.cache.block_pool import BlockPool
from servinglib.errors import InvalidRequest, InvalidSetting
from servinglib.policies.scheduling import FirstComeFirstServed, SchedulingPolicy
from servinglib.policies.sequence import SequenceState, StepPlan


def check_limits(
    max_num_seqs: int, max_num_batched_tokens: int, max_prefill_tokens: int = 2048, max_draft_tokens: int = 0
) -> None:
    """Refuse limits under which not every running sequence could get its token, or a prompt never its turn."""
    if not 1 <= max_num_seqs <= max_num_batched_tokens:
        raise InvalidSetting(
            f"max_num_seqs={max_num_seqs} must be at least 1 and at most max_num_batched_tokens="
            f"{max_num_batched_tokens}, since each running sequence takes a token of every step"
        )
    if max_prefill_tokens < 1 or max_draft_tokens < 0:
        raise InvalidSetting(
            f"max_prefill_tokens={max_prefill_tokens} must be at least 1, or no prompt would ever be read, and "
            f"max_draft_tokens={max_draft_tokens} at least 0, for no speculative decoding"
        )


class StepPlanner:
    """Keeps the queue and the running batch, and plans step after step.

    Call `add` for each request, then in turn `plan`, compute, `commit`, and `remove` for those that
    are finished; `remove` also serves for an abort, at any moment between `commit` and `plan`.

    Parameters
    ----------
    pool : BlockPool
    order : SchedulingPolicy
        Who is admitted first and who decodes; who is last is preempted first.
    max_num_seqs : int
        Most sequences in a step.
    max_num_batched_tokens : int
        Most tokens in a step.
    max_prefill_tokens : int
        Most prompt tokens in a step, or recomputed ones.
    max_draft_tokens : int
        Most guesses that a decoding sequence may check in a step.
    chunked_prefill : bool
        Whether a prompt may be computed in pieces; otherwise it waits for a step with room for all.

    Attributes
    ----------
    waiting, running : list of SequenceState
    prefix_queries, prefix_hits : int
        Tokens of all sequences when they were first admitted, and how many of them the prefix cache
        had. As in vLLM's metrics, a sequence that comes back after a preemption doesn't count again.
    preemptions : int
        How often a sequence had to go back to the queue.
    """

    def __init__(
        self,
        pool: BlockPool,
        order: SchedulingPolicy | None = None,
        *,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        max_prefill_tokens: int = 2048,
        max_draft_tokens: int = 0,
        chunked_prefill: bool = True,
    ) -> None:
        check_limits(max_num_seqs, max_num_batched_tokens, max_prefill_tokens, max_draft_tokens)
        self.pool, self.order = pool, order or FirstComeFirstServed()
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.max_prefill_tokens, self.max_draft_tokens = max_prefill_tokens, max_draft_tokens
        self.chunked_prefill = chunked_prefill
        self.waiting: list[SequenceState] = []
        self.running: list[SequenceState] = []
        self.prefix_queries = self.prefix_hits = self.preemptions = 0
        self._numbers = itertools.count()

    def add(self, sequence: SequenceState) -> None:
        """Queue a sequence, or refuse one that could never be finished, as `check` does."""
        self.check(sequence)
        sequence.number = next(self._numbers)
        self.waiting.append(sequence)

    def check(self, sequence: SequenceState) -> None:
        """Refuse a sequence that could never be finished, with `InvalidRequest`.

        Such is one without a token, larger than the pool, or, without chunked prefill, than a step.
        """
        asked = f"{sequence.num_prompt_tokens} prompt tokens and max_tokens={sequence.max_tokens}"
        if min(sequence.num_prompt_tokens, sequence.max_tokens) < 1:
            raise InvalidRequest(f"{asked}: both must be at least 1")
        most = sequence.num_prompt_tokens + sequence.max_tokens - 1  # the last token is never read
        room = self.pool.num_blocks * self.pool.block_size
        if most > room:
            raise InvalidRequest(
                f"{asked} need {most} tokens of KV cache, which holds {room}; ask for less, or enlarge it"
            )
        at_once = min(self.max_num_batched_tokens, self.max_prefill_tokens)
        if not self.chunked_prefill and most > at_once:
            raise InvalidRequest(
                f"{asked} may have to be computed in one step, which holds {at_once} tokens; use chunked prefill"
            )

    def plan(self, now: float) -> StepPlan:
        """What the next step holds; blocks are taken and preempted sequences queued by the time it returns."""
        plan = StepPlan()
        decoding, reading = [], []
        for sequence in self.running:
            (decoding if sequence.is_decoding else reading).append(sequence)
        self._decode(decoding, plan, now)
        self._read_on(reading, plan, now)
        self._decode(decoding, plan, now)  # others, where prompts took the blocks of all that were named
        if self.waiting and not plan.preempted and len(self.running) < self.max_num_seqs:
            self._admit(plan, now)
        if self.max_draft_tokens:
            self._draft(plan)
        return plan

    def commit(
        self, plan: StepPlan, accepted: Mapping[SequenceState, int] | None = None
    ) -> list[SequenceState]:
        """Note that the step was computed; returns the sequences that it gave new tokens, in plan order.

        Parameters
        ----------
        plan : StepPlan
        accepted : mapping of SequenceState to int, optional
            How many of its draft tokens proved right, for each sequence that has any such. Blocks that
            they fill can be found from now on, if the `block_keys` reach that far already. More than
            were scheduled are an `InvalidSetting`, and nothing is noted.
        """
        accepted = accepted or {}
        if accepted:
            plan.check_accepted(accepted)
        served = []
        for sequence, num_tokens, _, num_drafts in plan.scheduled:
            right = accepted.get(sequence, 0) if num_drafts else 0
            if sequence.advance(self.pool, num_tokens - num_drafts, right):
                served.append(sequence)
            if right < num_drafts:
                sequence.shrink(self.pool)
        return served

    def remove(self, sequence: SequenceState) -> None:
        """Forget a sequence that is finished or aborted; its blocks are free again."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        sequence.release(self.pool)

    def check_integrity(self) -> None:
        """Raise if a block is lost, or held by nobody that runs."""
        self.pool.check_integrity(s.blocks for s in (*self.running, *self.waiting))

    def _decode(self, decoding: Sequence[SequenceState], plan: StepPlan, now: float) -> None:
        """One token for each that the policy names. If all of these had to be preempted, it names others."""
        while not plan.scheduled and (left := [s for s in decoding if s not in plan.preempted]):
            batch = self.order.decode_batch(left, now)
            if not batch:
                rule = type(self.order).__name__
                raise InvalidSetting(f"{rule}.decode_batch lets none of {len(left)} decode; let one at least")
            for sequence in batch:
                if sequence not in plan.preempted and self._make_room(sequence, 1, plan, now):
                    plan.schedule(sequence, 1, is_prefill=False)

    def _read_on(self, reading: Sequence[SequenceState], plan: StepPlan, now: float) -> None:
        """Continue the prompts that were begun."""
        for sequence in self.order.order(reading, now):
            count = 0 if sequence in plan.preempted else self._next_tokens(sequence, plan)
            if count and self._make_room(sequence, count, plan, now):
                plan.schedule(sequence, count, is_prefill=True)

    def _admit(self, plan: StepPlan, now: float) -> None:
        """Let the first in the queue in, as long as there is room; nobody is passed over for a smaller one."""
        for sequence in self.order.order(self.waiting, now):
            if len(self.running) == self.max_num_seqs or not self._start(sequence, plan):
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            plan.admitted.append(sequence)
        self.running = self.order.order(self.running, now)  # so later steps need not sort

    def _start(self, sequence: SequenceState, plan: StepPlan) -> bool:
        """Schedule the first tokens behind what the prefix cache has; False, and nothing changed, if they don't fit."""
        reusable = (sequence.num_tokens - 1) // self.pool.block_size  # the last token must be computed
        found = self.pool.find(sequence.block_keys[:reusable])
        sequence.num_computed_tokens = cached = len(found) * self.pool.block_size
        count = self._next_tokens(sequence, plan)
        needed = self.pool.blocks_for(cached + count) - len(found)
        if not count or needed + self.pool.num_idle(found) > self.pool.num_available:
            sequence.num_computed_tokens = 0
            return False
        self.pool.share(found)
        sequence.num_cached_tokens = cached
        sequence.blocks = found + self.pool.allocate(needed)
        if not sequence.num_preemptions:
            self.prefix_queries += sequence.num_tokens
            self.prefix_hits += cached
        plan.schedule(sequence, count, is_prefill=not sequence.is_decoding)
        return True

    def _draft(self, plan: StepPlan) -> None:
        """Fill what is left of the step with guesses; nobody waits or is preempted for them."""
        for index, (sequence, _, is_prefill, _) in enumerate(plan.scheduled):
            room = (len(sequence.blocks) + self.pool.num_available) * self.pool.block_size
            count = min(
                self.max_draft_tokens,
                sequence.max_tokens - sequence.num_output_tokens - 1,
                self.max_num_batched_tokens - plan.num_tokens,
                room - sequence.num_computed_tokens - 1,
            )
            if count > 0 and not is_prefill and sequence.grow(self.pool, 1 + count):
                plan.draft(index, count)

    def _next_tokens(self, sequence: SequenceState, plan: StepPlan) -> int:
        """How many tokens of a prompt this step still has room for."""
        remaining = sequence.num_tokens - sequence.num_computed_tokens
        room = self.max_num_batched_tokens - plan.num_tokens
        room = min(room, self.max_prefill_tokens - plan.num_prefill_tokens)
        return min(remaining, room) if self.chunked_prefill or remaining <= room else 0

    def _make_room(self, sequence: SequenceState, count: int, plan: StepPlan, now: float) -> bool:
        """Give the sequence blocks for its next `count` tokens, from others if need be; False if it had to go itself."""
        while not sequence.grow(self.pool, count):
            victim = self.order.order(self.running, now)[-1]
            victim.restart(self.pool)
            self.preemptions += 1
            self.running.remove(victim)
            self.waiting.append(victim)
            plan.preempt(victim)
            if victim is sequence:
                return False
        return True
