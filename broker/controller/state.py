"""What the cluster is: an immutable image, and `apply`, the only thing that makes a new one.

The image follows from the metadata log alone: the same records give the same image on every node and after every
restart. Nothing here checks what may be done (that is `decisions`), reads a clock or does I/O.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from broker.stubs.metadata_log_pb2 import (
    ClusterCreated,
    MetadataRecord,
    MetadataSnapshot,
    PartitionsAdded,
    ProducerIdsReserved,
    TopicChanged,
    TopicCreated,
    TopicDeleted,
)


class MetadataError(Exception):
    """A record that this version can't have written: the data is from a newer one, or damaged."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic, as it is at one index of the metadata log."""

    name: str
    topic_id: str  # never used twice, for another topic of the same name either
    log_ids: tuple[int, ...]  # one a partition, by its number; never used twice
    replication_factor: int
    config: bytes  # a serialised postbus.v1.TopicConfig: what was set
    labels: tuple[tuple[str, str], ...]  # sorted by name
    create_time_us: int
    internal: bool = False

    @property
    def partition_count(self) -> int:
        return len(self.log_ids)

    @property
    def etag(self) -> str:
        """Equal as long as nothing about the topic differs; survives restarts, snapshots and fail-over."""
        text = repr((self.topic_id, self.log_ids, self.replication_factor, self.config, self.labels))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The image at one index of the metadata log."""

    index: int = 0  # records applied so far; the public metadata epoch
    cluster_id: str = ""
    create_time_us: int = 0
    topics: Mapping[str, Topic] = field(default_factory=dict)  # by name
    topic_names: Mapping[str, str] = field(default_factory=dict)  # by topic id
    partition_count: int = 0  # over all topics
    next_log_id: int = 1  # 0 is no log
    next_producer_id: int = 1  # 0 is no producer

    def topic_by_id(self, topic_id: str) -> Topic | None:
        """The topic with this id, if it still exists."""
        name = self.topic_names.get(topic_id)
        return None if name is None else self.topics[name]


def apply(state: ClusterState, record: MetadataRecord) -> ClusterState:
    """The image after one more record. Raises MetadataError."""
    match record.WhichOneof("record"):
        case "cluster_created":
            after = _cluster_created(state, record.cluster_created)
        case "topic_created":
            after = _topic_created(state, record.topic_created)
        case "topic_changed":
            after = _topic_changed(state, record.topic_changed)
        case "partitions_added":
            after = _partitions_added(state, record.partitions_added)
        case "topic_deleted":
            after = _topic_deleted(state, record.topic_deleted)
        case "producer_ids_reserved":
            after = _producer_ids_reserved(state, record.producer_ids_reserved)
        case _:
            raise MetadataError(f"metadata record {state.index + 1} is of a kind that this version does not know")
    return replace(after, index=state.index + 1)


def _cluster_created(state: ClusterState, record: ClusterCreated) -> ClusterState:
    return replace(state, cluster_id=record.cluster_id, create_time_us=record.create_time_us)


def _topic_created(state: ClusterState, record: TopicCreated) -> ClusterState:
    topic = Topic(
        name=record.name,
        topic_id=record.topic_id,
        log_ids=tuple(record.log_ids),
        replication_factor=record.replication_factor,
        config=record.config,
        labels=tuple(sorted(record.labels.items())),
        create_time_us=record.create_time_us,
        internal=record.internal,
    )
    return replace(
        state,
        topics={**state.topics, topic.name: topic},
        topic_names={**state.topic_names, topic.topic_id: topic.name},
        partition_count=state.partition_count + topic.partition_count,
        next_log_id=max(state.next_log_id, *(log_id + 1 for log_id in topic.log_ids)),
    )


def _topic_changed(state: ClusterState, record: TopicChanged) -> ClusterState:
    topic = _existing(state, record.topic_id)
    return _with(state, replace(topic, config=record.config, labels=tuple(sorted(record.labels.items()))))


def _partitions_added(state: ClusterState, record: PartitionsAdded) -> ClusterState:
    topic = _existing(state, record.topic_id)
    grown = _with(state, replace(topic, log_ids=topic.log_ids + tuple(record.log_ids)))
    return replace(
        grown,
        partition_count=state.partition_count + len(record.log_ids),
        next_log_id=max(state.next_log_id, *(log_id + 1 for log_id in record.log_ids)),
    )


def _topic_deleted(state: ClusterState, record: TopicDeleted) -> ClusterState:
    topic = _existing(state, record.topic_id)
    return replace(
        state,
        topics={name: other for name, other in state.topics.items() if name != topic.name},
        topic_names={topic_id: name for topic_id, name in state.topic_names.items() if topic_id != topic.topic_id},
        partition_count=state.partition_count - topic.partition_count,
    )


def _producer_ids_reserved(state: ClusterState, record: ProducerIdsReserved) -> ClusterState:
    return replace(state, next_producer_id=max(state.next_producer_id, record.end_id))


def _existing(state: ClusterState, topic_id: str) -> Topic:
    topic = state.topic_by_id(topic_id)
    if topic is None:
        raise MetadataError(f"metadata record {state.index + 1} is about topic id {topic_id!r}, which is not there")
    return topic


def _with(state: ClusterState, topic: Topic) -> ClusterState:
    return replace(state, topics={**state.topics, topic.name: topic})


# --- snapshots --------------------------------------------------------------------------------------------------------


def to_snapshot(state: ClusterState) -> MetadataSnapshot:
    """The image as the shortest list of records that makes it."""
    records = [
        MetadataRecord(
            cluster_created=ClusterCreated(cluster_id=state.cluster_id, create_time_us=state.create_time_us)
        ),
        MetadataRecord(producer_ids_reserved=ProducerIdsReserved(end_id=state.next_producer_id)),
    ]
    records += (MetadataRecord(topic_created=_as_created(topic)) for topic in state.topics.values())
    # The ids of deleted topics' logs are in no record any more, and must not come back.
    return MetadataSnapshot(index=state.index, records=records, next_log_id=state.next_log_id)


def from_snapshot(snapshot: MetadataSnapshot) -> ClusterState:
    """The image that `to_snapshot` was given. Raises MetadataError."""
    state = ClusterState()
    for record in snapshot.records:
        state = apply(state, record)
    return replace(state, index=snapshot.index, next_log_id=max(state.next_log_id, snapshot.next_log_id))


def _as_created(topic: Topic) -> TopicCreated:
    return TopicCreated(
        name=topic.name,
        topic_id=topic.topic_id,
        log_ids=topic.log_ids,
        replication_factor=topic.replication_factor,
        config=topic.config,
        labels=dict(topic.labels),
        create_time_us=topic.create_time_us,
        internal=topic.internal,
    )


# --- what changed -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """What a listener has to do to follow from one image to the next."""

    created: tuple[Topic, ...]
    changed: tuple[tuple[Topic, Topic], ...]  # (before, after): settings, labels or more partitions
    deleted: tuple[Topic, ...]


def difference(old: ClusterState, new: ClusterState) -> Difference:
    """By topic id: a topic deleted and created again under its name is in both `deleted` and `created`."""
    return Difference(
        created=tuple(_only_in(new, old)),
        changed=tuple(
            (before, topic)
            for topic in new.topics.values()
            if (before := old.topic_by_id(topic.topic_id)) is not None and before is not topic and before != topic
        ),
        deleted=tuple(_only_in(old, new)),
    )


def _only_in(one: ClusterState, other: ClusterState) -> Iterable[Topic]:
    return (topic for topic in one.topics.values() if topic.topic_id not in other.topic_names)
