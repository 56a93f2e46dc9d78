"""Images for tests: clusters of some nodes, and commands carried out one after the other."""

from dataclasses import replace
from typing import Any

from broker.controller.commands import Command, CreateTopic, RegisterNode, Rules, UnfenceNode
from broker.controller.decisions import Decision, decide
from broker.controller.image import apply
from broker.controller.state import ClusterState, PartitionState

RULES = Rules()
NOW_US = 1_750_000_000_000_000


def run(state: ClusterState, *commands: Command, rules: Rules = RULES) -> ClusterState:
    """The image after the commands."""
    for command in commands:
        state = step(state, command, rules=rules)[0]
    return state


def step(state: ClusterState, command: Command, *, rules: Rules = RULES) -> tuple[ClusterState, Decision]:
    """The image after the command, and what was decided."""
    decision = decide(state, command, rules=rules)
    after = apply(state, decision.records, index=state.index + 1) if decision.records else state
    return after, decision


def joined(*node_ids: int, racks: str = "", state: ClusterState | None = None) -> ClusterState:
    """A cluster with these nodes at work; racks: one letter a node."""
    state = state or ClusterState()
    for position, node_id in enumerate(node_ids):
        rack = racks[position] if racks else ""
        state = started(state, node_id, rack=rack)
    return state


def started(
    state: ClusterState, node_id: int, *, store_id: str = "", unclean: bool = False, rack: str = ""
) -> ClusterState:
    """A node registered and was unfenced."""
    state = run(state, register(node_id, store_id=store_id, unclean=unclean, rack=rack))
    return run(state, UnfenceNode(node_id=node_id, broker_epoch=state.nodes[node_id].broker_epoch))


def register(node_id: int, *, store_id: str = "", unclean: bool = False, rack: str = "") -> RegisterNode:
    """With a store of its own."""
    return RegisterNode(
        node_id=node_id,
        store_id=store_id or f"store-{node_id}",
        client_endpoint=f"n{node_id}:7070",
        peer_endpoint=f"n{node_id}:7071",
        rack=rack,
        unclean=unclean,
    )


def create(name: str = "orders", **changes: Any) -> CreateTopic:
    """A topic whose id follows from its name."""
    return replace(CreateTopic(name=name, topic_id=f"id-of-{name}", now_us=NOW_US), **changes)


def partition(state: ClusterState, number: int = 0, topic: str = "orders") -> PartitionState:
    """One of them."""
    return state.topics[topic].partitions[number]


def log_ids(state: ClusterState) -> list[int]:
    """Of all partitions."""
    return [log_id for topic in state.topics.values() for log_id in topic.log_ids]
