"""From the chunks of an OpenAI-compatible server to token events: what was said, and how many tokens it was.

A server sends text in chunks, and a chunk need not be a token. Where the server tells ids, each id is one
event; of a chunk with several, all have the time of the chunk, and the text stands with the last, since
only then is it complete. Where it tells none, a chunk with something in it counts as one token, called
`UNKNOWN_TOKEN`, and the server's own count has the last word: tokens that it counted beyond the chunks are
told at the end, with no text and the time of the last chunk, so that time per output token stays right.
(Of several answers to one request only the sum is told, so nothing is added there. If it counted fewer,
what was received stays.)

The text is the server's own. vLLM (0.32) leaves out a character that is unfinished at the end of an answer,
where our engines show its bytes as U+FFFD.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from servinglib.engines.openai_failures import SAID_LIMIT
from servinglib.engines.openai_wording import Wording
from servinglib.errors import EndpointFailed
from servinglib.request import UNKNOWN_TOKEN, FinishReason, Logprob, Request, TokenEvent

log = logging.getLogger(__name__)
REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "repetition": "stop",
    "length": "length",
    "max_tokens": "length",
    "abort": "abort",
    "cancelled": "abort",
    "content_filter": "abort",
    "deadline": "deadline",
}


@dataclass(slots=True)
class Row:
    """One of the answers to a request.

    Attributes
    ----------
    tokens : int
        Told so far.
    text : str
        Came without a token, and goes with the next.
    ended : bool
    """

    tokens: int = 0
    text: str = ""
    ended: bool = False

    def take_text(self) -> str:
        """What waits to be told."""
        text, self.text = self.text, ""
        return text


class AnswerReader:
    """Reads the chunks of one attempt at a request.

    Parameters
    ----------
    request : Request
    wording : Wording
        Of the API that is spoken.
    ids : bool
        Whether the server promised to tell the ids of tokens.

    Attributes
    ----------
    prompt_tokens : int or None
        As the server counted, once it has told.
    """

    def __init__(self, request: Request, wording: Wording, ids: bool) -> None:
        self._request, self._wording, self._ids = request, wording, ids
        self._rows = [Row() for _ in range(request.params.n)]
        self._end: TokenEvent | None = None  # of the last answer; kept until the server's count is known
        self._counted: int | None = None
        self.prompt_tokens: int | None = None

    @property
    def complete(self) -> bool:
        """Whether all answers have ended."""
        return all(row.ended for row in self._rows)

    def read(self, chunk: Any, now: float) -> list[TokenEvent]:
        """The events of a chunk that came at `now` (seconds); the last of all comes from `finish`."""
        try:
            self._count(chunk.get("usage"))
            return [event for choice in chunk.get("choices") or () for event in self._row(choice, now)]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise EndpointFailed(
                "the server told an event that is no chunk of an answer",
                "check that it is OpenAI-compatible, and speaks the api that is set",
                body=str(chunk)[:SAID_LIMIT],
            ) from None

    def check_complete(self) -> None:
        """Raise if the stream is over and an answer is not."""
        if not self.complete:
            tokens, ended = sum(row.tokens for row in self._rows), sum(row.ended for row in self._rows)
            raise EndpointFailed(
                f"the stream was cut after {tokens} tokens: {ended} of {len(self._rows)} answers have ended",
                "see the server's log; ask again for the whole",
                transient=True,
            )

    def finish(self) -> Iterator[TokenEvent]:
        """The end of the answer that ended last, with the tokens before it that no chunk told."""
        end = self._end
        assert end is not None, "only a complete answer has an end"
        missing = (self._counted or 0) - self._rows[0].tokens
        if self._ids or len(self._rows) > 1 or missing <= 0:
            yield end
            return
        if end.token_id is not None:
            yield replace(end, finish_reason=None)
            end = replace(end, index=end.index + 1, token_id=UNKNOWN_TOKEN, text="", logprob=None)
        for _ in range(missing - 1):
            yield replace(end, token_id=UNKNOWN_TOKEN, text="", finish_reason=None)
            end = replace(end, index=end.index + 1)
        yield replace(end, token_id=UNKNOWN_TOKEN)

    def _count(self, usage: Mapping[str, Any] | None) -> None:
        if usage:
            self.prompt_tokens = int(usage["prompt_tokens"])
            self._counted = int(usage.get("completion_tokens") or 0)

    def _row(self, choice: Mapping[str, Any], now: float) -> Iterator[TokenEvent]:
        place = int(choice.get("index") or 0)
        row = self._rows[place]
        text, logprobs = self._wording.text(choice), self._logprobs(choice)
        tokens = self._tokens(choice, text, len(logprobs))
        reason = _reason(choice.get("finish_reason"))
        if row.ended and (tokens or text):
            raise ValueError("it had ended")
        row.text += text
        name, last = self._request.request_id, len(tokens) - 1
        for i, token in enumerate(tokens):
            shown, end = (row.take_text(), reason) if i == last else ("", None)
            logprob = logprobs[i] if logprobs else None
            row.tokens += 1
            yield from self._tell(
                row, TokenEvent(name, row.tokens - 1, token, shown, now, end, place, logprob)
            )
        if reason is not None and not tokens and not row.ended:
            event = TokenEvent(name, row.tokens, None, row.take_text(), now, reason, place)
            yield from self._tell(row, event)

    def _tell(self, row: Row, event: TokenEvent) -> Iterator[TokenEvent]:
        row.ended = event.finish_reason is not None
        if self.complete:
            self._end = event
        else:
            yield event

    def _tokens(self, choice: Mapping[str, Any], text: str, logprobs: int) -> Sequence[int]:
        if self._ids:
            ids = choice.get("token_ids")
            if ids is None and text:
                raise KeyError("token_ids")
            return [int(token) for token in ids or ()]
        something = bool(text) or self._wording.thinks(choice)
        return [UNKNOWN_TOKEN] * (logprobs or something)

    def _logprobs(self, choice: Mapping[str, Any]) -> list[Logprob]:
        asked, told = self._request.params.logprobs, choice.get("logprobs")
        return [] if asked is None or not told else self._wording.logprobs(told, asked)


def _reason(told: str | None) -> FinishReason | None:
    """Ours for the server's; one that nobody knows counts as "stop", and is logged."""
    if told is None:
        return None
    if told == "error":
        raise EndpointFailed("the server ended the answer with an error", "see its log")
    if told not in REASONS:
        log.warning("the server ended an answer for an unknown reason, %r; it is taken for 'stop'", told)
    return REASONS.get(told, "stop")
