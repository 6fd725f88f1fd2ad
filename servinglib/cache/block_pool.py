"""Paged KV cache, the bookkeeping: who holds which block, which are free, which may be shared.

A coat check with numbered hooks. A guest gets hooks one by one as coats come, not a rail for the
evening; whoever leaves gives the hooks back. Two guests of one household may use the same hook, which
is free only when both have left. And a coat that nobody has asked for yet may stay on its hook, in
case its owner returns: only when hooks run out does the one that was idle longest go.

A *block* is room for the keys and values of `block_size` tokens, in all layers. The pool deals in
block numbers and never touches a tensor, so the engine and the simulator use this same class. What a
block contains is known to it as a *key*, any hashable value that stands for the block's tokens and
everything before them: the engine takes a hash chained from block to block, a simulation may take
`("system prompt", 3)`. Lessons 05 and 08 look inside.

    free          never used, or its content is forgotten
    referenced    held by one running sequence or more
    cached        held by nobody, but its key can still be found; handed out last, oldest first

Two sequences that begin alike may compute the same content at the same time, into a block each. One
of the two is the one that is found, the other a copy that takes its place when it is let go. So what
somebody holds is never idle, and since every sequence lets go of its end first, a beginning is never
forgotten before what continues it: whatever is cached can be reached from its first block.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from servinglib.errors import InvalidSetting


class BlockPool:
    """Hands out, shares and takes back blocks.

    Parameters
    ----------
    num_blocks : int
        Blocks in all; the pool's own memory grows with those in use only.
    block_size : int
        Tokens in a block.
    """

    def __init__(self, num_blocks: int, block_size: int = 16) -> None:
        if num_blocks < 1 or block_size < 1:
            raise InvalidSetting(
                f"num_blocks={num_blocks} and block_size={block_size} must both be at least 1"
            )
        self.num_blocks, self.block_size = num_blocks, block_size
        self._never_used = 0  # blocks from this number on were never handed out
        self._freed: list[int] = []
        self._references: dict[int, int] = {}
        self._cached: OrderedDict[int, Hashable] = OrderedDict()  # block: key, idle longest first
        self._block_of: dict[Hashable, int] = {}
        self._key_of: dict[int, Hashable] = {}
        self._copies: dict[Hashable, list[int]] = {}  # held, with the content of a held block that is found

    @property
    def num_available(self) -> int:
        """Blocks that can be handed out now: the free ones and the cached ones."""
        return self.num_blocks - len(self._references)

    @property
    def usage(self) -> float:
        """Share of the blocks that running sequences hold, 0 to 1."""
        return len(self._references) / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks so many tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def find(self, keys: Sequence[Hashable]) -> list[int]:
        """The blocks of the longest run of `keys`, from the first on, that the pool still has."""
        blocks: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these found blocks nobody holds; to share those takes from what is available."""
        return sum(block in self._cached for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that `find` named, together with whoever holds them already."""
        for block in blocks:
            self._cached.pop(block, None)
            self._references[block] = self._references.get(block, 0) + 1

    def allocate(self, count: int) -> list[int]:
        """Hold `count` blocks with no content; the longest idle cached ones are forgotten if need be."""
        if count > self.num_available:
            raise InvalidSetting(
                f"{count} blocks are wanted and {self.num_available} of {self.num_blocks} are available; "
                f"look at num_available first, and preempt"
            )
        blocks = [self._take_one() for _ in range(count)]
        self._references.update((block, 1) for block in blocks)
        return blocks

    def publish(self, block: int, key: Hashable) -> None:
        """Let a held block that is full be found by its key; a sequence publishes its blocks in order.

        An idle block of the same content is free again. If another sequence holds one, this is a copy.
        """
        if block in self._key_of:
            return
        self._key_of[block] = key
        known = self._block_of.setdefault(key, block)
        if known == block:
            return
        self._copies.setdefault(key, []).append(block)
        if known in self._cached:
            del self._cached[known]
            self._free_one_of_several(known, key)

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks.

        The last is let go first, so it is forgotten first: a prefix without its end is still worth
        something, an end without its prefix can't be found.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            del self._references[block]
            key = self._key_of.get(block)
            if key is None:
                self._freed.append(block)
            elif key in self._copies:
                self._free_one_of_several(block, key)
            else:
                self._cached[block] = key

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise unless exactly the blocks in `tables`, one table for each holder, are referenced.

        Every block is then free, referenced or cached, and in one of these states only.
        """
        held = Counter(block for table in tables for block in table)
        if held != Counter(self._references):
            raise AssertionError(f"held by sequences: {dict(held)}, by the pool's books: {self._references}")
        states = (set(self._references), set(self._cached), set(self._freed))
        used = set(range(self._never_used))
        if sum(map(len, states)) != len(used) or set.union(*states) != used:
            raise AssertionError(f"blocks lost or in two states: referenced, cached, freed = {states}")
        copies = {block: key for key, blocks in self._copies.items() for block in blocks}
        if {block: key for key, block in self._block_of.items()} | copies != self._key_of:
            raise AssertionError("the keys of the blocks and the blocks of the keys disagree")
        if any(self._block_of[key] in self._cached for key in self._copies):
            raise AssertionError(f"content that is held counts as idle: copies = {copies}")

    def _free_one_of_several(self, block: int, key: Hashable) -> None:
        """Free a block whose content others hold as well; if it is the one that is found, a copy takes over."""
        copies = self._copies[key]
        if self._block_of[key] == block:
            self._block_of[key] = copies.pop()
        else:
            copies.remove(block)
        if not copies:
            del self._copies[key]
        del self._key_of[block]
        self._freed.append(block)

    def _take_one(self) -> int:
        if self._freed:
            return self._freed.pop()
        if self._never_used < self.num_blocks:
            self._never_used += 1
            return self._never_used - 1
        block, key = self._cached.popitem(last=False)
        del self._block_of[key], self._key_of[block]
        return block
