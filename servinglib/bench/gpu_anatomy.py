"""Why is it as fast as it is? The engine taken apart: its kernels, its parts, its rules, its steps.

`profile` names the kernels, `ablation` takes one part away at a time, `policies` and `spec` compare
rules for who goes first and ways to guess, and `calibrate` writes down steps for a law to be fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from servinglib.bench.gpu import Notes, Options, Skip
from servinglib.bench.gpu_figures import (
    VOCABULARY,
    Run,
    alike,
    answer,
    figures,
    loaded,
    need_gpu,
    requests,
)
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.policies.scheduling import POLICIES
from servinglib.request import Request
from servinglib.workload import token_prompts

VARIANTS: Mapping[str, dict[str, Any]] = {
    "all": {},
    "no late tokens": {"overlap": False},
    "no graphs": {"graphs": False},
    "no graphs, no late tokens": {"graphs": False, "overlap": False},
    "torch attention": {"attention": "torch"},
}
SPECULATIVES: Mapping[str, dict[str, Any]] = {
    "none": {},
    "prompt-lookup": {"speculative": "prompt-lookup"},
    "draft": {"speculative": "course-draft"},
}
COLUMNS = {
    "decode": "decode_tokens",
    "prefill": "prefill_tokens",
    "sequences": "sequences",
    "kv": "kv_tokens",
}


def profile(options: Options, notes: Notes) -> None:
    """Which kernels decoding goes to, without graphs, in which kernels have no names of their own."""
    need_gpu(options)
    for size in (1, 128):
        with loaded(options, max_num_seqs=size, context_length=1024, graphs=False) as engine:
            notes.note(f"{size} sequences", _kernels(engine, decoding(engine, size, 100)))


def decoding(engine: ContinuousEngine, size: int, output: int) -> list[Request]:
    """Requests that are nearly all decoding: the prefix cache has been given their prompts.

    The prompts are whole blocks and a token, and of a prompt the last token is always computed.
    """
    prompt = 32 * engine.memory.block_size + 1
    answer(engine, alike(size, prompt, 8, seed=1))
    return alike(size, prompt, output, seed=1)


def _kernels(engine: ContinuousEngine, asked: list[Request]) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as found:
        run = answer(engine, asked)
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)[:25]
    if not rows:
        raise Skip("the profiler sees no kernels here")
    kernels = [[e.key[:80], e.count, round(e.self_device_time_total)] for e in rows]
    return {"kernel, launches, microseconds": kernels, "seconds": run.seconds}


def ablation(options: Options, notes: Notes) -> None:
    """What each part of the engine is worth, all else being equal."""
    count, prompt, output = (4, 16, 16) if options.quick else (64, 256, 128)
    for name in VARIANTS if options.device == "cuda" else ["torch attention"]:
        with loaded(options, max_num_seqs=count, context_length=prompt + output, **VARIANTS[name]) as engine:
            answer(engine, alike(count, prompt, 4, 0))
            for size in (1, count):
                run = answer(engine, alike(size, prompt, output, size))
                notes.note(f"{name}: {size}", figures(engine, run, size=size))
    _chunked(options, notes)
    _prefix(options, notes)


def _chunked(options: Options, notes: Notes) -> None:
    """Long prompts come while others decode."""
    few, long, output = (2, 100, 12) if options.quick else (32, 4000, 96)
    lengths, outputs = [64] * few + [long] * 4, [output] * few + [8] * 4
    for chunked in (True, False):
        most = 512 if chunked else 8192
        settings: dict[str, Any] = {"max_num_batched_tokens": most, "max_prefill_tokens": most}
        settings |= {"chunked_prefill": chunked, "prefix_caching": False}
        with loaded(options, max_num_seqs=64, **settings) as engine:
            warm, measured = (token_prompts(lengths, VOCABULARY, seed=seed) for seed in (1, 2))
            answer(engine, requests(warm, outputs, "warm"))
            run = answer(engine, requests(measured, outputs, "measured"))
            notes.note(f"chunked prefill {chunked}", figures(engine, run))


def _prefix(options: Options, notes: Notes) -> None:
    """Prompts that begin alike."""
    shared, sharing = (64, 3) if options.quick else (2048, 64)
    prefix, *ends = token_prompts([shared, *[16] * sharing], VOCABULARY, seed=7)
    for caching in (True, False):
        with loaded(options, max_num_seqs=64, prefix_caching=caching) as engine:
            answer(engine, alike(4, shared, 2, 0))
            answer(engine, requests([prefix], [1], "first"))
            run = answer(engine, requests([prefix + end for end in ends], [16] * sharing, "all"))
            notes.note(f"prefix caching {caching}", figures(engine, run))


def policies(options: Options, notes: Notes) -> None:
    """Who waits how long when four times as many requests are there as the batch holds."""
    count, width, longest = (8, 2, 64) if options.quick else (256, 64, 256)
    rng = np.random.default_rng(0)
    prompts = token_prompts(rng.integers(16, 256, count).tolist(), VOCABULARY, seed=0)
    outputs = rng.integers(8, longest, count).tolist()
    for policy in sorted(POLICIES)[: 2 if options.quick else None]:
        with loaded(options, max_num_seqs=width, policy=policy, context_length=1024) as engine:
            answer(engine, alike(width, 64, 4, 1))  # of other prompts: these would be found in the cache
            run = answer(engine, requests(prompts, outputs, "all"))
            notes.note(policy, figures(engine, run))


def calibrate(options: Options, notes: Notes) -> None:
    """Steps of a designed set, one after another without overlap, for `policies.step_time` to be fitted to."""
    batches = (1, 4) if options.quick else (1, 4, 16, 64, 256)
    contexts = (16,) if options.quick else (64, 512, 1536)
    settings: dict[str, Any] = {"overlap": False} if options.device == "cuda" else {}
    settings |= {"max_num_batched_tokens": 4096, "max_prefill_tokens": 4096, "prefix_caching": False}
    notes.note("columns", [*COLUMNS, "seconds", "bookkeeping"])
    with loaded(options, max_num_seqs=batches[-1], context_length=2048, **settings) as engine:
        answer(engine, alike(batches[-1], contexts[0], 4, 99))
        for context in contexts:
            for size in batches:
                run = answer(engine, alike(size, context, 16, size * context))
                rows = [
                    [
                        *(getattr(s, column) for column in COLUMNS.values()),
                        s.computed - s.planned,
                        s.bookkeeping,
                    ]
                    for s in run.steps
                ]
                notes.note(f"{size} x {context}", rows)


def spec(options: Options, notes: Notes) -> None:
    """Speculative decoding with the course's trained models, on code, which quotes itself."""
    source, output = Path(__file__).read_text(encoding="utf-8")[:3000], 16 if options.quick else 200
    for name, settings in SPECULATIVES.items():
        with loaded(options, "course-tiny", max_num_seqs=16, prefix_caching=False, **settings) as engine:
            prompt = engine.tokenize(source)[:600]
            for size in (1, 2) if options.quick else (1, 16):
                outputs, prompts = [output] * size, [prompt[i:] for i in range(size)]
                answer(engine, requests(prompts, outputs, f"warm-{size}"))
                run = answer(engine, requests(prompts, outputs, f"run-{size}"))
                notes.note(f"{name}: {size}", {**figures(engine, run), "acceptance": acceptance(run)})


def acceptance(run: Run) -> float | None:
    """Share of the guesses that stayed; None if there were none."""
    drafted = sum(step.drafted for step in run.steps)
    return sum(step.accepted for step in run.steps) / drafted if drafted else None
