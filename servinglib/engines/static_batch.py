"""Static batching: the batch is fixed when it starts, and all its rows step together to the end.

A coach trip is the picture: everybody boards at the start, and the coach comes home when the last
passenger has seen enough; whoever finished early sits in it and takes a seat from somebody waiting
outside. That is what most first servers do, and lesson 06 measures the empty seats. An engine of
this kind only has to say what tokens the rows get at each step; the rest stands here once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Generator, Iterator, Sequence

from servinglib.engines.answer import Answer
from servinglib.engines.base import Engine
from servinglib.engines.streams import check_ids
from servinglib.errors import ServerClosed
from servinglib.request import Request, SamplingParams, TokenEvent


class StaticBatchEngine(Engine):
    """An engine whose requests join and leave only between batches.

    Batches may run in several threads at once; each `run` has its own state.

    Attributes
    ----------
    eos_ids : collection of int
        Token ids that end an answer.
    """

    eos_ids: Collection[int] = ()

    def __init__(self) -> None:
        self._running: dict[str, Answer] = {}
        self._closed = False

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Ids to text, special tokens left out."""

    @abstractmethod
    def steps(
        self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]
    ) -> Generator[list[int], None, None]:
        """Yield the next token of every row, finished rows included, for as long as it is asked.

        It has to last for as many steps as the longest `max_tokens`.
        """

    def run(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        """Yield the batch's events step by step, rows in order within a step."""
        self._must_be_open()
        return self._events([Answer(r, self.decode, self.eos_ids) for r in requests], prompts)

    def abort(self, request_id: str) -> bool:
        """End a running request at its next token; its row still steps along with the batch."""
        answer = self._running.get(request_id)
        if answer is None or answer.finish_reason is not None:
            return False
        answer.abort()
        return True

    def shutdown(self) -> None:
        """Take no more work; a batch that still runs raises `ServerClosed` at its next step."""
        self._closed = True

    def _events(self, answers: Sequence[Answer], prompts: Sequence[list[int]]) -> Iterator[TokenEvent]:
        self._register(answers)
        steps = self.steps(prompts, [a.request.params for a in answers])
        try:
            while any(a.finish_reason is None for a in answers):
                self._must_be_open()
                tokens = next(steps)
                now = self.now()
                for answer, token in zip(answers, tokens, strict=True):
                    if answer.finish_reason is None:
                        yield answer.advance(token, now)
        finally:  # also when the reader goes away in the middle
            steps.close()
            for answer in answers:
                self._running.pop(answer.request.request_id, None)

    def _register(self, answers: Sequence[Answer]) -> None:
        check_ids([a.request for a in answers], self._running)
        self._running.update((a.request.request_id, a) for a in answers)

    def _must_be_open(self) -> None:
        if self._closed:
            raise ServerClosed
