"""The commands of `postbus` and the options before them, put together."""

import os
from typing import Annotated

import typer

from broker import __version__
from broker.cli import (
    cluster,
    cluster_changes,  # noqa: F401 - adds its commands to cluster.app
    dev,
    doctor,
    exits,
    groups,
    publish,
    subscribe,
    topics,
)
from broker.cli.options import ADDRESS_ENV, OUTPUT_ENV, Output

app = typer.Typer(
    name="postbus",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Postbus, a durable message bus that speaks gRPC.",
    epilog=exits.HELP,
)
app.add_typer(topics.app, name="topic")
app.add_typer(groups.app, name="group")
app.add_typer(cluster.app, name="cluster")
app.command("publish", epilog=exits.HELP)(publish.publish)
app.command("subscribe", epilog=exits.HELP)(subscribe.subscribe)
app.command("dev", epilog=dev.EPILOG)(dev.dev)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        print(f"postbus {__version__}")
        raise typer.Exit


@app.callback()
def postbus(
    address: Annotated[
        str | None,
        typer.Option("--address", "-a", help=f"host:port of a broker (or {ADDRESS_ENV}). Default: localhost:7070."),
    ] = None,
    output: Annotated[
        Output | None, typer.Option("--output", "-o", help=f"How lists and descriptions are shown (or {OUTPUT_ENV}).")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Postbus, a durable message bus that speaks gRPC."""
    # Both may stand before or behind the command's name; the command's own option falls back on the environment.
    if address is not None:
        os.environ[ADDRESS_ENV] = address
    if output is not None:
        os.environ[OUTPUT_ENV] = output.value


@app.command(
    "serve",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def serve(context: typer.Context) -> None:
    """Starts a node: a durable single-node bus unless told otherwise. See `postbus serve --help`."""
    from broker.cli.serve import run

    raise typer.Exit(run(context.args))
