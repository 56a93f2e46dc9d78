"""Who is in sync, who leads, and where replicas are: what leaders and operators may change.

Pure. Each command is over several partitions, each with its own outcome: what is refused for one holds up no other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from broker import errors
from broker.controller import elections
from broker.controller.changes import Changes, Decision, terms_of
from broker.controller.commands import (
    AlterPartition,
    AlterPartitions,
    CancelReassignments,
    ElectLeaders,
    HandOver,
    Member,
    Outcome,
    PartitionCommand,
    PartitionId,
    PartitionName,
    Reassignment,
    ReassignPartitions,
    ReportDamage,
    RestorePreferred,
    SetThrottle,
)
from broker.controller.node_decisions import nobody_else, stale_life
from broker.controller.state import NOBODY, ClusterState, NodeState, PartitionState, Topic
from broker.errors import PostbusError, Reason, invalid_field
from broker.stubs.metadata_log_pb2 import MetadataRecord, ThrottleChanged


def decide(state: ClusterState, command: PartitionCommand) -> Decision:
    """What carries out `command`. Raises PostbusError; what is wrong with one partition is in its outcome."""
    changes = Changes(state)
    match command:
        case AlterPartitions():
            return _alter(changes, command)
        case HandOver():
            return _hand_over(changes, command)
        case ReportDamage():
            return _report_damage(changes, command)
        case ElectLeaders():
            return _elect(changes, command)
        case ReassignPartitions():
            return _reassign(changes, command)
        case CancelReassignments():
            return _cancel(changes, command)
        case RestorePreferred():
            return _restore_preferred(changes, command)
        case SetThrottle():
            return changes.decision(*_throttle(state, command.bytes_per_s))


# --- what leaders ask for ---------------------------------------------------------------------------------------------


def _alter(changes: Changes, command: AlterPartitions) -> Decision:
    node = changes.nodes.get(command.node_id)
    if node is None or node.broker_epoch != command.broker_epoch:
        raise stale_life(command.node_id, command.broker_epoch, node)
    outcomes = []
    for change in command.changes:
        topic = changes.state.topic_by_id(change.topic_id)
        error = None
        try:
            if topic is None:
                raise errors.topic_not_found(change.topic_id)
            before = _partition(changes, topic, change.partition)
            _check_leader(before, command, change)
            isr = _checked_isr(changes, before, change)
            after = elections.with_isr(before, isr, changes.terms(topic))
            if after is before:
                # The leader settles what became of an earlier request: it must be refused from now on.
                after = replace(before, partition_epoch=before.partition_epoch + 1)
            changes.put(topic, change.partition, after)
        except PostbusError as refusal:
            error = refusal
        outcomes.append(Outcome("" if topic is None else topic.name, change.topic_id, change.partition, error))
    return changes.decision(outcomes=tuple(outcomes))


def _check_leader(before: PartitionState, command: AlterPartitions, change: AlterPartition) -> None:
    if before.leader != command.node_id or before.leader_epoch != change.leader_epoch:
        raise PostbusError(
            Reason.ERROR_REASON_NOT_LEADER,
            f"node {command.node_id} does not lead it in epoch {change.leader_epoch}: node {before.leader} does, in"
            f" epoch {before.leader_epoch}",
            metadata={"leader_node_id": before.leader, "leader_epoch": before.leader_epoch},
        )
    if before.partition_epoch != change.partition_epoch:
        raise PostbusError(
            Reason.ERROR_REASON_PRECONDITION_NOT_MET,
            f"its partition epoch is {before.partition_epoch}, not {change.partition_epoch}",
            metadata={"partition_epoch": before.partition_epoch},
        )


def _checked_isr(changes: Changes, before: PartitionState, change: AlterPartition) -> list[int]:
    isr = [member.node_id for member in change.isr]
    if before.leader not in isr or len(set(isr)) != len(isr) or not set(isr) <= set(before.replicas):
        raise invalid_field("isr", f"{isr} are not the leader {before.leader} and others of {list(before.replicas)}")
    for member in change.isr:
        why = _unfit(changes.nodes.get(member.node_id), member, joins=member.node_id not in before.isr)
        if why:
            raise PostbusError(
                Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS, f"node {member.node_id} can't be in sync: {why}"
            )
    return isr


def _unfit(node: NodeState | None, member: Member, *, joins: bool) -> str:
    """Why a node can't be in sync. The partition is as its leader knows it: nothing of the request was carried out."""
    # A delayed request must not bring back a replica that has since lost its disk (KIP-903).
    if node is None or node.broker_epoch != member.broker_epoch:
        return f"it is not in its life {member.broker_epoch} any more"
    if node.fenced:
        return "it is fenced"
    return "it is stopping" if joins and node.stopping else ""


