"""The parts of the GPU benchmark; each writes down figure by figure what it finds.

Two numbers stand beside everything: how fast this GPU's memory really is, measured, and how many bytes
a step cannot do without: all weights once, and the keys and values of every token that it looks back
on. Bytes over bandwidth is the *roofline*, and a step time over it is how far the engine is from what
the machine could do. Lesson 05 derives it.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from servinglib.bench.gpu import Notes, Options, Skip
from servinglib.bench.gpu_watch import GpuWatch, device_bandwidth
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.policies.scheduling import POLICIES
from servinglib.request import Completion, Request, SamplingParams
from servinglib.workload import token_prompts

if TYPE_CHECKING:
    from servinglib.engines.continuous.statistics import StepRecord

NOMINAL_BANDWIDTH = 4.8e12  # bytes/s of an H200, by its data sheet
VOCABULARY = 4096  # of the smallest model of the zoo
NANO_VOCABULARY = 10_000


def build(options: Options, notes: Notes) -> None:
    """Write the model's files, once, if it is one that is built here."""
    from servinglib.models.zoo import resolve

    start = time.perf_counter()
    resolve(options.model, progress=False)
    notes.note("seconds", time.perf_counter() - start)


def sweep(options: Options, notes: Notes) -> None:
    """Decode steps at 1 to 256 sequences, beside the roofline."""
    bandwidth = _bandwidth(options, notes)
    sizes = (1, 4) if options.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    prompt, output = (16, 16) if options.quick else (256, 256)
    with _engine(options, max_num_seqs=sizes[-1], context_length=prompt + output) as engine:
        notes.note("memory", str(engine.memory))
        _answer(engine, _alike(sizes[-1], prompt, 4, 1000))
        for size in sizes:
            with GpuWatch(options.device) as watch:
                run = _answer(engine, _alike(size, prompt, output, size))
            notes.note(f"{size}", {**_figures(engine, run, bandwidth, size), "gpu": watch.summary()})


def nano(options: Options, notes: Notes) -> None:
    """nano-vllm's benchmark: 256 requests, prompts and outputs of 100 to 1,024 tokens, temperature 0.6."""
    bandwidth, (prompts, outputs) = _bandwidth(options, notes), nano_workload(options.quick)
    notes.note("tokens", {"prompt": sum(map(len, prompts)), "output": sum(outputs)})
    limits: dict[str, Any] = {
        "max_num_batched_tokens": 16_384,
        "max_prefill_tokens": 16_384,
        "prefix_caching": False,
    }
    if options.quick:
        limits = {"prefix_caching": False}
    longest = max(len(p) + n for p, n in zip(prompts, outputs, strict=True))
    with _engine(options, max_num_seqs=256, context_length=longest, **limits) as engine:
        for temperature in (0.6, 0.0):
            asked = _requests(prompts, outputs, f"nano-{temperature}", temperature=temperature)
            _answer(
                engine,
                _requests(
                    prompts[:64], [8] * len(prompts[:64]), f"warm-{temperature}", temperature=temperature
                ),
            )
            with GpuWatch(options.device) as watch:
                run = _answer(engine, asked)
            figures = _figures(engine, run, bandwidth, None)
            notes.note(f"temperature {temperature}", {**figures, "gpu": watch.summary()})


def nano_workload(quick: bool = False) -> tuple[list[list[int]], list[int]]:
    """Prompts and output lengths as nano-vllm's bench.py draws them: 133,966 tokens are to be generated."""
    rng, count, longest = random.Random(0), 3 if quick else 256, 120 if quick else 1024
    top = VOCABULARY - 1 if quick else NANO_VOCABULARY
    prompts = [[rng.randint(0, top) for _ in range(rng.randint(100, longest))] for _ in range(count)]
    return prompts, [rng.randint(100, longest) for _ in range(count)]


