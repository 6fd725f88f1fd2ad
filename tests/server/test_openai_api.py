"""The form of a request, what it means for the engine, and what is handed back."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from servinglib.errors import (
    ContextTooLong,
    EmptyPrompt,
    EngineFailed,
    InvalidRequest,
    InvalidSetting,
    ServerClosed,
    UnknownName,
)
from servinglib.request import SamplingParams
from servinglib.server.openai_api import MOST_CHOICES, ChatRequest, CompletionRequest
from servinglib.server.openai_errors import misfit, told

MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "x", **fields})


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": MESSAGES, **fields})


def refusal(**fields: Any) -> dict[str, Any]:
    with pytest.raises(ValidationError) as refused:
        completion(**fields)
    problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in refused.value.errors()]
    return misfit(problems)["error"]


def test_what_is_left_out_means_what_openai_says():
    assert completion().sampling() == SamplingParams(max_tokens=16, temperature=1.0)
    assert chat().sampling(room=100) == SamplingParams(max_tokens=100, temperature=1.0)


def test_every_field_reaches_the_engine():
    fields = dict(
        max_tokens=5, temperature=0.5, top_p=0.9, top_k=7, n=2, seed=3, stop=["a", "b"], ignore_eos=True
    )
    expected = SamplingParams(
        max_tokens=5,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        seed=3,
        stop=("a", "b"),
        ignore_eos=True,
        n=2,
        logprobs=4,
    )
    assert completion(**fields, logprobs=4).sampling() == expected
    assert chat(**fields, logprobs=True, top_logprobs=4).sampling(100) == expected


def test_one_stop_string_is_one_and_a_negative_top_k_is_all_tokens():
    params = completion(stop="end", top_k=-1).sampling()
    assert (params.stop, params.top_k) == (("end",), 0)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ["ab"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_a_prompt_may_be_text_or_ids_one_or_several(prompt: Any, prompts: list):
    assert completion(prompt=prompt).prompts() == prompts


@pytest.mark.parametrize("prompt", ["", []])
def test_no_prompt_is_refused(prompt: Any):
    with pytest.raises(EmptyPrompt):
        completion(prompt=prompt).prompts()


@pytest.mark.parametrize("name", ["best_of", "logit_bias", "suffix", "user", "max_token", "beams"])
def test_a_field_that_is_not_honoured_is_refused_by_name(name: str):
    error = refusal(**{name: 1})
    assert (error["type"], error["param"]) == ("invalid_request_error", name)
    assert f"'{name}' is not supported" in error["message"]


def test_a_field_inside_another_is_refused_by_its_whole_name():
    error = refusal(stream=True, stream_options={"include_obfuscation": True})
    assert error["param"] == "stream_options"
    assert "'stream_options.include_obfuscation'" in error["message"]


@pytest.mark.parametrize(
    "field", [{"repetition_penalty": 1.0}, {"echo": False}, {"min_p": 0}, {"logprobs": None}]
)
def test_a_field_that_asks_for_nothing_may_be_there(field: dict):
    assert completion(**field) == completion()


@pytest.mark.parametrize("field", [{"repetition_penalty": 1.1}, {"echo": True}, {"min_p": 0.1}])
def test_the_same_field_that_asks_for_something_is_refused(field: dict):
    assert refusal(**field)["param"] == next(iter(field))


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": "16"},
        {"max_tokens": 1.5},
        {"n": 0},
        {"n": MOST_CHOICES + 1},
        {"top_k": -2},
        {"stream": "yes"},
        {"temperature": float("inf")},
        {"prompt": 5},
        {"prompt": ["a", 1]},
        {"stop": [1]},
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_field(field: dict):
    error = refusal(**field)
    assert error["param"] == next(iter(field))
    assert error["message"].startswith(f"{error['param']}: Input should")


@pytest.mark.parametrize("field", [{"top_p": 0.0}, {"temperature": -1.0}, {"max_tokens": 0}])
def test_a_value_outside_its_domain_is_refused_with_the_number(field: dict):
    [(name, value)] = field.items()
    with pytest.raises(InvalidSetting, match=f"{name}={value}"):
        completion(**field).sampling()


def test_fields_that_contradict_each_other_are_refused():
    with pytest.raises(InvalidRequest, match="stream to true"):
        completion(stream_options={"include_usage": True}).sampling()
    with pytest.raises(InvalidRequest, match="top_logprobs needs logprobs"):
        chat(top_logprobs=2).sampling(100)
    with pytest.raises(InvalidRequest, match="max_completion_tokens=4 and max_tokens=5"):
        chat(max_completion_tokens=4, max_tokens=5).sampling(100)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_chat_has_one_limit_by_either_name(name: str):
    assert chat(**{name: 7}).sampling(100).max_tokens == 7


def test_a_message_may_come_in_pieces_of_text():
    pieces = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(messages=[{"role": "user", "content": pieces}])
    assert body.messages[0].plain() == {"role": "user", "content": "a\nb"}
    with pytest.raises(ValidationError):
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
    with pytest.raises(ValidationError):
        chat(messages=[])


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ContextTooLong(3, 4, 5), 400, "invalid_request_error"),
        (InvalidSetting("top_p=2"), 400, "invalid_request_error"),
        (UnknownName("model", "x", ["y"]), 404, "invalid_request_error"),
        (ServerClosed(), 503, "service_unavailable"),
        (EngineFailed(ValueError("x")), 500, "server_error"),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int, kind: str):
    got, body = told(error)
    assert (got, body["error"]["type"], body["error"]["message"]) == (status, kind, str(error))


def test_a_mistake_of_ours_is_not_told_to_the_client():
    status, body = told(KeyError("a secret"))
    assert status == 500
    assert "secret" not in str(body)
