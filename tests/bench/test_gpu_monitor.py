"""The GPU monitor, told by scripted GPUs under a clock that only waiting moves."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pynvml
import pytest

from servinglib.bench import gpu_monitor
from servinglib.bench.gpu_monitor import GpuMonitor, visible_gpus
from servinglib.bench.gpu_report import Level
from servinglib.errors import InvalidSetting

GIB = 2**30


@pytest.fixture(autouse=True)
def every_gpu_is_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


class NvmlError(Exception):
    """What the scripted driver raises."""


UNSUPPORTED = NvmlError("Not Supported")
LOST = NvmlError("GPU is lost")


def card(**figures: Any) -> dict[str, list[Any]]:
    """A GPU's answers, reading by reading, the last one for good; an exception is raised."""
    told = {"busy": 50, "memory": 8 * GIB, "watts": 300.0, "joules": UNSUPPORTED} | figures
    return {name: each if isinstance(each, list) else [each] for name, each in told.items()}


class ScriptedNvml:
    """As much of the module `pynvml` as the monitor uses."""

    NVMLError = NvmlError

    def __init__(self, *cards: dict[str, list[Any]], init: Exception | None = None) -> None:
        self.cards, self.init = cards, init
        self.opened = self.asked = 0

    def nvmlInit(self):
        if self.init is not None:
            raise self.init
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        if "handle" in self.cards[index]:
            raise self.cards[index]["handle"][0]
        return index

    def nvmlDeviceGetName(self, index):
        return f"Card {index}"

    def nvmlDeviceGetUUID(self, index):
        return f"GPU-{index}{index}"

    def nvmlDeviceGetUtilizationRates(self, index):
        busy = self._next(index, "busy")
        return SimpleNamespace(gpu=busy, memory=busy // 2)

    def nvmlDeviceGetMemoryInfo(self, index):
        return SimpleNamespace(used=self._next(index, "memory"), total=80 * GIB)

    def nvmlDeviceGetPowerUsage(self, index):
        return 1000 * self._next(index, "watts")

    def nvmlDeviceGetTotalEnergyConsumption(self, index):
        return 1000 * self._next(index, "joules")

    def _next(self, index, name):
        self.asked += 1
        script = self.cards[index][name]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Waits:
    """Clock and stop signal in one: a wait moves the clock, and after so many the time is over."""

    def __init__(self, count: int) -> None:
        self.now, self.left, self.seconds = 100.0, count, []

    def __call__(self) -> float:
        return self.now

    def set(self) -> None: ...

    def wait(self, timeout: float) -> bool:
        if self.left == 0:
            return True
        self.left -= 1
        self.seconds.append(timeout)
        self.now += timeout
        return False


def watched(*cards: dict[str, list[Any]], samples: int = 3, interval: float = 0.5) -> GpuMonitor:
    """A monitor that has taken so many samples by its thread; the closing one falls on the last."""
    waits = Waits(samples)
    with GpuMonitor(interval, nvml=ScriptedNvml(*cards), clock=waits, stop=waits) as monitor:
        monitor._thread.join()
    return monitor


def figures(monitor: GpuMonitor, index: int = 0) -> dict[str, Any]:
    return monitor.report().to_json()["gpus"][index]


def test_the_script_has_the_names_of_the_real_library():
    names = [name for name in vars(ScriptedNvml) if name.lower().startswith("nvml")]
    assert [name for name in names if not hasattr(pynvml, name)] == []
    assert pynvml.c_nvmlUtilization_t(gpu=1, memory=2).memory == 2
    assert pynvml.c_nvmlMemory_t(used=1, total=2).total == 2


def levelled(mean: float, most: float) -> Any:
    return Level(cast("float", pytest.approx(mean)), most)


def test_two_gpus_are_watched_side_by_side():
    report = watched(card(busy=[0, 40, 60, 80]), card(watts=[70, 80.0, 90.0, 100.0], memory=0)).report()
    first, second = report.gpus
    assert (report.samples, report.seconds, report.off) == (4, 1.5, None)
    assert (first.name, first.uuid, first.memory_total_bytes) == ("Card 0", "GPU-00", 80 * GIB)
    assert first.utilisation_percent == levelled(60, 80)
    assert first.memory_utilisation_percent == levelled(30, 40)
    assert second.power_watts == levelled(90, 100)
    assert (first.memory_used_max_bytes, second.memory_used_max_bytes) == (8 * GIB, 0)
    assert json.loads(json.dumps(report.to_json()))["gpus"][1]["power_watts"]["mean"] == 90


def test_a_reading_speaks_for_the_time_before_it_and_the_first_one_for_none():
    waits = Waits(1)
    nvml = ScriptedNvml(card(watts=[999.0, 100.0, 400.0]))
    with GpuMonitor(3.0, nvml=nvml, clock=waits, stop=waits) as monitor:
        monitor._thread.join()
        waits.now += 1.0
    assert figures(monitor)["power_watts"] == {"mean": pytest.approx(175), "max": 400}
    assert figures(monitor)["energy_joules"] == pytest.approx(700)


def test_energy_is_what_the_counter_went_up_by_wherever_there_is_one():
    told = figures(watched(card(joules=[5000, 5100, 5200, 5300, 5450], watts=UNSUPPORTED)))
    assert (told["energy_joules"], told["energy_from"]) == (450, "counter")
    assert told["power_watts"] is None
    assert told["untold"] == {"power": "Not Supported"}


def test_energy_is_power_over_time_where_there_is_no_counter():
    told = figures(watched(card(watts=300.0)))
    assert (told["energy_joules"], told["energy_from"]) == (pytest.approx(450), "power")
    assert told["untold"] == {"energy": "Not Supported"}


def test_energy_is_not_guessed_over_a_gap():
    told = figures(watched(card(watts=[300.0, 300.0, NvmlError("Timeout"), 300.0])))
    assert (told["energy_joules"], told["energy_from"]) == (None, None)
    assert told["power_watts"]["mean"] == 300
    assert told["untold"]["power"] == "Timeout"


def test_what_one_gpu_does_not_tell_is_none_and_all_else_is_told():
    told = figures(watched(card(busy=UNSUPPORTED, watts=UNSUPPORTED)))
    assert [name for name, value in told.items() if value is None] == [
        "utilisation_percent", "memory_utilisation_percent", "power_watts",
        "energy_joules", "energy_from", "lost",
    ]  # fmt: skip
    assert told["memory_used_max_bytes"] == 8 * GIB


def test_a_gpu_that_vanishes_is_reported_with_what_it_told_before_and_the_others_go_on():
    gone = {name: [value, value, LOST] for name, value in (("busy", 50), ("memory", 1), ("watts", 100.0))}
    monitor = watched(card(**gone, joules=[0, 60, LOST]), card(joules=[0, 1, 2, 3, 4]))
    report = monitor.report()
    assert report.gpus[0].lost == "told nothing after 1.0 s: GPU is lost"
    assert (report.gpus[0].energy_joules, report.gpus[1].energy_joules) == (60, 4)
    assert report.energy_per_token(10) is None  # that of one is not known to the end
    assert "GPU is lost" in str(report)
    assert monitor._nvml.asked == 4 * 5 + 4 * 3  # it was asked once in vain


def test_a_gpu_that_was_gone_before_is_reported_too():
    report = watched(card(handle=LOST), card()).report()
    assert report.gpus[0].lost == "told nothing after 0.0 s: GPU is lost"
    assert report.gpus[0].utilisation_percent is None
    assert report.gpus[1].utilisation_percent is not None


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (ScriptedNvml(init=NvmlError("NVML Shared Library Not Found")), "NVML Shared Library Not Found"),
        (ScriptedNvml(), "the driver runs and finds none"),
    ],
)
def test_without_a_gpu_the_monitor_is_off_and_says_so(nvml, reason):
    with GpuMonitor(nvml=nvml) as monitor:
        assert monitor.off == f"no GPU: {reason}"
    report = monitor.report()
    assert str(report) == f"no GPU: {reason}"
    assert (report.samples, report.gpus, report.energy_per_token(10)) == (0, (), None)
    assert report.to_json()["off"] == f"no GPU: {reason}"
    assert (nvml.opened, monitor._thread.ident) == (0, None)


