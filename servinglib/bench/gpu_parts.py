"""All parts of the GPU benchmark by name, and the process that does one: `gpu.py` starts it.

A part is told the options and writes down figure by figure what it finds. `gpu_correct.py` asks whether
the answers are right, `gpu_speed.py` how fast they come, `gpu_anatomy.py` why; `gpu_kernels.py` is about
the kernels alone, and `gpu_figures.py` about what is told of a run.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from servinglib.bench.gpu import Notes, Options, Skip
from servinglib.bench.gpu_anatomy import ablation, calibrate, policies, profile, spec
from servinglib.bench.gpu_correct import correct
from servinglib.bench.gpu_kernels import tune
from servinglib.bench.gpu_speed import build, nano, sweep, transformers, vllm

PARTS: Mapping[str, Callable[[Options, Notes], None]] = {
    "build": build,
    "correct": correct,
    "nano": nano,
    "sweep": sweep,
    "profile": profile,
    "tune": tune,
    "ablation": ablation,
    "policies": policies,
    "calibrate": calibrate,
    "spec": spec,
    "transformers": transformers,
    "vllm": vllm,
}


def main() -> int:
    """Run the part NAME with OPTIONS and write into NOTES; started by `gpu.run`."""
    name, path, options = sys.argv[1:]
    notes = Notes(Path(path))
    try:
        PARTS[name](Options(**json.loads(options)), notes)
    except Skip as reason:
        notes.close("skipped", str(reason))
    except BaseException:
        notes.close("failed", traceback.format_exc())
        raise
    else:
        notes.close("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
