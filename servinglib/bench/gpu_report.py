"""What the GPUs did while something was measured, from what their meters showed: `gpu_monitor.py` reads them.

A household's bill is made of two looks at the meter, one before the month and one after. So is the energy
here, where a GPU has such a counter; where it has none, power times time is added up, as with a clamp
around the cable. Every reading speaks for the time since the one before it, since the driver itself tells
means over the moments past: utilisation over 1/6 to 1 s, power on most GPUs over 1 s. Hence means of a run
shorter than a few seconds are coarse, and what a GPU did not tell is None with its reason, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Reading:
    """What a GPU told at `time` (seconds); None is what it did not tell.

    Attributes
    ----------
    utilisation, memory_utilisation : float or None
        Percent of the time in which a kernel ran, or memory was read or written.
    memory_used, memory_total : int or None
        Bytes; what the driver keeps for itself counts as used.
    power : float or None
        Watts.
    energy : float or None
        Joules since the driver was loaded.
    """

    time: float
    utilisation: float | None
    memory_utilisation: float | None
    memory_used: int | None
    memory_total: int | None
    power: float | None
    energy: float | None


@dataclass(frozen=True, slots=True)
class Level:
    """A quantity over a time: its mean, each value by the time it speaks for, and the greatest value."""

    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """What one GPU did.

    Attributes
    ----------
    index : int
        As NVML and `nvidia-smi` count.
    name, uuid : str or None
    visible : bool
        Whether this process may use it, by CUDA_VISIBLE_DEVICES.
    memory_total_bytes, memory_used_max_bytes : int or None
    utilisation_percent, memory_utilisation_percent, power_watts : Level or None
    energy_joules : float or None
        None also if it could be known for a part of the time only.
    energy_from : str or None
        "counter" of the GPU, or the sum of "power" over time.
    untold : mapping of str to str
        Queries that failed, with the last reason.
    lost : str or None
        Why it told nothing more before the end; the figures are those up to then.
    """

    index: int
    name: str | None
    uuid: str | None
    visible: bool
    memory_total_bytes: int | None
    memory_used_max_bytes: int | None
    utilisation_percent: Level | None
    memory_utilisation_percent: Level | None
    power_watts: Level | None
    energy_joules: float | None
    energy_from: Literal["counter", "power"] | None
    untold: Mapping[str, str]
    lost: str | None

    def __str__(self) -> str:
        busy, watts = self.utilisation_percent, self.power_watts
        told = [
            f"{busy.mean:.0f}% busy" if busy else "",
            self._memory(),
            f"{watts.mean:.0f} W (at most {watts.max:.0f})" if watts else "",
            f"{self.energy_joules:.0f} J" if self.energy_joules is not None else "",
            self.lost or "",
        ]
        hidden = "" if self.visible else " (not visible to this process)"
        return f"GPU {self.index}{hidden}: " + (", ".join(filter(None, told)) or "nothing told")

    def _memory(self) -> str:
        used, total = self.memory_used_max_bytes, self.memory_total_bytes
        return "" if used is None or total is None else f"{used / GIB:.1f} of {total / GIB:.1f} GiB"


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What all GPUs of the machine did; `str` of it is one line.

    Attributes
    ----------
    interval : float
        Seconds asked for between two samples.
    samples : int
        Readings after the first one.
    seconds : float
        From the first reading to the last.
    gpus : sequence of GpuFigures
    off : str or None
        Why nothing was watched; there are no figures then.
    """

    interval: float
    samples: int
    seconds: float
    gpus: Sequence[GpuFigures]
    off: str | None = None

    def energy_per_token(self, tokens: int) -> float | None:
        """Joules of all visible GPUs, idle ones too, for each of so many tokens.

        None if the energy of one of them is not known from beginning to end, or none is visible, or there
        were no tokens.
        """
        joules = [None if gpu.lost else gpu.energy_joules for gpu in self.gpus if gpu.visible]
        known = [each for each in joules if each is not None]
        return sum(known) / tokens if tokens > 0 and known and len(known) == len(joules) else None

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.off is not None:
            return self.off
        return f"{self.seconds:.1f} s, {self.samples} samples; " + "; ".join(map(str, self.gpus))


def level(values: Sequence[float | None], seconds: Sequence[float]) -> Level | None:
    """Of what was told, each value weighed by the seconds it speaks for; None of nothing."""
    told = [(value, weight) for value, weight in zip(values, seconds, strict=True) if value is not None]
    total = sum(weight for _, weight in told)
    if total <= 0:
        return None
    return Level(sum(value * weight for value, weight in told) / total, max(value for value, _ in told))


def energy(readings: Sequence[Reading]) -> tuple[float | None, Literal["counter", "power"] | None]:
    """Joules from the first reading to the last, and where they are known from; None if they are not.

    The counter needs its two ends, power every reading: a gap would pass for a time without any.
    """
    if len(readings) < 2:
        return None, None
    first, last = readings[0].energy, readings[-1].energy
    if first is not None and last is not None:
        return last - first, "counter"
    total = 0.0
    for before, after in pairwise(readings):
        if after.power is None:
            return None, None
        total += after.power * (after.time - before.time)
    return total, "power"


def summarise(readings: Sequence[Reading]) -> dict[str, Any]:
    """The figures of a GPU with these readings, the first of which opens the time that is told of."""
    spans = [after.time - before.time for before, after in pairwise(readings)]
    told = readings[1:]
    joules, source = energy(readings)
    return {
        "memory_total_bytes": _greatest([each.memory_total for each in readings]),
        "memory_used_max_bytes": _greatest([each.memory_used for each in readings]),
        "utilisation_percent": level([each.utilisation for each in told], spans),
        "memory_utilisation_percent": level([each.memory_utilisation for each in told], spans),
        "power_watts": level([each.power for each in told], spans),
        "energy_joules": joules,
        "energy_from": source,
    }


def _greatest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
