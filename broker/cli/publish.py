"""`postbus publish`: arguments or lines of standard input as records of a topic.

Owns the options and what is told in the end; `publish_run` does the work.
"""

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli import exits
from broker.cli.online import CONNECT_TIMEOUT_SECONDS, run
from broker.cli.options import ADDRESS_DEFAULT, Address, Output, OutputOption, pairs, seconds, size
from broker.cli.output import bytes_text, counted, show

if TYPE_CHECKING:
    from broker.cli.publish_plan import Outcome, PublishPlan


class Compression(StrEnum):
    """How batches are compressed."""

    NONE = "none"
    ZSTD = "zstd"
    LZ4 = "lz4"
    GZIP = "gzip"
    SNAPPY = "snappy"


class Acks(StrEnum):
    """When a record counts as published."""

    ALL = "all"
    LEADER = "leader"
    NONE = "none"


def publish(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)],
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="VALUE", help="One record each; none: the lines of standard input.", show_default=False),
    ] = None,
    *,
    key: Annotated[str | None, typer.Option("--key", "-k", help="Key of every record.", show_default=False)] = None,
    key_field: Annotated[
        str,
        typer.Option(metavar="FIELD", help="Each line is a JSON object; this field is its key.", show_default=False),
    ] = "",
    json_lines: Annotated[
        bool, typer.Option("--ndjson", help="Each line must be JSON; blank lines are passed over.")
    ] = False,
    partition: Annotated[
        int | None, typer.Option("--partition", "-p", metavar="N", min=0, help="Exactly where to.", show_default=False)
    ] = None,
    header: Annotated[
        list[str], typer.Option("--header", "-H", metavar="NAME=VALUE", help="Of every record; may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
    create: Annotated[bool, typer.Option("--create", help="Create the topic if it is not there.")] = False,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Leave malformed lines out and go on.")] = False,
    from_line: Annotated[
        int, typer.Option("--from-line", metavar="N", min=1, help="Begin with this line, to go on where a run ended.")
    ] = 1,
    request_id: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="Publish all of it as one request; the same command again with the same id appends nothing twice.",
            show_default=False,
        ),
    ] = "",
    acks: Annotated[
        Acks, typer.Option(help="all: fsynced on every in-sync replica; leader: on the leader; none: may be lost.")
    ] = Acks.ALL,
    compression: Annotated[Compression, typer.Option(help="Of batches.")] = Compression.NONE,
    batch_bytes: Annotated[str, typer.Option(metavar="SIZE", help="A batch goes when it is so large.")] = "512KiB",
    linger: Annotated[
        str, typer.Option(metavar="TIME", help="How long a record waits for company while others are under way.")
    ] = "5ms",
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="How long to wait for a broker that went away, or does not answer.")
    ] = "2min",
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Publishes records, each exactly once, also when the broker restarts meanwhile.

    Equal keys go to one partition, in order; without a key the broker's partitions are used in turn. Ctrl-C ends it
    in good order and says which line to go on with.
    """
    from broker.cli.publish_plan import PublishPlan
    from broker.cli.publish_run import publish_all

    if key is not None and key_field:
        raise typer.BadParameter("say --key or --key-field, not both")
    if values and from_line > 1:
        raise typer.BadParameter("--from-line is for lines of standard input")
    if not values and sys.stdin.isatty():
        exits.say("each line is a record; Ctrl-D ends")
    plan = PublishPlan(
        topic=topic,
        values=tuple(value.encode(errors="surrogateescape") for value in values or ()),
        key=None if key is None else key.encode(errors="surrogateescape"),
        key_field=key_field,
        json_lines=json_lines or bool(key_field),
        partition=partition,
        headers=tuple((name, value.encode(errors="surrogateescape")) for name, value in pairs(header, "header")),
        create=create,
        skip_invalid=skip_invalid,
        from_line=from_line,
        request_id=request_id,
        acks=acks.value,
        compression=None if compression is Compression.NONE else compression.value,
        batch_bytes_max=max(1, size(batch_bytes)),
        linger_seconds=seconds(linger),
        timeout_seconds=seconds(timeout) or 1e9,
        connect_timeout_seconds=CONNECT_TIMEOUT_SECONDS,
    )
    outcome = run(publish_all(address, plan))
    _tell(plan, outcome, output)


def _tell(plan: "PublishPlan", outcome: "Outcome", output: Output) -> None:
    took = max(outcome.seconds, 1e-9)
    text = (
        f"published {counted(outcome.records, 'record')} ({bytes_text(outcome.size_bytes)})"
        f" to {plan.topic} in {outcome.seconds:.2f} s"
    )
    if outcome.records == 1:
        text += "".join(
            f": partition {number}"
            # With --acks none nobody says where it is.
            + (f", offset {at.base_offset}" if at.base_offset >= 0 else "")
            + (" (it was there already)" if at.duplicate else "")
            for number, at in outcome.partitions.items()
        )
    elif outcome.records:
        text += f": {outcome.records / took:,.0f}/s, {bytes_text(outcome.size_bytes / took)}/s"
        if any(at.duplicate for at in outcome.partitions.values()):
            text += " (some were there already)"
    if outcome.skipped:
        text += f"; {counted(outcome.skipped, 'malformed line')} left out"
    data: dict[str, Any] = {
        "topic": plan.topic,
        "records": outcome.records,
        "bytes": outcome.size_bytes,
        "seconds": round(outcome.seconds, 3),
        "skipped": outcome.skipped,
        "partitions": [
            {
                "partition": number,
                "base_offset": at.base_offset,
                "end_offset": at.end_offset,
                "records": at.records,
                "duplicate": at.duplicate,
            }
            for number, at in sorted(outcome.partitions.items())
        ],
    }
    if outcome.error:
        data |= {"error": outcome.error, "resume_line": outcome.resume_line}
        if output is not Output.TABLE:
            show(output, data)
        exits.say(text)
        advice = ""
        if not plan.values:
            advice = f"; go on with --from-line {outcome.resume_line}"
        elif len(plan.values) > 1:
            advice = f"; value {outcome.resume_line} is the first that is not known to be published"
        if outcome.acknowledged_later:
            advice += f", though {outcome.acknowledged_later:,} records from there on are stored already"
        exits.fail(outcome.error + advice, outcome.code)
    show(output, data, text)
