"""How fast the GPU's memory is: by its data sheet, and as a copy finds it.

What the GPU does while something is measured is `gpu_monitor.py`'s to tell.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median

COPIED = 2 << 30  # bytes; many times what the caches hold
DATA_SHEETS = {"NVIDIA H200": 4.8e12}  # bytes per second that the maker promises, by torch's name of the GPU


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
