"""`servinglib bench ...`: every measurement that a person can ask for, and where its figures stay.

A row of instruments on a bench, each with its own switch: what one measures and how stands in its module
(`servinglib.bench`, `servinglib.experiments`), what can be chosen stands here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from servinglib.cli_output import keep, progress_bar
from servinglib.engines.registry import ENGINES
from servinglib.errors import InvalidSetting

bench = typer.Typer(no_args_is_help=True, help="Measure a part on this machine, as ratios within one run.")


@bench.command("batcher")
def bench_batcher(
    requests: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 20_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Most requests in a batch.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Keep the figures in this JSON file.")] = None,
) -> None:
    """What batching itself costs, beside the package `batched`, a textbook loop and bare futures."""
    from rich.console import Console

    from servinglib.bench.batcher import measure, tables
    from servinglib.server.batch_server import BatchInferenceServer

    report = measure(BatchInferenceServer, requests, batch_size, rounds)
    Console().print(*tables(report), sep="\n")
    keep(report.to_json(), output)


@bench.command("engine")
def bench_engine(
    engines: Annotated[
        str, typer.Option(help=f"Some of {', '.join(ENGINES)}, with commas.")
    ] = "transformers,continuous",
    model: Annotated[str, typer.Option(help="As in demo.")] = "bench-30m",
    batch_sizes: Annotated[str, typer.Option(help="Numbers of requests at once.")] = "1,4,16,64",
    runs: Annotated[int, typer.Option(min=1, help="Rounds in which every engine does everything.")] = 5,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 27,
    output_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    shared_prefix: Annotated[
        int,
        typer.Option(min=0, help="Tokens that prompts share in the part on prefix caching; 0 leaves it out."),
    ] = 256,
    dtype: Annotated[str, typer.Option(help="Of all engines: auto, bfloat16, float16 or float32.")] = "auto",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="engine.key=value for one engine; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Keep the figures in this JSON file, and a page beside it as .html.")
    ] = None,
    compare: Annotated[str | None, typer.Option(hidden=True, help="What `bench rivals` takes now.")] = None,
) -> None:
    """Engines beside each other: one model, equal prompts and lengths, in turns, with intervals."""
    from rich.console import Console

    from servinglib.bench.engine_comparison import compare as measure
    from servinglib.bench.engine_comparison_page import check_place, write
    from servinglib.bench.engine_comparison_report import views
    from servinglib.bench.engine_figures import Plan

    if compare is not None:
        raise InvalidSetting(
            f"our engine against bare libraries is `servinglib bench rivals --compare {compare}` now; "
            f"`bench engine` takes --engines"
        )
    sizes = _numbers("--batch-sizes", batch_sizes)
    plan = Plan(sizes, runs, prompt_tokens, output_tokens, shared_prefix)
    if output is not None:
        check_place(output)
    console = Console()
    with progress_bar("starting", console) as show:
        result = measure(model, _listed(engines), plan, settings or (), dtype, progress=show)
    console.print(*views(result), sep="\n")
    if output is not None:
        console.print(f"{output} and {write(result, output)}", soft_wrap=True)


@bench.command("architectures")
def bench_architectures(
    model: Annotated[str, typer.Option(help="As in demo.")] = "bench-30m",
    architectures: Annotated[str, typer.Option(help="Which, with commas; empty for all.")] = "",
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Times that each is opened.  [default: 3; 1 if quick]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer requests, once.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="Keep the figures in this JSON file.")] = None,
) -> None:
    """Ways to serve the same requests: what each gives, and what there is to read and to maintain."""
    from rich.console import Console

    from servinglib.experiments.architecture_table import QUICK, Plan, compare, table
    from servinglib.experiments.architectures import ARCHITECTURES

    plan = QUICK if quick else Plan()
    plan = plan if rounds is None else replace(plan, rounds=rounds)
    with progress_bar("starting") as show:
        result = compare(model, _listed(architectures) or list(ARCHITECTURES), plan, device, progress=show)
    Console().print(table(result))
    keep(result.to_json(), output)


@bench.command("rivals")
def bench_rivals(
    model: Annotated[
        list[str] | None, typer.Option(help="As in demo; may be repeated.  [default: bench-30m]")
    ] = None,
    compare: Annotated[
        str, typer.Option(help="Who competes: transformers, transformers-cb, vllm; empty for nobody.")
    ] = "transformers",
    parts: Annotated[
        str, typer.Option(help="What is measured; the last three concern our engine alone.")
    ] = "concurrency,mixed,prefix,result-cache,bookkeeping",
    concurrency: Annotated[str, typer.Option(help="Numbers of requests at once.")] = "1,4,16,64",
    dtype: Annotated[str, typer.Option(help="bfloat16, float32 or float16.")] = "bfloat16",
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Turns of each contender.  [default: 3; 1 if quick]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short turns, and 32 requests of mixed lengths.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Keep the figures in this JSON file.")] = None,
) -> None:
    """Our engine beside others: the same weights, prompts and output lengths, in turns."""
    from rich.console import Console

    from servinglib.bench.engine import Plan
    from servinglib.bench.engine_report import run, tables

    amount = {"rounds": 1, "requests": 32, "turn": 0.2} if quick else {}
    plan = Plan(_listed(parts), _numbers("--concurrency", concurrency), **amount)
    plan = plan if rounds is None else replace(plan, rounds=rounds)
    with progress_bar("starting") as show:
        report = run(model or ["bench-30m"], _listed(compare), plan, dtype, progress=show)
    Console().print(*tables(report), sep="\n")
    keep(report.to_json(), output)


@bench.command("formats")
def bench_formats(
    model: Annotated[
        list[str] | None, typer.Option(help="May be repeated.  [default: course-tiny, bench-30m]")
    ] = None,
    formats: Annotated[str, typer.Option(help="Of float32, bfloat16, float16, int8.")] = (
        "float32,bfloat16,float16,int8"
    ),
    batches: Annotated[str, typer.Option(help="Sequences in a decode step.")] = "1,8,64",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each format.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the held-out text, 3 rounds.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep the figures in this JSON file.")] = None,
) -> None:
    """Speed and quality of each number format, beside each other, on the CPU."""
    from rich.console import Console

    from servinglib.bench.number_formats import Plan, measure
    from servinglib.bench.number_formats_report import tables

    names = model or ["course-tiny", "bench-30m"]
    plan = Plan(_numbers("--batches", batches), 3 if quick else rounds, 16 if quick else None)
    with progress_bar("starting") as show:
        report = measure(names, _listed(formats), plan, progress=show)
    Console().print(*tables(report), sep="\n")
    keep(report.to_json(), output)


@bench.command("gpu")
def bench_gpu(
    out: Annotated[Path, typer.Option(help="Folder for the record and the parts' logs.")] = Path(
        "reports/gpu"
    ),
    parts: Annotated[str, typer.Option(help="What is measured, in order; empty for all.")] = "",
    model: Annotated[str, typer.Option(help="As in demo.")] = "bench-0.6b",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    seconds: Annotated[float | None, typer.Option(min=1, help="For all parts together.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few and short measurements.")] = False,
) -> None:
    """The engine on a GPU, beside what its memory allows; each part in a process of its own."""
    from servinglib.bench.gpu import LIMITS, Options, run

    typer.echo(run(out, Options(model, device, quick), _listed(parts) or list(LIMITS), seconds, typer.echo))


@bench.command("simulation")
def bench_simulation(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each simulation.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Keep the figures in this JSON file.")] = None,
) -> None:
    """How many customers a second each simulation does, beside its target."""
    from rich.console import Console

    from servinglib.bench.targets import verdict_table
    from servinglib.experiments.simulation_speed import measure

    with progress_bar("simulations") as show:
        report = measure(rounds, progress=show)
    Console().print(verdict_table(report.targets))
    keep(report.to_json(), output)


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(each) for each in _listed(text)]
    except ValueError as error:
        raise InvalidSetting(
            f"{option} {text!r} must be whole numbers with commas, such as 1,4,16"
        ) from error