def _hand_over(changes: Changes, command: HandOver) -> Decision:
    node_id = command.node_id
    if command.partitions:
        wanted = _there(changes, command.partitions)
    else:
        wanted = [(topic, number) for topic, number, partition in changes.partitions() if partition.leader == node_id]
    outcomes = []
    for topic, number in wanted:
        before = changes.partition(topic, number)
        error = None
        if before.leader == node_id:
            after = elections.with_leader(before, changes.terms(topic), without=(node_id,))
            error = nobody_else(topic.name, number) if after is before else None
            changes.put(topic, number, after)
        outcomes.append(Outcome(topic.name, topic.topic_id, number, error))
    return changes.decision(outcomes=tuple(outcomes))


def _report_damage(changes: Changes, command: ReportDamage) -> Decision:
    node_id = command.node_id
    node = changes.nodes.get(node_id)
    if node is None or node.broker_epoch != command.broker_epoch:
        raise stale_life(node_id, command.broker_epoch, node)
    outcomes = []
    for topic, number in _there(changes, command.partitions):
        before, terms = changes.partition(topic, number), changes.terms(topic)
        others = [other for other in before.isr if other != node_id]
        error = None
        if node_id not in before.replicas:
            pass
        elif (
            others
            or node_id not in (*before.isr, *before.elr)
            or any(terms.unfenced(other) for other in before.elr if other != node_id)
        ):
            after = elections.with_isr(before, others, terms, distrusted=(node_id,))
            if after is before:
                # What its leader is about to ask for may rest on the copy that goes: it has to look again.
                after = replace(before, partition_epoch=before.partition_epoch + 1)
            changes.put(topic, number, after)
        else:
            error = nobody_else(topic.name, number)
        outcomes.append(Outcome(topic.name, topic.topic_id, number, error))
    return changes.decision(outcomes=tuple(outcomes))


# --- elections --------------------------------------------------------------------------------------------------------


def _elect(changes: Changes, command: ElectLeaders) -> Decision:
    if command.unclean and not command.partitions:
        raise invalid_field("partitions", "an unclean election loses records: name the partitions")

    def elect(topic: Topic, number: int) -> None:
        before, terms = changes.partition(topic, number), changes.terms(topic)
        if before.leader == NOBODY:
            after = (elections.with_any_leader if command.unclean else _with_some_leader)(before, terms)
            if after.leader == NOBODY:
                raise PostbusError(
                    Reason.ERROR_REASON_NO_LEADER,
                    f"no replica of {topic.name}/{number} that has all its records is there"
                    + ("; nor is any other" if command.unclean else ""),
                    retry_after_ms=1000,
                )
        else:
            after = elections.with_preferred(before, terms)
            preferred = before.replicas[0]
            if after.leader != preferred:
                raise PostbusError(
                    Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS,
                    f"node {preferred}, which should lead {topic.name}/{number}, is not in sync, or about to go",
                    retry_after_ms=1000,
                )
        changes.put(topic, number, after)

    return changes.decision(outcomes=_each(changes, command.partitions, elect))


def _with_some_leader(before: PartitionState, terms: elections.Terms) -> PartitionState:
    return elections.with_isr(before, before.isr, terms)


def _restore_preferred(changes: Changes, command: RestorePreferred) -> Decision:
    """The broker's own topics first: groups wait for them."""
    left = command.limit
    for topic, number, before in sorted(changes.partitions(), key=lambda each: not each[0].internal):
        if left == 0:
            break
        preferred = before.replicas[0]
        if before.leader in (NOBODY, preferred) or preferred not in command.node_ids:
            continue
        after = elections.with_preferred(before, changes.terms(topic))
        if after is not before:
            changes.put(topic, number, after)
            left -= 1
    return changes.decision()


# --- reassignment -----------------------------------------------------------------------------------------------------


