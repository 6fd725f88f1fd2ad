"""`servinglib serve` as a process: it opens, answers, and closes when it is told to."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from servinglib.cli import main

COMMAND = [sys.executable, "-c", "from servinglib.cli import main; main()", "serve"]


def wait_until_ready(client: httpx.Client) -> None:
    end = time.monotonic() + 60
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < end, "it did not become ready within a minute"


def test_it_serves_until_sigterm_and_lets_a_running_answer_end():
    options = ["--model", "course-tiny", "--port", "0"]
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            name, _, address, *_ = process.stdout.readline().replace(";", "").split()
            assert name == "course-tiny"
            with httpx.Client(base_url=address, timeout=60) as client:
                wait_until_ready(client)
                body = {"prompt": "def f(x):", "max_tokens": 300, "ignore_eos": True, "stream": True}
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    events = (line for line in answer.iter_lines() if line)
                    next(events)
                    process.send_signal(signal.SIGTERM)
                    rest = list(events)
            assert (len(rest), rest[-1]) == (300, "data: [DONE]")
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_a_port_that_is_taken_is_an_error_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["servinglib", "serve", "--model", "no such model", "--port", port])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    assert f"can't listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_an_engine_that_cannot_be_served_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = ["--engine", "simulated", "--model", "simulated", "--port", "0"]
    monkeypatch.setattr(sys, "argv", ["servinglib", "serve", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "can't be served over HTTP" in capsys.readouterr().err
