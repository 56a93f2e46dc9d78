"""`postbus group …`: who reads what, how far they are, and moving or deleting committed offsets."""

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
    place,
)
from broker.cli.output import Table, lines, plain, show

if TYPE_CHECKING:
    from postbus import Client

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Consumer groups: members, offsets and lag; reset, delete."
)

Name = Annotated[str, typer.Argument(metavar="GROUP", show_default=False)]


@app.command("list")
def list_(
    prefix: Annotated[str, typer.Option(help="Only names that begin so.", show_default=False)] = "",
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Lists groups by name."""
    groups = [plain(group) for group in ask(address, lambda client: client.groups.list(prefix=prefix))]
    for group in groups:
        del group["members"], group["offsets"]  # not told in a list
    table = Table(
        ("GROUP", "STATE", "KIND", ">EPOCH"),
        [
            (group["name"], group["state"], group.get("effective_config", {}).get("kind", ""), group["group_epoch"])
            for group in groups
        ],
    )
    show(output, groups, table if groups else "no groups; the first `postbus subscribe TOPIC --group NAME` makes one")


@app.command()
def describe(name: Name, output: OutputOption = Output.TABLE, address: Address = ADDRESS_DEFAULT) -> None:
    """Shows a group: its members with their partitions, committed offsets and lag."""
    group = plain(ask(address, lambda client: client.groups.get(name)))
    owners = {
        (each["topic"], each["partition"]): member["client_id"] or member["member_id"]
        for member in group["members"]
        for each in [*member["revoking"], *member["assigned"]]
    }
    lag = sum(each["lag"] for each in group["offsets"])
    facts = [
        ("group", group["name"]),
        ("state", group["state"]),
        ("members", len(group["members"])),
        ("lag", f"{lag:,}"),
    ]
    members = Table(
        ("MEMBER", "CLIENT", "INSTANCE", "PEER", "ASSIGNED", "REVOKING"),
        [
            (
                member["member_id"],
                member["client_id"],
                member["instance_id"],
                member["peer"],
                _partitions(member["assigned"]),
                _partitions(member["revoking"]),
            )
            for member in group["members"]
        ],
        "Members",
    )
    offsets = Table(
        ("TOPIC", ">PARTITION", ">COMMITTED", ">END", ">LAG", "OWNER"),
        [
            (
                each["topic"],
                each["partition"],
                "none" if each["offset"] is None else each["offset"],
                each["high_watermark"],
                each["lag"],
                owners.get((each["topic"], each["partition"]), ""),
            )
            for each in group["offsets"]
        ],
        "Offsets",
    )
    show(
        output,
        {**group, "lag": lag},
        lines(facts),
        members if group["members"] else "\nno members",
        offsets if group["offsets"] else "\nnothing committed",
    )


@app.command()
def reset(
    name: Name,
    *,
    topic: Annotated[
        list[str],
        typer.Option("--topic", "-t", metavar="TOPIC", help="Only this one; may be repeated. Default: all it reads."),
    ] = [],  # noqa: B006 - typer copies it
    to: Annotated[
        str | None, typer.Option("--to", metavar="PLACE", help=f"Where to: {PLACE_HELP}.", show_default=False)
    ] = None,
    shift: Annotated[
        int | None,
        typer.Option("--shift", metavar="N", help="So many records on, or back if negative.", show_default=False),
    ] = None,
    partition: Annotated[
        list[int], typer.Option("--partition", "-p", metavar="N", min=0, help="Only this one; may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
    dry_run: DryRun = False,
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Moves the committed offsets of a group without members."""
    if (to is None) == (shift is None):
        raise typer.BadParameter("say exactly one of --to and --shift")
    there = None if to is None else place(to)

    async def work(client: "Client") -> list[tuple[str, Any]]:
        topics = topic or sorted({each.topic for each in await client.groups.offsets(name)})
        changes = []
        for each in topics:
            moved = await client.groups.reset(name, each, to=there, shift=shift, partitions=partition, dry_run=dry_run)
            changes += [(each, change) for change in moved]
        return changes

    changes = ask(address, work)
    if not changes:
        exits.fail(f"group {name!r} has committed nothing yet; name the topic with --topic")
    rows = [
        (each, change.partition, change.old_offset if change.HasField("old_offset") else None, change.new_offset)
        for each, change in changes
    ]
    keys = ("topic", "partition", "old_offset", "new_offset")
    show(
        output,
        [dict(zip(keys, row, strict=True)) for row in rows],
        Table(
            ("TOPIC", ">PARTITION", ">OLD", ">NEW"),
            [(*row[:2], "none" if row[2] is None else row[2], row[3]) for row in rows],
        ),
        f"{'would move' if dry_run else 'moved'} {len(rows)} offsets of group {name}",
    )


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="GROUP...", show_default=False)],
    yes: Yes = False,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Deletes groups without members, and their offsets."""
    confirm(f"delete {', '.join(names)} with all committed offsets", yes=yes)

    async def work(client: "Client") -> None:
        for name in names:
            await client.groups.delete(name)
            print(f"deleted group {name}", flush=True)

    ask(address, work)


def _partitions(listed: list[dict[str, Any]]) -> str:
    by_topic: dict[str, list[str]] = {}
    for each in listed:
        by_topic.setdefault(each["topic"], []).append(str(each["partition"]))
    return " ".join(f"{topic}/{','.join(numbers)}" for topic, numbers in by_topic.items())
