"""The loop, step by step, with a scripted model: who ends, how, and what is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import Desk, Gate, SteppedLoop, build, letters, script, stepped

from servinglib.engines.continuous.loop import EngineLoop
from servinglib.errors import EngineFailed, InvalidRequest, ServerClosed
from servinglib.policies.length_prediction import MeanLength
from servinglib.policies.sequence import StepPlan

A, B, C = [1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5], [3, 1, 4, 1, 5, 9, 2, 6, 5]


class Clock:
    """The loop's clock, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(
            "servinglib.engines.continuous.loop.time", SimpleNamespace(perf_counter=lambda: self.now)
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# Answers


def test_requests_that_come_and_go_get_the_answers_of_the_script():
    loop, desk = stepped(blocks=6)
    desk.ask("a", A, 9)
    loop.turn(2)
    desk.ask("b", B, 3)
    loop.turn()
    desk.ask("c", C, 8)
    loop.finish()
    for name, prompt, count in (("a", A, 9), ("b", B, 3), ("c", C, 8)):
        assert desk.tokens(name) == script(prompt, count)
        assert desk.ends(name) == ["length"]


def test_a_preempted_request_comes_back_with_a_prefix_hit_and_goes_on_where_it_was():
    loop, desk = stepped(blocks=6)  # 24 tokens
    desk.ask("first", B, 12)
    desk.ask("second", A, 10, arrival=1)
    while not loop.planner.preemptions:
        loop.turn()
    [second] = loop.planner.waiting
    assert 0 < second.num_output_tokens < 10
    loop.finish()
    assert second.num_cached_tokens > 0
    assert desk.tokens("second") == script(A, 10)
    assert desk.tokens("first") == script(B, 12)


def test_a_prompt_that_is_cached_whole_gets_the_same_answer_again():
    loop, desk = stepped()
    for name in ("once", "again"):
        desk.ask(name, A, 5)
        loop.finish()
        assert desk.tokens(name) == script(A, 5)
    assert loop.planner.prefix_hits == 4  # of 8; the last token must be computed, and so its block


def test_a_freed_copy_of_a_page_is_not_taken_from_a_request_that_runs_on():
    loop, desk = stepped(blocks=8)
    desk.ask("long", A, 14)
    desk.ask("twin", A, 2)  # computes the same pages at the same time, and leaves
    loop.turn(2)
    assert desk.ends("twin") == ["length"]
    desk.ask("other", C, 4)  # writes into what the twin has left
    loop.finish()
    assert desk.tokens("long") == script(A, 14)
    assert desk.tokens("other") == script(C, 4)


def test_equal_pages_behind_different_beginnings_are_not_shared():
    loop, desk = stepped()
    for name, prompt in (("one", [1] * 4 + A), ("other", [2] * 4 + [3] * 5), ("third", [2] * 4 + A)):
        desk.ask(name, prompt, 3)
        loop.finish()
        assert desk.tokens(name) == script(prompt, 3)
    assert loop.planner.prefix_hits == 4, "the beginning of the second, and not what follows the first's"


def test_without_prefix_caching_nothing_is_shared():
    loop, desk = stepped(prefix_caching=False)
    for name in ("once", "again"):
        desk.ask(name, A, 5)
        loop.finish()
    assert loop.planner.prefix_hits == 0
    assert desk.tokens("again") == script(A, 5)


def test_accepted_guesses_are_told_one_by_one_and_a_step_after_the_end_is_not():
    loop, desk = stepped(max_draft_tokens=3)
    answer = script(A, 12)
    stop = answer[6]
    desk.ask("a", A, 12, eos=[stop])
    loop.finish()
    told = answer[: answer.index(stop) + 1]
    assert desk.tokens("a") == told
    assert [e.index for e in desk.events("a")] == list(range(len(told)))
    assert desk.ends("a") == ["stop"]
    assert loop.counters.generation_tokens == len(told)
    assert loop.counters.accepted > 0


def test_a_predictor_learns_what_the_client_got_not_guesses_behind_the_end():
    predictor = MeanLength(1)
    loop, desk = stepped(predictor=predictor, policy="shortest-remaining", max_draft_tokens=6)
    answer = script(A, 12)
    desk.ask("a", A, 12, eos=[answer[2]])
    loop.finish()
    length = answer.index(answer[2]) + 1
    desk.ask("b", B, 12)
    loop.turn()
    [b] = loop.planner.running
    assert b.predicted_output_tokens == (1 + length) / 2


