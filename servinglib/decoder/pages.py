"""Where in the cache does a token lie? From a block table to slots.

A page, or block, is room for `block_size` tokens. A slot is the room of one token: slot number = block
number x block size + offset in the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from servinglib.policies.sequence import SequenceState


class Span(NamedTuple):
    """Tokens `start` to `end` of one sequence, which a step computes."""

    sequence: SequenceState
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        """How many tokens."""
        return self.end - self.start


def slots_of(blocks: Sequence[int], start: int, end: int, block_size: int) -> np.ndarray:
    """Slots of the tokens `start` to `end` of a sequence with this block table, int64, (end - start,)."""
    if end - start == 1:
        block, offset = divmod(start, block_size)
        return np.array([blocks[block] * block_size + offset])
    first = start // block_size
    table = np.array(blocks[first : -(-end // block_size)]) * block_size
    slots = (table[:, None] + np.arange(block_size)).ravel()
    return slots[start - first * block_size : end - first * block_size]
