"""A contender in a process of its own: two libraries under one roof would share more than the machine.

Two cooks in one kitchen get in each other's way over pots and flames even while one of them rests: a
library sets environment variables, starts threads and holds memory for the whole process it lives in.
So each contender has a kitchen of its own, and notes are passed through the hatch: one JSON object per
line, a call and its answer. Only one contender cooks at a time; the others are stopped by the
operating system, for some of them wait for work by asking again and again, which takes a core.

The child keeps the pipe to its parent for itself and lends libraries standard error instead: some of
them greet on standard output, and a greeting between two answers would be taken for one.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO, cast

import psutil

from servinglib.errors import ServingError
from servinglib.process_guard import Guard

LAST_WORDS = 15  # lines of standard error that an error message quotes
PATIENCE = 20.0  # seconds from the end of the calls until a child is killed


class ContenderFailed(ServingError):
    """A contender's process ended, refused a call, or answered with something else than asked."""


class ContenderProcess:
    """The parent's end: starts the child, passes calls and waits for each one's answer.

    Parameters
    ----------
    name : str
        For messages.
    command : sequence of str
        A program that calls `serve`.
    environment : mapping
        Variables that the child has besides this process's own.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed in `close`
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        self._guard = Guard()  # a stopped child would not notice that this process is gone
        self._guard.watch(self._child.pid)
        # Both are set, since both are pipes.
        self._calls, self._answers = cast("TextIO", self._child.stdin), cast("TextIO", self._child.stdout)

    def call(self, method: str, **arguments: Any) -> Any:
        """What the contender's method returned.

        Raises
        ------
        ContenderFailed
            The method raised, or the process is gone; the message quotes the child's last words.
        """
        with suppress(BrokenPipeError):  # a child that is gone answers nothing, which is told below
            self._calls.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._calls.flush()
        line = self._answers.readline()
        if not line:
            raise ContenderFailed(
                f"the contender {self.name} ended with exit code {self._child.wait()} in the call "
                f"{method!r}; its last words:\n{self._last_words()}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(
                f"the contender {self.name} failed in the call {method!r}: {answer['error']}"
            )
        return answer["result"]

    def pause(self) -> None:
        """Stop the child and its own children where they stand; they use no processor until `resume`."""
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        if hasattr(os, "waitid"):  # the signal is under way: without this the child might run a little longer
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let them go on, the child itself last, so that it finds its own children awake."""
        for process in reversed(self._family()):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def close(self) -> None:
        """End the child; what is left of its family after `PATIENCE` is killed."""
        family = self._family()
        self.resume()
        with suppress(BrokenPipeError):
            self._calls.close()  # which is how it learns of the end
        _, left = psutil.wait_procs(family, timeout=PATIENCE)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._child.wait()
        self._guard.close()
        self._answers.close()
        self._errors.close()

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            child = psutil.Process(self._child.pid)
            return [child, *child.children(recursive=True)]
        return []

    def _last_words(self) -> str:
        self._errors.seek(0)
        return "".join(deque(self._errors, maxlen=LAST_WORDS)).strip()

    def __enter__(self) -> ContenderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def private_output() -> TextIO:
    """The pipe to the parent, and from now on standard error wherever a library prints."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return pipe


def serve(contender: Any, calls: TextIO, answers: TextIO) -> None:
    """Answer one call per line until there are no more; an exception is an answer too.

    Parameters
    ----------
    contender : object
        Its public methods take and return what JSON can hold.
    calls, answers : text file
        Usually standard input and `private_output()`.
    """
    for line in calls:
        call = json.loads(line)
        try:
            answer = {"result": getattr(contender, call["method"])(**call["arguments"])}
        except Exception as error:  # noqa: BLE001 - whatever a library raises is for the parent to tell
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
