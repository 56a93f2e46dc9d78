"""`postbus cluster …`: draining nodes, electing leaders, moving replicas, voters."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from broker.cli import exits
from broker.cli.cluster import app
from broker.cli.online import ask
from broker.cli.options import (
    ADDRESS_DEFAULT,
    Address,
    DryRun,
    Output,
    OutputOption,
    Yes,
    confirm,
    partition_names,
    replica_lists,
    seconds,
    size,
)
from broker.cli.output import Table, bytes_text, counted, plain, show

if TYPE_CHECKING:
    from postbus import Client

LOOK_AGAIN_SECONDS: Final = 0.5

NodeId = Annotated[int, typer.Argument(metavar="NODE", min=1, help="Its number.", show_default=False)]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="[TOPIC/PARTITION]...", help="None: all.", show_default=False)
]
Throttle = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="Bytes a second for each node, such as 20MiB; off: as the cluster has it.",
        show_default=False,
    ),
]


@app.command()
def drain(
    node: NodeId,
    *,
    move_replicas: Annotated[
        bool, typer.Option("--move-replicas", help="Move its replicas, too: it can be removed afterwards.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it leads nothing, or holds nothing, any more.")] = True,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="How long to wait.")] = "10min",
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Takes leadership off a node, and keeps it off until `undrain`."""
    timeout_seconds = seconds(timeout)

    async def work(client: "Client") -> tuple[Any, bool]:
        import asyncio
        import time

        deadline = time.monotonic() + timeout_seconds
        said = ""
        while True:
            left = await client.cluster.drain(node, move_replicas=move_replicas)
            done = not left.leading_count and not (move_replicas and left.replica_count)
            if done or not wait or time.monotonic() > deadline:
                return left, done
            line = f"node {node} leads {left.leading_count}, holds {counted(left.replica_count, 'replica')}"
            if line != said:
                exits.say(line)
                said = line
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    left, done = ask(address, work)
    what = f"leads {counted(left.leading_count, 'partition')} and holds {counted(left.replica_count, 'replica')}"
    show(output, {**plain(left), "done": done}, f"{'drained' if done else 'draining'} node {node}: it {what}")
    if wait and not done:
        exits.fail(f"node {node} was not drained within {timeout}; it goes on", exits.UNAVAILABLE)


@app.command()
def undrain(node: NodeId, address: Address = ADDRESS_DEFAULT) -> None:
    """Takes a drain back: the node may lead and get replicas again."""
    ask(address, lambda client: client.cluster.undrain(node))
    print(f"node {node} is no longer drained")


