"""The official client against the real server, over a socket, with a tiny model of random weights."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
import uvicorn
from engines.continuous.scripted import Gate, scripted_engine
from tiny_models import save_model

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.server.http_app import create_app

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'alien' %}{{ raise_exception('no aliens') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContinuousEngine]:
    folder = save_model("qwen3", tmp_path_factory.mktemp("qwen3"))
    with ContinuousEngine.load(folder, dtype="float32", kv_cache_memory="20MiB") as engine:
        engine.tokenizer.chat_template = TEMPLATE
        yield engine


@contextmanager
def serving(engine: ContinuousEngine) -> Iterator[openai.OpenAI]:
    """A client of the warm engine behind a real server."""
    app = create_app(engine)
    asyncio.run(app.state.service.warm_up())
    with socket.create_server(("127.0.0.1", 0)) as place:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        address = f"http://127.0.0.1:{place.getsockname()[1]}/v1"
        try:
            with openai.OpenAI(base_url=address, api_key="unused", max_retries=0, timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(engine: ContinuousEngine) -> Iterator[openai.OpenAI]:
    with serving(engine) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    [card] = client.models.list().data
    return card.id


GREEDY = {"ignore_eos": True, "return_token_ids": True}


def test_a_completion_is_what_the_engine_says(client: openai.OpenAI, model: str, engine: ContinuousEngine):
    [expected] = engine.generate("请问 x", max_tokens=20, ignore_eos=True)
    answer = client.completions.create(
        model=model, prompt="请问 x", max_tokens=20, temperature=0, extra_body=GREEDY
    )
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (expected.text, "length")
    assert choice.model_extra is not None
    assert choice.model_extra["token_ids"] == list(expected.token_ids)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (expected.prompt_tokens, 20)


def test_a_stream_joined_is_the_completion_with_one_event_per_token(
    client: openai.OpenAI, model: str, engine: ContinuousEngine
):
    [expected] = engine.generate("请问 x", max_tokens=20, ignore_eos=True)
    chunks = list(
        client.completions.create(
            model=model,
            prompt="请问 x",
            max_tokens=20,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=GREEDY,
        )
    )
    assert len(chunks) == 21
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected.text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20


def test_several_answers_repeat_with_the_seed(client: openai.OpenAI, model: str):
    first, again = (
        client.completions.create(model=model, prompt="hello", max_tokens=12, n=3, seed=5) for _ in range(2)
    )
    assert [c.index for c in first.choices] == [0, 1, 2]
    assert [c.text for c in first.choices] == [c.text for c in again.choices]
    assert len({c.text for c in first.choices}) == 3


def test_the_answer_ends_before_a_stop_string(client: openai.OpenAI, model: str, engine: ContinuousEngine):
    [full] = engine.generate("hello", max_tokens=40, ignore_eos=True)
    stop = full.text[9:13]
    answer = client.completions.create(
        model=model, prompt="hello", max_tokens=40, temperature=0, stop=[stop], extra_body=GREEDY
    )
    assert answer.choices[0].text == full.text[: full.text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("by_id", [False, True])
def test_log_probabilities_are_told_by_text_or_by_id(
    client: openai.OpenAI, model: str, engine: ContinuousEngine, by_id: bool
):
    [expected] = engine.generate("hello", max_tokens=5, ignore_eos=True, logprobs=2)
    extra = {"ignore_eos": True, "return_tokens_as_token_ids": by_id}
    answer = client.completions.create(
        model=model, prompt="hello", max_tokens=5, temperature=0, logprobs=2, extra_body=extra
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs == pytest.approx([logprob.chosen for logprob in expected.logprobs])
    names = [f"token_id:{i}" if by_id else engine.tokenizer.decode([i]) for i in expected.token_ids]
    assert told.tokens == names
    assert told.text_offset == [sum(map(len, names[:i])) for i in range(5)]
    assert told.top_logprobs is not None
    for name, top, logprob in zip(names, told.top_logprobs, expected.logprobs, strict=True):
        assert top is not None
        assert next(iter(top)) == name
        if by_id:
            assert top == {f"token_id:{i}": pytest.approx(value) for i, value in logprob.likeliest}


def test_a_chat_is_written_down_by_the_template(client: openai.OpenAI, model: str, engine: ContinuousEngine):
    [expected] = engine.generate("user: hello\nassistant: ", max_tokens=9, ignore_eos=True, logprobs=2)
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "hello"}],
        max_completion_tokens=9,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        extra_body=GREEDY,
    )
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert answer.model_extra is not None
    assert answer.model_extra["prompt_token_ids"] == engine.tokenize("user: hello\nassistant: ")
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    told = [(entry.logprob, len(entry.top_logprobs)) for entry in choice.logprobs.content]
    assert told == [(pytest.approx(logprob.chosen), 2) for logprob in expected.logprobs]


def test_a_chat_may_be_streamed(client: openai.OpenAI, model: str, engine: ContinuousEngine):
    [expected] = engine.generate("user: hello\nassistant: ", max_tokens=9, ignore_eos=True)
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=9,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=GREEDY,
        )
    )
    opening, *told, last = chunks
    assert opening.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * 8 + ["length"]
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (expected.prompt_tokens, 9)


def test_a_chat_without_a_limit_has_what_room_there_is(client: openai.OpenAI, model: str):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hello"}], extra_body=GREEDY
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 256


def test_what_the_template_refuses_is_refused(client: openai.OpenAI, model: str):
    with pytest.raises(openai.BadRequestError, match="no aliens"):
        client.chat.completions.create(
            model=model,
            messages=[{"role": "alien", "content": "hello"}],  # type: ignore[list-item]
        )


def test_errors_come_as_the_client_s_own(client: openai.OpenAI, model: str):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-5", prompt="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=model, prompt="x", suffix="y")
    assert refused.value.param == "suffix"
    with pytest.raises(openai.BadRequestError, match="the context holds 256"):
        client.completions.create(model=model, prompt="x", max_tokens=1000, stream=True)


def test_a_client_that_closes_its_stream_ends_the_request(monkeypatch: pytest.MonkeyPatch):
    gate, held, dropped = Gate(), threading.Event(), threading.Event()
    with scripted_engine(before=lambda plan: gate(plan) if held.is_set() else None) as engine:
        drop = engine._loop.drop
        monkeypatch.setattr(engine._loop, "drop", lambda ticket: (drop(ticket), dropped.set()))
        with serving(engine) as client:
            held.set()
            gate.open(1)  # one token, and then the engine stands still
            stream = client.completions.create(model="scripted", prompt="bcd", max_tokens=200, stream=True)
            next(iter(stream))
            assert not dropped.is_set()
            stream.close()
            assert dropped.wait(20), "nobody noticed that the client is gone"
            gate.open()
            engine.generate([[1]], max_tokens=1)
            assert engine.counters.num_requests_running == 0
