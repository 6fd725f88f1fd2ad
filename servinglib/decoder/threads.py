"""OpenMP's threads: a team that nobody needs should not sit in the way.

Each thread that computes gets a team of its own from the OpenMP library, and the team stays when the
work is done. As soon as there are more threads in teams than cores, the library stops letting them wait
awake: every product, every loop then begins with waking a sleeper, and a step of a small model takes
four to five times as long. So whoever has computed and is not about to go on dismisses its team; the
next product engages a new one, in about a tenth of a millisecond.
"""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

SOFT = 1  # what can be had again keeps its settings; `omp_pause_soft` of OpenMP 5.0
MAPS = Path("/proc/self/maps")
BRINGERS = {"torch", "numba.np.ufunc.omppool"}  # modules that load an OpenMP library, perhaps each its own


def dismiss_team() -> None:
    """Give back the calling thread's team in every OpenMP library of this process; nothing where none is known."""
    for library in _libraries(frozenset(BRINGERS & sys.modules.keys())):
        with suppress(AttributeError):  # a library from before OpenMP 5.0
            library.omp_pause_resource_all(SOFT)


@cache
def _libraries(bringers: frozenset[str]) -> tuple[ctypes.CDLL, ...]:
    """Those that were loaded with these modules, which Linux tells."""
    if not bringers or not MAPS.exists():
        return ()
    paths = {
        line.split()[-1] for line in MAPS.read_text().splitlines() if re.search(r"/lib[gi]?omp\d?[-.]", line)
    }
    return tuple(ctypes.CDLL(path) for path in sorted(paths))
