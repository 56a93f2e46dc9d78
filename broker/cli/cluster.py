"""`postbus cluster …`: looking at the nodes, the quorum, and whether all is well. Changes: `cluster_changes`."""

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import typer

from broker.cli import exits
from broker.cli.cluster_health import Level, examine
from broker.cli.online import ask
from broker.cli.options import ADDRESS_DEFAULT, Address, Output, OutputOption
from broker.cli.output import Table, bytes_text, counted, lines, plain, show, span_text

if TYPE_CHECKING:
    from postbus import Client

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The cluster and its nodes.")

# The SDK would wait for a quorum to come back; who asks how things are wants to hear that there is none.
HEALTH_TIMEOUT_SECONDS: Final = 2.0
HEALTH_EPILOG: Final = (
    "Exit codes: 0 all is well, 1 degraded (all works, one failure more may hurt), 4 something does not work now, or"
    " no node answers, 2 wrong arguments."
)


@app.callback()
def cluster() -> None:
    """The cluster and its nodes."""


@app.command()
def info(output: OutputOption = Output.TABLE, address: Address = ADDRESS_DEFAULT) -> None:
    """Shows nodes, features and limits."""
    metadata, features = ask(address, lambda client: client.cluster.info())
    known = plain(metadata)
    leads, holds = _shares(known["topics"])
    topics = [topic for topic in known.pop("topics") if not topic["name"].startswith("__")]
    data = {
        **known,
        "topic_count": len(topics),
        "partition_count": sum(len(topic["partitions"]) for topic in topics),
        "features": plain(features),
    }
    can = data["features"]
    controller = data["controller_node_id"]
    facts = [
        ("cluster", data["cluster_id"]),
        ("controller", "none" if controller is None else f"node {controller}"),
        ("metadata epoch", data["metadata_epoch"]),
        ("topics", f"{data['topic_count']:,} with {data['partition_count']:,} partitions"),
        ("version", can["version"]),
        ("features", ", ".join(can["features"]) or "none"),
        ("compression", ", ".join(can["compressions"]) or "none"),
        ("largest record", bytes_text(can["max_record_bytes"])),
        ("largest batch", bytes_text(can["max_batch_bytes"])),
        ("largest message", bytes_text(can["max_message_bytes"])),
    ]
    nodes = Table(
        (">NODE", "ENDPOINT", "STATE", "VOTER", ">LEADS", ">HOLDS", "RACK", "VERSION"),
        [
            (
                node["node_id"],
                node["endpoint"],
                node["state"],
                "yes" if node["voter"] else "no",
                leads[node["node_id"]],
                holds[node["node_id"]],
                node["rack"],
                node["version"],
            )
            for node in data["nodes"]
        ],
        "Nodes",
    )
    show(output, data, lines(facts), nodes)


def _shares(topics: list[dict[str, Any]]) -> tuple[Counter[int | None], Counter[int]]:
    """How many partitions each node leads, and of how many it has a replica; the broker's own included."""
    partitions = [partition for topic in topics for partition in topic["partitions"]]
    leads = Counter(partition["leader_node_id"] for partition in partitions)
    return leads, Counter(node_id for partition in partitions for node_id in partition["replica_node_ids"])


@app.command(epilog=HEALTH_EPILOG)
def health(output: OutputOption = Output.TABLE, address: Address = ADDRESS_DEFAULT) -> None:
    """Says whether all is well, and what is not. Its exit code says it to scripts."""

    async def work(client: "Client") -> tuple[Any, Any, dict[str, int]]:
        from postbus import PostbusError

        metadata = await client.cluster.metadata()
        try:
            quorum = plain(await client.cluster.quorum())
        except PostbusError:
            quorum = None
        topics = await client.topics.list(include_internal=True)
        return plain(metadata), quorum, {each.name: each.effective_config.min_insync_replicas for each in topics}

    metadata, quorum, min_insync = ask(address, work, timeout_seconds=HEALTH_TIMEOUT_SECONDS)
    findings = examine(metadata, quorum, min_insync)
    down = any(finding.level is Level.DOWN for finding in findings)
    status = Level.DOWN.value if down else Level.DEGRADED.value if findings else "well"
    nodes, partitions = metadata["nodes"], sum(len(topic["partitions"]) for topic in metadata["topics"])
    controller = metadata["controller_node_id"]
    facts = [
        ("health", status),
        ("controller", "none" if controller is None else f"node {controller}"),
        ("nodes", f"{sum(node['state'] == 'active' for node in nodes)} of {len(nodes)} at work"),
        ("partitions", f"{partitions:,}"),
        *((finding.level.value, finding.line()) for finding in findings),
    ]
    data = {
        "status": status,
        "findings": [
            {"level": finding.level.value, "what": finding.what, "subjects": list(finding.subjects)}
            for finding in findings
        ],
        "controller_node_id": controller,
        "nodes": nodes,
        "partition_count": partitions,
    }
    show(output, data, lines(facts))
    raise typer.Exit(exits.UNAVAILABLE if down else exits.FAILED if findings else exits.OK)


@app.command()
def quorum(output: OutputOption = Output.TABLE, address: Address = ADDRESS_DEFAULT) -> None:
    """Shows who votes over the cluster's metadata, and how far each is."""
    data = plain(ask(address, lambda client: client.cluster.quorum()))
    leader = data["leader_node_id"]
    facts = [
        ("leader", "none" if leader is None else f"node {leader}"),
        ("term", data["term"]),
        ("commit index", data["commit_index"]),
    ]
    members = Table(
        (">NODE", "ROLE", ">MATCH", ">BEHIND", "LAST HEARD"),
        [
            (
                member["node_id"],
                ("leader" if member["node_id"] == leader else "voter") if member["voter"] else "observer",
                member["match_index"],
                max(0, data["commit_index"] - member["match_index"]),
                f"{span_text(round(member['silence'], 1))} ago" if "silence" in member else "",
            )
            for member in data["members"]
        ],
        f"Members ({counted(sum(member['voter'] for member in data['members']), 'voter')})",
    )
    show(output, data, lines(facts), members)
