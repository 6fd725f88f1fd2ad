"""One bad item must not spoil its batch: who is to blame when a whole batch fails?

When a fuse blows, an electrician switches half of the circuits on, then half of the guilty half,
until the one that blows it is found. A batch that raises is cut in half and each half is tried
alone, down to single items; the innocent get their answers, the guilty their own exception. One
guilty item among b costs about 2·log₂(b) further calls of the model.

`isolate` holds the procedure and calls no model: it yields a batch to try and is sent what came of
it, so that a thread and an asyncio task can both drive it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from typing import Any

from servinglib.errors import BatchSizeMismatch, ServingError

Outcome = Any  # an answer, or the exception that is its item's own
Attempts = Generator[list[Any], Any, list[Outcome]]


def isolate(items: list[Any], split: bool) -> Attempts:
    """Find every item's outcome.

    Parameters
    ----------
    items : list
        The batch.
    split : bool
        Whether a batch that raises is cut in half; else all its items fail with that exception.

    Yields
    ------
    list
        Items to give to the model. Send what the model returned, or the exception that it raised.

    Returns
    -------
    list
        One answer or exception per item, in order.
    """
    outcomes: list[Outcome] = [None] * len(items)
    parts = [(0, len(items))]
    while parts:
        start, end = parts.pop()
        got = yield items[start:end]
        if isinstance(got, Exception) and split and end - start > 1:
            middle = (start + end) // 2
            parts += [(middle, end), (start, middle)]
        elif isinstance(got, BaseException):
            outcomes[start:end] = [got] * (end - start)
        else:
            outcomes[start:end] = one_each(got, end - start)
    return outcomes


def one_each(results: Any, size: int) -> list[Outcome]:
    """`results` as a list of `size` outcomes; where it is none, as many errors that say so.

    Such a batch is not cut in half: a model that loses count is wrong about every item.
    """
    if isinstance(results, str | bytes | Mapping) or not hasattr(results, "__len__"):
        kind = type(results).__name__
        return [ServingError(f"generate_batch returned a {kind}, not a list of results") for _ in range(size)]
    if len(results) != size:
        return [BatchSizeMismatch(size, len(results)) for _ in range(size)]
    return list(results)


def as_error(error: BaseException) -> Exception:
    """`error` in a form that a future can carry and that harms nobody but its own caller.

    A `SystemExit` given to a caller would end the whole program, a `CancelledError` would look as if
    the caller had cancelled, and a future refuses `StopIteration`.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    if isinstance(error, asyncio.CancelledError):
        wrapped = ServingError("the model cancelled its own batch; its callers may try again")
    else:
        wrapped = ServingError(f"generate_batch raised {error!r}, which must not leave the model")
    wrapped.__cause__ = error
    return wrapped
