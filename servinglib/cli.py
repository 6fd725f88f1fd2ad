"""The command line: `servinglib --help`."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
bench = typer.Typer(no_args_is_help=True, help="Measure a part on this machine, as ratios within one run.")
app.add_typer(bench, name="bench")


@app.callback()
def root() -> None:
    """A course on LLM serving whose every claim can be run."""


def main() -> None:
    """Entry point of the `servinglib` command."""
    app()
