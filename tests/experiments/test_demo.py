"""The whole demo on a small scale, and what it writes."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from servinglib.cli import app
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import InvalidSetting, ModelUnavailable
from servinglib.experiments.architectures import NOT_YET
from servinglib.experiments.batching_curve import Shape
from servinglib.experiments.continuous_row import load_lift
from servinglib.experiments.demo import QUICK, Demo, Plan
from servinglib.experiments.report import Language, print_tables, write_report
from servinglib.policies.step_time import StepTime

SMALL = Plan(
    sizes=(1, 4),
    calibration_sizes=(1, 2, 4),
    repeats=2,
    saturation_batches=6,
    seconds=0.3,
    min_requests=12,
    replica_batch=4,
)


SHAPE = Shape(4, 8)
SIMULATED: dict[str, Any] = {"step_time": StepTime(a=0.0025, b=0.0001, d=0.0001)}


def run(load_lift: Callable[[int], ContinuousEngine], plan: Plan = SMALL) -> dict[str, Any]:
    steps: list[tuple[str, float]] = []
    with SimulatedEngine.load(**SIMULATED) as engine:
        demo = Demo(
            engine, plan, SHAPE, lambda step, share: steps.append((step, share)), SIMULATED, load_lift
        )
        result = demo.run("cpu")
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] < 1
    return result


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return run(partial(load_lift, "course-tiny", "cpu"))


def test_every_size_has_three_columns_under_both_loads(summary: dict[str, Any]) -> None:
    assert [p["max_batch_size"] for p in summary["curve"]] == [1, 4]
    for point in summary["curve"]:
        assert point["saturation"]["requests_per_s"] > 0
        for load in ("own", "common"):
            columns = point[load]
            assert columns["measured"]["count"] == columns["simulated"]["count"] >= 12
            assert set(columns["error"]) == {"p50", "p99"}
    assert summary["curve"][0]["common"]["rate"] == summary["curve"][1]["common"]["rate"]


def test_all_loads_are_shares_of_what_was_measured(summary: dict[str, Any]) -> None:
    first = summary["curve"][0]
    capacity = first["saturation"]["requests_per_s"]
    assert first["own"]["rate"] == pytest.approx(SMALL.load * capacity)
    assert first["common"]["rate"] == pytest.approx(SMALL.common * capacity)


def test_architectures_that_do_not_exist_yet_carry_no_number(summary: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in summary["architectures"]}
    assert list(rows) == ["single", "batched", "replicas", "continuous", *NOT_YET]
    for name in NOT_YET:
        assert rows[name] == {"name": name, "missing": True}
    assert rows["replicas"]["requests_per_s"] > 0


def test_continuous_batching_gets_the_arrivals_of_the_other_rows(summary: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in summary["architectures"]}
    row, batched = rows["continuous"], rows["batched"]
    assert (row["rate"], row["max_batch_size"]) == (batched["rate"], SMALL.replica_batch)
    assert row["measured"]["count"] == row["simulated"]["count"] == batched["measured"]["count"]
    assert row["tokens_per_s"] == row["requests_per_s"] * SHAPE.output_tokens > 0
    assert 1 <= row["measured"]["mean_batch"] <= SMALL.replica_batch
    assert row["theory"] == {}
    assert any(row["step_time"].values())


def test_a_model_that_the_continuous_engine_refuses_has_a_row_that_says_so() -> None:
    def refuse(max_num_seqs: int) -> ContinuousEngine:
        raise ModelUnavailable("no [gpt2] here")

    least = Plan((1,), (1, 2), 1, 6, seconds=0.1, min_requests=4, replica_batch=1)
    summary = run(refuse, least)
    rows = {row["name"]: row for row in summary["architectures"]}
    assert rows["continuous"] == {"name": "continuous", "missing": True, "refusal": "no [gpt2] here"}
    out = StringIO()
    print_tables(summary, Console(file=out, width=80), "en")
    assert "continuous: not measured: its engine can't serve this model (no [gpt2] here)" in out.getvalue()
    assert "step time" not in out.getvalue()


def test_the_summary_carries_its_birth_certificate_and_no_path(summary: dict[str, Any]) -> None:
    birth = summary["birth"]
    assert {"date", "command", "seed", "machine", "versions"} <= set(birth)
    assert not re.search(r"(^|\s)/\w+/", birth["command"].split(" ")[0])
    assert json.loads(json.dumps(summary))["model"] == "simulated"


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_page_stands_alone_and_shows_the_numbers(
    summary: dict[str, Any], tmp_path: Path, language: Language
) -> None:
    page = write_report(summary, tmp_path, language).read_text("utf-8")
    assert "{" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 4
    assert f"{summary['curve'][1]['saturation']['requests_per_s']:.1f}" in page
    assert {p.name for p in tmp_path.iterdir()} >= {"index.html", "summary.json", "throughput.png"}
    stored = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert stored["plan"]["sizes"] == [1, 4]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_tables_fit_a_terminal_of_80_columns(summary: dict[str, Any], language: Language) -> None:
    out = StringIO()
    print_tables(summary, Console(file=out, width=80), language)
    text = out.getvalue()
    assert "P99" in text
    assert "…" not in text
    assert "τ = " in text
    assert f"{summary['curve'][0]['saturation']['requests_per_s']:.1f}" in text


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_table_of_architectures_has_room_for_minutes_of_waiting(
    summary: dict[str, Any], language: Language
) -> None:
    slow = deepcopy(summary)
    single = slow["architectures"][0]
    single["measured"] |= {"p50": 12.345, "p99": 23.456}
    single["simulated"] |= {"p50": 1.234, "p99": 2.345}
    out = StringIO()
    print_tables(slow, Console(file=out, width=80), language)
    assert all(number in out.getvalue() for number in ("12,345", "23,456", "1,234", "2,345"))


def test_the_presets_can_be_simulated_and_compared() -> None:
    for plan in (QUICK, Plan()):
        assert plan.sizes[0] == 1
        assert plan.calibration_sizes[0] == 1
        assert plan.calibration_sizes[-1] >= plan.sizes[-1]
        assert plan.replica_batch in plan.sizes


def test_an_output_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    result = CliRunner().invoke(app, ["demo", "--out", str(taken)])
    assert isinstance(result.exception, InvalidSetting)
    assert "can't be a folder" in str(result.exception)
