"""The engine benchmark: what it asks of whom, and what it makes of the answers; not how fast anybody is."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from servinglib.bench import engine_report, engine_rivals
from servinglib.bench.contender_process import ContenderFailed, ContenderProcess
from servinglib.bench.engine import MIXED, Plan, Work, measure, mixed
from servinglib.bench.engine_contenders import Ours
from servinglib.bench.engine_report import bookkeeping_share, run, tables
from servinglib.cli import app
from servinglib.errors import InvalidSetting, UnknownName

CHILD = """
import sys, time
from servinglib.bench.contender_process import private_output, serve

class Scripted:
    def add(self, a, b):
        print("a library greets on standard output")
        return a + b
    def fail(self):
        raise ValueError("out of paper")
    def die(self):
        sys.exit("the last words")
    def clock(self):
        return time.process_time()

serve(Scripted(), sys.stdin, private_output())
"""


@pytest.fixture
def child():
    with ContenderProcess("scripted", [sys.executable, "-c", CHILD]) as process:
        yield process


@dataclass
class Runner:
    """A contender that takes `per_token` seconds for each token of a batch's longest answer."""

    per_token: float
    journal: list[tuple[str, str]] = field(default_factory=list)
    name: str = "runner"
    calls: list[dict[str, Any]] = field(default_factory=list)
    short: int = 0
    awake: bool = True

    def call(self, method: str, **arguments: Any) -> Any:
        assert self.awake, "asked while stopped"
        self.calls.append({"method": method, **arguments})
        if method == "answer":
            lengths = arguments["lengths"]
            return {
                "seconds": self.per_token * max(lengths),
                "tokens": [n - self.short for n in lengths],
            }
        if method == "first_tokens":
            return [1.0] + [0.125] * (len(arguments["prompts"]) - 1)
        if method == "bookkeeping":
            return {"planning": 1.0, "computing": 6.0, "telling": 3.0, "steps": 63}
        return {"lookup": [2e-5] * 3, "answer": [9e-5] * 3}

    def pause(self) -> None:
        self.awake = False
        self.journal.append(("pause", self.name))

    def resume(self) -> None:
        self.awake = True
        self.journal.append(("resume", self.name))

    def close(self) -> None:
        self.journal.append(("close", self.name))

    def prompts(self) -> list[tuple[int, ...]]:
        return [tuple(p) for call in self.calls if call["method"] == "answer" for p in call["prompts"]]


def field_of(**per_token: float) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    journal: list[tuple[str, str]] = []
    names = {name.replace("_", "-"): seconds for name, seconds in per_token.items()}
    return {name: Runner(seconds, journal, name) for name, seconds in names.items()}, journal


def small(**changes: Any) -> Plan:
    settings = {"parts": ("concurrency",), "concurrency": (1, 4), "rounds": 3, "requests": 20, "turn": 0.0}
    return Plan(**{**settings, **changes})


def test_a_call_comes_back_though_libraries_print(child):
    assert child.call("add", a=1, b=2) == 3
    assert child.call("add", a="一", b="二") == "一二"


def test_an_exception_in_the_child_is_told_and_the_child_goes_on(child):
    with pytest.raises(ContenderFailed, match=r"scripted.*'fail'.*ValueError: out of paper"):
        child.call("fail")
    assert child.call("add", a=1, b=1) == 2


def test_a_child_that_dies_is_quoted(child):
    for _ in range(2):
        with pytest.raises(ContenderFailed, match=r"exit code 1 .*\n.*the last words"):
            child.call("die")


def test_a_paused_child_is_stopped_and_a_closed_one_is_gone(child):
    child.call("clock")
    process = psutil.Process(child._child.pid)
    child.pause()
    assert process.status() == psutil.STATUS_STOPPED
    child.resume()
    assert child.call("clock") > 0
    child.pause()
    child.close()
    assert not process.is_running()


def test_one_contender_runs_at_a_time_in_turns_and_all_are_closed():
    contenders, journal = field_of(continuous=0.1, vllm=0.1, transformers=0.1)
    measure(contenders, small(concurrency=(1,)))
    awake = [name for what, name in journal if what == "resume"][3:]  # after each has loaded
    assert awake == [
        "continuous", "vllm", "transformers",
        "vllm", "transformers", "continuous",
        "transformers", "continuous", "vllm",
        "continuous",
    ]  # fmt: skip
    running: set[str] = set()
    for what, name in journal[3:]:
        running = running | {name} if what == "resume" else running - {name}
        assert len(running) <= 1
    assert {name for what, name in journal if what == "close"} == set(contenders)


def test_in_a_round_all_get_the_same_prompts_and_nobody_meets_one_twice():
    contenders, _ = field_of(continuous=0.01, vllm=0.01)
    measure(contenders, small(parts=("concurrency", "mixed"), turn=2.0))
    ours, theirs = (contenders[name].prompts() for name in ("continuous", "vllm"))
    assert len(set(ours)) == len(ours)
    starts = [p[:8] for p in ours]
    assert len(set(starts)) == len(starts)
    timed = [{p for p in prompts if len(p) == 27} for prompts in (ours, theirs)]
    assert len(timed[0] & timed[1]) > 0.4 * len(timed[0])  # all but those that warm up


