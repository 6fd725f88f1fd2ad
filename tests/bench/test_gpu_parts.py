"""The parts of the GPU benchmark where there is no GPU: what runs anywhere runs, and the rest is left out."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from servinglib.bench import gpu, gpu_anatomy, gpu_correct, gpu_kernels, gpu_speed
from servinglib.bench.gpu import Notes, Options, Skip
from servinglib.bench.gpu_figures import Run, answer, loaded, requests
from servinglib.bench.gpu_parts import PARTS
from servinglib.bench.recorded import load
from servinglib.engines.continuous import statistics
from servinglib.engines.continuous.statistics import StepRecord
from servinglib.errors import InvalidSetting

SMALL = Options("course-tiny", "cpu", quick=True)
DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
NOT_ON_THE_GPU_MACHINE = (
    "psutil",
    "pynvml",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "simpy",
    "typer",
    "matplotlib",
    "numba",
    "jinja2",
)


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes.json")


def found(notes: Notes) -> dict[str, Any]:
    return json.loads(notes._path.read_text())["results"]


def step(**counts: int) -> StepRecord:
    names = StepRecord.__dataclass_fields__
    return StepRecord(**{name: counts.get(name, 0) for name in names})


def test_every_part_with_a_limit_is_there():
    assert list(PARTS) == list(gpu.LIMITS)


def test_parts_run_without_the_packages_that_the_gpu_machine_lacks(tmp_path):
    """In a process where importing them fails; Transformers is told the same and does without."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_ON_THE_GPU_MACHINE!r}))
import servinglib.bench.gpu, servinglib.decoder.graphs, servinglib.engines.continuous.loading
from servinglib.bench.gpu_parts import main

def run(part):
    sys.argv[1:] = [part, part + ".json", '{{"model": "course-tiny", "device": "cpu", "quick": true}}']
    main()

run("vllm")
del sys.modules["psutil"]  # a CPU's free memory is asked of it, a GPU's of torch
run("calibrate")
run("transformers")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    told = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert told["vllm"] == {"status": "skipped", "error": "needs a GPU", "results": {}}
    assert told["calibrate"]["status"] == told["transformers"]["status"] == "done"


def test_the_command_runs_a_part_from_end_to_end(tmp_path):
    assert gpu.main(["--out", str(tmp_path), "--parts", "tune,sweep", "--device", "cpu", "--quick",
                     "--model", "course-tiny"]) == 0  # fmt: skip
    run = load(tmp_path / "gpu.json")
    assert (run.parts["tune"]["status"], run.parts["tune"]["error"]) == ("skipped", "needs a GPU")
    four = run.results("sweep")["4"]
    assert four["output_tokens"] == 64
    assert 0 < four["tokens_per_second"] < four["output_tokens"] / four["seconds"] * 1.001
    assert four["step_ms"]["p50"] <= four["step_ms"]["p99"]
    assert four["share_of_nominal_roofline"] is None  # a CPU is in no data sheet of a GPU
    assert not any(each["visible"] for each in four["gpu_monitor"]["gpus"])
    assert four["joules_per_token"] is None


@pytest.mark.parametrize("name", ["nano", "ablation", "spec"])
def test_a_part_finds_figures_on_a_cpu(name, notes):
    PARTS[name](SMALL, notes)
    assert found(notes)


def test_tuning_is_left_out_without_a_gpu_also_where_there_is_no_triton(notes, monkeypatch):
    for module in ("triton", "triton.runtime.errors", "servinglib.decoder.kernels"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Skip, match="needs a GPU"):
        gpu_kernels.tune(SMALL, notes)


def test_calibration_writes_down_prefill_steps_and_decode_steps(notes):
    gpu_anatomy.calibrate(SMALL, notes)
    results = found(notes)
    columns = results.pop("columns")
    rows = [dict(zip(columns, row, strict=True)) for row in results["4 x 16"]]
    assert [row["prefill"] for row in rows] == [64] + [0] * 15
    assert [row["decode"] for row in rows] == [0] + [4] * 15
    assert [row["kv"] for row in rows] == [64 + 4 * i for i in range(16)]


