"""Plans: which replicas and leaders to move so that every node has its share, and which topics could have more copies.

Pure, and only plans: carrying one out is `ReassignPartitions`. No more moves than a fair share needs; a replica never
moves where it would share a rack that it does not share now; within what is free to choose, each topic spreads out.
"""

from collections.abc import Iterator
from typing import Final

from broker.controller import placement
from broker.controller.commands import Reassignment
from broker.controller.state import ClusterState

REPLICATION_FACTOR_WANTED: Final = 3

_Key = tuple[str, int]  # a partition: topic name and number


def plan_balance(state: ClusterState) -> tuple[Reassignment, ...]:
    """Moves after which no node at work has two replicas, or two preferred leaders, more than another.

    Nodes that are fenced, stopping or draining neither give nor take.
    """
    board = _Board(state)
    while (move := board.next_move()) is not None:
        board.move(*move)
    while (swap := board.next_swap()) is not None:
        board.swap(*swap)
    return board.reassignments()


def plan_replication(state: ClusterState) -> tuple[Reassignment, ...]:
    """What would give topics from the days of fewer nodes as many copies as a new topic gets; internal ones first."""
    nodes = [node for node in placement.candidates(state.nodes) if node.useful]
    wanted = min(REPLICATION_FACTOR_WANTED, len(nodes))
    load = placement.load_of(state)
    planned = []
    for topic in sorted(state.topics.values(), key=lambda topic: (not topic.internal, topic.name)):
        if topic.replication_factor >= wanted:
            continue
        for number, partition in enumerate(topic.partitions):
            if len(partition.target) < wanted:
                replicas = placement.extend(partition.target, wanted, nodes, load, turn=number)
                load.add(partition.target, -1)
                load.add(replicas)
                planned.append(Reassignment(topic=topic.name, partition=number, replicas=replicas))
    return tuple(planned)


class _Board:
    """Who would have what, while a plan is made."""

    def __init__(self, state: ClusterState) -> None:
        self._racks = {node.node_id: node.rack for node in state.nodes.values()}
        self._nodes = sorted(node.node_id for node in state.nodes.values() if node.useful)
        self._before: dict[_Key, tuple[int, ...]] = {}
        self._replicas: dict[_Key, list[int]] = {}
        # By node and topic, in the order in which partitions would be given away: those that it does not lead first.
        self._held: dict[int, dict[str, dict[_Key, None]]] = {node_id: {} for node_id in self._nodes}
        self._counts: dict[int, int] = dict.fromkeys(self._nodes, 0)
        self._led: dict[int, dict[_Key, None]] = {node_id: {} for node_id in self._nodes}
        leading: list[tuple[int, _Key]] = []
        for topic, number, partition in state.partitions():
            key = (topic.name, number)
            self._before[key] = partition.target
            self._replicas[key] = list(partition.target)
            leading.append((partition.target[0], key))
            for node_id in partition.target[1:]:
                self._hold(node_id, key)
        for node_id, key in leading:
            self._hold(node_id, key)
            if node_id in self._led:
                self._led[node_id][key] = None

    def _hold(self, node_id: int, key: _Key) -> None:
        if node_id in self._held:
            self._held[node_id].setdefault(key[0], {})[key] = None
            self._counts[node_id] += 1

    def next_move(self) -> tuple[_Key, int, int] | None:
        """A replica that should move: which, from where, to where. None: all is even, or can't be more so."""
        for giver, taker in self._pairs(self._counts):
            mine, its = self._held[giver], self._held[taker]
            uneven = sorted(mine, key=lambda topic: len(its.get(topic, ())) - len(mine[topic]))
            for topic in uneven:
                for key in mine[topic]:
                    if taker not in self._replicas[key] and self._racks_allow(key, giver, taker):
                        return key, giver, taker
        return None

    def move(self, key: _Key, giver: int, taker: int) -> None:
        replicas = self._replicas[key]
        if replicas[0] == giver:
            del self._led[giver][key]
            self._led[taker][key] = None
        replicas[replicas.index(giver)] = taker
        del self._held[giver][key[0]][key]
        if not self._held[giver][key[0]]:
            del self._held[giver][key[0]]
        self._counts[giver] -= 1
        self._hold(taker, key)

    def next_swap(self) -> tuple[_Key, int, int] | None:
        """A partition whose preferred leader should be another of its replicas."""
        for giver, taker in self._pairs({node_id: len(led) for node_id, led in self._led.items()}):
            for key in self._led[giver]:
                if taker in self._replicas[key]:
                    return key, giver, taker
        return None

    def swap(self, key: _Key, giver: int, taker: int) -> None:
        replicas = self._replicas[key]
        place = replicas.index(taker)
        replicas[0], replicas[place] = taker, giver
        del self._led[giver][key]
        self._led[taker][key] = None

    def _pairs(self, counts: dict[int, int]) -> Iterator[tuple[int, int]]:
        """(giver, taker), the most uneven first."""
        for giver in sorted(self._nodes, key=lambda node_id: -counts[node_id]):
            for taker in sorted(self._nodes, key=lambda node_id: counts[node_id]):
                if counts[giver] - counts[taker] >= 2:
                    yield giver, taker

    def _racks_allow(self, key: _Key, giver: int, taker: int) -> bool:
        others = [self._racks.get(node_id, "") for node_id in self._replicas[key] if node_id != giver]
        rack = self._racks[taker]
        return not rack or rack not in others or self._racks[giver] in others

    def reassignments(self) -> tuple[Reassignment, ...]:
        return tuple(
            Reassignment(topic=key[0], partition=key[1], replicas=tuple(replicas))
            for key, replicas in self._replicas.items()
            if tuple(replicas) != self._before[key]
        )
