"""Each family writes into one pipe: its end is read when the last process that held it has gone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, cast

import psutil
import pytest

from servinglib import process_guard
from servinglib.errors import ServingError
from servinglib.process_family import Family
from servinglib.process_guard import Guard, GuardedCommand

PATIENCE = 30.0  # seconds; only a test that fails waits so long
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")

# A parent and a child in a session of its own; neither heeds SIGTERM. They say who they are.
FAMILY = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "120"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
"""
WAITS = "signal.pause()"
COMMAND = [sys.executable, "-c", FAMILY + WAITS]


class Pipe:
    """The family writes to `inlet`, and `words` and `rest` read it."""

    def __init__(self) -> None:
        ends = os.pipe()
        self._outlet, self.inlet = os.fdopen(ends[0], "rb", buffering=0), os.fdopen(ends[1], "wb")

    def words(self) -> list[str]:
        return self._outlet.readline().decode().split()

    def rest(self) -> str:
        """What is written until all writers have gone."""
        self.inlet.close()
        heard = [b"..."]
        while heard[-1]:
            assert select.select([self._outlet], [], [], PATIENCE)[0], "somebody lives and holds the pipe"
            heard.append(os.read(self._outlet.fileno(), 4096))
        return b"".join(heard[1:]).decode()

    def close(self) -> None:
        self.inlet.close()
        self._outlet.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def strays() -> Iterator[list[psutil.Process]]:
    """Processes that only a failing test leaves behind."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def named(words: Iterable[str | bytes]) -> list[psutil.Process]:
    """Those of the processes that have not gone already."""
    return [psutil.Process(int(word)) for word in words if psutil.pid_exists(int(word))]


def shell(script: str, pipe: Pipe) -> GuardedCommand:
    return GuardedCommand(["sh", "-c", script], pipe.inlet)


def started_family(
    pipe: Pipe, strays: list[psutil.Process]
) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    parent = subprocess.Popen(COMMAND, stdout=pipe.inlet)
    strays += named(pipe.words())
    return parent, strays[-1]


def owner_of_a_family(script: str, strays: list[psutil.Process]) -> subprocess.Popen[bytes]:
    """A process that runs `script`, with the family's command as its argument, and never ends by itself.

    What it prints last, and what the family prints, it has done when this returns.
    """
    words = [sys.executable, "-c", f"import os, signal, subprocess, sys\n{script}\n{WAITS}", *COMMAND]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = [cast("IO[bytes]", owner.stdout).readline() for _ in range(2)]
    said = b" ".join(lines).split()
    assert len(said) == 3, lines
    strays += named(said)
    return owner


def read_until_all_are_gone(owner: subprocess.Popen[bytes]) -> bytes:
    return owner.communicate(timeout=PATIENCE)[0]


def test_a_command_runs_with_its_output_and_passes_its_exit_code_on(pipe):
    command = shell("echo hello; echo sorry >&2; exit 3", pipe)
    assert pipe.rest() == "hello\nsorry\n"
    command.stop(PATIENCE)
    assert command.poll() == 3


def test_the_guard_is_a_program_that_any_shell_can_run():
    words = [sys.executable, "-m", "servinglib.process_guard", "sh", "-c", "echo hello; exit 3"]
    piped = subprocess.PIPE
    with subprocess.Popen(words, stdin=piped, stdout=piped, stderr=piped) as guard:
        assert guard.wait(PATIENCE) == 3
        said, written = (cast("IO[bytes]", outlet).read() for outlet in (guard.stdout, guard.stderr))
    assert said.startswith(b"started ")
    assert written == b"hello\n"


def test_a_command_that_a_signal_ends_tells_which(pipe):
    command = shell("kill -9 $$", pipe)
    assert pipe.rest() == ""
    command.stop(PATIENCE)
    assert command.poll() == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_is_an_error_at_once(pipe):
    with pytest.raises(FileNotFoundError, match="no-such-server"):
        GuardedCommand(["no-such-server"], pipe.inlet)
    assert pipe.rest() == ""


def test_a_guard_that_cannot_work_is_an_error(pipe):
    with pytest.raises(ServingError, match=r"ended with exit code 1 before it was at work"):
        GuardedCommand(["true"], pipe.inlet, {"PYTHONHOME": "/nowhere"})


def test_a_command_has_the_environment_that_it_is_given(pipe):
    GuardedCommand(["sh", "-c", "echo $MODEL"], pipe.inlet, {**os.environ, "MODEL": "tiny"}).stop(PATIENCE)
    assert pipe.rest() == "tiny\n"


def test_a_command_may_end_in_good_order(pipe):
    command = shell("trap 'echo bye; exit 0' TERM; echo here; while :; do sleep 0.01; done", pipe)
    assert pipe.words() == ["here"]
    command.stop(PATIENCE)
    command.stop(PATIENCE)
    assert (pipe.rest(), command.poll()) == ("bye\n", 0)


def test_who_does_not_heed_the_order_to_stop_is_killed_with_all_its_family(pipe, strays):
    command = GuardedCommand(COMMAND, pipe.inlet)
    strays += named(pipe.words())
    assert strays[0].pid == command.pid
    command.stop(0.01)
    assert pipe.rest() == ""
    assert command.poll() == 128 + signal.SIGKILL
    assert not any(process.is_running() for process in strays)  # not even as a zombie


@only_linux
def test_orphans_that_a_command_leaves_behind_are_killed_when_it_ends(pipe, strays):
    command = GuardedCommand([sys.executable, "-c", FAMILY], pipe.inlet)
    strays += named(pipe.words())
    assert pipe.rest() == ""
    command.stop(PATIENCE)
    assert command.poll() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_guard_stops_the_command(pipe, number):
    command = shell("trap 'echo bye; exit 5' TERM; echo here; while :; do sleep 0.01; done", pipe)
    pipe.words()
    os.kill(command._guard.pid, number)
    assert pipe.rest() == "bye\n"
    command.stop(PATIENCE)
    assert command.poll() == 5


@only_linux
def test_a_command_does_not_outlive_a_guard_that_is_killed(pipe):
    command = shell("echo here; exec sleep 120", pipe)
    pipe.words()
    command._guard.kill()
    assert pipe.rest() == ""
    command.stop(PATIENCE)
    assert command.poll() == -signal.SIGKILL


def test_whoever_cannot_be_ended_is_named(pipe, monkeypatch):
    monkeypatch.setattr(process_guard, "KILL_PATIENCE", 0.05)
    command = shell("exec sleep 120", pipe)
    os.kill(command._guard.pid, signal.SIGSTOP)  # a guard that gets nothing done
    with pytest.raises(ServingError, match=rf"processes \[{command.pid}\] are still there"):
        command.stop(0.0)
    os.kill(command._guard.pid, signal.SIGCONT)
    assert pipe.rest() == ""
    command.stop(PATIENCE)


STARTS = """
from servinglib.process_guard import GuardedCommand
command = GuardedCommand(sys.argv[1:], sys.stdout.buffer)
"""
WATCHES = """
from servinglib.process_guard import Guard
guard, engine = Guard(), subprocess.Popen(sys.argv[1:])
guard.watch(engine.pid)
"""
PRINTS = "print(os.getpid(), flush=True)"


def test_a_command_is_killed_when_its_owner_is(strays):
    owner = owner_of_a_family(STARTS + PRINTS, strays)
    owner.kill()
    assert read_until_all_are_gone(owner) == b""
    assert not any(process.is_running() for process in strays)


def test_a_fork_that_holds_the_pipe_open_does_not_hide_the_owners_death(strays):
    forks = """
