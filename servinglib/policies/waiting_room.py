"""Who waits, in which order, and until when: the queue in front of a batching server.

Think of a clinic. Whoever comes takes a number; urgent cases are called first, and among equally
urgent ones the order is the order of coming. Some give up and go home, and some can only stay until
their train leaves. The nurse needs four answers at any moment: how many wait, how long the first of
them has waited, whose train leaves next, and who goes in now.

The room holds no clock: each call is told the time. The asyncio server (`server.batch_server`) and
the simulator (`simulations.serving`) use this same class, so they serve in the same order.

Every operation takes O(1) or O(log n) time, amortised. Leaving from the middle of a line is made
cheap by crossing the name out and dropping it when the line next moves past it; when more names are
crossed out than not, the lists are written afresh.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from numbers import Real
from typing import Generic, Protocol, TypeVar

from servinglib.errors import InvalidRequest
from servinglib.policies.batching import Fire, Waiting


class Place(Protocol):
    """What stands in line.

    Attributes
    ----------
    arrival : float
        When it came, in seconds.
    priority : float
        Higher is served first.
    cost : float
        What it takes up in a batch, in the caller's unit.
    deadline : float
        When it is to be given up, in seconds; infinite means never.
    waiting : bool
        Still in the room; only the room changes it.
    """

    arrival: float
    priority: float
    cost: float
    deadline: float
    waiting: bool


Item = TypeVar("Item")
Placed = TypeVar("Placed", bound=Place)
SLACK = 64  # crossed-out names below which writing a list afresh isn't worth it


class Entry(Generic[Item]):
    """A place for any item, as `WaitingRoom.add` makes it; its attributes are those of `Place`."""

    __slots__ = ("arrival", "cost", "deadline", "item", "priority", "waiting")

    def __init__(self, item: Item, arrival: float, priority: float, cost: float, deadline: float) -> None:
        self.item = item
        self.arrival = arrival
        self.priority = priority
        self.cost = cost
        self.deadline = deadline
        self.waiting = False


class Line(Generic[Placed]):
    """Places by priority, then by order of coming; each may leave early or expire.

    A *higher* priority is served first. Beware that vLLM counts the other way: there, lower values
    go first.

    Attributes
    ----------
    count : int
        How many wait.
    """

    def __init__(self) -> None:
        self.count = 0
        self._cost = 0.0
        self._lanes: dict[float, deque[Placed]] = {}  # one line of people per priority
        self._ranks: list[float] = []  # heap of the lanes' negated priorities
        self._arrivals: deque[Placed] = deque()  # everybody, in the order of coming
        self._deadlines: list[tuple[float, int, Placed]] = []  # heap; only finite deadlines
        self._serial = itertools.count()  # decides between equal deadlines
        self._crossed_out = 0  # since the lines were last written afresh
        self._stale_deadlines = 0

    def __len__(self) -> int:
        return self.count

    @property
    def waiting(self) -> Waiting:
        """What a batching rule may look at; with nobody waiting, `oldest_arrival` is infinite."""
        arrivals = self._arrivals
        while arrivals and not arrivals[0].waiting:
            arrivals.popleft()
        return Waiting(self.count, self._cost, arrivals[0].arrival if arrivals else math.inf)

    @property
    def next_deadline(self) -> float:
        """When the next entry expires, in seconds; infinite when none ever does."""
        deadlines = self._deadlines
        while deadlines and not deadlines[0][2].waiting:
            heapq.heappop(deadlines)
            self._stale_deadlines -= 1
        return deadlines[0][0] if deadlines else math.inf

    def enter(self, place: Placed) -> None:
        """Let `place` in; arrivals must not go back from one call to the next.

        Raises
        ------
        InvalidRequest
            When its priority is not a number, so that it can't be compared with the others.
        """
        lane = self._lanes.get(place.priority)
        if lane is None:
            lane = self._open_lane(place.priority)
        lane.append(place)
        self._arrivals.append(place)
        self.count += 1
        self._cost += place.cost
        place.waiting = True
        if place.deadline != math.inf:
            heapq.heappush(self._deadlines, (place.deadline, next(self._serial), place))

    def take(self, fire: Fire) -> list[Placed]:
        """Call the next batch in: in order, within `fire`'s size and cost.

        Nobody is overtaken by a cheaper one behind: the batch ends before the first place that does
        not fit. The very first is taken whatever it costs, so that the line always moves.
        """
        batch: list[Placed] = []
        cost, size, limit = 0.0, fire.max_size, fire.max_cost
        while self._ranks and len(batch) < size:
            lane = self._lanes[-self._ranks[0]]
            while lane and len(batch) < size:
                place = lane.popleft()
                if not place.waiting:
                    continue
                if batch and cost + place.cost > limit:
                    lane.appendleft(place)
                    return self._have_left(batch, cost)
                batch.append(place)
                cost += place.cost
                place.waiting = False
            if not lane:
                del self._lanes[-heapq.heappop(self._ranks)]
        return self._have_left(batch, cost)

    def remove(self, place: Placed) -> bool:
        """Let `place` leave early; False if it is no longer in the room."""
        if not place.waiting:
            return False
        place.waiting = False
        self._crossed_out += 1
        self._have_left([place], place.cost)
        return True

    def expire(self, now: float) -> list[Placed]:
        """Remove and return the places whose deadline has come."""
        expired: list[Placed] = []
        while self.next_deadline <= now:
            place = self._deadlines[0][2]
            self.remove(place)
            expired.append(place)
        return expired

    def _open_lane(self, priority: float) -> deque[Placed]:
        if not isinstance(priority, Real) or math.isnan(priority):
            raise InvalidRequest(f"priority={priority!r} must be a number; higher is served first")
        heapq.heappush(self._ranks, -priority)
        lane = self._lanes[priority] = deque()
        return lane

    def _have_left(self, places: list[Placed], cost: float) -> list[Placed]:
        self.count -= len(places)
        self._cost = self._cost - cost if self.count else 0.0  # rounding errors must not add up
        if self._deadlines:
            self._stale_deadlines += sum(place.deadline != math.inf for place in places)
        self._tidy()
        return places

    def _tidy(self) -> None:
        most_names = 2 * self.count + SLACK
        if len(self._arrivals) > most_names or self._crossed_out > most_names:
            self._rewrite_lines()
        if self._stale_deadlines > self.count + SLACK:
            self._deadlines = [d for d in self._deadlines if d[2].waiting]
            heapq.heapify(self._deadlines)
            self._stale_deadlines = 0

    def _rewrite_lines(self) -> None:
        self._arrivals = deque(p for p in self._arrivals if p.waiting)
        lanes = {priority: deque(p for p in lane if p.waiting) for priority, lane in self._lanes.items()}
        self._lanes = {priority: lane for priority, lane in lanes.items() if lane}
        self._ranks = [-priority for priority in self._lanes]
        heapq.heapify(self._ranks)
        self._crossed_out = 0


class WaitingRoom(Line[Entry[Item]]):
    """A line of any items, each given an `Entry`."""

    def add(
        self,
        item: Item,
        *,
        now: float,
        priority: float = 0,
        cost: float = 1.0,
        deadline: float = math.inf,
    ) -> Entry[Item]:
        """Let `item` in; `now` must not go back from one call to the next.

        Returns
        -------
        Entry
            The item's place, to be given to `remove` if it leaves early.
        """
        entry = Entry(item, now, priority, cost, deadline)
        self.enter(entry)
        return entry
