"""What the GPU says of itself while something is measured, and how fast its memory is.

`nvidia-smi` in a process of its own writes a line five times a second: asking from inside would take
time from the thread that is being measured. Where there is no such program nothing is told.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from statistics import mean
from typing import Any

QUERY = ("utilization.gpu", "power.draw", "memory.used")
COPIED = 2 << 30  # bytes; many times what the caches hold


class GpuWatch:
    """Watches from `with` to its end.

    Parameters
    ----------
    device : str
        Nothing is watched but "cuda".
    """

    def __init__(self, device: str) -> None:
        self._program = shutil.which("nvidia-smi") if device == "cuda" else None
        self._lines: list[list[float]] = []

    def __enter__(self) -> GpuWatch:
        if self._program is not None:
            self._told = tempfile.TemporaryFile("w+")
            query = f"--query-gpu={','.join(QUERY)}"
            command = [self._program, query, "--format=csv,noheader,nounits", "-lms", "200"]
            self._child = subprocess.Popen(command, stdout=self._told, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        if self._program is None:
            return
        self._child.terminate()
        self._child.wait()
        self._told.seek(0)
        self._lines = _numbers(self._told.read())
        self._told.close()

    def summary(self) -> dict[str, Any] | None:
        """Mean and greatest of each figure: percent of the time, watts, MiB; None if nothing was told."""
        if not self._lines:
            return None
        columns = zip(QUERY, zip(*self._lines, strict=True), strict=True)
        figures = {name: {"mean": mean(column), "max": max(column)} for name, column in columns}
        return {"samples": len(self._lines), **figures}


def _numbers(text: str) -> list[list[float]]:
    """Whole lines of numbers; the last may be cut off, and a figure may be `[N/A]`."""
    lines = []
    for line in text.splitlines():
        try:
            numbers = [float(each) for each in line.split(",")]
        except ValueError:
            continue
        if len(numbers) == len(QUERY):
            lines.append(numbers)
    return lines


def device_bandwidth(times: int = 20) -> float:
    """Bytes per second that a copy in the GPU's memory reads and writes."""
    import torch

    source = torch.randint(0, 255, (COPIED,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
    target.copy_(source)
    begin.record()
    for _ in range(times):
        target.copy_(source)
    end.record()
    end.synchronize()
    return 2 * COPIED * times / (begin.elapsed_time(end) / 1e3)
