"""An engine that is made of coroutines: vLLM, SGLang, somebody's server.

Such engines live in an event loop, and their callers may live in any thread or loop. An interpreter's
booth stands between: the engine has one loop in a thread of its own, each request is one task there,
and what the task hears is called out to the reader outside. An engine of this kind says how one request
is served (`_events`) and how all ends (`_close`); ids, aborts, deadlines and failures stand here once.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar, cast

from servinglib.engines.base import Engine
from servinglib.engines.streams import EventStream, Item, Listener, Patience, check_ids, listen, waker
from servinglib.errors import EngineFailed, ServerClosed, ServingError
from servinglib.request import FinishReason, Request, TokenEvent

T = TypeVar("T")


class Conversation:
    """One request between the engine's loop and its reader.

    Attributes
    ----------
    task : asyncio.Task or None
        What serves it, once it has begun.
    leaving : FinishReason, ServingError or None
        Why it ends before its time; what the engine still says is not passed on.
    tokens : dict of int to int
        Tokens told so far of each answer that has not ended.
    """

    def __init__(self, request: Request, prompt: list[int], listener: Listener, address: Any) -> None:
        self.request, self.prompt = request, prompt
        self._listener, self._address = listener, address
        self.task: asyncio.Task[None] | None = None
        self.leaving: FinishReason | ServingError | None = None
        self.tokens = dict.fromkeys(range(request.params.n), 0)

    def tell(self, item: TokenEvent | Exception) -> None:
        """Call an item out to the reader."""
        self._listener([(self._address, item)])

    def count(self, event: TokenEvent) -> None:
        """Note a token, or the end of an answer."""
        self.tokens[event.choice] += event.token_id is not None
        if event.finish_reason is not None:
            del self.tokens[event.choice]

    def farewell(self, now: float) -> Iterator[TokenEvent | Exception]:
        """What the reader hears when it ends before its time."""
        if isinstance(self.leaving, ServingError):
            yield self.leaving
            return
        for choice, tokens in self.tokens.items():
            name = self.request.request_id
            yield TokenEvent(name, tokens, None, "", now, self.leaving or "abort", choice)


class EventLoopEngine(Engine):
    """An engine whose requests are tasks of one event loop; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._conversations: dict[str, Conversation] = {}
        self._lock = threading.Lock()  # between an end that comes by itself and one from outside
        self._error: ServingError | None = None  # why it takes no more requests
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"{self.name}-engine", daemon=True
        )
        self._thread.start()

    @abstractmethod
    def _events(self, request: Request, prompt: list[int]) -> AsyncGenerator[TokenEvent]:
        """Serve one request, in the engine's loop; closing the generator ends it over there as well."""

    @abstractmethod
    async def _close(self) -> None:
        """Free everything, in the engine's loop, when no request is left."""

    def run(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        """Start the requests now, and yield their events as they come; closing the iterator aborts the rest."""
        news: queue.SimpleQueue[list[Item]] = queue.SimpleQueue()
        return self._start(requests, prompts, news, news.put)

    def submit(self, request: Request) -> EventStream:
        """Start a request from a running event loop; iterate to get its events, close or drop to abort it."""
        prompt = self.validate(request)
        events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self._begin([request], [prompt], waker(asyncio.get_running_loop()), [events])
        return EventStream(events, request.params.n, partial(self.abort, request.request_id))

    def abort(self, request_id: str) -> bool:
        """End a request at once, with finish reason "abort"; False if it is not running."""
        return self._leave(request_id, "abort")

    def shutdown(self) -> None:
        """End what runs with `ServerClosed`, free everything, and wait for that."""
        with self._lock:
            if isinstance(self._error, ServerClosed):
                return
            self._error = ServerClosed()
        for request_id in list(self._conversations):
            self._leave(request_id, ServerClosed())
        self._call(self._finish())
        self._stop_loop()

    def _run_whole(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        news: queue.SimpleQueue[list[Item]] = queue.SimpleQueue()
        return self._start(requests, prompts, news, Patience(sum(r.params.n for r in requests), news.put))

    def _must_be_open(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done in the engine's loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(
        self,
        requests: Sequence[Request],
        prompts: Sequence[list[int]],
        news: queue.SimpleQueue[list[Item]],
        listener: Listener,
    ) -> Iterator[TokenEvent]:
        self._begin(requests, prompts, listener, [r.request_id for r in requests])
        events = listen(news, {r.request_id: r.params.n for r in requests}, self.abort)
        next(events)  # now that it has begun, whoever drops it ends the requests
        return cast("Iterator[TokenEvent]", events)

    def _begin(
        self,
        requests: Sequence[Request],
        prompts: Sequence[list[int]],
        listener: Listener,
        addresses: Sequence[Any],
    ) -> None:
        talks = [
            Conversation(request, prompt, listener, address)
            for request, prompt, address in zip(requests, prompts, addresses, strict=True)
        ]
        with self._lock:
            self._must_be_open()
            check_ids(requests, self._conversations)
            self._conversations.update((talk.request.request_id, talk) for talk in talks)
            self._loop.call_soon_threadsafe(self._serve_all, talks)

    # What runs in the engine's loop

    def _serve_all(self, talks: Sequence[Conversation]) -> None:
        for talk in talks:
            talk.task = self._loop.create_task(self._serve(talk))
            talk.task.add_done_callback(partial(self._end, talk))  # it may be cancelled before it begins
            if talk.request.timeout is not None:
                leave = partial(self._leave_if_same, talk, "deadline")
                self._loop.call_later(talk.request.timeout, leave)
            if talk.leaving is not None:  # it was ended before it began
                talk.task.cancel()

    async def _serve(self, talk: Conversation) -> None:
        try:
            async with aclosing(self._events(talk.request, talk.prompt)) as events:
                async for event in events:
                    if not self._pass_on(talk, event):
                        break
        except asyncio.CancelledError:  # whoever cancels has said why
            talk.leaving = talk.leaving or ServerClosed()
        except ServingError as error:
            talk.leaving = error
        except Exception as error:  # noqa: BLE001, it is told to the reader
            talk.leaving = EngineFailed(error)
            talk.leaving.__cause__ = error

    def _pass_on(self, talk: Conversation, event: TokenEvent) -> bool:
        """Tell the reader an event; False when there is nothing more to tell."""
        with self._lock:
            if talk.leaving is not None:
                return False
            talk.count(event)
            if not talk.tokens:  # it is over before its reader can hear of it
                del self._conversations[talk.request.request_id]
        talk.tell(event)
        return bool(talk.tokens)

    def _end(self, talk: Conversation, _: asyncio.Task[None]) -> None:
        if not talk.tokens:
            return
        with self._lock:
            self._conversations.pop(talk.request.request_id, None)
        for item in talk.farewell(self.now()):
            talk.tell(item)

    def _leave(self, request_id: str, reason: FinishReason | ServingError) -> bool:
        with self._lock:
            talk = self._conversations.get(request_id)
            if talk is None or talk.leaving is not None:
                return False
            talk.leaving = reason
        self._loop.call_soon_threadsafe(lambda: talk.task and talk.task.cancel())
        return True

    def _leave_if_same(self, talk: Conversation, reason: FinishReason) -> None:
        if self._conversations.get(talk.request.request_id) is talk:
            self._leave(talk.request.request_id, reason)

    async def _finish(self) -> None:
        tasks = [talk.task for talk in list(self._conversations.values()) if talk.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._close()
