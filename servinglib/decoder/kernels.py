"""Attention over a paged cache, for a GPU: read every key and value once, and nothing twice.

A lecture whose notes lie on numbered shelves, sixteen pages a shelf, in no order: a slip of paper
(the *block table*) says on which shelves to look. A student with a question walks along the slip,
reads a pile of pages at a time, and keeps three things only: the most fitting page so far, how much
fitting there was in all, and the answer weighed by it. Whenever a better page turns up, the old
weights shrink; no list of all pages' scores is ever written down (the *online softmax*). Two habits
make it quick. Students with questions on the same notes go together, so that each page is taken from
the shelf once (the query heads that share a key-value head are the rows of one tile). And when few
students face long notes, each part of the notes gets its own reader, and the readers' answers are
weighed together at the end (*split-KV*), so that no reader idles.

Decoding is bound by that reading, not by arithmetic: lesson 05 counts the bytes. Every launch grid
follows from tensor shapes alone and nothing waits for the GPU, so all of it can be captured into CUDA
graphs. Where there is no GPU, Triton's interpreter (`TRITON_INTERPRET=1` before the first import of
triton) runs the same code on the CPU, slowly: that is how it is tested.

    keys, values     (num_blocks, kv_heads, block_size, head_dim), one layer, contiguous
    block_tables     (sequences, max_blocks) int32; entries beyond the context are any valid block
    context_lengths  (sequences,) int32, tokens in the cache, those of this step included; 0 = padding
"""

# A launch gives plain numbers for a kernel's constexpr parameters, and options that it doesn't name.
# pyright: reportArgumentType=false, reportCallIssue=false

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from servinglib.errors import InvalidSetting

# All that there is to tune, chosen by counting registers and shared memory, not yet by a clock on a GPU.
# Rows are query rows of a tile; bytes bound what a tile keeps on the chip.
MAX_TILE, TILE_BYTES = 64, 16_384  # positions of a tile, and their keys
DECODE_ROWS, DECODE_WARPS, DECODE_STAGES = 16, 4, 3  # tl.dot wants at least 16 rows
EXTEND_ROWS, EXTEND_BYTES, EXTEND_WARPS, EXTEND_STAGES = 128, 32_768, 8, 3
FULL_GPU = 2048  # programs that keep a large GPU busy and its last wave short
MAX_SPLITS = 64
HEAD_DIMS = (16, 32, 64, 128, 256)
MIN_SEARCH = 64  # few widths of the search for a tile's sequence, so few compilations


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """What `decode_attention` may be tried with; `servinglib bench gpu` does, and the best become the defaults.

    Attributes
    ----------
    tile, tile_bytes : int
        Most positions that a program reads at once, and most bytes of their keys.
    warps, stages : int
        Of a program.
    full_gpu : int
        Programs below which contexts are split.
    """

    tile: int = MAX_TILE
    tile_bytes: int = TILE_BYTES
    warps: int = DECODE_WARPS
    stages: int = DECODE_STAGES
    full_gpu: int = FULL_GPU


TUNED = DecodeTuning()


