"""Compiles every kernel for a Hopper GPU, which needs none, and prints the shared memory that each takes.

In a process of its own, since Triton decides at its first import whether kernels are interpreted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from servinglib.decoder import fused, kernels

FLOAT32 = ("cos", "sin", "partial", "mass")
INT32 = ("block_tables", "context_lengths", "query_starts")
INT64 = ("positions", "slots")
SCALARS = {"scale": "fp32", "eps": "fp32", "num_sequences": "i32", "width": "i32"}


def shared_memory(kernel: Any, constants: dict[str, Any], dtype: str, warps: int = 4, stages: int = 3) -> int:
    """Bytes per block of threads."""

    def type_of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in SCALARS or name.endswith("stride"):
            return SCALARS.get(name, "i32")
        table = {
            **dict.fromkeys(FLOAT32, "fp32"),
            **dict.fromkeys(INT32, "i32"),
            **dict.fromkeys(INT64, "i64"),
        }
        return "*" + table.get(name, dtype)

    names = kernel.arg_names
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if type_of(name)[0] == "*"}
    source = ASTSource(
        kernel,
        {name: type_of(name) for name in names},
        {n: constants[n] for n in names if n in constants},
        aligned,
    )
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def everything() -> Iterator[tuple[str, int]]:
    """Names of kernels and their shared memory, at the shapes of models of about a billion parameters."""
    fixed = {"GROUP": 2, "KV_HEADS": 8, "BLOCK_SIZE": 16, "GROUP_ROWS": 2, "SEARCH": 64, "SPLITS": 8}
    for dtype, size, dims in (("bf16", 2, (64, 128, 256)), ("fp32", 4, (128,))):
        for dim in dims:
            fixed |= {"DIM": dim, "TILE": min(kernels.MAX_TILE, kernels.TILE_BYTES // (dim * size))}
            for name, rows, warps, stages in (
                ("_decode_kernel", kernels.DECODE_ROWS, kernels.DECODE_WARPS, kernels.DECODE_STAGES),
                (
                    "_extend_kernel",
                    min(kernels.EXTEND_ROWS, kernels.EXTEND_BYTES // (dim * size)),
                    kernels.EXTEND_WARPS,
                    kernels.EXTEND_STAGES,
                ),
            ):
                constants = {**fixed, "ROWS": rows}
                yield name, shared_memory(getattr(kernels, name), constants, dtype, warps, stages)
    yield "_combine_kernel", shared_memory(kernels._combine_kernel, {**fixed, "SPLITS": 64}, "bf16")
    fixed |= {"DIM": 128, "ROWS": 2, "HIDDEN": 1024, "WIDTH": 1024, "ADD": True, "NORM": True}
    for name in ("_norm_kernel", "_silu_kernel", "_rope_kernel"):
        yield name, shared_memory(getattr(fused, name), fixed, "bf16")
    unnormed = {**fixed, "NORM": False, "q_weight": None, "k_weight": None}
    yield "_rope_kernel", shared_memory(fused._rope_kernel, unnormed, "bf16")


if __name__ == "__main__":
    sys.stdout.writelines(f"{name} {size}\n" for name, size in everything())
