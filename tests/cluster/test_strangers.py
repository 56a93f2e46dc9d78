"""Who does not belong: on the peer port, under somebody else's id, with somebody else's data. It harms nobody."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from broker_process import BrokerEnded
from cluster import CLUSTER_ID, Cluster, ClusterBus, create_topic, running
from postbus.v1 import cluster_pb2, cluster_pb2_grpc
from values import publish, values

from broker.stubs import peers_pb2, raft_pb2

pytestmark = pytest.mark.timeout(180)

STREAMS = ("RaftService/Exchange", "ReplicationService/Pull", "PeerService/Call")
GARBAGE = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x00" * 4096,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 65_536,
    bytes(range(256)) * 64,
)
IMPATIENT_S = 10.0
STRANGERS = 60
LINES_PER_KIND_MAX = 6  # 60 strangers of each kind within less than a minute, a line in ten seconds


@contextlib.asynccontextmanager
async def with_topic(folder: Path) -> AsyncIterator[tuple[Cluster, ClusterBus]]:
    """Three nodes, and the topic "t" with one partition and the records "0" to "9"."""
    async with running(folder) as cluster:
        bus = ClusterBus(cluster)
        await create_topic(bus, "t", partition_count=1)
        await publish(bus, range(10))
        yield cluster, bus
        await bus.close()


async def quorum(cluster: Cluster) -> tuple[int, int, tuple[int, ...]]:
    """Leader, term and voters of the metadata log."""
    stub = cluster.stub(await cluster.controller(), cluster_pb2_grpc.ClusterServiceStub)
    seen = await stub.GetQuorum(cluster_pb2.GetQuorumRequest(), timeout=10)
    return seen.leader_node_id, seen.term, tuple(member.node_id for member in seen.members if member.voter)


async def refusal(port: int, method: str, metadata: Any, *frames: bytes) -> tuple[grpc.StatusCode, str]:
    """How a stream on the peer port ends."""
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=(("grpc.use_local_subchannel_pool", 1),)
    ) as channel:
        call: Any = channel.stream_stream(f"/postbus.internal.v1.{method}")(
            metadata=grpc.aio.Metadata(*metadata), timeout=IMPATIENT_S
        )
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for frame in frames:
                await call.write(frame)
            while await call.read() is not grpc.aio.EOF:
                pass
        return await call.code(), await call.details()


def said(*, cluster_id: str = CLUSTER_ID, node_id: object = 9, store_id: str = "stranger", wanted: object = 1) -> Any:
    """What a node says of itself."""
    return (
        ("postbus-cluster-id", cluster_id),
        ("postbus-node-id", str(node_id)),
        ("postbus-store-id", store_id),
        ("postbus-wanted-node-id", str(wanted)),
    )


def store_of(cluster: Cluster, node_id: int) -> str:
    return str(json.loads((cluster.nodes[node_id].folder / "IDENTITY").read_text())["store_id"])


async def send_garbage(port: int, data: bytes) -> None:
    """As bytes on the connection; reads until the other end has had enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(OSError, TimeoutError):
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(IMPATIENT_S):
            while await reader.read(65_536):
                pass
    writer.close()


async def say_old_things(cluster: Cluster, leader: int, term: int) -> None:
    """Votes and entries of an earlier term, of a member that slept or of one that pretends."""
    other = next(number for number in cluster.nodes if number != leader)

    def message(node_id: int, store_id: str) -> raft_pb2.RaftMessage:
        return raft_pb2.RaftMessage(
            cluster_id=CLUSTER_ID,
            sender_node_id=node_id,
            sender_store_id=store_id,
            to_node_id=leader,
            to_store_id=store_of(cluster, leader),
            term=term - 1,
        )

    for node_id, store_id in ((other, store_of(cluster, other)), (other, "another disk"), (9, "stranger")):
        stale = [message(node_id, store_id) for _ in range(4)]
        stale[0].append.entries.add(term=term - 1, data=b"\x0a\x03abc")
        stale[1].vote.last_index = stale[1].vote.last_term = 1_000_000
        stale[1].vote.force = True
        stale[2].heartbeat.commit = 1_000_000
        stale[3].timeout_now.SetInParent()
        frame = peers_pb2.PeerFrame(messages=[one.SerializeToString() for one in stale], last=True)
        metadata = said(node_id=node_id, store_id=store_id, wanted=leader)
        await refusal(cluster.peer_port(leader), STREAMS[0], metadata, frame.SerializeToString())