def test_a_rate_is_tokens_per_second_and_short_work_is_repeated():
    contenders, _ = field_of(continuous=0.001)
    figures = measure(contenders, small(concurrency=(4,), rounds=1, turn=1.0))
    assert figures.rates == {"4": {"continuous": [pytest.approx(4000)]}}
    timed = [c for c in contenders["continuous"].calls if c["lengths"] == [64] * 4]
    assert len(timed) == 16  # of 0.064 s each


def test_a_static_batch_gets_mixed_lengths_in_its_best_size_and_waits_for_the_longest():
    contenders, _ = field_of(continuous=0.001, transformers=0.001)
    figures = measure(contenders, small(parts=("mixed",), rounds=1, requests=40))
    assert figures.static_batch == 64  # time does not grow with the batch here, so one batch is best
    work = mixed(40, seed=1)
    assert figures.rates[MIXED]["transformers"] == [
        pytest.approx(sum(work.outputs) / (0.001 * max(work.outputs)))
    ]
    sizes = {len(c["prompts"]) for c in contenders["transformers"].calls if len(c["prompts"]) > 2}
    assert sizes == {16, 32, 40}


def test_the_search_for_the_best_size_ends_at_the_first_that_is_slower():
    contenders, _ = field_of(continuous=0.001, transformers=0.001)

    class Growing(Runner):
        def call(self, method: str, **arguments: Any) -> Any:
            answer = super().call(method, **arguments)
            return answer if method != "answer" else answer | {"seconds": len(arguments["prompts"]) ** 1.5}

    contenders["transformers"] = Growing(0.001, name="transformers")
    figures = measure(contenders, small(parts=("mixed",), rounds=1, requests=128))
    assert figures.static_batch == 16
    assert {len(c["prompts"]) for c in contenders["transformers"].calls} == {2, 16, 32}


def test_work_is_split_in_order_and_whole():
    parts = mixed(10, seed=3).split(4)
    assert [len(p.prompts) for p in parts] == [4, 4, 2]
    assert Work(sum((p.prompts for p in parts), ()), sum((p.outputs for p in parts), ())) == mixed(10, seed=3)
    assert all(16 <= n <= 256 for n in mixed(500, seed=1).outputs)


def test_an_answer_of_another_length_is_an_error_and_everybody_is_closed():
    contenders, journal = field_of(continuous=0.1, vllm=0.1)
    contenders["vllm"].short = 1
    with pytest.raises(
        ContenderFailed, match=r"vllm was asked for answers of \[4, 4\] tokens and gave \[3, 3\]"
    ):
        measure(contenders, small())
    assert {name for what, name in journal if what == "close"} == set(contenders)


def test_transformers_own_continuous_batching_runs_at_64_only():
    contenders, _ = field_of(continuous=0.01, transformers_cb=1.0)
    figures = measure(contenders, small(parts=("concurrency", "mixed"), concurrency=(16, 64), rounds=1))
    took_part = {row: list(rates) for row, rates in figures.rates.items()}
    assert took_part == {"16": ["continuous"], "64": ["continuous", "transformers-cb"], MIXED: ["continuous"]}


def test_requests_with_a_known_prefix_share_exactly_that_prefix():
    contenders, _ = field_of(continuous=0.01)
    measure(contenders, small(parts=("prefix",), rounds=2))
    asked = [c["prompts"] for c in contenders["continuous"].calls if c["method"] == "first_tokens"]
    warm, first, _, second = asked
    for prompts in (first, second):
        assert len({tuple(p[:512]) for p in prompts}) == 1
        assert len({tuple(p[512:]) for p in prompts}) == len(prompts) == 16
    assert first[0][:512] != second[0][:512] != warm[0][:512]


def report_of(monkeypatch, plan: Plan, model: str = "bench-30m", **per_token: float):
    contenders, _ = field_of(continuous=0.01, **per_token)
    monkeypatch.setattr(engine_report, "ENGINES", {"continuous": ""})
    monkeypatch.setattr(engine_rivals, "check_rivals", lambda names: None)
    monkeypatch.setattr(engine_rivals, "versions", lambda names: dict.fromkeys(names, "1.0"))
    rivals = [name for name in contenders if name != "continuous"]
    return run([model], rivals, plan, start=lambda name, model, dtype: contenders[name])