@pytest.mark.parametrize("overlap", [False, True])
def test_each_token_is_told_once_and_nothing_behind_the_end(overlap: bool):
    loop, desk = stepped(overlap=overlap)
    answer = script(A, 12)
    desk.ask("eos", A, 12, eos=[answer[2]])
    desk.ask("one", B, 1)
    desk.ask("five", C, 5)
    loop.finish()
    assert desk.tokens("eos") == answer[: answer.index(answer[2]) + 1]
    assert (desk.tokens("one"), desk.tokens("five")) == (script(B, 1), script(C, 5))
    assert [desk.ends(name) for name in ("eos", "one", "five")] == [["stop"], ["length"], ["length"]]


def test_with_overlap_a_step_is_launched_before_the_last_one_s_tokens_are_told():
    told: list[int] = []
    loop, desk = stepped(overlap=True, before=lambda plan: told.append(len(desk.tokens("a"))))
    desk.ask("a", A, 4)
    loop.finish()
    assert told == [0, 0, 1, 2], "one behind"
    assert desk.tokens("a") == script(A, 4)


def test_with_overlap_a_request_is_aborted_while_its_token_is_in_flight():
    loop, desk = stepped(overlap=True)
    desk.ask("a", A, 9)
    desk.ask("b", B, 9)
    loop.turn(3)
    assert loop.abort("a")
    loop.finish()
    assert (desk.ends("a"), desk.tokens("a")) == (["abort"], script(A, 2))
    assert desk.tokens("b") == script(B, 9)


# Several answers to one request


def test_the_other_choices_start_when_the_first_has_read_the_prompt_and_find_its_pages():
    loop, desk = stepped()
    desk.ask("a", C, 6, n=3, temperature=1.0)
    loop.turn()
    assert len(loop.planner.running) == 1
    loop.turn()
    assert [s.num_cached_tokens for s in loop.planner.running] == [0, 8, 8]
    loop.finish()
    assert [desk.tokens("a", choice) for choice in range(3)] == [script(C, 6)] * 3
    assert desk.ends("a") == ["length"] * 3
    assert loop.counters.finished == {"length": 1}, "one request, however many answers"


def test_choices_that_wait_start_even_if_the_first_ends_with_its_first_token():
    loop, desk = stepped()
    desk.ask("a", B, 1, n=3, temperature=1.0)
    loop.finish()
    assert [desk.tokens("a", choice) for choice in range(3)] == [script(B, 1)] * 3


def test_an_abort_ends_the_choices_that_have_not_begun_too():
    loop, desk = stepped()
    desk.ask("a", [*A, *A, *C], 6, n=2, temperature=1.0)
    loop.turn()  # the prompt is longer than a step
    assert desk.loop.abort("a") is True
    loop.finish()
    assert [(e.choice, e.finish_reason, e.token_id) for e in desk.events("a")] == [
        (0, "abort", None),
        (1, "abort", None),
    ]


# Ends


def test_finish_reasons_are_told_truly():
    loop, desk = stepped(max_num_batched_tokens=64)
    answer = script(A, 12)
    desk.ask("eos", A, 12, eos=[answer[3]])
    desk.ask("ignored", A, 12, eos=[answer[3]], ignore_eos=True)
    desk.ask("string", A, 12, stop=letters(answer[4:6]))
    desk.ask("length", A, 7)
    loop.finish()
    cut = answer.index(answer[3])
    assert (desk.ends("eos"), desk.tokens("eos")) == (["stop"], answer[: cut + 1])
    assert (desk.ends("ignored"), desk.tokens("ignored")) == (["length"], answer)
    shown = letters(answer)
    assert (desk.ends("string"), desk.text("string")) == (
        ["stop"],
        shown[: shown.index(letters(answer[4:6]))],
    )
    assert (desk.ends("length"), desk.text("length")) == (["length"], shown[:7])
    assert loop.counters.finished == {"stop": 2, "length": 2}


def waiting(loop: SteppedLoop, desk: Desk, deadline: float | None) -> None:
    desk.ask("first", A, 6)
    desk.ask("it", C, 6, deadline=deadline)
    loop.turn()
    assert len(loop.planner.waiting) == 1


def mid_prefill(loop: SteppedLoop, desk: Desk, deadline: float | None) -> None:
    desk.ask("it", C * 5, 6, deadline=deadline)
    loop.turn()
    [it] = loop.planner.running
    assert 0 < it.num_computed_tokens < it.num_prompt_tokens


def decoding(loop: SteppedLoop, desk: Desk, deadline: float | None) -> None:
    desk.ask("it", C, 6, deadline=deadline)
    loop.turn(3)
    assert len(desk.tokens("it")) == 3


