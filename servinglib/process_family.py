"""Who belongs to a process: itself, its children, theirs, and so on, to be ended together.

A family is known by its births. Who has seen a child with its parent still knows it when the parent is gone;
who comes too late sees only an orphan, which the operating system has given to somebody else. So a family
that shall be ended for certain is looked at from time to time.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import psutil

LONGEST_PAUSE = 0.5  # seconds between two looks at those who should be dead


class Family:
    """Processes and whatever descends from them; process ids may be used anew without harm.

    Parameters
    ----------
    *spared : int
        Processes that belong to it and are never killed.
    """

    def __init__(self, *spared: int) -> None:
        self._spared = spared
        self._members: set[psutil.Process] = set()
        self._lock = threading.Lock()

    def add(self, pid: int) -> None:
        """Include a process, unless it is gone already."""
        with suppress(psutil.NoSuchProcess), self._lock:
            self._members.add(psutil.Process(pid))

    def look(self) -> list[psutil.Process]:
        """Who lives and may be killed; members that have become orphans since the last look still count."""
        with self._lock:
            seen: set[psutil.Process] = set()
            for member in sorted(self._members, key=psutil.Process.create_time):
                if member not in seen:  # its descendants are not, either
                    seen |= {member, *descendants(member)}
            self._members = {process for process in seen if _lives(process)}
            return [process for process in self._members if process.pid not in self._spared]

    def kill(self) -> None:
        """SIGKILL to all, again and again until none lives: a process may start others while it dies."""
        pause = 0.01
        while living := self.look():
            for process in living:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # the next look tells
                    process.kill()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Its children, theirs, and so on; none if it is gone."""
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
