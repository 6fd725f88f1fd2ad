"""`servinglib simulate ...` as a user sees it."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from servinglib.cli import app, main

FEW = ["--customers", "300", "--replications", "3"]


def simulate(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mm1", "--rate", "0.5"], ["M/M/1", "load 0.5", "mean wait", "P99 sojourn", "P(wait > 0)", "0.5"]),
        (["mmc", "--rate", "1", "--servers", "2"], ["M/M/2", "load 0.5", "mean number"]),
        (["mg1", "--discipline", "srpt", "--cv2", "4"], ["srpt", "cv² = 4", "P99 wait", "less the service"]),
        (["batch"], ["batches of up to 8", "mean batch size", "requests", "Inoue"]),
        (["batch", "--max-wait-time", "0.01"], ["Theory is silent", "window"]),
        (["continuous"], ["up to 64 requests", "utilisation", "approximate"]),
        (["cluster", "--policy", "least-outstanding"], ["4 replicas", "bound holds", "M/M/4"]),
    ],
    ids=lambda value: " ".join(value) if value[0].islower() else "",
)
def test_each_study_prints_its_table_and_what_theory_is(arguments: list[str], expected: list[str]):
    output = simulate(*arguments, *FEW)
    assert [text for text in expected if text not in output] == []
    assert "…" not in output  # it fits a terminal of 80 columns
    assert max(len(line) for line in output.splitlines()) <= 80


def test_the_options_reach_the_study():
    output = simulate("mm1", "--rate", "2", "--mean-service", "0.25", "--confidence", "0.9", *FEW)
    assert "load 0.5" in output
    assert "90%" in output
    assert "0.25" in output  # the mean wait, 0.5 / (4 - 2)
    assert (
        simulate("mm1", *FEW) == simulate("mm1", *FEW, "--seed", "0") != simulate("mm1", *FEW, "--seed", "1")
    )


def test_the_figures_are_kept_with_their_birth_certificate(tmp_path: Path):
    target = tmp_path / "new" / "figures.json"
    simulate("cluster", "--policy", "random", *FEW, "--seed", "7", "--json", str(target))
    stored = json.loads(target.read_text())
    assert stored.keys() >= {"date", "command", "machine", "versions"}
    assert (stored["seed"], stored["customers"], stored["replications"]) == (7, 300, 3)
    assert stored["parameters"] == {"mean_service": 1.0, "replicas": 4, "policy": "random"}
    (mean, p99) = stored["result"]["rows"]
    assert (mean["quantity"], p99["quantity"]) == ("mean sojourn", "P99 sojourn")
    assert mean["theory"] == pytest.approx(5)
    assert mean["simulated"]["low"] < mean["simulated"]["value"] < mean["simulated"]["high"]
    assert stored["curve"] == []


def test_the_curve_is_drawn_and_kept(tmp_path: Path):
    picture, target = tmp_path / "curve.png", tmp_path / "curve.json"
    simulate("mm1", *FEW, "--plot", str(picture), "--json", str(target))
    assert picture.read_bytes().startswith(b"\x89PNG")
    loads = [result["load"] for result in json.loads(target.read_text())["curve"]]
    assert len(loads) == 8
    assert loads[-1] == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mm1", "--rate", "1.5"], "load of 1.5"),
        (["mmc", "--servers", "0"], "servers=0"),
        (["mg1", "--discipline", "lifo"], "unknown discipline 'lifo'"),
        (["batch", "--max-batch-size", "0"], "max_batch_size=0"),
        (["batch", "--max-wait-time", "-1"], "max_wait_time=-1"),
        (["continuous", "--a", "-1"], "a=-1"),
        (["cluster", "--policy", "jsq"], "unknown policy 'jsq'"),
        (["mm1", "--customers", "7"], "customers=7"),
        (["mm1", "--confidence", "99"], "confidence=99"),
        (["mm1", "--plot", "curve.jpg"], "--plot curve.jpg is not a file that ends in .png"),
        (["mm1", "--json", "{tmp}/taken/x.json"], "name a file elsewhere"),
        (["mm1", "--plot", "{tmp}/folder.png"], "is not a file"),
    ],
)
def test_a_bad_parameter_is_one_line_and_exit_code_2_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr("servinglib.experiments.study.mean_interval", None)  # no result can come about
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["servinglib", "simulate", *filled])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.strip().splitlines()
    assert message in line
