"""A whole node in this process for each test; property tests that give the same verdict each time."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import settings

from broker.config import Settings
from broker.node import Node

# No package here (tests are imported by path), so the folder of what they share has to be named.
sys.path.insert(0, str(Path(__file__).parent))

from live_cluster import LiveCluster, started_cluster
from live_node import LiveNode, OpenNode

settings.register_profile("services", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("services")


@pytest.fixture
async def open_node(tmp_path: Path) -> AsyncIterator[OpenNode]:
    """open_node(**settings) starts a node on a free port; it stops with the test."""
    opened: list[LiveNode] = []

    async def open_node(**settings: Any) -> LiveNode:
        given = {"disk_free_min_bytes": 1 << 20, "drain_grace_seconds": 0.0, **settings}
        node = Node(Settings(data_dir=tmp_path / "data", client_port=0, http_port=None, **given))
        started = await node.start()
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{started.client_port}",
            options=[("grpc.max_receive_message_length", 16 << 20), ("grpc.use_local_subchannel_pool", 1)],
        )
        opened.append(LiveNode(node, channel, started.client_port))
        return opened[-1]

    yield open_node
    for bus in opened:
        await bus.channel.close()
        await bus.node.stop()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LiveCluster]:
    """Three nodes that are one bus."""
    async with started_cluster(tmp_path) as started:
        yield started