def profile(options: Options, notes: Notes) -> None:
    """Which kernels a second of decoding goes to, without graphs, in which kernels have no names of their own."""
    _need_gpu(options)
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    for size in (1, 128):
        with _engine(options, max_num_seqs=size, context_length=1024, graphs=False) as engine:
            _answer(engine, _alike(size, 512, 8, 1))
            with record(activities=[ProfilerActivity.CUDA]) as found:
                run = _answer(engine, _alike(size, 512, 24, 2))
                torch.cuda.synchronize()
            rows = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)[:25]
            kernels = [[e.key[:80], e.count, round(e.self_device_time_total)] for e in rows]
            notes.note(
                f"{size} sequences", {"kernel, launches, microseconds": kernels, "seconds": run.seconds}
            )


def ablation(options: Options, notes: Notes) -> None:
    """What each part of the engine is worth, all else being equal."""
    count, prompt, output = (4, 16, 16) if options.quick else (64, 256, 128)
    variants: dict[str, dict[str, Any]] = {
        "all": {},
        "no late tokens": {"overlap": False},
        "no graphs": {"graphs": False},
        "no graphs, no late tokens": {"graphs": False, "overlap": False},
        "torch attention": {"attention": "torch"},
    }
    for name, settings in variants.items() if options.device == "cuda" else [("torch attention", {})]:
        with _engine(options, max_num_seqs=count, context_length=prompt + output, **settings) as engine:
            _answer(engine, _alike(count, prompt, 4, 0))
            for size in (1, count):
                run = _answer(engine, _alike(size, prompt, output, size))
                notes.note(f"{name}: {size}", _figures(engine, run, None, size))
    _chunked(options, notes)
    _prefix(options, notes)


def _chunked(options: Options, notes: Notes) -> None:
    """Long prompts come while others decode."""
    few, long, output = (2, 100, 12) if options.quick else (32, 4000, 96)
    for chunked in (True, False):
        most = 512 if chunked else 8192
        limits: dict[str, Any] = {"max_num_batched_tokens": most, "max_prefill_tokens": most}
        with _engine(
            options, max_num_seqs=64, chunked_prefill=chunked, prefix_caching=False, **limits
        ) as engine:
            for turn in ("warm", "measured"):
                lengths = [64] * few + [long] * 4
                outputs = [output] * few + [8] * 4
                prompts = token_prompts(lengths, VOCABULARY, seed=len(turn))
                run = _answer(engine, _requests(prompts, outputs, turn))
            notes.note(f"chunked prefill {chunked}", _figures(engine, run, None, None))


def _prefix(options: Options, notes: Notes) -> None:
    """Prompts that begin alike."""
    shared, sharing = (64, 3) if options.quick else (2048, 64)
    for caching in (True, False):
        with _engine(options, max_num_seqs=64, prefix_caching=caching) as engine:
            _answer(engine, _alike(4, shared, 2, 0))
            prefix, *ends = token_prompts([shared, *[16] * sharing], VOCABULARY, seed=7)
            _answer(engine, _requests([prefix], [1], "first"))
            run = _answer(engine, _requests([prefix + end for end in ends], [16] * sharing, "all"))
            notes.note(f"prefix caching {caching}", _figures(engine, run, None, None))


def policies(options: Options, notes: Notes) -> None:
    """Who waits how long when four times as many requests are there as the batch holds."""
    count, width = (8, 2) if options.quick else (256, 64)
    rng = np.random.default_rng(0)
    prompts = token_prompts(rng.integers(16, 256, count).tolist(), VOCABULARY, seed=0)
    outputs = rng.integers(8, 64 if options.quick else 512, count).tolist()
    for policy in sorted(POLICIES)[: 2 if options.quick else None]:
        with _engine(options, max_num_seqs=width, policy=policy, context_length=1024) as engine:
            _answer(engine, _requests(prompts[:width], [4] * width, "warm"))
            run = _answer(engine, _requests(prompts, outputs, "all"))
            notes.note(policy, _figures(engine, run, None, None))


