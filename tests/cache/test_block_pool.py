"""The books of the paged KV cache."""

import pytest

from servinglib.cache.block_pool import BlockPool
from servinglib.cache.prefix import block_keys
from servinglib.errors import InvalidSetting


def test_tokens_fill_whole_blocks_and_a_part_of_the_last():
    pool = BlockPool(8, block_size=16)
    assert [pool.blocks_for(n) for n in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]


def test_released_blocks_are_available_again():
    pool = BlockPool(4)
    table = pool.allocate(3)
    assert (pool.num_available, pool.usage) == (1, 0.75)
    pool.release(table)
    assert (pool.num_available, pool.usage) == (4, 0.0)
    pool.check_integrity([])


def test_more_blocks_than_available_are_refused_with_the_numbers():
    pool = BlockPool(4)
    pool.allocate(3)
    with pytest.raises(InvalidSetting, match="2 blocks are wanted and 1 of 4"):
        pool.allocate(2)
    assert pool.num_available == 1


def test_a_shared_block_is_free_only_when_both_have_left():
    pool = BlockPool(4)
    first = pool.allocate(1)
    pool.publish(first[0], "system prompt")
    second = pool.find(["system prompt", "something else"])
    pool.share(second)
    assert second == first
    pool.release(first)
    assert pool.num_available == 3
    pool.check_integrity([second])
    pool.release(second)
    assert pool.num_available == 4


def test_a_block_that_nobody_holds_can_still_be_found():
    pool = BlockPool(4)
    table = pool.allocate(2)
    for block, key in zip(table, "ab", strict=True):
        pool.publish(block, key)
    pool.release(table)
    assert pool.find("ab") == table
    assert pool.num_idle(table) == 2
    pool.share(table)
    assert pool.num_available == 2
    pool.check_integrity([table])


def test_only_a_run_from_the_start_is_found():
    pool = BlockPool(4)
    table = pool.allocate(2)
    pool.publish(table[0], "a")
    pool.publish(table[1], "c")
    assert pool.find("abc") == table[:1]
    assert pool.find("bc") == []


def test_the_block_that_was_idle_longest_is_forgotten_first_and_ends_before_beginnings():
    pool = BlockPool(4)
    old, new = pool.allocate(2), pool.allocate(2)
    for table, keys in ((old, "ab"), (new, "cd")):
        for block, key in zip(table, keys, strict=True):
            pool.publish(block, key)
    pool.release(old)
    pool.release(new)
    pool.allocate(1)
    assert pool.find("ab") == old[:1]
    pool.allocate(1)
    assert pool.find("ab") == []
    assert pool.find("cd") == new


def test_a_second_block_with_the_same_content_stays_private():
    pool = BlockPool(4)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.publish(first[0], "a")
    pool.publish(second[0], "a")
    pool.release(second)
    assert pool.find("a") == first
    pool.check_integrity([first])


def test_a_lost_block_is_noticed():
    pool = BlockPool(4)
    table = pool.allocate(2)
    with pytest.raises(AssertionError, match="held by sequences"):
        pool.check_integrity([table[:1]])


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 16), (4, 0)])
def test_a_pool_without_room_is_refused(num_blocks: int, block_size: int):
    with pytest.raises(InvalidSetting, match="at least 1"):
        BlockPool(num_blocks, block_size)


def begin(pool: BlockPool, tokens: list[int], most: int | None = None) -> tuple[list[int], int]:
    """Blocks for a prompt, the first `most` of them shared if they are there; and how many were."""
    found = pool.find(block_keys(tokens, pool.block_size)[:most])
    pool.share(found)
    return found + pool.allocate(pool.blocks_for(len(tokens)) - len(found)), len(found)


def compute(pool: BlockPool, table: list[int], tokens: list[int]) -> None:
    for block, key in zip(table, block_keys(tokens, pool.block_size), strict=False):
        pool.publish(block, key)


HELLO = list(range(8))


def test_a_prompt_that_is_cached_whole_computes_its_last_block_anew_and_takes_no_second_place():
    """The last token must be computed to get the next one, so the last block can't be shared."""
    pool = BlockPool(4, block_size=4)
    first, _ = begin(pool, HELLO)
    compute(pool, first, HELLO)
    pool.release(first)
    for _ in range(5):
        table, shared = begin(pool, HELLO, most=(len(HELLO) - 1) // 4)
        assert (shared, table[0] == first[0]) == (1, True)
        compute(pool, table, HELLO)
        assert pool.find(block_keys(HELLO, 4)) == table
        pool.release(table)
        pool.check_integrity([])
    assert pool.num_idle(range(4)) == 2, "one block per content is kept, the others are free"


def test_a_freed_duplicate_leaves_the_running_sequence_its_own_block():
    pool = BlockPool(4, block_size=4)
    (one, _), (two, _) = begin(pool, HELLO), begin(pool, HELLO)
    compute(pool, one, HELLO)
    compute(pool, two, HELLO)
    pool.release(one)
    assert pool.find(block_keys(HELLO, 4)) == two, "what a running sequence holds takes over"
    assert set(pool.allocate(2)) == set(one), "only blocks that nobody holds are handed out"
    third, shared = begin(pool, HELLO)
    assert (third, shared) == (two, 2)
    pool.release(two)
    assert pool.num_available == 0


def test_a_preempted_sequence_finds_its_own_blocks_again():
    pool = BlockPool(4, block_size=4)
    tokens = list(range(10))
    table, _ = begin(pool, tokens)
    compute(pool, table, tokens)
    pool.release(table)
    again, shared = begin(pool, tokens)
    assert (again[:2], shared) == (table[:2], 2)
    assert pool.find(block_keys(tokens, 4)) == again[:2]
    pool.check_integrity([again])


def test_an_end_is_never_kept_without_its_beginning():
    """Two compute the same; the one whose beginning is found leaves first, the other's end stays longer."""
    pool = BlockPool(4, block_size=4)
    (one, _), (two, _) = begin(pool, HELLO), begin(pool, HELLO)
    compute(pool, one[:1], HELLO)
    pool.release(one)  # aborted in the middle of its prompt
    compute(pool, two, HELLO)
    pool.release(two)
    pool.allocate(3)
    assert pool.find(block_keys(HELLO, 4)) == two[:1], "the end is forgotten first"
