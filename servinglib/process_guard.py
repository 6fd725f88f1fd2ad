"""No process outlives the one that wanted it, even when that one is killed without a word.

A train driver holds a handle down while driving; when the hand falls off, for whatever reason, the train
brakes. A guard is such a handle between processes: a small process of its own, which reads from a pipe
that its owner holds. However the owner ends, and be it by SIGKILL, the operating system closes the pipe,
and the guard kills what the owner left behind. That is needed because an engine on a GPU is a family of
processes, and those that nobody stops hold their memory for ever.

A guard starts a command (`GuardedCommand`), or watches processes that somebody else has started (`Guard`).
On Linux it makes itself the foster parent of a command's orphans, so that none escapes by detaching itself;
elsewhere, and for watched processes, it looks every half second who belongs to the family.

The program behind both, `python -m servinglib.process_guard [-- COMMAND...]`, reads orders line by line:
`stop SECONDS` (SIGTERM to the command, SIGKILL to all of the family after that time), `watch PID`, and
`release` (end and kill nobody). It reports one line, `started PID`, `failed ERRNO REASON` or
`watching`; what the command writes goes to the guard's standard error. Its exit code is the command's, or 128 + the signal that ended it.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, cast

import psutil

from servinglib.errors import ServingError
from servinglib.process_family import Family, descendants

LOOK_EVERY = 0.5  # seconds between two looks at the family and at the owner
TERMINATION_GRACE = 10.0  # seconds that a command has when its guard gets an ending signal
KILL_PATIENCE = 20.0  # seconds from the last SIGKILL until an owner no longer waits
ENDING_SIGNALS = signal.SIGINT, signal.SIGTERM
NOT_STARTED = 127  # exit code, as a shell's

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


# The owner's side


class GuardedCommand:
    """A command that ends with its owner, together with all that it has started.

    Parameters
    ----------
    command : sequence of str
    output : file
        Takes what the command writes to standard output and standard error.
    environment : mapping, optional
        Variables that it has instead of this process's.

    Attributes
    ----------
    pid : int
        The command's process, not its guard's.

    Raises
    ------
    OSError
        The command can't be started, as `subprocess.Popen` would say it.
    """

    def __init__(
        self, command: Sequence[str], output: IO[bytes], environment: Mapping[str, str] | None = None
    ) -> None:
        self._guard, (word, *details) = _start_guard(["--", *command], output, environment)
        if word == "failed":
            _dismiss(self._guard, "release", KILL_PATIENCE)
            raise OSError(int(details[0]), " ".join(details[1:]), command[0])
        self.pid = int(details[0])

    def poll(self) -> int | None:
        """Its exit code (128 + n: ended by signal n), or None while it runs."""
        return self._guard.poll()

    def stop(self, grace: float) -> None:
        """SIGTERM now, SIGKILL to the whole family after `grace` seconds; a second call does nothing.

        Raises
        ------
        ServingError
            Some process is still there after SIGKILL; its guard keeps waiting for it.
        """
        try:
            _dismiss(self._guard, f"stop {grace}", grace + KILL_PATIENCE)
        except subprocess.TimeoutExpired as late:
            left = [p.pid for p in descendants(psutil.Process(self._guard.pid))]
            raise ServingError(
                f"{late.timeout:g} s after the order to stop, processes {left} are still there, though killed; "
                f"they wait for a driver or belong to another user. Their guard is process {self._guard.pid}"
            ) from None


class Guard:
    """Watches processes that a library has started, and kills them and their families if this process dies.

    It does so as well when the guard is dropped without `close`. Whoever watches the own process means
    its descendants: it is never killed itself.
    """

    def __init__(self) -> None:
        self._watcher: subprocess.Popen[bytes] | None = None

    def watch(self, pid: int) -> None:
        """Include a process and all that descends from it, now or later."""
        if self._watcher is None:
            self._watcher, _ = _start_guard([])
        cast("IO[bytes]", self._watcher.stdin).write(f"watch {pid}\n".encode())

    def close(self) -> None:
        """Nothing needs killing any more: wait until the watcher has gone. A second call does nothing."""
        if self._watcher is not None:
            _dismiss(self._watcher, "release", KILL_PATIENCE)
            self._watcher = None


def _start_guard(
    words: Sequence[str], output: IO[bytes] | None = None, environment: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], list[str]]:
    """A guard that is at work, and what it has reported."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "servinglib.process_guard", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=output,
        bufsize=0,  # an order is written whole or not at all
        env=environment,
        start_new_session=True,  # the Ctrl-C in a terminal is for the owner alone
    )
    report = cast("IO[bytes]", guard.stdout).readline().decode().split()
    if not report:
        _dismiss(guard, "release", KILL_PATIENCE)
        raise ServingError(
            f"a guard ended with exit code {guard.returncode} before it was at work; "
            f"is servinglib installed for {sys.executable}?"
        )
    return guard, report


