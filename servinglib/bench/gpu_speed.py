"""How fast is it? The engine at every size of the batch and on nano-vllm's workload, and two rivals.

The same questions go to all: `sweep` and `transformers` count steps of batches that stay together,
`nano` and `vllm` let requests of very different lengths come and go. `build` comes before them all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from servinglib.bench.gpu import Notes, Options, Skip
from servinglib.bench.gpu_figures import (
    VOCABULARY,
    Run,
    alike,
    answer,
    figures,
    loaded,
    measured_bandwidth,
    need_gpu,
    requests,
)
from servinglib.bench.gpu_monitor import GpuMonitor
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.workload import token_prompts

NANO_VOCABULARY = 10_000
NANO_LIMITS = {"max_num_batched_tokens": 16_384, "max_prefill_tokens": 16_384}


def build(options: Options, notes: Notes) -> None:
    """Write the model's files, once, if it is one that is built here."""
    from servinglib.models.zoo import resolve

    start = time.perf_counter()
    resolve(options.model, progress=False)
    notes.note("seconds", time.perf_counter() - start)


def sweep(options: Options, notes: Notes) -> None:
    """Decode steps at 1 to 256 sequences, beside the roofline."""
    bandwidth = measured_bandwidth(options, notes)
    sizes = (1, 4) if options.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    prompt, output = (16, 16) if options.quick else (256, 256)
    with loaded(options, max_num_seqs=sizes[-1], context_length=prompt + output) as engine:
        notes.note("memory", str(engine.memory))
        answer(engine, alike(sizes[-1], prompt, 4, 1000))
        for size in sizes:
            with GpuMonitor() as monitor:
                run = answer(engine, alike(size, prompt, output, size))
            notes.note(f"{size}", with_gpus(figures(engine, run, bandwidth, size), monitor))


def nano(options: Options, notes: Notes) -> None:
    """nano-vllm's benchmark: 256 requests, prompts and outputs of 100 to 1,024 tokens, temperature 0.6."""
    bandwidth, (prompts, outputs) = measured_bandwidth(options, notes), nano_workload(options.quick)
    notes.note("tokens", {"prompt": sum(map(len, prompts)), "output": sum(outputs)})
    limits: dict[str, Any] = {"prefix_caching": False, **({} if options.quick else NANO_LIMITS)}
    longest = max(len(p) + n for p, n in zip(prompts, outputs, strict=True))
    with loaded(options, max_num_seqs=256, context_length=longest, **limits) as engine:
        for temperature in (0.6, 0.0):
            shrink(engine, prompts, temperature)
            asked = requests(prompts, outputs, f"nano-{temperature}", temperature)
            with GpuMonitor() as monitor:
                run = answer(engine, asked)
            notes.note(f"temperature {temperature}", with_gpus(figures(engine, run, bandwidth), monitor))


def with_gpus(found: dict[str, Any], monitor: GpuMonitor) -> dict[str, Any]:
    """The figures of a run, and what the GPUs did meanwhile."""
    report = monitor.report()
    joules = report.energy_per_token(found["output_tokens"])
    return {**found, "joules_per_token": joules, "gpu_monitor": report.to_json()}


def shrink(engine: ContinuousEngine, prompts: Sequence[list[int]], temperature: float) -> Run:
    """A warm-up that comes by every size of the batch: one request after another leaves.

    Graphs that sample are captured when the first batch of their size is there, which takes as long as
    dozens of steps. The shortest answer is long enough for all prompts to be read before it ends.
    """
    outputs = range(16, 16 + len(prompts))
    return answer(engine, requests(prompts, outputs, f"warm-{temperature}", temperature))


def nano_workload(quick: bool = False) -> tuple[list[list[int]], list[int]]:
    """Prompts and output lengths as nano-vllm's bench.py draws them: 133,966 tokens are to be generated."""
    rng, count, longest = random.Random(0), 3 if quick else 256, 120 if quick else 1024
    top = VOCABULARY - 1 if quick else NANO_VOCABULARY
    prompts = [[rng.randint(0, top) for _ in range(rng.randint(100, longest))] for _ in range(count)]
    return prompts, [rng.randint(100, longest) for _ in range(count)]


def transformers(options: Options, notes: Notes) -> None:
    """`model.generate`, a static batch of equal lengths, which is its best case."""
    from servinglib.bench.engine_contenders import Transformers

    prompt, output = (16, 8) if options.quick else (256, 64)
    theirs = Transformers(options.model, "auto")
    for size in (1, 4) if options.quick else (1, 16, 64, 256):
        prompts = token_prompts([prompt] * size, VOCABULARY, seed=size)
        theirs.answer(prompts, [4] * size)
        seconds = theirs.answer(prompts, [output] * size)["seconds"]
        notes.note(f"{size}", {"seconds": seconds, "tokens_per_second": size * output / seconds})


def vllm(options: Options, notes: Notes) -> None:
    """vLLM with nano-vllm's workload, if it is installed here."""
    need_gpu(options)
    if find_spec("vllm") is None:
        raise Skip("vllm is not installed")
    from servinglib.models.zoo import resolve

    library: Any = import_module("vllm")
    prompts, outputs = nano_workload(options.quick)
    limits = {"max_model_len": 4096, "max_num_seqs": 256, "enable_prefix_caching": False}  # as in `nano`
    llm = library.LLM(str(resolve(options.model, progress=False)), dtype="bfloat16", **limits)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    for count in (8, len(asked)):  # the first to warm up
        params = [
            library.SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=n, detokenize=False)
            for n in outputs[:count]
        ]
        start = time.perf_counter()
        llm.generate(asked[:count], params, use_tqdm=False)
        seconds = time.perf_counter() - start
        notes.note(f"{count}", {"seconds": seconds, "tokens_per_second": sum(outputs[:count]) / seconds})
