"""Small servers, of which each has one vice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import psutil
import pytest

from servinglib.errors import InvalidSetting, ServerFailed
from servinglib.server import process as process_module
from servinglib.server.process import ServerProcess

PATIENCE = 30.0  # seconds; only a test that fails waits so long

# It says who it is, and what child of its own it has in another session.
SERVER = """
import os, signal, socketserver, subprocess, sys
from http.server import BaseHTTPRequestHandler

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

def bye(*_):
    print("bye")
    sys.exit()

signal.signal(signal.SIGTERM, bye if "polite" in sys.argv else signal.SIG_IGN)
child = subprocess.Popen(["sleep", "120"], start_new_session=True)
print(os.getpid(), child.pid)
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer((sys.argv[1], int(sys.argv[2])), Answer).serve_forever()
"""
COMMAND = [sys.executable, "-c", SERVER, "{host}", "{port}"]
POLITE = [*COMMAND, "polite"]


def shell(script: str) -> list[str]:
    return ["sh", "-c", script, "{port}"]


def family(server: ServerProcess) -> list[psutil.Process]:
    return [psutil.Process(int(word)) for word in server.last_lines().splitlines()[0].split()]


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running()]


def children_here() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = children_here()
    yield
    assert [process for process in children_here() if process not in before] == []


def test_a_server_is_ready_when_the_block_begins_and_gone_when_it_ends():
    with ServerProcess(POLITE) as server:
        with urllib.request.urlopen(f"{server.base_url}/health") as answer:
            assert answer.status == 200
        assert server.base_url == f"http://127.0.0.1:{server.port}"
        members = family(server)
        assert members[0].pid == server.pid
        assert server.alive
    assert not server.alive
    assert running(members) == []
    assert server.last_lines(1) == "bye"
    server.stop()


def test_two_servers_have_two_ports():
    with ServerProcess(POLITE) as first, ServerProcess(POLITE) as second:
        assert first.port != second.port


def test_a_server_listens_on_the_port_that_it_is_given(tmp_path):
    with ServerProcess(POLITE) as first:
        port = first.port
    with ServerProcess(POLITE, port=port, log=tmp_path / "server.log") as again:
        assert again.port == port
    assert (tmp_path / "server.log").read_text().endswith("bye\n")


def test_a_server_that_does_not_heed_sigterm_is_killed_and_its_children_too():
    server = ServerProcess(COMMAND, stop_grace=0.05)
    members = family(server)
    server.stop()
    assert running(members) == []
    assert "bye" not in server.last_lines()


def test_a_server_that_dies_at_the_start_is_quoted():
    with pytest.raises(
        ServerFailed, match=r"exit code 3 .*before it was ready(.*\n)+.*\nline 30$"
    ) as failure:
        ServerProcess(shell("for i in $(seq 30); do echo line $i >&2; done; exit 3"))
    assert "line 11\n" in str(failure.value)
    assert "line 10\n" not in str(failure.value)


def test_a_signal_that_ended_the_server_is_named():
    with pytest.raises(ServerFailed, match=r"exit code 137 \(SIGKILL\)(.*\n)+its log .* is empty"):
        ServerProcess(shell("kill -9 $$"))


def test_a_server_that_hangs_at_the_start_is_stopped_at_the_deadline(tmp_path):
    with pytest.raises(
        ServerFailed, match=r"not ready within 0.5 s \(ConnectionRefused.*(.*\n)+loading"
    ) as failure:
        ServerProcess(shell("echo loading; exec sleep 120"), deadline=0.5, log=tmp_path / "log")
    assert str(tmp_path / "log") in str(failure.value)


def test_a_server_that_accepts_and_says_nothing_is_stopped_at_the_deadline(taken, monkeypatch):
    monkeypatch.setattr(process_module, "_reserve", lambda host, port: taken)
    monkeypatch.setattr(process_module, "ANSWER_TIME", float("inf"))
    with pytest.raises(ServerFailed, match=r"not ready within 0.5 s \(TimeoutError"):
        ServerProcess(shell("exec sleep 120"), deadline=0.5)


def test_a_wrong_path_is_told_by_what_the_server_answered_there(monkeypatch):
    with ServerProcess(POLITE) as other:
        monkeypatch.setattr(process_module, "_reserve", lambda host, port: other.port)
        with pytest.raises(ServerFailed, match=r"not ready within 0.5 s \(HTTP 404 at http.*/ready\)"):
            ServerProcess(shell("exec sleep 120"), ready="/ready", deadline=0.5)


def test_whether_it_is_ready_may_be_asked_in_other_ways():
    asked: list[str] = []

    def ready(url: str) -> bool:
        asked.append(url)
        if len(asked) == 1:
            raise ConnectionResetError
        return len(asked) == 3

    with ServerProcess(shell("exec sleep 120"), ready=ready) as server:
        assert asked == [server.base_url] * 3


def test_a_mistake_in_the_question_leaves_no_server_behind():
    def ready(url: str) -> bool:
        raise KeyError(url)

    with pytest.raises(KeyError):
        ServerProcess(shell("exec sleep 120"), ready=ready)


def test_a_taken_port_is_refused_before_the_start_and_the_holder_named(taken, tmp_path):
    with pytest.raises(ServerFailed, match=rf"port {taken} is taken by process {os.getpid()} \(.*pytest"):
        ServerProcess(COMMAND, port=taken, log=tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_holder_that_the_operating_system_does_not_name_is_no_other_error(taken, monkeypatch):
    def refuse(kind: str) -> Any:
        raise psutil.AccessDenied

    monkeypatch.setattr(process_module.psutil, "net_connections", refuse)
    with pytest.raises(ServerFailed, match=rf"port {taken} is taken by a process that .* does not name"):
        ServerProcess(COMMAND, port=taken)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ServerFailed, match=r"nothing can listen on port 8000 of 192\.0\.2\.1"):
        ServerProcess(COMMAND, host="192.0.2.1", port=8000)


def test_a_program_that_is_not_installed_is_refused():
    with pytest.raises(ServerFailed, match=r"'no-such-server' can't be started .*: No such file"):
        ServerProcess(["no-such-server", "--port", "{port}"])


@pytest.mark.parametrize(
    ("command", "port", "message"),
    [
        ("serve --port {port}", None, "give a list"),
        ([], None, "give a list"),
        (["serve"], None, r"write \{port\} where it belongs"),
        (["serve"], 0, r"1\.\.65535"),
        (["serve"], 65536, r"1\.\.65535"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(command, port, message):
    with pytest.raises(InvalidSetting, match=message):
        ServerProcess(command, port=port)


def test_a_command_keeps_its_braces_and_has_its_variables():
    script = 'echo "$0 $1 $MODEL"; exec sleep 120'
    command = ["sh", "-c", script, '{"port": 1}', "{host}:{port}"]
    environment = {"MODEL": "tiny"}
    with ServerProcess(command, port=None, ready=said, environment=environment) as server:
        assert server.last_lines() == f'{{"port": 1}} 127.0.0.1:{server.port} tiny'


def said(url: str) -> bool:
    """Whether the shell has spoken, which is when it has become `sleep`."""
    return any(process.name() == "sleep" for process in children_here())


def test_a_server_that_dies_later_is_not_alive_and_may_be_stopped():
    server = ServerProcess(COMMAND)
    members = family(server)
    os.kill(server.pid, signal.SIGKILL)
    server._command._guard.wait(PATIENCE)
    assert not server.alive
    assert running(members) == []
    server.stop()


def test_a_temporary_log_goes_with_its_server_unless_the_start_failed():
    with ServerProcess(POLITE) as server:
        log = server.log
    assert log.exists()
    del server
    assert not log.exists()
    with pytest.raises(ServerFailed, match="its log") as failure:
        ServerProcess(shell("exit 3"))
    kept = Path(str(failure.value).partition("its log ")[2].removesuffix(" is empty"))
    assert kept.exists()


def test_a_server_is_killed_with_its_children_when_its_owner_is_killed(tmp_path):
    script = f"""
import signal
from servinglib.server.process import ServerProcess
server = ServerProcess({COMMAND}, log={str(tmp_path / "log")!r})
print(server.last_lines().splitlines()[0], flush=True)
signal.pause()
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    words = cast("IO[bytes]", owner.stdout).readline().split()
    members = [psutil.Process(int(word)) for word in words]
    assert len(members) == 2
    owner.kill()
    owner.communicate()
    assert psutil.wait_procs(members, timeout=PATIENCE)[1] == []
