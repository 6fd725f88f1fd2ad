"""A recorded run is opened only as it was sealed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from servinglib.bench.recorded import load, write
from servinglib.errors import InvalidSetting

BIRTH = {
    "date": "2026-11-21T10:00:00+00:00",
    "machine": {"cpu": "A processor", "gpu": {"name": "A GPU"}},
    "versions": {"torch": "2.13.0"},
}
PARTS = {"sweep": {"status": "done", "results": {"1": 2.5}}, "vllm": {"status": "skipped", "results": {}}}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    write(path, {"kind": "gpu", "birth": BIRTH, "settings": {"quick": True}, "parts": PARTS})
    return path


def test_what_was_written_is_read_again(record):
    run = load(record)
    assert (run.kind, run.birth, run.settings, run.parts) == ("gpu", BIRTH, {"quick": True}, PARTS)
    assert run.label == "A GPU, 2026-11-21, torch 2.13.0"
    assert run.results("sweep") == {"1": 2.5}


def test_a_run_without_a_gpu_is_known_by_its_processor(record):
    write(record, {"kind": "gpu", "birth": {**BIRTH, "machine": {"cpu": "A processor"}}, "parts": {}})
    assert load(record).label == "A processor, 2026-11-21, torch 2.13.0"


def test_a_layout_of_its_own_does_not_break_the_seal(record):
    content = json.loads(record.read_text())
    record.write_text(json.dumps(dict(reversed(content.items())), indent=4))
    assert load(record).kind == "gpu"


def test_a_figure_that_was_changed_breaks_the_seal(record):
    record.write_text(record.read_text().replace("2.5", "3.5"))
    with pytest.raises(InvalidSetting, match="changed after it was recorded"):
        load(record)


def test_a_part_that_did_not_come_to_its_end_has_no_results(record):
    with pytest.raises(InvalidSetting, match=r"no results of 'vllm'; it has those of \['sweep'\]"):
        load(record).results("vllm")


def test_other_schemas_and_other_files_are_refused_by_name(record):
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "schema": "servinglib.recorded/99"}))
    with pytest.raises(InvalidSetting, match="recorded/99"):
        load(record)
    del content["birth"]
    record.write_text(json.dumps(content))
    with pytest.raises(InvalidSetting, match=r"lacks \['birth'\]"):
        load(record)
    for text in ("[]", "no json"):
        record.write_text(text)
        with pytest.raises(InvalidSetting, match=r"run\.json"):
            load(record)
    with pytest.raises(InvalidSetting, match="No such file"):
        load(record.with_name("none.json"))
