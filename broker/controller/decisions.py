"""What may be done to the cluster: a command and the image give the records that carry it out, or an error.

Pure: identifiers and the time come with the command. `decide` changes nothing; applying the records does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from broker import errors
from broker.controller import topic_config
from broker.controller.names import check_name, check_user_name
from broker.controller.state import ClusterState, Topic
from broker.controller.topic_config import TopicConfig, TopicDefaults
from broker.errors import PostbusError, Reason, invalid_field
from broker.stubs.metadata_log_pb2 import (
    ClusterCreated,
    MetadataRecord,
    PartitionRecord,
    PartitionsAdded,
    ProducerIdsReserved,
    TopicChanged,
    TopicCreated,
    TopicDeleted,
)

TOPIC_PARTITIONS_MAX: Final = 1_000
REPLICATION_FACTOR_DEFAULT: Final = 3
LABELS_MAX: Final = 64
LABELS_BYTES_MAX: Final = 4_096  # of a topic, names and values together: every node keeps them in memory


@dataclass(frozen=True, slots=True)
class Rules:
    """What the nodes' configuration allows."""

    defaults: TopicDefaults = field(default_factory=TopicDefaults)
    node_count: int = 1
    partitions_max: int = 10_000  # over all topics


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateCluster:
    """Begins a cluster; nothing if it has begun."""

    cluster_id: str  # random
    now_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTopic:
    """As CreateTopicRequest."""

    name: str
    topic_id: str  # random
    now_us: int
    partition_count: int = 0  # 0: the default
    replication_factor: int = 0  # 0: the default
    config: TopicConfig = field(default_factory=TopicConfig)
    labels: Mapping[str, str] = field(default_factory=dict)
    internal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTopic:
    """As UpdateTopicRequest."""

    name: str
    paths: tuple[str, ...]  # of update_mask
    config: TopicConfig = field(default_factory=TopicConfig)
    labels: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPartitions:
    """As AddPartitionsRequest."""

    name: str
    partition_count: int  # how many there should be


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteTopic:
    """As DeleteTopicRequest."""

    name: str
    topic_id: str = ""  # empty: whichever


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveProducerIds:
    """A block of ids that nobody else gets: those from the image's `next_producer_id` before to that after."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptLogs:
    """Logs that exist, but that this metadata log never handed out: its own records were lost.

    Each becomes a topic of one partition, kept for ever, so that no record goes and no id is used twice.
    """

    topic_ids: Mapping[int, str]  # by log id; random
    now_us: int


Command = AdoptLogs | CreateCluster | CreateTopic | UpdateTopic | AddPartitions | DeleteTopic | ReserveProducerIds


def decide(state: ClusterState, command: Command, *, rules: Rules) -> list[MetadataRecord]:
    """The records that carry out `command`; none if it is so already. Raises PostbusError."""
    match command:
        case AdoptLogs():
            return _adopt_logs(state, command)
        case CreateCluster():
            return _create_cluster(state, command)
        case CreateTopic():
            return _create_topic(state, command, rules)
        case UpdateTopic():
            return _update_topic(state, command, rules)
        case AddPartitions():
            return _add_partitions(state, command, rules)
        case DeleteTopic():
            return _delete_topic(state, command)
        case ReserveProducerIds():
            assert command.count > 0
            reserved = ProducerIdsReserved(end_id=state.next_producer_id + command.count)
            return [MetadataRecord(producer_ids_reserved=reserved)]


def _create_cluster(state: ClusterState, command: CreateCluster) -> list[MetadataRecord]:
    if state.cluster_id:
        return []
    created = ClusterCreated(cluster_id=command.cluster_id, create_time_us=command.now_us)
    return [MetadataRecord(cluster_created=created)]


def _adopt_logs(state: ClusterState, command: AdoptLogs) -> list[MetadataRecord]:
    assert all(log_id >= state.next_log_id for log_id in command.topic_ids)
    for_ever = TopicConfig()
    for_ever.retention_time.seconds = 0
    # The logs remember producers whose ids this metadata log never handed out: begin far above any of them.
    spent = ProducerIdsReserved(end_id=max(state.next_producer_id, command.now_us // 1000))
    return [
        MetadataRecord(producer_ids_reserved=spent),
        *(
            MetadataRecord(
                topic_created=TopicCreated(
                    name=f"recovered-{log_id}",
                    topic_id=topic_id,
                    partitions=_partitions([log_id]),
                    replication_factor=1,
                    config=for_ever.SerializeToString(deterministic=True),
                    create_time_us=command.now_us,
                )
            )
            for log_id, topic_id in sorted(command.topic_ids.items())
        ),
    ]


def _create_topic(state: ClusterState, command: CreateTopic, rules: Rules) -> list[MetadataRecord]:
    (check_name if command.internal else check_user_name)("name", command.name)
    partition_count = command.partition_count or rules.defaults.partition_count
    _check_partition_count(state, 0, partition_count, rules)
    replication_factor = command.replication_factor or min(REPLICATION_FACTOR_DEFAULT, rules.node_count)
    _check_replication_factor(replication_factor, rules)
    topic_config.check(command.config, replication_factor=replication_factor, defaults=rules.defaults)
    _check_labels(command.labels)
    if command.name in state.topics:
        raise PostbusError(
            Reason.ERROR_REASON_EXISTS,
            f"topic {command.name!r} exists already",
            resource=("topic", command.name),
            metadata={"topic_id": state.topics[command.name].topic_id},
        )
    created = TopicCreated(
        name=command.name,
        topic_id=command.topic_id,
        partitions=_partitions(range(state.next_log_id, state.next_log_id + partition_count)),
        replication_factor=replication_factor,
        config=command.config.SerializeToString(deterministic=True),
        labels=command.labels,
        create_time_us=command.now_us,
        internal=command.internal,
    )
    return [MetadataRecord(topic_created=created)]


def _update_topic(state: ClusterState, command: UpdateTopic, rules: Rules) -> list[MetadataRecord]:
    topic = _existing(state, command.name)
    fields = _config_fields(command.paths)
    if command.etag and command.etag != topic.etag:
        raise PostbusError(
            Reason.ERROR_REASON_PRECONDITION_NOT_MET,
            f"topic {command.name!r} has changed: its etag is {topic.etag}, not {command.etag}; read it again",
            resource=("topic", command.name),
            metadata={"etag": topic.etag},
        )
    config = topic_config.merge(TopicConfig.FromString(topic.config), command.config, fields=fields)
    topic_config.check(config, replication_factor=topic.replication_factor, defaults=rules.defaults)
    labels = dict(topic.labels)
    if "labels" in command.paths:
        _check_labels(command.labels)
        labels = dict(command.labels)
    changed = TopicChanged(
        topic_id=topic.topic_id,
        config=config.SerializeToString(deterministic=True),
        labels=labels,
        replication_factor=topic.replication_factor,
    )
    if changed.config == topic.config and tuple(sorted(labels.items())) == topic.labels:
        return []
    return [MetadataRecord(topic_changed=changed)]


def _add_partitions(state: ClusterState, command: AddPartitions, rules: Rules) -> list[MetadataRecord]:
    topic = _existing(state, command.name)
    added = command.partition_count - topic.partition_count
    if added < 0:
        raise invalid_field(
            "partition_count",
            f"topic {command.name!r} has {topic.partition_count} partitions, and they can't be fewer",
        )
    if added == 0:
        return []
    _check_partition_count(state, topic.partition_count, command.partition_count, rules)
    log_ids = range(state.next_log_id, state.next_log_id + added)
    return [MetadataRecord(partitions_added=PartitionsAdded(topic_id=topic.topic_id, partitions=_partitions(log_ids)))]


def _delete_topic(state: ClusterState, command: DeleteTopic) -> list[MetadataRecord]:
    topic = _existing(state, command.name)
    if command.topic_id and command.topic_id != topic.topic_id:
        raise PostbusError(
            Reason.ERROR_REASON_TOPIC_NOT_FOUND,
            f"topic {command.name!r} with id {command.topic_id} does not exist; there is one with id {topic.topic_id}",
            resource=("topic", command.name),
            metadata={"topic_id": topic.topic_id},
        )
    return [MetadataRecord(topic_deleted=TopicDeleted(topic_id=topic.topic_id))]


def _existing(state: ClusterState, name: str) -> Topic:
    """A user's topic: what the broker keeps for itself is not changed by requests."""
    check_user_name("name", name)
    topic = state.topics.get(name)
    if topic is None:
        raise errors.topic_not_found(name)
    return topic


