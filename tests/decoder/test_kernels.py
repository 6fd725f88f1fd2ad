"""Paged attention against plain float32 attention; interpreted on a CPU, compiled where there is a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; it comes with the extra `kernels`")

from servinglib.decoder import fused, kernels
from servinglib.decoder.kernels import (
    decode_attention,
    extend_attention,
    splits_for,
)
from servinglib.errors import InvalidSetting

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
KERNELS = {name for module in (kernels, fused) for name in vars(module) if name.endswith("_kernel")}
NAN_BLOCK = 0  # block tables point here beyond the context
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


@dataclass
class Paged:
    """Contexts, and the same in shuffled blocks of a cache that is NaN everywhere else."""

    contexts: list[tuple[torch.Tensor, torch.Tensor]]
    keys: torch.Tensor
    values: torch.Tensor
    block_tables: torch.Tensor
    context_lengths: torch.Tensor

    @property
    def cache(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.keys, self.values, self.block_tables, self.context_lengths


def paged(lengths: Sequence[int], kv_heads=2, dim=16, block_size=16, dtype=torch.float32) -> Paged:
    torch.manual_seed(len(lengths) + sum(lengths))
    needed = [-(-length // block_size) for length in lengths]
    free = iter((torch.randperm(sum(needed)) + 1).tolist())
    shape = (sum(needed) + 1, kv_heads, block_size, dim)
    keys, values = torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)
    tables = torch.full((len(lengths), max(needed) + 1), NAN_BLOCK, dtype=torch.int32)
    contexts = []
    for i, length in enumerate(lengths):
        context = torch.randn(2, length, kv_heads, dim).to(dtype)
        tables[i, : needed[i]] = torch.tensor([next(free) for _ in range(needed[i])], dtype=torch.int32)
        for position in range(length):
            block, offset = tables[i, position // block_size], position % block_size
            keys[block, :, offset], values[block, :, offset] = context[:, position]
        contexts.append((context[0], context[1]))
    at = [each.to(DEVICE) for each in (keys, values, tables, torch.tensor(lengths, dtype=torch.int32))]
    return Paged(contexts, at[0], at[1], at[2], at[3])


def plain(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """Queries, (tokens, heads, dim), are the last positions of the context, (length, kv_heads, dim)."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (each.float().repeat_interleave(group, 1) for each in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * scale
    position = torch.arange(len(keys) - len(query), len(keys))
    scores = scores.masked_fill(torch.arange(len(keys)) > position[:, None], -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


def draw(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.cpu().float(), wanted, atol=tolerance, rtol=tolerance)


def check_decode(world: Paged, query: torch.Tensor, num_splits: int | None = None, scale: float = 0.3):
    answer = decode_attention(query, *world.cache, scale, num_splits=num_splits)
    wanted = [plain(q[None], *c, scale) for q, c in zip(query.cpu(), world.contexts, strict=True)]
    close(answer, torch.cat(wanted))


def check_extend(world: Paged, counts: Sequence[int], group: int = 2, longest: int | None = None, **kind):
    kv_heads, _, dim = world.keys.shape[1:]
    query, scale = draw(sum(counts), kv_heads * group, dim, **kind), 0.3
    starts = torch.tensor([0, *counts]).cumsum(0)
    answer = extend_attention(
        query, *world.cache, starts.to(DEVICE, torch.int32), longest or max(counts), scale
    )
    parts = query.cpu().split(list(counts))
    wanted = [plain(q, *c, scale) for q, c in zip(parts, world.contexts, strict=True)]
    close(answer, torch.cat(wanted))


@pytest.mark.parametrize("num_splits", [1, 2, 8, None])
def test_decoding_is_right_at_every_edge_of_a_block_and_a_tile(num_splits):
    world = paged([1, 15, 16, 17, 63, 64, 65, 128, 200])
    check_decode(world, draw(9, 4, 16), num_splits)


@pytest.mark.parametrize("group", [1, 2, 4, 7, 8, 17])
def test_query_heads_of_a_group_read_their_key_value_head(group):
    world = paged([33, 70], kv_heads=3)
    check_decode(world, draw(2, 3 * group, 16), 2)
    check_extend(world, [5, 20], group)


@pytest.mark.parametrize("block_size", [8, 16, 32, 128])
def test_blocks_may_have_any_size(block_size):
    world = paged([1, block_size, 5 * block_size // 2], block_size=block_size)
    check_decode(world, draw(3, 4, 16), 2)
    check_extend(world, [1, 3, block_size])


@pytest.mark.parametrize("dim", [32, 64, 128, 256])
def test_heads_may_be_narrow_or_wide(dim):
    world = paged([20, 70], kv_heads=1, dim=dim)
    check_decode(world, draw(2, 2, dim), 2, dim**-0.5)
    check_extend(world, [20, 3])


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(
                DEVICE == "cpu", reason="Triton's interpreter has no product of bfloat16"
            ),
        ),
    ],
)
def test_half_precision_is_summed_in_float32(dtype):
    world = paged([300, 40], dtype=dtype)
    check_decode(world, draw(2, 4, 16, dtype=dtype), 4)
    check_extend(world, [30, 40], dtype=dtype)


