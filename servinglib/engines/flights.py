"""One answer in the making, and all who read it.

Visitors to a castle who want the same tour walk it together. Who comes late hears from the others
what was said so far, and walks on with them; who has had enough leaves, and the tour goes on as long
as anybody listens. There is no group leader whose going would end it for the rest.

A tour is a `Flight`: one answer, with all its events from the first on. A `Reader` is one request's
place in it. Flights that start together share a `Batch` of the engine, and the batch moves when any
reader of it wants an event that isn't there yet, in whichever thread: so nobody waits for a thread
that is blocked, or for a client that reads slowly. `engines.cached` brings readers and flights together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

from servinglib.engines.base import Engine
from servinglib.request import FinishReason, Request, TokenEvent


@dataclass(slots=True, eq=False)
class Flight:
    """One answer in the making.

    Attributes
    ----------
    key : bytes or None
        Its key in the cache; None for an answer that may not be shared.
    request, prompt
        What the inner engine is asked, under an id of the flight's own.
    events : list of TokenEvent
        All so far, as the inner engine gave them.
    readers : int
        How many requests still want it.
    over : bool
        Complete, failed or given up; what still comes from the engine is ignored.
    error : BaseException or None
        Why it failed.
    """

    key: bytes | None
    request: Request
    prompt: list[int]
    batch: Batch
    events: list[TokenEvent] = field(default_factory=list)
    readers: int = 0
    ends: int = 0  # choices that are finished; each of the request's n ends for itself
    over: bool = False
    error: BaseException | None = None


@dataclass(slots=True, eq=False)
class Reader:
    """One request's place in an answer, which is a flight's or, if `flight` is None, was known at once."""

    request: Request
    prompt: list[int]
    flight: Flight | None = None
    events: Sequence[TokenEvent] = ()
    since: float = 0.0
    deadline: float = math.inf
    shown: int = 0
    leaving: FinishReason | None = None
    finished: bool = False
    open_choices: dict[int, int] = field(init=False)  # tokens shown of each answer that goes on

    def __post_init__(self) -> None:
        self.open_choices = dict.fromkeys(range(self.request.params.n), 0)

    @property
    def waits(self) -> bool:
        """Whether its next event isn't there yet."""
        return not (self.finished or self.leaving or self.shown < len(self.events))

    def take(self, events: Sequence[TokenEvent]) -> None:
        """Read an answer that is known."""
        self.flight, self.events = None, events

    def follow(self, flight: Flight) -> None:
        """Read an answer in the making; one event is computed for all who follow it."""
        self.flight, self.events = flight, flight.events
        flight.readers += 1

    def read(self, now: float) -> TokenEvent:
        """Its next event, which must be there; what happened before it came, it hears of when it came."""
        name, open_choices = self.request.request_id, self.open_choices
        if self.leaving:
            choice, tokens = open_choices.popitem()
            self.finished = not open_choices
            return TokenEvent(name, tokens, None, "", now, self.leaving, choice)
        event = self.events[self.shown]
        self.shown += 1
        open_choices[event.choice] += 1
        if event.finish_reason is not None:
            del open_choices[event.choice]
        self.finished = not open_choices
        return replace(event, request_id=name, time=max(event.time, self.since))


class Batch:
    """A run of the inner engine that the readers of its flights move on together.

    Parameters
    ----------
    engine : Engine
        The inner engine.
    land : callable
        Told which flights have ended, and the error if they failed.
    """

    def __init__(
        self, engine: Engine, land: Callable[[Iterable[Flight], BaseException | None], None]
    ) -> None:
        self._engine, self._land = engine, land
        self._flights: dict[str, Flight] = {}
        self._events = self._run()
        self._turn = threading.RLock()  # entered twice if a reader is garbage-collected in the middle

    def add(self, flight: Flight) -> None:
        """Take a flight along; only before the first `advance`."""
        self._flights[flight.request.request_id] = flight

    def advance(self, reader: Reader, flight: Flight) -> None:
        """Bring the run one event further, unless another thread just did, and the reader's event is there."""
        with self._turn:
            if flight.over or not reader.waits:
                return
            try:
                self._deliver(next(self._events))
            except BaseException as error:
                self._land(self._flights.values(), error)
                if not isinstance(error, Exception):  # an interrupt is meant for this thread, too
                    raise

    def give_up(self, flight: Flight) -> None:
        """End the computation of a flight that nobody reads."""
        self._engine.abort(flight.request.request_id)
        with self._turn:
            self._close_if_over()

    def _run(self) -> Generator[TokenEvent, None, None]:
        flights = [flight for flight in self._flights.values() if not flight.over]
        yield from self._engine.run([f.request for f in flights], [f.prompt for f in flights])

    def _deliver(self, event: TokenEvent) -> None:
        flight = self._flights[event.request_id]
        flight.events.append(event)
        flight.ends += event.finish_reason is not None
        if flight.ends == flight.request.params.n:
            self._land([flight], None)
            self._close_if_over()

    def _close_if_over(self) -> None:
        if all(flight.over for flight in self._flights.values()):
            self._events.close()