def preempted(loop: SteppedLoop, desk: Desk, deadline: float | None) -> None:
    desk.ask("first", A, 30)
    desk.ask("it", C, 30, arrival=1, deadline=deadline)
    while not loop.planner.preemptions:
        loop.turn()
    [it] = loop.planner.waiting
    assert it.num_preemptions == 1


PHASES = [(waiting, {"max_num_seqs": 1}), (mid_prefill, {}), (decoding, {}), (preempted, {"blocks": 12})]


@pytest.mark.parametrize(("phase", "world"), PHASES, ids=[phase.__name__ for phase, _ in PHASES])
@pytest.mark.parametrize("how", ["abort", "deadline"])
def test_a_request_that_is_ended_in_any_phase_keeps_its_tokens_and_leaks_nothing(
    phase: Callable[[SteppedLoop, Desk, float | None], None], world: dict[str, Any], how: str, clock: Clock
):
    loop, desk = stepped(**world)
    phase(loop, desk, 9.0 if how == "deadline" else None)
    had = desk.tokens("it")
    if how == "abort":
        assert loop.abort("it") is True
    else:
        clock.now = 9.0
    loop.turn()
    last = desk.events("it")[-1]
    assert (desk.ends("it"), desk.tokens("it")) == ([how], had)
    assert (last.token_id, last.index, desk.text("it")) == (None, len(had), letters(had))
    assert loop.abort("it") is False
    loop.finish()
    assert desk.ends("it") == [how]
    assert desk.ends("first") == (["length"] if "first" in desk.heard else [])
    assert loop.counters.finished[how] == 1


def test_text_held_back_for_a_stop_string_is_shown_at_the_deadline(clock: Clock):
    loop, desk = stepped()
    shown = letters(script(A, 3))
    desk.ask("a", A, 9, stop=shown[1:] + "?", deadline=5.0)
    loop.turn(3)
    assert desk.text("a") == shown[0]
    clock.now = 5.0
    loop.finish()
    assert (desk.text("a"), desk.ends("a")) == (shown, ["deadline"])


def test_a_deadline_ends_nothing_before_it_has_come(clock: Clock):
    loop, desk = stepped()
    desk.ask("a", A, 3, deadline=5.0)
    clock.now = 4.99
    loop.finish()
    assert desk.ends("a") == ["length"]


def test_deadlines_come_in_their_own_order_whatever_the_order_of_the_requests(clock: Clock):
    loop, desk = stepped()
    for name, deadline in (("late", 30.0), ("soon", 10.0), ("middle", 20.0)):
        desk.ask(name, A, 40, deadline=deadline)
    ended = []
    for clock.now in (5.0, 10.0, 20.0, 30.0):
        loop.turn()
        ended.append([name for name in ("soon", "middle", "late") if desk.ends(name) == ["deadline"]])
    assert ended == [[], ["soon"], ["soon", "middle"], ["soon", "middle", "late"]]


# Ids


def test_the_deadline_of_a_finished_request_does_not_end_a_later_one_of_the_same_id(clock: Clock):
    loop, desk = stepped()
    desk.ask("a", A, 2, deadline=10.0)
    loop.finish()
    clock.now = 9.0
    desk.ask("a", B, 8, deadline=100.0)
    loop.turn()
    clock.now = 11.0
    loop.finish()
    assert desk.ends("a") == ["length", "length"]


def test_an_abort_that_comes_too_late_does_not_end_a_later_request_of_the_same_id():
    loop, desk = stepped(before=lambda plan: aborts.pop()() if aborts else None)
    aborts = [lambda: loop.abort("a")]
    desk.ask("a", A, 1)
    loop.turn()  # the abort comes while the only step is computed
    assert desk.ends("a") == ["length"]
    desk.ask("a", B, 5)
    loop.finish()
    assert desk.ends("a") == ["length", "length"]
    assert desk.tokens("a") == script(A, 1) + script(B, 5)


def test_requests_of_one_id_cannot_run_at_once_and_none_of_a_refused_batch_does():
    loop, desk = stepped()
    desk.ask("a", A)
    with pytest.raises(InvalidRequest, match="running already: \\['a'\\]"):
        desk.ask("a", B)
    loop.finish()
    assert (desk.tokens("a"), desk.ends("a")) == (script(A, 4), ["length"])


# Failure and the end of the loop


def failing_decode(ids: object) -> str:
    raise OSError("no such character")


