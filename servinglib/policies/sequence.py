"""A sequence on its way through the engine, and what one step does for it.

The planner (`policies.stepping`) and whoever computes the step, engine or simulator, speak to each
other in these terms. Named quantities take the place of clever indices:

    num_tokens            known so far: the prompt, and what was generated
    num_computed_tokens   of these, how many have their keys and values in the cache
    num_cached_tokens     of these, how many were found there and never computed
    Scheduled.num_tokens  how many more this step computes

A decoding sequence may be given *draft* tokens beside its own: guesses of what comes next, which one
step can check all at once (speculative decoding). Those that prove right are *accepted*; the keys and
values of the others are dead, and the next step writes over them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from servinglib.cache.block_pool import BlockPool
from servinglib.errors import InvalidSetting


@dataclass(slots=True, eq=False)
class SequenceState:
    """One request's books in the engine.

    Attributes
    ----------
    item : object
        The caller's own, such as a request.
    num_prompt_tokens, max_tokens : int
        Length of the prompt, and the most that may be generated.
    arrival : float
        In seconds.
    priority : float
        Higher goes first, if the order looks at it.
    block_keys : sequence of hashable
        Keys of the full blocks at the start of the sequence, for the prefix cache; may grow.
    number : int
        In order of coming; set by the planner.
    predicted_output_tokens : float or None
        How many will be generated in all, as guessed (`policies.length_prediction`), if anybody did.
    num_output_tokens : int
        Generated so far.
    num_computed_tokens : int
        Tokens whose keys and values are in the blocks.
    num_cached_tokens : int
        How many of them were found and not computed, when it last began.
    num_preemptions : int
    blocks : list of int
        The block table.
    """

    item: Any
    num_prompt_tokens: int
    max_tokens: int
    arrival: float = 0.0
    priority: float = 0.0
    block_keys: Sequence[Hashable] = ()
    number: int = -1
    predicted_output_tokens: float | None = None
    num_output_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens that are known: the prompt and what was generated."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def is_decoding(self) -> bool:
        """Only the token of the last step remains to be computed."""
        remaining = self.num_prompt_tokens + self.num_output_tokens - self.num_computed_tokens
        return remaining == 1 and self.num_output_tokens > 0

    def grow(self, pool: BlockPool, count: int) -> bool:
        """Hold the blocks that the next `count` tokens need; False, and nothing taken, if there are too few."""
        missing = pool.blocks_for(self.num_computed_tokens + count) - len(self.blocks)
        if missing > pool.num_available:
            return False
        if missing > 0:
            self.blocks += pool.allocate(missing)
        return True

    def advance(self, pool: BlockPool, count: int, accepted: int = 0) -> bool:
        """Note that the next `count` known tokens were computed, and `accepted` drafts after them.

        Blocks that are full now can be found by their keys. Returns whether the sequence got new tokens:
        the drafts, and the one that follows them.
        """
        first_full = self.num_computed_tokens // pool.block_size
        self.num_computed_tokens += count + accepted
        num_full = self.num_computed_tokens // pool.block_size
        if num_full > first_full:
            for i in range(first_full, min(num_full, len(self.block_keys))):
                pool.publish(self.blocks[i], self.block_keys[i])
        if self.num_computed_tokens < self.num_prompt_tokens + self.num_output_tokens + accepted:
            return False
        self.num_output_tokens += 1 + accepted
        return True

    def shrink(self, pool: BlockPool) -> None:
        """Let go of blocks that hold nothing computed, such as those of rejected drafts."""
        used = pool.blocks_for(self.num_computed_tokens)
        if used < len(self.blocks):
            pool.release(self.blocks[used:])
            del self.blocks[used:]

    def release(self, pool: BlockPool) -> None:
        """Let go of all blocks."""
        pool.release(self.blocks)
        self.blocks = []

    def restart(self, pool: BlockPool) -> None:
        """Let go of all blocks and begin anew, with what was generated as part of the prompt."""
        self.release(pool)
        self.num_computed_tokens = 0
        self.num_preemptions += 1


class Scheduled(NamedTuple):
    """One sequence's share of a step. (A named tuple, since it is cheap to make: each step makes one per sequence.)

    Attributes
    ----------
    sequence : SequenceState
    num_tokens : int
        How many of its next tokens are computed, drafts included.
    is_prefill : bool
        Whether it reads known tokens; otherwise it decodes.
    num_draft_tokens : int
        How many of `num_tokens`, the last ones, are guesses.
    """

    sequence: SequenceState
    num_tokens: int
    is_prefill: bool
    num_draft_tokens: int = 0


@dataclass(slots=True)
class StepPlan:
    """What one step holds.

    Attributes
    ----------
    scheduled : list of Scheduled
        Decoding sequences first.
    admitted, preempted : list of SequenceState
        Who came in from the queue with this step, and who had to go back.
    num_tokens, num_prefill_tokens : int
        All tokens that are computed in this step, and those of them that are not a decoding sequence's.
    """

    scheduled: list[Scheduled] = field(default_factory=list)
    admitted: list[SequenceState] = field(default_factory=list)
    preempted: list[SequenceState] = field(default_factory=list)
    num_tokens: int = 0
    num_prefill_tokens: int = 0

    def schedule(self, sequence: SequenceState, num_tokens: int, is_prefill: bool) -> None:
        """Let the step compute the sequence's next tokens."""
        self.scheduled.append(Scheduled(sequence, num_tokens, is_prefill))
        self.num_tokens += num_tokens
        if is_prefill:
            self.num_prefill_tokens += num_tokens

    def draft(self, index: int, count: int) -> None:
        """Let the step check so many guesses after the token of the decoding sequence `scheduled[index]`."""
        sequence, num_tokens, is_prefill, _ = self.scheduled[index]
        self.scheduled[index] = Scheduled(sequence, num_tokens + count, is_prefill, count)
        self.num_tokens += count

    def preempt(self, sequence: SequenceState) -> None:
        """Take the sequence out, whether it was scheduled yet or not."""
        self.preempted.append(sequence)
        self.scheduled = [s for s in self.scheduled if s.sequence is not sequence]
        self.num_tokens = sum(s.num_tokens for s in self.scheduled)
        self.num_prefill_tokens = sum(s.num_tokens for s in self.scheduled if s.is_prefill)

    def check_accepted(self, accepted: Mapping[SequenceState, int]) -> None:
        """Refuse more accepted draft tokens, by sequence, than the step held."""
        drafts = {share.sequence: share.num_draft_tokens for share in self.scheduled}
        for sequence, right in accepted.items():
            if not 0 <= right <= drafts.get(sequence, 0):
                raise InvalidSetting(
                    f"{right} draft tokens of sequence {sequence.number} are said to be accepted, and the step "
                    f"held {drafts.get(sequence, 0)} of them; count only those that were scheduled"
                )

    @property
    def num_kv_tokens(self) -> int:
        """Tokens of KV cache that attention reads, those that this step writes included."""
        return sum(s.sequence.num_computed_tokens + s.num_tokens for s in self.scheduled)
