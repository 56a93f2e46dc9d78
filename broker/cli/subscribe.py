"""`postbus subscribe`: records of topics on standard output, alone or as a member of a group.

Owns the options; `subscribe_run` does the work, `record_format` says how records look.
"""

from enum import StrEnum
from typing import Annotated

import typer

from broker.cli import exits
from broker.cli.online import CONNECT_TIMEOUT_SECONDS, run
from broker.cli.options import ADDRESS_DEFAULT, PLACE_HELP, Address, place, seconds

FORMAT_HELP = (
    "How to print a record: %t topic, %p partition, %o offset, %k key, %s value, %K and %S their lengths (-1: none),"
    " %h headers, %T append time in ms, %% percent; \\n \\t \\xHH. Default: the value and a line end."
)


class Ack(StrEnum):
    """When a group's member acknowledges."""

    AFTER = "after"
    BEFORE = "before"


class RecordOutput(StrEnum):
    """How records are shown."""

    TEXT = "text"
    JSON = "json"


def subscribe(
    topics: Annotated[list[str], typer.Argument(metavar="TOPIC...", show_default=False)],
    *,
    group: Annotated[
        str,
        typer.Option(
            "--group",
            "-g",
            metavar="GROUP",
            help="Share the partitions with its members; it remembers how far it is.",
            show_default=False,
        ),
    ] = "",
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PLACE",
            show_default=False,
            help=f"Where to begin: {PLACE_HELP}. Default: earliest. In a group only where nothing is committed yet.",
        ),
    ] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", "-e", help="Leave when all that is there has been read.")
    ] = False,
    count: Annotated[
        int | None, typer.Option("--count", "-c", metavar="N", min=1, help="Leave after N records.", show_default=False)
    ] = None,
    partition: Annotated[
        list[int], typer.Option("--partition", "-p", metavar="N", min=0, help="Only this one; may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
    format_: Annotated[
        str | None, typer.Option("--format", "-f", metavar="FORMAT", help=FORMAT_HELP, show_default=False)
    ] = None,
    output: Annotated[
        RecordOutput, typer.Option("--output", "-o", help="json: one object a line.", case_sensitive=False)
    ] = RecordOutput.TEXT,
    ack: Annotated[
        Ack,
        typer.Option(help="In a group: after a record was written out (at least once), or before (at most once)."),
    ] = Ack.AFTER,
    client_id: Annotated[
        str, typer.Option(metavar="NAME", help="What to be called in `group describe`.")
    ] = "postbus-cli",
    instance_id: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="A static member of the group keeps its partitions for a while.", show_default=False
        ),
    ] = "",
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="How long to wait for a broker that went away; off: for ever.")
    ] = "off",
    address: Address = ADDRESS_DEFAULT,
) -> None:
    r"""Prints records as they come, until Ctrl-C.

    Example: postbus subscribe orders --from -10 -f '%p/%o %k: %s\n'
    """
    from broker.cli.record_format import BadFormat, formatter, json_lines, values
    from broker.cli.subscribe_run import SubscribePlan, subscribe_all

    if format_ is not None and output is RecordOutput.JSON:
        raise typer.BadParameter("say --format or --output json, not both")
    if group and partition:
        raise typer.BadParameter("in a group the broker chooses the partitions; leave --partition or --group out")
    try:
        form = formatter(format_) if format_ is not None else json_lines if output is RecordOutput.JSON else values
    except BadFormat as why:
        raise typer.BadParameter(f"--format: {why}") from None
    plan = SubscribePlan(
        topics=tuple(topics),
        group=group,
        start=None if start is None else place(start),
        until_end=until_end,
        count=count,
        partitions=tuple(partition),
        format=form,
        ack_before=ack is Ack.BEFORE,
        client_id=client_id,
        instance_id=instance_id,
        timeout_seconds=seconds(timeout) or None,
        connect_timeout_seconds=CONNECT_TIMEOUT_SECONDS,
    )
    code = run(subscribe_all(address, plan))
    if code != exits.OK:
        raise typer.Exit(code)
