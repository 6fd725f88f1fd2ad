"""Whoever has computed gives the team of threads back, so that others need not sleep for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOOK = """
import time
import psutil

def soon(count):
    end = time.perf_counter() + 10
    while psutil.Process().num_threads() > count and time.perf_counter() < end:
        pass  # a thread that was told to end needs a moment for it
    return psutil.Process().num_threads()
"""
MAIN = """
import torch
before = psutil.Process().num_threads()
torch.ones(4_000_000).sum()
during = psutil.Process().num_threads()
from servinglib.decoder.threads import dismiss_team
dismiss_team()
print(during - before, soon(before) - before)
"""
ENGINE = """
import torch
from servinglib.engines.continuous.engine import ContinuousEngine
threads = psutil.Process().num_threads
with ContinuousEngine.load("course-tiny", dtype="float32") as engine:
    during = []
    for event in engine.stream("def f(x):", max_tokens=20, ignore_eos=True):
        during.append(threads())
    print(soon(min(during) - 1) < min(during))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc/self/maps")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize(("program", "said"), [(MAIN, "1 0"), (ENGINE, "True")])
def test_a_team_that_nobody_needs_is_dismissed(program: str, said: str):
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    told = subprocess.run(
        [sys.executable, "-c", LOOK + program], env=environment, text=True, capture_output=True, check=True
    )
    assert told.stdout.strip() == said
