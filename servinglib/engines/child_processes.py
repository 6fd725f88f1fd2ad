"""What engines that start processes of their own have in common: who was started, what was said, who must go.

Production engines are companies with staff. Before one moves in, we note who was in the house already; while
it moves in, a guard learns of each newcomer, and what they say is written down, since they tell their reasons
to the terminal and not to us; and when it leaves, its people leave, and nobody else's.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import IO

from servinglib.process_family import Family
from servinglib.process_guard import Guard

REASON = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception|Interrupt)): (.+)")


class ToldByProcess(Exception):
    """What one of an engine's processes has told as its reason."""


@contextmanager
def environment(wanted: Mapping[str, str | None]) -> Generator[None]:
    """Set variables for a while, or unset those that are None; processes started meanwhile keep them."""
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def output_to(log: IO[str]) -> Generator[None]:
    """Send what this process, and those that it starts, write to the terminal into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def started(before: set[BaseProcess], named: str = "") -> list[BaseProcess]:
    """The processes that `multiprocessing` has started since, whose name holds `named`, and that live."""
    return [p for p in multiprocessing.active_children() if p not in before and named in p.name]


@contextmanager
def watched(guard: Guard, before: set[BaseProcess], named: str = "") -> Generator[None]:
    """Tell the guard of each process that is started meanwhile, soon after it is."""
    over = threading.Event()

    def look() -> None:
        known: set[int | None] = {None}
        while True:
            last = over.wait(0.05)
            for child in started(before, named):
                if child.pid is not None and child.pid not in known:
                    known.add(child.pid)
                    guard.watch(child.pid)
            if last:
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def end(children: Iterable[BaseProcess]) -> None:
    """Kill these and all that they have started, and wait until they are gone."""
    children, family = list(children), Family()
    for child in children:
        if child.pid is not None:
            family.add(child.pid)
    family.kill()
    for child in children:
        child.join()


def reason(log: IO[str], error: Exception, pointers: Sequence[str] = ()) -> Exception:
    """What an engine's processes gave as their reason, if they did; `error` itself if not.

    `pointers` are words of messages that only point to another one.
    """
    log.seek(0)
    told = [match for line in log if (match := REASON.search(line))]
    causes = [match for match in told if not any(pointer in match[0] for pointer in pointers)]
    return ToldByProcess(f"{causes[-1][1]}: {causes[-1][2].strip()}") if causes else error
