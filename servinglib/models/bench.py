"""Bench models: real shapes, random weights, built on this machine instead of downloaded.

A wind tunnel needs a car of the right shape, not one with a licence plate. How long a decoding step
takes depends on the sizes of the matrices and not on what stands in them, so a benchmark can do with
random numbers drawn from a fixed seed. They are written once, as an ordinary checkpoint, into the
user's cache directory, and every later use opens the same files.

A checkpoint appears in the cache by one rename after its last byte is written, so a folder that is
there is whole. A lock beside it lets one process build while others wait and then share the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servinglib.models.shapes import Shape, qwen3_config

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3Config

SEED = 20260101
MATRIX_STD = 0.02  # transformers' own initial spread
EMBEDDING_STD = 0.1  # wide enough that the last token still counts against the average that attention adds
EMBEDDINGS, LAST_NORM = "model.embed_tokens.weight", "model.norm.weight"
CHUNK = 1 << 22  # numbers drawn at a time: 16 MiB in float32, whatever the size of the tensor
TOKENIZER_FOLDER = Path(__file__).parent / "course-tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def cache_directory() -> Path:
    """Where built models live: $SERVINGLIB_CACHE, else $XDG_CACHE_HOME/servinglib, else ~/.cache/servinglib."""
    if chosen := os.environ.get("SERVINGLIB_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "servinglib"


def bench_folder(name: str, shape: Shape) -> Path:
    """The checkpoint's place in the cache; the name ends in a hash of all that its content depends on."""
    recipe = hashlib.sha256(json.dumps([asdict(shape), SEED, MATRIX_STD, EMBEDDING_STD]).encode())
    for file in TOKENIZER_FILES:
        recipe.update((TOKENIZER_FOLDER / file).read_bytes())
    return cache_directory() / "models" / f"{name}-{recipe.hexdigest()[:8]}"


def build_bench_model(name: str, shape: Shape, *, progress: bool = True) -> Path:
    """Return the checkpoint of this shape, writing it first if the cache does not hold it.

    Parameters
    ----------
    name : str
        How the folder's name begins.
    shape : Shape
    progress : bool
        Show a progress bar on the standard error stream while building.

    Returns
    -------
    Path
        A folder that `AutoModelForCausalLM.from_pretrained` loads, in bfloat16.
    """
    from filelock import FileLock

    folder = bench_folder(name, shape)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():  # else another process built it while this one waited for the lock
            _build(folder, shape, progress)
    return folder


def _build(folder: Path, shape: Shape, progress: bool) -> None:
    """Write everything beside its final place, then rename. Called under the lock."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # what a killed process left
    unfinished.mkdir()
    try:
        _write_tokenizer(unfinished, shape.vocab_size)
        _write_weights(unfinished, shape, progress)
        unfinished.rename(folder)
    except BaseException:  # also on Ctrl-C: gigabytes of no use must not stay behind
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """The course tokenizer, its vocabulary filled up with tokens that no text produces but every id decodes."""
    source, settings = ((TOKENIZER_FOLDER / file).read_text(encoding="utf-8") for file in TOKENIZER_FILES)
    tokenizer = json.loads(source)
    vocabulary = tokenizer["model"]["vocab"]
    # No merge leads to these, so encoding never reaches them.
    vocabulary |= {f"<unused{token}>": token for token in range(len(vocabulary), vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")


def _write_weights(folder: Path, shape: Shape, progress: bool) -> None:
    """One file per layer, so that building holds one layer in memory and not the model."""
    from safetensors.torch import save_file

    config, shards = _config_and_shards(shape)
    weight_map: dict[str, str] = {}
    label = (
        f"building {folder.name.removesuffix('.unfinished')} ({shape.parameters / 1e6:.0f}M parameters, once)"
    )
    for shard, tensors in _shown(shards, label) if progress else shards.items():
        file = f"model-{shard}.safetensors"
        weights = {name: _initial_weight(name, size) for name, size in tensors.items()}
        save_file(weights, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 2 * shape.parameters}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    config.save_pretrained(folder)


def _shown(shards: dict[str, dict[str, tuple[int, ...]]], label: str) -> Iterable[Any]:
    """The shards, with a bar that says how many are done."""
    from rich.console import Console
    from rich.progress import track

    return track(shards.items(), label, total=len(shards), console=Console(stderr=True), transient=True)


def _config_and_shards(shape: Shape) -> tuple[Qwen3Config, dict[str, dict[str, tuple[int, ...]]]]:
    """The transformers config, and for each file to write its tensors' names and sizes.

    The names come from the model itself, made on the meta device, where tensors have sizes but no memory.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    config = qwen3_config(shape)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in model.named_parameters():  # shared tensors are listed once, so no lm_head.weight
        parts = name.split(".")
        shard = f"layer-{int(parts[2]):02d}" if parts[1] == "layers" else "rest"
        shards.setdefault(shard, {})[name] = tuple(parameter.shape)
    return config, shards


def _initial_weight(name: str, size: tuple[int, ...]) -> torch.Tensor:
    """Random numbers in a matrix, ones in the gain of a norm; the same on every machine and in any order.

    The last norm's gains are +1 and -1 at random. The output layer shares the embeddings, so with plain
    ones the token most like the last one is that token itself, and greedy decoding would only repeat it.
    """
    import torch

    if len(size) == 1 and name != LAST_NORM:
        return torch.ones(size, dtype=torch.bfloat16)
    weight = torch.empty(size, dtype=torch.bfloat16)
    flat, start = weight.view(-1), 0
    for chunk in _normal_chunks(name, weight.numel(), EMBEDDING_STD if name == EMBEDDINGS else MATRIX_STD):
        flat[start : start + len(chunk)] = torch.from_numpy(chunk)
        start += len(chunk)
    return weight.sign() if name == LAST_NORM else weight


def _normal_chunks(name: str, count: int, std: float) -> Iterator[Any]:
    """`count` normal float32 numbers as NumPy arrays; the tensor's name seeds its stream."""
    import numpy as np

    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    random = np.random.default_rng([SEED, key])
    for start in range(0, count, CHUNK):
        yield random.standard_normal(min(CHUNK, count - start), dtype=np.float32) * np.float32(std)
