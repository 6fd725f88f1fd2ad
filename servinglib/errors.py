"""Typed errors: each says what happened, with the numbers, and what to do about it.

Every accepted request ends exactly once, with a result or with one of these. All derive from
`ServingError`, so that a caller can tell the library's refusals from bugs.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class ServingError(Exception):
    """Base of every error that this library raises on purpose; it travels between processes whole."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[ServingError], args: tuple[Any, ...], attributes: dict[str, Any]) -> ServingError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class QueueFull(ServingError):
    """The waiting room is full; come back in `retry_after` seconds.

    Attributes
    ----------
    waiting, limit : int
        Requests waiting now, and the most that may wait.
    retry_after : float
        Seconds until a place is likely to be free, from the measured service rate.
    """

    def __init__(self, waiting: int, limit: int, retry_after: float) -> None:
        self.waiting, self.limit, self.retry_after = waiting, limit, retry_after
        super().__init__(
            f"the queue is full: {waiting} requests wait and the limit is {limit}; "
            f"try again in {retry_after:.3g} s, or raise max_queue_size"
        )


class DeadlineExceeded(ServingError):
    """The request was not answered within its timeout (seconds)."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        super().__init__(
            f"no answer within the timeout of {timeout:.3g} s; allow more time or send less load"
        )


class ServerNotStarted(ServingError):
    """A request came before the server was started."""

    def __init__(self) -> None:
        super().__init__("the server is not started; use `async with BatchInferenceServer(...) as server`")


class ServerClosed(ServingError):
    """The server is stopped or stopping and takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the server is stopped and takes no requests; start a new one")


class ServerFailed(ServingError):
    """A server's process did not start, ended before it was ready, or would not stop; its last words are quoted."""


class EngineFailed(ServingError):
    """The engine's own computation failed; every request that it held ends with this."""

    def __init__(self, cause: BaseException, what: str = "stopped") -> None:
        super().__init__(
            f"the engine {what}: {type(cause).__name__}: {cause}; load it anew, and report this if it comes back"
        )


class BatchSizeMismatch(ServingError):
    """The model answered a batch with a list of the wrong length, so no answer can be told from another."""

    def __init__(self, expected: int, got: int) -> None:
        self.expected, self.got = expected, got
        super().__init__(
            f"generate_batch was given {expected} items and returned {got} results; "
            f"it must return exactly one result, or one exception, per item, in order"
        )


class InvalidRequest(ServingError, ValueError):
    """The request can never be served as it stands."""


class EmptyPrompt(InvalidRequest):
    """The prompt holds no token."""

    def __init__(self) -> None:
        super().__init__("the prompt is empty; give at least one token of text")


class ContextTooLong(InvalidRequest):
    """Prompt and answer together do not fit into the model's context (all in tokens)."""

    def __init__(self, prompt_tokens: int, max_tokens: int, context_length: int) -> None:
        self.prompt_tokens, self.max_tokens, self.context_length = prompt_tokens, max_tokens, context_length
        super().__init__(
            f"{prompt_tokens} prompt tokens + max_tokens={max_tokens} = {prompt_tokens + max_tokens} tokens, "
            f"but the context holds {context_length}; shorten the prompt or lower max_tokens"
        )


class InvalidSetting(ServingError, ValueError):
    """A setting is outside its domain, or two settings contradict each other."""


class UnknownName(ServingError, ValueError):
    """A name that nothing goes by; the message lists the known ones and the nearest.

    Parameters
    ----------
    kind : str
        What the name was meant to name: "model", "engine", "parameter", ...
    origin : str, optional
        Where it was said, such as "serving.yaml:3".
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], origin: str | None = None) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = get_close_matches(name, self.known, n=1)
        place = f" from {origin}" if origin else ""
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        super().__init__(f"unknown {kind} {name!r}{place}{hint}; known: {', '.join(self.known)}")


class ModelUnavailable(ServingError):
    """A model is known by name but can't be had here; the message says how to get it."""


class EngineUnavailable(ServingError):
    """An engine whose package is not installed here.

    Attributes
    ----------
    engine, package, install : str
        The engine, what it needs, and the command that installs that.
    """

    def __init__(self, engine: str, package: str, install: str) -> None:
        self.engine, self.package, self.install = engine, package, install
        super().__init__(
            f"the {engine} engine needs the package {package}, which is not installed here; install it with "
            f"`{install}`, or go back to another engine with the setting `engine: transformers`"
        )


class EndpointFailed(ServingError):
    """Somebody's server did not answer as it should, or not at all.

    Attributes
    ----------
    happened, advice : str
        What, and what to do about it.
    status : int or None
        Of HTTP, if it came to an answer.
    body : str
        The beginning of what the server said.
    transient : bool
        Whether the same request might succeed later.
    retry_after : float or None
        Seconds that the server asked to wait.
    attempts : int
        How often it was tried.
    """

    def __init__(
        self,
        happened: str,
        advice: str,
        *,
        status: int | None = None,
        body: str = "",
        transient: bool = False,
        retry_after: float | None = None,
    ) -> None:
        self.happened, self.advice, self.status, self.body = happened, advice, status, body
        self.transient, self.retry_after, self.attempts = transient, retry_after, 1
        super().__init__(happened, advice)

    def __str__(self) -> str:
        said = f" ({self.body})" if self.body else ""
        tried = f", {self.attempts} times" if self.attempts > 1 else ""
        return f"{self.happened}{said}{tried}; {self.advice}"


class EndpointRefused(EndpointFailed, InvalidRequest):
    """Somebody's server says that the request can't be served as it stands."""
