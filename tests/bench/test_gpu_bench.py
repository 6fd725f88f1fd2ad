"""The GPU benchmark where there is no GPU: what runs anywhere runs, and the rest is left out by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from servinglib.bench import gpu
from servinglib.bench.gpu import Notes, Options
from servinglib.bench.gpu_watch import GpuWatch, _numbers
from servinglib.bench.recorded import load
from servinglib.cli import app
from servinglib.errors import UnknownName

SMALL = Options("course-tiny", "cpu", quick=True)
NOT_ON_THE_GPU_MACHINE = (
    "psutil",
    "pydantic",
    "rich",
    "scipy",
    "simpy",
    "typer",
    "matplotlib",
    "numba",
    "jinja2",
)


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes.json")


def found(notes: Notes) -> dict:
    return json.loads(notes._path.read_text())["results"]


def child(lines: str):
    """A part that runs these lines of Python in place of its own."""
    start = "import json, sys, time; from pathlib import Path; notes = Path(sys.argv[2])\n"
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


def test_every_part_with_a_limit_is_there():
    from servinglib.bench.gpu_parts import parts

    assert set(parts()) == set(gpu.LIMITS)


def test_a_part_runs_without_the_packages_that_the_gpu_machine_lacks(tmp_path):
    """In a process where importing them fails; Transformers is told the same and does without."""
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({NOT_ON_THE_GPU_MACHINE!r})); "
        "sys.argv[1:] = ['vllm', sys.argv[1], sys.argv[2]]; "
        "import torch, servinglib.bench.gpu, servinglib.bench.gpu_kernels, servinglib.decoder.graphs; "
        "from servinglib.bench.gpu_parts import main; sys.exit(main())"
    )
    path, options = tmp_path / "notes.json", '{"model": "course-tiny", "device": "cpu", "quick": true}'
    ran = subprocess.run([sys.executable, "-c", script, str(path), options], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(path.read_text()) == {"status": "skipped", "error": "needs a GPU", "results": {}}


def test_the_command_runs_a_part_from_end_to_end(tmp_path):
    assert gpu.main(["--out", str(tmp_path), "--parts", "tune,sweep", "--device", "cpu", "--quick",
                     "--model", "course-tiny"]) == 0  # fmt: skip
    run = load(tmp_path / "gpu.json")
    assert (run.parts["tune"]["status"], run.parts["tune"]["error"]) == ("skipped", "needs a GPU")
    four = run.results("sweep")["4"]
    assert four["output_tokens"] == 64
    assert 0 < four["tokens_per_second"] < four["output_tokens"] / four["seconds"] * 1.001
    assert four["step_ms"]["p50"] <= four["step_ms"]["p99"]
    assert four["gpu"] is None


@pytest.mark.parametrize("name", ["nano", "ablation", "policies", "calibrate", "spec", "transformers"])
def test_a_part_finds_figures_on_a_cpu(name, notes):
    from servinglib.bench.gpu_parts import parts

    parts()[name](SMALL, notes)
    assert found(notes)


def test_calibration_writes_down_prefill_steps_and_decode_steps(notes):
    from servinglib.bench.gpu_parts import calibrate

    calibrate(SMALL, notes)
    results = found(notes)
    columns = results.pop("columns")
    rows = [dict(zip(columns, row, strict=True)) for row in results["4 x 16"]]
    assert [row["prefill"] for row in rows] == [64] + [0] * 15
    assert [row["decode"] for row in rows] == [0] + [4] * 15
    assert [row["kv"] for row in rows] == [64 + 4 * i for i in range(16)]


def test_the_kernels_answers_are_compared_by_every_path(notes, monkeypatch):
    from servinglib.bench import gpu_kernels

    gpu_kernels.correct(SMALL, notes)
    assert {each["equal"] for each in found(notes).values()} == {3}
    honest = gpu_kernels._random_model
    monkeypatch.setattr(gpu_kernels, "_random_model", lambda *a: [[t + 1 for t in row] for row in honest(*a)])
    with pytest.raises(AssertionError, match="0 of 3"):
        gpu_kernels.correct(SMALL, notes)


def test_the_workload_is_that_of_nano_vllm():
    from servinglib.bench.gpu_parts import nano_workload

    prompts, outputs = nano_workload()
    assert (len(prompts), sum(map(len, prompts)), sum(outputs)) == (256, 142_827, 133_966)


def test_nothing_is_watched_without_a_gpu_and_cut_off_lines_are_no_samples():
    with GpuWatch("cpu") as watch:
        pass
    assert watch.summary() is None
    assert _numbers("50, 300.5, 1000\n[N/A], 1, 2\n70, 3") == [[50.0, 300.5, 1000.0]]
