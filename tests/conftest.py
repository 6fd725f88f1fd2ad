"""Without a GPU, Triton's kernels are interpreted; that is decided when triton is first imported."""

from __future__ import annotations

import os
from pathlib import Path

# Asked of the device files, since torch takes seconds to import and most tests do without.
os.environ.setdefault("TRITON_INTERPRET", "0" if list(Path("/dev").glob("nvidia[0-9]*")) else "1")