def test_a_driver_that_will_not_count_its_gpus_is_closed_again():
    nvml = ScriptedNvml(card())
    nvml.nvmlDeviceGetCount = raising(NvmlError("Unknown Error"))
    with GpuMonitor(nvml=nvml) as monitor:
        pass
    assert (monitor.off, nvml.opened) == ("no GPU: Unknown Error", 0)


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise error

    return call


def test_the_monitor_is_off_where_its_package_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with GpuMonitor() as monitor:
        pass
    assert "pip install nvidia-ml-py" in str(monitor.report())


def test_a_monitor_that_was_never_started_says_so():
    assert "was not started" in str(GpuMonitor(nvml=ScriptedNvml(card())).report())


def test_the_thread_waits_for_the_interval_between_samples():
    waits = Waits(4)
    with GpuMonitor(0.25, nvml=ScriptedNvml(card()), clock=waits, stop=waits) as monitor:
        monitor._thread.join()
    assert waits.seconds == [0.25] * 4
    assert monitor.report().interval == 0.25
    with pytest.raises(InvalidSetting, match="interval of 0 s"):
        GpuMonitor(0)


def test_before_the_first_sample_nothing_is_claimed():
    with GpuMonitor(1e6, nvml=ScriptedNvml(card(joules=7))) as monitor:
        report = monitor.report()
    [gpu] = report.gpus
    assert (report.samples, report.seconds) == (0, 0.0)
    assert (gpu.utilisation_percent, gpu.power_watts, gpu.energy_joules) == (None, None, None)
    assert monitor.report().samples == 1  # the closing one


