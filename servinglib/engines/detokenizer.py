"""From token ids back to text, one token at a time, without ever showing half a character.

A token is a piece of bytes, not of text: "服" is three bytes, and a model may spend three tokens on
it. Like a typist who waits for the whole character before striking the key, the detokenizer keeps
quiet until the bytes so far end in a complete character. What it gives out, joined, is exactly what
decoding all ids at once gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

LONGEST_WINDOW = 16  # tokens; to shorten the window costs a second decoding
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character, or not one yet


class Detokenizer:
    """The text of one growing answer.

    Decoding all ids again at every token would take quadratic time, and decoding each token alone
    would be wrong: many tokenizers strip or add a space at the start of a text. So it decodes a
    short window: some tokens that were given out, and those since. What is new in it is the difference.

    Parameters
    ----------
    decode : callable
        Ids to text, special tokens left out, undecodable bytes as U+FFFD. A byte-level tokenizer's
        is exact here. One with SentencePiece byte fallback may judge a whole run of bytes anew when
        an invalid one follows; text already given out then stays as it was.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._given_ids = 0  # how many ids of the window have been given out as text ...
        self._given_text = ""  # ... and that text

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):
            return ""
        new = text[len(self._given_text) :]
        if new:
            if len(self._window) > LONGEST_WINDOW:
                del self._window[: self._given_ids]
                text = self._decode(self._window)
            self._given_ids, self._given_text = len(self._window), text
        return new

    def flush(self) -> str:
        """What is still held back when the answer ends: an incomplete character becomes U+FFFD."""
        rest = self._decode(self._window)[len(self._given_text) :]
        self._window, self._given_ids, self._given_text = [], 0, ""
        return rest
