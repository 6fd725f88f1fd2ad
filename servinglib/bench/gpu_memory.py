"""Whose GPU memory is it? NVML tells what is in use, not by whom, so whoever moves is watched by himself.

Several lodgers share a larder with one scale under it. If only one of them may enter at a time, what the
scale shows before and after his visit is his doing. So an engine's share is what loading added, and what
each of its turns added, while all others stood still; its peak is the most that this ever came to.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from servinglib.bench.gpu_monitor import GpuMonitor
from servinglib.bench.gpu_report import GIB, GpuReport


class GpuLedger:
    """Keeps the account of what each engine holds.

    Parameters
    ----------
    monitor : callable
        Makes a `GpuMonitor`.
    """

    def __init__(self, monitor: Callable[[], GpuMonitor] = GpuMonitor) -> None:
        self._monitor = monitor
        self._held: dict[str, int | None] = {}
        self._peak: dict[str, int | None] = {}

    def peak_gib(self, name: str) -> float | None:
        """The most that an engine held; None without a GPU, or if it did not tell."""
        peak = self._peak[name]
        return None if peak is None else peak / GIB

    @contextmanager
    def working(self, name: str) -> Generator[GpuMonitor]:
        """Only this engine works in the meantime; the monitor watches it."""
        before = self._used()
        with self._monitor() as monitor:
            yield monitor
        during, after = _bytes(monitor.report()), self._used()
        held = self._held.get(name, 0)
        if before is None or during is None or after is None or held is None:
            self._held[name] = self._peak[name] = None
            return
        self._peak[name] = max(self._peak.get(name) or 0, held + during - before)
        self._held[name] = held + after - before

    def _used(self) -> int | None:
        with self._monitor() as monitor:
            pass
        return _bytes(monitor.report())


def _bytes(report: GpuReport) -> int | None:
    told = [gpu.memory_used_max_bytes for gpu in report.gpus if gpu.visible]
    known = [each for each in told if each is not None]
    return sum(known) if known and len(known) == len(told) else None
