"""What the cluster is: an immutable image of its nodes, topics and partitions, and how two images differ.

Values only: `image.apply` alone makes a new one, and `decisions` say what may be done to it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

NOBODY = 0  # as a leader


class MetadataError(Exception):
    """A record that this version can't have written: the data is from a newer one, or damaged."""


@dataclass(frozen=True, slots=True)
class PartitionState:
    """Who has a partition, and who leads it."""

    log_id: int  # never used twice
    replicas: tuple[int, ...]  # preferred leader first; under reassignment those that stay or come, then those that go
    isr: tuple[int, ...]
    # Eligible leader replicas: left the ISR when that made it smaller than min_insync_replicas, so that nothing was
    # acknowledged without them. Empty as long as enough are in sync.
    elr: tuple[int, ...] = ()
    leader: int = NOBODY
    leader_epoch: int = 0  # raised whenever `leader` changes
    partition_epoch: int = 0  # raised with every change
    adding: tuple[int, ...] = ()  # of a reassignment under way
    removing: tuple[int, ...] = ()
    last_leader: int = NOBODY  # who leads, or led last

    @property
    def target(self) -> tuple[int, ...]:
        """The replicas as they will be when nothing is under way any more."""
        return tuple(node_id for node_id in self.replicas if node_id not in self.removing)

    @property
    def reassigning(self) -> bool:
        """Whether replicas come or go."""
        return bool(self.adding or self.removing)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node, as the controller knows it."""

    node_id: int
    store_id: str  # of its disk
    broker_epoch: int  # index of its registration; raised by each start
    client_endpoint: str = ""  # host:port
    peer_endpoint: str = ""  # host:port
    rack: str = ""
    version: str = ""
    fenced: bool = True  # neither leads nor is in sync
    stopping: bool = False  # is about to go
    draining: bool = False  # taken out of use by an operator
    unclean: bool = False  # had lost records when it registered

    @property
    def useful(self) -> bool:
        """Whether leaders and new replicas may be put there."""
        return not (self.fenced or self.stopping or self.draining)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic, as it is at one index of the metadata log."""

    name: str
    topic_id: str  # never used twice, for another topic of the same name either
    partitions: tuple[PartitionState, ...]  # by number
    replication_factor: int
    config: bytes  # a serialised postbus.v1.TopicConfig: what was set
    labels: tuple[tuple[str, str], ...]  # sorted by name
    create_time_us: int
    internal: bool = False
    grown_us: int = 0  # when it got partitions last; 0: never since it was created

    @property
    def log_ids(self) -> tuple[int, ...]:
        """One a partition, by its number."""
        return tuple(partition.log_id for partition in self.partitions)

    @property
    def partition_count(self) -> int:
        return len(self.partitions)

    @property
    def etag(self) -> str:
        """Equal as long as nothing differs that users set; leaders may come and go."""
        text = repr((self.topic_id, self.log_ids, self.replication_factor, self.config, self.labels))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The image at one index of the metadata log."""

    index: int = 0  # of the last entry in it; the public metadata epoch
    cluster_id: str = ""
    create_time_us: int = 0
    topics: Mapping[str, Topic] = field(default_factory=dict)  # by name
    topic_names: Mapping[str, str] = field(default_factory=dict)  # by topic id
    nodes: Mapping[int, NodeState] = field(default_factory=dict)  # by id
    partition_count: int = 0  # over all topics
    next_log_id: int = 1  # 0 is no log
    next_producer_id: int = 1  # 0 is no producer
    # Epochs given out last, the latest at the end; those that were forgotten are at most the floor.
    producer_epochs: Mapping[int, int] = field(default_factory=dict)
    producer_epoch_floor: int = 0
    throttle_bytes_per_s: int = 0  # for replicas that catch up; 0: the node's own setting

    def topic_by_id(self, topic_id: str) -> Topic | None:
        """The topic with this id, if it still exists."""
        name = self.topic_names.get(topic_id)
        return None if name is None else self.topics[name]

    def partitions(self) -> Iterator[tuple[Topic, int, PartitionState]]:
        """All of them: topic, number, state."""
        for topic in self.topics.values():
            for number, partition in enumerate(topic.partitions):
                yield topic, number, partition


# --- what changed -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PartitionChange:
    """One partition of a topic that is in both images."""

    topic: Topic  # as it is now
    number: int
    before: PartitionState | None  # None: the topic grew
    after: PartitionState


@dataclass(frozen=True, slots=True)
class Difference:
    """What a listener has to do to follow from one image to the next."""

    created: tuple[Topic, ...]  # all of their partitions are new
    changed: tuple[tuple[Topic, Topic], ...]  # (before, after): settings, labels, or how many partitions or replicas
    deleted: tuple[Topic, ...]
    partitions: tuple[PartitionChange, ...]  # of topics in both images
    nodes: tuple[tuple[NodeState | None, NodeState | None], ...]  # (before, after)


def difference(old: ClusterState, new: ClusterState) -> Difference:
    """By topic id: a topic deleted and created again under its name is in both `deleted` and `created`."""
    changed: list[tuple[Topic, Topic]] = []
    partitions: list[PartitionChange] = []
    if new.topics is not old.topics:
        for after in new.topics.values():
            before = old.topic_by_id(after.topic_id)
            if before is None or before is after:
                continue
            if _settings(before) != _settings(after):
                changed.append((before, after))
            partitions += _partition_changes(before, after)
    return Difference(
        created=tuple(_only_in(new, old)),
        changed=tuple(changed),
        deleted=tuple(_only_in(old, new)),
        partitions=tuple(partitions),
        nodes=tuple(_node_changes(old, new)),
    )


def _settings(topic: Topic) -> tuple[object, ...]:
    return (topic.partition_count, topic.replication_factor, topic.config, topic.labels)


def _partition_changes(before: Topic, after: Topic) -> Iterator[PartitionChange]:
    if before.partitions is after.partitions:
        return
    for number, state in enumerate(after.partitions):
        earlier = before.partitions[number] if number < before.partition_count else None
        if earlier is not state and earlier != state:
            yield PartitionChange(after, number, earlier, state)


def _node_changes(old: ClusterState, new: ClusterState) -> Iterator[tuple[NodeState | None, NodeState | None]]:
    if old.nodes is new.nodes:
        return
    for node_id, after in new.nodes.items():
        before = old.nodes.get(node_id)
        if before != after:
            yield before, after
    for node_id, before in old.nodes.items():
        if node_id not in new.nodes:
            yield before, None


def _only_in(one: ClusterState, other: ClusterState) -> Iterable[Topic]:
    if one.topics is other.topics:
        return ()
    return (topic for topic in one.topics.values() if topic.topic_id not in other.topic_names)