async def test_strangers_on_the_peer_port_are_refused_and_change_nothing(tmp_path: Path) -> None:
    """Each hears why; the log stays short; leader, term and members stay; clients notice nothing."""
    async with with_topic(tmp_path) as (cluster, bus):
        leader, term, voters = await quorum(cluster)
        port = cluster.peer_port(leader)
        for method in STREAMS:
            for metadata, why in (
                ((), "does not say which cluster, node and store it is"),
                (said(cluster_id="production", wanted=leader), f"belongs to cluster production, node {leader} to"),
                (said(wanted=7), f"node {leader} answers at the address of node 7"),
                (said(node_id=leader, wanted=leader), f"there are two nodes {leader}, with stores"),
                (said(node_id="x' or 1=1", wanted=leader), "does not say which"),
                (said(store_id=store_of(cluster, leader), node_id=leader, wanted=leader), "has reached itself"),
            ):
                code, details = await refusal(port, method, metadata)
                assert (code, why in details) == (grpc.StatusCode.FAILED_PRECONDITION, True), (metadata, details)
        for data in GARBAGE:
            await send_garbage(port, data)
        assert (await refusal(port, "PeerService/Nothing", said(wanted=leader)))[0] is grpc.StatusCode.UNIMPLEMENTED
        huge = bytes(17 * 1024 * 1024)
        for method in STREAMS:
            # Of the right cluster as it seems, with what nobody understands.
            code, _ = await refusal(port, method, said(wanted=leader), b"\xff\xff\xff", b"\x0a\x03abc")
            assert code is not grpc.StatusCode.UNKNOWN, method
            assert (await refusal(port, method, said(wanted=leader), huge))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        await asyncio.gather(
            *(refusal(port, STREAMS[0], said(cluster_id="production", wanted=leader)) for _ in range(STRANGERS))
        )

        await say_old_things(cluster, leader, term)
        lines = [json.loads(line) for line in cluster.nodes[leader].log().splitlines() if '"peer_refused"' in line]
        assert {line["kind"] for line in lines} >= {"no_node", "other_cluster", "other_node", "same_node_id", "itself"}
        for kind in {line["kind"] for line in lines}:
            assert sum(line["kind"] == kind for line in lines) <= LINES_PER_KIND_MAX, lines
        await publish(bus, range(10, 20))
        assert await quorum(cluster) == (leader, term, voters)
        assert [await values(process) for process in cluster.nodes.values()] == [list(range(20))] * 3


async def test_a_second_node_under_the_same_id_is_refused(tmp_path: Path) -> None:
    """It is told why and never serves; the one that is there goes on, and so does the cluster."""
    async with with_topic(tmp_path) as (cluster, bus):
        _, _, voters = await quorum(cluster)
        controller = await cluster.controller()
        node_id = next(number for number in cluster.nodes if number != controller)
        epochs = {node.node_id: node.broker_epoch for node in (await cluster.metadata()).nodes}
        second = cluster.another(tmp_path / "second", node_id)
        try:
            await second.start(wait=False)
            await second.until_logged(f"there are two nodes {node_id}")
            assert not second.ready.is_set()
            await publish(bus, range(10, 20))
            assert {node.node_id: node.broker_epoch for node in (await cluster.metadata()).nodes} == epochs
            assert (await quorum(cluster))[2] == voters
            assert await values(cluster.nodes[node_id]) == list(range(20))
        finally:
            await second.close()


async def test_data_of_another_node_or_cluster_is_refused(tmp_path: Path) -> None:
    """At once, saying whose it is; the data is left as it is."""
    async with with_topic(tmp_path) as (cluster, _):
        await cluster.stop(3)
        folder = tmp_path / "copy"
        shutil.copytree(cluster.nodes[3].folder, folder)
        for copy, changed, why in (
            (cluster.another(folder, 2), {}, "is the data directory of node 3, and this node's id is 2"),
            (cluster.another(folder, 3), {"POSTBUS_CLUSTER_ID": "production"}, f"belongs to cluster '{CLUSTER_ID}'"),
        ):
            with pytest.raises(BrokerEnded) as ended:
                await copy.start(**changed)
            assert "exit code 1" in str(ended.value) and why in str(ended.value)
        await cluster.start()
        assert await values(cluster.nodes[3]) == list(range(10))


async def test_a_removed_node_on_its_old_disk_is_told_so(tmp_path: Path) -> None:
    """It is not taken in, and says why; with an empty folder it is a node like any other."""
    async with running(tmp_path) as cluster:
        fourth = await cluster.join(4)
        await cluster.stop(4)
        removal = cluster_pb2.RemoveNodeRequest(node_id=4)
        while True:
            stub = cluster.stub(await cluster.controller(), cluster_pb2_grpc.ClusterServiceStub)
            try:
                await stub.RemoveNode(removal, timeout=10)
                break
            except grpc.aio.AioRpcError as error:
                assert "is at work" in str(error.details())
        await fourth.start(wait=False)
        await fourth.until_logged("node 4 was removed from this cluster")
        assert not fourth.ready.is_set()
        await fourth.kill()
        shutil.rmtree(fourth.folder)
        await fourth.start()
