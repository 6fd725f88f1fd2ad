"""How many tokens fit? The arithmetic of the KV cache, done before anything is allocated.

A token leaves `layers x 2 x kv_heads x head_dim` numbers behind. So a budget of bytes buys

    tokens = budget / (layers x 2 x kv_heads x head_dim x bytes per number)

in whole blocks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from servinglib.decoder.shape import DecoderShape
from servinglib.errors import InvalidSetting

UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
DEFAULT_SHARE = {"cpu": 0.25, "cuda": 0.85}  # of the free memory


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the engine keeps in memory.

    Attributes
    ----------
    weight_bytes, kv_bytes : int
        The model's, and the KV cache's at most.
    bytes_per_token : int
        Of KV cache.
    num_blocks, block_size : int
    """

    weight_bytes: int
    kv_bytes: int
    bytes_per_token: int
    num_blocks: int
    block_size: int

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.block_size

    def __str__(self) -> str:
        return (
            f"KV cache: {gib(self.kv_bytes)} / {self.bytes_per_token:,} bytes per token = "
            f"{self.kv_tokens:,} tokens in {self.num_blocks:,} blocks of {self.block_size}; "
            f"weights: {gib(self.weight_bytes)}"
        )


def plan_memory(
    shapes: Sequence[DecoderShape],
    item_size: int,
    device: str,
    budget: str | int | float | None,
    block_size: int,
    most_tokens: int,
    copies: int = 1,
) -> MemoryPlan:
    """Size the KV cache.

    Parameters
    ----------
    shapes : sequence of DecoderShape
        Of the model, and of its draft model if there is one: both keep what they have read.
    item_size : int
        Bytes of a number.
    device : str
    budget : str, int, float or None
        Bytes, as 2**30 or "1GiB", or a share of the free memory as 0.5. None takes the default share.
    block_size : int
        Tokens in a block.
    most_tokens : int
        What all sequences that may run at once can need together; more is never allocated.
    copies : int
        How often the weights are kept; `CpuLinear` has two orders of them.

    Raises
    ------
    InvalidSetting
        If the weights or one block don't fit, with the arithmetic.
    """
    free = free_memory(device)
    parameters = sum(shape.num_parameters for shape in shapes)
    weights = parameters * item_size * copies
    if weights > free:
        raise InvalidSetting(
            f"{parameters:,} weights of {item_size} bytes{', kept in two orders,' * (copies > 1)} are "
            f"{gib(weights)}, and {gib(free)} of memory are free on {device}; take a smaller model, or dtype='bfloat16'"
        )
    kind = device.partition(":")[0]
    per_token = sum(shape.kv_bytes_per_token(item_size) for shape in shapes)
    wanted = parse_budget(DEFAULT_SHARE[kind] if budget is None else budget, free - weights)
    blocks = wanted // (per_token * block_size)
    if wanted > free - weights:
        raise InvalidSetting(
            f"kv_cache_memory={budget!r} is {gib(wanted)}, and {gib(free)} free memory less {gib(weights)} "
            f"of weights leaves {gib(free - weights)}; ask for less"
        )
    if blocks < 1:
        raise InvalidSetting(
            f"kv_cache_memory={budget!r} is {wanted:,} bytes, and one block of {block_size} tokens of "
            f"{per_token:,} bytes needs {per_token * block_size:,}; give it more"
        )
    blocks = min(blocks, -(-most_tokens // block_size))
    return MemoryPlan(weights, blocks * block_size * per_token, per_token, blocks, block_size)


def parse_budget(budget: str | int | float, available: int) -> int:
    """Bytes of a budget that is told in bytes, in units, or as a share of what is available."""
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", budget)
        if match is None or match[2] not in UNITS:
            raise InvalidSetting(
                f"kv_cache_memory={budget!r} is no amount of memory; write it as '1GiB', '512MiB', a number "
                f"of bytes, or a share of the free memory such as 0.5"
            )
        return int(float(match[1]) * UNITS[match[2]])
    if isinstance(budget, float) and 0 < budget <= 1:
        return int(budget * available)
    if budget <= 0 or isinstance(budget, float):
        raise InvalidSetting(f"kv_cache_memory={budget} must be bytes above 0, or a share in (0, 1]")
    return budget


def free_memory(device: str) -> int:
    """Bytes that can still be allocated there."""
    if device == "cpu":
        import psutil

        return psutil.virtual_memory().available
    import torch

    return torch.cuda.mem_get_info(torch.device(device))[0]


def gib(num_bytes: int) -> str:
    """Bytes for people."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"