def calibrate(options: Options, notes: Notes) -> None:
    """Steps of a designed set, one after another without overlap, for `simulations.calibration` to fit."""
    batches = (1, 4) if options.quick else (1, 4, 16, 64, 256)
    contexts = (16,) if options.quick else (64, 512, 1536)
    limits: dict[str, Any] = {"overlap": False} if options.device == "cuda" else {}
    limits |= {"max_num_batched_tokens": 4096, "max_prefill_tokens": 4096, "prefix_caching": False}
    with _engine(options, max_num_seqs=batches[-1], context_length=2048, **limits) as engine:
        _answer(engine, _alike(batches[-1], contexts[0], 4, 99))
        for context in contexts:
            for size in batches:
                run = _answer(engine, _alike(size, context, 16, size * context))
                rows = [
                    [
                        s.decode_tokens,
                        s.prefill_tokens,
                        s.sequences,
                        s.kv_tokens,
                        s.computed - s.planned,
                        s.bookkeeping,
                    ]
                    for s in run.steps
                ]
                notes.note(f"{size} x {context}", rows)
    notes.note("columns", ["decode", "prefill", "sequences", "kv", "seconds", "bookkeeping"])


def spec(options: Options, notes: Notes) -> None:
    """Speculative decoding with the course's trained models, on code, which quotes itself."""
    source = Path(__file__).read_text()[:3000]
    speculatives: dict[str, dict[str, Any]] = {
        "none": {},
        "prompt-lookup": {"speculative": "prompt-lookup"},
        "draft": {"speculative": "course-draft"},
    }
    for name, settings in speculatives.items():
        with _engine(options, "course-tiny", max_num_seqs=16, prefix_caching=False, **settings) as engine:
            prompt = engine.tokenize(source)[:600]
            for size in (1, 2) if options.quick else (1, 16):
                outputs = [16 if options.quick else 200] * size
                prompts = [prompt[i:] for i in range(size)]
                _answer(engine, _requests(prompts, outputs, f"warm-{size}"))
                run = _answer(engine, _requests(prompts, outputs, f"run-{size}"))
                accepted = engine.statistics.draft_acceptance
                notes.note(f"{name}: {size}", {**_figures(engine, run, None, None), "acceptance": accepted})


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
    _need_gpu(options)
    if find_spec("vllm") is None:
        raise Skip("vllm is not installed")
    from importlib import import_module

    from servinglib.models.zoo import resolve

    library: Any = import_module("vllm")
    prompts, outputs = nano_workload(options.quick)
    folder = str(resolve(options.model, progress=False))
    llm = library.LLM(folder, dtype="bfloat16", max_model_len=4096, max_num_seqs=256)
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


class Run:
    """What an engine did with some requests."""

    def __init__(self, answers: Sequence[Completion], steps: Sequence[StepRecord], seconds: float) -> None:
        self.answers, self.steps, self.seconds = answers, steps, seconds


def _answer(engine: ContinuousEngine, requests: Sequence[Request]) -> Run:
    start = time.perf_counter()
    answers = engine.generate_batch(requests)
    seconds = time.perf_counter() - start
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    steps = [step for step in engine.steps if step.start >= start]
    return Run([a for a in answers if isinstance(a, Completion)], steps, seconds)


def _figures(engine: ContinuousEngine, run: Run, bandwidth: float | None, size: int | None) -> dict[str, Any]:
    """Throughput, times in milliseconds at P50 and P99, and how far from the roofline.

    With `size`, steps are those that decode so many sequences and nothing else.
    """
    tokens = sum(len(a.token_ids) for a in run.answers)
    ends = [step.computed for step in run.steps]
    pairs = list(zip(run.steps[1:], np.diff(ends), strict=True))
    steps = [gap for s, gap in pairs if size is None or (s.decode_tokens == size and not s.prefill_tokens)]
    gaps = [gap for a in run.answers for gap in np.diff(a.token_times)]
    waits = [a.token_times[0] - run.steps[0].start for a in run.answers]
    weights, per_token = engine.memory.weight_bytes, engine.memory.bytes_per_token
    moved = len(run.steps) * weights + sum(s.kv_tokens for s in run.steps) * per_token
    figures: dict[str, Any] = {
        "seconds": run.seconds,
        "output_tokens": tokens,
        "tokens_per_second": tokens / run.seconds,
        "steps": len(run.steps),
        "preemptions": sum(s.preemptions for s in run.steps),
        "step_ms": _spread(steps),
        "token_gap_ms": _spread(gaps),
        "first_token_ms": _spread(waits),
        "end_ms": _spread([a.token_times[-1] - run.steps[0].start for a in run.answers]),
        "host_ms": _spread([s.bookkeeping for s in run.steps]),
        "bytes_moved": moved,
    }
    if steps and size:
        figures["decode_tokens_per_second"] = size / median(steps)
        figures["weight_read_ms"] = {
            "nominal": 1e3 * weights / NOMINAL_BANDWIDTH,
            "measured": 1e3 * weights / bandwidth if bandwidth else None,
        }
    figures["share_of_nominal_roofline"] = moved / NOMINAL_BANDWIDTH / run.seconds
    figures["share_of_measured_roofline"] = moved / bandwidth / run.seconds if bandwidth else None
    return figures


