"""The routes in front of an engine whose steps and tokens the test decides."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest
from engines.continuous.scripted import Gate, letters, script, scripted_engine
from fastapi import FastAPI

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import InvalidSetting
from servinglib.policies.sequence import StepPlan
from servinglib.request import Request, SamplingParams
from servinglib.server.http_app import create_app

A, B = [1, 2, 3], [7, 7]
Json = dict[str, Any]


class Steps:
    """Goes before each of the engine's steps: lets it pass, holds it, or has it fail."""

    def __init__(self) -> None:
        self.gate, self.held = Gate(), threading.Event()
        self.left_until_failure: int | None = None

    def __call__(self, plan: StepPlan) -> None:
        if self.held.is_set():
            self.gate(plan)
        if self.left_until_failure is not None:
            self.left_until_failure -= 1
            if self.left_until_failure < 0:
                raise ValueError("a cable was pulled")


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def engine(steps: Steps) -> Iterator[ContinuousEngine]:
    with scripted_engine(before=steps) as engine:
        yield engine
        steps.gate.open()


def serve(
    engine: ContinuousEngine,
    talk: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]],
    warm: bool = True,
) -> None:
    """Have a conversation with the service, in an event loop of its own."""

    async def main() -> None:
        app = create_app(engine)
        if warm:
            await app.state.service.warm_up()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await talk(client)

    asyncio.run(main())


