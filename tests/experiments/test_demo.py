"""The whole demo on a small scale, and what it writes."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from servinglib.cli import app
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import InvalidSetting
from servinglib.experiments.architectures import NOT_YET
from servinglib.experiments.batching_curve import Shape
from servinglib.experiments.demo import QUICK, Demo, Plan
from servinglib.experiments.report import Language, print_tables, write_report

SMALL = Plan(
    sizes=(1, 4),
    calibration_sizes=(1, 2, 4),
    repeats=2,
    saturation_batches=6,
    seconds=0.3,
    min_requests=12,
    replica_batch=4,
)


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    steps: list[tuple[str, float]] = []
    with SimulatedEngine.load() as engine:
        demo = Demo(engine, SMALL, Shape(4, 2), lambda step, share: steps.append((step, share)), {})
        result = demo.run("cpu")
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] < 1
    return result


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
    assert list(rows) == ["single", "batched", "replicas", *NOT_YET]
    for name in NOT_YET:
        assert rows[name] == {"name": name, "missing": True}
    assert rows["replicas"]["requests_per_s"] > 0


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
    assert f"{summary['curve'][0]['saturation']['requests_per_s']:.1f}" in text


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
