"""What an OpenAI-compatible server tells becomes token events, whatever it leaves out."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from misbehaving import MisbehavingServer, chunk, delta, refuses, says, usage
from tiny_models import save_tokenizer

from servinglib.engines.openai_engine import OpenAIEngine
from servinglib.errors import (
    ContextTooLong,
    EmptyPrompt,
    EndpointFailed,
    EndpointRefused,
    InvalidRequest,
    InvalidSetting,
    UnknownName,
)
from servinglib.request import UNKNOWN_TOKEN, Completion, Logprob, Request, SamplingParams, TokenEvent

HELLO = says(chunk("He"), chunk("llo"), chunk("", "stop"), usage(7, 2))
LOGPROBS = {"tokens": ["token_id:5"], "token_logprobs": [-0.1], "top_logprobs": [{"token_id:5": -0.1}]}
TELLING = says(chunk("x", "length", token_ids=[5], logprobs=LOGPROBS))
"""Answers the question whether a server tells ids and log-probabilities."""


def connect(server: MisbehavingServer, **options: Any) -> OpenAIEngine:
    return OpenAIEngine.load(
        "tiny", **{"base_url": server.url, "token_ids": False, "backoff": 0.0, **options}
    )


def told(
    server: MisbehavingServer, *, params: SamplingParams | None = None, **options: Any
) -> list[TokenEvent]:
    with server, connect(server, **options) as engine:
        return list(engine.stream("hi", params))


def shapes(events: list[TokenEvent]) -> list[tuple[int, int | None, str, str | None]]:
    return [(e.index, e.token_id, e.text, e.finish_reason) for e in events]


# A server that tells no ids


def test_each_chunk_with_text_is_a_token_of_unknown_id():
    events = told(MisbehavingServer(HELLO))
    assert shapes(events) == [
        (0, UNKNOWN_TOKEN, "He", None),
        (1, UNKNOWN_TOKEN, "llo", None),
        (2, None, "", "stop"),
    ]


def test_the_empty_first_chunk_of_a_chat_is_no_token():
    chat = says(delta(role="assistant", content=""), delta(content="Hi"), delta("stop"), usage(9, 1))
    server = MisbehavingServer(chat)
    events = told(server, api="chat")
    assert shapes(events) == [(0, UNKNOWN_TOKEN, "Hi", None), (1, None, "", "stop")]
    [asked] = server.answers_asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body["messages"] == [{"role": "user", "content": "hi"}]


def test_reasoning_is_generated_but_no_part_of_the_answer():
    chat = says(delta(reasoning_content="hm"), delta(content="Yes"), delta("stop"))
    assert [(e.token_id, e.text) for e in told(MisbehavingServer(chat), api="chat")] == [
        (UNKNOWN_TOKEN, ""),
        (UNKNOWN_TOKEN, "Yes"),
        (None, ""),
    ]


@pytest.mark.parametrize("end", [[chunk("b", "length")], [chunk("b"), chunk("", "length")]])
def test_tokens_that_only_the_server_counted_are_told_at_the_end_with_its_time(end: list[Any]):
    events = told(MisbehavingServer(says(chunk("a"), *end, usage(3, 5))))
    assert [e.text for e in events] == ["a", "b", "", "", ""]
    assert [e.index for e in events] == [0, 1, 2, 3, 4]
    assert {e.token_id for e in events} == {UNKNOWN_TOKEN}
    assert [e.finish_reason for e in events] == [None] * 4 + ["length"]
    assert len({e.time for e in events[2:]}) == 1


def test_where_the_server_counted_less_what_was_received_stays():
    events = told(MisbehavingServer(says(chunk("a"), chunk("b"), chunk("c", "stop"), usage(3, 1))))
    assert [(e.text, e.finish_reason) for e in events] == [("a", None), ("b", None), ("c", "stop")]


def test_a_server_that_counts_nothing_is_believed_too():
    events = told(MisbehavingServer(says(chunk("a", "stop"), {"choices": [], "usage": None})))
    assert shapes(events) == [(0, UNKNOWN_TOKEN, "a", "stop")]


def test_a_completion_has_the_prompt_tokens_that_the_server_counted():
    with MisbehavingServer(HELLO) as server, connect(server) as engine:
        [answer] = engine.generate("hi")
        assert (answer.text, answer.prompt_tokens, len(answer.token_times)) == ("Hello", 7, 2)
        assert engine.capabilities.token_ids is False


def test_a_prompt_of_ids_is_refused_and_so_is_counting_with_what_to_do():
    with MisbehavingServer(HELLO) as server, connect(server) as engine:
        with pytest.raises(InvalidRequest, match="give text"):
            engine.generate([[1, 2, 3]])
        with pytest.raises(InvalidRequest, match="setting tokenizer"):
            engine.tokenize("hi")
        with pytest.raises(EmptyPrompt):
            engine.generate([""])
        with pytest.raises(InvalidRequest, match="leave logprobs out"):
            engine.generate("hi", logprobs=1)
        assert server.answers_asked == []
        engine.warm_up()


def test_a_tokenizer_of_ones_own_counts_where_the_server_does_not(tmp_path: Path):
    save_tokenizer(tmp_path)
    options = {"tokenizer": str(tmp_path), "context_length": 20}
    with MisbehavingServer(HELLO) as server, connect(server, **options) as engine:
        tokens = len(engine.tokenize("hello"))
        with pytest.raises(ContextTooLong, match=f"{tokens} prompt tokens"):
            engine.generate("hello", max_tokens=21 - tokens)
        assert engine.generate("hello", max_tokens=20 - tokens)[0].text == "Hello"


@pytest.mark.parametrize(
    ("said", "reason"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "abort"), ("tool_calls", "stop")],
)
def test_the_reason_for_the_end_is_told_in_our_words(said: str, reason: str):
    assert told(MisbehavingServer(says(chunk("a", said))))[-1].finish_reason == reason


def test_an_unknown_reason_counts_as_stop_and_is_logged(caplog: pytest.LogCaptureFixture):
    assert told(MisbehavingServer(says(chunk("a", "full_moon"))))[-1].finish_reason == "stop"
    assert "full_moon" in caplog.text


def test_several_answers_may_come_interleaved():
    mixed = says(
        chunk("b1", index=1),
        chunk("a1", index=0),
        chunk("a2", "length", index=0),
        chunk("b2", "stop", index=1),
        usage(2, 9),
    )
    params = SamplingParams(n=2, temperature=1.0)
    with MisbehavingServer(mixed) as server, connect(server) as engine:
        [first] = engine.generate("hi", params)
        [second] = first.alternatives
        assert [(a.text, a.finish_reason) for a in (first, second)] == [("a1a2", "length"), ("b1b2", "stop")]
        assert [len(a.token_ids) for a in (first, second)] == [2, 2], "whose the others are, nobody knows"
        assert server.answers_asked[0].body["n"] == 2


# A server that tells ids


def test_a_chunk_with_several_ids_is_as_many_events_of_one_time_and_the_text_is_with_the_last():
    answer = says(chunk("abc", token_ids=[1, 2, 3]), chunk("d", "length", token_ids=[4]), usage(2, 9))
    events = told(MisbehavingServer(TELLING, answer, tokenizer="prompt"), token_ids="auto")
    assert shapes(events) == [(0, 1, "", None), (1, 2, "", None), (2, 3, "abc", None), (3, 4, "d", "length")]
    assert len({e.time for e in events[:3]}) == 1


def test_text_without_an_id_goes_with_the_next_token_or_with_the_end():
    answer = says(chunk("a", token_ids=[]), chunk("b", token_ids=[1]), chunk("c", "stop", token_ids=[]))
    events = told(MisbehavingServer(TELLING, answer, tokenizer="prompt"), token_ids="auto")
    assert shapes(events) == [(0, 1, "ab", None), (1, None, "c", "stop")]


def test_what_a_server_can_do_is_asked_of_itself():
    server = MisbehavingServer(TELLING, models={"tiny": 99}, tokenizer="prompt")
    with server, connect(server, token_ids="auto") as engine:
        assert (engine.capabilities.token_ids, engine.capabilities.logprobs) == (True, True)
        assert engine.context_length == 99
        assert engine.tokenize("hi") == [ord("h"), ord("i")]
        with pytest.raises(InvalidRequest, match="position 1"):
            engine.generate([[1, -1]])
        engine.generate([[1, 2]])
        assert server.answers_asked[-1].body["prompt"] == [1, 2]


def test_llama_cpp_s_way_of_counting_is_understood_though_it_tells_no_ids():
    server = MisbehavingServer(HELLO, tokenizer="content")
    with server, connect(server, token_ids="auto") as engine:
        assert engine.tokenize("hi") == [ord("h"), ord("i")]
        assert engine.capabilities.token_ids is False
        assert engine.context_length == sys.maxsize


def test_a_server_that_refuses_one_question_is_asked_the_other():
    server = MisbehavingServer(refuses(400, "logprobs?"), TELLING, tokenizer="prompt")
    with server, connect(server, token_ids="auto") as engine:
        assert engine.capabilities.token_ids
        assert "logprobs" not in server.answers_asked[1].body


def test_a_server_that_knows_no_extension_is_taken_as_one_without_ids():
    with MisbehavingServer(refuses(400, "what?")) as server, connect(server, token_ids="auto") as engine:
        assert engine.capabilities.token_ids is False


def test_ids_that_were_counted_on_and_are_not_told_are_an_error():
    with MisbehavingServer(HELLO) as server, pytest.raises(InvalidSetting, match="return_token_ids"):
        connect(server, token_ids=True)
    with MisbehavingServer(TELLING) as server, pytest.raises(InvalidSetting, match="give tokenizer"):
        connect(server, token_ids=True)


def test_log_probabilities_have_ids_likeliest_first():
    logprobs = {
        "tokens": ["token_id:4"],
        "token_logprobs": [-2.0],
        "top_logprobs": [{"token_id:4": -2.0, "token_id:8": -0.5, "token_id:9": -1.0}],
    }
    answer = says(chunk("a", "length", token_ids=[4], logprobs=logprobs))
    server = MisbehavingServer(TELLING, answer, tokenizer="prompt")
    [event] = told(server, token_ids="auto", params=SamplingParams(logprobs=2))
    assert event.logprob == Logprob(-2.0, ((8, -0.5), (9, -1.0)))


# What is sent


def test_what_only_some_servers_know_is_sent_only_when_asked_for():
    with MisbehavingServer(HELLO) as server, connect(server) as engine:
        engine.generate("hi")
        engine.generate(
            "hi", temperature=0.5, top_k=4, top_p=0.9, seed=3, stop=("x",), ignore_eos=True, max_tokens=2
        )
    plain, full = (asked.body for asked in server.answers_asked)
    assert plain == {
        "model": "tiny",
        "prompt": "hi",
        "max_tokens": 64,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert {k: v for k, v in full.items() if k not in plain} == {
        "top_k": 4,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["x"],
        "ignore_eos": True,
    }


def test_fields_of_one_s_own_are_sent_along_and_win():
    server = MisbehavingServer(HELLO)
    told(server, extra_body={"min_p": 0.1, "max_tokens": 3})
    assert (server.answers_asked[0].body["min_p"], server.answers_asked[0].body["max_tokens"]) == (0.1, 3)


def test_a_refused_extension_is_named_and_its_request_fails_alone():
    refusal = refuses(400, "Unrecognized argument")
    with MisbehavingServer(refusal, HELLO) as server, connect(server, extra_body={"min_p": 0.1}) as engine:
        batch = [Request("a", "x", SamplingParams(ignore_eos=True, max_tokens=3)), Request("b", "")]
        refused, empty = engine.generate_batch(batch)
        assert isinstance(refused, EndpointRefused)
        assert "Unrecognized argument" in str(refused)
        assert "not every server knows ignore_eos, min_p" in str(refused)
        assert isinstance(empty, EmptyPrompt)
        [fine] = engine.generate_batch([Request("c", "x")])
        assert isinstance(fine, Completion)


def test_one_failure_of_a_batch_leaves_its_neighbours_whole():
    async def by_prompt(wire: Any) -> None:
        await (refuses(422, "bad") if wire.asked.body["prompt"] == "bad" else HELLO)(wire)

    with MisbehavingServer(by_prompt) as server, connect(server) as engine:
        results = engine.generate_batch([Request(p, p) for p in ("good", "bad", "fine")])
        assert [type(r).__name__ for r in results] == ["Completion", "EndpointRefused", "Completion"]
        with pytest.raises(EndpointRefused):
            engine.generate(["good", "bad"])


def test_a_request_from_an_event_loop_asks_the_server_nothing_first_and_is_refused_there():
    refusal = refuses(400, "too long for us")
    server = MisbehavingServer(TELLING, TELLING, refusal, tokenizer="prompt")
    with server, connect(server, token_ids="auto", context_length=3) as engine:
        before = len(server.asked)

        async def ask() -> str:
            return "".join([event.text async for event in engine.submit(Request("a", "a long prompt"))])

        assert asyncio.run(ask()) == "x"
        assert [asked.path for asked in server.asked[before:]] == ["/v1/completions"]
        with pytest.raises(EndpointRefused, match="too long for us"):
            asyncio.run(ask())
        with pytest.raises(EmptyPrompt):
            engine.submit(Request("b", ""))


# Loading


def test_a_model_that_is_not_served_is_refused_with_those_that_are():
    with (
        MisbehavingServer(HELLO, models={"tiny-7b": None}) as server,
        pytest.raises(UnknownName, match="did you mean 'tiny-7b'"),
    ):
        connect(server)


def test_a_server_without_a_list_of_models_is_taken_at_the_name():
    with (
        MisbehavingServer(HELLO, models_act=refuses(404)) as server,
        connect(server) as engine,
    ):
        assert engine.generate("hi")[0].text == "Hello"


def test_a_wrong_key_is_an_error_that_does_not_tell_the_key():
    key = "sk-secret-123"
    server = MisbehavingServer(HELLO, models_act=refuses(401, f"Incorrect API key provided: {key}"))
    with server, pytest.raises(EndpointFailed, match="give the right api_key") as caught:
        connect(server, api_key=key)
    assert caught.value.status == 401
    assert server.asked[0].headers["authorization"] == f"Bearer {key}"
    assert key not in str(caught.value) + repr(caught.value) + repr(caught.value.__dict__)


def test_settings_do_not_show_the_key_and_are_checked():
    server_url = "http://127.0.0.1:1/v1"
    with pytest.raises(UnknownName, match=r"option 'base_ur'.*did you mean 'base_url'"):
        OpenAIEngine.load("tiny", base_ur=server_url)
    for wrong, message in [
        ({"base_url": "127.0.0.1:8000"}, "http://127.0.0.1:8000/v1"),
        ({"base_url": "http://me:pw@host/v1"}, "api_key instead"),
        ({"api_key": "sk-1\n"}, "end of a line"),
        ({"api": "responses"}, "unknown api"),
        ({"api": "chat", "token_ids": True}, "completions"),
        ({"read_timeout": 0}, "above 0"),
        ({"max_connections": 0}, "at least 1"),
        ({"backoff": 50.0}, "backoff_cap"),
    ]:
        with pytest.raises((InvalidSetting, UnknownName), match=message) as caught:
            OpenAIEngine.load("tiny", **{"base_url": server_url, **wrong})
        assert "pw" not in str(caught.value)
        assert "sk-1" not in json.dumps(str(caught.value))
