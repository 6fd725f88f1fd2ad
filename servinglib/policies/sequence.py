"""A sequence on its way through the engine, and what one step does for it.

The planner (`policies.stepping`) and whoever computes the step, engine or simulator, speak to each
other in these terms. Named quantities take the place of clever indices:

    num_tokens            known so far: the prompt, and what was generated
    num_computed_tokens   of these, how many have their keys and values in the cache
    num_cached_tokens     of these, how many were found there and never computed
    Scheduled.num_tokens  how many more this step computes
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any


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
        return self.num_output_tokens > 0 and self.num_computed_tokens == self.num_tokens - 1


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One sequence's share of a step: its next `num_tokens` tokens; `is_prefill` unless it decodes."""

    sequence: SequenceState
    num_tokens: int
    is_prefill: bool


@dataclass(slots=True)
class StepPlan:
    """What one step holds.

    Attributes
    ----------
    scheduled : list of Scheduled
        Decoding sequences first.
    admitted, preempted : list of SequenceState
        Who came in from the queue with this step, and who had to go back.
    num_tokens : int
        All tokens that are computed in this step.
    """

    scheduled: list[Scheduled] = field(default_factory=list)
    admitted: list[SequenceState] = field(default_factory=list)
    preempted: list[SequenceState] = field(default_factory=list)
    num_tokens: int = 0

    def schedule(self, sequence: SequenceState, num_tokens: int) -> None:
        """Let the step compute the sequence's next tokens."""
        self.scheduled.append(Scheduled(sequence, num_tokens, not sequence.is_decoding))
        self.num_tokens += num_tokens

    def preempt(self, sequence: SequenceState) -> None:
        """Take the sequence out, whether it was scheduled yet or not."""
        self.preempted.append(sequence)
        self.scheduled = [s for s in self.scheduled if s.sequence is not sequence]
        self.num_tokens = sum(s.num_tokens for s in self.scheduled)

    @property
    def num_prefill_tokens(self) -> int:
        """Those of them that are not a decoding sequence's."""
        return sum(s.num_tokens for s in self.scheduled if s.is_prefill)

    @property
    def num_kv_tokens(self) -> int:
        """Tokens of KV cache that attention reads, those that this step writes included."""
        return sum(s.sequence.num_computed_tokens + s.num_tokens for s in self.scheduled)
