"""What a server's refusal means, and what to do about it: statuses, messages and Retry-After into errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from servinglib.errors import EndpointFailed, EndpointRefused

SAID_LIMIT = 500  # characters of a server's words that an error repeats
PASSING = (408, 429)  # may succeed when it is sent again, as may all from 500 on but two
LASTING = (501, 505)
ABOUT_THE_REQUEST = (400, 413, 422)
STANDARD = frozenset(
    {"max_tokens", "temperature", "top_p", "seed", "stop", "n", "logprobs", "top_logprobs", "stream_options"}
)
UNSAID = ("model", "prompt", "messages", "stream")
ADVICE = {
    401: "give the right api_key",
    403: "this api_key may not do that; give another, or another model",
    404: "check base_url (it usually ends in /v1), the model's name, and which api the server has",
    429: "send less at a time (max_connections), or allow more retries (max_retries)",
}


@dataclass(frozen=True, slots=True)
class StatedError:
    """An error that came as a message within a stream, where the status has been 200 already."""

    status: int
    said: str


def stated_error(message: Any) -> StatedError | None:
    """The error that a message of a stream is, in OpenAI's shape or vLLM's old one; None if it is none."""
    if not isinstance(message, dict):
        return None
    error = message if message.get("object") == "error" else message.get("error")
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600 else 500
    return StatedError(status, json.dumps({"error": error}))


def failure(
    status: int,
    said: str,
    where: str,
    body: Mapping[str, Any],
    retry_after: str | None,
    now: float,
) -> EndpointFailed:
    """The error that a status other than 200 amounts to; `now` is in seconds since 1970."""
    kind, advice = EndpointFailed, ADVICE.get(status, "see the server's log")
    if status in ABOUT_THE_REQUEST:
        kind, advice = EndpointRefused, _what_it_was_sent(body)
    return kind(
        f"{where} answered with status {status}",
        advice,
        status=status,
        body=_message(said)[:SAID_LIMIT],
        transient=status in PASSING or (status >= 500 and status not in LASTING),
        retry_after=seconds_to_wait(retry_after, now),
    )


def seconds_to_wait(retry_after: str | None, now: float) -> float | None:
    """What a Retry-After header asks for, in seconds or as a date; None if it asks for nothing readable."""
    if retry_after is None:
        return None
    with suppress(ValueError):
        seconds = float(retry_after)
        return seconds if 0 <= seconds < float("inf") else None
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now)
    return None


def _what_it_was_sent(body: Mapping[str, Any]) -> str:
    """Names the settings that the server may have objected to; those of `extra_body` without their values."""
    sent = {name: value for name, value in body.items() if name not in UNSAID}
    told = [f"{name}={value}" if name in SHOWN else name for name, value in sent.items()]
    advice = f"change what it objects to; beside the prompt it was sent {', '.join(told) or 'nothing'}"
    extensions = [name for name in sent if name not in STANDARD]
    if extensions:
        advice += f"; not every server knows {', '.join(extensions)}"
    return advice


SHOWN = STANDARD | {"top_k", "ignore_eos", "return_token_ids", "return_tokens_as_token_ids"}


def _message(said: str) -> str:
    """The sentence in a body of JSON as servers make it, or else the body as it is."""
    try:
        error = json.loads(said)
    except ValueError:
        return said.strip()
    for name in ("error", "message", "detail"):
        if isinstance(error, dict) and error.get(name):
            error = error[name]
    return error if isinstance(error, str) else json.dumps(error)
