"""The continuous-batching engine passes what every engine must."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
from contract import EngineContract, Loader
from tiny_models import save_model

from servinglib.engines.base import Engine
from servinglib.engines.continuous.engine import ContinuousEngine


class TestContinuousEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def load(cls, tmp_path_factory: pytest.TempPathFactory) -> Loader:
        # A context so long that an answer outlasts every test that means to interrupt it.
        model = save_model("qwen3", tmp_path_factory.mktemp("long"), max_position_embeddings=4096)
        usual = {"device": "cpu", "dtype": "float32", "threads": 1, "kv_cache_memory": "16MiB"}
        return lambda **options: ContinuousEngine.load(model, **{**usual, **options})

    def decode(self, engine: Engine, token_ids: Sequence[int]) -> str:
        tokenizer = cast("ContinuousEngine", engine)._tokenizer
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))
