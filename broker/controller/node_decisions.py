"""The life of a node: it registers, is fenced and unfenced, stops, drains, goes. What follows for what it holds.

Pure. Everything that follows from one event is in one decision, so that a node's failure is one entry of the log.
"""

from collections.abc import Collection

from broker.controller import elections, placement
from broker.controller.changes import Changes, Decision
from broker.controller.commands import (
    DrainNode,
    FenceNodes,
    NodeCommand,
    Outcome,
    RegisterNode,
    RemoveNode,
    StopNode,
    UndrainNode,
    UnfenceNode,
)
from broker.controller.state import NOBODY, ClusterState, NodeState
from broker.errors import PostbusError, Reason, invalid_field
from broker.stubs.metadata_log_pb2 import NodeRegistered


def decide(state: ClusterState, command: NodeCommand) -> Decision:
    """What carries out `command`. Raises PostbusError."""
    changes = Changes(state)
    match command:
        case RegisterNode():
            return _register(changes, command)
        case FenceNodes():
            return _fence(changes, command.node_ids)
        case UnfenceNode():
            return _unfence(changes, command)
        case StopNode():
            return _stop(changes, command)
        case DrainNode():
            return _drain(changes, command)
        case UndrainNode():
            _known(state, command.node_id)
            changes.set_node(command.node_id, draining=False)
            return changes.decision()
        case RemoveNode():
            return _remove(changes, command.node_id)


def stale_life(node_id: int, broker_epoch: int, node: NodeState | None) -> PostbusError:
    """A node speaks that is not registered so (any more): it has to register again."""
    now = "it is not registered" if node is None else f"it is registered with {node.broker_epoch}"
    return PostbusError(
        Reason.ERROR_REASON_PRECONDITION_NOT_MET,
        f"node {node_id} has no broker epoch {broker_epoch}: {now}",
        metadata={"broker_epoch": 0 if node is None else node.broker_epoch},
    )


def _register(changes: Changes, command: RegisterNode) -> Decision:
    """A new life. What it had in sync it has to prove again; what is on another disk, or was lost, is not counted."""
    assert command.node_id > 0 and command.store_id
    before = changes.nodes.get(command.node_id)
    another_store = before is not None and before.store_id != command.store_id
    if before is not None and another_store and not before.fenced:
        raise PostbusError(
            Reason.ERROR_REASON_PRECONDITION_NOT_MET,
            f"there are two nodes with the same id {command.node_id}: one is at work at {before.peer_endpoint} with"
            f" store {before.store_id}, and another one came with store {command.store_id}; give one of them another"
            " node id, or stop the one that is at work",
            retry_after_ms=500,
        )
    changes.register(
        NodeRegistered(
            node_id=command.node_id,
            store_id=command.store_id,
            client_endpoint=command.client_endpoint,
            peer_endpoint=command.peer_endpoint,
            rack=command.rack,
            version=command.version,
            unclean=command.unclean,
            draining=before is not None and before.draining,
        )
    )
    distrusted = (command.node_id,) if another_store or command.unclean else ()
    _leave(changes, (command.node_id,), distrusted=distrusted)
    return changes.decision()


def _fence(changes: Changes, node_ids: Collection[int]) -> Decision:
    silent = [node_id for node_id in node_ids if node_id in changes.nodes and not changes.nodes[node_id].fenced]
    for node_id in silent:
        changes.set_node(node_id, fenced=True)
    if silent:
        _leave(changes, silent)
    return changes.decision()


def _leave(changes: Changes, node_ids: Collection[int], *, distrusted: Collection[int] = ()) -> None:
    """Nobody waits for these nodes, and they lead nothing."""
    for topic, number, partition in changes.partitions():
        if not any(node_id in partition.isr or node_id in partition.elr for node_id in node_ids):
            continue
        isr = [node_id for node_id in partition.isr if node_id not in node_ids]
        after = elections.with_isr(partition, isr, changes.terms(topic), distrusted=distrusted)
        changes.put(topic, number, after)


def _unfence(changes: Changes, command: UnfenceNode) -> Decision:
    """It leads again what nobody else could lead."""
    node = changes.nodes.get(command.node_id)
    if node is None or node.broker_epoch != command.broker_epoch:
        raise stale_life(command.node_id, command.broker_epoch, node)
    if not node.fenced or node.stopping:
        return Decision()
    changes.set_node(command.node_id, fenced=False)
    for topic, number, partition in changes.partitions():
        if partition.leader == NOBODY and command.node_id in partition.replicas:
            changes.put(topic, number, elections.with_isr(partition, partition.isr, changes.terms(topic)))
    return changes.decision()


def _stop(changes: Changes, command: StopNode) -> Decision:
    """Others lead, and nobody waits for it, wherever there are others."""
    node = changes.nodes.get(command.node_id)
    if node is None or node.broker_epoch != command.broker_epoch:
        raise stale_life(command.node_id, command.broker_epoch, node)
    changes.set_node(command.node_id, stopping=True)
    kept: list[Outcome] = []
    for topic, number, partition in changes.partitions():
        if command.node_id not in partition.isr:
            continue
        others = [node_id for node_id in partition.isr if node_id != command.node_id]
        if others:
            changes.put(topic, number, elections.with_isr(partition, others, changes.terms(topic)))
        else:
            kept.append(Outcome(topic.name, topic.topic_id, number, nobody_else(topic.name, number)))
    return changes.decision(outcomes=tuple(kept))


def _drain(changes: Changes, command: DrainNode) -> Decision:
    """Others lead; with `move_replicas`, others also get what it holds. What can't be yet follows later."""
    node_id = command.node_id
    _known(changes.state, node_id)
    changes.set_node(node_id, draining=True)
    nodes = placement.candidates(changes.nodes)
    load = placement.load_of(changes.state)
    for topic, number, partition in changes.partitions():
        after = partition
        if command.move_replicas and node_id in partition.target:
            target = placement.substitute(partition, (node_id,), nodes, load, turn=number)
            if target is None:
                raise invalid_field(
                    "move_replicas",
                    f"topic {topic.name!r} has {len(partition.target)} copies, and there are {len(nodes)} other nodes"
                    " to have them: add a node, or reassign it with fewer",
                )
            load.add(partition.target, -1)
            load.add(target)
            after = elections.with_target(after, target, changes.terms(topic))
        if after.leader == node_id:
            after = elections.with_leader(after, changes.terms(topic), without=(node_id,))
        changes.put(topic, number, after)
    return changes.decision()


def _remove(changes: Changes, node_id: int) -> Decision:
    node = _known(changes.state, node_id)
    if not node.fenced:
        raise PostbusError(
            Reason.ERROR_REASON_PRECONDITION_NOT_MET, f"node {node_id} is at work: stop it first", retry_after_ms=1000
        )
    held = sum(node_id in partition.replicas for _, _, partition in changes.partitions())
    if held:
        raise PostbusError(
            Reason.ERROR_REASON_PRECONDITION_NOT_MET,
            f"node {node_id} has copies of {held} partitions: drain it with its replicas first",
            metadata={"replica_count": held},
        )
    changes.remove_node(node_id)
    return changes.decision()


def nobody_else(topic: str, partition: int) -> PostbusError:
    """Leadership can't move: no other replica is in sync."""
    return PostbusError(
        Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS,
        f"no other replica of {topic}/{partition} is in sync",
        retry_after_ms=1000,
    )


def _known(state: ClusterState, node_id: int) -> NodeState:
    node = state.nodes.get(node_id)
    if node is None:
        raise invalid_field("node_id", f"there is no node {node_id}")
    return node
