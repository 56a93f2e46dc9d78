"""Three whole nodes in this process, and stubs on a connection to each."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from live_node import LiveNode
from postbus.v1 import cluster_pb2, cluster_pb2_grpc, topic_pb2

from broker.config import Settings
from broker.node import Node

NODES = (1, 2, 3)


class LiveCluster:
    """By node id."""

    def __init__(self) -> None:
        self.nodes: dict[int, LiveNode] = {}

    def __getitem__(self, node_id: int) -> LiveNode:
        return self.nodes[node_id]

    def cluster(self, node_id: int) -> cluster_pb2_grpc.ClusterServiceStub:
        """ClusterService at a node."""
        return cluster_pb2_grpc.ClusterServiceStub(self[node_id].channel)

    async def create(self, topic: str, partition_count: int = 3, **config: Any) -> None:
        """A topic that all nodes know."""
        await self[1].topics.CreateTopic(
            topic_pb2.CreateTopicRequest(
                name=topic,
                partition_count=partition_count,
                replication_factor=3,
                config=topic_pb2.TopicConfig(**config),
            ),
            timeout=30,
        )
        await self.agree()

    async def agree(self) -> None:
        """Returns when every node has applied what any has."""
        async with asyncio.timeout(20):
            index = max(bus.node._bus.state.index for bus in self.nodes.values())
            for bus in self.nodes.values():
                await bus.node._bus.metadata_log.wait_applied(index, timeout_s=20)

    def leader(self, topic: str, partition: int) -> int:
        """Who leads, as node 1 knows; 0: nobody."""
        return self[1].topic(topic).partitions[partition].leader_id or 0

    async def led(self, topic: str, partition: int, *, by: int) -> None:
        """Has a node lead a partition: its replicas are put in another order, then the preferred leader is elected."""
        replicas = [by, *(node_id for node_id in NODES if node_id != by)]
        place = {"topic": topic, "partition": partition}
        request = cluster_pb2.ReassignPartitionsRequest(
            reassignments=[{"partition": place, "replica_node_ids": replicas}]
        )
        async with asyncio.timeout(30):
            (outcome,) = (await self.cluster(1).ReassignPartitions(request)).outcomes
            assert not outcome.HasField("failure"), outcome
            while self.leader(topic, partition) != by:
                await self.cluster(1).ElectLeaders(cluster_pb2.ElectLeadersRequest(partitions=[place]))
                await asyncio.sleep(0.02)
        await self.agree()


def free_ports(count: int) -> list[int]:
    """Of this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


@asynccontextmanager
async def started_cluster(folder: Path, **settings: Any) -> AsyncIterator[LiveCluster]:
    """Three nodes, ready."""
    cluster = LiveCluster()
    peers = dict(zip(NODES, free_ports(3), strict=True))
    given = {
        "cluster_id": "test",
        "peers": [f"{node_id}@127.0.0.1:{port}" for node_id, port in peers.items()],
        "disk_free_min_bytes": 1 << 20,
        "drain_grace_seconds": 0.0,
        "handover_timeout_seconds": 0.1,
        **settings,
    }
    nodes = {
        node_id: Node(
            Settings(
                data_dir=folder / f"node-{node_id}",
                node_id=node_id,
                client_port=0,
                http_port=None,
                peer_port=port,
                **given,
            )
        )
        for node_id, port in peers.items()
    }
    started = await asyncio.gather(*(node.start() for node in nodes.values()))
    try:
        for (node_id, node), begun in zip(nodes.items(), started, strict=True):
            channel = grpc.aio.insecure_channel(
                f"127.0.0.1:{begun.client_port}",
                options=[("grpc.max_receive_message_length", 16 << 20), ("grpc.use_local_subchannel_pool", 1)],
            )
            cluster.nodes[node_id] = LiveNode(node, channel, begun.client_port)
        async with asyncio.timeout(30):
            while not all(node._bus.ready for node in nodes.values()):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)
        yield cluster
    finally:
        for bus in cluster.nodes.values():
            await bus.channel.close()
        await asyncio.gather(*(node.stop() for node in nodes.values()))
