from __future__ import annotations

import pytest

pytest.register_assert_rewrite("contract")

from tiny_models import save_model  # noqa: E402


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its positions are a table, so a position past the context is an error and not just nonsense."""
    return save_model("gpt2", tmp_path_factory.mktemp("gpt2"))
