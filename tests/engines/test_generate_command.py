from __future__ import annotations

import sys
from pathlib import Path

import pytest

from servinglib.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["servinglib", "generate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def simulated(*arguments: str) -> list[str]:
    return ["hello", "--engine", "simulated", "--model", "simulated", "--max-tokens", "12", *arguments]


def test_streamed_or_not_the_command_prints_the_same_answer(monkeypatch, capsys: pytest.CaptureFixture[str]):
    assert run(monkeypatch, *simulated("--stream")) == 0
    streamed = capsys.readouterr().out
    assert run(monkeypatch, *simulated("--no-stream")) == 0
    assert capsys.readouterr().out == streamed
    assert len(streamed.strip()) > 3


def test_the_options_reach_the_engine(monkeypatch, tiny_qwen3: str, capsys: pytest.CaptureFixture[str]):
    options = ["hello", "--model", tiny_qwen3, "--max-tokens", "9", "--no-stream"]
    sampled = [*options, "--temperature", "1", "--top-k", "30", "--top-p", "0.9", "--seed"]
    answers = []
    for arguments in (options, [*sampled, "1"], [*sampled, "1"], [*sampled, "2"]):
        assert run(monkeypatch, *arguments) == 0
        answers.append(capsys.readouterr().out)
    assert answers[1] == answers[2]
    assert len(set(answers)) == 3
    stop = answers[0][2:4]
    assert run(monkeypatch, *options, "--stop", stop) == 0
    assert capsys.readouterr().out.strip("\n") == answers[0][: answers[0].index(stop)].strip("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hi", "--engine", "vlm"], "unknown engine 'vlm' from --engine (did you mean 'vllm'?)"),
        (simulated("--set", "context_lenght=9"), "did you mean 'context_length'?"),
        (simulated("--set", "context_length=9"), "but the context holds 9"),
        (simulated("--config", "no/such.yaml"), "the configuration no/such.yaml can't be read"),
        (simulated("--temperature", "1"), "can't sample"),
        (["hi", "--max-tokens", "0"], "max_tokens=0 must be at least 1"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(monkeypatch, capsys, arguments: list[str], message: str):
    assert run(monkeypatch, *arguments) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]


def test_a_file_chooses_engine_model_and_settings_and_flags_change_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "serving.yaml"
    file.write_text("engine: simulated\nsimulated: {a: 0.0001, b: 0, d: 0, seed: 1}\n")
    answers = []
    for arguments in ([], ["--set", "seed=5"], ["--set", "simulated.seed=1"]):
        assert run(monkeypatch, "hello", "--config", str(file), "--max-tokens", "30", *arguments) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[2] != answers[1]
