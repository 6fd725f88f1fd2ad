"""`servinglib serve`: a model behind an address, until it is told to stop.

A shop opens in this order: rent the place, bring in the goods, unlock the door, turn the sign to "open".
So the port is taken before the model is loaded (a port that somebody else has is an error at once), the
server listens when the model is there, and `GET /ready` says so when the engine is warm.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from servinglib.cli_config import ConfigOption, EngineOption, ModelOption, SetOption
from servinglib.errors import InvalidSetting

if TYPE_CHECKING:
    from fastapi import FastAPI


def serve(
    engine: EngineOption = None,
    model: ModelOption = None,
    config_file: ConfigOption = None,
    settings: SetOption = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    drain_timeout: Annotated[
        int, typer.Option(min=0, help="Seconds that running requests get to end after SIGTERM.")
    ] = 30,
) -> None:
    """Serve a model over HTTP, with OpenAI's API; with the continuous engine, unless told otherwise."""
    from servinglib.config import load_configuration, open_engine
    from servinglib.server.http_app import create_app

    said = load_configuration(config_file, engine=engine, model=model).said("engine")
    chosen = load_configuration(
        config_file,
        engine="continuous" if said == "default" else engine,
        model=model,
        settings=settings or (),
    )
    with listening_place(host, port) as place, open_engine(chosen) as loaded:
        app = create_app(loaded)
        place.listen()  # who calls before the server is up waits a moment and is not refused
        address = f"http://{place.getsockname()[0]}:{place.getsockname()[1]}"
        typer.echo(f"{loaded.model_name} on {address}; GET {address}/ready tells when it takes requests")
        run_until_told(app, place, drain_timeout)


@contextmanager
def listening_place(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has the address and doesn't listen yet."""
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((host, port))
        except OSError as error:
            raise InvalidSetting(
                f"can't listen on {host}:{port}: {error.strerror}; "
                f"stop who listens there, or choose another --host or --port (0 takes a free one)"
            ) from error
        yield place


def run_until_told(app: FastAPI, place: socket.socket, drain_timeout: int) -> None:
    """Serve until SIGTERM or Ctrl-C; then take no more, and let running requests end for `drain_timeout` seconds."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=drain_timeout)
    server = uvicorn.Server(config)
    # uvicorn raises the signal again when it has ended; with these handlers that kills nobody
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[place])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
