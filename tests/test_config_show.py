"""`servinglib config show` tells what is in force and who said it, quickly, and no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from servinglib.cli import app
from servinglib.engines.registry import ENGINES

TEXT = """\
engine: vllm
fallback: transformers
speculative: prompt-lookup
unsupported: warn
vllm: {max_model_len: 1024}
openai: {api: chat}
"""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes = ("SERVINGLIB_", *(f"{name.upper()}_" for name in ENGINES))
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "serving.yaml").write_text(TEXT)
    return str(tmp_path / "serving.yaml")


def shown(*arguments: str) -> dict:
    done = CliRunner().invoke(app, ["config", "show", "--json", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_every_setting_is_shown_with_the_place_that_said_it(file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_DTYPE", "float32")
    settings = shown("--config", file, "--set", "max_num_seqs=4", "--model", "course-tiny")["settings"]
    expected = {
        "engine": ("vllm", f"{file}:1"),
        "model": ("course-tiny", "--model"),
        "vllm.max_model_len": (1024, f"{file}:5"),
        "vllm.dtype": ("float32", "$VLLM_DTYPE"),
        "vllm.max_num_seqs": (4, "--set max_num_seqs"),
        "vllm.speculative": ("prompt-lookup", f"{file}:3"),
        "vllm.enforce_eager": (False, "default"),
        "transformers.dtype": ("auto", "default"),
    }
    assert {key: tuple(settings[key].values()) for key in expected} == expected
    assert not [key for key in settings if key.startswith("openai.")]


def test_what_is_not_heard_not_fulfilled_or_not_installed_is_told(file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setitem(ENGINES, "vllm", replace(ENGINES["vllm"], package="no_such_package"))
    assert shown("--config", file)["remarks"] == [
        "the vllm engine is not installed here: make vllm",
        f"speculative='prompt-lookup' from {file}:3: the transformers engine can't speculate; it will decode plainly",
        "not used, since openai is not chosen: its section in the file",
        "not used, since openai is not chosen: $OPENAI_API_KEY",
    ]


def test_secrets_are_stars_in_both_forms(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    arguments = ["--engine", "openai", "--set", "base_url=http://127.0.0.1:9/v1"]
    assert shown(*arguments)["settings"]["openai.api_key"] == {"value": "***", "from": "$OPENAI_API_KEY"}
    table = CliRunner().invoke(app, ["config", "show", *arguments]).output
    assert "sk-secret" not in table
    assert "***" in table


def test_the_table_needs_no_torch_and_no_engine(file: str):
    code = (
        f"import sys; sys.argv = ['servinglib', 'config', 'show', '--config', {file!r}]\n"
        "from servinglib.cli import app\n"
        "app(standalone_mode=False)\n"
        "sys.exit(str({'torch', 'transformers', 'vllm', 'fastapi'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "prompt-lookup" in done.stdout
