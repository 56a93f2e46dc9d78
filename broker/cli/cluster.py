"""`postbus cluster …`: the nodes and what they can do."""

import typer

from broker.cli.online import ask
from broker.cli.options import ADDRESS_DEFAULT, Address, Output, OutputOption
from broker.cli.output import Table, bytes_text, lines, plain, show

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The cluster and its nodes.")


@app.callback()
def cluster() -> None:
    """The cluster and its nodes."""


@app.command()
def info(output: OutputOption = Output.TABLE, address: Address = ADDRESS_DEFAULT) -> None:
    """Shows nodes, features and limits."""
    metadata, features = ask(address, lambda client: client.cluster.info())
    known = plain(metadata)
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
        (">NODE", "ENDPOINT", "STATE", "VOTER", "RACK", "VERSION"),
        [
            (
                node["node_id"],
                node["endpoint"],
                node["state"],
                "yes" if node["voter"] else "no",
                node["rack"],
                node["version"],
            )
            for node in data["nodes"]
        ],
        "Nodes",
    )
    show(output, data, lines(facts), nodes)