@app.command()
def elect(
    partitions: Names = None,
    *,
    unclean: Annotated[
        bool, typer.Option("--unclean", help="Where nobody else can: also a replica that lacks records. Loses them.")
    ] = False,
    yes: Yes = False,
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Has the preferred leaders lead again."""
    named = partition_names(partitions or [])
    if unclean:
        if not named:
            raise typer.BadParameter("--unclean needs the partitions by name")
        confirm(f"elect leaders of {counted(len(named), 'partition')} even if records are lost", yes=yes)
    _show_outcomes(output, ask(address, lambda client: client.cluster.elect(named, unclean=unclean)), "elected")


@app.command()
def reassign(
    moves: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TOPIC/PARTITION=NODE,NODE…]...", help="Where to, the preferred leader first.", show_default=False
        ),
    ] = None,
    *,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="As `cluster rebalance --dry-run -o json` prints it.", show_default=False),
    ] = None,
    throttle: Throttle = "off",
    dry_run: DryRun = False,
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Moves replicas to other nodes. Look on with `cluster reassignments`."""
    replicas = replica_lists(moves or [])
    if plan is not None:
        replicas |= _planned(plan)
    if not replicas:
        raise typer.BadParameter("say what to move: TOPIC/PARTITION=NODE,NODE… or --plan FILE")
    outcomes = ask(address, lambda client: client.cluster.reassign(replicas, throttle=size(throttle), dry_run=dry_run))
    _show_outcomes(output, outcomes, "could be moved" if dry_run else "moving")


@app.command()
def rebalance(
    *,
    raise_replication: Annotated[
        bool,
        typer.Option("--raise-replication", help="Give topics of fewer nodes' days as many replicas as new ones get."),
    ] = False,
    throttle: Throttle = "off",
    dry_run: DryRun = False,
    output: OutputOption = Output.TABLE,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Gives every node its share of replicas and leaders, after one came or went."""
    planned = ask(
        address,
        lambda client: client.cluster.rebalance(
            throttle=size(throttle), raise_replication=raise_replication, dry_run=dry_run
        ),
    )
    rows = []
    for move in planned:
        old, new = list(move.old_replica_node_ids), list(move.new_replica_node_ids)
        coming = len(set(new) - set(old))
        copied = bytes_text(move.size_bytes * coming) if coming and move.size_bytes else "" if coming else "leader only"
        rows.append((f"{move.partition.topic}/{move.partition.partition}", _ids(old), _ids(new), copied))
    copies = sum(len(set(move.new_replica_node_ids) - set(move.old_replica_node_ids)) for move in planned)
    moving = "would move" if dry_run else "moving"
    summary = f"{moving} {counted(len(rows), 'partition')}, {counted(copies, 'replica')} to copy"
    show(
        output,
        [plain(move) for move in planned],
        Table(("PARTITION", "REPLICAS", "THEN", "COPIED"), rows) if rows else "all nodes have their share",
        *([summary] if rows else []),
    )


@app.command()
def reassignments(output: OutputOption = Output.TABLE, address: Address = ADDRESS_DEFAULT) -> None:
    """Shows moves under way."""
    under_way = ask(address, lambda client: client.cluster.reassignments())
    rows = [
        (
            f"{each.target.partition.topic}/{each.target.partition.partition}",
            _ids(each.target.replica_node_ids),
            _ids(each.adding_node_ids),
            _ids(each.removing_node_ids),
            each.lag,
        )
        for each in under_way
    ]
    table = Table(("PARTITION", "REPLICAS", "ADDING", "REMOVING", ">LAG"), rows)
    show(output, [plain(each) for each in under_way], table if rows else "nothing moves")


@app.command()
def cancel(partitions: Names = None, output: OutputOption = Output.TABLE, address: Address = ADDRESS_DEFAULT) -> None:
    """Stops moves and goes back to how it was."""
    named = partition_names(partitions or [])
    _show_outcomes(output, ask(address, lambda client: client.cluster.cancel(named)), "cancelled")


@app.command("add-voter")
def add_voter(node: NodeId, address: Address = ADDRESS_DEFAULT) -> None:
    """Makes an observer vote over the cluster's metadata."""
    ask(address, lambda client: client.cluster.add_voter(node))
    print(f"node {node} votes")


@app.command("remove-voter")
def remove_voter(node: NodeId, address: Address = ADDRESS_DEFAULT) -> None:
    """Makes a voter observe. The data that it holds stays."""
    ask(address, lambda client: client.cluster.remove_voter(node))
    print(f"node {node} observes")


@app.command("remove-node")
def remove_node(node: NodeId, yes: Yes = False, address: Address = ADDRESS_DEFAULT) -> None:
    """Forgets a node for good, after `drain --move-replicas` and its stop."""
    confirm(f"forget node {node}", yes=yes)
    ask(address, lambda client: client.cluster.remove_node(node))
    print(f"node {node} is forgotten")


def _planned(path: Path) -> dict[tuple[str, int], list[int]]:
    try:
        return {
            (str(move["partition"]["topic"]), int(move["partition"]["partition"])): [
                int(node_id) for node_id in move["new_replica_node_ids"]
            ]
            for move in json.loads(path.read_text())
        }
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise typer.BadParameter(f"{path} is no plan: make one with `cluster rebalance --dry-run -o json`") from None


def _show_outcomes(output: Output, outcomes: list[Any], done: str) -> None:
    """Failures have their lines; where all went well, a count says so."""
    failed = [each for each in outcomes if each.HasField("failure")]
    data = [
        {**plain(each.partition), "failure": each.failure.message if each.HasField("failure") else None}
        for each in outcomes
    ]
    rows = [(f"{each.partition.topic}/{each.partition.partition}", each.failure.message) for each in failed]
    summary = f"{done}: {counted(len(outcomes) - len(failed), 'partition')}"
    show(output, data, summary, *([Table(("PARTITION", "FAILED"), rows)] if failed else []))
    if failed:
        raise typer.Exit(exits.FAILED)


def _ids(node_ids: Any) -> str:
    return ",".join(map(str, node_ids))
