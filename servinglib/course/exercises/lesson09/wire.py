"""What a client of a streaming server must get right: torn events, and when to ask again."""

from __future__ import annotations

from collections.abc import Sequence

from servinglib.course.checks import Exercise, Mistake

DONE = "[DONE]"


def read_events(pieces: Sequence[bytes]) -> list[str]:
    """The data of the events in a stream that was torn into pieces, up to the one that ends it."""
    told = []
    for block in b"".join(pieces).split(b"\n\n")[:-1]:
        data = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        if data and data[0].decode() == DONE:
            break
        told += [line.decode() for line in data]
    return told


def retry_wait(
    status: int, retry_after: float | None, tokens_seen: int, attempt: int, max_retries: int
) -> float | None:
    """Seconds to wait before the next attempt; None if there must not be one."""
    for_now = status in (408, 429) or 500 <= status <= 599
    if not for_now or tokens_seen or attempt >= max_retries:
        return None
    return max(retry_after or 0.0, 0.5 * 2**attempt)


def _stub(*_: object) -> None:
    raise NotImplementedError


def _each_piece_by_itself(pieces: Sequence[bytes]) -> list[str]:
    told = []
    for piece in pieces:
        for line in piece.decode(errors="replace").split("\n"):
            if line.startswith("data:") and line[5:].strip() != DONE:
                told.append(line[5:].removeprefix(" "))
    return told


def _decoded_early(pieces: Sequence[bytes]) -> list[str]:
    text = "".join(piece.decode(errors="replace") for piece in pieces)
    return read_events([text.encode()])


def _with_the_end(pieces: Sequence[bytes]) -> list[str]:
    whole = b"".join(pieces)
    ended = f"data: {DONE}\n\n".encode() in whole or f"data:{DONE}\n\n".encode() in whole
    return read_events(pieces) + [DONE] * ended


READ_EVENTS = Exercise(
    id="09.3",
    stub=_stub,
    reference=read_events,
    cases=(
        ([b"data: a\n\n", b"data: [DONE]\n\n"],),
        ([b"data: a\n\ndata: b\n\ndata: [DONE]\n\n"],),
        ([b"data: ha", b"lf\n\ndata: [DO", b"NE]\n\n"],),
        ([b": still here\n\n", "data: 好".encode()[:-1], "好".encode()[-1:] + b"\n\n", b"data:[DONE]\n\n"],),
        ([b"data: cut", b" off"],),
    ),
    mistakes=(
        Mistake(
            _each_piece_by_itself,
            {
                "en": "each piece was read by itself; a network tears events anywhere, so keep the loose end until the "
                "rest has come.",
                "zh": "每一段单独解析了；网络会在任何地方把事件撕开，剩下的半截要留着等下一段。",
            },
        ),
        Mistake(
            _decoded_early,
            {
                "en": "the pieces became text one by one, and a character that lay across two of them was lost; put the "
                "bytes together first.",
                "zh": "逐段转成了文字，跨两段的字就坏了；先拼字节，再解码。",
            },
        ),
        Mistake(
            _with_the_end,
            {
                "en": "[DONE] is not an event of the answer; it only says that the stream was not cut off.",
                "zh": "[DONE] 不是回答的一部分，它只说明流没有被切断。",
            },
        ),
    ),
    hint={
        "en": "Join the bytes; events end with an empty line; of each, take the lines that begin with `data:`; what "
        "does not end was never said.",
        "zh": "先拼字节；空行结束一个事件；取以 `data:` 开头的行；没有结束的事件等于没说。",
    },
)
RETRY_WAIT = Exercise(
    id="09.4",
    stub=_stub,
    reference=retry_wait,
    cases=(
        (400, None, 0, 0, 3),
        (503, None, 0, 0, 3),
        (503, None, 0, 2, 3),
        (429, 7.0, 0, 0, 3),
        (429, 0.1, 0, 3, 5),
        (500, None, 12, 0, 3),
        (503, None, 0, 3, 3),
    ),
    mistakes=(
        Mistake(
            lambda status, after, seen, attempt, most: retry_wait(status, after, 0, attempt, most),
            {
                "en": "tokens had been delivered already; a second attempt would tell the reader the beginning twice.",
                "zh": "已经有 token 交给读者了；再试一次，开头就会出现两遍。",
            },
        ),
        Mistake(
            lambda status, after, seen, attempt, most: retry_wait(status, None, seen, attempt, most),
            {
                "en": "the server said when to come back, and you came sooner; that is how a 429 becomes a storm.",
                "zh": "服务器说了什么时候再来，你却来早了；429 风暴就是这么刮起来的。",
            },
        ),
        Mistake(
            lambda status, after, seen, attempt, most: (
                None if seen or attempt >= most else max(after or 0.0, 0.5 * 2**attempt)
            ),
            {
                "en": "a request that is wrong stays wrong: 400 and its like are for the caller to mend.",
                "zh": "错的请求再发还是错：400 一类要由调用方改。",
            },
        ),
    ),
    hint={
        "en": "Three reasons not to: the status is not one of 408, 429, 5xx; a token was seen; the attempts are used up. "
        "Else the longer of Retry-After and half a second doubled per attempt.",
        "zh": "三种情况不重试：状态码不是 408、429、5xx；已见过 token；次数用完。否则取 Retry-After 与「半秒每次翻倍」中较长的。",
    },
)
