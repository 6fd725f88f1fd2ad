"""The pool under random families of sequences: shared beginnings, copies, releases in any order, eviction.

A block is modelled by the text that was last written into it, so a block that is handed to somebody
else while it is still held, or found under a key that isn't its own, is seen at once.
"""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from servinglib.cache.block_pool import BlockPool


@dataclass(eq=False)
class Running:
    """A sequence whose blocks hold one letter each; its keys are all its beginnings."""

    text: str
    blocks: list[int]
    computed: int = 0

    @property
    def keys(self) -> list[str]:
        return [self.text[: i + 1] for i in range(len(self.text))]


class BlockPoolMachine(RuleBasedStateMachine):
    @initialize(num_blocks=st.integers(2, 9))
    def open(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, block_size=1)
        self.running: list[Running] = []
        self.written: dict[int, str] = {}
        self.published: set[str] = set()

    @rule(text=st.text("ab", min_size=1, max_size=5), reuse=st.integers(0, 5))
    def begin(self, text: str, reuse: int) -> None:
        """Start behind what is there, or behind a part of it: the engine computes the last token anew."""
        sequence = Running(text, [])
        found = self.pool.find(sequence.keys[:reuse])
        new = len(text) - len(found)
        if new + self.pool.num_idle(found) > self.pool.num_available:
            return
        assert [self.written[block] for block in found] == sequence.keys[: len(found)]
        self.pool.share(found)
        sequence.blocks = found + self.pool.allocate(new)
        sequence.computed = len(found)
        self.running.append(sequence)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 5))
    def compute(self, data: st.DataObject, count: int) -> None:
        sequence = data.draw(st.sampled_from(self.running))
        first, last = sequence.computed, min(sequence.computed + count, len(sequence.text))
        for i in range(first, last):
            self.written[sequence.blocks[i]] = sequence.keys[i]
        for i in range(first, last):
            self.pool.publish(sequence.blocks[i], sequence.keys[i])
            self.published.add(sequence.keys[i])
        sequence.computed = last

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Finished, aborted or preempted: for the pool it is the same."""
        sequence = data.draw(st.sampled_from(self.running))
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)

    @invariant()
    def every_block_is_in_one_state(self) -> None:
        self.pool.check_integrity(s.blocks for s in self.running)

    @invariant()
    def nobody_wrote_into_a_block_that_another_holds(self) -> None:
        for s in self.running:
            assert [self.written[b] for b in s.blocks[: s.computed]] == s.keys[: s.computed]

    @invariant()
    def what_can_be_found_can_be_reached_from_the_start(self) -> None:
        there = {key for key in self.published if self.pool.find([key])}
        orphans = {key for key in there if len(key) > 1 and key[:-1] not in there}
        assert not orphans, f"{orphans} hold blocks and can't be found from their first block on"

    @invariant()
    def what_a_running_sequence_has_computed_can_be_found(self) -> None:
        for s in self.running:
            assert len(self.pool.find(s.keys[: s.computed])) == s.computed


class TestBlockPoolMachine(BlockPoolMachine.TestCase):
    settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
