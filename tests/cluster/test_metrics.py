"""What a cluster's metrics say is so, wherever it is asked for."""

import asyncio
import re
from pathlib import Path

import pytest
from cluster import Cluster, running
from postbus import Client

pytestmark = pytest.mark.timeout(120)

COUNT = 10


async def lags(cluster: Cluster) -> dict[str, float]:
    """By group, as the node that coordinates it says."""
    found: dict[str, float] = {}
    for node in cluster.nodes.values():
        reader, writer = await asyncio.open_connection("127.0.0.1", node.starts[-1]["http_port"])
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        found |= {group: float(lag) for group, lag in re.findall(r'postbus_group_lag\{group="(\w+)".*?\} (\S+)', text)}
    return found


async def test_a_group_s_lag_counts_what_other_nodes_alone_have(tmp_path: Path) -> None:
    """Where its coordinator has no copy of a partition, it asks those who lead it."""
    async with running(tmp_path, environment={"POSTBUS_HTTP_PORT": "0"}) as cluster, client_of(cluster) as client:
        await client.topics.create("t", partition_count=3, replication_factor=1)
        await publish(client)
        groups = [f"group{number}" for number in range(3)]
        for group in groups:
            async with client.subscribe("t", group=group, until_end=True) as records:
                assert len([record async for record in records]) == 3 * COUNT
        await publish(client)
        async with asyncio.timeout(30):
            while await lags(cluster) != dict.fromkeys(groups, 3.0 * COUNT):  # noqa: ASYNC110 - metrics have no event
                await asyncio.sleep(0.2)


def client_of(cluster: Cluster) -> Client:
    """Of all nodes."""
    return Client([node.target for node in cluster.nodes.values()])


async def publish(client: Client) -> None:
    """As many to each partition."""
    for partition in range(3):
        await client.append("t", [b"%d" % number for number in range(COUNT)], partition=partition)
