"""What the client of an OpenAI-compatible server is told: where it is, who we are, and how patient to be.

One protocol, many houses: vLLM, SGLang, `trtllm-serve`, the llama.cpp server, our own server and hosted
endpoints all speak it, each with words of its own. What only some understand is sent only when asked for.
The file needs no HTTP library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from servinglib.errors import InvalidSetting, UnknownName

APIS = ("completions", "chat")


@dataclass(frozen=True, slots=True)
class OpenAISettings:
    """Options of `OpenAIEngine.load`.

    Attributes
    ----------
    base_url : str
        Where the server is, up to and with "/v1", such as "http://127.0.0.1:8000/v1".
    api_key : str, optional
        Sent as a bearer token; it appears in no message.
    api : {"completions", "chat"}
        Chat makes the prompt one message of a user, within the model's template; a prompt can't be given
        as ids then, and answers have none.
    connect_timeout, read_timeout : float
        Seconds to wait for a connection, and for the next byte.
    total_timeout : float, optional
        Seconds for one attempt from its beginning to its end; unlimited unless given.
    max_connections : int
        Most requests on their way at once; further ones wait here for their turn.
    max_retries : int
        How often a request that failed for a passing reason is sent again.
    backoff, backoff_cap : float
        Seconds: the longest wait before the first retry, which doubles with each further one, and what
        it never exceeds. The same cap holds for what the server asks for with Retry-After.
    tokenizer : str, optional
        A model of the zoo, a folder or a hub id, whose tokenizer counts the prompts; unless given, the
        server's own is asked, where it has a way.
    context_length : int, optional
        Most tokens of prompt and answer; what the server tells unless given.
    extra_body : mapping
        Fields to send along with every request, such as {"min_p": 0.05}; they win over our own.
    token_ids : bool or "auto"
        Whether the server tells the ids of tokens; "auto" asks it once while loading.
    """

    base_url: str = ""
    api_key: str | None = field(default=None, repr=False)
    api: str = "completions"
    connect_timeout: float = 10.0
    read_timeout: float = 300.0
    total_timeout: float | None = None
    max_connections: int = 1024
    max_retries: int = 4
    backoff: float = 0.5
    backoff_cap: float = 30.0
    tokenizer: str | None = None
    context_length: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    token_ids: bool | str = "auto"

    def __post_init__(self) -> None:
        self._check_url()
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InvalidSetting(
                "api_key holds what no key does, such as the end of a line; give the key alone"
            )
        if self.api not in APIS:
            raise UnknownName("api", self.api, APIS)
        if self.token_ids not in (True, False, "auto"):
            raise InvalidSetting(f"token_ids={self.token_ids!r} must be true, false or 'auto'")
        if self.token_ids is True and self.api == "chat":
            raise InvalidSetting(
                "token_ids=True needs api='completions': a chat's prompt can't be given as ids"
            )
        for name in ("connect_timeout", "read_timeout", "total_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidSetting(f"{name}={value} must be above 0 (seconds)")
        for name, least in (("max_connections", 1), ("max_retries", 0), ("context_length", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidSetting(f"{name}={value} must be at least {least}")
        if not 0 <= self.backoff <= self.backoff_cap:
            raise InvalidSetting(
                f"backoff={self.backoff} must lie between 0 and backoff_cap={self.backoff_cap} (seconds)"
            )

    def _check_url(self) -> None:
        url = urlsplit(self.base_url)
        if "@" in url.netloc:
            raise InvalidSetting("base_url holds a name or a password; give the key as api_key instead")
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise InvalidSetting(
                f"base_url={self.base_url!r} must be the address of an OpenAI-compatible server, such as "
                f"'http://127.0.0.1:8000/v1'"
            )