def test_the_warm_up_of_policies_leaves_none_of_their_prompts_in_the_cache(notes):
    gpu_anatomy.policies(SMALL, notes)
    prompts = np.random.default_rng(0).integers(16, 256, 8).sum()
    assert {each["prompt_tokens_computed"] for each in found(notes).values()} == {prompts}


def test_a_batch_comes_by_every_size_before_it_is_measured():
    prompts, _ = gpu_speed.nano_workload(quick=True)
    with loaded(SMALL, max_num_seqs=8) as engine:
        steps = gpu_speed.shrink(engine, prompts, 0.6).steps
    assert {s.decode_tokens for s in steps if not s.prefill_tokens} == {1, 2, 3}


def test_what_is_profiled_is_decoding():
    with loaded(SMALL, max_num_seqs=2, context_length=600) as engine:
        run = answer(engine, gpu_anatomy.decoding(engine, 2, 5))
    assert [s.prefill_tokens for s in run.steps] == [2, 0, 0, 0, 0]


def test_acceptance_is_that_of_the_run_alone():
    run = Run([], [step(drafted=4, accepted=1), step(), step(drafted=4, accepted=2)], 1.0)
    assert gpu_anatomy.acceptance(run) == 3 / 8
    assert gpu_anatomy.acceptance(Run([], [step()], 1.0)) is None


def test_a_run_of_which_the_engine_has_forgotten_steps_has_no_figures(monkeypatch):
    monkeypatch.setattr(statistics, "STEPS_KEPT", 4)
    with loaded(SMALL) as engine:
        assert len(answer(engine, requests([[1, 2, 3]], [4], "a")).steps) == 4
        with pytest.raises(InvalidSetting, match="more than the 4 steps that the engine keeps"):
            answer(engine, requests([[1, 2, 3]], [5], "b"))


def test_vllm_is_asked_for_what_the_engine_is_asked_for(notes, monkeypatch):
    llm = SimpleNamespace(settings={}, generate=lambda prompts, params, use_tqdm: None)
    library: Any = ModuleType("vllm")
    library.__spec__ = ModuleSpec("vllm", None)
    library.LLM = lambda folder, **settings: llm.settings.update(settings) or llm
    library.SamplingParams = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", library)
    gpu_speed.vllm(Options("course-tiny", "cuda", quick=True), notes)
    assert llm.settings["enable_prefix_caching"] is False  # or the warm-up's prompts would be found
    assert set(found(notes)) == {"8", "3"}


def test_the_engines_answers_are_compared_by_every_path(notes, monkeypatch):
    gpu_correct.correct(SMALL, notes)
    assert {each["equal"] for each in found(notes).values()} == {3}
    honest = gpu_correct._random_model
    monkeypatch.setattr(gpu_correct, "_random_model", lambda *a: [[t + 1 for t in row] for row in honest(*a)])
    with pytest.raises(AssertionError, match="0 of 3"):
        gpu_correct.correct(SMALL, notes)


def test_the_kernels_are_compared_with_plain_attention_and_a_nan_is_no_agreement(notes, monkeypatch):
    from servinglib.decoder import kernels

    monkeypatch.setattr(gpu_kernels, "HEADS", 4)
    monkeypatch.setattr(gpu_kernels, "KV_HEADS", 2)
    case = gpu_kernels.Case((3, 17, 0), (3, 5, 0), DEVICE, torch.float32)
    assert gpu_kernels.check_kernels(notes, case) == []
    [errors] = found(notes).values()
    assert set(errors) == {"decode, splits None", "decode, splits 1", "decode, splits 16", "extend"}
    assert max(errors.values()) < 1e-5
    honest = kernels.decode_attention

    def broken(query, *rest, num_splits):
        out = honest(query, *rest, num_splits=num_splits)
        out[1] = math.nan if num_splits == 1 else out[1]
        return out

    monkeypatch.setattr(kernels, "decode_attention", broken)
    assert gpu_kernels.check_kernels(notes, case) == ["decode, splits 1: relative error nan"]


def test_the_workload_is_that_of_nano_vllm():
    prompts, outputs = gpu_speed.nano_workload()
    assert (len(prompts), sum(map(len, prompts)), sum(outputs)) == (256, 142_827, 133_966)
