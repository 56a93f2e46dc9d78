"""`postbus topic …`: what topics there are, what holds for them, and changing that."""

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli import exits
from broker.cli.online import ask
from broker.cli.options import (
    ADDRESS_DEFAULT,
    PLACE_HELP,
    Address,
    DryRun,
    Output,
    OutputOption,
    Yes,
    confirm,
    pairs,
    place,
    seconds,
    setting,
    size,
    topic_settings,
)
from broker.cli.output import Table, bytes_text, counted, lines, plain, show, span_text

if TYPE_CHECKING:
    from postbus import Client

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Topics: create, look at, change, delete.")

Name = Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)]
Retention = Annotated[
    str | None, typer.Option(metavar="TIME", help="How long records stay: 12h, 7d; off: for ever.", show_default=False)
]
RetentionBytes = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Largest size of a partition: 10GiB; off: no limit.", show_default=False),
]
Config = Annotated[
    list[str], typer.Option("--config", metavar="KEY=VALUE", help="Any setting of a topic; may be repeated.")
]
Labels = Annotated[list[str], typer.Option("--label", metavar="KEY=VALUE", help="Free for you; may be repeated.")]


class CleanupPolicy(StrEnum):
    """What retention does."""

    DELETE = "delete"
    COMPACT = "compact"
    COMPACT_AND_DELETE = "compact-and-delete"


Cleanup = Annotated[
    CleanupPolicy | None,
    typer.Option(
        "--cleanup-policy", help="By time and size, or only the latest of a key stays, or both.", show_default=False
    ),
]
Partitions = Annotated[
    list[int], typer.Option("--partition", "-p", metavar="N", min=0, help="Only this one; may be repeated.")
]


def _settings(
    config: list[str], retention: str | None, retention_bytes: str | None, cleanup: CleanupPolicy | None
) -> dict[str, object]:
    settings = topic_settings([*config, *([f"cleanup_policy={cleanup.value}"] if cleanup is not None else [])])
    if retention is not None:
        settings["retention_time"] = timedelta(seconds=seconds(retention))
    if retention_bytes is not None:
        settings["retention_bytes"] = size(retention_bytes)
    return settings


