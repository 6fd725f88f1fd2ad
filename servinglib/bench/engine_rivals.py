"""Who may compete with our engine, what each needs, and how its process is started.

The parent imports none of their libraries: it asks whether a package is there, and starts
`python -m servinglib.bench.engine_rivals NAME MODEL DTYPE`, which loads the contender and serves it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec

from servinglib.bench.contender_process import ContenderProcess, private_output, serve
from servinglib.bench.engine_contenders import Contender, Ours, Transformers, TransformersContinuous, Vllm
from servinglib.bench.provenance import cores
from servinglib.errors import InvalidSetting, UnknownName


@dataclass(frozen=True, slots=True)
class Rival:
    """Somebody else's engine.

    Attributes
    ----------
    load : callable
        Model and dtype to a contender.
    package : str
        The module that has to be installed.
    install : str
        The command that does it.
    environment : mapping
        Variables of its process.
    static : bool
        Whether a batch goes on until its longest answer is complete; mixed lengths then come in batches.
    only_at : int or None
        The one number of concurrent requests at which it runs; None for all, and for mixed lengths.
    """

    load: Callable[[str, str], Contender]
    package: str
    install: str
    environment: Mapping[str, str] = field(default_factory=dict)
    only_at: int | None = None
    static: bool = False


# Best of what was tried on two cores with bench-30m in bfloat16, tokens/s at 1, 4, 16 and 64 requests: in one
# process 289 / 1018 / 3261 / 5950; as it comes (a second process, with a core set aside) 207 / 723 / 2207 / 3995;
# the same, not compiled, 129 / 475 / 1501 / 2932. The machine was shared, so small differences mean nothing.
# Preloading Intel's OpenMP made no clear one; tcmalloc, which only a system package brings, gave course-tiny 5%.
VLLM_AT_ITS_BEST = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB, more than any part of the benchmark fills
    "VLLM_LOGGING_LEVEL": "ERROR",
}
RIVALS: Mapping[str, Rival] = {
    "transformers": Rival(Transformers, "transformers", "make lint", static=True),
    "transformers-cb": Rival(TransformersContinuous, "transformers", "make lint", only_at=64),
    "vllm": Rival(Vllm, "vllm", "make vllm", VLLM_AT_ITS_BEST),
}


def check_rivals(names: Sequence[str]) -> None:
    """Refuse, before anything is loaded, a rival that nobody knows or that is not installed."""
    for name in names:
        if name not in RIVALS:
            raise UnknownName("contender", name, RIVALS)
        if find_spec(RIVALS[name].package) is None:
            raise InvalidSetting(
                f"can't compare with {name}: the package {RIVALS[name].package} is not installed here; "
                f"install it with `{RIVALS[name].install}`, or leave {name} out of --compare"
            )


def versions(names: Sequence[str]) -> dict[str, str]:
    """The installed version of each rival's package; that of vLLM has one of two names."""
    distributions = metadata.packages_distributions()
    return {n: metadata.version(distributions[RIVALS[n].package][0]) for n in names}


def start(name: str, model: str, dtype: str) -> ContenderProcess:
    """A process that loads `model` for the contender; `name` is a rival or an engine of this library."""
    environment = dict(RIVALS[name].environment) if name in RIVALS else {}
    command = [sys.executable, "-m", "servinglib.bench.engine_rivals", name, model, dtype]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(cores()))
    return ContenderProcess(name, command, {**threads, **environment})


def main() -> None:
    """Serve the contender NAME with MODEL and DTYPE to the process that started this one."""
    name, model, dtype = sys.argv[1:]
    answers = private_output()
    contender = RIVALS[name].load(model, dtype) if name in RIVALS else Ours(name, model, dtype)
    serve(contender, sys.stdin, answers)


if __name__ == "__main__":
    main()
