"""However a server misbehaves, a request ends once, and tells what happened."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import threading
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from misbehaving import (
    PATIENCE,
    Act,
    MisbehavingServer,
    Wire,
    begins_and,
    behind_the_gate,
    chunk,
    refuses,
    says,
)

from servinglib.engines.openai_engine import OpenAIEngine
from servinglib.engines.openai_failures import seconds_to_wait
from servinglib.engines.openai_http import Retries
from servinglib.engines.openai_settings import OpenAISettings
from servinglib.errors import EndpointFailed, EndpointRefused, ServerClosed
from servinglib.request import Request, SamplingParams, TokenEvent

HELLO = says(chunk("Hello", "stop"))


def connect(server: MisbehavingServer, **options: Any) -> OpenAIEngine:
    return OpenAIEngine.load(
        "tiny", **{"base_url": server.url, "token_ids": False, "backoff": 0.0, **options}
    )


def fails(act: Act, **options: Any) -> tuple[list[TokenEvent], EndpointFailed, MisbehavingServer]:
    """What is heard of an answer before it fails, and the error."""
    heard: list[TokenEvent] = []
    with MisbehavingServer(act) as server, connect(server, **options) as engine:
        stream = engine.stream("hi", request_id="it")
        with pytest.raises(EndpointFailed) as caught:
            heard.extend(stream)
        assert list(stream) == [], "it has ended"
        assert engine.abort("it") is False
    return heard, caught.value, server


# Silence


@pytest.mark.parametrize("begun", [[], [chunk("He")]])
def test_a_stall_is_an_error_that_says_so_and_is_not_tried_again(begun: list[Any]):
    heard, error, server = fails(begins_and(Wire.until_left, *begun), read_timeout=0.05)
    assert [e.text for e in heard] == ["He"] * len(begun)
    assert "sent nothing for read_timeout=0.05 s" in str(error)
    assert len(server.answers_asked) == 1


def test_headers_that_never_come_are_a_stall_too():
    _, error, _ = fails(Wire.until_left, read_timeout=0.05)
    assert "sent nothing" in str(error)


def test_an_attempt_may_be_given_a_time_altogether():
    _, error, _ = fails(begins_and(Wire.until_left, chunk("He")), total_timeout=0.05)
    assert "total_timeout=0.05" in str(error)


def test_a_deadline_ends_a_silent_answer_as_on_every_engine():
    with MisbehavingServer(begins_and(Wire.until_left, chunk("He"))) as server, connect(server) as engine:
        request = Request("late", "hi", SamplingParams(), timeout=0.05)
        events = list(engine.run([request], [engine.validate(request)]))
        server.wait_for("arrived")
        server.wait_for("left")
    assert [(e.text, e.finish_reason) for e in events] == [("He", None), ("", "deadline")]


# Broken streams


def test_a_stream_that_is_cut_after_a_token_is_an_error_and_not_tried_again():
    for cut in (begins_and(Wire.cut, chunk("He")), begins_and(Wire.end, chunk("He")), says(chunk("He"))):
        heard, error, server = fails(cut)
        assert [e.text for e in heard] == ["He"]
        assert ("cut after 1 tokens" in str(error)) or "the connection to" in str(error)
        assert len(server.answers_asked) == 1


@pytest.mark.parametrize("broken", [begins_and(Wire.cut), begins_and(Wire.end), says()])
def test_a_stream_that_is_cut_before_any_token_is_tried_again(broken: Act):
    with MisbehavingServer(broken, broken, HELLO) as server, connect(server) as engine:
        assert engine.generate("hi")[0].text == "Hello"
        assert engine.retries == 2


@pytest.mark.parametrize("then", [Wire.cut, Wire.until_left])
def test_an_answer_that_has_ended_is_whole_whatever_happens_to_the_stream_then(then: Callable[[Wire], Any]):
    act = begins_and(then, chunk("Hello", "stop"))
    with MisbehavingServer(act) as server, connect(server, read_timeout=0.1) as engine:
        assert engine.generate("hi")[0].text == "Hello"


def test_an_answer_that_goes_on_after_its_end_is_an_error():
    act = says(chunk("a", "stop"), chunk("b"))
    with (
        MisbehavingServer(act) as server,
        connect(server) as engine,
        pytest.raises(EndpointFailed, match="no chunk"),
    ):
        engine.generate("hi", n=2, temperature=1.0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{not json", "no JSON"),
        ('["a list"]', "no chunk"),
        ('{"choices": [{"index": 5, "text": "a"}]}', "no chunk"),
        ('{"choices": [{"index": 0, "text": ["a"]}]}', "no chunk"),
        (
            '{"choices": [{"index": 0, "text": "a", "finish_reason": "error"}]}',
            "ended the answer with an error",
        ),
    ],
)
def test_a_malformed_event_is_an_error_with_what_was_said(said: str, message: str):
    heard, error, _ = fails(begins_and(Wire.until_left, chunk("He"), said))
    assert len(heard) == 1
    assert message in str(error)


def test_what_is_no_utf8_is_an_error():
    async def act(wire: Wire) -> None:
        await wire.head()
        await wire.raw(b"data: \xff\n\n")

    assert "no UTF-8" in str(fails(act)[1])


def test_characters_torn_between_reads_are_whole():
    async def act(wire: Wire) -> None:
        await wire.head()
        for (
            byte
        ) in 'data: {"choices": [{"index": 0, "text": "批🙂", "finish_reason": "stop"}]}\r\n\r\n'.encode():
            await wire.raw(bytes([byte]))
        await wire.raw(b"data:[DONE]\r\n\r\n")
        await wire.end()

    with MisbehavingServer(act) as server, connect(server) as engine:
        assert engine.generate("hi")[0].text == "批🙂"


def test_an_error_told_within_a_stream_counts_as_what_it_says():
    busy = says({"error": {"message": "overloaded", "code": 503}})
    with MisbehavingServer(busy, HELLO) as server, connect(server) as engine:
        assert engine.generate("hi")[0].text == "Hello"
    _, error, server = fails(says({"error": {"message": "too long", "code": 400}}))
    assert isinstance(error, EndpointRefused)
    assert len(server.answers_asked) == 1


def test_a_page_for_people_is_no_stream():
    async def page(wire: Wire) -> None:
        await wire.head(kind="text/html")
        await wire.end()

    assert "text/html, not text/event-stream" in str(fails(page)[1])


def test_a_server_that_has_moved_is_named():
    _, error, _ = fails(refuses(307, Location="http://elsewhere/v1"))
    assert "set base_url" in str(error)
    assert "http://elsewhere/v1" in str(error)


# Trying again


def test_a_storm_of_429_is_waited_out_as_long_as_the_server_asks():
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    busy = refuses(429, "slow down", Retry_After="3")
    with MisbehavingServer(busy, busy, busy, HELLO) as server:
        settings = OpenAISettings(base_url=server.url, token_ids=False, backoff=1.0)
        with OpenAIEngine("tiny", settings, sleep=sleep, draw=lambda: 0.5) as engine:
            assert engine.generate("hi")[0].text == "Hello"
            assert engine.retries == 3
    assert waits == [3.5, 4.0, 5.0]


def test_the_wait_doubles_up_to_a_cap_and_is_drawn_by_chance():
    settings = OpenAISettings(base_url="http://x/v1", backoff=1.0, backoff_cap=5.0)
    draws = iter([1.0, 0.5, 1.0, 1.0, 0.0])
    patience = Retries(settings, sleep=None, draw=lambda: next(draws))  # type: ignore[arg-type]
    waits = []
    for patience.attempts in range(1, 6):
        waits.append(patience.wait())
    assert waits == [1.0, 1.0, 4.0, 5.0, 0.0]
    patience._draw = lambda: 0.0
    assert patience.wait(retry_after=1e9) == 5.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), (formatdate(1060, usegmt=True), 60.0), (formatdate(900, usegmt=True), 0.0)]
    + [(nonsense, None) for nonsense in (None, "soon", "-1", "nan", "inf")],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None):
    assert seconds_to_wait(header, now=1000.0) == seconds


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again_and_logged(status: int, caplog: pytest.LogCaptureFixture):
    with MisbehavingServer(refuses(status), HELLO) as server, connect(server) as engine:
        assert engine.generate("hi")[0].text == "Hello"
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert f"status {status}" in record.message


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 501])
def test_what_will_not_pass_is_not_tried_again(status: int):
    _, error, server = fails(refuses(status))
    assert (error.status, error.attempts, len(server.answers_asked)) == (status, 1, 1)


def test_patience_ends_and_the_error_counts_the_attempts():
    _, error, server = fails(refuses(500, "on fire"), max_retries=2)
    assert (error.attempts, len(server.answers_asked)) == (3, 3)
    assert "on fire" in str(error)
    assert "3 times" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.status) == (str(error), 500)


def test_a_refused_connection_says_where_nobody_answered():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EndpointFailed, match=f"{url}.*2 times.*check base_url") as caught:
            OpenAIEngine.load("tiny", base_url=url, backoff=0.0, max_retries=1)
    assert caught.value.status is None


# Connections


def test_no_more_connections_are_open_than_are_allowed():
    gated = behind_the_gate(HELLO)
    with MisbehavingServer(gated) as server, connect(server, max_connections=2) as engine:
        batch = [Request(str(i), "hi") for i in range(8)]
        events = engine.run(batch, [engine.validate(request) for request in batch])
        server.wait_for("arrived")
        server.wait_for("arrived")
        server.open_gate()
        assert [e.text for e in events] == ["Hello"] * 8
        assert server.most_open == 2
        assert server.connections <= 2, "a connection is used again after an answer"
        assert len(server.answers_asked) == 8


def test_a_connection_is_used_again_though_its_response_ends_a_little_after_the_answer():
    async def act(wire: Wire) -> None:
        await wire.head()
        await wire.say(chunk("Hello", "stop"), "[DONE]")
        await asyncio.sleep(0.02)
        await wire.end()

    with MisbehavingServer(act) as server, connect(server) as engine:
        assert [engine.generate("hi")[0].text for _ in range(2)] == ["Hello"] * 2
        assert server.connections == 1


def leave(engine: OpenAIEngine, events: Any) -> None:
    events.close()


def abort(engine: OpenAIEngine, events: Any) -> None:
    assert engine.abort("mine") is True
    assert [e.finish_reason for e in events] == ["abort"]


def stop(engine: OpenAIEngine, events: Any) -> None:
    engine.shutdown()
    with pytest.raises(ServerClosed):
        list(events)


@pytest.mark.parametrize("end", [leave, abort, stop])
def test_whoever_ends_a_request_hangs_up_on_the_server(end: Callable[[OpenAIEngine, Any], None]):
    with MisbehavingServer(begins_and(Wire.until_left, chunk("He"))) as server, connect(server) as engine:
        events = engine.stream("hi", request_id="mine")
        assert next(events).text == "He"
        server.wait_for("arrived")
        end(engine, events)
        server.wait_for("left")


def test_an_abort_ends_the_wait_for_another_attempt():
    waiting = threading.Event()

    async def sleep(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    with MisbehavingServer(refuses(503)) as server:
        settings = OpenAISettings(base_url=server.url, token_ids=False)
        with OpenAIEngine("tiny", settings, sleep=sleep) as engine:
            events = engine.stream("hi", request_id="mine")
            assert waiting.wait(PATIENCE)
            assert engine.abort("mine") is True
            assert [e.finish_reason for e in events] == ["abort"]
