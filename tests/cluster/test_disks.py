"""Disks that fail one node: damaged files, an fsync that fails, no room. The others have everything, and go on."""

import asyncio
from pathlib import Path

import pytest
from cluster import ClusterBus, create_topic, running
from postbus.v1 import cluster_pb2, cluster_pb2_grpc, record_pb2
from test_disk import FATAL_EXIT_CODE, NO_ROOM, fsync_fails
from values import first_values, publish, values
from workload import Workload

from broker.storage.data_dir import read_identity

pytestmark = pytest.mark.timeout(240)


def flip(file: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def flip_tables(folder: Path, *families: str) -> list[str]:
    """One bit of each table of these families, in its records; their names."""
    flipped = []
    for file in folder.glob("*.sst"):
        data = bytearray(file.read_bytes())
        # A table's properties: column.family.name, of which only the end is written out, and its value.
        if any(b"name%s\n" % family.encode() in data for family in families):
            data[len(data) // 5] ^= 0x10
            file.write_bytes(data)
            flipped.append(file.name)
    return flipped


def largest(folder: Path, kind: str) -> Path:
    """The file of this kind in the database of records that holds the most."""
    return max((folder / "data").glob(f"*.{kind}"), key=lambda file: file.stat().st_size)


@pytest.mark.slow
async def test_a_bit_flipped_in_the_wal(tmp_path: Path) -> None:
    """What was promised is gone from that disk: the node says so, refills, and counts again only then."""

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        victim = await cluster.leader("compared")
        await work.acknowledged(100)
        await work.under_way()
        await cluster.kill(victim)
        flip(largest(cluster.nodes[victim].folder, "log"))
        work.fault(f"a bit flipped in the WAL of node {victim}")
        await work.acknowledged(20)
        await cluster.start()
        assert '"data_lost"' in cluster.nodes[victim].log()
        await cluster.until_in_sync()
        other = next(number for number in cluster.nodes if number != victim)
        await cluster.kill(other)
        work.fault(f"SIGKILL of node {other}")
        await work.acknowledged(20)
        await cluster.start()
        await cluster.until_in_sync()

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=2)


@pytest.mark.slow
async def test_bits_flipped_in_files_of_records(tmp_path: Path) -> None:
    """Nobody gets a wrong record, or none: the node finds the damage, and makes its copy anew from the others'."""
    async with running(tmp_path) as cluster:
        bus = ClusterBus(cluster)
        await create_topic(bus, "t", partition_count=1)
        count, size = 60, 50_000
        await publish(bus, range(count), size=size)
        await cluster.until_in_sync()
        for victim, kind in ((1, "sst"), (2, "blob")):
            # A start after a kill turns the WAL into these files.
            for _ in range(2):
                await cluster.kill(victim)
                await cluster.start()
                await cluster.until_in_sync()
            await cluster.kill(victim)
            for file in (cluster.nodes[victim].folder / "data").glob(f"*.{kind}"):
                flip(file)
            await publish(bus, range(count, count + 1), size=size)
            count += 1
            await cluster.start()
            await cluster.until_in_sync()
            others = [node for number, node in cluster.nodes.items() if number != victim]
            assert [await values(node) for node in others] == [list(range(count))] * 2
            # Through the damaged node, too: it reads elsewhere what it finds damaged, and makes its copy anew.
            assert await values(cluster.nodes[victim]) == list(range(count))
            found = cluster.nodes[victim].log()
            assert '"data_lost"' in found or '"log_damage"' in found
            await cluster.until_in_sync()
            # A damaged copy is one that the others can't be read from: now they are gone.
            await cluster.kill(*(number for number in cluster.nodes if number != victim))
            assert await first_values(cluster.nodes[victim], count) == list(range(count))
            await cluster.start()
            await cluster.until_in_sync()
        await bus.close()


@pytest.mark.slow
async def test_a_bit_flipped_in_a_table_that_is_compacted(tmp_path: Path) -> None:
    """RocksDB writes no more: the process ends, once; the next one copies what can be read, and gets the rest."""

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        victim = await cluster.leader("compared")
        node = cluster.nodes[victim]
        for _ in range(4):
            # A start after a kill turns the WAL into tables; four of them are compacted, and more at every start.
            await work.acknowledged(50)
            await cluster.kill(victim)
            await node.start()
        await work.acknowledged(50)
        await cluster.kill(victim)
        assert flip_tables(node.folder / "data", "batches", "index")
        work.fault(f"bits flipped in tables of node {victim}")
        await work.acknowledged(20)
        await node.start(wait=False)
        # As its supervisor does it, until it stays.
        assert await node.wait() == FATAL_EXIT_CODE
        await node.start()
        assert '"store_rebuilt"' in node.log()
        await cluster.until_in_sync()
        for _ in range(4):
            await work.acknowledged(50)
            await cluster.kill(victim)
            await node.start()
        await cluster.until_in_sync()
        other = next(number for number in cluster.nodes if number != victim)
        await cluster.kill(other)
        work.fault(f"SIGKILL of node {other}")
        await work.acknowledged(20)
        await cluster.start()
        await cluster.until_in_sync()

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=2)


