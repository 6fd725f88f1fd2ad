"""From a checkpoint's files to a decoder and the pages that it reads, for this machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from servinglib.decoder.attention import TorchAttention
from servinglib.decoder.linear import DenseLinear, Int8Linear, PackedLinear, packable
from servinglib.decoder.model import Decoder, MakeLinear, RotaryTable, TorchOperations, Weights
from servinglib.decoder.pages import Span
from servinglib.decoder.shape import DecoderShape
from servinglib.decoder.threads import dismiss_team
from servinglib.models.loading import find_checkpoint
from servinglib.policies.sequence import SequenceState

NUMBA_FORMATS = (torch.bfloat16, torch.float32)
CPU = torch.device("cpu")
BLOCK = 16  # tokens in a page, where nobody says otherwise


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files, read as far as its sizes."""

    folder: Path
    config: Any
    shape: DecoderShape

    @classmethod
    def find(cls, name: str, allow_download: bool | None = None) -> Checkpoint:
        """The checkpoint of a model's name or folder.

        Raises
        ------
        UnknownName, ModelUnavailable
            If the model can't be had, or is none that the decoder knows.
        """
        folder = find_checkpoint(name, allow_download=allow_download)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return cls(folder, config, DecoderShape.from_config(config))


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how a decoder computes.

    Attributes
    ----------
    attention : {"numba", "torch", "triton"}
    dtype : torch.dtype
    device : torch.device
    quantization : {"int8"}, optional
    rows : int
        Most sequences in a step; only Triton's kernels ask.
    """

    attention: str = "torch"
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    quantization: str | None = None
    rows: int = 64


def load_decoder(
    model: str,
    dtype: torch.dtype,
    quantization: str | None = None,
    tokens: int = 2048,
    attention: str | None = None,
) -> tuple[Decoder, Any]:
    """A model on the CPU with pages for so many tokens, and no engine; computed as the engine would, unless told.

    Raises
    ------
    UnknownName, ModelUnavailable
        If the model can't be had.
    """
    found = Checkpoint.find(model)
    machine = Machine(attention or best_attention(CPU, dtype), dtype, quantization=quantization)
    try:
        return assemble(found, machine, -(-tokens // BLOCK), BLOCK, found.shape.context_length)
    finally:
        dismiss_team()  # that of the caller's thread, which compiled and tried the kernels


def best_attention(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest that there is for this device and number format."""
    if device.type == "cuda":
        return "triton"
    return "numba" if dtype in NUMBA_FORMATS else "torch"


@torch.inference_mode()
def assemble(
    found: Checkpoint, machine: Machine, num_blocks: int, block_size: int, context: int
) -> tuple[Decoder, Any]:
    """The decoder, and the attention over `num_blocks` pages that its operations ask for.

    Parameters
    ----------
    found : Checkpoint
    machine : Machine
    num_blocks, block_size : int
        As `BlockPool` counts them.
    context : int
        Tokens of the longest sequence.
    """
    shape, pages = found.shape, (num_blocks, block_size, machine.dtype)
    rope = RotaryTable(found.config, context, machine.device)
    if machine.attention == "triton":
        from servinglib.decoder.paged_triton import FusedOperations, TritonAttention

        operations = FusedOperations(shape, rope)
        rows = -(-machine.rows // 8) * 8  # as a graph's rows
        attention = TritonAttention(shape, *pages, machine.device, rows, context)
    elif machine.attention == "numba":
        from servinglib.decoder.cpu import NumbaAttention, NumbaOperations

        operations, attention = NumbaOperations(shape, rope, machine.dtype), NumbaAttention(shape, *pages)
    else:
        operations, attention = TorchOperations(shape, rope), TorchAttention(shape, *pages, machine.device)
    weights = Weights(found.folder, machine.dtype, machine.device)
    make_linear = linear_class(machine.attention, machine.quantization, machine.dtype, machine.device)
    decoder = Decoder(shape, weights, make_linear, operations)
    if machine.attention == "numba":  # compiles on first use, which had better not be a request's
        attention.prepare([Span(SequenceState(None, 1, 1, blocks=[0]), 0, 1)], [])
        zero = torch.zeros(1, dtype=torch.int64)
        decoder.forward(zero, zero, attention, zero)
    return decoder, attention


def linear_class(
    attention: str, quantization: str | None, dtype: torch.dtype, device: torch.device
) -> MakeLinear:
    """The form of the weights for this way to compute, number format and device."""
    if attention == "numba":
        from servinglib.decoder.cpu import CpuLinear

        return partial(CpuLinear, int8=quantization == "int8")
    if quantization == "int8":
        return Int8Linear
    packs = device.type == "cpu" and dtype != torch.float32 and packable(dtype)
    return PackedLinear if packs else DenseLinear