def _spread(seconds: Sequence[float]) -> dict[str, float] | None:
    if not len(seconds):
        return None
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50": 1e3 * float(p50), "p99": 1e3 * float(p99), "mean": 1e3 * float(np.mean(seconds))}


def _alike(count: int, prompt: int, output: int, seed: int) -> list[Request]:
    prompts = token_prompts([prompt] * count, VOCABULARY, seed=seed)
    return _requests(prompts, [output] * count, f"alike-{seed}-{prompt}-{output}")


def _requests(
    prompts: Sequence[list[int]], outputs: Sequence[int], name: str, temperature: float = 0.0
) -> list[Request]:
    return [
        Request(f"{name}-{i}", prompt, SamplingParams(n, temperature, ignore_eos=True))
        for i, (prompt, n) in enumerate(zip(prompts, outputs, strict=True))
    ]


class _engine:  # noqa: N801 - used like a function
    """A loaded engine, and its memory given back at the end, for the next one to have as much."""

    def __init__(self, options: Options, model: str | None = None, **settings: Any) -> None:
        if options.device == "cpu":
            settings = {"kv_cache_memory": "128MiB", "attention": "torch", **settings}
        self._load = lambda: ContinuousEngine.load(model or options.model, device=options.device, **settings)

    def __enter__(self) -> ContinuousEngine:
        self._engine = self._load()
        return self._engine

    def __exit__(self, *_: object) -> None:
        self._engine.shutdown()
        del self._engine
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _bandwidth(options: Options, notes: Notes) -> float | None:
    if options.device != "cuda":
        return None
    bandwidth = device_bandwidth()
    notes.note("bandwidth_bytes_per_second", {"measured": bandwidth, "nominal": NOMINAL_BANDWIDTH})
    return bandwidth


def _need_gpu(options: Options) -> None:
    if options.device != "cuda":
        raise Skip("needs a GPU")


def parts() -> dict[str, Callable[[Options, Notes], None]]:
    """By name; those of kernels are in a module that needs triton."""
    return {
        "build": build,
        "sweep": sweep,
        "nano": nano,
        "profile": profile,
        "ablation": ablation,
        "policies": policies,
        "calibrate": calibrate,
        "spec": spec,
        "transformers": transformers,
        "vllm": vllm,
        "tune": _kernel_part("tune"),
        "correct": _kernel_part("correct"),
    }


def _kernel_part(name: str) -> Callable[[Options, Notes], None]:
    def run(options: Options, notes: Notes) -> None:
        from servinglib.bench import gpu_kernels

        getattr(gpu_kernels, name)(options, notes)

    return run


def main() -> int:
    """Run the part NAME with OPTIONS and write into NOTES; started by `gpu.run`."""
    name, path, options = sys.argv[1:]
    notes = Notes(Path(path))
    try:
        parts()[name](Options(**json.loads(options)), notes)
    except Skip as reason:
        notes.close("skipped", str(reason))
    except BaseException:
        notes.close("failed", traceback.format_exc())
        raise
    else:
        notes.close("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
