"""What engines can be told: one dataclass for each, its fields the options, its defaults what nobody said.

A form at a counter: its boxes have names, and what stands in them is looked at before anybody is called
from the back. These classes need no torch, so a configuration can be read and refused in an instant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from servinglib.errors import InvalidSetting, UnknownName
from servinglib.policies.step_time import StepTime

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def checked(kind: type[T], options: Mapping[str, Any]) -> T:
    """`kind(**options)`; an option that the dataclass `kind` lacks is refused by name."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for option in options:
        if option not in names:
            raise UnknownName("option", option, names)
    return kind(**options)


def check_device(device: str) -> None:
    """Refuse a device of an unknown kind; "cuda:1" and the like are of a known one."""
    if device != "auto" and device.partition(":")[0] not in DEVICES[1:]:
        raise UnknownName("device", device, DEVICES)


def check_dtype(dtype: str) -> None:
    """Refuse an unknown number format."""
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)


@dataclass(frozen=True, slots=True)
class TransformersSettings:
    """Options of `TransformersEngine.load`.

    Attributes
    ----------
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA where there is a GPU; "cuda:1" and the like work too.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        "auto" is bfloat16 where the hardware multiplies it (`choose_dtype`), else float32. Only
        float32 makes greedy answers practically independent of what else is in the batch.
    threads : int, optional
        CPU threads of torch, for the whole process; unset leaves torch's choice.
    allow_download : bool, optional
        Fetch a hub model that isn't here yet; unset asks the environment, whose default is no.
    trust_remote_code : bool
        Run code that comes with the checkpoint.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    allow_download: bool | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_device(self.device)
        check_dtype(self.dtype)
        if self.threads is not None and self.threads < 1:
            raise InvalidSetting(f"threads={self.threads} must be at least 1")


@dataclass(frozen=True, slots=True)
class SimulatedSettings:
    """Options of `SimulatedEngine.load`; `step_time`, `sleep` and `clock` are for programs alone.

    Attributes
    ----------
    a, b, c, d : float
        How long a step takes, as in `StepTime`; the defaults are of the order of a 30M model on two
        CPU cores.
    seed : int
        Another seed, other answers.
    context_length : int
        Most tokens of prompt and answer together.
    step_time : StepTime, optional
        In place of the four numbers.
    sleep, clock : callable
        Wait some seconds, and tell the time in seconds. Tests give a pair that only counts.
    """

    a: float = 0.010
    b: float = 0.0005
    c: float = 0.0
    d: float = 0.0003
    seed: int = 0
    context_length: int = 4096
    step_time: StepTime | None = None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        StepTime(self.a, self.b, self.c, self.d)
        if self.context_length < 1:
            raise InvalidSetting(f"context_length={self.context_length} must be at least 1")
        said = [f.name for f in fields(self) if f.name in "abcd" and getattr(self, f.name) != f.default]
        if self.step_time is not None and said:
            raise InvalidSetting(f"step_time and {', '.join(said)} say the same thing twice; leave one out")

    @property
    def law(self) -> StepTime:
        """How long a step takes."""
        return self.step_time or StepTime(self.a, self.b, self.c, self.d)
