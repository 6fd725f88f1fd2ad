"""What can be told from a checkpoint's `config.json` and the machine, before an engine of others is woken.

Production engines take half a minute to say no, and then in many lines. Here the porter looks at the
ticket: a context longer than the model's, weights that aren't stored as asked, more GPUs than there are.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from servinglib.errors import InvalidSetting, UnknownName


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a checkpoint's language model, as stored; `quantization_config` stays at the top."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def check_context(asked: int | None, config: dict[str, Any], option: str) -> None:
    """Refuse a context longer than the model was made for (tokens)."""
    longest = config.get("max_position_embeddings")
    if asked is not None and longest is not None and asked > longest:
        raise InvalidSetting(f"{option}={asked:,}, and the model's context holds {longest:,}; ask for less")


def check_quantization(
    asked: str | None, config: dict[str, Any], known: Collection[str], stored: Collection[str]
) -> None:
    """Refuse a method that nobody knows, or one of `stored` that the checkpoint's weights don't have."""
    if asked is None:
        return
    if asked not in known:
        raise UnknownName("quantization", asked, known)
    has = (config.get("quantization_config") or {}).get("quant_method")
    if asked in stored and (has is None or family(asked) != family(has)):
        weights = f"are stored as {has!r}" if has else "are not quantized"
        raise InvalidSetting(
            f"quantization={asked!r}, but the checkpoint's weights {weights}; leave the setting out, or give a "
            f"checkpoint that was quantized so"
        )


def family(method: str) -> str:
    """The format that a method reads: "gptq_marlin" and "auto_gptq" both read "gptq"."""
    return method.removeprefix("auto_").removesuffix("_marlin")


def check_parallel(size: int, option: str) -> None:
    """Refuse more tensor-parallel shares than there are GPUs."""
    if size == 1:
        return
    import torch

    gpus = torch.cuda.device_count()
    if size > gpus:
        raise InvalidSetting(f"{option}={size}, but torch sees {gpus} GPUs here; use {option}={max(gpus, 1)}")