@app.command()
def create(
    name: Name,
    *,
    partitions: Annotated[
        int, typer.Option("--partitions", metavar="N", min=0, help="How many; 0: the broker's default.")
    ] = 0,
    replication_factor: Annotated[
        int,
        typer.Option(
            "--replication-factor", metavar="N", min=0, help="On how many nodes; 0: 3, or as many as there are."
        ),
    ] = 0,
    retention: Retention = None,
    retention_bytes: RetentionBytes = None,
    cleanup_policy: Cleanup = None,
    config: Config = [],  # noqa: B006 - typer copies it
    label: Labels = [],  # noqa: B006 - typer copies it
    if_not_exists: Annotated[bool, typer.Option("--if-not-exists", help="It is fine if it is there.")] = False,
    dry_run: DryRun = False,
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Creates a topic."""
    settings = _settings(config, retention, retention_bytes, cleanup_policy)
    labels = dict(pairs(label, "label"))

    async def work(client: "Client") -> tuple[Any, bool]:
        from postbus import AlreadyExists

        try:
            topic = await client.topics.create(
                name,
                partition_count=partitions,
                replication_factor=replication_factor,
                config=settings,
                labels=labels,
                validate_only=dry_run,
            )
        except AlreadyExists:
            if not if_not_exists:
                raise
            return await client.topics.get(name), False
        return topic, True

    topic, created = ask(address, work)
    verb = ("would create" if dry_run else "created") if created else "there was already"
    data = {**plain(topic), "created": created and not dry_run}
    show(output, data, f"{verb} topic {topic.name} with {counted(topic.partition_count, 'partition')}")


@app.command("list")
def list_(
    prefix: Annotated[str, typer.Option(help="Only names that begin so.", show_default=False)] = "",
    internal: Annotated[bool, typer.Option("--internal", help="The broker's own, too.")] = False,
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Lists topics by name."""
    topics = ask(address, lambda client: client.topics.list(prefix=prefix, include_internal=internal))
    table = Table(
        ("TOPIC", ">PARTITIONS", "RETENTION", ">BYTES PER PARTITION", "CREATED"),
        [
            (
                topic.name,
                topic.partition_count,
                _retention(topic.effective_config),
                _retention_bytes(topic.effective_config),
                plain(topic).get("create_time", ""),
            )
            for topic in topics
        ],
    )
    nothing = "no topics; create one with: postbus topic create NAME"
    show(output, [plain(topic) for topic in topics], table if topics else nothing)


@app.command()
def describe(name: Name, output: OutputOption = Output.TABLE, address: Address = ADDRESS_DEFAULT) -> None:
    """Shows a topic: its settings, and its partitions with offsets and sizes."""

    async def work(client: "Client") -> tuple[Any, list[Any]]:
        return await client.topics.get(name), await client.topics.partitions(name)

    topic, partitions = ask(address, work)
    records = sum(each.high_watermark - each.log_start_offset for each in partitions)
    size_bytes = sum(each.size_bytes for each in partitions)
    data = {**plain(topic), "records": records, "size_bytes": size_bytes, "partitions": list(map(plain, partitions))}
    set_here = plain(topic.config)
    facts: list[tuple[str, object]] = [
        ("topic", topic.name),
        ("topic id", topic.topic_id),
        ("created", data.get("create_time", "")),
        ("records", f"{records:,}"),
        ("size", bytes_text(size_bytes)),
        *((f"label {label}", value) for label, value in topic.labels.items()),
    ]
    settings = [
        (setting, value, "" if set_here.get(setting) in (None, "unspecified") else "set")
        for setting, value in plain(topic.effective_config).items()
        if value is not None
    ]
    show(
        output,
        data,
        lines(facts),
        Table(("SETTING", "VALUE", ""), settings, "Settings (times in seconds, sizes in bytes)"),
        _partitions_table(partitions),
        *([_replicas_table(partitions)] if any(len(each.replicas) > 1 for each in partitions) else []),
    )


def _partitions_table(partitions: list[Any]) -> Table:
    def ids(partition: Any, kind: str) -> str:
        return ",".join(str(replica.node_id) for replica in partition.replicas if not kind or getattr(replica, kind))

    return Table(
        (">PARTITION", ">LEADER", ">EPOCH", "REPLICAS", "ISR", "ELR", ">START", ">END", ">RECORDS", ">SIZE"),
        [
            (
                each.partition,
                each.leader_node_id if each.HasField("leader_node_id") else "none",
                each.leader_epoch,
                ids(each, ""),
                ids(each, "in_sync"),
                ids(each, "eligible") or "-",
                each.log_start_offset,
                each.high_watermark,
                each.high_watermark - each.log_start_offset,
                bytes_text(each.size_bytes),
            )
            for each in partitions
        ],
        "Partitions",
    )


def _replicas_table(partitions: list[Any]) -> Table:
    rows = []
    for partition in partitions:
        end = max((replica.end_offset for replica in partition.replicas if not replica.unknown), default=0)
        for replica in partition.replicas:
            roles = [
                role
                for role, holds in (
                    ("leader", partition.HasField("leader_node_id") and partition.leader_node_id == replica.node_id),
                    ("in sync", replica.in_sync),
                    ("eligible", replica.eligible),
                    ("moving", replica.reassigning),
                )
                if holds
            ]
            known = (replica.end_offset, replica.durable_end_offset, end - replica.end_offset)
            offsets = ("unknown", "unknown", "") if replica.unknown else known
            rows.append((partition.partition, replica.node_id, ", ".join(roles) or "behind", *offsets))
    return Table((">PARTITION", ">NODE", "STATE", ">END", ">FSYNCED", ">LAG"), rows, "Replicas")


@app.command()
def alter(
    name: Name,
    *,
    retention: Retention = None,
    retention_bytes: RetentionBytes = None,
    cleanup_policy: Cleanup = None,
    config: Config = [],  # noqa: B006 - typer copies it
    reset: Annotated[
        list[str], typer.Option("--reset", metavar="KEY", help="Back to the default; may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
    label: Annotated[
        list[str], typer.Option("--label", metavar="KEY=VALUE", help="Replaces all labels; may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Changes the settings that are named, and no others."""
    settings = _settings(config, retention, retention_bytes, cleanup_policy)
    if not settings and not reset and not label:
        raise typer.BadParameter(
            "say what to change: --retention, --retention-bytes, --cleanup-policy, --config, --reset or --label"
        )
    labels = dict(pairs(label, "label")) if label else None
    for key in reset:
        setting(key)
    topic = ask(
        address,
        lambda client: client.topics.update(name, config=settings or None, reset=reset, labels=labels),
    )
    changed = [*settings, *reset, *(["labels"] if label else [])]
    show(output, plain(topic), f"changed {', '.join(changed)} of topic {topic.name}")


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="TOPIC...", show_default=False)],
    yes: Yes = False,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Deletes topics with their records and all committed offsets of them."""
    confirm(f"delete {', '.join(names)} with all records", yes=yes)

    async def work(client: "Client") -> None:
        for name in names:
            await client.topics.delete(name)
            print(f"deleted topic {name}", flush=True)

    ask(address, work)


@app.command("add-partitions")
def add_partitions(
    name: Name,
    count: Annotated[int, typer.Argument(metavar="COUNT", min=1, help="How many there should be.", show_default=False)],
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Raises the number of partitions to COUNT. Keys may map elsewhere from then on."""
    topic = ask(address, lambda client: client.topics.add_partitions(name, count))
    show(output, plain(topic), f"topic {topic.name} has {counted(topic.partition_count, 'partition')}")


@app.command()
def trim(
    name: Name,
    *,
    before: Annotated[
        str, typer.Option(metavar="PLACE", help=f"Everything before it goes: {PLACE_HELP}.", show_default=False)
    ],
    partition: Partitions = [],  # noqa: B006 - typer copies it
    dry_run: DryRun = False,
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Deletes the oldest records: all before an offset or a time, all but the last N, or everything (latest)."""
    there = place(before)

    async def work(client: "Client") -> tuple[list[Any], list[Any]]:
        found = await client.topics.list_offsets(name, at=there, partitions=partition)
        if dry_run:
            return found, []
        return found, await client.topics.delete_records(name, before=there, partitions=partition)

    found, deleted = ask(address, work)
    starts = {each.partition: each.log_start_offset for each in deleted}
    failures = {each.partition: each.failure for each in [*found, *deleted] if each.HasField("failure")}
    rows = []
    for each in found:
        # Without having done it: what lies before the place.
        end = starts.get(each.partition, max(each.log_start_offset, each.offset))
        gone = 0 if each.partition in failures else max(0, end - each.log_start_offset)
        rows.append(
            (each.partition, each.log_start_offset, end, gone, getattr(failures.get(each.partition), "message", ""))
        )
    keys = ("partition", "old_start_offset", "start_offset", "records", "failure")
    total = sum(row[3] for row in rows)
    show(
        output,
        [dict(zip(keys, row, strict=True)) for row in rows],
        Table((">PARTITION", ">OLD START", ">START", ">RECORDS", ""), rows),
        f"{'would delete' if dry_run else 'deleted'} {counted(total, 'record')} of topic {name}",
    )
    if failures:
        raise typer.Exit(exits.FAILED)


def _retention(config: Any) -> str:
    time_seconds = config.retention_time.seconds if config.HasField("retention_time") else 0
    return span_text(time_seconds) if time_seconds else "for ever"


def _retention_bytes(config: Any) -> str:
    return bytes_text(config.retention_bytes) if config.retention_bytes else "no limit"
