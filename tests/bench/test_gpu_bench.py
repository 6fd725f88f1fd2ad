"""The run of the GPU benchmark: each part in a process of its own, its figures on disk, its end told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from servinglib.bench import gpu
from servinglib.bench.gpu import Notes, Options
from servinglib.bench.gpu_bandwidth import nominal_bandwidth
from servinglib.bench.recorded import load
from servinglib.cli import app
from servinglib.errors import UnknownName

SMALL = Options("course-tiny", "cpu", quick=True)


def child(lines: str):
    """A part that runs these lines of Python in place of its own."""
    start = "import json, os, sys, time; from pathlib import Path; notes = Path(sys.argv[2])\n"
    return [sys.executable, "-c", start + lines]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch):
    """Parts by name, as lines of Python."""
    real, scripts = subprocess.Popen, {}

    def popen(command, **options):
        name = command[3]
        return real([*child(scripts[name]), *command[3:]], **options)

    monkeypatch.setattr(gpu.subprocess, "Popen", popen)
    return scripts


def test_a_part_that_fails_leaves_its_traceback_and_the_others_go_on(tmp_path, parts):
    parts["correct"] = "raise ValueError('no such luck')"
    parts["sweep"] = "notes.write_text(json.dumps({'status': 'done', 'results': {'a': 1}}))"
    run = load(gpu.run(tmp_path, SMALL, ["correct", "sweep"]))
    assert run.parts["correct"]["status"] == "failed"
    assert "ValueError: no such luck" in run.parts["correct"]["error"]
    assert run.results("sweep") == {"a": 1}
    assert run.birth["seed"] == 0


def test_a_part_that_hangs_is_stopped_and_keeps_what_it_found(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(gpu, "LIMITS", {"sweep": 3})
    parts["sweep"] = (
        "notes.write_text(json.dumps({'status': 'running', 'results': {'a': 1}})); time.sleep(600)"
    )
    part = load(gpu.run(tmp_path, SMALL, ["sweep"])).parts["sweep"]
    assert (part["status"], part["results"]) == ("stopped", {"a": 1})
    assert "limit of 3 s" in part["error"]
    assert part["seconds"] < 60


def test_a_part_that_says_nothing_of_its_end_has_failed_and_the_exit_code_is_told(tmp_path, parts):
    parts["correct"] = "os._exit(7)"
    parts["nano"] = "os.write(1, b'ended in \\xe4'); os._exit(7)"  # half a character, as when it is killed
    parts["sweep"] = "notes.write_text(json.dumps({'status': 'running', 'results': {}})); os._exit(0)"
    run = load(gpu.run(tmp_path, SMALL, ["correct", "nano", "sweep"]))
    assert {each["status"] for each in run.parts.values()} == {"failed"}
    assert run.parts["correct"]["error"] == "ended with exit code 7"
    assert run.parts["nano"]["error"].startswith("ended in ")
    assert run.parts["sweep"]["error"] == "ended with exit code 0"


def test_a_part_stopped_while_it_writes_keeps_what_it_found_before(tmp_path, monkeypatch):
    notes = Notes(tmp_path / "notes.json")
    notes.note("a", 1)
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text: write(path, text[:9]) and sys.exit("killed"))
    with pytest.raises(SystemExit):
        notes.note("b", 2)
    assert json.loads((tmp_path / "notes.json").read_text())["results"] == {"a": 1}


def test_a_part_has_a_process_group_to_be_ended_by_and_leaves_our_session_to_nobody(tmp_path, parts):
    told = "{'group': os.getpgid(0) == os.getpid(), 'session': os.getsid(0)}"
    parts["sweep"] = f"notes.write_text(json.dumps({{'status': 'done', 'results': {told}}}))"
    run = load(gpu.run(tmp_path, SMALL, ["sweep"]))
    assert run.results("sweep") == {"group": True, "session": os.getsid(0)}


def test_a_part_that_is_to_run_on_a_cpu_sees_no_gpu(tmp_path, parts, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    told = "{'seen': os.environ['CUDA_VISIBLE_DEVICES']}"
    parts["sweep"] = f"notes.write_text(json.dumps({{'status': 'done', 'results': {told}}}))"
    assert load(gpu.run(tmp_path, SMALL, ["sweep"])).results("sweep") == {"seen": ""}
    monkeypatch.setattr(gpu, "birth_certificate", lambda *_: {"device": "cuda"})
    assert load(gpu.run(tmp_path, Options(), ["sweep"])).results("sweep") == {"seen": "3"}


def test_the_record_of_an_earlier_run_is_gone_before_anything_is_measured(tmp_path):
    (tmp_path / "gpu.json").write_text("of last year")
    assert load(gpu.run(tmp_path, SMALL, [])).parts == {}


def test_the_record_is_whole_after_each_part(tmp_path, parts):
    parts["sweep"] = "notes.write_text(json.dumps({'status': 'done', 'results': {}}))"
    parts["nano"] = f"print(Path({str(tmp_path)!r}, 'gpu.json').read_text()); sys.exit(1)"
    run = load(gpu.run(tmp_path, SMALL, ["sweep", "nano"]))
    assert '"status": "done"' in run.parts["nano"]["error"]


def test_parts_that_have_not_begun_when_time_is_over_are_left_out_by_name(tmp_path, parts):
    told: list[str] = []
    gpu.run(tmp_path, SMALL, ["sweep"], seconds=0.5, tell=told.append)
    assert load(tmp_path / "gpu.json").parts["sweep"]["status"] == "skipped"
    assert told == ["sweep: skipped (0 s) the 0 seconds for all parts were over"]
    gpu.run(tmp_path, SMALL, ["sweep"], seconds=0)
    assert load(tmp_path / "gpu.json").parts["sweep"]["status"] == "skipped"


def test_the_seconds_for_all_parts_count_from_the_call(tmp_path, parts, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(gpu, "birth_certificate", lambda *_: now.__setitem__(0, 50.0) or {})
    gpu.run(tmp_path, SMALL, ["sweep"], seconds=50)
    assert load(tmp_path / "gpu.json").parts["sweep"]["status"] == "skipped"


def test_what_is_not_known_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UnknownName, match="sweeep"):
        gpu.run(tmp_path / "new", SMALL, ["sweep", "sweeep"])
    with pytest.raises(UnknownName, match="tpu"):
        gpu.run(tmp_path / "new", Options(device="tpu"), ["sweep"])
    assert not (tmp_path / "new").exists()
    assert gpu.main(["--out", str(tmp_path), "--parts", "nothing"]) == 2


def test_the_command_line_tells_how_each_part_ended(tmp_path, parts):
    parts["sweep"] = "notes.write_text(json.dumps({'status': 'done', 'results': {}}))"
    command = ["bench", "gpu", "--out", str(tmp_path), "--parts", "sweep", "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.output.splitlines()[0].startswith("sweep: done")
    assert result.output.endswith("gpu.json\n")


def test_a_data_sheet_is_that_of_the_gpu_at_hand(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert nominal_bandwidth() == 4.8e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T4")
    assert nominal_bandwidth() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert nominal_bandwidth() is None
