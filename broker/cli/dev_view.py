"""What `postbus dev` shows of its cluster: rows made of what the nodes say. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

TOPICS_SHOWN: Final = 20
LEADERS_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node."""

    node_id: int
    state: str
    role: str
    address: str
    leads: int
    in_sync: int
    holds: int
    lag: int | None  # records that its replicas lack; None: not known
    pid: int | None


@dataclass(frozen=True, slots=True)
class TopicRow:
    """One topic."""

    name: str
    leaders: str  # by partition: "1 2 3 1 2 -"
    in_sync: int
    replicas: int
    records: int
    lag: int  # of the replica that is furthest behind


@dataclass(frozen=True, slots=True)
class Process:
    """What is known of a node without asking it."""

    state: str
    address: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class View:
    """All of it."""

    controller: int | None
    nodes: tuple[NodeRow, ...]
    topics: tuple[TopicRow, ...]
    topics_hidden: int
    answered: bool  # False: no node answers; topics are as they were

    @property
    def complete(self) -> bool:
        """All nodes are at work under a controller."""
        return self.controller is not None and all(node.state in ("active", "elsewhere") for node in self.nodes)

    @property
    def silent(self) -> bool:
        """Nobody answers, though somebody should by now."""
        return not self.answered and any(node.state != "starting" for node in self.nodes)

    def lines(self) -> list[str]:
        """What is worth a line when it changes: who leads and what is in sync, not how many records there are."""
        if not self.answered:
            return ["no node answers"] if self.silent else []
        controller = "there is no controller" if self.controller is None else f"controller: node {self.controller}"
        return [
            controller,
            *(f"node {node.node_id} is fenced" for node in self.nodes if node.state == "fenced"),
            *(
                f"topic {topic.name}: leaders {topic.leaders}, {topic.in_sync} of {topic.replicas} replicas in sync"
                for topic in self.topics
            ),
        ]


def view(
    processes: Mapping[int, Process],
    metadata: Any | None,
    partitions: Mapping[str, Sequence[Any]],
    *,
    before: "View | None" = None,
) -> View:
    """The cluster now. metadata: GetMetadataResponse, None: nobody answered. partitions: PartitionDescription by topic,
    as far as they are known."""
    if metadata is None:
        nodes = tuple(
            NodeRow(number, each.state, "", each.address, 0, 0, 0, None, each.pid) for number, each in processes.items()
        )
        return View(None, nodes, before.topics if before else (), before.topics_hidden if before else 0, answered=False)
    shown = [topic for topic in metadata.topics if not topic.name.startswith("__")]
    lags = _lags(partitions)
    return View(
        controller=metadata.controller_node_id if metadata.HasField("controller_node_id") else None,
        nodes=_nodes(processes, metadata, lags),
        topics=tuple(_topic(topic, partitions.get(topic.name, ())) for topic in shown[:TOPICS_SHOWN]),
        topics_hidden=max(0, len(shown) - TOPICS_SHOWN),
        answered=True,
    )


def _nodes(processes: Mapping[int, Process], metadata: Any, lags: Mapping[int, int]) -> tuple[NodeRow, ...]:
    every = [partition for topic in metadata.topics for partition in topic.partitions]
    leads = Counter(each.leader_node_id for each in every if each.HasField("leader_node_id"))
    holds = Counter(node_id for each in every for node_id in each.replica_node_ids)
    in_sync = Counter(node_id for each in every for node_id in each.isr_node_ids)
    known = {node.node_id: node for node in metadata.nodes}
    states = {1: "fenced", 2: "active", 3: "draining"}
    rows = []
    for node_id in sorted({*processes, *known}):
        process, node = processes.get(node_id), known.get(node_id)
        state = process.state if process is not None else "elsewhere"
        if state in ("running", "elsewhere"):
            state = states.get(node.state, "unknown") if node is not None else "joining"
        controls = metadata.HasField("controller_node_id") and metadata.controller_node_id == node_id
        role = "" if node is None else "controller" if controls else "voter" if node.voter else "observer"
        rows.append(
            NodeRow(
                node_id=node_id,
                state=state,
                role=role,
                address=process.address if process is not None else node.endpoint if node is not None else "",
                leads=leads[node_id],
                in_sync=in_sync[node_id],
                holds=holds[node_id],
                lag=lags.get(node_id),
                pid=process.pid if process is not None else None,
            )
        )
    return tuple(rows)


def _lags(partitions: Mapping[str, Sequence[Any]]) -> dict[int, int]:
    lags: dict[int, int] = {}
    for described in partitions.values():
        for partition in described:
            for replica in partition.replicas:
                if not replica.unknown:
                    lags[replica.node_id] = lags.get(replica.node_id, 0) + _end(partition) - replica.end_offset
    return lags


def _end(partition: Any) -> int:
    return max((replica.end_offset for replica in partition.replicas if not replica.unknown), default=0)


def _topic(topic: Any, described: Sequence[Any]) -> TopicRow:
    leaders = [str(each.leader_node_id) if each.HasField("leader_node_id") else "-" for each in topic.partitions]
    more = len(leaders) - LEADERS_SHOWN
    return TopicRow(
        name=topic.name,
        leaders=" ".join(leaders[:LEADERS_SHOWN]) + (f" and {more} more" if more > 0 else ""),
        in_sync=sum(len(each.isr_node_ids) for each in topic.partitions),
        replicas=sum(len(each.replica_node_ids) for each in topic.partitions),
        records=sum(each.high_watermark - each.log_start_offset for each in described),
        lag=max(
            (_end(each) - replica.end_offset for each in described for replica in each.replicas if not replica.unknown),
            default=0,
        ),
    )
