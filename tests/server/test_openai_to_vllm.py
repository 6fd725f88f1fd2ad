"""The client engine in front of vLLM's own server passes what every engine must, over a real socket."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import cast

import pytest

pytest.register_assert_rewrite("engines.contract")

from engines.contract import EngineContract, Loader  # noqa: E402
from tiny_models import save_model  # noqa: E402

from servinglib.engines.base import Engine  # noqa: E402
from servinglib.engines.openai_engine import OpenAIEngine  # noqa: E402
from servinglib.server.process import ServerProcess  # noqa: E402

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (make vllm)")
SERVER = "-m vllm.entrypoints.openai.api_server --host {host} --port {port} --enforce-eager --dtype float32"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A model's folder, and the URL of vLLM's server with that model."""
    model = save_model("qwen3", tmp_path_factory.mktemp("vllm"), max_position_embeddings=4096, head_dim=32)
    command = [sys.executable, *SERVER.split(), "--model", model, "--served-model-name", "tiny"]
    alone = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    with ServerProcess(
        [*command, "--max-num-seqs", "16"], deadline=400, environment=alone | {"VLLM_NO_USAGE_STATS": "1"}
    ) as server:
        yield model, f"{server.base_url}/v1"


class TestOpenAIEngineToVLLM(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def load(cls, served: tuple[str, str]) -> Loader:
        model, url = served
        # The server tells no vocabulary, so a token id that does not exist is known by the tokenizer only.
        return lambda **options: OpenAIEngine.load("tiny", **{"base_url": url, "tokenizer": model, **options})

    def decode(self, engine: Engine, token_ids: Sequence[int]) -> str:
        tokenizer = cast("OpenAIEngine", engine)._tokenizer
        text = str(tokenizer.decode(list(token_ids), skip_special_tokens=True))  # type: ignore[union-attr]
        return text.rstrip("\ufffd")  # at the end of an answer, vLLM drops a character that is not complete


def test_without_a_tokenizer_the_server_is_asked_to_count(served: tuple[str, str]):
    model, url = served
    with (
        OpenAIEngine.load("tiny", base_url=url) as asking,
        OpenAIEngine.load("tiny", base_url=url, tokenizer=model) as counting,
    ):
        assert asking.capabilities.token_ids
        assert asking.capabilities.logprobs
        assert asking.tokenize("hello") == counting.tokenize("hello")


def test_as_a_hosted_endpoint_it_tells_text_and_counts_and_no_ids(served: tuple[str, str]):
    _, url = served
    with (
        OpenAIEngine.load("tiny", base_url=url) as with_ids,
        OpenAIEngine.load("tiny", base_url=url, token_ids=False) as without,
    ):
        [known] = with_ids.generate("hello", max_tokens=10, ignore_eos=True)
        [told] = without.generate("hello", max_tokens=10, ignore_eos=True)
    assert (told.text, told.prompt_tokens, len(told.token_ids)) == (known.text, known.prompt_tokens, 10)
    assert set(told.token_ids) == {-1}
