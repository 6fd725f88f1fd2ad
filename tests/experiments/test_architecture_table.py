"""Five ways to serve the same requests: who takes part, in which order, and what stands in the table."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from rich.console import Console

from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import InvalidSetting, UnknownName
from servinglib.experiments import architecture_table
from servinglib.experiments.architecture_table import Plan, compare, table
from servinglib.experiments.architectures import ARCHITECTURES, Architecture, Predict
from servinglib.policies.step_time import StepTime
from servinglib.server.batch_server import BatchInferenceServer
from servinglib.source_code import count_lines

SMALL = Plan(together=4, rounds=2, batches=2, seconds=0.1, min_requests=5)
opened: list[str] = []


@asynccontextmanager
async def coach(name: str, size: int) -> AsyncGenerator[Predict]:
    opened.append(name)
    engine = SimulatedEngine(StepTime(a=0.0002, b=0.0))
    async with BatchInferenceServer(engine, max_batch_size=size, max_wait_time=0) as server:
        yield server.predict


def scripted(name: str, alone: bool = False, package: str = "json") -> Architecture:
    return Architecture(
        lambda model, device, size: coach(name, 1 if alone else size),
        lambda size: 1 if alone else size,
        frozenset({"servinglib.errors"}),
        package,
    )


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> None:
    opened.clear()
    found = {
        "one at a time": scripted("one at a time", alone=True),
        "dynamic batching": scripted("dynamic batching"),
        "continuous": scripted("continuous"),
        "vllm": scripted("vllm", package="no_such_package"),
    }
    monkeypatch.setattr(architecture_table, "ARCHITECTURES", found)


@pytest.mark.usefixtures("ways")
def test_every_way_is_opened_once_a_round_and_what_is_not_installed_says_so():
    found = compare("a model", ["one at a time", "dynamic batching", "continuous", "vllm"], SMALL, "cpu")
    assert opened[:3] == ["one at a time", "dynamic batching", "continuous"]
    assert opened[3:] == ["one at a time", "continuous", "dynamic batching"]
    for name in ("one at a time", "dynamic batching", "continuous"):
        row = found.rows[name]
        assert [len(each) for each in (row.requests_per_s, row.p50, row.p99, row.ttft_p50)] == [2] * 4
        assert all(0 < t <= p50 <= p99 for t, p50, p99 in zip(row.ttft_p50, row.p50, row.p99, strict=True))
        assert row.package_lines > 100, "the package json is loaded"
    assert found.rows["vllm"].missing == "not installed here; make vllm does it"
    assert found.rates == [1.25 * rate for rate in found.rows["one at a time"].requests_per_s]
    assert set(found.to_json()["rows"]) == set(found.rows)


@pytest.mark.usefixtures("ways")
def test_the_table_has_a_row_for_each_and_the_ratio_to_one_at_a_time(capsys: pytest.CaptureFixture[str]):
    found = compare("a model", ["one at a time", "dynamic batching", "vllm"], SMALL, "cpu")
    found.rows["one at a time"].requests_per_s = [10.0, 30.0]
    found.rows["dynamic batching"].requests_per_s = [40.0, 60.0]
    Console(width=160).print(table(found))
    told = capsys.readouterr().out
    assert "not installed here" in told
    [line] = [line for line in told.splitlines() if "dynamic" in line]
    assert "50.0" in line, "the median of 40 and 60"
    assert " 3.0 " in line, "of the ratios within a round, 4 and 2, the median"


def test_an_unknown_architecture_is_refused_with_the_nearest_and_the_load_needs_its_first():
    with pytest.raises(UnknownName, match="did you mean 'continuous'"):
        compare("course-tiny", ["one at a time", "continous"])
    with pytest.raises(InvalidSetting, match="must begin with 'one at a time'"):
        compare("course-tiny", ["continuous"])


def test_more_code_stands_behind_the_engine_that_is_made_here():
    lines = {name: count_lines(set(way.modules)) for name, way in ARCHITECTURES.items()}
    assert lines["one at a time"] == lines["dynamic batching"] < lines["two replicas"] < lines["continuous"]


def test_comments_docstrings_and_blank_lines_are_not_counted(tmp_path):
    package = tmp_path / "servinglib"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text('"""A text."""\n\n# a comment\nimport servinglib.two\n\nx = 1\n')
    (package / "two.py").write_text("def f():\n    return 2\n")
    assert count_lines({"servinglib.one"}, tmp_path) == 2 + 2
