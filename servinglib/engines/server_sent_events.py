"""Server-sent events: how a server tells an answer bit by bit over one open HTTP response.

A ticker tape: lines of text, a blank line after each message. The tape is torn at any place on its way
(a read may end inside a line, even inside a character), so a reader keeps the loose end until the rest
has come. What is still incomplete when the tape ends was never said. The format is the HTML standard's,
section 9.2; of its fields only `data` matters here.
"""

from __future__ import annotations


class EventParser:
    """Turns pieces of bytes, torn anywhere, into the data of whole events."""

    def __init__(self) -> None:
        self._loose_end = b""
        self._data: list[bytes] = []
        self._after_return = False

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that this piece completes.

        Raises
        ------
        UnicodeDecodeError
            An event is not UTF-8.
        """
        if self._after_return and piece.startswith(b"\n"):  # the second half of a torn CRLF
            piece = piece[1:]
            self._after_return = False
        if piece:
            self._after_return = piece.endswith(b"\r")
        lines = (self._loose_end + piece).splitlines(keepends=True)  # of bytes: at CR, LF and CRLF alone
        whole = not lines or lines[-1].endswith((b"\r", b"\n"))
        self._loose_end = b"" if whole else lines.pop()
        return [event for line in lines if (event := self._take(line.rstrip(b"\r\n"))) is not None]

    def _take(self, line: bytes) -> str | None:
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data).decode() if data else None
        field, _, value = line.partition(b":")  # a comment begins with the colon: its field is empty
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        return None
