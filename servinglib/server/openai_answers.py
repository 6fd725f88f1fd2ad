"""Answers in OpenAI's shape, whole or as a stream of server-sent events.

The same story can be told on one sheet or as a telegram a word. `OpenAIWriter` tells both from the
engine's events, so that the telegrams joined are the sheet: the texts, the token ids, the token counts.
Two subclasses know the words of `/v1/completions` and of `/v1/chat/completions`, with vLLM's additions.

A stream makes one dictionary and one line of JSON per token; nothing is validated there, since nothing
comes from outside.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from servinglib.errors import InvalidRequest, ServingError
from servinglib.request import Completion, Logprob, TokenEvent
from servinglib.server.openai_api import ChatRequest, CompletionRequest
from servinglib.server.openai_errors import told
from servinglib.server.service import Job, Service

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"
LEAST = -9999.0  # stands for the logarithm of 0, which JSON has no number for
_LINE_ENDS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}


def server_sent_event(data: Json) -> bytes:
    """One event; marks that some readers take for the end of a line are escaped."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return f"data: {text}\n\n".encode()


class OpenAIWriter(ABC):
    """Tells the answers to one HTTP request.

    Parameters
    ----------
    service : Service
    body : CompletionRequest or ChatRequest
    answer_id : str
        The id of the answer, in every event.
    job : Job
        What is being answered.
    """

    kind: str
    chunk_kind: str

    def __init__(
        self, service: Service, body: CompletionRequest | ChatRequest, answer_id: str, job: Job
    ) -> None:
        self._body, self._job = body, job
        self._head: Json = {"id": answer_id, "created": int(time.time()), "model": service.engine.model_name}
        self._name = namer(service, body)
        self._tokens: Counter[int] = Counter()  # told so far, by choice
        options = body.stream_options
        self._usage_at_end = options is not None and options.include_usage
        self._usage_always = self._usage_at_end and options is not None and options.continuous_usage_stats

    async def whole(self) -> Json:
        """All answers, when they have ended."""
        told = await self._job.completions()
        answers = [answer for first in told for answer in (first, *first.alternatives)]
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        usage = self._usage(self._prompt_tokens, sum(len(answer.token_ids) for answer in answers))
        return {**self._head, "object": self.kind, "choices": choices, "usage": usage, **self._foot()}

    async def stream(self) -> AsyncGenerator[bytes]:
        """An event per token; a failure in mid-stream is the last one, and no DONE follows it."""
        try:
            async with aclosing(self._job.events()) as events:
                async for prompt, event in events:
                    for chunk in self._chunks(prompt, event):
                        yield server_sent_event(chunk)
        except ServingError as error:
            yield server_sent_event(told(error)[1])
            return
        if self._usage_at_end:
            usage = self._usage(self._prompt_tokens, self._tokens.total())
            yield server_sent_event({**self._head, "object": self.chunk_kind, "choices": [], "usage": usage})
        yield DONE

    def _chunks(self, prompt: int, event: TokenEvent) -> Iterator[Json]:
        index = prompt * self._body.n + event.choice
        yield from self._opening(index)
        self._tokens[index] += event.token_id is not None
        chunk = {**self._head, "object": self.chunk_kind, "choices": [self._delta(index, event)]}
        if self._usage_always:
            chunk["usage"] = self._usage(len(self._job.prompts[prompt]), self._tokens[index])
        yield chunk

    @property
    def _prompt_tokens(self) -> int:
        return sum(map(len, self._job.prompts))

    def _prompt_of(self, index: int) -> list[int]:
        return self._job.prompts[index // self._body.n]

    def _ids(self, ids: Sequence[int | None]) -> Json:
        """The token ids, if they were asked for."""
        return {"token_ids": [i for i in ids if i is not None]} if self._body.return_token_ids else {}

    @staticmethod
    def _usage(prompt: int, completion: int) -> Json:
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _opening(self, index: int) -> Iterator[Json]:
        """Chunks that come before a choice's first."""
        yield from ()

    def _foot(self) -> Json:
        """What a whole answer says beside the choices."""
        return {}

    @abstractmethod
    def _choice(self, index: int, answer: Completion) -> Json:
        """One whole answer."""

    @abstractmethod
    def _delta(self, index: int, event: TokenEvent) -> Json:
        """What one event adds to an answer."""


class CompletionWriter(OpenAIWriter):
    """For `/v1/completions`; with token ids, those of the prompt stand in each choice (in a stream: in its first)."""

    kind = chunk_kind = "text_completion"

    def __init__(self, service: Service, body: CompletionRequest, answer_id: str, job: Job) -> None:
        super().__init__(service, body, answer_id, job)
        self._offsets: Counter[int] = Counter()  # characters of the tokens told so far, by choice

    def _choice(self, index: int, answer: Completion) -> Json:
        return self._told(
            index, answer.text, answer.token_ids, answer.logprobs, answer.finish_reason
        ) | self._prompt_ids(index)

    def _delta(self, index: int, event: TokenEvent) -> Json:
        ids = () if event.token_id is None else (event.token_id,)
        logprobs = () if event.logprob is None else (event.logprob,)
        choice = self._told(index, event.text, ids, logprobs, event.finish_reason)
        return choice | self._prompt_ids(index) if event.index == 0 else choice

    def _told(
        self, index: int, text: str, ids: Sequence[int], logprobs: Sequence[Logprob], reason: str | None
    ) -> Json:
        choice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, ids, logprobs) if logprobs else None,
            "finish_reason": reason,
        }
        return choice | self._ids(ids)

    def _prompt_ids(self, index: int) -> Json:
        return {"prompt_token_ids": self._prompt_of(index)} if self._body.return_token_ids else {}

    def _logprobs(self, index: int, ids: Sequence[int], logprobs: Sequence[Logprob]) -> Json:
        names, offsets = [self._name(token) for token in ids], []
        for name in names:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(name)
        return {
            "tokens": names,
            "token_logprobs": [max(logprob.chosen, LEAST) for logprob in logprobs],
            "top_logprobs": [self._top(*told) for told in zip(names, logprobs, strict=True)],
            "text_offset": offsets,
        }

    def _top(self, name: str, logprob: Logprob) -> Json:
        """The chosen token, and the likeliest, as OpenAI and vLLM list them."""
        others = {self._name(token): max(value, LEAST) for token, value in logprob.likeliest}
        return {name: max(logprob.chosen, LEAST), **others}


