"""Where replicas go: over the nodes and their racks, leaders evenly, and so that whoever fails leaves its work to all.

Pure and without chance: a seed says where to begin. Within a topic first, so that no topic sits on one node because
that one happened to be empty; over all topics where that leaves a choice.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from broker.controller.state import ClusterState, NodeState, PartitionState, Topic


class Load:
    """How much there is on each node."""

    def __init__(self, partitions: Iterable[PartitionState] = ()) -> None:
        self.replicas: Counter[int] = Counter()
        self.preferred: Counter[int] = Counter()  # partitions that the node should lead
        self.seconds: Counter[tuple[int, int]] = Counter()  # (first, second): who takes over from whom
        for partition in partitions:
            self.add(partition.target)

    def add(self, replicas: Sequence[int], count: int = 1) -> None:
        """With one partition more; `count` -1: less."""
        for node_id in replicas:
            self.replicas[node_id] += count
        self.preferred[replicas[0]] += count
        if len(replicas) > 1:
            self.seconds[replicas[0], replicas[1]] += count


def candidates(nodes: Mapping[int, NodeState]) -> list[NodeState]:
    """Nodes that new replicas may be put on, those that are there first. A node that is away is better than no copy."""
    usable = [node for _, node in sorted(nodes.items()) if not node.draining]
    return sorted(usable, key=lambda node: not node.useful)


def place(
    nodes: Sequence[NodeState],
    *,
    count: int,
    replication_factor: int,
    seed: int,
    topic: Iterable[PartitionState] = (),
    cluster: Load | None = None,
) -> list[tuple[int, ...]]:
    """Replicas for `count` new partitions, preferred leader first.

    nodes: of `candidates`, at least `replication_factor`, one of them there. topic: its partitions so far. cluster:
    the load of all topics.
    """
    assert len(nodes) >= replication_factor and nodes[0].useful
    within, overall = Load(topic), cluster or Load()
    placed: list[tuple[int, ...]] = []
    for number in range(count):
        chosen: list[NodeState] = []
        while len(chosen) < replication_factor:
            chosen.append(_next(nodes, chosen, within, overall, turn=seed + number))
        replicas = tuple(node.node_id for node in chosen)
        within.add(replicas)
        overall.add(replicas)
        placed.append(replicas)
    return placed


def substitute(
    partition: PartitionState, gone: Collection[int], nodes: Sequence[NodeState], load: Load, *, turn: int
) -> tuple[int, ...] | None:
    """Its replicas with others instead of the `gone`, in their places; None if there are not enough nodes."""
    by_id = {node.node_id: node for node in nodes}
    target = partition.target
    replicas = list(target)
    for position, node_id in enumerate(target):
        if node_id not in gone:
            continue
        others = [by_id[other] for other in replicas if other in by_id and other != node_id and other not in gone]
        free = [node for node in nodes if node.node_id not in replicas and node.node_id not in gone]
        if not free:
            return None
        replicas[position] = _next(free, others, Load(), load, turn=turn, leader=position == 0).node_id
    return tuple(replicas)


def extend(
    target: tuple[int, ...], replication_factor: int, nodes: Sequence[NodeState], load: Load, *, turn: int
) -> tuple[int, ...]:
    """`target` with more replicas behind it."""
    by_id = {node.node_id: node for node in nodes}
    replicas = list(target)
    while len(replicas) < replication_factor:
        chosen = [by_id[node_id] for node_id in replicas if node_id in by_id]
        free = [node for node in nodes if node.node_id not in replicas]
        replicas.append(_next(free, chosen, Load(), load, turn=turn, leader=False).node_id)
    return tuple(replicas)


def _next(
    nodes: Sequence[NodeState],
    chosen: Sequence[NodeState],
    within: Load,
    overall: Load,
    *,
    turn: int,
    leader: bool | None = None,
) -> NodeState:
    """The best place for one more replica beside those `chosen`."""
    racks = {node.rack for node in chosen if node.rack}
    taken = {node.node_id for node in chosen}
    first = not chosen if leader is None else leader

    def cost(item: tuple[int, NodeState]) -> tuple[int, ...]:
        position, node = item
        around = (position - turn) % len(nodes)
        if first:
            loads = (within.preferred[node.node_id], within.replicas[node.node_id], overall.preferred[node.node_id])
        else:
            follows = (chosen[0].node_id, node.node_id) if len(chosen) == 1 else (0, 0)
            loads = (within.seconds[follows], within.replicas[node.node_id], overall.seconds[follows])
        return (not node.useful, node.rack in racks, *loads, overall.replicas[node.node_id], around)

    free = [(position, node) for position, node in enumerate(nodes) if node.node_id not in taken]
    return min(free, key=cost)[1]


def load_of(state: ClusterState, *, without: Topic | None = None) -> Load:
    """What the nodes have, reassignments under way counted as done."""
    return Load(partition for topic, _, partition in state.partitions() if topic is not without)