@pytest.mark.slow
async def test_bits_flipped_in_the_metadata(tmp_path: Path) -> None:
    """Votes may be forgotten: the node is another store, which learns before it votes, and can then be relied on."""

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        victim = await cluster.controller()
        node = cluster.nodes[victim]
        for _ in range(2):  # a start after a kill turns the WAL into a table
            await work.acknowledged(20)
            await cluster.kill(victim)
            await node.start()
        before = read_identity(node.folder)
        await cluster.kill(victim)
        assert flip_tables(node.folder / "meta", "raft")
        work.fault(f"bits flipped in the metadata of node {victim}")
        await work.acknowledged(20)
        await node.start()
        await cluster.until_in_sync()
        after = read_identity(node.folder)
        assert before is not None
        assert after is not None
        assert before.store_id != after.store_id
        # Its vote is needed now.
        other = next(number for number in cluster.nodes if number != victim)
        await cluster.kill(other)
        work.fault(f"SIGKILL of node {other}")
        await work.acknowledged(20)
        await cluster.start()
        await cluster.until_in_sync()

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=2)


@pytest.mark.slow
async def test_a_failed_fsync_ends_one_node_and_no_other(tmp_path: Path) -> None:
    """Exit code 70; others lead within moments; started again it is in sync."""

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        victim = await cluster.leader("compared")
        await work.under_way()
        async with fsync_fails(cluster.nodes[victim].pid):
            assert await cluster.nodes[victim].wait() == FATAL_EXIT_CODE
        work.fault(f"fsync of node {victim} failed")
        await work.acknowledged(30)
        assert await cluster.leader("compared") != victim
        await cluster.start()
        await cluster.until_in_sync()

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=1)


@pytest.mark.slow
async def test_no_room_on_one_node(tmp_path: Path) -> None:
    """What it led is led by others soon, and publishing goes on; with room again it takes part again."""
    async with running(tmp_path) as cluster:
        bus = ClusterBus(cluster)
        await create_topic(bus, "t", partition_count=3)
        await cluster.until_in_sync()
        victim = await cluster.leader("t")
        await cluster.stop(victim)
        await cluster.nodes[victim].start(**NO_ROOM)
        await cluster.until_in_sync()
        async with asyncio.timeout(60):
            place = record_pb2.TopicPartition(topic="t", partition=0)
            stub = cluster.stub(victim, cluster_pb2_grpc.ClusterServiceStub)
            while await cluster.leader("t") != victim:
                await stub.ElectLeaders(cluster_pb2.ElectLeadersRequest(partitions=[place]), timeout=20)
        assert await publish(bus, range(10)) > 0  # so often it was refused
        assert await cluster.leader("t") != victim
        await publish(bus, range(10, 30))
        await cluster.until_in_sync(2)
        assert await values(cluster.nodes[victim]) == list(range(30))
        assert '"full_disk_hand_over"' in cluster.nodes[victim].log()
        await cluster.stop(victim)
        await cluster.start()
        await cluster.until_in_sync()
        assert [await values(node) for node in cluster.nodes.values()] == [list(range(30))] * 3
        await bus.close()
