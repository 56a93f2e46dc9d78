"""What may be done to the cluster: a command and the image give the records that carry it out, or an error.

Pure: identifiers, times and seeds come with the command. `decide` changes nothing; applying the records does. Topics
and producers here; nodes and partitions in modules of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from broker import errors
from broker.controller import elections, node_decisions, partition_decisions, placement, topic_config
from broker.controller.changes import Changes, Decision, terms_of
from broker.controller.commands import (
    AddPartitions,
    AdoptLogs,
    Command,
    CreateCluster,
    CreateTopic,
    DeleteTopic,
    NodeCommand,
    Outcome,
    ProducerCommand,
    RaiseProducerEpoch,
    ReserveProducerIds,
    Rules,
    TopicCommand,
    UpdateTopic,
)
from broker.controller.image import partition_record
from broker.controller.names import check_name, check_user_name
from broker.controller.state import ClusterState, NodeState, PartitionState, Topic
from broker.controller.topic_config import TopicConfig
from broker.errors import PostbusError, Reason, invalid_field
from broker.stubs.metadata_log_pb2 import (
    ClusterCreated,
    MetadataRecord,
    PartitionRecord,
    PartitionsAdded,
    ProducerEpochRaised,
    ProducerIdsReserved,
    TopicChanged,
    TopicCreated,
    TopicDeleted,
)

__all__ = [
    "AddPartitions",
    "AdoptLogs",
    "Command",
    "CreateCluster",
    "CreateTopic",
    "Decision",
    "DeleteTopic",
    "Outcome",
    "RaiseProducerEpoch",
    "ReserveProducerIds",
    "Rules",
    "UpdateTopic",
    "decide",
]

TOPIC_PARTITIONS_MAX: Final = 1_000
LABELS_MAX: Final = 64
LABELS_BYTES_MAX: Final = 4_096  # of a topic, names and values together: every node keeps them in memory
PRODUCER_EPOCH_MAX: Final = 2**31 - 1


def decide(state: ClusterState, command: Command, *, rules: Rules) -> Decision:
    """What carries out `command`, as one entry; no records if it is so already. Raises PostbusError."""
    if isinstance(command, TopicCommand):
        return _decide_topics(state, command, rules)
    if isinstance(command, ProducerCommand):
        return Decision(_decide_producers(state, command))
    if isinstance(command, NodeCommand):
        return node_decisions.decide(state, command)
    return partition_decisions.decide(state, command)


def _decide_topics(state: ClusterState, command: TopicCommand, rules: Rules) -> Decision:
    match command:
        case AdoptLogs():
            return Decision(_adopt_logs(state, command))
        case CreateCluster():
            return Decision(_create_cluster(state, command))
        case CreateTopic():
            return Decision(_create_topic(state, command, rules))
        case UpdateTopic():
            return _update_topic(state, command, rules)
        case AddPartitions():
            return Decision(_add_partitions(state, command, rules))
        case DeleteTopic():
            return Decision(_delete_topic(state, command))


def _decide_producers(state: ClusterState, command: ProducerCommand) -> list[MetadataRecord]:
    match command:
        case ReserveProducerIds():
            assert command.count > 0
            reserved = ProducerIdsReserved(end_id=state.next_producer_id + command.count)
            return [MetadataRecord(producer_ids_reserved=reserved)]
        case RaiseProducerEpoch():
            raised = ProducerEpochRaised(producer_id=command.producer_id, epoch=_next_epoch(state, command))
            return [MetadataRecord(producer_epoch_raised=raised)]


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
    node = state.nodes.get(command.node_id)
    return [
        MetadataRecord(producer_ids_reserved=spent),
        *(
            MetadataRecord(
                topic_created=TopicCreated(
                    name=f"recovered-{log_id}",
                    topic_id=topic_id,
                    partitions=[_found(log_id, command, there=node is not None and not node.fenced)],
                    replication_factor=1,
                    config=for_ever.SerializeToString(deterministic=True),
                    create_time_us=command.now_us,
                )
            )
            for log_id, topic_id in sorted(command.topic_ids.items())
        ),
    ]


def _found(log_id: int, command: AdoptLogs, *, there: bool) -> PartitionRecord:
    """A log that one node has; it leads as soon as it is there."""
    node_id = command.node_id
    found = PartitionRecord(log_id=log_id, replicas=[node_id], leader_epoch=command.leader_epoch)
    if there:
        found.isr.append(node_id)
        found.leader = found.last_leader = node_id
    else:
        found.elr.append(node_id)
    return found


def _create_topic(state: ClusterState, command: CreateTopic, rules: Rules) -> list[MetadataRecord]:
    (check_name if command.internal else check_user_name)("name", command.name)
    partition_count = command.partition_count or rules.defaults.partition_count
    _check_partition_count(state, 0, partition_count, rules)
    nodes = placement.candidates(state.nodes)
    replication_factor = command.replication_factor or _replication_factor_default(state, nodes, rules)
    _check_replication_factor(replication_factor, nodes, rules)
    topic_config.check(command.config, replication_factor=replication_factor, defaults=rules.defaults)
    _check_labels(command.labels)
    existing = state.topics.get(command.name)
    if existing is not None:
        if existing.topic_id == command.topic_id:
            return []
        raise PostbusError(
            Reason.ERROR_REASON_EXISTS,
            f"topic {command.name!r} exists already",
            resource=("topic", command.name),
            metadata={"topic_id": existing.topic_id},
        )
    placed = _placed(
        state, nodes, count=partition_count, replication_factor=replication_factor, seed=command.seed, topic=()
    )
    created = TopicCreated(
        name=command.name,
        topic_id=command.topic_id,
        partitions=placed,
        replication_factor=replication_factor,
        config=command.config.SerializeToString(deterministic=True),
        labels=command.labels,
        create_time_us=command.now_us,
        internal=command.internal,
    )
    return [MetadataRecord(topic_created=created)]


def _update_topic(state: ClusterState, command: UpdateTopic, rules: Rules) -> Decision:
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
        return Decision()
    changes = Changes(state)
    terms = terms_of(changed.config, changes.nodes, replication_factor=topic.replication_factor)
    for number, partition in enumerate(topic.partitions):
        # Where fewer need to be in sync now, nobody else may stay eligible.
        changes.put(topic, number, elections.with_isr(partition, partition.isr, terms))
    return changes.decision(MetadataRecord(topic_changed=changed))


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
    nodes = placement.candidates(state.nodes)
    _check_replication_factor(topic.replication_factor, nodes, rules)
    placed = _placed(
        state,
        nodes,
        count=added,
        replication_factor=topic.replication_factor,
        seed=command.seed,
        topic=topic.partitions,
    )
    grown = PartitionsAdded(topic_id=topic.topic_id, partitions=placed, grow_time_us=command.now_us)
    return [MetadataRecord(partitions_added=grown)]


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


def _replication_factor_default(state: ClusterState, nodes: Sequence[NodeState], rules: Rules) -> int:
    there_will_be = len(nodes) if len(state.nodes) >= rules.expected_nodes else rules.expected_nodes
    return max(1, min(rules.defaults.replication_factor, there_will_be))


def _check_replication_factor(replication_factor: int, nodes: Sequence[NodeState], rules: Rules) -> None:
    """That there are as many nodes to put copies on, one of them at work."""
    if replication_factor < 1:
        raise invalid_field("replication_factor", f"1 or more, or 0 for the default, not {replication_factor}")
    if replication_factor > max(len(nodes), rules.expected_nodes):
        there = "is one" if len(nodes) == 1 else f"are {len(nodes)}"
        raise invalid_field(
            "replication_factor",
            f"{replication_factor} copies need as many nodes, and there {there}; leave it out for as many as can be",
        )
    if len(nodes) < replication_factor or not nodes[0].useful:
        useful = sum(node.useful for node in nodes)
        raise PostbusError(
            Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS,
            f"{replication_factor} copies need as many nodes; {len(nodes)} have joined so far and {useful} are at work",
            retry_after_ms=500,
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


def _placed(
    state: ClusterState,
    nodes: Sequence[NodeState],
    *,
    count: int,
    replication_factor: int,
    seed: int,
    topic: Iterable[PartitionState],
) -> list[PartitionRecord]:
    """New partitions: led at once, and in sync wherever a node is there to be."""
    there = {node.node_id for node in nodes if node.useful}
    replica_lists = placement.place(
        nodes,
        count=count,
        replication_factor=replication_factor,
        seed=seed,
        topic=topic,
        cluster=placement.load_of(state),
    )
    return [
        partition_record(
            PartitionState(
                log_id=state.next_log_id + number,
                replicas=replicas,
                isr=tuple(node_id for node_id in replicas if node_id in there),
                leader=replicas[0],
                last_leader=replicas[0],
            )
        )
        for number, replicas in enumerate(replica_lists)
    ]


def _next_epoch(state: ClusterState, command: RaiseProducerEpoch) -> int:
    """Above every epoch of this producer that was given out: the one remembered, or else the floor."""
    if not 0 < command.producer_id < state.next_producer_id:
        raise invalid_field("id", f"{command.producer_id} was never handed out; 0 asks for a new id")
    remembered = state.producer_epochs.get(command.producer_id)
    latest = state.producer_epoch_floor if remembered is None else remembered
    if command.epoch > latest:
        raise invalid_field("epoch", f"{command.epoch} was never given out; ask for a new id")
    if remembered is not None and command.epoch < remembered:
        raise PostbusError(
            Reason.ERROR_REASON_PRODUCER_FENCED,
            f"producer {command.producer_id} has epoch {remembered} by now: another instance took over, stop",
            metadata={"producer_id": command.producer_id, "producer_epoch": remembered},
        )
    if latest >= PRODUCER_EPOCH_MAX:
        raise invalid_field("epoch", f"{latest} is the last one; ask for a new id")
    return latest + 1
