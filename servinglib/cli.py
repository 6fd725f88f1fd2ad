"""The command line: `servinglib --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from servinglib.cli_bench import bench
from servinglib.cli_config import ConfigOption, EngineOption, ModelOption, SetOption, config
from servinglib.cli_output import progress_bar
from servinglib.cli_serve import serve
from servinglib.cli_simulate import simulate
from servinglib.errors import InvalidSetting, ServingError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
app.add_typer(bench, name="bench")
app.add_typer(config, name="config")
app.add_typer(simulate, name="simulate")
app.command()(serve)


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
    engine: EngineOption = None,
    model: ModelOption = None,
    config_file: ConfigOption = None,
    settings: SetOption = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, 1 samples.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0 means all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest that have this share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    stream: Annotated[bool, typer.Option(help="Print each token when it is known.")] = True,
) -> None:
    """Answer one prompt with an engine."""
    from servinglib.config import load_configuration, open_engine
    from servinglib.request import SamplingParams

    params = SamplingParams(max_tokens, temperature, top_k, top_p, seed, tuple(stop or ()))
    chosen = load_configuration(config_file, engine=engine, model=model, settings=settings or ())
    with open_engine(chosen) as loaded:
        if stream:
            for event in loaded.stream(prompt, params):
                typer.echo(event.text, nl=False)
            typer.echo()
        else:
            typer.echo(loaded.generate(prompt, params)[0].text)


def main() -> None:
    """Entry point of the `servinglib` command; an error of ours is one line and exit code 2."""
    try:
        app()
    except ServingError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