def _reassign(changes: Changes, command: ReassignPartitions) -> Decision:
    targets = {(each.topic, each.partition): each.replicas for each in command.reassignments}
    if len(targets) != len(command.reassignments):
        raise invalid_field("reassignments", "each partition may be named once")

    def reassign(topic: Topic, number: int) -> None:
        target = targets[topic.name, number]
        before = changes.partition(topic, number)
        _check_target(changes, before, target)
        sizes = {len(targets.get((topic.name, other), state.target)) for other, state in enumerate(topic.partitions)}
        copies = len(target) if len(sizes) == 1 else topic.replication_factor
        needed = terms_of(topic.config, changes.nodes, replication_factor=copies).min_insync
        if len(target) < needed:
            raise invalid_field(
                "replica_node_ids",
                f"{len(target)} copies of {topic.name}/{number} are fewer than min_insync_replicas, {needed}",
            )
        changes.put(topic, number, elections.with_target(before, target, changes.terms(topic)))

    outcomes = _each(changes, command.reassignments, reassign)
    throttle = _throttle(changes.state, command.throttle_bytes_per_s) if command.throttle_bytes_per_s else []
    return changes.decision(*throttle, outcomes=outcomes)


def _check_target(changes: Changes, before: PartitionState, target: Sequence[int]) -> None:
    if not target or len(set(target)) != len(target):
        raise invalid_field("replica_node_ids", f"one or more nodes, each once, not {list(target)}")
    for node_id in target:
        node = changes.nodes.get(node_id)
        if node is None:
            raise invalid_field("replica_node_ids", f"there is no node {node_id}")
        if node_id not in before.replicas and not node.useful:
            why = "fenced" if node.fenced else "draining" if node.draining else "stopping"
            raise invalid_field("replica_node_ids", f"node {node_id} is {why} and can't take a copy")


def _cancel(changes: Changes, command: CancelReassignments) -> Decision:
    def cancel(topic: Topic, number: int) -> None:
        before = changes.partition(topic, number)
        if not before.reassigning:
            return
        after = elections.with_original(before, changes.terms(topic))
        if after is None:
            raise nobody_else(topic.name, number)
        changes.put(topic, number, after)

    return changes.decision(outcomes=_each(changes, command.partitions, cancel, only=lambda state: state.reassigning))


# --- common -----------------------------------------------------------------------------------------------------------


def _there(changes: Changes, named: Sequence[PartitionId]) -> list[tuple[Topic, int]]:
    """Those that exist."""
    found = [(changes.state.topic_by_id(each.topic_id), each.partition) for each in named]
    return [(topic, number) for topic, number in found if topic is not None and 0 <= number < topic.partition_count]


class _Named(Protocol):
    @property
    def topic(self) -> str: ...

    @property
    def partition(self) -> int: ...


def _each(
    changes: Changes,
    named: Sequence[PartitionName] | Sequence[Reassignment],
    act: Callable[[Topic, int], None],
    *,
    only: Callable[[PartitionState], bool] = lambda state: True,
) -> tuple[Outcome, ...]:
    """Acts on each partition that is named, or on all that `only` chooses."""
    chosen: Iterable[_Named] = named or [
        PartitionName(topic.name, number) for topic, number, state in changes.partitions() if only(state)
    ]
    outcomes = []
    for each in chosen:
        topic = changes.state.topics.get(each.topic)
        error = None
        try:
            if topic is None:
                raise errors.topic_not_found(each.topic)
            _partition(changes, topic, each.partition)
            act(topic, each.partition)
        except PostbusError as refusal:
            error = refusal
        outcomes.append(Outcome(each.topic, "" if topic is None else topic.topic_id, each.partition, error))
    return tuple(outcomes)


def _partition(changes: Changes, topic: Topic, number: int) -> PartitionState:
    if not 0 <= number < topic.partition_count:
        raise errors.partition_not_found(topic.name, number, topic.partition_count)
    return changes.partition(topic, number)


def _throttle(state: ClusterState, bytes_per_s: int) -> list[MetadataRecord]:
    if bytes_per_s < 0:
        raise invalid_field("throttle_bytes_per_second", f"0 or more, not {bytes_per_s}")
    if bytes_per_s == state.throttle_bytes_per_s:
        return []
    return [MetadataRecord(throttle_changed=ThrottleChanged(bytes_per_s=bytes_per_s))]
