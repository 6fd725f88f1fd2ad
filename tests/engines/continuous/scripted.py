"""An engine's loop without a thread and without a model: every step is taken by hand, every token is known before.

`ScriptedRunner` takes the place of the model. Where a model keeps a token's keys and values, in pages, it
keeps what these follow from, the token and all before it, and checks that what attention would look at
is the sequence from its first token on. So it notices a page that was lost, shared wrongly or never
written. What it says is known beforehand: `script` tells it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from servinglib.cache.block_pool import BlockPool
from servinglib.decoder.step import Outcome
from servinglib.engines.answer import Answer
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.continuous.loading import Parts
from servinglib.engines.continuous.loop import EngineLoop
from servinglib.engines.continuous.requests import Choice, Ticket
from servinglib.engines.continuous.runner import Runner
from servinglib.policies.length_prediction import LengthPredictor
from servinglib.policies.scheduling import scheduling_policy
from servinglib.policies.sequence import Scheduled, SequenceState, StepPlan
from servinglib.policies.stepping import StepPlanner
from servinglib.request import Request, SamplingParams, TokenEvent

VOCABULARY = 26
News = tuple[str, TokenEvent | Exception]


def next_token(tokens: Sequence[int]) -> int:
    """What the scripted model says after these tokens."""
    return (sum(i * t for i, t in enumerate(tokens, 1)) + len(tokens)) % VOCABULARY


def script(prompt: Sequence[int], count: int) -> list[int]:
    """What it says in all."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def letters(ids: Sequence[int]) -> str:
    """Token 0 is "a", and so on."""
    return "".join(chr(ord("a") + i) for i in ids)


class ScriptedRunner:
    """Computes a step as `Runner` does, with tokens in the place of keys and values.

    `before` is called at the start of every step, with its plan: the place to wait, or to raise. With
    `overlap` a step is launched by `start` when the last one's tokens were not yet told by `finish`.
    """

    def __init__(self, block_size: int, before: Callable[[StepPlan], None] = lambda _: None) -> None:
        self.block_size, self.before = block_size, before
        self.attention = SimpleNamespace(padding=0)
        self.drafted = 0
        self.pages: dict[tuple[int, int], list[int]] = {}
        self.forgotten: list[SequenceState] = []
        self._late: dict[SequenceState, list[int]] = {}  # tokens of the last step, still in flight

    def run(self, plan: StepPlan) -> list[Outcome]:
        self.before(plan)
        outcomes = [self._compute(share) for share in plan.scheduled]
        self.drafted = sum(share.num_draft_tokens for share in plan.scheduled)
        return [outcome for outcome in outcomes if outcome is not None]

    def start(self, plan: StepPlan) -> SimpleNamespace:
        outcomes = self.run(plan)
        self._late = {outcome.sequence: outcome.tokens for outcome in outcomes}
        return SimpleNamespace(outcomes=outcomes)

    def finish(self, flight: SimpleNamespace) -> list[Outcome]:
        return flight.outcomes

    def row(self, params: SamplingParams, choice: int) -> tuple[SamplingParams, None]:
        return params, None

    def rest(self) -> None:
        pass

    def forget(self, sequence: SequenceState) -> None:
        self.forgotten.append(sequence)

    def _compute(self, share: Scheduled) -> Outcome | None:
        sequence, count, _, room = share
        start, end = sequence.num_computed_tokens, sequence.num_computed_tokens + count - room
        known = sequence.item.tokens
        if end > len(known):
            known = known + self._late[sequence]
        right = len(known) % (room + 1)  # so many guesses are good, the others are not
        truth = script(known, right + 1)
        guesses = truth[:right] + [(t + 1) % VOCABULARY for t in script([*known, *truth], room - right)]
        read = known[:end] + guesses
        for position in range(start, len(read)):
            self.pages[self._slot(sequence, position)] = read[: position + 1]
        for position in range(end):
            seen = self.pages[self._slot(sequence, position)]
            assert seen == known[: position + 1], f"a page holds {seen}, and the sequence is {known}"
        if end < len(known):
            return None
        return Outcome(sequence, truth)

    def _slot(self, sequence: SequenceState, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self.block_size)
        return sequence.blocks[block], offset


class SteppedLoop(EngineLoop):
    """The engine's loop without a thread of its own: each `turn` is one round of it, in the caller's."""

    def _main(
        self, build: Callable[[], tuple[Runner, StepPlanner]], built: queue.SimpleQueue[Exception | None]
    ) -> None:
        try:
            self._runner, self.planner = build()
            built.put(None)
        except Exception as failure:  # noqa: BLE001, the constructor raises it
            built.put(failure)

    def turn(self, count: int = 1) -> None:
        """Take orders and a step; blocks must add up before and after."""
        for _ in range(count):
            if self._tickets or not self._orders.empty():
                self._take_orders()
                self.planner.check_integrity()
                self._step()
                self.planner.check_integrity()
                self._check_lengths()

    def _check_lengths(self) -> None:
        """The planner must know of every token, and of none that is not there or in flight."""
        sequences = (*self.planner.running, *self.planner.waiting)
        ahead = {s.num_tokens - len(s.item.tokens) for s in sequences}
        assert ahead <= ({0, 1} if self._overlap else {0}), f"the planner is ahead by {ahead} tokens"

    def finish(self) -> None:
        """Go on until nobody is there."""
        for _ in range(10_000):
            if not self._tickets and self._orders.empty():
                break
            self.turn()
        self.turn()
        assert [*self._tickets, *self.planner.running, *self.planner.waiting] == []
        assert self.planner.pool.num_available == self.planner.pool.num_blocks, "somebody left blocks behind"