def test_large_scores_do_not_overflow():
    world = paged([40, 100])
    check_decode(world, draw(2, 4, 16) * 100, 2, scale=1.0)


def test_a_context_shorter_than_its_splits_leaves_some_empty_and_no_trace_of_them():
    world = paged([1, 5, 64, 65])
    check_decode(world, draw(4, 4, 16), 16)


@pytest.mark.parametrize("num_splits", [1, 4])
def test_a_padded_row_answers_zeros(num_splits):
    world = paged([0, 30, 0])
    answer = decode_attention(draw(3, 4, 16), *world.cache, 0.3, num_splits=num_splits)
    assert answer[[0, 2]].abs().max() == 0
    assert answer[1].isfinite().all()


def test_the_query_may_be_a_view_of_a_fused_projection():
    world = paged([30, 50])
    query = draw(2, 8, 40)[:, 2:6, 24:]  # tokens and heads both wider than what is read
    check_decode(world, query, 2)
    starts = torch.tensor([0, 1, 2], dtype=torch.int32, device=DEVICE)
    answer = extend_attention(query, *world.cache, starts, 1, 0.3)
    close(answer, decode_attention(query, *world.cache, 0.3).cpu())


@pytest.mark.parametrize("num_splits", [1, 4])
def test_the_answer_is_written_where_the_caller_says(num_splits):
    world, query, out = paged([30, 50]), draw(2, 4, 16), draw(2, 4, 16)
    assert decode_attention(query, *world.cache, 0.3, out, num_splits) is out
    close(out, decode_attention(query, *world.cache, 0.3).cpu())


def test_one_step_may_hold_prompts_chunks_decodes_and_drafts():
    lengths = [40, 150, 64, 65, 1, 130]
    check_extend(paged(lengths), [40, 30, 1, 4, 1, 129])


@pytest.mark.parametrize("counts", [[1, 1, 1], [5, 3, 8], [64, 1, 65], [63, 64, 2]])
def test_tiles_of_one_sequence_end_where_the_next_begins(counts):
    check_extend(paged([count + 7 for count in counts]), counts)


def test_a_sequence_may_have_no_query_in_a_step():
    check_extend(paged([20, 30, 10, 40]), [0, 7, 0, 40])


def test_any_bound_on_the_query_length_gives_the_same_answer():
    for longest in (3, 6, 1000):
        check_extend(paged([20, 30]), [3, 2], longest=longest)


def test_more_sequences_than_one_search_was_made_for():
    check_extend(paged([3] * 70, kv_heads=1), [1, 2] * 35)


