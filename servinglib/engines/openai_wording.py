"""The two dialects of OpenAI's protocol: completions continue a text, chat answers a message.

What is asked and told is the same; the words differ. Here stand the words, and nothing that decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from servinglib.engines.openai_settings import OpenAISettings
from servinglib.request import UNKNOWN_TOKEN, Logprob, Request

ID_PREFIX = "token_id:"  # how a server names a token when it was asked to name it by its id


class Wording(Protocol):
    """How one API says it."""

    path: str

    def prompt(self, prompt: str | Sequence[int]) -> dict[str, Any]:
        """Fields that give the prompt."""
        ...

    def ask_logprobs(self, likeliest: int) -> dict[str, Any]:
        """Fields that ask for log-probabilities."""
        ...

    def text(self, choice: Mapping[str, Any]) -> str:
        """What a chunk adds to the text."""
        ...

    def thinks(self, choice: Mapping[str, Any]) -> bool:
        """Whether a chunk holds reasoning, which is generated but no part of the answer."""
        ...

    def logprobs(self, told: Mapping[str, Any], asked: int) -> list[Logprob]:
        """One for each token of a chunk."""
        ...


class Completions:
    """POST /completions: text in, its continuation out."""

    path = "/completions"

    def prompt(self, prompt: str | Sequence[int]) -> dict[str, Any]:
        """The text, or the ids."""
        return {"prompt": prompt if isinstance(prompt, str) else list(prompt)}

    def ask_logprobs(self, likeliest: int) -> dict[str, Any]:
        """A number."""
        return {"logprobs": likeliest}

    def text(self, choice: Mapping[str, Any]) -> str:
        """Said directly."""
        return choice.get("text") or ""

    def thinks(self, choice: Mapping[str, Any]) -> bool:
        """There is nothing else than text."""
        return False

    def logprobs(self, told: Mapping[str, Any], asked: int) -> list[Logprob]:
        """Three lists side by side; the chosen token may be among the likeliest though it is not one."""
        values = told["token_logprobs"]
        likeliest = told.get("top_logprobs") or [None] * len(values)
        return [
            Logprob(float(value), ranked((top or {}).items(), asked))
            for value, top in zip(values, likeliest, strict=True)
        ]


class Chat:
    """POST /chat/completions: a message in, the answer to it out."""

    path = "/chat/completions"

    def prompt(self, prompt: str | Sequence[int]) -> dict[str, Any]:
        """One message of a user."""
        return {"messages": [{"role": "user", "content": prompt}]}

    def ask_logprobs(self, likeliest: int) -> dict[str, Any]:
        """A switch and a number."""
        return {"logprobs": True, "top_logprobs": likeliest}

    def text(self, choice: Mapping[str, Any]) -> str:
        """Said in a delta, whose first one has only the role."""
        return (choice.get("delta") or {}).get("content") or ""

    def thinks(self, choice: Mapping[str, Any]) -> bool:
        """By either of the names that are in use."""
        delta = choice.get("delta") or {}
        return bool(delta.get("reasoning_content") or delta.get("reasoning"))

    def logprobs(self, told: Mapping[str, Any], asked: int) -> list[Logprob]:
        """One record per token."""
        return [
            Logprob(
                float(each["logprob"]),
                ranked(((top["token"], top["logprob"]) for top in each.get("top_logprobs") or ()), asked),
            )
            for each in told.get("content") or ()
        ]


WORDINGS: dict[str, Wording] = {"completions": Completions(), "chat": Chat()}


def ranked(told: Any, asked: int) -> tuple[tuple[int, float], ...]:
    """The likeliest first, as many as were asked for; ids where the server told ids."""
    best = sorted(((token, float(value)) for token, value in told), key=lambda pair: -pair[1])[:asked]
    return tuple((_id(token), value) for token, value in best)


def _id(token: str) -> int:
    return int(token.removeprefix(ID_PREFIX)) if token.startswith(ID_PREFIX) else UNKNOWN_TOKEN


def request_body(model: str, request: Request, settings: OpenAISettings, ids: bool) -> dict[str, Any]:
    """What is sent: the standard's fields, and beyond them only what the request or the user asks for.

    Of fields that are not sent, the server's own defaults hold; vLLM takes some from the model's folder.
    """
    wording, params = WORDINGS[settings.api], request.params
    asked = {
        "top_p": params.top_p if params.temperature > 0 else None,
        "top_k": params.top_k or None,
        "seed": params.seed,
        "stop": list(params.stop) or None,
        "n": params.n if params.n > 1 else None,
        "ignore_eos": params.ignore_eos or None,
        "return_token_ids": ids or None,
        "return_tokens_as_token_ids": (ids and params.logprobs is not None) or None,
    }
    return {
        "model": model,
        **wording.prompt(request.prompt),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        **{name: value for name, value in asked.items() if value is not None},
        **(wording.ask_logprobs(params.logprobs) if params.logprobs is not None else {}),
        "stream": True,
        "stream_options": {"include_usage": True},
        **settings.extra_body,
    }
