"""What every engine must pass.

An engine's test module subclasses `EngineContract` under a name that begins with `Test` and gives
two things: a fixture `load`, which loads the engine with the options it is given, and `decode`, which
turns token ids into text by another way than the engine's own stream.

An engine with static batches takes a step when its reader asks for one, so an abort shows in the very
next event. One with continuous batching runs ahead of its readers: its abort shows after what was
computed meanwhile, and a test waits for that with another request, which the engine takes later.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from servinglib.engines.base import Engine, Prompt, collect
from servinglib.errors import (
    ContextTooLong,
    EmptyPrompt,
    InvalidRequest,
    InvalidSetting,
    ServerClosed,
    UnknownName,
)
from servinglib.request import Completion, Request, SamplingParams, TokenEvent

Loader = Callable[..., Engine]
PROMPTS: list[Prompt] = ["def area(radius):", "请问", [40, 41, 42, 43, 44, 45, 46], "x"]


def long(engine: Engine) -> int:
    """Tokens of an answer that nobody means to wait for."""
    return min(2000, engine.context_length - 20)


def in_lock_step(engine: Engine) -> bool:
    return engine.capabilities.batching == "static"


def requests(prompts: Sequence[Prompt], **changes: object) -> list[Request]:
    params = SamplingParams(ignore_eos=True).updated(**changes)
    return [Request(f"r{i}", prompt, params) for i, prompt in enumerate(prompts)]


def completed(results: Sequence[Completion | Exception]) -> list[Completion]:
    assert all(isinstance(result, Completion) for result in results), results
    return [result for result in results if isinstance(result, Completion)]


def up_to(events: Iterator[TokenEvent], request_id: str, count: int) -> list[TokenEvent]:
    """The events up to the `count`-th of one request: over a network, neighbours may overtake each other."""
    seen: list[TokenEvent] = []
    while sum(event.request_id == request_id for event in seen) < count:
        seen.append(next(events))
    return seen


class EngineContract:
    @pytest.fixture(scope="class")
    @classmethod
    def load(cls) -> Loader:
        raise NotImplementedError

    def decode(self, engine: Engine, token_ids: Sequence[int]) -> str:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, load: Loader) -> Iterator[Engine]:
        with load() as engine:
            yield engine

    # Answers

    def test_one_prompt_gets_one_completion(self, engine: Engine):
        [answer] = engine.generate("hello", max_tokens=5, ignore_eos=True)
        assert answer.prompt_tokens == len(engine.tokenize("hello"))
        assert (len(answer.token_ids), answer.finish_reason) == (5, "length")

    def test_each_prompt_of_a_batch_gets_the_answer_that_it_gets_alone(self, engine: Engine):
        together = engine.generate(PROMPTS, max_tokens=12, ignore_eos=True)
        alone = [engine.generate([prompt], max_tokens=12, ignore_eos=True)[0] for prompt in PROMPTS]
        assert [a.token_ids for a in together] == [a.token_ids for a in alone]
        assert len({a.token_ids for a in together}) > 1, "different prompts, different answers"

    def test_token_ids_do_as_a_prompt(self, engine: Engine):
        by_text, by_ids = engine.generate(["hello", engine.tokenize("hello")], max_tokens=6, ignore_eos=True)
        assert by_text.token_ids == by_ids.token_ids
        assert engine.generate(engine.tokenize("hello"), max_tokens=6)[0].text == by_text.text

    def test_no_prompts_get_no_answers(self, engine: Engine):
        assert engine.generate([]) == []
        assert engine.generate_batch([]) == []

    def test_a_stream_joined_is_the_completion(self, engine: Engine):
        [answer] = engine.generate("请问 x", max_tokens=40, ignore_eos=True)
        events = list(engine.stream("请问 x", max_tokens=40, ignore_eos=True))
        assert "".join(e.text for e in events) == answer.text
        assert tuple(e.token_id for e in events) == answer.token_ids
        assert [e.index for e in events] == list(range(40))

    def test_text_is_what_decoding_all_tokens_gives(self, engine: Engine):
        for answer in engine.generate(PROMPTS, max_tokens=60, ignore_eos=True):
            assert answer.text == self.decode(engine, answer.token_ids)

    def test_no_event_ends_inside_a_character(self, engine: Engine):
        [answer] = engine.generate("请问 x", max_tokens=40, ignore_eos=True)
        shown = ""
        for event in engine.stream("请问 x", max_tokens=40, ignore_eos=True):
            shown += event.text
            assert answer.text.startswith(shown)

    # Events and times

    def test_exactly_the_last_event_of_each_request_has_a_finish_reason(self, engine: Engine):
        batch = requests(PROMPTS, max_tokens=5)
        streams = collect(engine.run(batch, [engine.validate(r) for r in batch]))
        assert set(streams) == {r.request_id for r in batch}
        for events in streams.values():
            assert [e.finish_reason for e in events] == [None] * 4 + ["length"]

    def test_every_token_has_a_time_and_time_never_runs_backwards(self, engine: Engine):
        before = engine.now()
        for answer in engine.generate(PROMPTS, max_tokens=5, ignore_eos=True):
            times = [before, *answer.token_times, engine.now()]
            assert len(answer.token_times) == len(answer.token_ids)
            assert times == sorted(times)

    def test_the_timeline_has_the_engine_s_part(self, engine: Engine):
        [answer] = completed(engine.generate_batch(requests(["hello"], max_tokens=4)))
        timeline = answer.timeline
        assert timeline.scheduled is not None
        assert timeline.scheduled <= round(answer.token_times[0] * 1e9) == timeline.first_token
        assert timeline.finished == round(answer.token_times[-1] * 1e9)

    # Ends

    def test_each_request_keeps_its_own_max_tokens(self, engine: Engine):
        batch = requests(PROMPTS)
        for request, limit in zip(batch, [1, 7, 3, 12], strict=True):
            request.params = request.params.updated(max_tokens=limit)
        answers = completed(engine.generate_batch(batch))
        assert [len(a.token_ids) for a in answers] == [1, 7, 3, 12]

    def test_a_stop_string_ends_the_answer_and_is_not_shown(self, engine: Engine):
        [full] = engine.generate("hello", max_tokens=60, ignore_eos=True)
        stop = full.text[9:13]
        events = list(engine.stream("hello", max_tokens=60, ignore_eos=True, stop=(stop,)))
        assert "".join(e.text for e in events) == full.text[: full.text.index(stop)]
        assert events[-1].finish_reason == "stop"
        assert len(events) < 60

    def test_text_that_only_begins_like_a_stop_string_is_shown_in_the_end(self, engine: Engine):
        [full] = engine.generate("hello", max_tokens=30, ignore_eos=True)
        stops = (full.text[5:9] + "\0", full.text[-3:] + "\0")
        [answer] = engine.generate("hello", max_tokens=30, ignore_eos=True, stop=stops)
        assert (answer.text, answer.finish_reason) == (full.text, "length")

    # Refusals

    @pytest.mark.parametrize("prompt", ["", []])
    def test_an_empty_prompt_is_refused(self, engine: Engine, prompt: Prompt):
        with pytest.raises(EmptyPrompt):
            engine.generate([prompt])
        with pytest.raises(EmptyPrompt):
            engine.stream(prompt)

    def test_what_does_not_fit_into_the_context_is_refused_with_the_numbers(self, engine: Engine):
        room = engine.context_length - len(engine.tokenize("hello"))
        with pytest.raises(ContextTooLong, match=str(engine.context_length)):
            engine.stream("hello", max_tokens=room + 1)
        engine.stream("hello", max_tokens=room)

    def test_an_unknown_parameter_is_refused_by_name(self, engine: Engine):
        with pytest.raises(UnknownName, match=r"max_token'.*did you mean 'max_tokens'"):
            engine.generate("hello", max_token=3)
        with pytest.raises(UnknownName, match="parameter"):
            engine.stream("hello", beams=4)

    def test_a_parameter_outside_its_domain_is_refused(self, engine: Engine):
        with pytest.raises(InvalidSetting, match="top_p=2"):
            engine.generate("hello", top_p=2)

    def test_an_unknown_option_is_refused_by_name(self, load: Loader):
        with pytest.raises(UnknownName, match="option 'no_such_option'"):
            load(no_such_option=1)

    @pytest.mark.parametrize("ids", [[1, -1], [1, 10**9], [1, 2.5], [1, "a"]])
    def test_a_prompt_of_ids_that_do_not_exist_is_refused_with_the_place(self, engine: Engine, ids: list):
        with pytest.raises(InvalidRequest, match="position 1"):
            engine.generate([ids])

    def test_a_bad_request_fails_alone(self, engine: Engine):
        batch = requests(["hello", "", "hello"], max_tokens=4)
        first, refusal, last = engine.generate_batch(batch)
        assert isinstance(refusal, EmptyPrompt)
        assert [a.token_ids for a in completed([first, last])] == [
            engine.generate("hello", max_tokens=4, ignore_eos=True)[0].token_ids
        ] * 2

    def test_two_requests_may_not_share_an_id(self, engine: Engine):
        twins = [Request("twin", "a"), Request("twin", "b")]
        with pytest.raises(InvalidRequest, match="twin"):
            engine.generate_batch(twins)
        running = engine.stream("a", request_id="twin", max_tokens=long(engine), ignore_eos=True)
        next(running)
        with pytest.raises(InvalidRequest, match="twin"):
            next(engine.stream("b", request_id="twin"))
        assert next(running).index == 1, "the one that was there first goes on"

    # Cancellation

    def test_a_request_is_aborted_at_its_next_token_and_its_neighbour_goes_on(self, engine: Engine):
        batch = requests(["hello", "hello"], max_tokens=8)
        batch[0].params = batch[0].params.updated(max_tokens=long(engine))
        events = engine.run(batch, [engine.validate(r) for r in batch])
        seen = up_to(events, "r0", 2)
        assert engine.abort("r0") is True
        streams = collect(itertools.chain(seen, events))
        tokens, last = streams["r0"][:-1], streams["r0"][-1]
        assert None not in [e.token_id for e in tokens]
        assert (last.token_id, last.finish_reason, last.index) == (None, "abort", len(tokens))
        assert len(tokens) == 2 if in_lock_step(engine) else 2 <= len(tokens) < long(engine)
        assert [e.token_id is None for e in streams["r1"]] == [False] * 8

    def test_an_abort_may_come_from_another_thread(self, engine: Engine):
        events = engine.stream("hello", request_id="mine", max_tokens=long(engine), ignore_eos=True)
        next(events)
        thread = threading.Thread(target=engine.abort, args=["mine"])
        thread.start()
        thread.join()
        reasons = [e.finish_reason for e in events]
        assert reasons == [None] * (len(reasons) - 1) + ["abort"]
        assert len(reasons) == 1 if in_lock_step(engine) else len(reasons) < long(engine)

    def test_aborting_what_does_not_run_says_so(self, engine: Engine):
        assert engine.abort("mine") is False
        events = engine.stream("hello", request_id="mine", max_tokens=2, ignore_eos=True)
        assert len(list(events)) == 2
        assert engine.abort("mine") is False

    def test_a_finished_row_of_a_running_batch_is_not_running(self, engine: Engine):
        batch = requests(["hello", "hello"], max_tokens=8)
        batch[0].params = batch[0].params.updated(max_tokens=1)
        events = engine.run(batch, [engine.validate(r) for r in batch])
        seen = up_to(events, "r0", 1)
        assert seen[-1].finish_reason == "length"
        assert engine.abort("r0") is False
        assert len(seen) + len(list(events)) == 9

    def test_a_reader_that_goes_away_leaves_nothing_behind(self, engine: Engine):
        events = engine.stream("hello", request_id="mine", max_tokens=long(engine), ignore_eos=True)
        next(events)
        events.close()  # type: ignore[attr-defined]
        if not in_lock_step(engine):
            engine.generate("x", max_tokens=1)
        assert engine.abort("mine") is False
        assert len(list(engine.stream("hello", request_id="mine", max_tokens=2, ignore_eos=True))) == 2

    # Sampling

    def test_an_engine_that_cannot_sample_says_so(self, engine: Engine):
        if engine.capabilities.sampling:
            assert engine.generate("hello", temperature=1.0, max_tokens=2, ignore_eos=True)
        else:
            with pytest.raises(InvalidRequest, match="can't sample"):
                engine.generate("hello", temperature=1.0)

    def test_a_seed_makes_sampling_repeatable_in_any_company(self, engine: Engine):
        if not engine.capabilities.sampling:
            pytest.skip("this engine does not sample")
        seeded = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.95, seed=5, ignore_eos=True)
        [alone] = engine.generate("hello", seeded)
        crowd = [
            Request("other", "a longer prompt that makes padding", seeded.updated(seed=9, top_k=20)),
            Request("greedy", "x", seeded.updated(temperature=0.0)),
            Request("mine", "hello", seeded),
        ]
        assert completed(engine.generate_batch(crowd))[2].token_ids == alone.token_ids
        assert engine.generate("hello", seeded, seed=6)[0].token_ids != alone.token_ids

    # Several answers, and what the model thought of them

    def test_an_engine_that_gives_one_answer_says_so(self, engine: Engine):
        if engine.capabilities.choices or not engine.capabilities.sampling:
            pytest.skip("this engine gives several, or can't sample, which it says")
        with pytest.raises(InvalidRequest, match="one answer; ask 3 times"):
            engine.generate("hello", temperature=1.0, n=3)

    def test_several_answers_are_drawn_each_for_itself_and_repeat_with_the_seed(self, engine: Engine):
        if not engine.capabilities.choices:
            pytest.skip("this engine gives one")
        seeded = SamplingParams(max_tokens=12, temperature=1.0, seed=5, ignore_eos=True, n=3)
        [first] = engine.generate("hello", seeded)
        answers = [first, *first.alternatives]
        assert [len(a.token_ids) for a in answers] == [12] * 3
        assert len({a.token_ids for a in answers}) == 3
        [again] = engine.generate("hello", seeded)
        assert [a.token_ids for a in (again, *again.alternatives)] == [a.token_ids for a in answers]
        assert engine.generate("hello", seeded, n=1)[0].token_ids == first.token_ids

    def test_each_of_several_answers_ends_once_and_counts_its_own_tokens(self, engine: Engine):
        if not engine.capabilities.choices:
            pytest.skip("this engine gives one")
        events = list(engine.stream("hello", max_tokens=4, temperature=1.0, ignore_eos=True, n=3))
        for choice in range(3):
            mine = [e for e in events if e.choice == choice]
            assert [e.index for e in mine] == [0, 1, 2, 3]
            assert [e.finish_reason for e in mine] == [None] * 3 + ["length"]

    def test_an_engine_that_tells_no_log_probabilities_says_so(self, engine: Engine):
        if engine.capabilities.logprobs:
            pytest.skip("this engine tells them")
        with pytest.raises(InvalidRequest, match="leave logprobs out"):
            engine.generate("hello", logprobs=0)

    def test_log_probabilities_are_told_of_each_token_and_of_the_likeliest(self, engine: Engine):
        if not engine.capabilities.logprobs:
            pytest.skip("this engine tells none")
        [plain] = engine.generate("hello", max_tokens=6, ignore_eos=True)
        [told] = engine.generate("hello", max_tokens=6, ignore_eos=True, logprobs=3)
        assert plain.logprobs == ()
        assert told.token_ids == plain.token_ids
        assert len(told.logprobs) == 6
        for token, logprob in zip(told.token_ids, told.logprobs, strict=True):
            values = [value for _, value in logprob.likeliest]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert logprob.likeliest[0] == (token, logprob.chosen), "greedy takes the likeliest"
            assert 0 < sum(map(math.exp, values)) <= 1 + 1e-5

    def test_the_likeliest_need_not_be_told_along_with_the_chosen(self, engine: Engine):
        if not engine.capabilities.logprobs:
            pytest.skip("this engine tells none")
        [told] = engine.generate("hello", max_tokens=3, ignore_eos=True, logprobs=0)
        assert [logprob.likeliest for logprob in told.logprobs] == [()] * 3
        assert all(logprob.chosen < 0 for logprob in told.logprobs)

    def test_asking_for_more_likeliest_tokens_than_there_are_harms_nobody(self, engine: Engine):
        if not engine.capabilities.logprobs:
            pytest.skip("this engine tells none")
        with pytest.raises(InvalidRequest, match="logprobs=1000000000"):
            engine.generate("hello", logprobs=10**9)
        assert engine.generate("hello", max_tokens=1)

    # Life

    def test_warming_up_changes_no_answer(self, load: Loader, engine: Engine):
        with load() as fresh:
            fresh.warm_up()
            answers = [e.generate("hello", max_tokens=4, ignore_eos=True)[0] for e in (fresh, engine)]
        assert answers[0].token_ids == answers[1].token_ids

    def test_after_shutdown_all_work_is_refused_and_a_second_shutdown_does_nothing(self, load: Loader):
        engine = load()
        running = engine.stream("hello", max_tokens=long(engine), ignore_eos=True)
        next(running)
        engine.shutdown()
        engine.shutdown()
        for work in (engine.generate, engine.stream, engine.tokenize):
            with pytest.raises(ServerClosed):
                work("hello")
        with pytest.raises(ServerClosed):
            engine.warm_up()
        [refusal] = engine.generate_batch(requests(["hello"]))
        assert isinstance(refusal, ServerClosed)
        with pytest.raises(ServerClosed):
            next(running) if in_lock_step(engine) else list(running)