def test_the_thread_ends_with_the_block_also_by_an_error():
    nvml = ScriptedNvml(card())
    monitor = GpuMonitor(1e6, nvml=nvml)
    with pytest.raises(KeyError), monitor:
        {}["measured in vain"]
    assert monitor._thread.ident is not None  # it had begun
    assert not monitor._thread.is_alive()
    assert nvml.opened == 0


def test_a_driver_that_never_answers_is_reported_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(gpu_monitor, "PATIENCE", 0.0)
    nvml = ScriptedNvml(card(), card(handle=LOST))
    asked, answer = threading.Event(), threading.Event()
    honest = nvml.nvmlDeviceGetPowerUsage

    def hang(index):
        if threading.current_thread() is monitor._thread:
            asked.set()
            answer.wait()
        return honest(index)

    nvml.nvmlDeviceGetPowerUsage = hang
    monitor = GpuMonitor(1e-6, nvml=nvml)
    with monitor:
        asked.wait()
    first, second = monitor.report().gpus
    assert first.lost == "NVML did not answer within 0 s"
    assert second.lost == "told nothing after 0.0 s: GPU is lost"  # as was known before
    answer.set()
    monitor._thread.join()  # it ends by itself when the answer comes


def test_energy_per_token_is_that_of_the_gpus_this_process_may_use(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    meters = [card(joules=[0, each]) for each in (1000, 30, 60)]
    report = watched(*meters).report()
    assert [gpu.visible for gpu in report.gpus] == [False, True, True]
    assert report.energy_per_token(9) == 10
    assert report.energy_per_token(0) is None
    assert "GPU 0 (not visible to this process):" in str(report)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert watched(card(joules=[0, 9])).report().energy_per_token(9) is None


def test_the_report_is_one_line():
    line = str(watched(card(busy=87, watts=[0, 300.0, 500.0], memory=20 * GIB)).report())
    assert line == "1.5 s, 4 samples; GPU 0: 87% busy, 20.0 of 80.0 GiB, 433 W (at most 500), 650 J"


@pytest.mark.parametrize(
    ("allowed", "shown"),
    [
        (None, {0, 1, 2}),
        ("", set()),
        ("2, 0", {0, 2}),
        ("0,-1,1", {0}),  # as CUDA has it, nothing after an entry that names none
        ("GPU-ab", {1}),
        ("GPU-a,0", set()),  # that begins two ids
        ("MIG-ab/1/0", set()),
    ],
)
def test_gpus_are_visible_as_cuda_reads_its_variable(allowed, shown):
    assert visible_gpus(allowed, ["GPU-aa", "GPU-ab", None]) == shown
