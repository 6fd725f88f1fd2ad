"""Any server as a process of this one: started, waited for, watched and ended for certain.

A food stall is open when it sells the first bowl, not when its lights go on. So a server counts as started
when it answers, and not when its process exists; until then a deadline runs, and one that closes before it
has opened is quoted with its last words. Its port is chosen here, its output goes to a file, and however
this process ends, the server ends with it, together with all that it has started
(`servinglib.process_guard`).
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self

import psutil

from servinglib.errors import InvalidSetting, ServerFailed, ServingError
from servinglib.process_guard import GuardedCommand

LAST_LINES = 20  # of the log, in an error message
TAIL = 64 * 1024  # bytes of the log that are read for its last lines
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 0.2  # seconds between two questions whether it is ready
ANSWER_TIME = 5.0  # seconds until a question without an answer is asked again


class ServerProcess:
    """A running server that is ready; `with` stops it at the end.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; `{port}` and `{host}` in them are replaced.
    port : int, optional
        By default a free one.
    host : str
    ready : str or callable
        The path whose answer has status 200 when the server is ready, or a function of the base URL that
        says so; an `OSError` in it means not yet.
    deadline : float
        Seconds from the start until it has to be ready.
    log : path, optional
        Where its output goes; an older file is replaced. By default a temporary file, which is removed with
        this object, unless the start fails.
    environment : mapping, optional
        Variables that it has besides this process's own.
    stop_grace : float
        Seconds from SIGTERM to SIGKILL.

    Attributes
    ----------
    pid, port : int
    host, base_url : str
        The URL has no path: "http://127.0.0.1:8000".
    log : pathlib.Path

    Raises
    ------
    ServerFailed
        Its port is taken, its program can't be started, it ended before it was ready, or it was not ready
        in time. Nothing is left running.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int | None = None,
        host: str = "127.0.0.1",
        ready: str | Callable[[str], bool] = "/health",
        deadline: float = 120.0,
        log: Path | str | None = None,
        environment: Mapping[str, str] | None = None,
        stop_grace: float = 10.0,
    ) -> None:
        _check_command(command, port)
        self.host, self.port = host, _reserve(host, port)
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._words = [word.replace("{port}", str(self.port)).replace("{host}", host) for word in command]
        self._ready, self._stop_grace = ready, stop_grace
        self._last_answer = "it has not answered yet"
        self.log = _temporary_log() if log is None else Path(log)
        self._forget_log = weakref.finalize(self, self.log.unlink, missing_ok=True)
        if log is not None:
            self._forget_log.detach()
        self._command = self._start(environment or {})
        self.pid = self._command.pid
        try:
            self._wait_until_ready(deadline)
        except BaseException:
            self._forget_log.detach()
            self.stop()
            raise

    @property
    def alive(self) -> bool:
        """Whether the command still runs."""
        return self._command.poll() is None

    def last_lines(self, n: int = LAST_LINES) -> str:
        """The last `n` lines that the server wrote."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-n:])

    def stop(self) -> None:
        """End it and all that it has started, and wait for that; a second call does nothing."""
        try:
            self._command.stop(self._stop_grace)
        except ServingError as error:
            raise ServerFailed(f"the server {shlex.join(self._words)} would not stop: {error}") from error

    def _start(self, environment: Mapping[str, str]) -> GuardedCommand:
        # A Python server's lines shall be in the log when it is killed.
        variables = {"PYTHONUNBUFFERED": "1", **os.environ, **environment}
        with self.log.open("wb") as output:
            try:
                return GuardedCommand(self._words, output, variables)
            except OSError as error:
                raise ServerFailed(
                    f"{self._words[0]!r} can't be started as a server: {error.strerror}; "
                    "install it, or give the path of the program"
                ) from error

    def _wait_until_ready(self, deadline: float) -> None:
        start, pause = time.monotonic(), SHORTEST_PAUSE
        while True:
            left = start + deadline - time.monotonic()
            ready = left > 0 and self._is_ready(min(left, ANSWER_TIME))
            code = self._command.poll()
            if code is not None:
                raise ServerFailed(
                    f"the server ended with {_exit(code)} after {time.monotonic() - start:.1f} s, before it "
                    f"was ready{self._last_words()}"
                )
            if ready:
                return
            if left <= 0:
                raise ServerFailed(
                    f"the server was not ready within {deadline:g} s ({self._last_answer}) and was stopped; if "
                    f"it needs longer, raise the deadline{self._last_words()}"
                )
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _is_ready(self, patience: float) -> bool:
        try:
            if callable(self._ready):
                return self._ready(self.base_url)
            connection = HTTPConnection(self.host, self.port, timeout=patience)
            try:
                connection.request("GET", self._ready)
                status = connection.getresponse().status
            finally:
                connection.close()
        except (OSError, HTTPException) as error:
            self._last_answer = f"{type(error).__name__} at {self.base_url}"
            return False
        self._last_answer = f"HTTP {status} at {self.base_url}{self._ready}"
        return status == 200

    def _last_words(self) -> str:
        lines = self.last_lines()
        told = f"the end of its log {self.log}:\n{lines}" if lines else f"its log {self.log} is empty"
        return f"\ncommand: {shlex.join(self._words)}\n{told}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _check_command(command: Sequence[str], port: int | None) -> None:
    if isinstance(command, str) or not command:
        raise InvalidSetting(
            f"the server's command is {command!r}; give a list: the program and its arguments, each a string"
        )
    if port is None and not any("{port}" in word for word in command):
        raise InvalidSetting(
            f"the command {shlex.join(command)} would not learn its port; write {{port}} where it belongs, "
            "or say which port it listens on"
        )


def _temporary_log() -> Path:
    number, path = tempfile.mkstemp(prefix="server-", suffix=".log")
    os.close(number)
    return Path(path)


def _reserve(host: str, port: int | None) -> int:
    """A port on which nobody listens: the given one, or any."""
    if port is not None and not 1 <= port <= 65535:
        raise InvalidSetting(f"port {port} is none; they are the integers 1..65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port or 0), family=family) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ServerFailed(f"nothing can listen on port {port} of {host}: {error.strerror}") from error
        raise ServerFailed(
            f"port {port} is taken by {_holder(port)}; stop that, or leave the port out for a free one"
        ) from error


def _holder(port: int | None) -> str:
    """Who listens on a port, as far as the operating system tells."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.pid is not None
            if listens and connection.laddr and connection.laddr.port == port:
                return f"process {connection.pid} ({shlex.join(psutil.Process(connection.pid).cmdline())})"
    return "a process that the operating system does not name to this user"


def _exit(code: int) -> str:
    known = {128 + number: number.name for number in signal.Signals}
    return f"exit code {code}" + (f" ({known[code]})" if code in known else "")
