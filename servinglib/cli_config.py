"""What every command that serves has in common: the flags that choose an engine, and `servinglib config`."""

from __future__ import annotations

import json
import os
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer

from servinglib.config import load_configuration
from servinglib.config_choices import TOP, Configuration
from servinglib.config_sources import from_environment
from servinglib.config_values import fields_of
from servinglib.engines.registry import ENGINES, entry, settings_of

EngineOption = Annotated[
    str | None, typer.Option("--engine", help=f"One of {', '.join(ENGINES)}.  [default: transformers]")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="A model of the zoo, a local path or a hub id.  [default: course-tiny]"),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A YAML file; else the one that SERVINGLIB_CONFIG names.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting: key=value for the engine, or engine.key=value; may be repeated."),
]
config = typer.Typer(no_args_is_help=True, help="Which engine serves, with which settings.")


@config.callback()
def root() -> None:
    """Which engine serves, with which settings."""


@config.command("show")
def show(
    engine: EngineOption = None,
    model: ModelOption = None,
    config_file: ConfigOption = None,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The settings in force and where each was said: default, file, variable or flag. Nothing is loaded."""
    found = load_configuration(config_file, engine=engine, model=model, settings=settings or ())
    rows, notes = effective(found), remarks(found)
    if as_json:
        told = {key: {"value": value, "from": origin} for key, value, origin in rows}
        typer.echo(json.dumps({"settings": told, "remarks": notes}, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "from")
    for key, value, origin in rows:
        table.add_row(key, Text(json.dumps(value, ensure_ascii=False)), Text(origin))
    Console().print(table)
    for note in notes:
        typer.echo(note)


def effective(found: Configuration) -> list[tuple[str, Any, str]]:
    """Key, value and origin of each setting in force; secrets are hidden."""
    rows = [(key, getattr(found, key), found.said(key)) for key in TOP]
    for engine in found.used:
        given = found.options_of(engine)
        for name, setting in fields_of(settings_of(engine)).items():
            value = given.get(name, None if setting.default is MISSING else setting.default)
            rows.append((f"{engine}.{name}", setting.shown(value), found.origin(engine, name)))
    return rows


def remarks(found: Configuration) -> list[str]:
    """What a reader should know: wishes that are not fulfilled, engines not installed, words not heard."""
    notes = []
    for engine in found.used:
        if wish := found.unfulfilled(engine):
            notes.append(f"{wish}; it will decode plainly")
        if not entry(engine).is_installed:
            notes.append(f"the {engine} engine is not installed here: {entry(engine).install}")
    for engine in (name for name in ENGINES if name not in found.used):
        if engine in found.sections:
            notes.append(f"not used, since {engine} is not chosen: its section in the file")
        prefix, names = f"{engine.upper()}_", fields_of(settings_of(engine))
        exact = {name: os.environ[name] for name in os.environ if name.removeprefix(prefix).lower() in names}
        words = from_environment(exact, prefix, names, engine)
        notes += [f"not used, since {engine} is not chosen: {word.origin}" for word in words]
    return notes
