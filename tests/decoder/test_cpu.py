"""The loop for a few rows computes what the matrix product does, and Numba compiles it once and for all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import save_model

from servinglib.decoder.cpu import CpuLinear
from servinglib.decoder.likelihood import paged_text
from servinglib.decoder.linear import Int8Linear, packable
from servinglib.decoder.loading import load_decoder
from servinglib.decoder.pages import Span
from servinglib.decoder.step import score

FEW = 4  # rows of a small matrix that go through the loop
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
@pytest.mark.parametrize("extras", ["", "bias", "residual", "bias residual"])
def test_few_rows_and_many_are_the_same_product(dtype: torch.dtype, rows: int, extras: str):
    random = torch.Generator().manual_seed(rows)
    weight, x, bias, residual = (
        torch.randn(*shape, generator=random).to(dtype) for shape in ((48, 80), (rows, 80), (48,), (rows, 48))
    )
    multiply = CpuLinear(weight, bias if "bias" in extras else None)
    expected = x.double() @ weight.double().T
    expected += bias.double() if "bias" in extras else 0
    expected += residual.double() if "residual" in extras else 0
    kept = residual.clone()
    y = multiply(x, residual if "residual" in extras else None)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
    assert torch.equal(residual, kept)


@pytest.mark.parametrize("rows", [1, 2, FEW + 1])
def test_integers_with_a_scale_are_multiplied_as_by_their_own_operation(rows: int):
    random = torch.Generator().manual_seed(rows)
    weight, x, bias, residual = (
        torch.randn(*shape, generator=random).bfloat16()
        for shape in ((48, 64), (rows, 64), (48,), (rows, 48))
    )
    got = CpuLinear(weight, bias, int8=True)(x, residual)
    torch.testing.assert_close(got, Int8Linear(weight, bias)(x, residual), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("rows", [1, FEW, FEW + 1])
def test_a_layer_in_one_call_gives_the_scores_of_plain_pytorch(
    tmp_path: Path, architecture: str, rows: int, quantization: str | None
):
    model, scores = save_model(architecture, tmp_path, varied=True), []
    for attention in ("numba", "torch"):
        decoder, pages = load_decoder(model, torch.float32, quantization, 512, attention)
        texts = [paged_text([5 + i, *range(7, 27 + i)], 32, 2 * i) for i in range(rows)]
        score(decoder, pages, [], [Span(t, 0, len(t.item.tokens) - 1) for t in texts])
        last = [Span(t, len(t.item.tokens) - 1, len(t.item.tokens)) for t in texts]
        scored, result = score(decoder, pages, last, [])
        scores.append(result[[s.first for s in sorted(scored, key=lambda s: texts.index(s.sequence))]])
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


PROGRAM = """
import numpy as np
from servinglib.decoder.numba_kernels import normalize
normalize(np.ones((1, 8), np.float32), np.float32(1e-6), np.empty((1, 8), np.float32))
print(sum(normalize.stats.cache_misses.values()), sum(normalize.stats.cache_hits.values()))
"""


def test_a_kernel_that_one_process_compiled_is_ready_for_the_next(tmp_path: Path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, "-c", PROGRAM]
    said = [subprocess.check_output(run, env=environment, text=True).split() for _ in range(2)]
    assert said == [["1", "0"], ["0", "1"]]


def test_where_the_processor_packs_no_bfloat16_the_product_is_the_same(monkeypatch: pytest.MonkeyPatch):
    weight, x = torch.eye(48).bfloat16(), torch.arange(5.0 * 48).view(5, 48).bfloat16()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not packable(torch.bfloat16)
    assert torch.equal(CpuLinear(weight)(x), x)
