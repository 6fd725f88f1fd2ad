"""The client engine in front of our own server passes what every engine must, over a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence

import pytest
import uvicorn

pytest.register_assert_rewrite("engines.contract")

from engines.contract import EngineContract, Loader  # noqa: E402
from tiny_models import save_model  # noqa: E402

from servinglib.engines.base import Engine  # noqa: E402
from servinglib.engines.continuous.engine import ContinuousEngine  # noqa: E402
from servinglib.engines.openai_engine import OpenAIEngine  # noqa: E402
from servinglib.server.http_app import create_app  # noqa: E402


class Announcing(uvicorn.Server):
    """A server that says when it takes requests."""

    started_up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.started_up.set()


@pytest.fixture(scope="class")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ContinuousEngine, str]]:
    """An engine, and the URL of our server in front of it."""
    model = save_model("qwen3", tmp_path_factory.mktemp("long"), max_position_embeddings=4096)
    options = {"device": "cpu", "dtype": "float32", "threads": 1, "kv_cache_memory": "16MiB"}
    with ContinuousEngine.load(model, **options) as engine, socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        server = Announcing(uvicorn.Config(create_app(engine), log_level="error"))
        thread = threading.Thread(target=server.run, args=[[door]])
        thread.start()
        assert server.started_up.wait(120)
        yield engine, f"http://127.0.0.1:{door.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()


class TestOpenAIEngineToOurServer(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def load(cls, served: tuple[ContinuousEngine, str]) -> Loader:
        ours, url = served
        return lambda **options: OpenAIEngine.load(ours.model_name, **{"base_url": url, **options})

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _remember(cls, served: tuple[ContinuousEngine, str]) -> None:
        cls.ours = served[0]

    def decode(self, engine: Engine, token_ids: Sequence[int]) -> str:
        return self.ours.decode(token_ids)

    def test_the_server_tells_all_that_the_contract_can_ask(self, engine: Engine):
        assert (engine.capabilities.token_ids, engine.capabilities.logprobs) == (True, True)
        assert engine.context_length == self.ours.context_length

    def test_the_answers_are_those_of_the_engine_behind(self, engine: Engine):
        for prompt in ("hello", "请问"):
            [there], [here] = (
                each.generate(prompt, max_tokens=20, ignore_eos=True, logprobs=2)
                for each in (engine, self.ours)
            )
            assert (there.token_ids, there.text, there.logprobs) == (here.token_ids, here.text, here.logprobs)
