"""A decision while it is made: what happens to nodes and partitions, and the records that say so.

Later steps of one decision see what earlier ones did, as the image will once the records are applied. Pure.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from broker.controller import elections
from broker.controller.commands import Outcome
from broker.controller.elections import Terms
from broker.controller.image import partition_record
from broker.controller.state import NOBODY, ClusterState, NodeState, PartitionState, Topic
from broker.controller.topic_config import TopicConfig, min_insync_replicas
from broker.stubs.metadata_log_pb2 import (
    MetadataRecord,
    NodeChanged,
    NodeRegistered,
    NodeRemoved,
    PartitionChanged,
    TopicChanged,
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What carries out a command."""

    records: list[MetadataRecord] = field(default_factory=list)  # one entry; none if it is so already
    outcomes: tuple[Outcome, ...] = ()
    unclean: tuple[tuple[str, int], ...] = ()  # partitions, by topic name, that someone leads now who lacks records


class Changes:
    """Collects the steps of one decision."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self.nodes: dict[int, NodeState] = dict(state.nodes)
        self._node_records: list[MetadataRecord] = []
        self._partitions: dict[tuple[str, int], PartitionState] = {}
        self._terms: dict[str, Terms] = {}
        self._moved_topics: dict[str, None] = {}  # by id; where replicas come, go, or came or went
        self._replication: dict[str, int] = {}
        self._unclean: list[tuple[str, int]] = []

    def terms(self, topic: Topic) -> Terms:
        """What elections in this topic depend on."""
        terms = self._terms.get(topic.topic_id)
        if terms is None:
            replication_factor = self._replication.get(topic.topic_id, topic.replication_factor)
            terms = terms_of(topic.config, self.nodes, replication_factor=replication_factor)
            self._terms[topic.topic_id] = terms
        return terms

    # --- nodes ---

    def register(self, record: NodeRegistered) -> None:
        """A node begins a life, fenced. Its broker epoch follows from the entry's index."""
        node = NodeState(
            node_id=record.node_id, store_id=record.store_id, broker_epoch=0, draining=record.draining, rack=record.rack
        )
        self.nodes[node.node_id] = node
        self._node_records.append(MetadataRecord(node_registered=record))

    def set_node(
        self, node_id: int, *, fenced: bool | None = None, stopping: bool | None = None, draining: bool | None = None
    ) -> None:
        """A node's standing; None: as it is."""
        node = self.nodes[node_id]
        after = replace(
            node,
            fenced=node.fenced if fenced is None else fenced,
            stopping=node.stopping if stopping is None else stopping,
            draining=node.draining if draining is None else draining,
        )
        if after != node:
            self.nodes[node_id] = after
            standing: dict[str, Any] = {"fenced": fenced, "stopping": stopping, "draining": draining}
            self._node_records.append(MetadataRecord(node_changed=NodeChanged(node_id=node_id, **standing)))

    def remove_node(self, node_id: int) -> None:
        """It goes for good."""
        del self.nodes[node_id]
        self._node_records.append(MetadataRecord(node_removed=NodeRemoved(node_id=node_id)))

    # --- partitions ---

    def partition(self, topic: Topic, number: int) -> PartitionState:
        """As it is after the steps so far."""
        return self._partitions.get((topic.topic_id, number)) or topic.partitions[number]

    def partitions(self) -> Iterator[tuple[Topic, int, PartitionState]]:
        """All of them, as they are after the steps so far; they may be changed on the way."""
        for topic, number, _ in self.state.partitions():
            yield topic, number, self.partition(topic, number)

    def put(self, topic: Topic, number: int, after: PartitionState) -> None:
        """A partition's next state."""
        before = self.partition(topic, number)
        if after is before:
            return
        self._partitions[topic.topic_id, number] = after
        if before.reassigning or after.reassigning or len(before.replicas) != len(after.replicas):
            self._moved_topics[topic.topic_id] = None
        completed = before.reassigning and not after.reassigning
        had_all = after.leader in before.isr or after.leader in before.elr or completed
        if after.leader not in (NOBODY, before.leader) and not had_all:
            self._unclean.append((topic.name, number))

    def decision(self, *records: MetadataRecord, outcomes: tuple[Outcome, ...] = ()) -> Decision:
        """All of it, after `records`."""
        for topic_id in self._moved_topics:
            self._follow_replication(topic_id)
        settings = [
            MetadataRecord(
                topic_changed=TopicChanged(
                    topic_id=topic_id,
                    config=topic.config,
                    labels=dict(topic.labels),
                    replication_factor=replication_factor,
                )
            )
            for topic_id, replication_factor in self._replication.items()
            if (topic := self.state.topic_by_id(topic_id)) is not None
        ]
        partitions = [
            MetadataRecord(
                partition_changed=PartitionChanged(
                    topic_id=topic_id, partition=number, state=partition_record(partition)
                )
            )
            for (topic_id, number), partition in self._partitions.items()
        ]
        return Decision([*records, *self._node_records, *settings, *partitions], outcomes, tuple(self._unclean))

    def _follow_replication(self, topic_id: str) -> None:
        """A topic has as many copies as all of its partitions have: fewer as soon as that is wanted, so that what is
        left is enough to acknowledge; more once all are there."""
        topic = self.state.topic_by_id(topic_id)
        assert topic is not None
        states = [self.partition(topic, number) for number in range(topic.partition_count)]
        sizes = {len(state.target) for state in states}
        if len(sizes) > 1:
            return
        (count,) = sizes
        moving = any(state.reassigning for state in states)
        if count == topic.replication_factor or (count > topic.replication_factor and moving):
            return
        self._replication[topic_id] = count
        self._terms.pop(topic_id, None)
        terms = self.terms(topic)
        for number, state in enumerate(states):
            self._partitions[topic_id, number] = elections.with_isr(state, state.isr, terms)
            if self._partitions[topic_id, number] is topic.partitions[number]:
                del self._partitions[topic_id, number]


def terms_of(config: bytes, nodes: Mapping[int, NodeState], *, replication_factor: int) -> Terms:
    """What elections depend on in a topic that has this (serialised) configuration."""
    parsed = TopicConfig.FromString(config)
    return Terms(
        nodes=nodes,
        min_insync=min_insync_replicas(parsed, replication_factor=replication_factor),
        unclean=parsed.unclean_leader_election,
    )
