"""The HTTP service: OpenAI's API in front of an engine.

A waiter takes an order, checks that the kitchen can cook it, brings the courses as they are done, and
stops the kitchen when the guest walks out. Here that is one handler per route: the form is checked
(`openai_api`), the job is handed to the engine (`service`), the answer is written (`openai_answers`),
and all the while somebody watches the door (`while_connected`).

Requests are taken when the engine is warm. `GET /health` says that the process lives, and `GET /ready`
that it takes requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import uuid4

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from servinglib.engines.base import Engine
from servinglib.errors import ServingError
from servinglib.server.openai_answers import ChatWriter, CompletionWriter, OpenAIWriter, must_be_tellable
from servinglib.server.openai_api import ChatRequest, CompletionRequest, TokenizeRequest
from servinglib.server.openai_errors import error_body, misfit, told
from servinglib.server.service import Service

T = TypeVar("T")
CLIENT_GONE = 499
"""The status of an answer that nobody reads, as nginx has it."""

routes = APIRouter()


def create_app(engine: Engine) -> FastAPI:
    """An ASGI application that serves an engine; it warms the engine up when it starts.

    The engine stays the caller's: who has loaded it shuts it down, after the server has ended.

    Raises
    ------
    InvalidSetting
        If the engine takes no requests from an event loop (engines with static batches).
    """
    app = FastAPI(title="servinglib", lifespan=_warming_up)
    app.state.service = Service(engine)
    app.include_router(routes)
    app.add_exception_handler(RequestValidationError, _on_misfit)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ServingError, _on_error)
    app.add_exception_handler(Exception, _on_error)
    return app


@routes.get("/health")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "alive"}


@routes.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """The engine is warm and takes requests; 503 until then."""
    _service(request).must_be_ready()
    return {"status": "ready"}


@routes.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served, and how many tokens its context holds."""
    engine = _service(request).engine
    card = {
        "id": engine.model_name,
        "object": "model",
        "created": _service(request).opened,
        "owned_by": "servinglib",
        "max_model_len": engine.context_length,
    }
    return {"object": "list", "data": [card]}


@routes.post("/tokenize")
def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """The token ids of a text."""
    service = _service(request)
    service.must_know(body.model)
    tokens = service.engine.tokenize(body.prompt)
    return {"count": len(tokens), "max_model_len": service.engine.context_length, "tokens": tokens}


@routes.post("/v1/completions", response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on from a prompt, or from each of several."""
    service = _service_for(body, request)
    params = body.sampling()
    must_be_tellable(service, body, params.logprobs)
    name = f"cmpl-{_request_id(request)}"
    job = await service.submit(name, body.prompts(), params)
    return await _answer(CompletionWriter(service, body, name, job), body.stream, request)


@routes.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Give the next message of a conversation."""
    service = _service_for(body, request)
    messages = [message.plain() for message in body.messages]
    prompt = await asyncio.to_thread(service.chat_prompt, messages)
    params = body.sampling(room=service.engine.context_length - len(prompt))
    must_be_tellable(service, body, params.logprobs)
    name = f"chatcmpl-{_request_id(request)}"
    job = await service.submit(name, [prompt], params)
    return await _answer(ChatWriter(service, body, name, job), body.stream, request)


def _service(request: Request) -> Service:
    return request.app.state.service


def _service_for(body: CompletionRequest | ChatRequest, request: Request) -> Service:
    service = _service(request)
    service.must_be_ready()
    service.must_know(body.model)
    return service


def _request_id(request: Request) -> str:
    return request.headers.get("x-request-id") or uuid4().hex


async def _answer(writer: OpenAIWriter, stream: bool, request: Request) -> Response:
    if stream:
        return EventResponse(writer.stream())
    answer = await while_connected(request.receive, writer.whole())
    return Response(status_code=CLIENT_GONE) if answer is None else JSONResponse(answer)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work gives; when the client goes away it is cancelled, and the result is None.

    Parameters
    ----------
    receive : callable
        ASGI's, after the request's body was read.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait({working, watching})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventResponse(StreamingResponse):
    """A stream of server-sent events that ends, and ends its job, when the client goes away."""

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or nobody listens."""
        await while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        try:
            await self.stream_response(send)
        finally:  # it may be cancelled while it sends, and the events know nothing of that
            await self._events.aclose()


@asynccontextmanager
async def _warming_up(app: FastAPI) -> AsyncIterator[None]:
    """While the server runs: warm up beside it, so that it can say that it isn't ready yet."""
    warming = asyncio.create_task(app.state.service.warm_up())
    yield
    await asyncio.wait({warming})


async def _on_misfit(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse(misfit(error.errors()), 400)


async def _on_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(error.status_code, error.detail), error.status_code, error.headers)


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    status, body = told(error)
    return JSONResponse(body, status)