class Desk:
    """Hands requests to a loop and writes down what it hears.

    Attributes
    ----------
    heard : dict of str to list
        Events and errors, by request id.
    calls : list of list
        The news, call by call.
    """

    def __init__(self, loop: EngineLoop, decode: Callable[[Sequence[int]], str] = letters) -> None:
        self.loop, self.decode = loop, decode
        self.heard: dict[str, list[TokenEvent | Exception]] = {}
        self.calls: list[list[News]] = []

    def listen(self, news: list[News]) -> None:
        self.calls.append(news)
        for request_id, item in news:
            self.heard.setdefault(request_id, []).append(item)

    def ask(self, name: str, prompt: Sequence[int], max_tokens: int = 4, **more: Any) -> None:
        """Submit a request, made as `ticket` makes it."""
        self.loop.submit([self.ticket(name, prompt, max_tokens, **more)])

    def ticket(
        self,
        name: str,
        prompt: Sequence[int],
        max_tokens: int = 4,
        *,
        eos: Sequence[int] = (),
        deadline: float | None = None,
        arrival: float = 0.0,
        priority: float = 0.0,
        **params: Any,
    ) -> Ticket:
        """A request for this desk; `deadline` is on the loop's clock."""
        request = Request(name, prompt, SamplingParams(max_tokens=max_tokens, **params), priority=priority)
        choices = [
            Choice(Answer(request, self.decode, frozenset(eos), i), list(prompt), arrival)
            for i in range(request.params.n)
        ]
        return Ticket(request, choices, self.listen, name, deadline)

    def events(self, name: str) -> list[TokenEvent]:
        heard = self.heard.get(name, [])
        assert not [item for item in heard if isinstance(item, Exception)], heard
        return [item for item in heard if isinstance(item, TokenEvent)]

    def tokens(self, name: str, choice: int = 0) -> list[int]:
        mine = [e for e in self.events(name) if e.choice == choice]
        return [e.token_id for e in mine if e.token_id is not None]

    def text(self, name: str) -> str:
        return "".join(e.text for e in self.events(name))

    def ends(self, name: str) -> list[Any]:
        """How often, and how, a request ended: finish reasons, and types of errors."""
        heard = self.heard.get(name, [])
        ends = [type(i) if isinstance(i, Exception) else i.finish_reason for i in heard]
        return [end for end in ends if end is not None]


def build(
    blocks: int = 64,
    block_size: int = 4,
    policy: str = "fcfs",
    before: Callable[[StepPlan], None] = lambda _: None,
    **limits: Any,
) -> Callable[[], tuple[Runner, StepPlanner]]:
    """What an `EngineLoop` is built with; 64 blocks of 4 tokens unless told otherwise."""
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": 16, **limits}

    def make() -> tuple[Runner, StepPlanner]:
        runner = cast("Runner", ScriptedRunner(block_size, before))
        return runner, StepPlanner(BlockPool(blocks, block_size), scheduling_policy(policy), **limits)

    return make


def stepped(
    prefix_caching: bool = True,
    predictor: LengthPredictor | None = None,
    overlap: bool = False,
    **world: Any,
) -> tuple[SteppedLoop, Desk]:
    """A loop to be stepped by hand, and a desk in front of it."""
    loop = SteppedLoop(build(**world), prefix_caching, predictor, overlap)
    return loop, Desk(loop)


class Gate:
    """Holds each step until it is let through, so that a test knows where the engine's thread is."""

    def __init__(self) -> None:
        self._arrived, self._open = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, plan: StepPlan) -> None:
        self._arrived.release()
        assert self._open.acquire(timeout=20), "nobody opened the gate"

    def wait(self) -> None:
        """Until a step has begun."""
        assert self._arrived.acquire(timeout=20), "no step began"

    def open(self, steps: int = 10_000) -> None:
        """Let so many steps through."""
        self._open.release(steps)


class _Tokenizer:
    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") for letter in text]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return letters(ids)


def scripted_engine(eos: Sequence[int] = (), **world: Any) -> ContinuousEngine:
    """The whole engine, thread and all, with the scripted model."""
    loop = EngineLoop(build(**world))
    context = loop.planner.pool.num_blocks * loop.planner.pool.block_size
    tokenizer, memory = cast("Any", _Tokenizer()), cast("Any", None)
    return ContinuousEngine(
        "scripted", Parts(loop, tokenizer, VOCABULARY, context, frozenset(eos), memory, "torch")
    )