class ChatWriter(OpenAIWriter):
    """For `/v1/chat/completions`; with token ids, those of the prompt stand beside the choices."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, service: Service, body: ChatRequest, answer_id: str, job: Job) -> None:
        super().__init__(service, body, answer_id, job)
        self._begun: set[int] = set()

    def _choice(self, index: int, answer: Completion) -> Json:
        choice = {
            "index": index,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": self._logprobs(answer.token_ids, answer.logprobs) if answer.logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        return choice | self._ids(answer.token_ids)

    def _foot(self) -> Json:
        return {"prompt_token_ids": self._job.prompts[0]} if self._body.return_token_ids else {}

    def _opening(self, index: int) -> Iterator[Json]:
        if index in self._begun:
            return
        self._begun.add(index)
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = {**self._head, "object": self.chunk_kind, "choices": [choice], **self._foot()}
        if self._usage_always:
            chunk["usage"] = self._usage(self._prompt_tokens, 0)
        yield chunk

    def _delta(self, index: int, event: TokenEvent) -> Json:
        logprobs = () if event.logprob is None else (event.logprob,)
        ids = () if event.token_id is None else (event.token_id,)
        choice = {
            "index": index,
            "delta": {"content": event.text},
            "logprobs": self._logprobs(ids, logprobs) if logprobs else None,
            "finish_reason": event.finish_reason,
        }
        return choice | self._ids(ids)

    def _logprobs(self, ids: Sequence[int], logprobs: Sequence[Logprob]) -> Json:
        content = [
            self._entry(token, logprob.chosen)
            | {"top_logprobs": [self._entry(*likely) for likely in logprob.likeliest]}
            for token, logprob in zip(ids, logprobs, strict=True)
        ]
        return {"content": content}

    def _entry(self, token: int, logprob: float) -> Json:
        name = self._name(token)
        return {"token": name, "logprob": max(logprob, LEAST), "bytes": list(name.encode())}


def namer(service: Service, body: CompletionRequest | ChatRequest) -> Callable[[int], str]:
    """How tokens are called in the answer: by their text, or as "token_id:5" where that was asked for."""
    if body.return_tokens_as_token_ids:
        return "token_id:{}".format
    tokenizer = service.tokenizer
    return lambda token: str(tokenizer.decode([token], skip_special_tokens=False))


def must_be_tellable(service: Service, body: CompletionRequest | ChatRequest, logprobs: int | None) -> None:
    """Refuse what the engine can't tell of its tokens."""
    engine = service.engine
    by_ids = body.return_tokens_as_token_ids
    if (by_ids or body.return_token_ids) and not engine.capabilities.token_ids:
        raise InvalidRequest(
            f"the {engine.name} engine knows no token ids; "
            f"leave return_token_ids and return_tokens_as_token_ids out"
        )
    if logprobs is not None and not by_ids and service.tokenizer is None:
        raise InvalidRequest(
            f"the {engine.name} engine can't tell the text of single tokens; "
            f"set return_tokens_as_token_ids, or leave logprobs out"
        )
