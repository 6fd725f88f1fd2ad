"""The kernels of attention by themselves: are their numbers right, and which constants are best?

`check_kernels` compares them with plain attention at sizes that no interpreter could do in time. `tune`
tries `kernels.DecodeTuning`, so that its defaults can be set from measured times.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch

from servinglib.bench.gpu import Notes, Options
from servinglib.bench.gpu_bandwidth import device_bandwidth
from servinglib.bench.gpu_figures import need_gpu

HEADS, KV_HEADS, DIM, BLOCK = 16, 8, 128, 16  # of Qwen3-0.6B
CACHE_BYTES = 2**28  # what is read between two turns at the same pages: more than the GPU's caches hold
SHAPES = {"256 x 1024": (256, 1024), "32 x 1024": (32, 1024), "1 x 1024": (1, 1024)}  # sequences, context


@dataclass(frozen=True, slots=True)
class Case:
    """What the kernels are asked for: the tokens of each sequence, how many of them are new, and where."""

    lengths: Sequence[int] = (1, 15, 16, 17, 500, 1023, 2048, 0)
    counts: Sequence[int] = (1, 5, 16, 17, 300, 1023, 7, 0)
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16

    def draw(self, *size: int) -> torch.Tensor:
        """Random numbers on the device."""
        return torch.randn(size, device=self.device, dtype=self.dtype)


def check_kernels(notes: Notes, case: Case = Case()) -> list[str]:
    """Relative errors of both kernels against plain attention in float32; names those that are too large."""
    cache = Cache.of(case)
    errors = {f"decode, splits {n}": _decode_error(case, cache, n) for n in (None, 1, 16)}
    errors["extend"] = _extend_error(case, cache)
    notes.note(f"kernels, relative errors in {case.dtype}".replace("torch.", ""), errors)
    return [f"{name}: relative error {error:.2g}" for name, error in errors.items() if not error < 1e-2]


def _decode_error(case: Case, cache: Cache, splits: int | None) -> float:
    from servinglib.decoder.kernels import decode_attention

    query = case.draw(len(case.lengths), HEADS, DIM)
    out = decode_attention(query, *cache.pages, DIM**-0.5, num_splits=splits)
    rows = [i for i, length in enumerate(case.lengths) if length]
    return worst(_error(out[i : i + 1], query[i : i + 1], *cache.of_row(i)) for i in rows)


def _extend_error(case: Case, cache: Cache) -> float:
    from servinglib.decoder.kernels import extend_attention

    query, ends = case.draw(sum(case.counts), HEADS, DIM), [0, *itertools.accumulate(case.counts)]
    starts = torch.tensor(ends, dtype=torch.int32, device=case.device)
    out = extend_attention(query, *cache.pages, starts, max(case.counts), DIM**-0.5)
    rows = [(i, slice(*ab)) for i, ab in enumerate(itertools.pairwise(ends)) if case.counts[i]]
    return worst(_error(out[own], query[own], *cache.of_row(i)) for i, own in rows)


def worst(errors: Iterable[float]) -> float:
    """The greatest, or NaN if there is one, which Python's `max` would pass over."""
    return float(np.max(list(errors)))


@dataclass(frozen=True, slots=True)
class Cache:
    """Pages of some sequences, in a random order; `pages` is what both kernels take."""

    pages: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, case: Case) -> Cache:
        """As many pages for each sequence as the longest needs."""
        rows, width = len(case.lengths), -(-max(case.lengths) // BLOCK)
        tables = torch.randperm(rows * width, device=case.device).to(torch.int32).view(rows, width)
        keys, values = (case.draw(rows * width, KV_HEADS, BLOCK, DIM) for _ in "kv")
        contexts = torch.tensor(case.lengths, dtype=torch.int32, device=case.device)
        return cls((keys, values, tables, contexts))

    def of_row(self, row: int) -> list[torch.Tensor]:
        """Keys and values of one sequence, (kv_heads, tokens, head_dim)."""
        *both, tables, contexts = self.pages
        blocks, length = tables[row].long(), int(contexts[row])
        return [each[blocks].transpose(0, 1).flatten(1, 2)[:, :length] for each in both]


def _error(out: torch.Tensor, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> float:
    """‖out - truth‖ / ‖truth‖ of one sequence; its queries are the last positions of its context."""
    keys, values = (each.float().repeat_interleave(HEADS // KV_HEADS, 0) for each in (keys, values))
    scores = torch.einsum("qhd,hkd->hqk", query.float(), keys) * DIM**-0.5
    positions = torch.arange(keys.shape[1], device=keys.device)
    scores.masked_fill_(positions > positions[-len(query) :, None], -torch.inf)
    truth = torch.einsum("hqk,hkd->qhd", scores.softmax(-1), values)
    return float((out.float() - truth).norm() / truth.norm())


def tune(options: Options, notes: Notes) -> None:
    """Microseconds of `decode_attention`, and the share of the memory's bandwidth, by tuning and shape."""
    need_gpu(options)
    from servinglib.decoder.kernels import TUNED

    bandwidth, best = device_bandwidth(), []
    for name, (sequences, context) in SHAPES.items():
        candidates: Iterable[Any] = (replace(b, full_gpu=full) for b in best for full in (1024, 2048, 4096))
        if options.quick:
            candidates = [TUNED]
        elif not best:
            candidates = _tunings()
        ideal = 2 * sequences * context * KV_HEADS * DIM * 2 / bandwidth
        timed = _timed(notes, name, candidates, _decode_timer(sequences, context), ideal)
        seconds, first = timed[0]
        notes.note(f"{name}: best", {**asdict(first), "us": 1e6 * seconds})
        best = best or [tuning for _, tuning in timed[:3]]


def _timed(
    notes: Notes, name: str, candidates: Iterable[Any], measure: Callable[[Any], float], ideal: float
) -> list[tuple[float, Any]]:
    """Seconds of each candidate that fits onto the chip, the fastest first; `ideal` are those of the bytes."""
    from triton.runtime.errors import OutOfResources

    timed = []
    for tuning in candidates:
        try:
            seconds = measure(tuning)
        except OutOfResources as error:
            notes.note(f"{name}: {asdict(tuning)}", str(error))
            continue
        timed.append((seconds, tuning))
        row = {**asdict(tuning), "us": 1e6 * seconds, "share_of_bandwidth": ideal / seconds}
        notes.note(f"{name}: {len(timed)}", row)
    return sorted(timed, key=lambda pair: pair[0])


def _tunings() -> Iterator[Any]:
    from servinglib.decoder.kernels import TUNED

    yield TUNED
    for tile, warps, stages in itertools.product((32, 64, 128), (2, 4, 8), (2, 3, 4)):
        yield replace(TUNED, tile=tile, tile_bytes=tile * DIM * 2, warps=warps, stages=stages)


def _decode_timer(sequences: int, context: int) -> Callable[[Any], float]:
    """Seconds of one call; the launch itself is left out by a CUDA graph of calls on several caches."""
    from servinglib.decoder.kernels import decode_attention

    case = Case([context] * sequences)
    copies = max(2, -(-CACHE_BYTES // (sequences * context * KV_HEADS * DIM * 4)))
    caches, query = [Cache.of(case) for _ in range(copies)], case.draw(sequences, HEADS, DIM)

    def measure(tuning: Any) -> float:
        def run() -> None:
            for cache in caches:
                decode_attention(query, *cache.pages, DIM**-0.5, tuning=tuning)

        run()  # compiles, which a capture must not
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return median(_replay_seconds(graph) for _ in range(12)) / copies

    return measure


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