def test_who_ended_in_a_step_is_told_even_if_the_step_fails_after_that():
    loop = EngineLoop(build())
    fine, broken = Desk(loop), Desk(loop, failing_decode)
    loop.submit([fine.ticket("fine", A, 1), broken.ticket("broken", A, 1)])
    loop._thread.join(20)
    assert broken.ends("broken") == [EngineFailed]
    assert len(fine.ends("fine")) == 1, "neither its last event nor an error came: its client waits for ever"


class Broken(RuntimeError):
    pass


def test_a_step_that_raises_ends_all_with_the_cause_and_later_calls_say_so():
    gate = Gate()

    def fail(plan: StepPlan) -> None:
        gate(plan)
        raise Broken("the page is torn")

    loop = EngineLoop(build(before=fail, max_num_seqs=1))
    desk = Desk(loop)
    for name in ("runs", "waits"):
        desk.ask(name, A)
    gate.wait()
    gate.open()
    loop._thread.join(20)
    for name in ("runs", "waits"):
        [error] = desk.heard[name]
        assert isinstance(error, EngineFailed)
        assert isinstance(error.__cause__, Broken)
        assert "the page is torn" in str(error)
    for _ in range(2):
        with pytest.raises(EngineFailed, match="the page is torn"):
            desk.ask("late", A)
    assert loop.abort("runs") is False
    loop.stop()


def test_stopping_ends_what_runs_waits_or_was_not_yet_taken_each_with_server_closed():
    gate = Gate()
    loop = EngineLoop(build(before=gate, max_num_seqs=1))
    desk = Desk(loop)
    desk.ask("runs", A, 200)
    desk.ask("waits", A)
    gate.wait()
    desk.ask("comes", B)
    stopper = threading.Thread(target=loop.stop)
    stopper.start()
    while stopper.is_alive():  # step by step, so that nobody ends before the loop does
        gate.open(1)
        stopper.join(0.01)
    assert [desk.ends(name) for name in ("runs", "waits", "comes")] == [[ServerClosed]] * 3
    with pytest.raises(ServerClosed):
        desk.ask("late", A)
    loop.stop()


def test_an_idle_loop_stops_at_once():
    loop = EngineLoop(build())
    loop.stop()
    assert not loop._thread.is_alive()


def test_what_fails_while_the_engine_is_built_is_raised_where_it_was_asked_for():
    def cannot() -> None:
        raise Broken("no such weights")

    with pytest.raises(Broken, match="no such weights"):
        EngineLoop(cannot)  # type: ignore[arg-type]


# News


def test_the_news_of_a_step_come_in_one_call_per_listener():
    loop, desk = stepped()
    for name in ("a", "b", "c"):
        desk.ask(name, A[:4], 3)
    loop.finish()
    assert [[name for name, _ in call] for call in desk.calls] == [["a", "b", "c"]] * 3


def test_a_request_is_stamped_when_it_is_first_scheduled_and_not_when_it_comes_back(clock: Clock):
    loop, desk = stepped(blocks=12)
    clock.now = 1.0
    preempted(loop, desk, None)
    [it] = loop.planner.waiting
    clock.now = 2.0
    loop.finish()
    assert it.num_preemptions == 1
    assert it.item.answer.request.timeline.scheduled == 1_000_000_000


def test_a_preempted_or_finished_sequence_is_forgotten_by_the_runner():
    loop, desk = stepped(blocks=12)
    preempted(loop, desk, None)
    [it] = loop.planner.waiting
    assert loop._runner.forgotten == [it]  # type: ignore[attr-defined]
    loop.finish()
    assert loop._runner.forgotten.count(it) == 2  # type: ignore[attr-defined]
    assert len(loop._runner.forgotten) == 3  # type: ignore[attr-defined]


def test_a_step_is_on_record_before_anybody_hears_of_its_tokens(monkeypatch):
    loop, desk = stepped()
    recorded: list[int] = []
    monkeypatch.setattr(desk, "listen", lambda news: recorded.append(len(loop.counters.steps)))
    desk.ask("a", A, 4)
    loop.finish()
    assert recorded == [1, 2, 3, 4]


def test_steps_are_recorded_with_what_they_held():
    loop, desk = stepped()
    desk.ask("a", A, 3)
    desk.ask("b", B, 1)
    loop.finish()
    told = [(s.prefill_tokens, s.decode_tokens, s.sequences, s.running) for s in loop.counters.steps]
    assert told == [(13, 0, 2, 1), (0, 1, 1, 1), (0, 1, 1, 0)]
    assert [s.kv_tokens for s in loop.counters.steps] == [13, 9, 10]
    assert (loop.counters.prompt_tokens, loop.counters.generation_tokens) == (13, 4)
