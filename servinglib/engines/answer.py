"""One request's answer as it grows: which text may be shown, and when the answer ends.

Engines know tokens; readers want text that stops where they asked. An `Answer` stands between: it
takes one token id per step and says what to tell the reader. Text that might be the beginning of a
stop string waits, as a guard at a door holds back whoever may belong to a party that must not enter,
until it is clear that it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from servinglib.engines.detokenizer import Detokenizer
from servinglib.request import FinishReason, Logprob, Request, TokenEvent


class StopGuard:
    """Lets text through up to the first stop string, and holds back what may begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met (it isn't shown)."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        safe = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class Answer:
    """The state of one row of a batch.

    Parameters
    ----------
    request : Request
    decode : callable
        Ids to text, as `Detokenizer` takes it.
    eos_ids : collection of int
        Token ids by which the model says that it has finished.
    choice : int
        Which of the request's answers.

    Attributes
    ----------
    tokens : int
        Tokens generated so far.
    finish_reason : FinishReason or None
        Set when the answer has ended; it takes no more tokens then.
    """

    def __init__(
        self,
        request: Request,
        decode: Callable[[Sequence[int]], str],
        eos_ids: Collection[int] = (),
        choice: int = 0,
    ) -> None:
        self.request, self.choice = request, choice
        self.tokens = 0
        self.finish_reason: FinishReason | None = None
        self._eos_ids = () if request.params.ignore_eos else eos_ids
        self._text = Detokenizer(decode)
        self._guard = StopGuard(request.params.stop)
        self._aborted = False
        self._logprob: Logprob | None = None

    def abort(self) -> None:
        """Ask for the end; the next event will be the last. Safe to call from any thread."""
        self._aborted = True

    def end(self, reason: FinishReason, time: float) -> TokenEvent:
        """The last event of an answer that ends at `time` (seconds) without a further token."""
        self._logprob = None
        return self._end(reason, None, self._guard.push(self._text.flush()), time)

    def advance(self, token_id: int, time: float, logprob: Logprob | None = None) -> TokenEvent:
        """The event of the token that the model chose at `time` (seconds)."""
        if self._aborted:
            return self.end("abort", time)
        self.tokens += 1
        self._logprob = logprob
        if token_id in self._eos_ids:
            return self._end("stop", token_id, self._guard.push(self._text.flush()), time)
        shown, stopped = self._guard.push(self._text.push(token_id))
        if stopped:
            return self._event(token_id, shown, time, "stop")
        if self.tokens == self.request.params.max_tokens:
            more, stopped = self._guard.push(self._text.flush())
            return self._end("length", token_id, (shown + more, stopped), time)
        return self._event(token_id, shown, time)

    def _end(
        self, reason: FinishReason, token_id: int | None, last: tuple[str, bool], time: float
    ) -> TokenEvent:
        shown, stopped = last
        if stopped and reason == "length":
            reason = "stop"
        return self._event(token_id, shown + self._guard.flush(), time, reason)

    def _event(
        self, token_id: int | None, text: str, time: float, reason: FinishReason | None = None
    ) -> TokenEvent:
        self.finish_reason = reason
        index = self.tokens - 1 if token_id is not None else self.tokens
        return TokenEvent(
            self.request.request_id, index, token_id, text, time, reason, self.choice, self._logprob
        )


def eos_ids_of(told: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """The token ids that end an answer: those that a checkpoint's settings tell, or else the tokenizer's one."""
    ids: Any = tokenizer.eos_token_id if told is None else told
    return frozenset(int(i) for i in (ids if isinstance(ids, list) else [ids]) if i is not None)
