"""What a server can do, asked of itself while the engine loads: a first visit, before work depends on it.

Three questions: which models it serves, whether it tells the ids of tokens, and whether it counts the
tokens of a prompt. The first is the standard's; the others are extensions, of which a server that lacks
them says so by refusing, or by silence. The second question costs one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from servinglib.engines.openai_http import Endpoint
from servinglib.engines.openai_settings import OpenAISettings
from servinglib.engines.openai_wording import ID_PREFIX, WORDINGS, request_body
from servinglib.errors import EndpointFailed, EndpointRefused, InvalidSetting, UnknownName
from servinglib.request import Request, SamplingParams

SAMPLE = "Hello"
TOKENIZERS: tuple[tuple[str, str], ...] = (("prompt", "vLLM, SGLang, ours"), ("content", "llama.cpp"))
"""The field of POST /tokenize that holds the text, and whose word it is."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found.

    Attributes
    ----------
    context_length : int or None
        Tokens; None if the server doesn't tell.
    token_ids, logprobs : bool
        Whether answers come with ids, and with log-probabilities.
    tokenize_field : str or None
        In which field POST /tokenize wants the text; None if there is no such thing.
    """

    context_length: int | None = None
    token_ids: bool = False
    logprobs: bool = False
    tokenize_field: str | None = None


async def discover(endpoint: Endpoint, model: str, settings: OpenAISettings) -> Discovery:
    """Visit the server.

    Raises
    ------
    UnknownName
        It does not serve `model`.
    InvalidSetting
        It lacks what `settings.token_ids=True` counts on.
    EndpointFailed
        It is not there, refuses us, or is no such server.
    """
    card = await _card(endpoint, model)
    if settings.token_ids is False:
        return Discovery(card.get("max_model_len"))
    field, told = await _tokenizer(endpoint, model, settings)
    ids, logprobs = await _extensions(endpoint, model, settings)
    if settings.token_ids is True and not ids:
        raise InvalidSetting(
            "token_ids=True, but the server does not honour return_token_ids; leave it 'auto'"
        )
    if settings.token_ids is True and field is None and settings.tokenizer is None:
        raise InvalidSetting("token_ids=True, but the server has no POST /tokenize; give tokenizer as well")
    return Discovery(card.get("max_model_len") or told, ids, logprobs, field)


async def _card(endpoint: Endpoint, model: str) -> Mapping[str, Any]:
    """What the server says of the model; nothing if it has no list of models."""
    try:
        answer = await endpoint.ask("/models")
    except EndpointFailed as error:
        if error.status != 404:
            raise
        return {}
    try:
        cards = {card["id"]: card for card in answer["data"]}
    except (KeyError, TypeError):
        raise EndpointFailed(
            "the server's list of models is not of OpenAI's shape", "check base_url", body=str(answer)[:200]
        ) from None
    if model not in cards:
        raise UnknownName("model", model, cards)
    return cards[model]


async def _tokenizer(
    endpoint: Endpoint, model: str, settings: OpenAISettings
) -> tuple[str | None, int | None]:
    """The field of POST /tokenize, and the context length if it tells that too."""
    if settings.api == "chat":  # what is counted there lacks the template
        return None, None
    for field, _ in TOKENIZERS:
        try:
            answer = await endpoint.ask("//tokenize", tokenize_body(model, field, SAMPLE))
        except EndpointFailed as error:
            if error.status is None or error.transient:
                raise
            continue
        if isinstance(answer, dict) and answer.get("tokens"):
            length = answer.get("max_model_len")
            return field, length if isinstance(length, int) and length > 0 else None
    return None, None


def tokenize_body(model: str, field: str, text: str) -> dict[str, Any]:
    """What POST /tokenize is sent; llama.cpp adds special tokens only when told to."""
    return {"model": model, "prompt": text} if field == "prompt" else {"content": text, "add_special": True}


async def _extensions(endpoint: Endpoint, model: str, settings: OpenAISettings) -> tuple[bool, bool]:
    """Whether ids are told, and log-probabilities; a server that refuses both questions is asked for one."""
    for logprobs in (1, None):
        try:
            choice = await _first_token(endpoint, model, settings, logprobs)
        except EndpointRefused:
            continue
        ids = settings.api == "completions" and bool(choice.get("token_ids"))
        return ids, _tells_logprobs(choice, ids)
    return False, False


async def _first_token(
    endpoint: Endpoint, model: str, settings: OpenAISettings, logprobs: int | None
) -> Mapping[str, Any]:
    """The first chunk of an answer that has anything in it."""
    wording = WORDINGS[settings.api]
    probe = Request("probe", SAMPLE, SamplingParams(max_tokens=1, logprobs=logprobs))
    body = request_body(model, probe, settings, ids=settings.api == "completions")
    patience = endpoint.patience()
    while True:
        try:
            async with aclosing(endpoint.stream(wording.path, body)) as chunks:
                async for _, chunk in chunks:
                    for choice in chunk.get("choices") or ():
                        if choice.get("token_ids") or wording.text(choice) or choice.get("finish_reason"):
                            return choice
            return {}
        except EndpointFailed as error:
            await patience.again(error)


def _tells_logprobs(choice: Mapping[str, Any], ids: bool) -> bool:
    """Whether they came in OpenAI's shape; where ids are told, the likeliest must be named by them as well.

    llama.cpp's server answers a completion in the shape of a chat, which tells us nothing.
    """
    told = choice.get("logprobs") or {}
    if not ids:
        return bool(told.get("token_logprobs") or (told.get("content") and "delta" in choice))
    return all(str(token).startswith(ID_PREFIX) for token in told.get("tokens") or ("",))
