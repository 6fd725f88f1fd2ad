"""The table of number formats: what it measures, what it refuses, and how it tells it."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from rich.console import Console

from servinglib.bench import number_formats
from servinglib.bench.number_formats import FormatFigures, FormatsReport, Plan, measure, refusal
from servinglib.bench.number_formats_report import tables
from servinglib.cli import main
from servinglib.errors import InvalidSetting, UnknownName

QUICK = Plan(batches=(1, 2), rounds=2, windows=2)


def shown(report: FormatsReport) -> str:
    console = Console(width=200, record=True)
    console.print(*tables(report))
    return console.export_text()


@pytest.fixture(scope="module")
def report():
    return measure(["course-tiny"], ["float32", "int8"], QUICK)


def test_every_format_has_bytes_quality_and_a_time_for_each_round(report):
    for figures in report.models["course-tiny"].values():
        assert {batch: len(times) for batch, times in figures.steps.items()} == {1: 2, 2: 2}
        assert all(seconds > 0 for times in figures.steps.values() for seconds in times)
        assert 1.5 < figures.nats_per_token < 3.5


def test_int8_reads_a_quarter_of_the_bytes_and_hardly_surprises_more(report):
    whole, eight = (report.models["course-tiny"][name] for name in ("float32", "int8"))
    assert whole.weight_bytes == 4 * 4_194_304
    assert 0.25 < eight.weight_bytes / whole.weight_bytes < 0.27
    assert eight.nats_per_token == pytest.approx(whole.nats_per_token, abs=0.02)


def test_bits_per_byte_go_by_the_bytes_of_the_whole_text(report):
    figures = report.models["course-tiny"]["float32"]
    assert 0.35 < figures.bits_per_byte / figures.nats_per_token < 0.47


def test_a_gain_is_the_median_of_the_rounds_ratios():
    slow = FormatFigures(1, None, None, {1: [0.4, 0.2, 9.0]})
    fast = FormatFigures(1, None, None, {1: [0.1, 0.1, 0.1]})
    assert fast.gain_over(slow, 1) == pytest.approx(4.0)
    assert slow.step_ms(1) == pytest.approx(400.0)


def test_random_weights_have_no_quality_to_tell(monkeypatch):
    monkeypatch.setattr(number_formats, "COURSE_SHAPES", {})  # as if course-tiny had not been trained
    figures = measure(["course-tiny"], ["float32"], QUICK).models["course-tiny"]["float32"]
    assert figures.nats_per_token is None
    assert figures.bits_per_byte is None


def test_a_format_that_the_processor_lacks_is_told_and_not_emulated(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    report = measure(["course-tiny"], ["float32", "float16"], QUICK)
    assert list(report.models["course-tiny"]) == ["float32"]
    assert "avx512_fp16" in report.refused["float16"]
    assert "refused: this processor has none of avx512_fp16" in shown(report)


def test_what_is_no_format_is_refused():
    with pytest.raises(UnknownName, match="int4"):
        refusal("int4")


@pytest.mark.parametrize("wrong", [{"batches": ()}, {"batches": (0,)}, {"rounds": 0}, {"windows": -1}])
def test_a_plan_that_measures_nothing_is_refused(wrong):
    with pytest.raises(InvalidSetting, match="at least one"):
        Plan(**wrong)


def test_the_table_shows_ratios_to_bfloat16_or_else_to_float32():
    figures = {
        "float32": FormatFigures(4_000_000, 2.5, 1.0, {1: [0.004]}),
        "int8": FormatFigures(1_000_000, None, None, {1: [0.002]}),
    }
    text = shown(FormatsReport({"m": figures}, {}))
    assert "2.00 (2.00x)" in text
    figures["bfloat16"] = FormatFigures(2_000_000, None, None, {1: [0.001]})
    text = shown(FormatsReport({"m": figures}, {}))
    assert "2.00 (0.50x)" in text


def test_the_command_keeps_the_figures(monkeypatch, capsys, tmp_path):
    output = tmp_path / "formats.json"
    arguments = ["--model", "course-tiny", "--formats", "float32", "--batches", "1", "--rounds", "1"]
    monkeypatch.setattr(number_formats, "STEPS", 2)
    monkeypatch.setattr(
        sys, "argv", ["servinglib", "bench", "formats", *arguments, "--quick", "--output", str(output)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    kept = json.loads(output.read_text())
    assert list(kept["models"]["course-tiny"]) == ["float32"]
    assert "nats/token" in capsys.readouterr().out
