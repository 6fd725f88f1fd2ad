"""Watches the GPUs while something else is measured: the same way whatever engine runs, or saying why not.

A nurse who takes a pulse must not make the patient run. The monitor is a thread that sleeps, wakes every
fifth of a second, puts four questions to each GPU through NVML (the driver's own library, which
`nvidia-smi` asks as well), and sleeps again. While the driver answers, the interpreter is free for others;
it is held for some ten microseconds per GPU and sample, so no process of its own is needed for this.
One reading before and one after the measured time frame it, so that even a short run has both ends of the
energy counter. `gpu_report.py` makes the figures.

Utilisation is of the whole GPU, whoever uses it, and so is energy: of a slice (MIG) NVML tells none, and
such a GPU counts as not visible. CUDA counts GPUs as NVML does where all are alike or
CUDA_DEVICE_ORDER=PCI_BUS_ID; `visible` takes that for granted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol, Self

from servinglib.bench.gpu_report import GpuFigures, GpuReport, Reading, summarise
from servinglib.errors import InvalidSetting

PATIENCE = 5.0  # seconds for the last answer; a GPU that fell off its bus may never give one


class StopSignal(Protocol):
    """The part of `threading.Event` that the monitor uses."""

    def set(self) -> None: ...

    def wait(self, timeout: float) -> bool: ...


class GpuMonitor:
    """Watches all GPUs from `with` to its end; each monitor once.

    Without a GPU, a driver or the package nvidia-ml-py it does nothing, and never raises for that.

    Parameters
    ----------
    interval : float
        Seconds between two samples. The driver's own figures change no faster than every 0.1 s or so.
    nvml : module, optional
        What stands in for `pynvml`.
    clock : callable
        Seconds.
    stop : StopSignal, optional
        What the thread waits on between two samples.

    Attributes
    ----------
    off : str or None
        Why nothing is watched.

    Raises
    ------
    InvalidSetting
        If the interval is not above 0.
    """

    def __init__(
        self,
        interval: float = 0.2,
        *,
        nvml: Any = None,
        clock: Callable[[], float] = time.perf_counter,
        stop: StopSignal | None = None,
    ) -> None:
        if not interval > 0:
            raise InvalidSetting(f"an interval of {interval} s between samples is not above 0; 0.2 is usual")
        self.interval = interval
        self.off: str | None = "no GPU watched: the monitor was not started; use `with GpuMonitor()`"
        self._nvml, self._clock = nvml, clock
        self._stop: StopSignal = threading.Event() if stop is None else stop
        self._gpus: list[_Gpu] = []
        self._times: list[float] = []
        self._thread = threading.Thread(target=self._watch, name="gpu-monitor", daemon=True)

    def __enter__(self) -> Self:
        self.off = self._open()
        if self.off is None:
            self._sample()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.off is not None:
            return
        self._stop.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():  # in the driver; asking more would hang this thread as well
            for gpu in self._gpus:
                gpu.lose(f"NVML did not answer within {PATIENCE:g} s")
            return
        self._sample()
        self._close()

    def report(self) -> GpuReport:
        """What was found, or within the `with` what was found so far."""
        if self.off is not None:
            return GpuReport(self.interval, 0, 0.0, (), self.off)
        times, gpus = list(self._times), self._gpus
        visible = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), [gpu.uuid for gpu in gpus])
        figures = tuple(gpu.figures(gpu.index in visible) for gpu in gpus)
        return GpuReport(self.interval, len(times) - 1, times[-1] - times[0], figures)

    def _open(self) -> str | None:
        """Find the GPUs; returns why there is nothing to watch."""
        try:
            self._nvml = self._nvml or import_module("pynvml")
        except ImportError:
            return "no GPU watched: the package nvidia-ml-py is missing; `pip install nvidia-ml-py`"
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            return f"no GPU: {error}"
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            self._close()
            return f"no GPU: {error}"
        if not count:
            self._close()
            return "no GPU: the driver runs and finds none"
        self._gpus = [_Gpu(self._nvml, index) for index in range(count)]
        return None

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            self._sample()

    def _sample(self) -> None:
        now = self._clock()
        for gpu in self._gpus:
            gpu.read(now)
        self._times.append(now)

    def _close(self) -> None:
        with suppress(self._nvml.NVMLError):  # everything has been told by now
            self._nvml.nvmlShutdown()


class _Gpu:
    """One GPU, what it has told so far, and what it would not tell."""

    def __init__(self, nvml: Any, index: int) -> None:
        self.index = index
        self._nvml = nvml
        self._readings: list[Reading] = []
        self._untold: dict[str, str] = {}
        self._lost: str | None = None
        self._handle = self._ask("handle", nvml.nvmlDeviceGetHandleByIndex, index)
        self.name: str | None = self._tell("name", nvml.nvmlDeviceGetName)
        self.uuid: str | None = self._tell("uuid", nvml.nvmlDeviceGetUUID)

    def read(self, now: float) -> None:
        """Put down what it tells; one that tells nothing at all is lost, and is asked no more."""
        if self._lost is not None:
            return
        nvml = self._nvml
        busy = self._tell("utilisation", nvml.nvmlDeviceGetUtilizationRates)
        memory = self._tell("memory", nvml.nvmlDeviceGetMemoryInfo)
        milliwatts = self._tell("power", nvml.nvmlDeviceGetPowerUsage)
        millijoules = self._tell("energy", nvml.nvmlDeviceGetTotalEnergyConsumption)
        if busy is memory is milliwatts is millijoules is None:
            since = now - self._readings[0].time if self._readings else 0.0
            reason = self._untold.get("handle") or self._untold["memory"]
            self.lose(f"told nothing after {since:.1f} s: {reason}")
            return
        self._readings.append(
            Reading(
                now,
                busy and busy.gpu,
                busy and busy.memory,
                memory and memory.used,
                memory and memory.total,
                None if milliwatts is None else milliwatts / 1e3,
                None if millijoules is None else millijoules / 1e3,
            )
        )

    def lose(self, reason: str) -> None:
        """Note why it tells no more; the first reason stays."""
        self._lost = self._lost or reason

    def figures(self, visible: bool) -> GpuFigures:
        """What it did, by its readings."""
        return GpuFigures(
            index=self.index,
            name=self.name,
            uuid=self.uuid,
            visible=visible,
            untold=dict(self._untold),
            lost=self._lost,
            **summarise(list(self._readings)),
        )

    def _tell(self, what: str, query: Callable[[Any], Any]) -> Any:
        """The answer about this GPU, or None with its reason put down."""
        return self._ask(what, query, self._handle) if self._handle is not None else None

    def _ask(self, what: str, query: Callable[[Any], Any], about: Any) -> Any:
        try:
            return query(about)
        except self._nvml.NVMLError as error:
            self._untold[what] = str(error)
            return None


def visible_gpus(allowed: str | None, uuids: Sequence[str | None]) -> set[int]:
    """Which GPUs, of those with these ids, CUDA shows to a process with this CUDA_VISIBLE_DEVICES.

    As CUDA reads it: unset means all; numbers, or beginnings of ids, with commas; the first entry that
    names no GPU ends the list.
    """
    if allowed is None:
        return set(range(len(uuids)))
    shown: set[int] = set()
    for entry in map(str.strip, allowed.split(",")):
        named = [
            index
            for index, uuid in enumerate(uuids)
            if entry == str(index) or (entry.startswith("GPU-") and uuid and uuid.startswith(entry))
        ]
        if len(named) != 1:
            break
        shown.update(named)
    return shown
