"""An engine of the registry in a process of its own, to be compared with others by `engine_comparison.py`.

Each cook gets the same order on the same slip and a stopwatch of the same make: whatever engine it is, it
is loaded by its name, asked through the same `generate_batch`, and read from the timelines that it stamps.
TTFT counts from the moment the batch was handed over: a queue inside the engine is part of its answer.
"""

from __future__ import annotations

import itertools
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from servinglib.bench.contender_process import ContenderProcess, private_output, serve
from servinglib.bench.provenance import cores, peak_memory_gib
from servinglib.engines.base import Engine
from servinglib.engines.registry import load_engine
from servinglib.errors import InvalidSetting
from servinglib.request import Completion, Request, SamplingParams

GIB = 2**30
BYTES = 256  # the vocabulary of an engine that names none


class EngineInProcess:
    """What the benchmark asks of an engine; every method takes and returns what JSON can hold."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._serial = itertools.count()

    def load(self, engine: str, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Load a model; tells `seconds`, and the engine's `batching`, `context_length` and `vocabulary`."""
        start = time.perf_counter()
        self._engine = load_engine(engine, model, **options)
        seconds = time.perf_counter() - start
        can = self._engine.capabilities
        if not can.token_ids:
            raise InvalidSetting(
                f"the {engine} engine takes no prompts as token ids here, so prompts of equal length can't be "
                f"had; leave it out, or use a server that tells ids"
            )
        return {
            "seconds": seconds,
            "batching": can.batching,
            "context_length": self._engine.context_length,
            "vocabulary": getattr(self._engine, "vocabulary", BYTES),
        }

    def answer(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Answer all prompts together, each with exactly so many likeliest tokens.

        Returns
        -------
        dict
            `seconds` from the call to the last answer; by request, in order, `first_tokens` and `latencies`
            (seconds from the same moment) and `tokens`, how many the answer has.
        """
        engine, params = self._loaded, SamplingParams(max_tokens=tokens, ignore_eos=True)
        requests = [Request(f"bench-{next(self._serial)}", prompt, params) for prompt in prompts]
        start = engine.now()
        answers = [_whole(answer) for answer in engine.generate_batch(requests)]
        seconds = engine.now() - start
        lines = [answer.timeline for answer in answers]
        return {
            "seconds": seconds,
            "first_tokens": [(line.first_token or 0) / 1e9 - start for line in lines],
            "latencies": [(line.finished or 0) / 1e9 - start for line in lines],
            "tokens": [len(answer.token_ids) for answer in answers],
        }

    def counters(self) -> dict[str, Any]:
        """What the engine tells of itself."""
        return asdict(self._loaded.counters)

    def peak_memory(self) -> float:
        """GiB: the most that each of this engine's processes had resident, added up.

        Pages that they share count for each, and they need not have been at their peaks together.
        """
        mine = psutil.Process()
        return sum(map(_peak, [mine, *mine.children(recursive=True)]))

    def close(self) -> None:
        """Free the model, if one was loaded."""
        if self._engine is not None:
            self._engine.shutdown()

    @property
    def _loaded(self) -> Engine:
        assert self._engine is not None, "asked before `load`"
        return self._engine


def _whole(answer: Completion | Exception) -> Completion:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _peak(process: psutil.Process) -> float:
    """GiB; where the system keeps no high-water mark of another process, what it has resident now."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB
    if process.pid == psutil.Process().pid:
        return peak_memory_gib()
    with suppress(psutil.NoSuchProcess):
        return process.memory_info().rss / GIB
    return 0.0


def start(name: str) -> ContenderProcess:
    """A process that waits to be told what to load; `name` is for messages."""
    command = [sys.executable, "-m", "servinglib.bench.engine_comparison_process"]
    threads = str(cores())
    return ContenderProcess(name, command, {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads})


def main() -> None:
    """Serve one engine to the process that started this one."""
    answers = private_output()
    engine = EngineInProcess()
    try:
        serve(engine, sys.stdin, answers)
    finally:
        engine.close()


if __name__ == "__main__":
    main()
