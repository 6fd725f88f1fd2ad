"""Engines on a stand-in for SGLang."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_sglang import USUAL, Script
from tiny_models import save_model

from servinglib.engines.sglang_engine import SGLangEngine


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("qwen3", tmp_path_factory.mktemp("sglang"), max_position_embeddings=4096)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setitem(sys.modules, "sglang", script.module())
    return script


@pytest.fixture
def load(script: Script, model: str) -> Iterator[Callable[..., SGLangEngine]]:
    engines: list[SGLangEngine] = []

    def load(**options: Any) -> SGLangEngine:
        engines.append(SGLangEngine.load(model, **{**USUAL, **options}))
        return engines[-1]

    yield load
    for engine in engines:
        engine.shutdown()
