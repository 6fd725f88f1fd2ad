"""What may be asked over OpenAI's API, and what it means for the engine.

A form at a counter has boxes; whatever is written beside them is read by nobody. Here such a paper is
handed back: a field that this service doesn't honour is refused by name and never ignored, so that
nobody mistakes the default answer for the one that was asked for.

The defaults are OpenAI's, not the library's: `max_tokens` is 16 for completions (for chat, what fits),
and `temperature` is 1. A field that is null counts as left out. Fields beyond OpenAI's are vLLM's:
`top_k`, `ignore_eos`, `return_token_ids`, `return_tokens_as_token_ids`, `continuous_usage_stats`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from servinglib.engines.base import Prompt
from servinglib.errors import EmptyPrompt, InvalidRequest
from servinglib.request import SamplingParams

NEUTRAL = {
    "echo": False,
    "frequency_penalty": 0,
    "min_p": 0,
    "min_tokens": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
}
"""Fields that clients send even when they ask for nothing by them: with these values there is nothing to do."""
MOST_CHOICES = 128  # as OpenAI has it


class _Form(BaseModel):
    """JSON types are taken as they are, and nothing is allowed beside the boxes."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {*cls.model_fields, *NEUTRAL}
        return {name: value for name, value in data.items() if not _asks_nothing(name, value, known)}


def _asks_nothing(name: str, value: Any, known: set[str]) -> bool:
    if value is None:
        return name in known
    return name in NEUTRAL and value == NEUTRAL[name]


class StreamOptions(_Form):
    """Whether the token counts come at the end of a stream, and with every event as well."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class _GenerationRequest(_Form):
    """What completions and chat have in common."""

    model: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: int | None = None
    stop: str | list[str] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    def _params(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options are for streams; leave them out, or set stream to true")
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),  # vLLM also writes -1 for all tokens
            top_p=self.top_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            ignore_eos=self.ignore_eos,
            n=self.n,
            logprobs=logprobs,
        )


class CompletionRequest(_GenerationRequest):
    """The body of `POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = 16
    logprobs: int | None = None

    def prompts(self) -> list[Prompt]:
        """One or several, each text or token ids."""
        if not self.prompt:
            raise EmptyPrompt
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # pyright: ignore[reportReturnType]
        return list(self.prompt)  # pyright: ignore[reportReturnType]

    def sampling(self) -> SamplingParams:
        """What the engine is asked for."""
        return self._params(self.max_tokens, self.logprobs)


class TextPart(_Form):
    """A piece of a message; of OpenAI's kinds, text alone."""

    type: Annotated[str, Field(pattern="^text$")]
    text: str


class ChatMessage(_Form):
    """Who said what."""

    role: str
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As chat templates take it, the parts one to a line."""
        parts = self.content
        return {
            "role": self.role,
            "content": parts if isinstance(parts, str) else "\n".join(p.text for p in parts),
        }


class ChatRequest(_GenerationRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None

    def sampling(self, room: int) -> SamplingParams:
        """What the engine is asked for; `room` tokens where the client has set no limit."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs; set logprobs to true, or leave it out")
        given = [limit for limit in (self.max_completion_tokens, self.max_tokens) if limit is not None]
        if len(set(given)) > 1:
            raise InvalidRequest(
                f"max_completion_tokens={given[0]} and max_tokens={given[1]} are the same limit; give one"
            )
        limit = given[0] if given else max(room, 1)  # without room the engine says so, with the numbers
        return self._params(limit, (self.top_logprobs or 0) if self.logprobs else None)


class TokenizeRequest(_Form):
    """The body of `POST /tokenize`, as vLLM has it."""

    prompt: str
    model: str | None = None
