"""What the GPU says of itself while something is measured, and how fast its memory is.

`nvidia-smi` in a process of its own writes a line five times a second: asking from inside would take
time from the thread that is being measured. Where there is no such program nothing is told. Of several
GPUs only the first that this process may use is watched, since the others idle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from itertools import pairwise
from statistics import mean, median
from typing import Any

QUERY = ("utilization.gpu", "power.draw", "memory.used")
COPIED = 2 << 30  # bytes; many times what the caches hold
DATA_SHEETS = {"NVIDIA H200": 4.8e12}  # bytes per second that the maker promises, by torch's name of the GPU


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
            which = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
            query = [f"--id={which}", f"--query-gpu={','.join(QUERY)}"]
            command = [self._program, *query, "--format=csv,noheader,nounits", "-lms", "200"]
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


def nominal_bandwidth() -> float | None:
    """Bytes per second by the data sheet of this GPU; None where there is none, or another one."""
    import torch

    return DATA_SHEETS.get(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def device_bandwidth(times: int = 40) -> float:
    """Bytes per second that a copy in the GPU's memory reads and writes.

    The median of some: a GPU that has idled does the first ones at a low clock. What was copied is
    given back, since an engine that comes next counts the memory that is free.
    """
    import torch

    source = torch.randint(0, 255, (COPIED,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    events[0].record()
    for event in events[1:]:
        target.copy_(source)
        event.record()
    events[-1].synchronize()
    milliseconds = median(begin.elapsed_time(end) for begin, end in pairwise(events))
    del source, target
    torch.cuda.empty_cache()
    return 2 * COPIED / (milliseconds / 1e3)
