"""The engine on a GPU: every part in a process of its own, with a limit, its result on disk as soon as it ends.

A lent instrument is given back when the hour is over, finished or not. So each figure goes into the
notebook when it is read off, each experiment stands on a table of its own (one that blows up, or hangs,
takes no other with it), and what could not be done is named with its reason. `gpu_parts.py` lists the
experiments; this file runs them: `servinglib bench gpu`, or `python -m servinglib.bench.gpu` where
nothing but torch, triton, transformers and numpy is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from servinglib.bench.provenance import birth_certificate
from servinglib.bench.recorded import write
from servinglib.errors import InvalidSetting, ServingError, UnknownName

# Seconds that a part may take, the most important first: a lease that ends early has had those.
LIMITS: Mapping[str, int] = {
    "build": 120,
    "correct": 100,
    "nano": 120,
    "sweep": 120,
    "profile": 60,
    "tune": 150,
    "ablation": 120,
    "policies": 100,
    "calibrate": 60,
    "spec": 60,
    "transformers": 60,
    "vllm": 240,
}
RECORD = "gpu.json"


@dataclass(frozen=True, slots=True)
class Options:
    """What all parts are told.

    Attributes
    ----------
    model : str
        A model of the zoo, or a folder.
    device : str
        "cuda" or "cpu".
    quick : bool
        Few and short measurements, to see that everything runs.
    """

    model: str = "bench-0.6b"
    device: str = "cuda"
    quick: bool = False


class Skip(Exception):
    """Why a part can't be done here."""


class Notes:
    """What a part has found so far, on disk after each figure."""

    def __init__(self, path: Path) -> None:
        self._path, self._found = path, {"status": "running", "results": {}}
        self._save()

    def note(self, name: str, value: Any) -> None:
        """Write a figure down."""
        self._found["results"][name] = value
        self._save()

    def close(self, status: str, error: str | None = None) -> None:
        """Say how the part ended."""
        self._found |= {"status": status, **({"error": error} if error else {})}
        self._save()

    def _save(self) -> None:
        """By one rename: whoever is stopped at this moment leaves the file as it was, not half of it."""
        unfinished = self._path.with_name(self._path.name + ".unfinished")
        unfinished.write_text(json.dumps(self._found))
        unfinished.replace(self._path)


def run(
    out: Path,
    options: Options,
    parts: Sequence[str] = tuple(LIMITS),
    seconds: float | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Path:
    """Run the parts one after another; returns the record, which is whole after each of them.

    Parameters
    ----------
    out : Path
        A folder; what is there of an earlier run is overwritten.
    options : Options
    parts : sequence of str
        Of `LIMITS`.
    seconds : float, optional
        For all parts together, counted from the call; what has not begun by then is left out, by name.
    tell : callable
        Hears a line when a part ends.

    Raises
    ------
    UnknownName, InvalidSetting
        Before anything runs.
    """
    end = time.perf_counter() + (float("inf") if seconds is None else seconds)
    _prepare(out, options, parts)
    record: dict[str, Any] = {
        "kind": "gpu",
        "birth": birth_certificate(0, options.device),
        "settings": asdict(options),
        "parts": {},
    }
    write(out / RECORD, record)  # over that of an earlier run, which must not pass for this one's
    for part in parts:
        limit = min(LIMITS[part], end - time.perf_counter())
        found = _run_part(part, options, out, limit) if limit > 1 else _left_out(seconds)
        record["parts"][part] = found
        write(out / RECORD, record)
        tell(f"{part}: {found['status']} ({found['seconds']:.0f} s) {_last_line(found.get('error'))}")
    return out / RECORD


def _prepare(out: Path, options: Options, parts: Sequence[str]) -> None:
    for part in parts:
        if part not in LIMITS:
            raise UnknownName("part", part, LIMITS)
    if options.device not in ("cuda", "cpu"):
        raise UnknownName("device", options.device, ("cuda", "cpu"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"--out {out} can't be a folder: {error.strerror}; name another") from error


def _run_part(part: str, options: Options, out: Path, limit: float) -> dict[str, Any]:
    """Its own process writes down each figure at once, so that what it found stays when it is stopped."""
    notes, log = out / f"{part}.json", out / f"{part}.log"
    notes.unlink(missing_ok=True)
    command = [sys.executable, "-m", "servinglib.bench.gpu_parts", part, str(notes)]
    start = time.perf_counter()
    with log.open("w") as output:
        # A group, to be ended as one, and no session: that would live on if we were ended ourselves.
        child = subprocess.Popen(
            [*command, json.dumps(asdict(options))],
            stdout=output,
            stderr=output,
            env=_environment(options),
            process_group=0,
        )
        try:
            code = child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
    found = json.loads(notes.read_text()) if notes.exists() else {"status": "failed", "results": {}}
    if code is None:
        found |= {"status": "stopped", "error": f"not at its end after the limit of {limit:.0f} s"}
    elif code != 0 or found["status"] not in ("done", "skipped"):
        said = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        found |= {"status": "failed", "error": found.get("error") or said or f"ended with exit code {code}"}
    return {**found, "seconds": round(time.perf_counter() - start, 2)}


def _environment(options: Options) -> dict[str, str]:
    """Ours; without a GPU for those who would take the one that is there when a CPU was asked for."""
    return {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {})}


def _end(child: subprocess.Popen[bytes]) -> None:
    """The child and all that it started: they have a process group to themselves, where there are any."""
    if os.name == "posix":
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def _left_out(seconds: float | None) -> dict[str, Any]:
    reason = f"the {seconds:.0f} seconds for all parts were over"
    return {"status": "skipped", "error": reason, "results": {}, "seconds": 0.0}


def _last_line(error: str | None) -> str:
    return (error or "").strip().rpartition("\n")[2][:160]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command without any package for command lines; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m servinglib.bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the record and the logs")
    parser.add_argument("--parts", default=",".join(LIMITS), help="with commas, in order")
    parser.add_argument("--model", default="bench-0.6b", help="of the zoo, or a folder")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--seconds", type=float, default=None, help="for all parts together")
    parser.add_argument("--quick", action="store_true", help="few and short measurements")
    told = parser.parse_args(arguments)
    options = Options(told.model, told.device, told.quick)
    try:
        parts = [each.strip() for each in told.parts.split(",") if each.strip()]
        record = run(told.out, options, parts, told.seconds, lambda line: sys.stderr.write(line + "\n"))
    except ServingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stderr.write(f"{record}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
