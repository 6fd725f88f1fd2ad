"""The command line: `servinglib --help`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from servinglib.cli_output import keep, progress_bar
from servinglib.cli_simulate import simulate
from servinglib.errors import InvalidSetting, ServingError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
bench = typer.Typer(no_args_is_help=True, help="Measure a part on this machine, as ratios within one run.")
app.add_typer(bench, name="bench")
app.add_typer(simulate, name="simulate")


@app.callback()
def root() -> None:
    """A course on LLM serving whose every claim can be run."""


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="A model of the zoo, a local path or a hub id.")] = "bench-30m",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes and requests: under a minute.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for summary.json, the pictures and index.html.")] = Path(
        "reports/demo"
    ),
    lang: Annotated[Literal["zh", "en"], typer.Option(help="Language of the tables and the page.")] = "zh",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure, simulate and compute what batching does on this machine."""
    from rich.console import Console

    from servinglib.experiments.demo import run_demo
    from servinglib.experiments.report import print_tables, write_report

    try:  # now, and not after minutes of measuring
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"--out {out} can't be a folder: {error.strerror}; name another") from error
    console = Console()
    with progress_bar(f"loading {model}", console) as show:
        summary = run_demo(model, quick=quick, device=device, progress=show)
    print_tables(summary, console, lang)
    page = write_report(summary, out, lang)
    console.print(f"{page}  ({summary['elapsed_s']:.0f} s, peak memory {summary['peak_memory_gib']:.1f} GiB)")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to go on from.")],
    engine: Annotated[str, typer.Option(help="continuous, transformers or simulated.")] = "transformers",
    model: Annotated[str, typer.Option(help="A model of the zoo, a local path or a hub id.")] = "course-tiny",
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, 1 samples.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0 means all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest that have this share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    stream: Annotated[bool, typer.Option(help="Print each token when it is known.")] = True,
) -> None:
    """Answer one prompt with an engine."""
    from servinglib.engines.registry import load_engine
    from servinglib.request import SamplingParams

    params = SamplingParams(max_tokens, temperature, top_k, top_p, seed, tuple(stop or ()))
    with load_engine(engine, model) as loaded:
        if stream:
            for event in loaded.stream(prompt, params):
                typer.echo(event.text, nl=False)
            typer.echo()
        else:
            typer.echo(loaded.generate(prompt, params)[0].text)


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


def main() -> None:
    """Entry point of the `servinglib` command; an error of ours is one line and exit code 2."""
    try:
        app()
    except ServingError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