def test_padding_after_the_last_sequence_answers_zeros():
    world, query = paged([20, 0]), draw(90, 4, 16)
    starts = torch.tensor([0, 15, 17], dtype=torch.int32, device=DEVICE)
    answer = extend_attention(query, *world.cache, starts, 15, 0.3)
    assert answer[15:].abs().max() == 0  # two of a sequence without context, the rest of none
    assert answer[:15].isfinite().all()


def test_more_queries_than_context_make_no_nan():
    starts = torch.tensor([0, 20], dtype=torch.int32, device=DEVICE)
    answer = extend_attention(draw(20, 4, 16), *paged([6]).cache, starts, 20, 0.3)
    assert answer.isfinite().all()


@pytest.mark.parametrize(
    ("sequences", "max_context"), [(1, 4096), (3, 100), (32, 2048), (256, 2048), (4096, 64)]
)
def test_splits_fill_the_gpu_and_no_more(sequences, max_context):
    splits = splits_for(sequences, 8, max_context)
    assert splits & (splits - 1) == 0
    assert 1 <= splits <= kernels.MAX_SPLITS
    assert splits == 1 or splits * sequences * 8 <= kernels.FULL_GPU
    assert splits == 1 or (splits - 1) * kernels.MAX_TILE < max_context  # the last has work to do
    grown = 2 * splits
    too_many = grown * sequences * 8 > kernels.FULL_GPU or grown > kernels.MAX_SPLITS
    assert too_many or grown * kernels.MAX_TILE > max_context


def test_shapes_that_do_not_fit_together_are_refused_with_the_numbers():
    world = paged([30], kv_heads=2)
    with pytest.raises(InvalidSetting, match="multiple of 2"):
        decode_attention(draw(1, 3, 16), *world.cache, 0.3)
    with pytest.raises(InvalidSetting, match="bfloat16"):
        decode_attention(draw(1, 4, 16, dtype=torch.bfloat16), *world.cache, 0.3)
    with pytest.raises(InvalidSetting, match="last dimension dense"):
        decode_attention(draw(1, 16, 4).transpose(1, 2), *world.cache, 0.3)
    with pytest.raises(InvalidSetting, match="num_splits=3"):
        decode_attention(draw(1, 4, 16), *world.cache, 0.3, num_splits=3)
    for out in (draw(2, 4, 16), draw(1, 16, 4).transpose(1, 2)):
        with pytest.raises(InvalidSetting, match="out must be contiguous"):
            decode_attention(draw(1, 4, 16), *world.cache, 0.3, out)
    strange = world.keys.transpose(1, 2)
    with pytest.raises(InvalidSetting, match="contiguous"):
        decode_attention(draw(1, 16, 16), strange, strange, *world.cache[2:], 0.3)
    with pytest.raises(InvalidSetting, match="head_dim=80"):
        decode_attention(draw(1, 2, 80), draw(2, 2, 16, 80), draw(2, 2, 16, 80), *world.cache[2:], 0.3)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU; the other tests run interpreted")
def test_a_captured_graph_serves_contexts_that_have_grown_since():
    world, query, out = paged([200, 300]), draw(2, 4, 16), draw(2, 4, 16)
    lengths = world.context_lengths.clone()
    decode_attention(query, *world.cache, 0.3, out)
    world.context_lengths.fill_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode_attention(query, *world.cache, 0.3, out)
    world.context_lengths.copy_(lengths)
    graph.replay()
    close(out, decode_attention(query, *world.cache, 0.3).cpu())


def test_every_kernel_compiles_for_a_gpu_and_fits_its_shared_memory(tmp_path):
    script = Path(__file__).with_name("compile_for_hopper.py")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    shared = [(name, int(size)) for name, size in map(str.split, run.stdout.splitlines())]
    assert {name for name, _ in shared} == KERNELS
    assert [each for each in shared if each[1] > 227 * 1024] == []  # what Hopper has for a block of threads