def ask(engine: ContinuousEngine, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    """One request to a warm service."""
    answers = []

    async def talk(client: httpx.AsyncClient) -> None:
        answers.append(await client.post(path, json={"ignore_eos": True, **body}))

    serve(engine, talk)
    return answers[0]


def events(response: httpx.Response) -> list[Json]:
    """The stream's events, of which the last must be DONE."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *told, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in told]


def joined(chunks: list[Json], index: int, field: str) -> list[Any]:
    return [c[field] for chunk in chunks for c in chunk["choices"] if c["index"] == index]


def test_the_model_tells_its_name_and_the_length_of_its_context(engine: ContinuousEngine):
    async def talk(client: httpx.AsyncClient) -> None:
        [card] = (await client.get("/v1/models")).json()["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == ("scripted", "model", 256)
        tokenized = (await client.post("/tokenize", json={"prompt": "bcd"})).json()
        assert tokenized == {"count": 3, "max_model_len": 256, "tokens": [1, 2, 3]}

    serve(engine, talk)


def test_it_takes_requests_when_it_is_warm_and_says_so(engine: ContinuousEngine, steps: Steps):
    async def talk(client: httpx.AsyncClient) -> None:
        service = client._transport.app.state.service  # type: ignore[attr-defined]
        warming = asyncio.create_task(service.warm_up())
        await asyncio.to_thread(steps.gate.wait)
        assert (await client.get("/health")).status_code == 200
        for answer in (
            await client.get("/ready"),
            await client.post("/v1/completions", json={"prompt": "b"}),
        ):
            assert answer.status_code == 503
            assert "warming up" in answer.json()["error"]["message"]
        steps.gate.open()
        await warming
        assert (await client.get("/ready")).status_code == 200

    steps.held.set()
    serve(engine, talk, warm=False)


def test_the_application_warms_its_engine_up_by_itself(engine: ContinuousEngine):
    async def main() -> None:
        app = create_app(engine)
        async with app.router.lifespan_context(app):
            pass  # it waits for the end of the warm-up
        app.state.service.must_be_ready()

    asyncio.run(main())


def test_an_engine_that_fails_to_warm_up_never_becomes_ready(engine: ContinuousEngine, steps: Steps):
    async def talk(client: httpx.AsyncClient) -> None:
        assert (await client.get("/ready")).status_code == 500
        answer = await client.post("/v1/completions", json={"prompt": "b"})
        assert "a cable was pulled" in answer.json()["error"]["message"]

    steps.left_until_failure = 0
    serve(engine, talk)


def test_nor_does_one_whose_warm_up_breaks_off(engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch):
    async def talk(client: httpx.AsyncClient) -> None:
        answer = await client.get("/ready")
        assert answer.status_code == 500
        assert "no memory left" in answer.json()["error"]["message"]

    def broken() -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr(engine, "warm_up", broken)
    serve(engine, talk)


def test_a_whole_answer_has_the_text_the_ids_and_their_numbers(engine: ContinuousEngine):
    answer = ask(engine, prompt="bcd", max_tokens=5, return_token_ids=True).json()
    assert (answer["object"], answer["model"]) == ("text_completion", "scripted")
    assert answer["choices"] == [
        {
            "index": 0,
            "text": letters(script(A, 5)),
            "logprobs": None,
            "finish_reason": "length",
            "token_ids": script(A, 5),
            "prompt_token_ids": A,
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_sixteen_tokens_are_given_unless_told_otherwise(engine: ContinuousEngine):
    assert ask(engine, prompt=A).json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("prompt", [A, [A, B], ["bcd", "hh"]])
def test_a_stream_joined_is_the_whole_answer(engine: ContinuousEngine, prompt: Any):
    body = {"prompt": prompt, "max_tokens": 6, "n": 2, "return_token_ids": True}
    whole = ask(engine, **body).json()
    *chunks, last = events(ask(engine, **body, stream=True, stream_options={"include_usage": True}))
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert len(whole["choices"]) == (2 if prompt is A else 4)
    for index, choice in enumerate(whole["choices"]):
        assert "".join(joined(chunks, index, "text")) == choice["text"]
        assert [i for ids in joined(chunks, index, "token_ids") for i in ids] == choice["token_ids"]
        assert joined(chunks, index, "finish_reason") == [None] * 5 + ["length"]
    assert whole["usage"]["completion_tokens"] == 6 * len(whole["choices"])


def test_each_prompt_gets_its_own_answers_in_order(engine: ContinuousEngine):
    choices = ask(engine, prompt=[A, B], max_tokens=4, n=2, return_token_ids=True).json()["choices"]
    assert [c["index"] for c in choices] == [0, 1, 2, 3]
    assert [c["token_ids"] for c in choices] == [script(A, 4)] * 2 + [script(B, 4)] * 2
    assert [c["prompt_token_ids"] for c in choices] == [A, A, B, B]


def test_in_a_stream_the_prompt_s_ids_come_once_for_each_answer(engine: ContinuousEngine):
    chunks = events(ask(engine, prompt=[A, B], max_tokens=3, return_token_ids=True, stream=True))
    for index, prompt in enumerate([A, B]):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert [c.get("prompt_token_ids") for c in mine] == [prompt, None, None]


def test_ids_and_usage_are_told_only_to_those_who_ask(engine: ContinuousEngine):
    chunks = events(ask(engine, prompt=A, max_tokens=2, stream=True))
    assert all("usage" not in chunk and "token_ids" not in chunk["choices"][0] for chunk in chunks)


def test_the_usage_can_grow_with_the_stream(engine: ContinuousEngine):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(ask(engine, prompt=A, max_tokens=3, stream=True, stream_options=options))
    assert [c["usage"]["completion_tokens"] for c in chunks] == [1, 2, 3, 3]
    assert {c["usage"]["prompt_tokens"] for c in chunks} == {3}


def test_the_stop_string_is_not_shown_streamed_or_not(engine: ContinuousEngine):
    full = letters(script(A, 16))
    stop = full[5:7]
    whole = ask(engine, prompt=A, stop=stop).json()["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == (full[: full.index(stop)], "stop")
    chunks = events(ask(engine, prompt=A, stop=[stop], stream=True))
    assert "".join(joined(chunks, 0, "text")) == whole["text"]


def test_the_client_may_name_its_request_but_not_twice_at_once(engine: ContinuousEngine, steps: Steps):
    async def talk(client: httpx.AsyncClient) -> None:
        steps.held.set()

        def post() -> Coroutine[Any, Any, httpx.Response]:
            return client.post("/v1/completions", json={"prompt": A}, headers={"X-Request-Id": "mine"})

        first = asyncio.create_task(post())
        await asyncio.to_thread(steps.gate.wait)
        second = await post()
        assert second.status_code == 400
        assert "unique" in second.json()["error"]["message"]
        steps.gate.open()
        assert (await first).json()["id"] == "cmpl-mine"

    serve(engine, talk)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": A, "model": "other"}, 404, "model"),
        ({"prompt": A, "best_of": 2}, 400, "best_of"),
        ({"prompt": A, "stream": True, "max_tokens": 1000}, 400, None),
        ({"prompt": [A, [99]]}, 400, None),
        ({}, 400, "prompt"),
        ({"prompt": A, "n": 2, "temperature": 0}, 400, None),
    ],
)
def test_a_bad_request_is_refused_before_any_work(
    engine: ContinuousEngine, body: Json, status: int, param: str | None
):
    answer = ask(engine, **body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["param"] == param
    assert engine.counters.num_requests_running == 0


def test_what_is_no_json_and_what_is_no_route_are_errors_of_the_same_shape(engine: ContinuousEngine):
    async def talk(client: httpx.AsyncClient) -> None:
        json_type = {"Content-Type": "application/json"}
        answers = [
            await client.post("/v1/completions", content="{", headers=json_type),
            await client.post("/v1/completions", content="[1]", headers=json_type),
            await client.get("/v1/nothing"),
            await client.get("/v1/completions"),
        ]
        assert [a.status_code for a in answers] == [400, 400, 404, 405]
        assert all(set(a.json()["error"]) == {"message", "type", "param", "code"} for a in answers)

    serve(engine, talk)


def test_a_chat_needs_a_template(engine: ContinuousEngine):
    answer = ask(engine, "/v1/chat/completions", messages=[{"role": "user", "content": "bcd"}])
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]


def test_a_stopped_engine_answers_503(engine: ContinuousEngine):
    async def talk(client: httpx.AsyncClient) -> None:
        engine.shutdown()
        assert (await client.post("/v1/completions", json={"prompt": A})).status_code == 503

    serve(engine, talk)


def test_an_engine_that_fails_in_mid_answer_is_a_500(engine: ContinuousEngine, steps: Steps):
    async def talk(client: httpx.AsyncClient) -> None:
        steps.left_until_failure = 3
        answer = await client.post("/v1/completions", json={"prompt": A})
        assert answer.status_code == 500
        assert "a cable was pulled" in answer.json()["error"]["message"]

    serve(engine, talk)


@pytest.mark.parametrize("prompt", [A, [A, B]])
def test_an_engine_that_fails_in_mid_stream_ends_it_with_an_error(
    engine: ContinuousEngine, steps: Steps, prompt: Any
):
    async def talk(client: httpx.AsyncClient) -> None:
        steps.left_until_failure = 3
        answer = await client.post("/v1/completions", json={"prompt": prompt, "stream": True})
        *chunks, last, rest = answer.text.split("\n\n")
        assert len(chunks) >= 3
        assert "a cable was pulled" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert rest == "", "no DONE after a failure"

    serve(engine, talk)


def test_an_engine_with_static_batches_is_refused():
    with pytest.raises(InvalidSetting, match="continuous"):
        create_app(SimulatedEngine())


class Visitor:
    """A client that speaks ASGI itself, so that it can go away when the test says so."""

    def __init__(self, app: FastAPI, body: Json) -> None:
        self._body, self.gone = json.dumps(body).encode(), asyncio.Event()
        self.heard: asyncio.Queue[Json] = asyncio.Queue()
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        more = {"query_string": b"", "http_version": "1.1", "scheme": "http", "server": None, "client": None}
        call = app(
            {**scope, **more, "asgi": {"version": "3.0", "spec_version": "2.4"}}, self._next, self._hear
        )
        self.call = asyncio.ensure_future(call)
        self._read = False

    async def _next(self) -> Json:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _hear(self, message: Any) -> None:
        self.heard.put_nowait(dict(message))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", [A, [A, B]])
def test_a_client_that_goes_away_ends_its_request(
    engine: ContinuousEngine, steps: Steps, stream: bool, prompt: Any
):
    async def main() -> None:
        app = create_app(engine)
        await app.state.service.warm_up()
        steps.held.set()
        visitor = Visitor(app, {"prompt": prompt, "max_tokens": 200, "ignore_eos": True, "stream": stream})
        await asyncio.to_thread(steps.gate.wait)
        steps.gate.open(2)
        if stream:
            assert (await visitor.heard.get())["type"] == "http.response.start"
            assert b"data: " in (await visitor.heard.get())["body"]
        visitor.gone.set()
        await visitor.call
        steps.gate.open()
        last = engine.submit(Request("last", A, SamplingParams(max_tokens=1)))
        assert len([event async for event in last]) == 1, "by now it has followed the orders before"
        assert (engine.counters.num_requests_running, engine.counters.num_requests_waiting) == (0, 0)
        assert engine.counters.kv_cache_usage == 0

    asyncio.run(main())


def test_a_client_that_goes_away_while_it_is_written_to_ends_its_request(
    engine: ContinuousEngine, steps: Steps
):
    class Deaf(Visitor):
        async def _hear(self, message: Any) -> None:
            await super()._hear(message)
            if message.get("body"):
                await asyncio.Event().wait()  # it takes nothing more

    async def main() -> None:
        app = create_app(engine)
        await app.state.service.warm_up()
        steps.held.set()
        visitor = Deaf(app, {"prompt": A, "max_tokens": 200, "ignore_eos": True, "stream": True})
        steps.gate.open(2)
        await visitor.heard.get()
        await visitor.heard.get()
        visitor.gone.set()
        await visitor.call
        steps.gate.open()
        last = engine.submit(Request("last", A, SamplingParams(max_tokens=1)))
        assert len([event async for event in last]) == 1
        assert engine.counters.num_requests_running == 0

    asyncio.run(main())
