"""A request on its way through the engine: what it asked for, what it has so far, and who is listening.

One request may ask for several answers (`n`). Each is a *choice*, with a sequence, a source of chance
and a text of its own; what they share is the prompt, and through the prefix cache its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servinglib.cache.prefix import extend_keys
from servinglib.engines.answer import Answer
from servinglib.engines.streams import Item, Listener
from servinglib.policies.sequence import SequenceState
from servinglib.request import Request

News = dict[Listener, list[Item]]


class Choice:
    """One answer in the making, the `item` of its sequence.

    Attributes
    ----------
    tokens : list of int
        The prompt and what was generated.
    row : Row
        How its tokens are chosen.
    answer : Answer
    sequence : SequenceState
    queued : bool
        Whether the planner has it.
    """

    def __init__(self, answer: Answer, prompt: Sequence[int], arrival: float) -> None:
        self.answer = answer
        self.row: Any = (answer.request.params, None)
        self.tokens, self.queued = list(prompt), False
        self._keys: list[bytes] = []
        request = answer.request
        self.sequence = SequenceState(
            self, len(prompt), request.params.max_tokens, arrival, request.priority, block_keys=self._keys
        )

    def name_blocks(self, block_size: int) -> None:
        """Bring the keys of the full blocks up to date with the tokens."""
        if len(self.tokens) // block_size > len(self._keys):
            extend_keys(self._keys, self.tokens, block_size)


class Ticket:
    """A request in the engine, from `submit` to the end of its last choice.

    Attributes
    ----------
    address : object
        The listener's own, to know the request by.
    waiting_choices : list of Choice
        Those that start when the first has read the prompt, so that they find it in the cache.
    open_choices : set of Choice
        Those that have not ended.
    deadline : float or None
        On the engine's clock, in seconds.
    """

    def __init__(
        self,
        request: Request,
        choices: Sequence[Choice],
        listener: Listener,
        address: Any,
        deadline: float | None,
    ) -> None:
        self.request, self.deadline = request, deadline
        self.listener, self.address = listener, address
        self.waiting_choices = list(choices[1:])
        self.open_choices = set(choices)
        self.first = choices[0]