def test_a_report_sets_each_ratio_beside_its_target(monkeypatch):
    plan = small(parts=engine_report.PARTS, concurrency=(1, 64))
    report = report_of(monkeypatch, plan, vllm=0.012, transformers=0.02, transformers_cb=0.3)
    kept = json.loads(json.dumps(report.to_json()))
    by_name = {t.name: (round(t.value, 2), t.target, t.met) for t in report.targets}
    assert by_name["bench-30m, 1 at once: continuous / vllm"] == (1.2, 1.3, False)
    assert by_name["bench-30m, 64 at once: continuous / transformers"] == (2.0, 1.5, True)
    assert by_name["bench-30m, 64 at once: continuous / transformers-cb"] == (30.0, 20.0, True)
    assert by_name["bench-30m, mixed lengths: continuous / vllm"] == (1.2, 1.5, False)
    assert by_name["bench-30m: first token, new prefix of 512 / known prefix"] == (8.0, 5.0, True)
    assert by_name["bench-30m: hit in the result cache"] == (20.0, 50.0, True)
    assert by_name["bench-30m: bookkeeping at 64 sequences, of a step"] == (0.4, 0.15, False)
    assert len(by_name) == len(kept["targets"]) == 10
    assert kept["rivals"] == {"vllm": "1.0", "transformers": "1.0", "transformers-cb": "1.0"}


def test_mixed_lengths_promise_nothing_on_other_models(monkeypatch):
    report = report_of(monkeypatch, small(parts=("mixed",)), model="course-tiny", vllm=0.02)
    assert report.targets == []
    assert report.models["course-tiny"].rates[MIXED].keys() == {"continuous", "vllm"}


def test_a_table_has_a_row_per_load_and_leaves_empty_who_did_not_take_part(monkeypatch):
    report = report_of(monkeypatch, small(concurrency=(16, 64)), vllm=0.02, transformers_cb=0.5)
    speeds, _ = tables(report)
    cells = list(zip(*(column.cells for column in speeds.columns), strict=True))
    assert cells == [
        ("16 at once", "1,600", "800", "2.00", "", ""),
        ("64 at once", "6,400", "3,200", "2.00", "128", "50.00"),
    ]


def test_ratios_are_taken_within_a_round_before_their_median():
    rates = {"continuous": [10.0, 40.0, 90.0], "vllm": [5.0, 10.0, 90.0]}  # the machine grew faster meanwhile
    assert engine_report.ratio(rates, "continuous", "vllm") == 2.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"parts": ("prefixes",)}, UnknownName, "unknown part 'prefixes'.*did you mean 'prefix'"),
        ({"concurrency": (4, 0)}, InvalidSetting, r"concurrency=\[4, 0\]"),
        ({"rounds": 0}, InvalidSetting, "rounds=0"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_before_anything_starts(changes, error, message):
    def start(*_: str) -> Any:
        raise AssertionError("started")

    with pytest.raises(error, match=message):
        run(["course-tiny"], [], small(**changes), ours="simulated", start=start)


def test_a_contender_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(engine_rivals, "find_spec", lambda package: None if package == "vllm" else object())
    with pytest.raises(InvalidSetting, match=r"can't compare with vllm.*`make vllm`"):
        engine_rivals.check_rivals(["transformers", "vllm"])
    with pytest.raises(UnknownName, match=r"unknown contender 'vlm'.*did you mean 'vllm'"):
        engine_rivals.check_rivals(["vlm"])
    engine_rivals.check_rivals(["transformers", "transformers-cb"])


def test_the_command_refuses_numbers_that_are_none():
    result = CliRunner().invoke(app, ["bench", "rivals", "--concurrency", "1,four"])
    assert isinstance(result.exception, InvalidSetting)
    assert "--concurrency '1,four'" in str(result.exception)


def test_our_engine_and_transformers_race_on_a_real_model():
    plan = Plan(parts=("concurrency",), concurrency=(1, 2), rounds=1, turn=0.0)
    contenders: dict[str, Any] = {
        name: engine_rivals.start(contender, "course-tiny", "float32")
        for name, contender in {"ours": "continuous", "transformers": "transformers"}.items()
    }
    figures = measure(contenders, plan)
    assert {row: list(rates) for row, rates in figures.rates.items()} == {
        "1": ["ours", "transformers"],
        "2": ["ours", "transformers"],
    }
    assert all(rate > 0 for rates in figures.rates.values() for [rate] in rates.values())


def test_bookkeeping_is_what_of_a_step_is_not_the_model_s():
    assert bookkeeping_share({"planning": 1.0, "computing": 6.0, "telling": 3.0, "steps": 63}) == 0.4


def test_too_much_bookkeeping_misses_its_target():
    report = run(["course-tiny"], [], Plan(("bookkeeping",), rounds=1), start=lambda *_: Runner(1.0))
    [target] = report.targets
    assert (target.value, target.met) == (0.4, False)


def test_the_bookkeeping_of_the_real_engine_is_read_from_its_steps():
    ours = Ours("continuous", "course-tiny", "float32")
    try:
        told = ours.bookkeeping([[5] * 8, [6] * 8], [4, 4])
    finally:
        ours._engine.shutdown()
    assert told["steps"] in (2, 3)  # the record of the last step may follow its tokens
    assert min(told["planning"], told["computing"], told["telling"]) > 0