fork = os.fork()
if fork == 0:
    os.close(1), os.close(2)
    signal.pause()
print(fork, flush=True)
"""
    owner = owner_of_a_family(STARTS + forks, strays)
    owner.kill()
    assert read_until_all_are_gone(owner) == b""


def test_a_family_that_a_library_has_started_is_killed_when_its_owner_is(strays):
    owner = owner_of_a_family(WATCHES + PRINTS, strays)
    owner.kill()
    assert read_until_all_are_gone(owner) == b""


def test_a_watcher_that_is_asked_to_end_goes_on(strays):
    owner = owner_of_a_family(WATCHES + PRINTS, strays)
    [watcher] = [p for p in psutil.Process(owner.pid).children() if "servinglib.process_guard" in p.cmdline()]
    watcher.terminate()
    owner.kill()
    assert read_until_all_are_gone(owner) == b""


def test_after_an_orderly_end_a_guard_kills_nobody(pipe, strays):
    parent, child = started_family(pipe, strays)
    guard = Guard()
    guard.watch(parent.pid)
    guard.close()
    guard.close()
    assert parent.poll() is None
    assert child.is_running()
    family_of(parent.pid).kill()
    assert parent.wait(PATIENCE) == -signal.SIGKILL


def test_a_family_remembers_an_orphan_that_it_has_seen_with_its_parent(pipe, strays):
    parent, child = started_family(pipe, strays)
    family = family_of(parent.pid)
    assert {process.pid for process in family.look()} == {parent.pid, child.pid}
    parent.kill()
    parent.wait(PATIENCE)
    assert family.look() == [child]
    family.kill()
    assert (pipe.rest(), family.look()) == ("", [])


def test_who_is_spared_lives_though_the_family_is_killed(pipe, strays):
    parent, _ = started_family(pipe, strays)
    family_of(parent.pid, parent.pid).kill()
    assert parent.poll() is None
    parent.kill()
    parent.wait(PATIENCE)
    assert pipe.rest() == ""


def test_a_process_that_has_gone_is_nobodys_family(pipe, strays):
    parent, _ = started_family(pipe, strays)
    family_of(parent.pid).kill()
    parent.wait(PATIENCE)
    assert family_of(parent.pid).look() == []


def family_of(pid: int, *spared: int) -> Family:
    family = Family(*spared)
    family.add(pid)
    return family
