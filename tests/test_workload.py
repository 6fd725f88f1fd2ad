"""Arrivals, lengths, prompts and traces: repeatable, with the streams apart."""

import csv
from pathlib import Path

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.traces import load_trace, save_trace
from servinglib.workload import (
    Fixed,
    LogNormal,
    RequestSpec,
    Uniform,
    constant,
    poisson,
    token_prompts,
)

AZURE = Path(__file__).parents[1].parent / "shared" / "data" / "AzureLLMInferenceTrace_code.csv"


def arrivals(workload):
    return [r.arrival for r in workload]


def test_the_same_seed_gives_the_same_workload_and_another_seed_another():
    laws = {"prompts": Uniform(10, 90), "outputs": LogNormal(20, 0.8, 200)}
    assert poisson(5, count=50, seed=1, **laws) == poisson(5, count=50, seed=1, **laws)
    assert poisson(5, count=50, seed=1, **laws) != poisson(5, count=50, seed=2, **laws)


def test_another_law_of_lengths_leaves_the_arrivals_and_the_other_lengths_alone():
    plain = poisson(5, count=50, seed=1, prompts=Fixed(9), outputs=Uniform(1, 99))
    other = poisson(5, count=50, seed=1, prompts=LogNormal(30, 1, 999), outputs=Uniform(1, 99))
    assert arrivals(plain) == arrivals(other)
    assert [r.output_tokens for r in plain] == [r.output_tokens for r in other]
    assert {r.prompt_tokens for r in plain} == {9} != {r.prompt_tokens for r in other}


def test_prompt_and_output_lengths_are_drawn_apart():
    workload = poisson(5, count=50, seed=1, prompts=Uniform(1, 1000), outputs=Uniform(1, 1000))
    assert [r.prompt_tokens for r in workload] != [r.output_tokens for r in workload]


def test_another_rate_brings_the_same_guests_closer_together():
    slow, fast = poisson(2, count=50, seed=1), poisson(8, count=50, seed=1)
    assert np.array(arrivals(slow)) == pytest.approx(4 * np.array(arrivals(fast)))


def test_a_longer_run_begins_like_the_shorter_one():
    laws = {"prompts": Uniform(1, 1000), "outputs": LogNormal(50, 1, 500)}
    assert poisson(5, count=3_000, seed=1, **laws)[:100] == poisson(5, count=100, seed=1, **laws)
    by_duration = poisson(5, duration=20, seed=1, **laws)
    assert by_duration == poisson(5, count=len(by_duration), seed=1, **laws)


def test_a_duration_holds_all_arrivals_before_its_end():
    workload = poisson(100, duration=30, seed=4)
    longer = poisson(100, count=len(workload) + 1, seed=4)
    assert workload[-1].arrival < 30 <= longer[-1].arrival


def test_poisson_gaps_are_exponential_with_the_given_mean():
    gaps = np.diff(arrivals(poisson(10, count=20_000, seed=7)))
    standard_error = 0.1 / np.sqrt(len(gaps))
    assert gaps.mean() == pytest.approx(0.1, abs=4 * standard_error)
    assert np.mean(gaps > 0.2) == pytest.approx(np.exp(-2), abs=4 * np.sqrt(0.12 / len(gaps)))
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=4 / np.sqrt(len(gaps)))


def test_constant_arrivals_tick():
    assert arrivals(constant(4, count=3, seed=0)) == [0.0, 0.25, 0.5]
    assert arrivals(constant(4, duration=1, seed=0)) == [0.0, 0.25, 0.5, 0.75]


def test_uniform_lengths_reach_both_ends_and_no_farther():
    lengths = Uniform(3, 6).sample(np.random.default_rng(0), 500)
    assert set(lengths) == {3, 4, 5, 6}


def test_lognormal_lengths_have_the_given_median_and_end():
    lengths = LogNormal(median=100, sigma=1.0, longest=400).sample(np.random.default_rng(0), 20_000)
    assert np.median(lengths) == pytest.approx(100, rel=0.05)
    assert lengths.max() == 400
    assert lengths.min() >= 1


