"""Keys of blocks: equal where everything up to there is equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servinglib.cache.block_pool import BlockPool
from servinglib.cache.prefix import block_keys, extend_keys
from servinglib.errors import InvalidSetting
from servinglib.policies.sequence import SequenceState
from servinglib.policies.stepping import StepPlanner

TOKENS = st.lists(st.integers(0, 3), max_size=20)
SIZES = st.integers(1, 5)


@given(TOKENS, TOKENS, SIZES)
def test_two_keys_are_equal_exactly_if_all_tokens_up_to_there_are(a: list[int], b: list[int], size: int):
    beginnings = {}
    for tokens in (a, b):
        for i, key in enumerate(block_keys(tokens, size)):
            assert beginnings.setdefault(key, tokens[: (i + 1) * size]) == tokens[: (i + 1) * size]
    distinct = {tuple(t[:end]) for t in (a, b) for end in range(size, len(t) + 1, size)}
    assert len(beginnings) == len(distinct)


@given(st.lists(TOKENS, max_size=6), SIZES, st.sampled_from([b"", b"tenant"]))
def test_keys_that_grow_with_the_sequence_are_those_of_the_whole(pieces: list, size: int, salt: bytes):
    tokens, keys = [], []
    for piece in pieces:
        tokens += piece
        extend_keys(keys, tokens, size, salt)
        assert keys == block_keys(tokens, size, salt)
    assert len(keys) == len(tokens) // size


def test_a_block_that_is_not_full_has_no_key():
    assert len(block_keys(range(47), 16)) == 2
    assert block_keys([], 16) == []


def test_only_new_tokens_are_looked_at():
    keys = block_keys([1, 2, 3, 4], 2)
    extend_keys(keys, [None, None, None, None, 5, 6], 2)  # type: ignore[list-item]
    assert keys == block_keys([1, 2, 3, 4, 5, 6], 2)


def test_tenants_with_different_salts_share_nothing():
    tokens = list(range(64))
    shared = set(block_keys(tokens, 16, b"a")) & set(block_keys(tokens, 16, b"b"))
    assert not shared
    assert block_keys(tokens, 16, b"a") == block_keys(tokens, 16, b"a")


def test_a_salt_that_looks_like_a_key_does_not_lead_into_another_s_chain():
    tokens = list(range(32))
    first, second = block_keys(tokens, 16)
    assert block_keys(tokens[16:], 16, salt=first) != [second]


def test_large_ids_have_keys_of_their_own():
    assert len({block_keys([n], 1)[0] for n in (0, 1, 2**8, 2**16, 2**32, 2**40)}) == 6


def test_a_block_without_tokens_is_refused():
    with pytest.raises(InvalidSetting, match="block_size=0"):
        block_keys([1], 0)


# In the hands of the planner


def sequence(tokens: list[int], max_tokens: int = 4) -> SequenceState:
    return SequenceState("s", len(tokens), max_tokens, block_keys=block_keys(tokens, 4))


def finish(planner: StepPlanner, one: SequenceState) -> None:
    while one.num_output_tokens < one.max_tokens:
        planner.commit(planner.plan(0.0))
        planner.check_integrity()
    planner.remove(one)


def test_a_prompt_that_is_cached_whole_still_computes_the_token_that_the_answer_begins_with():
    planner = StepPlanner(BlockPool(8, block_size=4))
    for expected in (0, 4, 4):
        one = sequence(list(range(8)))
        planner.add(one)
        finish(planner, one)
        assert one.num_cached_tokens == expected
    assert planner.pool.num_available == 8


def test_a_sequence_that_is_preempted_finds_its_prefix_again_and_goes_on_where_it_was():
    planner = StepPlanner(BlockPool(6, block_size=4))
    first, last = sequence(list(range(8)), max_tokens=9), sequence(list(range(4, 12)), max_tokens=9)
    planner.add(first)
    planner.add(last)
    while not last.num_preemptions:
        planner.commit(planner.plan(0.0))
    before = last.num_output_tokens
    finish(planner, first)
    assert last.num_output_tokens >= before > 0
    finish(planner, last)
    assert last.num_cached_tokens > 0
    assert planner.pool.num_available == 6
