"""The first question to a GPU, and the second: is the answer right, and which constants of the kernels are best?

`correct` asks for the same tokens as Transformers, in float32 on small random models, by every path that
a step can take, and for the kernels' numbers at sizes that no interpreter could do in time. `tune` tries
`kernels.DecodeTuning`, so that its defaults can be set from measured times.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from servinglib.bench.gpu import Notes, Options, Skip
from servinglib.bench.gpu_watch import device_bandwidth
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.models.bench import TOKENIZER_FILES, TOKENIZER_FOLDER
from servinglib.workload import token_prompts

if TYPE_CHECKING:
    import torch

VOCABULARY = 4096
LENGTHS = (1, 3, 17, 40, 64, 130)  # of prompts; the greedy answers have ANSWER tokens
ANSWER = 24
FAMILIES = ("llama", "qwen2", "qwen3")
HEADS, KV_HEADS, DIM, BLOCK = 16, 8, 128, 16  # of Qwen3-0.6B
CACHE_BYTES = 2**28  # what is read between two turns at the same pages: more than the GPU's caches hold
SHAPES = {"256 x 1024": (256, 1024), "32 x 1024": (32, 1024), "1 x 1024": (1, 1024)}  # sequences, context


def correct(options: Options, notes: Notes) -> None:
    """Greedy answers beside those of Transformers, then the kernels beside plain attention."""
    families = FAMILIES[-1:] if options.quick else FAMILIES
    answer, lengths = (8, LENGTHS[:3]) if options.quick else (ANSWER, LENGTHS)
    prompts = token_prompts(lengths, VOCABULARY, seed=0)
    wrong = []
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            truth = _random_model(family, Path(folder), options.device, prompts, answer)
            for name, settings in _paths(options).items():
                with ContinuousEngine.load(
                    folder, device=options.device, dtype="float32", kv_cache_memory="64MiB", **settings
                ) as engine:
                    found = [
                        a.token_ids for a in engine.generate(prompts, max_tokens=answer, ignore_eos=True)
                    ]
                same = [list(a) == b for a, b in zip(found, truth, strict=True)]
                notes.note(f"{family}, {name}", {"equal": sum(same), "of": len(same)})
                wrong += [] if all(same) else [f"{family}, {name}: {sum(same)} of {len(same)}"]
    if options.device == "cuda":
        wrong += _check_kernels(notes)
    if wrong:
        raise AssertionError(f"not what Transformers or plain attention give: {wrong}")


def _paths(options: Options) -> dict[str, dict[str, Any]]:
    """The ways through the engine, by name."""
    small = {"max_num_batched_tokens": 24, "max_prefill_tokens": 16, "max_num_seqs": 8}
    paths: dict[str, dict[str, Any]] = {
        "as it comes": {},
        "chunks": small,
        "guesses": {"speculative": "prompt-lookup"},
    }
    if options.device == "cuda":
        paths |= {
            "eager": {"graphs": False, "overlap": False},
            "graphs, at once": {"overlap": False},
            "eager, late": {"graphs": False},
            "torch attention": {"attention": "torch"},
        }
    return paths


def _random_model(
    family: str, folder: Path, device: str, prompts: list[list[int]], answer: int
) -> list[list[int]]:
    """Save a small model with random weights, and give what Transformers answers with it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # gains of norms, and biases, which begin as ones and zeros
                weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copy(TOKENIZER_FOLDER / file, folder / file)
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        rows = [
            model.generate(
                torch.tensor([prompt], device=device),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=device),
                max_new_tokens=answer,
                do_sample=False,
            )[0].tolist()
            for prompt in prompts
        ]
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def _check_kernels(notes: Notes) -> list[str]:
    """Relative errors in bfloat16 of both kernels at real sizes, against float32."""
    import torch

    from servinglib.decoder.kernels import decode_attention, extend_attention

    lengths = [1, 15, 16, 17, 500, 1023, 2048, 0]
    keys, values, tables, contexts, pages = _cache(lengths)
    query = torch.randn(len(lengths), HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    errors = {}
    for splits in (None, 1, 16):
        out = decode_attention(query, keys, values, tables, contexts, DIM**-0.5, num_splits=splits)
        errors[f"decode, splits {splits}"] = max(
            _error(out[i : i + 1], query[i : i + 1], pages(i), n) for i, n in enumerate(lengths) if n
        )
    counts = [1, 5, 16, 17, 300, 1023, 7, 0]
    packed = torch.randn(sum(counts), HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    starts = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device="cuda")
    tables, contexts = tables[: len(counts)], contexts[: len(counts)]
    out = extend_attention(packed, keys, values, tables, contexts, starts, max(counts), DIM**-0.5)
    begins = starts.tolist()
    errors["extend"] = max(
        _error(out[a:b], packed[a:b], pages(i), lengths[i])
        for i, (a, b) in enumerate(itertools.pairwise(begins))
        if b > a and lengths[i] >= b - a
    )
    notes.note("kernels, relative errors in bfloat16", errors)
    return [f"{name}: relative error {error:.2g}" for name, error in errors.items() if not error < 1e-2]


def _cache(
    lengths: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Callable[[int], Any]]:
    """Pages in a random order, and a function that gives a sequence's keys and values in theirs."""
    import torch

    width = -(-max(lengths) // BLOCK)
    blocks = torch.randperm(len(lengths) * width, device="cuda").view(len(lengths), width)
    keys, values = (
        torch.randn(blocks.numel(), KV_HEADS, BLOCK, DIM, device="cuda", dtype=torch.bfloat16) for _ in "kv"
    )

    def pages(row: int) -> list[torch.Tensor]:
        return [each[blocks[row]].transpose(0, 1).flatten(1, 2) for each in (keys, values)]

    contexts = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    return keys, values, blocks.to(torch.int32).contiguous(), contexts, pages


def _error(out: torch.Tensor, query: torch.Tensor, pages: list[torch.Tensor], length: int) -> float:
    """‖out - truth‖ / ‖truth‖ of one sequence; its queries are the last positions of its context."""
    import torch

    keys, values = (p[:, :length].float().repeat_interleave(HEADS // KV_HEADS, 0) for p in pages)
    scores = torch.einsum("qhd,hkd->hqk", query.float(), keys) * DIM**-0.5
    positions = torch.arange(length - len(query), length, device="cuda")
    scores.masked_fill_(torch.arange(length, device="cuda") > positions[:, None], -torch.inf)
    truth = torch.einsum("hqk,hkd->qhd", scores.softmax(-1), values)
    return float((out.float() - truth).norm() / truth.norm())


def tune(options: Options, notes: Notes) -> None:
    """Microseconds of `decode_attention`, and the share of the memory's bandwidth, by tuning and shape."""
    from triton.runtime.errors import OutOfResources

    from servinglib.decoder.kernels import TUNED

    if options.device != "cuda":
        raise Skip("needs a GPU")
    bandwidth = device_bandwidth()
    best = [TUNED]
    for name, (sequences, context) in SHAPES.items():
        measure = _decode_timer(sequences, context)
        candidates = list(_tunings()) if len(best) == 1 else [
            replace(b, full_gpu=full) for b in best for full in (1024, 2048, 4096)
        ]  # fmt: skip
        if options.quick:
            candidates = [TUNED]
        moved = 2 * sequences * context * KV_HEADS * DIM * 2
        timed = []
        for tuning in candidates:
            try:
                seconds = measure(tuning)
            except OutOfResources as error:
                notes.note(f"{name}: {asdict(tuning)}", str(error))
                continue
            timed.append((seconds, tuning))
            row = {**asdict(tuning), "us": 1e6 * seconds, "share_of_bandwidth": moved / seconds / bandwidth}
            notes.note(f"{name}: {len(timed)}", row)
        timed.sort(key=lambda pair: pair[0])
        notes.note(f"{name}: best", {**asdict(timed[0][1]), "us": 1e6 * timed[0][0]})
        best = [tuning for _, tuning in timed[:3]] if len(best) == 1 else best


def _tunings() -> Iterator[Any]:
    from servinglib.decoder.kernels import TUNED

    yield TUNED
    for tile, warps, stages in itertools.product((32, 64, 128), (2, 4, 8), (2, 3, 4)):
        yield replace(TUNED, tile=tile, tile_bytes=tile * DIM * 2, warps=warps, stages=stages)


def _decode_timer(sequences: int, context: int) -> Callable[[Any], float]:
    """Seconds of one call; the launch itself is left out by a CUDA graph of calls on several caches."""
    import torch

    from servinglib.decoder.kernels import decode_attention

    copies = max(2, -(-CACHE_BYTES // (sequences * context * KV_HEADS * DIM * 4)))
    caches = [_cache([context] * sequences) for _ in range(copies)]
    query = torch.randn(sequences, HEADS, DIM, device="cuda", dtype=torch.bfloat16)

    def measure(tuning: Any) -> float:
        def run() -> None:
            for keys, values, tables, contexts, _ in caches:
                decode_attention(query, keys, values, tables, contexts, DIM**-0.5, tuning=tuning)

        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        times = []
        for _ in range(12):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / copies)
        return median(times[2:])

    return measure