@pytest.mark.parametrize(
    "law",
    [
        lambda: Fixed(0),
        lambda: Uniform(0, 5),
        lambda: Uniform(6, 5),
        lambda: LogNormal(0, 1, 10),
        lambda: LogNormal(20, 1, 10),
        lambda: LogNormal(20, -1, 100),
    ],
)
def test_a_law_of_impossible_lengths_is_refused(law):
    with pytest.raises(InvalidSetting):
        law()


@pytest.mark.parametrize(
    "arguments",
    [
        {"rate": 0, "count": 5},
        {"rate": -1, "count": 5},
        {"rate": 5},
        {"rate": 5, "count": 5, "duration": 1},
        {"rate": 5, "count": 0},
        {"rate": 5, "duration": 0},
    ],
)
@pytest.mark.parametrize("process", [poisson, constant])
def test_a_process_without_a_rate_or_an_end_is_refused(process, arguments):
    with pytest.raises(InvalidSetting):
        process(**arguments, seed=0)


def test_prompts_have_the_wanted_lengths_and_valid_ids_and_repeat():
    prompts = token_prompts([3, 50, 1], 10, seed=5)
    assert [len(p) for p in prompts] == [3, 50, 1]
    assert {i for p in prompts for i in p} == set(range(10))
    assert token_prompts([3, 50, 1, 7], 10, seed=5)[:3] == prompts
    assert token_prompts([3, 50, 1], 10, seed=6) != prompts


def test_prompts_without_tokens_or_vocabulary_are_refused():
    with pytest.raises(InvalidSetting, match="0 tokens"):
        token_prompts([3, 0], 10, seed=0)
    with pytest.raises(InvalidSetting, match="vocabulary=0"):
        token_prompts([3], 0, seed=0)


def test_a_saved_trace_is_read_back_exactly(tmp_path):
    workload = constant(3, count=20, seed=1, prompts=Uniform(1, 500), outputs=LogNormal(20, 1, 300))
    save_trace(tmp_path / "trace.csv", workload)
    assert load_trace(tmp_path / "trace.csv") == workload


def test_an_azure_trace_begins_at_zero_and_keeps_its_gaps(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:59:59.9799600,4808,10\n"
        "2023-11-16 19:00:00.4799600,110,27\n"
    )
    assert load_trace(path) == (RequestSpec(0.0, 4808, 10), RequestSpec(0.5, 110, 27))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("soon,5,5", "soon"),
        ("nan,5,5", "not a time"),
        ("0.5,5,5", "earlier"),
        ("2.0,five,5", "five"),
        ("2.0,5,0", "at least 1"),
        ("2.0,5", "output_tokens"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row, message):
    path = tmp_path / "trace.csv"
    path.write_text(f"arrival,prompt_tokens,output_tokens\n1.0,5,5\n{row}\n3.0,5,5\n")
    with pytest.raises(InvalidSetting, match=f"line 3: .*{message}"):
        load_trace(path)


def test_unknown_columns_and_an_empty_trace_are_refused(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("when,what\n1,2\n")
    with pytest.raises(InvalidSetting, match="when, what are not a known trace"):
        load_trace(path)
    path.write_text("arrival,prompt_tokens,output_tokens\n")
    with pytest.raises(InvalidSetting, match="no requests"):
        load_trace(path)


@pytest.mark.skipif(not AZURE.exists(), reason=f"the Azure 2023 code trace is not at {AZURE}")
def test_the_real_azure_trace_is_read_whole():
    with open(AZURE, newline="") as file:
        rows = list(csv.DictReader(file))
    workload = load_trace(AZURE)
    assert len(workload) == len(rows)
    assert sum(r.prompt_tokens for r in workload) == sum(int(row["ContextTokens"]) for row in rows)
    assert arrivals(workload)[:2] == pytest.approx([0.0, 0.052])
