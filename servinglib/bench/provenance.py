"""A number carries its birth certificate: where, when, how and with what it was measured.

Every stored result embeds `birth_certificate()`, so that a reader can tell a measurement on their
own machine from a recorded one, and two recorded ones from each other.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("servinglib", "torch", "triton", "transformers", "numpy", "scipy", "numba", "simpy")


def birth_certificate(seed: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """Machine, versions, command, seed and date of a result, ready for JSON.

    The command is told without its folder: a stored result names no path of the machine.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "machine": {
            "cpu": _cpu_name(),
            "cores": cores(),
            "memory_gib": round(_memory_bytes() / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "device": device,
            **({"gpu": _gpu()} if device.startswith("cuda") else {}),
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_gib(children: int = 0) -> float:
    """Peak resident memory of this process, plus `children` times that of its largest child.

    Pages that processes share count for each of them.
    """
    try:
        import resource
    except ImportError:  # Windows keeps no such account; what is resident now is the next best
        import psutil

        return psutil.Process().memory_info().rss / 2**30
    own, child = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return (own + children * child) / (2**30 if sys.platform == "darwin" else 2**20)


def _memory_bytes() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import psutil

    return psutil.virtual_memory().total


def _gpu() -> dict[str, str]:
    """Name, driver and memory as `nvidia-smi` tells them, and the CUDA that torch was built with."""
    import torch

    found = {"cuda": str(torch.version.cuda)}
    if shutil.which("nvidia-smi"):
        names = ("name", "driver_version", "memory.total")
        query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False).stdout
        if told:  # the first line is the first GPU
            found |= zip(names, [each.strip() for each in told.splitlines()[0].split(",")], strict=False)
    return found


def _versions() -> dict[str, str]:
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