def _dismiss(guard: subprocess.Popen[bytes], order: str, patience: float) -> None:
    """Give a last order and wait up to `patience` seconds for the guard's end."""
    orders, reports = cast("IO[bytes]", guard.stdin), cast("IO[bytes]", guard.stdout)
    if orders.closed:
        return
    with suppress(BrokenPipeError):  # it has ended by itself
        orders.write(f"{order}\n".encode())
    guard.wait(patience)
    orders.close()
    reports.close()


# The guard's side


def _orders() -> Iterator[list[str]]:
    """The owner's lines, split into words, and an empty one after each pause, until the owner is gone."""
    owner = os.getppid()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=LOOK_EVERY)
        except queue.Empty:
            # A fork of the owner holds the pipe open: then only the change of parents tells of its death.
            line = b"\n" if os.getppid() == owner else b""
        if not line:
            return
        yield line.decode().split()


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    # Without a buffer, for a thread that waits within one would hinder the interpreter's end.
    with os.fdopen(0, "rb", buffering=0, closefd=False) as orders:
        for line in orders:
            lines.put(line)
    lines.put(b"")


def _watch() -> int:
    family = Family(os.getpid(), os.getppid())
    _report("watching")
    for order in _orders():
        match order:
            case ["watch", pid]:
                family.add(int(pid))
            case ["release"]:
                return 0
        family.look()
    family.kill()
    return 0


def _run(command: Sequence[str]) -> int:
    fosters = _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = _start(command)
    except OSError as error:
        _report(f"failed {error.errno} {error.strerror}")
        return NOT_STARTED
    family = Family(os.getpid())
    family.add(os.getpid())
    stop = partial(_stop, psutil.Process(child.pid), family)
    for number in ENDING_SIGNALS:
        signal.signal(number, lambda *_: stop(TERMINATION_GRACE))
    threading.Thread(target=_obey, args=(stop, family, fosters), daemon=True).start()
    _report(f"started {child.pid}")
    child.returncode = _reap(child.pid)
    family.kill()
    with suppress(ChildProcessError):  # the killed ones, until none is left
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        start_new_session=True,
        preexec_fn=partial(_prctl, PR_SET_PDEATHSIG, signal.SIGKILL),  # for somebody may kill the guard
    )


def _obey(stop: Callable[[float], None], family: Family, fosters: bool) -> None:
    """Follow the owner's orders; whatever ends this, and be it a mistake here, ends the family."""
    try:
        for order in _orders():
            match order:
                case ["stop", grace]:
                    stop(float(grace))
                case [] if not fosters:
                    family.look()
    finally:
        family.kill()


def _stop(command: psutil.Process, family: Family, grace: float) -> None:
    with suppress(psutil.NoSuchProcess):
        command.terminate()
    last_resort = threading.Timer(grace, family.kill)
    last_resort.daemon = True
    last_resort.start()


def _reap(pid: int) -> int:
    """Wait for the command's end; orphans that end before are seen off as well."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _prctl(option: int, value: int) -> bool:
    """Ask Linux for something about this process; False on another system."""
    return sys.platform == "linux" and ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0


def _report(line: str) -> None:
    with suppress(BrokenPipeError):  # the owner is gone, which the pipe of the orders tells as well
        os.write(1, f"{line}\n".encode())


def main(command: Sequence[str]) -> int:
    """Guard a command, or what it is told to watch; returns the exit code."""
    for number in ENDING_SIGNALS:  # a watcher ends with its owner only; a command would inherit SIG_IGN
        signal.signal(number, lambda *_: None)
    return _run(command) if command else _watch()


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(words[1:] if words[:1] == ["--"] else words))
