"""The comparison of engines: equal work for all, in turns, and verdicts that follow from the figures."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from servinglib.bench import engine_comparison_setup
from servinglib.bench.contender_process import ContenderFailed
from servinglib.bench.engine_comparison import FOLLOWERS, compare
from servinglib.bench.engine_comparison_page import check_place, render, write
from servinglib.bench.engine_comparison_report import document, sheets, views
from servinglib.bench.engine_comparison_setup import configure
from servinglib.bench.engine_expectations import findings, judge
from servinglib.bench.engine_figures import (
    SHORT,
    Comparison,
    EngineFigures,
    Plan,
    PrefixTurn,
    Turn,
    geometric_interval,
    interval,
)
from servinglib.bench.gpu_memory import GpuLedger
from servinglib.bench.gpu_report import GIB, GpuReport
from servinglib.cli import app
from servinglib.engines.capabilities import EngineCounters
from servinglib.engines.registry import ENGINES
from servinglib.errors import EngineUnavailable, InvalidSetting, UnknownName
from servinglib.statistics import Interval


@dataclass
class Scripted:
    """An engine's process that takes `per_token` seconds a step, and knows prefixes of 16 tokens if it caches."""

    name: str
    journal: list[tuple[str, str]]
    per_token: float = 0.01
    caches: bool = False
    short: int = 0
    context_length: int = 512
    awake: bool = True
    told: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[list[list[int]], int]] = field(default_factory=list)
    known: set[tuple[int, ...]] = field(default_factory=set)
    queries: int = 0
    hits: int = 0

    def call(self, method: str, **arguments: Any) -> Any:
        assert self.awake, "asked while stopped"
        return getattr(self, f"_{method}")(**arguments)

    def _load(self, **told: Any) -> dict[str, Any]:
        self.told = told
        return {
            "seconds": 2.0,
            "batching": "continuous" if self.caches else "static",
            "context_length": self.context_length,
            "vocabulary": 4096,
        }

    def _answer(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        self.asked.append((prompts, tokens))
        self.queries += sum(map(len, prompts))
        found = sum(16 * (tuple(p[:16]) in self.known) for p in prompts) if self.caches else 0
        self.hits += found
        self.known |= {tuple(p[:16]) for p in prompts}
        first = self.per_token * (0.5 if found else 1.0)
        return {
            "seconds": self.per_token * tokens,
            "first_tokens": [first] * len(prompts),
            "latencies": [self.per_token * tokens] * len(prompts),
            "tokens": [tokens - self.short] * len(prompts),
        }

    def _counters(self) -> dict[str, Any]:
        counted = EngineCounters(
            kv_cache_usage_peak=0.25, prefix_cache_queries=self.queries, prefix_cache_hits=self.hits
        )
        return asdict(counted if self.caches else EngineCounters())

    def _peak_memory(self) -> float:
        return 1.5

    def pause(self) -> None:
        self.awake = False
        self.journal.append(("pause", self.name))

    def resume(self) -> None:
        self.awake = True
        self.journal.append(("resume", self.name))

    def close(self) -> None:
        self.journal.append(("close", self.name))


def small(**changes: Any) -> Plan:
    settings = {"batch_sizes": (1, 4), "runs": 3, "prompt_tokens": 8, "output_tokens": 6, "shared_prefix": 16}
    return Plan(**{**settings, **changes})


def run_scripted(
    plan: Plan | None = None, settings: tuple[str, ...] = (), **engines: dict[str, Any]
) -> tuple[Comparison, dict[str, Scripted], list[tuple[str, str]]]:
    journal: list[tuple[str, str]] = []
    processes: dict[str, Scripted] = {}

    def start(name: str) -> Scripted:
        processes[name] = Scripted(name, journal, **engines[name])
        return processes[name]

    result = compare("course-tiny", list(engines), plan or small(), settings, "float32", start=start)
    return result, processes, journal


def refuse_to_start(name: str) -> Any:
    raise AssertionError(f"{name} was started")


def made(
    device: str = "cpu", kv: float | None = 0.1, runs: int = 3, **rates: tuple[float, float]
) -> Comparison:
    """A comparison in which each engine gives these tokens/s at 1 and at 16 at once, varying a little."""
    engines = {}
    for name, (alone, together) in rates.items():
        figures = EngineFigures({}, "somebody 1.0", "static" if name == "transformers" else "continuous", 1.0)
        if name == "vllm":
            figures.counters = EngineCounters(
                kv_cache_usage_peak=kv, num_preemptions=3, draft_tokens=8, accepted_tokens=2
            )
        for size, rate in ((1, alone), (16, together)):
            seconds = [size * 64 / rate * (1 + 0.001 * i) for i in range(runs)]
            figures.turns[size] = [Turn(s, [s / 64] * size, [s] * size, 64 * size) for s in seconds]
        figures.prefixes = [PrefixTurn(0.2, 0.1, 0.9 if name == "vllm" else None)] * runs
        engines[name] = figures
    plan = Plan((1, 16), runs)
    return Comparison(
        "course-tiny",
        device,
        "float32",
        plan,
        engines,
        GpuReport(0.2, 0, 0.0, (), "no GPU: none"),
        {"date": "2026"},
    )


def test_engines_work_in_turns_one_at_a_time_and_all_are_closed():
    _, _, journal = run_scripted(transformers={}, continuous={}, simulated={})
    awake = [name for what, name in journal if what == "resume"]
    assert awake == [
        "transformers", "continuous", "simulated",
        "continuous", "simulated", "transformers",
        "simulated", "transformers", "continuous",
        "transformers", "continuous", "simulated",
    ]  # fmt: skip
    running: set[str] = set()
    for what, name in journal:
        running = running | {name} if what == "resume" else running - {name}
        assert len(running) <= 1
    assert sorted(name for what, name in journal if what == "close") == sorted(ENGINES.keys() & set(awake))


def test_all_engines_get_the_same_prompts_and_none_meets_one_twice():
    _, processes, _ = run_scripted(transformers={}, continuous={})
    measured = {
        name: [tuple(p) for prompts, tokens in process.asked if tokens == 6 for p in prompts]
        for name, process in processes.items()
    }
    assert measured["transformers"] != []
    assert sorted(measured["transformers"]) == sorted(measured["continuous"])
    everything = [
        tuple(p[:8]) for prompts, _ in processes["continuous"].asked for p in prompts if len(p) == 8
    ]
    assert (
        len(set(everything)) == len(everything) == 2 * 5 * 3 + 5
    )  # warming up and measured, and after loading


def test_figures_are_of_each_batch_and_round():
    result, _, _ = run_scripted(transformers={"per_token": 0.02}, continuous={"per_token": 0.01})
    assert {size: len(turns) for size, turns in result.engines["continuous"].turns.items()} == {1: 3, 4: 3}
    [turn, *_] = result.engines["continuous"].turns[4]
    assert (turn.tokens_per_s, turn.requests_per_s) == (pytest.approx(400), pytest.approx(400 / 6))
    assert (turn.ttft, turn.latency) == (pytest.approx(0.01), pytest.approx(0.06))
    times = result.ratio("tokens_per_s", "continuous", "transformers", 4)
    assert (times.value, times.low, times.high) == pytest.approx((2, 2, 2))
    assert result.engines["continuous"].peak_memory_gib == 1.5


def test_ratios_are_taken_within_a_round():
    drifting = {
        "transformers": [10.0, 20.0, 40.0],
        "continuous": [20.0, 40.0, 80.0],
    }  # the machine got faster
    result = made(transformers=(1, 1), continuous=(1, 1))
    for name, rates in drifting.items():
        result.engines[name].turns[16] = [Turn(16 / rate, [1.0], [1.0], 16) for rate in rates]
    times = result.ratio("tokens_per_s", "continuous", "transformers", 16)
    assert (times.value, times.low, times.high) == pytest.approx((2, 2, 2))


def test_a_ratio_and_its_inverse_have_inverse_intervals():
    found, inverse = geometric_interval([2.0, 3.0, 5.0]), geometric_interval([1 / 2, 1 / 3, 1 / 5])
    assert (1 / found.value, 1 / found.high, 1 / found.low) == pytest.approx(
        (inverse.value, inverse.low, inverse.high)
    )
    assert interval([3.0]) == Interval(3.0, -math.inf, math.inf)
    assert geometric_interval([3.0]).value == pytest.approx(3.0)


def test_the_prefix_part_counts_hits_of_the_followers_alone():
    result, processes, _ = run_scripted(transformers={}, continuous={"caches": True})
    assert [p.hit_rate for p in result.engines["transformers"].prefixes] == [None] * 3
    for prefix in result.engines["continuous"].prefixes:
        assert prefix.hit_rate == pytest.approx(16 / 24)
        assert (prefix.alone, prefix.sharing) == pytest.approx((0.01, 0.005))
    long = [prompts[0] for prompts, _ in processes["continuous"].asked if len(prompts[0]) == 24]
    assert len(long) == 3 * (2 * FOLLOWERS + 1)
    assert {tokens for prompts, tokens in processes["continuous"].asked if len(prompts[0]) == 24} == {SHORT}
    starts = [tuple(p[:16]) for p in long]
    assert len(set(starts)) == 3 * (FOLLOWERS + 1)  # those alone, and one for all that share
    assert len({tuple(p) for p in long}) == len(long)


def test_without_a_shared_prefix_that_part_is_left_out():
    result, processes, _ = run_scripted(small(shared_prefix=0), transformers={})
    assert result.engines["transformers"].prefixes == []
    assert {len(p) for prompts, _ in processes["transformers"].asked for p in prompts} == {8}
    assert not any("prefix" in cell for sheet in sheets(result) for row in sheet.rows for cell in row)


def test_an_answer_that_is_too_short_is_an_error_and_everybody_is_closed():
    journal: list[tuple[str, str]] = []

    def start(name: str) -> Scripted:
        return Scripted(name, journal, short=int(name == "continuous"))

    with pytest.raises(
        ContenderFailed, match=r"continuous was asked for 1 answers of 4 tokens and gave \[3\]"
    ):
        compare("course-tiny", ["transformers", "continuous"], small(), dtype="float32", start=start)
    assert {name for what, name in journal if what == "close"} == {"transformers", "continuous"}


def test_a_plan_beyond_the_context_is_refused_by_the_first_engine_that_says_so():
    with pytest.raises(
        InvalidSetting, match=r"longest request has 28 tokens and the context of transformers holds 20"
    ):
        run_scripted(transformers={"context_length": 20})


def test_engines_are_told_the_same_unless_one_is_told_otherwise():
    _, processes, _ = run_scripted(settings=("continuous.block_size=32",), transformers={}, continuous={})
    assert processes["transformers"].told["options"] == {"dtype": "float32"}
    assert processes["continuous"].told["options"] == {
        "dtype": "float32",
        "max_num_seqs": 4,
        "block_size": 32,
    }


@pytest.mark.parametrize(
    ("engines", "settings", "error", "message"),
    [
        (["contineous"], (), UnknownName, "did you mean 'continuous'"),
        ([], (), InvalidSetting, "must name some engines"),
        (["simulated", "simulated"], (), InvalidSetting, "each once"),
        (
            ["simulated"],
            ("continuous.threads=1",),
            InvalidSetting,
            "which of the engines simulated it concerns",
        ),
        (["simulated"], ("a=0.1",), InvalidSetting, r"--set simulated\."),
        (["simulated"], ("simulated.aa=0.1",), UnknownName, "unknown simulated setting 'aa'"),
        (["continuous"], ("continuous.dtype=bfloat16",), InvalidSetting, "dtype=bfloat16 is not float32"),
        (["vllm"], (), EngineUnavailable, "make vllm"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_starts(
    monkeypatch, engines, settings, error, message
):
    absent = replace(ENGINES["vllm"], package="no_such_package")
    monkeypatch.setitem(ENGINES, "vllm", absent)
    with pytest.raises(error, match=message):
        compare("course-tiny", engines, small(), settings, "float32", start=refuse_to_start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": (4, 0)}, r"batch sizes \[4, 0\]"),
        ({"batch_sizes": (4, 4)}, r"batch sizes \[4, 4\] must be different"),
        ({"batch_sizes": ()}, r"batch sizes \[\]"),
        ({"runs": 0}, "runs=0"),
        ({"output_tokens": 0}, "output_tokens=0"),
        ({"shared_prefix": -1}, "shared_prefix=-1"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(InvalidSetting, match=message):
        small(**changes)


def test_the_longest_request_counts_the_shared_prefix():
    assert small().longest == 16 + 8 + SHORT
    assert small(shared_prefix=0).longest == 8 + 6
    assert small(shared_prefix=0, output_tokens=1).longest == 8 + SHORT  # of warming up


def test_on_a_gpu_the_engines_share_its_memory(monkeypatch):
    monkeypatch.setattr("servinglib.engines.transformers_engine.choose_device", lambda _: "cuda")
    monkeypatch.setattr(engine_comparison_setup, "_check_installed", lambda name: None)
    setups, device, _ = configure(
        "course-tiny", ["vllm", "continuous"], small(), ["vllm.max_model_len=99"], "float32"
    )
    assert device == "cuda"
    vllm, ours = (setup.options for setup in setups)
    assert vllm["gpu_memory_utilization"] == ours["kv_cache_memory"] == pytest.approx(0.4)
    assert vllm["max_model_len"] == 99


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Interval(3.0, 2.5, 3.5), "as published"),
        (Interval(1.5, 1.2, 1.8), "below"),
        (Interval(1.5, 1.0, 2.2), "open"),
        (Interval(9.0, 8.0, 10.0), "above"),
        (Interval(4.5, 3.9, 5.2), "as published"),
        (Interval(3.0, 0.5, 18.0), "open"),  # its value fits, and so would nearly every other
        (Interval(3.0, 0.0, math.inf), "as published"),
        (Interval(1.5, 0.0, math.inf), "below"),  # one round: the value is all there is
    ],
)
def test_a_verdict_follows_from_the_interval(found, verdict):
    assert judge(found, 2, 4) == verdict


def why(result: Comparison, quantity: str = "tokens_per_s") -> dict[str, list[str]]:
    told = [f for f in findings(result) if f.expectation.quantity == quantity]
    return {f.expectation.source.split(",")[0]: f.reasons for f in told}


def test_reasons_are_those_that_the_figures_bear_out():
    reasons = why(made(transformers=(100, 800), vllm=(60, 1000)))["vLLM's launch blog"]
    text = "; ".join(reasons)
    for part in (
        "best case of a static batch",
        "at most 10% of vllm's KV cache",
        "transformers itself gains 8.0 times",
    ):
        assert part in text
    assert "the ratio grows from 0.6 at 1 at once to 1.2 at 16" in text
    assert "compilation" not in text


def test_a_reason_that_the_figures_contradict_is_not_given():
    result = made(device="cuda", kv=0.9, transformers=(100, 800), vllm=(120, 960))
    result.engines["vllm"].options["enforce_eager"] = True
    [static, compiled] = why(result)["vLLM's launch blog"]
    assert "best case" in static
    assert "ran without compilation" in compiled
    result.engines["transformers"].batching = "continuous"
    assert why(result)["vLLM's launch blog"] == [compiled]
    assert list(why(result, "ttft").values()) == [[]]


def test_a_trend_within_the_rounds_differences_is_no_reason():
    result = made(device="cuda", kv=0.9, transformers=(100, 800), vllm=(60, 1000))
    assert "the ratio grows" in "; ".join(why(result)["vLLM's launch blog"])
    for i, turn in enumerate(result.engines["vllm"].turns[1]):
        result.engines["vllm"].turns[1][i] = replace(turn, seconds=turn.seconds * (0.3, 1, 3)[i])
    assert "the ratio grows" not in "; ".join(why(result)["vLLM's launch blog"])


def test_what_is_as_published_needs_no_reason():
    result = made(transformers=(100, 100), vllm=(300, 300))
    found = {f.expectation.source.split(",")[0]: f for f in findings(result)}
    assert (found["Kwon et al."].verdict, found["Kwon et al."].reasons) == ("as published", [])
    assert found["vLLM's launch blog"].verdict == "below"


def test_ttft_is_judged_by_how_much_sooner_the_first_token_comes():
    result = made(transformers=(100, 100), vllm=(200, 200))
    [reasons] = why(result, "ttft").values()
    assert "every batch meets an idle engine" in reasons[0]
    [found] = [f for f in findings(result) if f.expectation.quantity == "ttft"]
    assert found.ratios[16].value == pytest.approx(2.0)


def test_expectations_concern_engines_that_took_part():
    assert findings(made(transformers=(1, 1))) == []
    assert {f.expectation.engine for f in findings(made(transformers=(1, 1), continuous=(1, 1)))} == {
        "continuous"
    }


def test_a_table_has_a_row_for_each_engine_and_batch_size_with_intervals():
    speeds, resources, expected = sheets(made(transformers=(100, 800), vllm=(60, 1600)))
    assert [row[:2] for row in speeds.rows] == [
        ["1", "transformers"], ["1", "vllm"], ["16", "transformers"], ["16", "vllm"],
    ]  # fmt: skip
    assert any("those of transformers" in note for note in speeds.notes)
    assert speeds.rows[3][-1] == "2 [2, 2]"
    assert speeds.rows[0][2].startswith("99.9 ±0%")
    told = {what: cells for what, *cells in resources.rows}
    assert told["KV cache used"] == ["not told", "10.0%"]
    assert told["preemptions"] == ["not told", "3"]
    assert told["guesses that stayed"] == ["not told", "25.0%"]
    assert told["prefix hits"] == ["not told", "90.0%"]
    assert [row[0] for row in expected.rows] == [
        "vllm over transformers: tokens/s, times",
        "vllm over transformers: TTFT, times sooner",
    ]
    assert [len(cell.splitlines()) for cell in expected.rows[0][1:3]] == [2, 4]
    assert any("no GPU" in note for note in resources.notes)


def test_one_round_has_no_interval_and_says_so():
    result = made(runs=1, transformers=(100, 800), vllm=(60, 1600))
    speeds, _, _ = sheets(result)
    assert not any("±" in cell or "[" in cell for row in speeds.rows for cell in row)
    assert "One round has no interval." in speeds.notes
    assert len(list(views(result))) == 3


def test_the_json_has_the_birth_certificate_and_no_infinity(tmp_path):
    result, _, _ = run_scripted(small(runs=1), transformers={}, continuous={"caches": True})
    page = write(result, tmp_path / "results.json")
    kept = json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert page == tmp_path / "results.html"
    assert kept["machine"]["device"] == kept["device"] == result.device
    assert {"date", "command", "versions"} <= kept.keys()
    assert kept["engines"]["continuous"]["turns"]["4"][0]["tokens"] == 24
    assert kept["summary"][0]["tokens_per_s"] == {"value": pytest.approx(100), "low": None, "high": None}
    assert len(kept["expectations"]) == 1
    assert json.loads(json.dumps(document(result))) == kept


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [
            value for name in ("href", "src", "srcset", "action", "data") if (value := given.get(name))
        ]
        self.pictures += [given["src"] or ""] if tag == "img" else []


def test_the_page_holds_each_picture_once_and_fetches_nothing():
    result = made(transformers=(100, 800), vllm=(60, 1600))
    page = render(result)
    links = Links()
    links.feed(page)
    assert len(links.pictures) == len(set(links.pictures)) == 2
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert not re.search(r"https?://|url\(|@import|<script", re.sub(r"base64,[\w+/=]+", "", page))
    for sheet in sheets(result):
        assert page.count(f"<h2>{sheet.title}</h2>") == 1
    assert page.count("<td>2 [2, 2]</td>") == 1


def test_a_place_that_cannot_hold_the_result_is_refused(tmp_path):
    with pytest.raises(InvalidSetting, match=r"must end in \.json"):
        check_place(tmp_path / "results.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="can't be written"):
        check_place(tmp_path / "file" / "results.json")


class Scale:
    """Monitors whose GPU shows these bytes, one after another."""

    def __init__(self, *bytes_used: int | None) -> None:
        self._shown = iter(bytes_used)

    def __call__(self) -> Any:
        return Glance(next(self._shown))


@dataclass
class Glance:
    used: int | None

    def __enter__(self) -> Glance:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def report(self) -> Any:
        @dataclass
        class Gpu:
            memory_used_max_bytes: int | None
            visible: bool = True

        return GpuReport(0.2, 1, 1.0, [Gpu(self.used)] if self.used is not None else [])  # type: ignore[list-item]


def test_an_engine_s_gpu_memory_is_what_it_added_itself():
    scale = Scale(*(n * GIB for n in (1, 5, 4, 4, 9, 9, 9, 12, 10)))
    ledger = GpuLedger(scale)
    for name in ("first", "second", "first"):  # loading, loading, a turn; each before, during, after
        with ledger.working(name):
            pass
    assert (ledger.peak_gib("first"), ledger.peak_gib("second")) == (3 + 3, 5)


def test_without_a_gpu_nobody_holds_its_memory():
    ledger = GpuLedger(Scale(None, None, None))
    with ledger.working("ours"):
        pass
    assert ledger.peak_gib("ours") is None


def test_the_command_says_where_the_race_against_libraries_went():
    result = CliRunner().invoke(app, ["bench", "engine", "--compare", "transformers,vllm"])
    assert isinstance(result.exception, InvalidSetting)
    assert "servinglib bench rivals --compare transformers,vllm" in str(result.exception)


def test_the_command_refuses_a_batch_of_nobody_and_a_bad_place():
    for arguments, message in (
        (["--batch-sizes", "0,4"], "batch sizes [0, 4]"),
        (["--batch-sizes", "1,four"], "--batch-sizes '1,four'"),
        (["--output", "results.txt"], "must end in .json"),
    ):
        result = CliRunner().invoke(app, ["bench", "engine", "--engines", "simulated", *arguments])
        assert isinstance(result.exception, InvalidSetting)
        assert message in str(result.exception)


OWNER = """
import sys
from servinglib.bench.contender_process import ContenderProcess

process = ContenderProcess("waiting", [sys.executable, "-c", "import sys; sys.stdin.read()"])
process.pause()
print(process._child.pid, flush=True)
sys.stdin.read()
"""


def test_a_stopped_engine_ends_when_the_benchmark_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        stopped = psutil.Process(int(owner.stdout.readline()))
        assert stopped.status() == psutil.STATUS_STOPPED
        owner.kill()
        stopped.wait(timeout=30)
    assert not stopped.is_running()


def test_two_real_engines_are_compared_in_their_own_processes(tmp_path):
    place = tmp_path / "results.json"
    asked = [
        "bench", "engine", "--engines", "simulated,continuous", "--model", "course-draft", "--batch-sizes", "1,2",
        "--runs", "2", "--output-tokens", "8", "--shared-prefix", "32", "--dtype", "float32",
        "--set", "simulated.a=0.002", "--output", str(place),
    ]  # fmt: skip
    result = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert result.exit_code == 0
    assert "tokens/s to those of simulated" in " ".join(result.output.split())
    kept = json.loads(place.read_text())
    assert kept["model"] == "course-draft"
    ours = kept["engines"]["continuous"]
    for size in ("1", "2"):
        for turn in ours["turns"][size]:
            assert turn["tokens"] == 8 * int(size)
            assert 0 < max(turn["first_tokens"]) <= max(turn["latencies"]) <= turn["seconds"]
    assert [prefix["hit_rate"] for prefix in ours["prefixes"]] == [pytest.approx(32 / 59)] * 2
    assert 0 < ours["counters"]["kv_cache_usage_peak"] <= 1
    assert ours["peak_memory_gib"] > kept["engines"]["simulated"]["peak_memory_gib"] > 0
    assert place.with_suffix(".html").is_file()
