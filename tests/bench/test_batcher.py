import asyncio
import json

import pytest

from servinglib.bench import batcher_contenders as contenders
from servinglib.bench.batcher import BatcherReport, tables
from servinglib.bench.targets import Target
from servinglib.server.batch_server import BatchInferenceServer

CONTENDERS = {
    "server": contenders.server(BatchInferenceServer, 100),
    "batched": contenders.batched,
    "textbook": contenders.textbook,
    "floor": contenders.floor,
}


class CountingThreadModel(contenders.ThreadModel):
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def generate_batch(self, items: list) -> list:
        self.sizes.append(len(items))
        return items


class CountingLoopModel(CountingThreadModel):
    async def generate_batch(self, items: list) -> list:  # type: ignore[override]
        return super().generate_batch(items)


@pytest.mark.parametrize("model_class", [CountingThreadModel, CountingLoopModel])
@pytest.mark.parametrize("name", CONTENDERS)
def test_each_contender_answers_everybody_in_batches_of_the_same_size(name: str, model_class) -> None:
    model = model_class()

    async def main() -> None:
        async with CONTENDERS[name](model, 8, 0.001) as ask_all:
            await ask_all(96)

    asyncio.run(main())
    assert sum(model.sizes) == 96
    assert max(model.sizes) == 8


def test_a_contender_that_mixes_answers_up_is_found_out() -> None:
    class Mixed:
        async def generate_batch(self, items: list) -> list:
            return items[::-1]

    async def main() -> None:
        async with CONTENDERS["server"](Mixed(), 8, 0) as ask_all:
            await ask_all(8)

    with pytest.raises(ValueError, match="mixed up its answers"):
        asyncio.run(main())


def test_a_target_is_a_bound_from_below_or_above() -> None:
    assert Target("speed", 2.0, 2.0, at_least=True).met
    assert not Target("speed", 1.9, 2.0, at_least=True).met
    assert Target("time", 1.0, 1.0, at_least=False).met
    assert not Target("time", 1.1, 1.0, at_least=False).met


def test_a_report_becomes_json_and_tables_that_say_what_was_missed() -> None:
    targets = (
        Target("ratio", 0.5, 0.6, at_least=True),
        Target("latency", 10.2, 11, at_least=False, unit="ms"),
    )
    report = BatcherReport(100, 8, 1, {"event loop": {"server": [1e5], "floor": [2e5]}}, targets, 10.1)
    kept = json.loads(json.dumps(report.to_json()))
    assert [t["met"] for t in kept["targets"]] == [False, True]
    assert kept["batched_version"]
    _, verdicts = tables(report)
    assert list(verdicts.columns[3].cells) == ["[bold red]missed[/]", "met", ""]
