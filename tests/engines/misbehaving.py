"""A server that follows a script, on a real socket: it stalls, cuts, refuses and mumbles when told to.

Each POST for an answer takes the next act of the script; the last act is played again and again. An act is
a coroutine that gets the `Wire` of one request. `asked` has what was requested, and `seen` is a queue of
what a test may wait for: "arrived" for each such request, "left" when a client hung up on a silent act.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

PATIENCE = 10.0  # seconds that a test waits for what must come


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Wire:
    """The server's end of one request."""

    def __init__(
        self, server: MisbehavingServer, asked: Asked, reader: asyncio.StreamReader, writer: Any
    ) -> None:
        self.server, self.asked, self._reader, self._writer = server, asked, reader, writer

    async def head(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} x", f"Content-Type: {kind}", "Transfer-Encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        await self._writer.drain()

    async def raw(self, piece: bytes) -> None:
        self._writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await self._writer.drain()

    async def say(self, *messages: Any) -> None:
        for message in messages:
            data = message if isinstance(message, str) else json.dumps(message)
            await self.raw(f"data: {data}\n\n".encode())

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def until_left(self) -> None:
        """Say nothing until the client hangs up."""
        await self._reader.read()
        self.server.seen.put("left")

    def cut(self) -> None:
        self._writer.transport.abort()


Act = Callable[[Wire], Awaitable[None]]


def chunk(text: str = "", finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "finish_reason": finish, **more}]}


def delta(finish: str | None = None, **content: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish}]}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def says(*messages: Any) -> Act:
    """A whole stream of these messages."""

    async def act(wire: Wire) -> None:
        await wire.head()
        await wire.say(*messages, "[DONE]")
        await wire.end()

    return act


def refuses(status: int, message: str = "no", **headers: str) -> Act:
    async def act(wire: Wire) -> None:
        await wire.head(status, "application/json", **headers)
        await wire.raw(json.dumps({"error": {"message": message}}).encode())
        await wire.end()

    return act


def begins_and(then: Callable[[Wire], Any], *messages: Any) -> Act:
    """Says these messages, and then hangs (`Wire.until_left`) or cuts (`Wire.cut`)."""

    async def act(wire: Wire) -> None:
        await wire.head()
        await wire.say(*messages)
        waiting = then(wire)
        if waiting is not None:
            await waiting

    return act


def behind_the_gate(act: Act) -> Act:
    """An act that waits for `MisbehavingServer.open_gate`."""

    async def gated(wire: Wire) -> None:
        await wire.server.gate.wait()
        await act(wire)

    return gated


class MisbehavingServer:
    """Serves from its start to the end of its `with` block, on a free port of the loopback.

    Parameters
    ----------
    *script : Act
    models : mapping
        Model names and their `max_model_len`.
    models_act : Act, optional
        In place of the list of models.
    tokenizer : str, optional
        The field in which POST /tokenize takes the text: "prompt" or "content"; a token for each character.
    """

    def __init__(
        self,
        *script: Act,
        models: dict[str, int | None] | None = None,
        models_act: Act | None = None,
        tokenizer: str | None = None,
    ) -> None:
        self._script, self._models = list(script), models or {"tiny": None}
        self._models_act, self._tokenizer = models_act, tokenizer
        self.asked: list[Asked] = []
        self.seen: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.connections = self.open = self.most_open = 0
        self.gate = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def wait_for(self, what: str) -> None:
        assert self.seen.get(timeout=PATIENCE) == what

    def open_gate(self) -> None:
        self._loop.call_soon_threadsafe(self.gate.set)

    @property
    def answers_asked(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.path.endswith("completions")]

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.start_server(self._connection, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                asked = await _read(reader)
                self.asked.append(asked)
                await self._play(Wire(self, asked, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _play(self, wire: Wire) -> None:
        match wire.asked.path:
            case "/v1/models":
                await (self._models_act or self._list)(wire)
            case "/tokenize":
                await self._tokenize(wire)
            case _:
                act = self._script.pop(0) if len(self._script) > 1 else self._script[0]
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                self.seen.put("arrived")
                try:
                    await act(wire)
                finally:
                    self.open -= 1

    async def _list(self, wire: Wire) -> None:
        await _tell(wire, {"data": [{"id": m, "max_model_len": n} for m, n in self._models.items()]})

    async def _tokenize(self, wire: Wire) -> None:
        text = wire.asked.body.get(self._tokenizer) if self._tokenizer else None
        if text is None:
            await refuses(404, "Not Found")(wire)
        else:
            await _tell(wire, {"tokens": [ord(c) for c in text]})


async def _tell(wire: Wire, answer: Any) -> None:
    await wire.head(kind="application/json")
    await wire.raw(json.dumps(answer).encode())
    await wire.end()


async def _read(reader: asyncio.StreamReader) -> Asked:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, json.loads(body) if body else {})
