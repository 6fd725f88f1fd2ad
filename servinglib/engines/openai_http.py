"""The telephone to somebody's server: dialling, patience, dialling again, and an honest word when it fails.

Who finds a shop full comes back later, and not all at the same minute: the waits between attempts double
and are drawn by chance ("full jitter"; Brooker, AWS Architecture Blog, 2015), so that clients that failed
together don't return together. Only what can pass is tried again, and never an answer of which a token
has been told: two beginnings of one answer can't be joined.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import aiohttp

from servinglib.engines.openai_failures import SAID_LIMIT, failure, stated_error
from servinglib.engines.openai_settings import OpenAISettings
from servinglib.engines.server_sent_events import EventParser
from servinglib.errors import EndpointFailed

log = logging.getLogger(__name__)
READ_BUFFER = 2**20  # bytes; at aiohttp's 64 KiB, many fast streams stop and start again
LAST_WORDS = 1.0  # seconds for a response to end after [DONE], so that its connection can be used again

Sleep = Callable[[float], Awaitable[object]]
Draw = Callable[[], float]


class Retries:
    """How often one request was tried, and the wait before it is tried again."""

    def __init__(self, settings: OpenAISettings, sleep: Sleep, draw: Draw) -> None:
        self._settings, self._sleep, self._draw = settings, sleep, draw
        self.attempts = 0

    async def again(self, error: EndpointFailed, *, begun: bool = False) -> None:
        """Wait for the next attempt, or raise the error: it doesn't pass, or the answer had `begun`."""
        self.attempts += 1
        error.attempts = self.attempts
        if begun or not error.transient or self.attempts > self._settings.max_retries:
            raise error
        wait = self.wait(error.retry_after)
        log.warning("%s; trying again in %.2f s", error, wait)
        await self._sleep(wait)

    def wait(self, retry_after: float | None = None) -> float:
        """Seconds to wait now: what the server asked for, if it did, and a share drawn by chance."""
        cap = self._settings.backoff_cap
        longest = min(self._settings.backoff * 2 ** (self.attempts - 1), cap)
        return min(retry_after or 0.0, cap) + self._draw() * longest


