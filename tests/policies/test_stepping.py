"""What a token step holds: plans on paper, and plans under random traffic."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servinglib.cache.block_pool import BlockPool
from servinglib.errors import InvalidRequest, InvalidSetting
from servinglib.policies.scheduling import ByPriority
from servinglib.policies.sequence import SequenceState, StepPlan
from servinglib.policies.stepping import StepPlanner


def planner(blocks: int = 1000, block_size: int = 4, **options) -> StepPlanner:
    return StepPlanner(
        BlockPool(blocks, block_size), **{"max_num_batched_tokens": 16, "max_num_seqs": 4, **options}
    )


def ask(name: object, prompt: int, output: int, **more) -> SequenceState:
    return SequenceState(name, prompt, output, **more)


def content(plan: StepPlan) -> dict[str, int]:
    return {s.sequence.item: s.num_tokens for s in plan.scheduled}


def step(planner: StepPlanner, now: float = 0.0) -> dict[str, int]:
    """Plan, compute, let the finished leave; what the step held."""
    plan = planner.plan(now)
    for sequence in planner.commit(plan):
        if sequence.num_output_tokens == sequence.max_tokens:
            planner.remove(sequence)
    planner.check_integrity()
    return content(plan)


def test_a_prompt_is_read_in_one_step_and_then_one_token_comes_per_step():
    p = planner()
    p.add(ask("a", 5, 3))
    assert [step(p) for _ in range(4)] == [{"a": 5}, {"a": 1}, {"a": 1}, {}]
    assert p.pool.num_available == 1000


def test_a_newcomer_joins_while_others_decode_and_they_go_first():
    p = planner()
    p.add(ask("a", 5, 3))
    step(p)
    p.add(ask("b", 6, 1))
    assert list(step(p).items()) == [("a", 1), ("b", 6)]


def test_a_long_prompt_is_cut_to_the_budget_that_decoding_leaves():
    p = planner()
    p.add(ask("a", 2, 9))
    step(p)
    p.add(ask("long", 40, 1))
    assert [step(p) for _ in range(4)] == [
        {"a": 1, "long": 15},
        {"a": 1, "long": 15},
        {"a": 1, "long": 10},
        {"a": 1},
    ]


def test_a_piece_of_a_prompt_yields_no_token():
    p = planner()
    long = ask("long", 20, 2)
    p.add(long)
    assert (step(p), long.num_output_tokens) == ({"long": 16}, 0)
    assert (step(p), long.num_output_tokens) == ({"long": 4}, 1)


def test_without_chunked_prefill_a_prompt_waits_for_room_and_nobody_passes_it():
    p = planner(chunked_prefill=False)
    for name, prompt in (("a", 10), ("b", 8), ("c", 2)):
        p.add(ask(name, prompt, 2))
    assert [step(p) for _ in range(3)] == [{"a": 10}, {"a": 1, "b": 8, "c": 2}, {"b": 1, "c": 1}]


def test_no_more_sequences_run_than_allowed():
    p = planner(max_num_seqs=2)
    for name in "abc":
        p.add(ask(name, 1, 2))
    assert [list(step(p)) for _ in range(3)] == [["a", "b"], ["a", "b"], ["c"]]


def test_when_blocks_run_out_the_last_in_the_order_starts_again():
    p = planner(blocks=3)  # 12 tokens
    first, second = ask("first", 4, 6), ask("second", 4, 2)
    p.add(first)
    p.add(second)
    assert step(p) == {"first": 4, "second": 4}
    assert step(p) == {"first": 1}  # both want a second block and one is left
    assert (second.num_preemptions, second.num_computed_tokens, second.blocks) == (1, 0, [])
    held = [step(p) for _ in range(6)]
    assert held[:4] == [{"first": 1}] * 4
    assert held[4] == {"second": 5}  # its prompt and the token that it had already
    assert first.num_preemptions == 0


def test_a_sequence_that_was_scheduled_already_can_still_be_preempted():
    p = planner(blocks=5, order=ByPriority())  # 20 tokens
    low, urgent = ask("low", 1, 8), ask("urgent", 18, 2, priority=1)
    p.add(low)
    step(p)
    p.add(urgent)
    assert step(p) == {"low": 1, "urgent": 15}
    assert step(p) == {"urgent": 3}  # its fifth block is low's only one, and low was in the plan already
    assert low.num_preemptions == 1


def test_a_prefix_that_is_still_there_is_not_computed_again():
    p = planner(max_num_batched_tokens=32)
    p.add(ask("a", 10, 2, block_keys=["x", "y"]))
    p.add(ask("b", 10, 1, block_keys=["x", "z"]))
    step(p)  # both compute: the blocks are published when they are full
    c = ask("c", 10, 1, block_keys=["x", "y"])
    p.add(c)
    assert step(p) == {"a": 1, "c": 2}
    assert c.num_cached_tokens == 8


def test_a_prompt_that_is_cached_whole_still_computes_its_last_token():
    p = planner()
    p.add(ask("a", 8, 1, block_keys=["x", "y"]))
    step(p)
    b = ask("b", 8, 1, block_keys=["x", "y"])
    p.add(b)
    assert step(p) == {"b": 4}
    assert (b.num_cached_tokens, b.num_output_tokens) == (4, 1)


def test_a_preempted_sequence_finds_its_own_prompt_in_the_cache():
    p = planner(blocks=4)
    first, second = ask("first", 4, 8), ask("second", 8, 3, block_keys=["x", "y"])
    p.add(first)
    p.add(second)
    step(p)
    step(p)
    assert second.num_preemptions == 1
    while first in p.running:
        step(p)
    step(p)
    assert second.num_cached_tokens > 0


def test_an_urgent_request_goes_first():
    p = planner(max_num_seqs=1, order=ByPriority())
    for name, priority in (("a", 0), ("b", 1), ("c", 1)):
        p.add(ask(name, 1, 1, priority=priority))
    assert [list(step(p)) for _ in range(3)] == [["b"], ["c"], ["a"]]


def test_an_aborted_request_leaves_no_block_behind_wherever_it_is():
    p = planner()
    running, queued = ask("running", 20, 2), ask("queued", 4, 2)
    p.add(running)
    p.add(queued)
    step(p)
    p.remove(running)
    p.remove(queued)
    p.check_integrity()
    assert p.pool.num_available == 1000
    assert step(p) == {}


@pytest.mark.parametrize(
    ("blocks", "options", "prompt", "message"),
    [
        (3, {}, 11, "11 prompt tokens and max_tokens=3 need 13 tokens of KV cache, which holds 12"),
        (99, {"chunked_prefill": False}, 15, "one step, which holds 16 tokens"),
        (99, {}, 0, "at least 1"),
    ],
)
def test_a_request_that_can_never_be_served_is_refused_at_once(blocks, options, prompt, message):
    p = planner(blocks=blocks, **options)
    with pytest.raises(InvalidRequest, match=message):
        p.add(ask("a", prompt, 3))
    assert p.waiting == []


def test_a_step_smaller_than_the_batch_is_refused():
    with pytest.raises(InvalidSetting, match="max_num_seqs=20"):
        planner(max_num_seqs=20)


REQUESTS = st.lists(
    st.tuples(st.integers(1, 24), st.integers(1, 12), st.integers(0, 3), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS, st.integers(9, 20), st.booleans(), st.lists(st.integers(0, 11), max_size=4))
def test_under_any_traffic_every_request_ends_once_and_no_block_is_lost(requests, blocks, urgent, aborts):
    """With shared prefixes, preemption, aborts in the middle, and either order."""
    p = planner(blocks=blocks, order=ByPriority() if urgent else None)
    finished, alive = [], {}
    for i, (prompt, output, priority, family) in enumerate(requests):
        keys = [(family, j) for j in range(prompt // 4)]
        alive[i] = ask(i, prompt, output, arrival=i, priority=priority, block_keys=keys)
    coming, doomed = list(alive.values()), list(aborts)
    for _ in range(3000):
        if coming:
            p.add(coming.pop(0))
        plan = p.plan(0.0)
        p.check_integrity()
        assert plan.num_tokens == sum(s.num_tokens for s in plan.scheduled) <= 16
        assert len(p.running) <= 4
        assert plan.scheduled or not (p.running or p.waiting)  # work-conserving
        for sequence in p.commit(plan):
            if sequence.num_output_tokens == sequence.max_tokens:
                p.remove(sequence)
                finished.append(sequence.item)
        if doomed and (victim := alive.get(doomed.pop())) in (*p.running, *p.waiting):
            p.remove(victim)
            finished.append(victim.item)
        if not (coming or p.running or p.waiting):
            break
    assert sorted(finished) == list(alive)
    assert p.pool.num_available == blocks
