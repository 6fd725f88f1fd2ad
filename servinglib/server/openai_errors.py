"""A refusal or a failure in the shape that OpenAI's clients know, with the status that says whose turn it is.

400: ask differently. 404: there is no such thing. 503: ask again later. 500: it is our fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servinglib.errors import InvalidRequest, InvalidSetting, ServerClosed, ServingError, UnknownName
from servinglib.server.service import WarmingUp

Body = dict[str, Any]

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (InvalidRequest, 400),
    (InvalidSetting, 400),
    (UnknownName, 400),
    (ServerClosed, 503),
    (WarmingUp, 503),
)
_TYPES = {500: "server_error", 503: "service_unavailable"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> Body:
    """The JSON of an error."""
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def told(error: Exception) -> tuple[int, Body]:
    """Status and JSON of an error; one that nobody meant to raise keeps its words for the log."""
    if not isinstance(error, ServingError):
        return 500, error_body(500, "the server made a mistake; its log says which")
    if isinstance(error, UnknownName) and error.kind == "model":
        return 404, error_body(404, str(error), "model", "model_not_found")
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return status, error_body(status, str(error))


def misfit(problems: Sequence[Any]) -> Body:
    """The JSON for a body that doesn't fit the form, told of its first field that doesn't.

    Parameters
    ----------
    problems : sequence of dict
        As pydantic's `errors()` gives them, each with `loc`, `msg` and `type`.
    """
    first = problems[0]
    if first["type"] == "json_invalid":
        return error_body(400, f"the body is no JSON: {first['ctx']['error']}; check its quotes and commas")
    name = _field(first["loc"])
    if name is None:
        return error_body(400, "the body must be a JSON object, sent as Content-Type: application/json")
    if first["type"] == "extra_forbidden":
        where = ".".join(str(part) for part in first["loc"][1:])
        return error_body(400, f"the field {where!r} is not supported here; leave it out", name)
    reasons = dict.fromkeys(p["msg"] for p in problems if _field(p["loc"]) == name)
    return error_body(400, f"{name}: {'; or '.join(reasons)}", name)


def _field(place: Sequence[Any]) -> str | None:
    """The field that a place in the body belongs to; None for the body itself."""
    return str(place[1]) if len(place) > 1 else None