class Endpoint:
    """A server that speaks HTTP; its methods run in one event loop.

    Attributes
    ----------
    retries : int
        Requests that were sent again, since loading.
    """

    def __init__(
        self, settings: OpenAISettings, clock: Callable[[], float], sleep: Sleep, draw: Draw
    ) -> None:
        self._settings, self._clock, self._sleep, self._draw = settings, clock, sleep, draw
        self._base = settings.base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self.retries = 0

    def open(self) -> None:
        """Get ready, in the event loop."""
        s = self._settings
        headers = {"Accept-Encoding": "identity"}  # a compressor would hold tokens back
        if s.api_key:
            headers["Authorization"] = f"Bearer {s.api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=s.max_connections),
            timeout=aiohttp.ClientTimeout(
                total=s.total_timeout, sock_connect=s.connect_timeout, sock_read=s.read_timeout
            ),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_BUFFER,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def patience(self) -> Retries:
        """For one request."""
        return Retries(self._settings, self._counted_sleep, self._draw)

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the server answers, as JSON, to a GET, or to a POST of `body`; tried again if that may help.

        A path that begins with "/" is below `base_url`; one that begins with "//" is beside its "/v1".
        """
        patience = self.patience()
        while True:
            try:
                return await self._ask_once(path, body)
            except EndpointFailed as error:
                await patience.again(error)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[tuple[float, Any]]:
        """Send a request once, and yield what the server says, with the time at which it came.

        Raises
        ------
        EndpointFailed
            The server refused, stalled, or said what is no JSON. That a stream ended too early can only be
            told by who reads it.
        """
        parser = EventParser()
        with self._told_plainly(path):
            async with self._request(path, body) as response:
                await self._check(response, path, body, "text/event-stream")
                async for piece in response.content.iter_any():
                    now = self._clock()
                    for data in _events(parser, piece, path):
                        if data == "[DONE]":
                            await _to_the_end(response)
                            return
                        yield now, self._message(data, path, body)

    async def _ask_once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        with self._told_plainly(path):
            async with self._request(path, body) as response:
                await self._check(response, path, body or {}, "json")
                try:
                    return json.loads(await response.read())
                except ValueError:
                    raise EndpointFailed(
                        f"{self._url(path)} was answered with what is no JSON", _WRONG_HOUSE
                    ) from None

    def _request(self, path: str, body: Mapping[str, Any] | None) -> Any:
        assert self._session is not None, "open() comes first"
        method = "GET" if body is None else "POST"
        return self._session.request(method, self._url(path), json=body, allow_redirects=False)

    def _url(self, path: str) -> str:
        return self._base.removesuffix("/v1") + path[1:] if path.startswith("//") else self._base + path

    async def _check(
        self, response: aiohttp.ClientResponse, path: str, body: Mapping[str, Any], kind: str
    ) -> None:
        if response.status != 200:
            said = bytearray()
            async for piece in response.content.iter_any():
                said += piece
                if len(said) > SAID_LIMIT:
                    break
            raise self._failure(response.status, said.decode(errors="replace"), path, body, response.headers)
        if kind not in response.content_type:
            raise EndpointFailed(
                f"{self._url(path)} was answered with {response.content_type}, not {kind}",
                _WRONG_HOUSE,
                status=200,
            )

    def _message(self, data: str, path: str, body: Mapping[str, Any]) -> Any:
        try:
            message = json.loads(data)
        except ValueError:
            raise EndpointFailed(
                f"{path} told an event that is no JSON", _BROKEN, body=self._blot(data[:SAID_LIMIT])
            ) from None
        if (error := stated_error(message)) is not None:
            raise self._failure(error.status, error.said, path, body, {})
        return message

    def _failure(
        self, status: int, said: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> EndpointFailed:
        retry_after = headers.get("Retry-After")
        error = failure(status, self._blot(said), self._url(path), body, retry_after, time.time())
        if 300 <= status < 400:
            error.advice = f"it has moved to {self._blot(headers.get('Location', '?'))}; set base_url to that"
        return error

    @contextmanager
    def _told_plainly(self, path: str) -> Iterator[None]:
        """Turn what the HTTP library raises into errors that say what to do, and hold no header."""
        s = self._settings
        try:
            yield
        except aiohttp.ConnectionTimeoutError:
            happened = f"no connection to {self._base} within connect_timeout={s.connect_timeout:g} s"
            raise EndpointFailed(happened, _UNREACHABLE, transient=True) from None
        except aiohttp.ServerTimeoutError:
            happened = f"{self._url(path)} has sent nothing for read_timeout={s.read_timeout:g} s"
            raise EndpointFailed(happened, "it hangs or has too much to do; see its log") from None
        except TimeoutError:
            happened = f"{self._url(path)} was not done within total_timeout={s.total_timeout} s"
            raise EndpointFailed(happened, "allow more time or send less load") from None
        except (aiohttp.ClientError, OSError) as error:
            passing = isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError)
            happened = f"the connection to {self._url(path)} failed: {type(error).__name__}: {error}"
            raise EndpointFailed(self._blot(happened), _UNREACHABLE, transient=passing) from None

    def _blot(self, text: str) -> str:
        """The text without the API key, which some servers repeat."""
        return text.replace(self._settings.api_key, "***") if self._settings.api_key else text

    async def _counted_sleep(self, seconds: float) -> None:
        self.retries += 1
        await self._sleep(seconds)


_UNREACHABLE = "check base_url, and that the server runs (its log tells why it would not)"
_WRONG_HOUSE = "check that base_url is that of an OpenAI-compatible server; it usually ends in /v1"
_BROKEN = "the server, or something between it and here, is broken; see its log"


def _events(parser: EventParser, piece: bytes, path: str) -> list[str]:
    try:
        return parser.feed(piece)
    except UnicodeDecodeError as error:
        raise EndpointFailed(f"{path} told an event that is no UTF-8: {error}", _BROKEN) from None


async def _to_the_end(response: aiohttp.ClientResponse) -> None:
    with suppress(TimeoutError, aiohttp.ClientError):  # all has been said
        async with asyncio.timeout(LAST_WORDS):
            async for _ in response.content.iter_any():
                pass
