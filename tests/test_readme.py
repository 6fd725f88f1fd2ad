"""The READMEs' code is run as it stands there, and is the same in both languages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = PYTHON.findall((ROOT / "README_EN.md").read_text("utf-8"))


def test_both_languages_show_the_same_code() -> None:
    assert len(BLOCKS) >= 2
    assert PYTHON.findall((ROOT / "README.md").read_text("utf-8")) == BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_runs_and_prints_answers(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README", "exec"), {"__name__": "__main__"})
    assert len(capsys.readouterr().out.splitlines()) >= 3
