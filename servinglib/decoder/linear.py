"""A matrix of weights, in the form in which this machine multiplies it fastest.

A craftsman lays the tools out before the work starts. A matrix is read in every step and never
changes, so it pays to lay its numbers out once in the order in which the processor takes them:
`PackedLinear` does that for bfloat16 and float16 on a CPU, with oneDNN, and needs half the time of
the plain one. `Int8Linear` halves the bytes instead: each output's weights become integers from -127
to 127 and one scale. That pays where reading the weights takes the time, at small batches, and costs
where arithmetic does; lesson 10 measures the turning point.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F


class Linear(Protocol):
    """Computes x Wᵀ + b, and adds a residual if there is one.

    x : (tokens, inputs), residual and result : (tokens, outputs)
    """

    num_bytes: int

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor: ...


class DenseLinear:
    """The weights as they are."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self.num_bytes = weight.nbytes

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if residual is None else y + residual


class PackedLinear:
    """The weights in oneDNN's blocked order, for a CPU; the residual is added before rounding."""

    TYPICAL_BATCH = 16  # the order is chosen for this many rows; measured, it is good from 1 to 512

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, self.TYPICAL_BATCH)
        self.bias = bias
        self.num_bytes = weight.nbytes

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        multiply = torch.ops.mkldnn._linear_pointwise
        if residual is None:
            return multiply(x, self.weight, self.bias, "none", [], "")
        return multiply.binary(x, residual, self.weight, self.bias, "add")


class Int8Linear:
    """Integer weights with one scale per output, multiplied by activations that stay as they are."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.scale = quantize(weight)
        self.bias = bias
        self.num_bytes = self.weight.nbytes + self.scale.nbytes

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        y = torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scale)
        y = y if self.bias is None else y + self.bias
        return y if residual is None else y + residual


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers in -127..127, (outputs, inputs), and what each row's must be multiplied by, (outputs,)."""
    largest = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-8)
    scale = largest / 127
    return (weight.float() / scale).round().to(torch.int8), scale[:, 0].to(weight.dtype)


def packable(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and this processor multiplies the format."""
    if not torch.backends.mkldnn.is_available():
        return False
    native = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype == torch.float32 or native[dtype]()
