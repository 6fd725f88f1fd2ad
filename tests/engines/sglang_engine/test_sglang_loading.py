"""Loading and ending SGLang, of which a stand-in takes the place: bad settings, processes, failures."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import psutil
import pytest
from scripted_sglang import Script

from servinglib.engines.sglang_config import SGLangConfig
from servinglib.engines.sglang_engine import SGLangEngine
from servinglib.errors import EngineFailed, EngineUnavailable, InvalidSetting, ModelUnavailable, UnknownName
from servinglib.request import Request, SamplingParams

# Refusals before anything is started


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp_size": 0}, "tp_size=0 must be at least 1"),
        ({"max_running_requests": 0}, "max_running_requests=0"),
        ({"mem_fraction_static": 1.0}, r"mem_fraction_static=1.0 must lie between 0 and 1"),
        ({"mem_fraction_static": 0.0}, "mem_fraction_static=0.0"),
        ({"chunked_prefill_size": 0}, "chunked_prefill_size=0"),
        ({"speculative_num_steps": 3}, "speculative_num_steps without speculative_algorithm"),
        ({"speculative_algorithm": "STANDALONE"}, "give speculative_draft_model_path"),
        ({"context_length": 5000}, r"context_length=5,000.* holds 4,096"),
        ({"quantization": "gptq"}, "quantization='gptq', but the checkpoint's weights are not quantized"),
        ({"tp_size": 1000}, "tp_size=1000, but torch sees"),
    ],
)
def test_a_bad_setting_is_refused_before_sglang_is_started(
    script: Script, load: Callable, options: dict, message: str
):
    with pytest.raises(InvalidSetting, match=message):
        load(**options)
    assert script.engines == []


@pytest.mark.parametrize("option", ["dtype", "device", "log_level", "quantization", "speculative_algorithm"])
def test_a_name_that_sglang_does_not_know_is_refused_with_those_that_it_does(option: str):
    options: dict[str, Any] = {option: "cudo"}
    with pytest.raises(UnknownName, match=f"unknown {option} 'cudo'"):
        SGLangConfig(**options)


def test_a_draft_model_that_is_not_there_is_refused_before_sglang_is_started(script: Script, load: Callable):
    with pytest.raises(ModelUnavailable, match="nobody/knows-it"):
        load(speculative_algorithm="STANDALONE", speculative_draft_model_path="nobody/knows-it")
    assert script.engines == []


def test_without_sglang_the_error_tells_how_to_install_it_and_how_to_go_back(
    model: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("servinglib.engines.sglang_engine.find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match=r"pip install.*sglang==.*`engine: transformers`"):
        SGLangEngine.load(model)


# Processes


def sleeper() -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    return process


@pytest.fixture
def neighbour() -> Iterator[BaseProcess]:
    process = sleeper()
    yield process
    process.kill()
    process.join()


def test_shutdown_ends_sglang_s_processes_and_no_others(
    script: Script, load: Callable, neighbour: BaseProcess
):
    children = []
    script.starting = lambda: children.append(sleeper())
    engine = load()
    assert children[0].is_alive()
    engine.generate("hello", max_tokens=1)
    engine.shutdown()
    assert not psutil.pid_exists(children[0].pid)
    assert neighbour.is_alive()


def test_a_guard_knows_sglang_s_processes_as_long_as_they_live(
    script: Script, load: Callable, monkeypatch: pytest.MonkeyPatch
):
    orders: list[Any] = []

    class Listener:
        def watch(self, pid: int) -> None:
            orders.append(pid)

        def close(self) -> None:
            orders.append("close")

    monkeypatch.setattr("servinglib.engines.sglang_process.Guard", Listener)
    children = []
    script.starting = lambda: children.append(sleeper())
    load().shutdown()
    assert orders == [children[0].pid, "close"]


def test_a_start_that_fails_leaves_no_process_and_tells_the_reason(script: Script, load: Callable):
    children = []

    def fail() -> None:
        children.append(sleeper())
        raise RuntimeError("Rank 0 scheduler died during initialization (exit code: -9)")

    script.starting = fail
    threads = threading.active_count()
    with pytest.raises(EngineFailed, match="Rank 0 scheduler died"):
        load()
    assert not psutil.pid_exists(children[0].pid)
    assert threading.active_count() == threads


def test_shutdown_stops_what_sglang_does_in_this_process(script: Script, load: Callable):
    engine = load()
    engine.generate("hello", max_tokens=1)
    engine.shutdown()
    theirs = script.engine
    assert theirs.task is not None
    assert theirs.task.cancelled()
    assert theirs.tokenizer_manager._subprocess_watchdog.calls == ["stop"], "it would see a failure"
    assert theirs.send_to_rpc.calls == ["close"]


@pytest.fixture
def quiet_quit() -> Iterator[None]:
    """SIGQUIT does nothing, unless an engine heeds it."""
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGQUIT, before)


@pytest.mark.usefixtures("quiet_quit")
def test_when_a_process_of_sglang_fails_its_requests_end_with_an_error_and_this_process_lives(load: Callable):
    engine = load()
    running = engine.stream("hello", max_tokens=2000, ignore_eos=True)
    next(running)
    os.kill(os.getpid(), signal.SIGQUIT)  # which is how they tell
    with pytest.raises(EngineFailed, match="one of SGLang's processes has failed"):
        list(running)
    with pytest.raises(EngineFailed):
        engine.generate("hello")
    engine.shutdown()
    assert signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN, "as before"


def test_an_engine_may_be_loaded_and_ended_in_any_thread(load: Callable):
    before = signal.getsignal(signal.SIGQUIT)
    answers: list[Any] = []

    def work() -> None:
        engine = load()
        answers.extend(engine.generate_batch([Request("r", "hello", SamplingParams(max_tokens=2))]))
        engine.shutdown()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(answers[0].token_ids) == 2
    assert signal.getsignal(signal.SIGQUIT) is before
