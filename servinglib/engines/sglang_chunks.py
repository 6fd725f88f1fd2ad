"""What SGLang tells of an answer, chunk by chunk, and what becomes of it.

A chunk repeats the whole answer so far, as somebody who tells a joke anew at every word; whoever listens has
to know how far they had heard. Its shape is that of SGLang 0.5.23, loaded without a tokenizer:
`{"output_ids": [...], "meta_info": {"finish_reason": ..., "cached_tokens": ..., ...}}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from servinglib.engines.answer import Answer
from servinglib.engines.capabilities import EngineCounters
from servinglib.errors import EngineFailed, InvalidRequest
from servinglib.request import FinishReason, Logprob, TokenEvent


class Telling:
    """What SGLang has told of one answer, and how much of it has been passed on.

    Attributes
    ----------
    ended_there : bool
        SGLang has told the end.
    """

    def __init__(self, request_id: str, answer: Answer) -> None:
        self.request_id, self.answer = request_id, answer
        self.ended_there = False
        self._passed_on = 0
        self._looked_up = False
        self._retractions = 0

    @property
    def ended_here(self) -> bool:
        """The answer is complete, and SGLang does not know it: a stop string has come."""
        return self.answer.finish_reason is not None and not self.ended_there

    def read(self, chunk: dict[str, Any], now: float) -> Iterator[TokenEvent]:
        """The events of a chunk, which holds all tokens so far: none, one or several, perhaps the end."""
        tokens, meta = chunk["output_ids"], chunk["meta_info"]
        reason = meta["finish_reason"]
        self.ended_there = reason is not None
        for position in range(self._passed_on, len(tokens)):
            if self.answer.finish_reason is None:
                yield self.answer.advance(tokens[position], now, self._logprob(meta, position))
        self._passed_on = len(tokens)
        if reason is not None and self.answer.finish_reason is None:
            yield self.answer.end(_finish_reason(reason), now)

    def count(self, meta: dict[str, Any], counters: EngineCounters) -> EngineCounters:
        """The counters with what a chunk tells; each repeats what the prefix cache had at the beginning."""
        changes: dict[str, int] = {}
        if counters.prefix_cache_queries is not None and not self._looked_up and "cached_tokens" in meta:
            self._looked_up = True
            changes["prefix_cache_queries"] = counters.prefix_cache_queries + meta["prompt_tokens"]
            changes["prefix_cache_hits"] = (counters.prefix_cache_hits or 0) + meta["cached_tokens"]
        retractions = meta.get("num_retractions", self._retractions)
        changes["num_preemptions"] = (counters.num_preemptions or 0) + retractions - self._retractions
        self._retractions = retractions
        if "spec_num_proposed_drafts" in meta:  # with the end
            changes["draft_tokens"] = (counters.draft_tokens or 0) + meta["spec_num_proposed_drafts"]
            changes["accepted_tokens"] = (counters.accepted_tokens or 0) + meta["spec_num_correct_drafts"]
        return replace(counters, **changes)

    def _logprob(self, meta: dict[str, Any], position: int) -> Logprob | None:
        asked = self.answer.request.params.logprobs
        if asked is None:
            return None
        chosen = meta["output_token_logprobs"][position][0]
        likeliest = meta["output_top_logprobs"][position] if asked else ()
        return Logprob(chosen, tuple((token, value) for value, token, _ in likeliest))


def _finish_reason(told: dict[str, Any]) -> FinishReason:
    """What SGLang's end amounts to; an end by its own refusal or failure is raised."""
    if told["type"] in ("stop", "length"):
        return told["type"]
    status = told.get("status_code")
    if status is None:
        return "abort"
    if status == 400:
        raise InvalidRequest(f"SGLang refuses the request: {told['message']}")
    raise EngineFailed(RuntimeError(told["message"]))