def _check_partition_count(state: ClusterState, before: int, after: int, rules: Rules) -> None:
    if not 1 <= after <= TOPIC_PARTITIONS_MAX:
        raise invalid_field("partition_count", f"1 to {TOPIC_PARTITIONS_MAX}, not {after}")
    total = state.partition_count + after - before
    if total > rules.partitions_max:
        raise errors.too_large(
            "partition_count",
            f"there would be {total} partitions over all topics; the node's partitions-max allows "
            f"{rules.partitions_max}",
            limit=rules.partitions_max,
        )


def _check_replication_factor(replication_factor: int, rules: Rules) -> None:
    if replication_factor < 1:
        raise invalid_field("replication_factor", f"1 or more, or 0 for the default, not {replication_factor}")
    if replication_factor > rules.node_count:
        nodes = "is one" if rules.node_count == 1 else f"are {rules.node_count}"
        raise invalid_field(
            "replication_factor",
            f"{replication_factor} copies need as many nodes, and there {nodes}; leave it out for as many as can be",
        )


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > LABELS_MAX:
        raise errors.too_large("labels", f"at most {LABELS_MAX}, not {len(labels)}", limit=LABELS_MAX)
    if "" in labels:
        raise invalid_field("labels", "a label needs a name")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in labels.items())
    if size > LABELS_BYTES_MAX:
        raise errors.too_large(
            "labels", f"at most {LABELS_BYTES_MAX} bytes of names and values, not {size}", limit=LABELS_BYTES_MAX
        )


def _config_fields(paths: tuple[str, ...]) -> set[str]:
    """Which fields of the configuration an update mask names. Refuses what can't be updated."""
    if not paths:
        raise invalid_field("update_mask", 'name what to change, such as "labels" or "config.retention_time"')
    fields: set[str] = set()
    for path in paths:
        if path == "config":
            fields |= topic_config.FIELDS
        elif path.startswith("config.") and path.removeprefix("config.") in topic_config.FIELDS:
            fields.add(path.removeprefix("config."))
        elif path != "labels":
            raise invalid_field("update_mask", f'{path!r} can not be changed; only "labels" and "config.…" can')
    return fields


def _partitions(log_ids: Iterable[int]) -> list[PartitionRecord]:
    return [PartitionRecord(log_id=log_id, replicas=[1], isr=[1], leader=1) for log_id in log_ids]
