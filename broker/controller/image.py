"""How the image follows from the metadata log: `apply`, the only thing that makes a new one, and snapshots of it.

The same entries give the same image on every node and after every restart. Nothing here checks what may be done
(that is `decisions`), reads a clock or does I/O.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from broker.controller.state import ClusterState, MetadataError, NodeState, PartitionState, Topic
from broker.stubs.metadata_log_pb2 import (
    ClusterCreated,
    MetadataRecord,
    MetadataSnapshot,
    NodeChanged,
    NodeRegistered,
    NodeRemoved,
    PartitionChanged,
    PartitionRecord,
    PartitionsAdded,
    ProducerEpochRaised,
    ProducerIdsReserved,
    ThrottleChanged,
    TopicChanged,
    TopicCreated,
    TopicDeleted,
)

# How many producers' epochs are remembered one by one; of the others, only that none is above a floor.
PRODUCER_EPOCHS_MAX: Final = 10_000


def apply(state: ClusterState, records: Iterable[MetadataRecord], *, index: int) -> ClusterState:
    """The image after the entry at `index`, which holds `records`. Raises MetadataError."""
    if index <= state.index:
        raise MetadataError(f"metadata entry {index} comes after entry {state.index}")
    draft = _Draft(state, index)
    for record in records:
        draft.apply(record)
    return draft.image()


class _Draft:
    """An image while the records of one entry change it: whatever they touch is copied once, not once a record."""

    def __init__(self, state: ClusterState, index: int) -> None:
        self._state = state
        self._index = index
        self._topics: dict[str, Topic] | None = None
        self._topic_names: dict[str, str] | None = None
        self._nodes: dict[int, NodeState] | None = None
        self._partitions: dict[str, list[PartitionState]] = {}  # by topic id; of the topics whose partitions changed
        self._producer_epochs: dict[int, int] | None = None
        self._numbers: dict[str, int] = {}  # fields of the image that are plain numbers
        self._cluster: ClusterCreated | None = None

    def apply(self, record: MetadataRecord) -> None:
        kind = record.WhichOneof("record")
        change = None if kind is None else _CHANGES.get(kind)
        if change is None:
            raise self._error("is of a kind that this version does not know")
        change(self, getattr(record, kind))

    def image(self) -> ClusterState:
        state = self._state
        for topic_id, partitions in self._partitions.items():
            topic = self._topic(topic_id)
            self._own_topics()[topic.name] = replace(topic, partitions=tuple(partitions))
        return replace(
            state,
            index=self._index,
            cluster_id=state.cluster_id if self._cluster is None else self._cluster.cluster_id,
            create_time_us=state.create_time_us if self._cluster is None else self._cluster.create_time_us,
            topics=state.topics if self._topics is None else self._topics,
            topic_names=state.topic_names if self._topic_names is None else self._topic_names,
            nodes=state.nodes if self._nodes is None else self._nodes,
            producer_epochs=state.producer_epochs if self._producer_epochs is None else self._producer_epochs,
            **self._numbers,
        )

    # --- topics and partitions ---

    def _topic_created(self, record: TopicCreated) -> None:
        topic = Topic(
            name=record.name,
            topic_id=record.topic_id,
            partitions=tuple(partition_from_record(partition) for partition in record.partitions),
            replication_factor=record.replication_factor,
            config=record.config,
            labels=tuple(sorted(record.labels.items())),
            create_time_us=record.create_time_us,
            internal=record.internal,
            grown_us=record.grow_time_us,
        )
        if topic.name in self._own_topics():
            raise self._error(f"creates topic {topic.name!r}, which is there")
        self._own_topics()[topic.name] = topic
        self._own_topic_names()[topic.topic_id] = topic.name
        self._count_partitions(topic.partitions)

    def _topic_changed(self, record: TopicChanged) -> None:
        topic = self._topic(record.topic_id)
        self._own_topics()[topic.name] = replace(
            topic,
            config=record.config,
            labels=tuple(sorted(record.labels.items())),
            replication_factor=record.replication_factor,
        )

    def _partitions_added(self, record: PartitionsAdded) -> None:
        added = [partition_from_record(partition) for partition in record.partitions]
        self._own_partitions(record.topic_id).extend(added)
        topic = self._topic(record.topic_id)
        self._own_topics()[topic.name] = replace(topic, grown_us=record.grow_time_us)
        self._count_partitions(added)

    def _topic_deleted(self, record: TopicDeleted) -> None:
        topic = self._topic(record.topic_id)
        partitions = self._partitions.pop(topic.topic_id, topic.partitions)
        del self._own_topics()[topic.name]
        del self._own_topic_names()[topic.topic_id]
        self._numbers["partition_count"] = self._number("partition_count") - len(partitions)

    def _partition_changed(self, record: PartitionChanged) -> None:
        partitions = self._own_partitions(record.topic_id)
        if not 0 <= record.partition < len(partitions):
            raise self._error(f"is about partition {record.partition} of {record.topic_id!r}, which is not there")
        partitions[record.partition] = partition_from_record(record.state)

    def _count_partitions(self, added: Iterable[PartitionState]) -> None:
        for partition in added:
            self._numbers["partition_count"] = self._number("partition_count") + 1
            self._raise("next_log_id", partition.log_id + 1)

    # --- nodes ---

    def _node_registered(self, record: NodeRegistered) -> None:
        self._own_nodes()[record.node_id] = NodeState(
            node_id=record.node_id,
            store_id=record.store_id,
            broker_epoch=record.broker_epoch or self._index,
            client_endpoint=record.client_endpoint,
            peer_endpoint=record.peer_endpoint,
            rack=record.rack,
            version=record.version,
            draining=record.draining,
            unclean=record.unclean,
        )

    def _node_changed(self, record: NodeChanged) -> None:
        nodes = self._own_nodes()
        node = nodes.get(record.node_id)
        if node is None:
            raise self._error(f"is about node {record.node_id}, which is not there")
        nodes[node.node_id] = replace(
            node,
            fenced=record.fenced if record.HasField("fenced") else node.fenced,
            stopping=record.stopping if record.HasField("stopping") else node.stopping,
            draining=record.draining if record.HasField("draining") else node.draining,
        )

    def _node_removed(self, record: NodeRemoved) -> None:
        if self._own_nodes().pop(record.node_id, None) is None:
            raise self._error(f"is about node {record.node_id}, which is not there")

    # --- producers and the cluster ---

    def _producer_ids_reserved(self, record: ProducerIdsReserved) -> None:
        self._raise("next_producer_id", record.end_id)

    def _producer_epoch_raised(self, record: ProducerEpochRaised) -> None:
        epochs = self._own_producer_epochs()
        epochs.pop(record.producer_id, None)  # so that the order is that of the last raise
        epochs[record.producer_id] = record.epoch
        while len(epochs) > PRODUCER_EPOCHS_MAX:
            self._raise("producer_epoch_floor", epochs.pop(next(iter(epochs))))

    def _cluster_created(self, record: ClusterCreated) -> None:
        self._cluster = record

    def _throttle_changed(self, record: ThrottleChanged) -> None:
        self._numbers["throttle_bytes_per_s"] = record.bytes_per_s

    # --- copies, made at the first touch ---

    def _own_topics(self) -> dict[str, Topic]:
        if self._topics is None:
            self._topics = dict(self._state.topics)
        return self._topics

    def _own_topic_names(self) -> dict[str, str]:
        if self._topic_names is None:
            self._topic_names = dict(self._state.topic_names)
        return self._topic_names

    def _own_nodes(self) -> dict[int, NodeState]:
        if self._nodes is None:
            self._nodes = dict(self._state.nodes)
        return self._nodes

    def _own_producer_epochs(self) -> dict[int, int]:
        if self._producer_epochs is None:
            self._producer_epochs = dict(self._state.producer_epochs)
        return self._producer_epochs

    def _own_partitions(self, topic_id: str) -> list[PartitionState]:
        partitions = self._partitions.get(topic_id)
        if partitions is None:
            partitions = self._partitions[topic_id] = list(self._topic(topic_id).partitions)
        return partitions

    def _topic(self, topic_id: str) -> Topic:
        names = self._state.topic_names if self._topic_names is None else self._topic_names
        topics = self._state.topics if self._topics is None else self._topics
        if topic_id not in names:
            raise self._error(f"is about topic id {topic_id!r}, which is not there")
        return topics[names[topic_id]]

    def _number(self, name: str) -> int:
        number: int = self._numbers[name] if name in self._numbers else getattr(self._state, name)
        return number

    def _raise(self, name: str, value: int) -> None:
        self._numbers[name] = max(self._number(name), value)

    def _error(self, what: str) -> MetadataError:
        return MetadataError(f"a record of metadata entry {self._index} {what}")


_CHANGES: Final[dict[str, Callable[[_Draft, Any], None]]] = {
    kind: getattr(_Draft, f"_{kind}") for kind in MetadataRecord.DESCRIPTOR.fields_by_name
}


# --- partitions as records --------------------------------------------------------------------------------------------


def partition_record(state: PartitionState) -> PartitionRecord:
    """The whole state, as it is in the log."""
    return PartitionRecord(
        log_id=state.log_id,
        replicas=state.replicas,
        isr=state.isr,
        elr=state.elr,
        leader=state.leader,
        leader_epoch=state.leader_epoch,
        partition_epoch=state.partition_epoch,
        adding=state.adding,
        removing=state.removing,
        last_leader=state.last_leader,
    )


def partition_from_record(record: PartitionRecord) -> PartitionState:
    """The opposite."""
    return PartitionState(
        log_id=record.log_id,
        replicas=tuple(record.replicas),
        isr=tuple(record.isr),
        elr=tuple(record.elr),
        leader=record.leader,
        leader_epoch=record.leader_epoch,
        partition_epoch=record.partition_epoch,
        adding=tuple(record.adding),
        removing=tuple(record.removing),
        last_leader=record.last_leader,
    )


# --- snapshots --------------------------------------------------------------------------------------------------------


def to_snapshot(state: ClusterState) -> MetadataSnapshot:
    """The image as the shortest list of records that makes it."""
    records = [
        MetadataRecord(
            cluster_created=ClusterCreated(cluster_id=state.cluster_id, create_time_us=state.create_time_us)
        ),
        MetadataRecord(producer_ids_reserved=ProducerIdsReserved(end_id=state.next_producer_id)),
        MetadataRecord(throttle_changed=ThrottleChanged(bytes_per_s=state.throttle_bytes_per_s)),
    ]
    for producer_id, epoch in state.producer_epochs.items():
        raised = ProducerEpochRaised(producer_id=producer_id, epoch=epoch)
        records.append(MetadataRecord(producer_epoch_raised=raised))
    for node in state.nodes.values():
        records.append(MetadataRecord(node_registered=_as_registered(node)))
        records.append(
            MetadataRecord(node_changed=NodeChanged(node_id=node.node_id, fenced=node.fenced, stopping=node.stopping))
        )
    records += (MetadataRecord(topic_created=_as_created(topic)) for topic in state.topics.values())
    return MetadataSnapshot(
        index=state.index,
        records=records,
        # The ids of deleted topics' logs are in no record any more, and must not come back.
        next_log_id=state.next_log_id,
        producer_epoch_floor=state.producer_epoch_floor,
    )


def from_snapshot(snapshot: MetadataSnapshot) -> ClusterState:
    """The image that `to_snapshot` was given. Raises MetadataError."""
    if snapshot.index == 0:
        return ClusterState()
    state = apply(ClusterState(), snapshot.records, index=snapshot.index)
    return replace(
        state,
        next_log_id=max(state.next_log_id, snapshot.next_log_id),
        producer_epoch_floor=snapshot.producer_epoch_floor,
    )


def _as_registered(node: NodeState) -> NodeRegistered:
    return NodeRegistered(
        node_id=node.node_id,
        store_id=node.store_id,
        broker_epoch=node.broker_epoch,
        client_endpoint=node.client_endpoint,
        peer_endpoint=node.peer_endpoint,
        rack=node.rack,
        version=node.version,
        unclean=node.unclean,
        draining=node.draining,
    )


def _as_created(topic: Topic) -> TopicCreated:
    return TopicCreated(
        name=topic.name,
        topic_id=topic.topic_id,
        partitions=[partition_record(partition) for partition in topic.partitions],
        replication_factor=topic.replication_factor,
        config=topic.config,
        labels=dict(topic.labels),
        create_time_us=topic.create_time_us,
        internal=topic.internal,
        grow_time_us=topic.grown_us,
    )
