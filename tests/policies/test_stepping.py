"""What a token step holds: plans on paper, and plans under random traffic."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servinglib.cache.block_pool import BlockPool
from servinglib.errors import InvalidRequest, InvalidSetting
from servinglib.policies.scheduling import (
    POLICIES,
    ByPriority,
    FirstComeFirstServed,
    scheduling_policy,
)
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


def step(planner: StepPlanner, now: float = 0.0, right: int = 0) -> dict[str, int]:
    """Plan, compute, accept `right` drafts or all if fewer, let the finished leave; what the step held."""
    plan = planner.plan(now)
    accepted = {s.sequence: min(right, s.num_draft_tokens) for s in plan.scheduled}
    for sequence in planner.commit(plan, accepted):
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


def test_a_plan_forgets_all_that_it_held_for_a_preempted_sequence():
    reads, decodes, plan = ask("reads", 3, 1), ask("decodes", 3, 2), StepPlan()
    plan.schedule(decodes, 1, is_prefill=False)
    plan.schedule(reads, 3, is_prefill=True)
    plan.preempt(reads)
    assert (content(plan), plan.num_tokens, plan.num_prefill_tokens) == ({"decodes": 1}, 1, 0)


def test_an_urgent_request_that_came_later_decodes_first_too():
    p = planner(order=ByPriority())
    p.add(ask("low", 1, 9))
    step(p)
    p.add(ask("urgent", 1, 9, priority=1))
    step(p)
    assert list(step(p)) == ["urgent", "low"]


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


@pytest.mark.parametrize("limit", [{"max_num_seqs": 20}, {"max_prefill_tokens": 0}, {"max_draft_tokens": -1}])
def test_limits_under_which_somebody_would_stand_still_are_refused(limit):
    ((name, value),) = limit.items()
    with pytest.raises(InvalidSetting, match=f"{name}={value}"):
        planner(**limit)


def test_prompts_get_no_more_of_a_step_than_their_own_limit():
    p = planner(max_prefill_tokens=6)
    for name, prompt in (("a", 2), ("b", 3), ("c", 8)):
        p.add(ask(name, prompt, 3))
    assert [step(p) for _ in range(3)] == [
        {"a": 2, "b": 3, "c": 1},
        {"a": 1, "b": 1, "c": 6},
        {"a": 1, "b": 1, "c": 1},
    ]


def test_without_chunks_a_prompt_must_fit_the_limit_of_prompts():
    with pytest.raises(InvalidRequest, match="one step, which holds 6 tokens"):
        planner(max_prefill_tokens=6, chunked_prefill=False).add(ask("a", 5, 3))


def test_the_policy_says_who_decodes():
    p = planner(max_num_batched_tokens=200, order=scheduling_policy("sjf-aligned"))
    for name, prompt in (("a", 50), ("b", 52)):
        p.add(ask(name, prompt, 9))
    assert [step(p) for _ in range(4)] == [{"a": 50, "b": 52}, {"a": 1}, {"a": 1}, {"a": 1, "b": 1}]


class NobodyDecodes(FirstComeFirstServed):
    def decode_batch(self, decoding, now):
        return []


def test_a_policy_that_lets_nobody_decode_is_told_so():
    p = planner(order=NobodyDecodes())
    p.add(ask("a", 3, 3))
    step(p)
    with pytest.raises(InvalidSetting, match=r"NobodyDecodes.decode_batch lets none of 1 decode"):
        p.plan(0.0)


class LastDecodes(ByPriority):
    """Only the last in the order decodes, who is also the first to be preempted."""

    def decode_batch(self, decoding, now):
        return self.order(decoding, now)[-1:]


def test_when_all_that_should_decode_are_preempted_others_do():
    p = planner(blocks=2, order=LastDecodes())
    p.add(ask("a", 3, 5))
    p.add(ask("b", 4, 3))
    assert [step(p) for _ in range(2)] == [{"a": 3, "b": 4}, {"a": 1}]
    assert p.preemptions == 1


def test_preempting_those_whose_blocks_others_share_goes_on_until_somebody_can_decode():
    p = planner(blocks=7, order=LastDecodes(), max_num_seqs=5, max_num_batched_tokens=32)
    other = ask("other", 1, 9, priority=-1)
    p.add(other)
    for i, keys in enumerate((["x", "y"], ["u", "v"])):
        p.add(ask(f"short {i}", 8, 4, block_keys=keys, priority=i))
    step(p)
    for i, keys in enumerate((["x", "y"], ["u", "v"])):
        p.add(ask(f"long {i}", 9, 4, block_keys=keys, priority=2))
    assert step(p) == {"other": 1, "long 0": 1, "long 1": 1}
    other.priority = 3
    plan = p.plan(0.0)
    assert [s.item for s in plan.preempted] == ["short 0", "short 1"]  # which frees no block
    assert content(plan) == {"long 1": 1}


def test_when_a_prompt_takes_their_blocks_and_then_has_to_go_itself_others_decode():
    p = planner(blocks=5, order=LastDecodes(), max_prefill_tokens=9)
    p.add(ask("first", 3, 9, priority=2))
    p.add(ask("last", 1, 9, priority=0))
    step(p)
    p.add(ask("reads", 18, 2, priority=1))
    assert step(p) == {"last": 1, "reads": 9}  # now all blocks are held, and the prompt wants two more
    plan = p.plan(0.0)
    assert content(plan) == {"first": 1}
    assert [s.item for s in plan.preempted] == ["last", "reads"]


def test_lookups_and_hits_in_the_prefix_cache_are_counted_once_per_request():
    p = planner(blocks=4, max_num_seqs=2)
    p.add(ask("first", 4, 8))
    p.add(ask("second", 8, 3, block_keys=["x", "y"]))  # comes back once, and finds its own prompt
    p.add(ask("third", 10, 1, block_keys=["x", "y"]))
    while p.running or p.waiting:
        step(p)
    assert (p.preemptions, p.prefix_queries, p.prefix_hits) == (1, 4 + 8 + 10, 8)


def test_drafts_are_scheduled_behind_a_decoding_sequences_own_token_up_to_its_end():
    p = planner(max_draft_tokens=3)
    a = ask("a", 4, 7)
    p.add(a)
    assert step(p) == {"a": 4}  # a prompt is no place for guesses
    assert step(p, right=2) == {"a": 4}
    assert (a.num_output_tokens, a.num_computed_tokens) == (4, 7)
    assert step(p, right=0) == {"a": 3}  # two more would be the sixth and the seventh
    assert step(p, right=9) == {"a": 2}
    assert (a.num_output_tokens, p.running) == (7, [])


def test_drafts_get_what_prompts_leave_of_a_step():
    p = planner(max_draft_tokens=3, max_num_batched_tokens=8, max_num_seqs=3)
    p.add(ask("a", 2, 20))
    step(p)
    p.add(ask("b", 10, 20))
    assert [step(p) for _ in range(3)] == [{"a": 1, "b": 7}, {"a": 4, "b": 3}, {"a": 4, "b": 4}]


def test_drafts_are_given_up_before_anybody_is_preempted():
    p = planner(blocks=3, max_draft_tokens=4)
    a, b = ask("a", 3, 6), ask("b", 4, 7)
    p.add(a)
    p.add(b)
    step(p)
    plan = p.plan(0.0)
    assert [(s.num_tokens, s.num_draft_tokens) for s in plan.scheduled] == [(1, 0), (4, 3)]
    assert plan.num_tokens == 5
    p.commit(plan)
    assert p.preemptions == 0


def test_blocks_of_rejected_drafts_are_free_again_after_the_step():
    p = planner(max_draft_tokens=6)
    a = ask("a", 4, 20)
    p.add(a)
    step(p)
    assert step(p, right=1) == {"a": 7}  # tokens 5 to 11: two blocks more
    assert (len(a.blocks), p.pool.num_available) == (2, 998)


def test_only_blocks_full_of_accepted_tokens_can_be_found():
    p = planner(max_draft_tokens=6)
    a = ask("a", 3, 20, block_keys=["x", "y", "z"])
    p.add(a)
    step(p)
    step(p, right=4)
    assert p.pool.find(["x", "y", "z"]) == a.blocks[:2]


@pytest.mark.parametrize("right", [-1, 4])
def test_accepting_drafts_that_were_never_scheduled_is_refused_and_nothing_noted(right):
    p = planner(max_draft_tokens=3)
    a = ask("a", 4, 9)
    p.add(a)
    step(p)
    plan = p.plan(0.0)
    with pytest.raises(InvalidSetting, match=f"{right} draft tokens of sequence 0 .* held 3"):
        p.commit(plan, {a: right})
    assert (a.num_computed_tokens, a.num_output_tokens) == (4, 1)


REQUESTS = st.lists(
    st.tuples(st.integers(1, 24), st.integers(1, 12), st.integers(0, 3), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    REQUESTS,
    st.integers(9, 20),
    st.booleans(),
    st.integers(0, 3),
    st.lists(st.integers(0, 11), max_size=4),
    st.randoms(use_true_random=False),
)
def test_under_any_traffic_every_request_ends_once_and_no_block_is_lost(
    policy, requests, blocks, chunked, drafts, aborts, chance
):
    """With shared prefixes, preemption, drafts, aborts in the middle, and any policy."""
    limits = {} if chunked else {"max_num_batched_tokens": 36}
    p = planner(
        blocks, order=scheduling_policy(policy), max_draft_tokens=drafts, chunked_prefill=chunked, **limits
    )
    finished, alive = [], {}
    for i, (prompt, output, priority, family) in enumerate(requests):
        keys = [(family, j) for j in range(prompt // 4)]
        alive[i] = ask(i, prompt, output, arrival=i, priority=priority, block_keys=keys)
    coming, doomed = list(alive.values()), list(aborts)
    for now in range(3000):
        if coming:
            p.add(coming.pop(0))
        plan = p.plan(float(now))
        p.check_integrity()
        assert plan.num_tokens == sum(s.num_tokens for s in plan.scheduled) <= p.max_num_batched_tokens
        assert plan.num_prefill_tokens == sum(s.num_tokens for s in plan.scheduled if s.is_prefill)
        assert len(p.running) <= 4
        assert plan.scheduled or not (p.running or p.waiting)  # work-conserving
        accepted = {s.sequence: chance.randint(0, s.num_draft_tokens) for s in plan.scheduled}
        for sequence in p.commit(plan, accepted):
            if sequence.num_output_tokens == sequence.max_tokens:
                p.remove(sequence)
                finished.append(sequence.item)
        p.check_integrity()
        if doomed and (victim := alive.get(doomed.pop())) in (*p.running, *p.waiting):
            p.remove(victim)
            finished.append(victim.item)
        if not (coming or p.running or p.waiting):
            break
    assert sorted(finished) == list(alive)
    assert all(s.num_output_tokens <= s.max_tokens for s in alive.values())
    assert p.preemptions == sum(s.num_preemptions for s in alive.values())
    assert p.pool.num_available == blocks
