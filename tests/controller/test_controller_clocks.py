"""Whose clocks the controller waits for before it tells the time."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from broker.clock import ManualClock
from broker.controller.controller import Controller
from broker.controller.state import NodeState
from broker.peers.links import PeerId
from broker.stubs.controller_pb2 import NodeHeartbeat, NodeHeartbeatAnswer

NOW_US, YEAR_US = 1_750_000_000_000_000, 365 * 86_400 * 1_000_000


class Cluster:
    """Three voters and an observer, node 4; the controller on node 1. What it proposes goes nowhere."""

    def __init__(self) -> None:
        self.nodes = {
            node_id: NodeState(node_id=node_id, store_id=f"s{node_id}", broker_epoch=node_id, fenced=False)
            for node_id in (1, 2, 3, 4)
        }
        members = [SimpleNamespace(node_id=node_id, store_id="", voter=node_id < 4) for node_id in self.nodes]
        metadata_log: Any = SimpleNamespace(
            active=True,
            decided=SimpleNamespace(nodes=self.nodes, index=9),
            add_active_listener=lambda listener: None,
            add_listener=lambda listener: None,
            propose=lambda command: None,
        )
        raft: Any = SimpleNamespace(members=lambda: members)
        handlers: dict[str, Any] = {}
        calls: Any = SimpleNamespace(handle=handlers.__setitem__)
        self.controller = Controller(node_id=1, metadata_log=metadata_log, raft=raft, calls=calls, clock=ManualClock())

    def fence(self, *node_ids: int) -> None:
        for node_id in node_ids:
            self.nodes[node_id] = replace(self.nodes[node_id], fenced=True, stopping=True)

    def beat(self, node_id: int, wall_us: int) -> int:
        """A heartbeat; returns the time that the answer tells."""
        heartbeat = NodeHeartbeat(broker_epoch=node_id, applied_index=9, wall_us=wall_us).SerializeToString()
        answer = asyncio.run(self.controller._heard(PeerId(node_id, f"s{node_id}"), heartbeat))
        return NodeHeartbeatAnswer.FromString(answer).wall_us


def test_a_node_that_is_alone_for_a_moment_is_not_believed() -> None:
    """Neither the first to start again after all had stopped, nor one that the others are too busy to answer to.

    Wrong by years, it would delete what retention by time lets it within seconds.
    """
    cluster = Cluster()
    cluster.fence(2, 3, 4)
    assert cluster.beat(1, NOW_US + 10 * YEAR_US) == 0
    assert cluster.beat(2, NOW_US) == NOW_US
    assert cluster.beat(1, NOW_US + 10 * YEAR_US) == NOW_US


def test_observers_that_are_gone_are_not_waited_for() -> None:
    """Any number of them may stay registered."""
    cluster = Cluster()
    cluster.fence(4)
    cluster.beat(1, NOW_US)
    assert cluster.beat(2, NOW_US) == NOW_US
    unfenced = Cluster()
    unfenced.beat(1, NOW_US)
    assert unfenced.beat(2, NOW_US) == 0
    assert unfenced.beat(4, NOW_US) == NOW_US
