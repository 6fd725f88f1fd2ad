"""The model zoo: from a name to a folder of files, without a download.

A name may mean one of four things, tried in this order: a model shipped with the course (trained by
`tools/train_course_models.py`), a bench model built here on first use (`bench.py`), a folder of
yours, or a model on the Hugging Face hub. Only the last can need a network, and `loading.py` goes
there only when told to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from servinglib.errors import ModelUnavailable, UnknownName
from servinglib.models.bench import build_bench_model
from servinglib.models.shapes import BENCH_SHAPES, COURSE_SHAPES

SHIPPED_DIRECTORY = Path(__file__).parent
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What a name of the zoo stands for.

    Attributes
    ----------
    description : str
        One line for a list of models.
    parameters : int
        Number of weights, shared ones counted once.
    """

    description: str
    parameters: int


DESCRIPTIONS: Mapping[str, str] = {
    "course-tiny": "shipped; trained on the standard library's sources, writes Python-like text",
    "course-draft": "shipped; a quarter of course-tiny with the same tokenizer, drafts for it",
    "bench-30m": "random weights, for measurements on a CPU; built on first use (59 MB)",
    "bench-0.6b": "random weights in the exact shape of Qwen3-0.6B; built on first use (1.2 GB)",
}


def known_models() -> dict[str, KnownModel]:
    """The models that need no network, by name."""
    shapes = {**COURSE_SHAPES, **BENCH_SHAPES}
    return {name: KnownModel(DESCRIPTIONS[name], shape.parameters) for name, shape in shapes.items()}


def resolve(name: str, *, progress: bool = True) -> Path | str:
    """Find the files that a model's name stands for, building a bench model if it is not there yet.

    Parameters
    ----------
    name : str
        A name of `known_models()`, a folder, or a hub id of the form "organisation/model".
    progress : bool
        Show a progress bar while a bench model is built.

    Returns
    -------
    Path or str
        A local folder; for a hub id, the id itself (nothing is fetched here).

    Raises
    ------
    UnknownName
        The name is none of these.
    ModelUnavailable
        The name is a path, and no folder is there.
    """
    if name in COURSE_SHAPES:
        return SHIPPED_DIRECTORY / name
    if name in BENCH_SHAPES:
        return build_bench_model(name, BENCH_SHAPES[name], progress=progress)
    if not name:  # which as a path would be the current folder
        raise UnknownName("model", name, known_models())
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if HUB_ID.fullmatch(name):
        return name
    if "/" in name or "\\" in name or path.exists():
        raise ModelUnavailable(
            f"{name!r} is no folder; give a folder that holds config.json and *.safetensors files, "
            f"or one of: {', '.join(known_models())}"
        )
    raise UnknownName("model", name, known_models())