@triton.jit
def _attend(
    query, visible, start, end, keys, values, table, kv_head, scale,
    ROWS: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Online softmax of a query tile, (ROWS, DIM), over the cached positions start..end of one sequence.

    Row r sees the positions below visible[r]. Returns the greatest score, the sum of weights (both
    (ROWS,)) and the weighted sum of values, (ROWS, DIM). Scores are in powers of two.
    """
    highest = tl.full((ROWS,), -1e30, tl.float32)  # finite, so that a row that sees nothing makes no NaN
    total = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, DIM), tl.float32)
    column = tl.arange(0, DIM)
    for first in range(start, end, TILE):
        position = first + tl.arange(0, TILE)
        held = position < end
        block = tl.load(table + position // BLOCK_SIZE, mask=held, other=0).to(tl.int64)
        row = (block * KV_HEADS + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE
        place = row[:, None] * DIM + column[None, :]
        # Masked, because an unused slot may hold anything, and 0 * NaN is NaN.
        key = tl.load(keys + place, mask=held[:, None], other=0.0)
        value = tl.load(values + place, mask=held[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(position[None, :] < visible[:, None], score, -float("inf"))
        new_highest = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - new_highest[:, None])
        shrink = tl.exp2(highest - new_highest)
        total = total * shrink + tl.sum(weight, 1)
        weighted = weighted * shrink[:, None]
        weighted = tl.dot(weight.to(value.dtype), value, weighted, input_precision="ieee")
        highest = new_highest
    return highest, total, weighted


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    context_lengths: torch.Tensor,
    scale: float,
    out: torch.Tensor | None = None,
    num_splits: int | None = None,
    tuning: DecodeTuning = TUNED,
) -> torch.Tensor:
    """Attention of one new token per sequence, each over its whole context.

    Parameters
    ----------
    query : Tensor, (sequences, heads, head_dim)
        May be a view of a fused projection: only the last dimension must be dense.
    keys, values, block_tables, context_lengths
        As the module says. A sequence of context 0 answers zeros.
    scale : float
        Scores are multiplied by it before the softmax, usually head_dim ** -0.5.
    out : Tensor, (sequences, heads, head_dim), optional
        Where to write; contiguous.
    num_splits : int, optional
        Into how many parts each context is cut, a power of two; default `splits_for` these shapes.
    tuning : DecodeTuning

    Raises
    ------
    InvalidSetting
        If heads, head_dim or layouts do not fit together.
    """
    sequences, heads, dim = query.shape
    kv_heads, block_size, group = _check_attention(query, keys, values)
    tile, longest = _tile(keys, tuning), block_tables.shape[1] * block_size
    splits = num_splits or splits_for(sequences, kv_heads, longest, tile, tuning.full_gpu)
    if splits & (splits - 1):
        raise InvalidSetting(f"num_splits={splits} must be a power of two; leave it out to have one chosen")
    if out is None:
        out = torch.empty((sequences, heads, dim), dtype=query.dtype, device=query.device)
    elif out.shape != query.shape or not out.is_contiguous():
        raise InvalidSetting(f"out must be contiguous and {tuple(query.shape)}, got {tuple(out.shape)}")
    partial, mass = out, out
    if splits > 1:
        partial = torch.empty((sequences, heads, splits, dim), dtype=torch.float32, device=query.device)
        mass = torch.empty((sequences, heads, splits), dtype=torch.float32, device=query.device)
    _decode_kernel[(sequences, kv_heads, splits)](
        query, keys, values, block_tables, context_lengths, partial, mass, scale * math.log2(math.e),
        query.stride(0), query.stride(1), block_tables.stride(0), GROUP=group, SPLITS=splits,
        ROWS=max(DECODE_ROWS, triton.next_power_of_2(group)), TILE=tile, DIM=dim, KV_HEADS=kv_heads,
        BLOCK_SIZE=block_size, num_warps=tuning.warps, num_stages=tuning.stages,
    )  # fmt: skip
    if splits > 1:
        _combine_kernel[(sequences * heads,)](partial, mass, out, SPLITS=splits, DIM=dim)
    return out


def splits_for(
    sequences: int, kv_heads: int, max_context: int, tile: int = MAX_TILE, full_gpu: int = FULL_GPU
) -> int:
    """Parts per context that fill the GPU: many for few sequences, one for a full batch; a power of two.

    It follows from shapes only, so a captured graph keeps it; the kernel cuts every context into equal
    parts of whole tiles, so that short contexts in a graph made for long ones still use all programs.
    """
    wanted = min(full_gpu // max(1, sequences * kv_heads), -(-max_context // tile), MAX_SPLITS)
    return 1 << max(0, wanted.bit_length() - 1)


@triton.jit(
    do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["block_tables", "context_lengths"]
)
def _decode_kernel(
    query, keys, values, block_tables, context_lengths, partial, mass, scale,
    token_stride, head_stride, table_stride, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(context_lengths + sequence)
    share = tl.cdiv(tl.cdiv(length, SPLITS), TILE) * TILE
    start = split * share
    end = tl.minimum(start + share, length)  # at or below start for a split without work

    row, column = tl.arange(0, ROWS), tl.arange(0, DIM)
    head, real = kv_head * GROUP + row, row < GROUP
    place = query + sequence * token_stride + head[:, None] * head_stride + column[None, :]
    rows = tl.load(place, mask=real[:, None], other=0.0)
    highest, total, weighted = _attend(
        rows, tl.zeros_like(row) + end, start, end, keys, values, block_tables + sequence * table_stride,
        kv_head, scale, ROWS, TILE, DIM, KV_HEADS, BLOCK_SIZE,
    )  # fmt: skip
    some = tl.where(total > 0, total, 1.0)
    place = (sequence * (KV_HEADS * GROUP) + head) * SPLITS + split
    answer = (weighted / some[:, None]).to(partial.dtype.element_ty)
    tl.store(partial + place[:, None] * DIM + column[None, :], answer, mask=real[:, None])
    if SPLITS > 1:
        tl.store(mass + place, highest + tl.log2(some), mask=real)


@triton.jit
def _combine_kernel(partial, mass, out, SPLITS: tl.constexpr, DIM: tl.constexpr):
    """Weigh the answers of the splits, each by its softmax mass (as a power of two)."""
    row, split, column = tl.program_id(0), tl.arange(0, SPLITS), tl.arange(0, DIM)
    power = tl.load(mass + row * SPLITS + split)
    weight = tl.exp2(power - tl.max(power, 0))
    answers = tl.load(partial + (row * SPLITS + split[:, None]) * DIM + column[None, :])
    answer = tl.sum(weight[:, None] * answers, 0) / tl.sum(weight, 0)
    tl.store(out + row * DIM + column, answer.to(out.dtype.element_ty))


def extend_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    context_lengths: torch.Tensor,
    query_starts: torch.Tensor,
    max_query_length: int,
    scale: float,
) -> torch.Tensor:
    """Causal attention of several new tokens per sequence over what the cache holds, theirs included.

    Serves a prompt, a chunk of one, the rest of one after a prefix hit, the tokens of a draft to verify,
    and all mixed. One-token sequences are right here too, but `decode_attention` reads faster for them.

    Parameters
    ----------
    query : Tensor, (tokens, heads, head_dim)
        All sequences' new tokens, one after the other; only the last dimension must be dense.
    keys, values, block_tables, context_lengths
        As the module says. A sequence's queries are the last positions of its context.
    query_starts : Tensor, (sequences + 1,), int32
        Sequence i owns the tokens query_starts[i] to query_starts[i + 1]; later tokens are padding.
    max_query_length : int
        The most tokens of one sequence, or any bound; it only chooses the tile.
    scale : float
        Scores are multiplied by it before the softmax, usually head_dim ** -0.5.

    Returns
    -------
    Tensor, (tokens, heads, head_dim); zeros for padding.

    Raises
    ------
    InvalidSetting
        If heads, head_dim or layouts do not fit together.
    """
    (tokens, heads, dim), sequences = query.shape, context_lengths.shape[0]
    kv_heads, block_size, group = _check_attention(query, keys, values)
    group_rows = triton.next_power_of_2(group)
    few = max_query_length * group_rows <= DECODE_ROWS
    most = min(EXTEND_ROWS, EXTEND_BYTES // (dim * query.element_size()))
    rows = max(DECODE_ROWS if few else most, group_rows)
    # A sequence of n tokens may touch n // tile + 1 tiles, so this many are enough for any lengths.
    tiles = tokens // (rows // group_rows) + sequences
    out = torch.zeros((tokens, heads, dim), dtype=query.dtype, device=query.device)
    _extend_kernel[(tiles, kv_heads)](
        query, keys, values, block_tables, context_lengths, query_starts, out, scale * math.log2(math.e),
        query.stride(0), query.stride(1), block_tables.stride(0), sequences, GROUP=group,
        GROUP_ROWS=group_rows, SEARCH=max(MIN_SEARCH, triton.next_power_of_2(sequences)), ROWS=rows,
        TILE=_tile(keys, TUNED), DIM=dim, KV_HEADS=kv_heads, BLOCK_SIZE=block_size,
        num_warps=DECODE_WARPS if few else EXTEND_WARPS, num_stages=EXTEND_STAGES,
    )  # fmt: skip
    return out


@triton.jit(
    do_not_specialize=["table_stride", "num_sequences"],
    do_not_specialize_on_alignment=["block_tables", "context_lengths", "query_starts"],
)
def _extend_kernel(
    query, keys, values, block_tables, context_lengths, query_starts, out, scale,
    token_stride, head_stride, table_stride, num_sequences, GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr, SEARCH: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, DIM: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    TOKENS: tl.constexpr = ROWS // GROUP_ROWS
    # Sequence i owns the tiles from query_starts[i] // TOKENS + i on: whose is this one?
    each = tl.arange(0, SEARCH)
    begin = tl.load(query_starts + each, mask=each < num_sequences, other=2**30) // TOKENS + each
    sequence = tl.sum((begin <= tile).to(tl.int32), 0) - 1

    first_token = tl.load(query_starts + sequence)
    count = tl.load(query_starts + sequence + 1) - first_token
    first = (tile - first_token // TOKENS - sequence) * TOKENS
    if first < count:
        length = tl.load(context_lengths + sequence)
        row, column = tl.arange(0, ROWS), tl.arange(0, DIM)
        local, head = first + row // GROUP_ROWS, kv_head * GROUP + row % GROUP_ROWS
        real = (local < count) & (row % GROUP_ROWS < GROUP)
        token = (first_token + local).to(tl.int64)
        place = query + token[:, None] * token_stride + head[:, None] * head_stride + column[None, :]
        rows = tl.load(place, mask=real[:, None], other=0.0)
        visible = length - count + local + 1
        end = tl.minimum(length, length - count + first + TOKENS)
        _, total, weighted = _attend(
            rows, visible, 0, end, keys, values, block_tables + sequence * table_stride,
            kv_head, scale, ROWS, TILE, DIM, KV_HEADS, BLOCK_SIZE,
        )  # fmt: skip
        answer = (weighted / tl.where(total > 0, total, 1.0)[:, None]).to(out.dtype.element_ty)
        place = (token[:, None] * (KV_HEADS * GROUP) + head[:, None]) * DIM + column[None, :]
        tl.store(out + place, answer, mask=real[:, None])


def check_cache(keys: torch.Tensor, values: torch.Tensor) -> tuple[int, int, int]:
    """kv_heads, block_size and head_dim of a layer's cache; refuses layouts that the kernels can't read."""
    _, kv_heads, block_size, dim = keys.shape
    if keys.shape != values.shape or not (keys.is_contiguous() and values.is_contiguous()):
        raise InvalidSetting(
            f"keys and values of a layer must be contiguous and alike, got shapes {tuple(keys.shape)} and "
            f"{tuple(values.shape)} with strides {keys.stride()} and {values.stride()}"
        )
    if dim not in HEAD_DIMS:
        raise InvalidSetting(f"head_dim={dim}, but the kernels know {HEAD_DIMS}; use the torch attention")
    return kv_heads, block_size, dim


def _check_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[int, int, int]:
    """kv_heads, block_size and query heads per key-value head."""
    kv_heads, block_size, dim = check_cache(keys, values)
    heads = query.shape[1]
    if query.shape[2] != dim or query.stride(2) != 1 or heads % kv_heads or query.dtype != keys.dtype:
        raise InvalidSetting(
            f"a query of shape {tuple(query.shape)}, strides {query.stride()} and {query.dtype} does not fit "
            f"a cache of {kv_heads} heads of {dim} and {keys.dtype}; heads must be a multiple of {kv_heads}, "
            f"head_dim and dtype the same, and the last dimension dense"
        )
    return kv_heads, block_size, heads // kv_heads


def _tile(keys: torch.Tensor, tuning: DecodeTuning) -> int:
    """Positions that a program reads at once."""
    return min(tuning.tile, tuning.tile_bytes // (keys.shape[3] * keys.element_size()))
