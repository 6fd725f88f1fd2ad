"""The held-out text is the one that the models' training records tell of."""

from __future__ import annotations

import json
import platform

import pytest

from servinglib.errors import ModelUnavailable
from servinglib.models import held_out
from servinglib.models.loading import find_checkpoint, load_tokenizer

RECORD = json.loads((find_checkpoint("course-tiny") / "training.json").read_text(encoding="utf-8"))


@pytest.mark.skipif(
    platform.python_version() != RECORD["versions"]["python"], reason="another version of the sources"
)
def test_it_is_the_text_that_the_training_run_kept_from_the_models():
    texts, kept = held_out.held_out_texts(), RECORD["corpus"]["held-out"]
    stream = held_out.token_stream(load_tokenizer(find_checkpoint("course-tiny")), texts)
    assert len(texts) == kept["files"]
    assert sum(len(text.encode()) for text in texts.values()) == kept["bytes"]
    assert len(stream) == kept["tokens"]


def test_it_is_a_twentieth_of_the_modules_and_the_same_ones_every_time():
    modules = list(held_out.standard_library())
    chosen = [path for path in modules if held_out.is_held_out(path)]
    assert 0.02 < len(chosen) / len(modules) < 0.1
    assert "sched.py" in chosen
    assert "json/decoder.py" not in chosen


def test_every_text_ends_with_the_end_of_text_token():
    tokenizer = load_tokenizer(find_checkpoint("course-tiny"))
    stream = held_out.token_stream(tokenizer, {"a": "import os", "b": "x = 1"})
    first = tokenizer("import os").input_ids
    assert stream[: len(first) + 1] == [*first, 0]
    assert stream.count(0) == 2
    assert stream[-1] == 0


def test_a_python_without_sources_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(held_out.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ModelUnavailable, match="no sources"):
        held_out.held_out_texts()
