"""A whole node: what a start makes of what is on the disk."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from postbus import Client
from structlog.testing import capture_logs

from broker.config import load
from broker.node import AddressInUse, Node
from broker.storage.errors import StoreLoss
from broker.storage.store import StorageSettings, accept_losses

StartNode = Callable[[], Awaitable[tuple[Node, str]]]


def settings(data_dir: Path, port: str = "0", disk_free_min_bytes: str = "0"):
    return load(
        {
            "data_dir": str(data_dir),
            "client_port": port,
            "http_port": "off",
            "disk_free_min_bytes": disk_free_min_bytes,
            "drain_grace_seconds": "0",
        }
    )


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[StartNode]:
    nodes: list[Node] = []

    async def start() -> tuple[Node, str]:
        node = Node(settings(tmp_path / "data"))
        started = await node.start()
        nodes.append(node)
        return node, f"127.0.0.1:{started.client_port}"

    yield start
    for node in nodes:
        await node.stop()


async def test_a_shortage_of_disk_space_is_logged_when_it_begins(tmp_path: Path) -> None:
    """A node that refuses publishing says so, from its start on, and with the setting that decides it."""
    node = Node(settings(tmp_path / "data", disk_free_min_bytes="1000000TiB"))
    with capture_logs() as logged:
        await node.start()
        await asyncio.sleep(0)
        await node.stop()
    (shortage,) = [each for each in logged if each["event"] == "disk_shortage"]
    assert shortage["log_level"] == "warning"
    assert shortage["free_bytes"] < shortage["disk_free_min_bytes"] == 1_000_000 * 2**40


async def test_records_outlive_the_metadata_that_named_their_topics(start: StartNode, tmp_path: Path) -> None:
    """With the metadata lost (and that accepted), each log is a topic again, and new topics never meet its records."""
    node, address = await start()
    async with Client(address) as client:
        await client.topics.create("orders", partition_count=2)
        for partition in (0, 1):
            await client.append("orders", [b"%d-%d" % (partition, number) for number in range(3)], partition=partition)
        async with client.publisher() as publisher:
            await publisher.publish("orders", b"by sequence", partition=0)
    await node.stop()
    shutil.rmtree(tmp_path / "data" / "meta")
    for mark in (tmp_path / "data").glob("meta*"):
        mark.unlink()
    with pytest.raises(StoreLoss, match="--accept-loss"):
        await start()
    assert accept_losses(tmp_path / "data", StorageSettings(), now_us=1)

    for _ in range(2):  # and the start after that keeps them too
        node, address = await start()
        async with Client(address) as client:
            recovered = [topic.name for topic in await client.topics.list() if topic.name.startswith("recovered-")]
            found = []
            for topic in recovered:
                assert (await client.topics.get(topic)).effective_config.retention_time.ToSeconds() == 0
                async with client.subscribe(topic, until_end=True) as records:
                    found += [record.value async for record in records]
            assert {b"%d-%d" % (partition, number) for partition in (0, 1) for number in range(3)} <= set(found)
            async with client.publisher() as publisher:
                # Its id is new to the log, whoever had the first ids before.
                delivery = await publisher.publish(recovered[-1], b"later")
                assert (await delivery).offset >= 3
            await client.topics.create("orders", exist_ok=True)
            async with client.subscribe("orders", until_end=True) as records:
                assert [record.value async for record in records] == []
        await node.stop()


async def test_a_port_that_is_taken_is_said_and_nothing_stays_open(start: StartNode, tmp_path: Path) -> None:
    """The data directory is free again at once."""
    _, address = await start()
    other = Node(settings(tmp_path / "other", address.rpartition(":")[2]))
    with pytest.raises(AddressInUse, match="--client-port"):
        await other.start()
    free = Node(settings(tmp_path / "other"))
    await free.start()
    await free.stop()
