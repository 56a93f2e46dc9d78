"""Too few controllers, and nodes that come: what is refused and why, what goes on, and what heals by itself."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import Cluster, ClusterBus, create_topic, running
from grpc_health.v1 import health_pb2, health_pb2_grpc
from postbus.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    group_pb2,
    group_pb2_grpc,
    publisher_pb2,
    publisher_pb2_grpc,
)
from values import first_values, publish, values

pytestmark = pytest.mark.timeout(240)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def serving(cluster: Cluster, number: int, service: str, wanted: int) -> None:
    """Returns when a node's health says so of a service ("" is the node)."""
    request = health_pb2.HealthCheckRequest(service=service and f"postbus.v1.{service}")
    watch = cluster.stub(number, health_pb2_grpc.HealthStub).Watch(request, timeout=60)
    async for seen in watch:
        if seen.status == wanted:
            return
    raise AssertionError(f"{service} of node {number} never was {wanted}")


async def test_two_of_three_are_gone(tmp_path: Path) -> None:
    """Publishing is refused with the reason, reading goes on, health shows it; all heals when they are back."""
    async with running(tmp_path) as cluster:
        bus = ClusterBus(cluster)
        await create_topic(bus, "t", partition_count=1)
        await publish(bus, range(20))
        await cluster.until_in_sync()
        controller = await cluster.controller()
        survivor = next(number for number in cluster.nodes if number != controller)
        gone = [number for number in cluster.nodes if number != survivor]
        await cluster.kill(*gone)

        stub = cluster.stub(survivor, publisher_pb2_grpc.PublisherServiceStub)
        request = publisher_pb2.PublishRequest(topic="t", partition=0, request_id="20")
        request.batch.records.add(value=b"20 ")
        with pytest.raises(grpc.aio.AioRpcError, match="2 of 3 controllers unreachable: ") as refused:
            await stub.Publish(request, timeout=8)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        for number in gone:
            assert f"{number} (127.0.0.1:{cluster.peer_port(number)})" in str(refused.value.details())
        with pytest.raises(grpc.aio.AioRpcError, match="2 of 3 controllers unreachable: ") as undecided:
            admin = cluster.stub(survivor, cluster_pb2_grpc.ClusterServiceStub)
            await admin.DrainNode(cluster_pb2.DrainNodeRequest(node_id=survivor), timeout=8)
        assert undecided.value.code() is grpc.StatusCode.UNAVAILABLE
        members = (await admin.GetQuorum(cluster_pb2.GetQuorumRequest(), timeout=8)).members
        assert {member.node_id for member in members if member.HasField("silence")} == set(gone)
        groups = cluster.stub(survivor, group_pb2_grpc.GroupServiceStub)
        joins = group_pb2.HeartbeatRequest(group="g", topics=["t"])
        with pytest.raises(grpc.aio.AioRpcError, match="2 of 3 controllers unreachable: "):
            await groups.Heartbeat(joins, timeout=15)
        assert await first_values(cluster.nodes[survivor], 20) == list(range(20))
        await serving(cluster, survivor, "PublisherService", NOT_SERVING)
        await serving(cluster, survivor, "SubscriberService", SERVING)
        await serving(cluster, survivor, "", SERVING)  # it is to stay in the load balancer: it serves reads

        await cluster.start()
        await publish(bus, range(20, 40))
        for service in ("PublisherService", "GroupService", ""):
            await serving(cluster, survivor, service, SERVING)
        await cluster.until_in_sync()
        # The 21st was under way when there was nobody: it may have been taken by then, and is there once.
        assert [await values(node) for node in cluster.nodes.values()] == [list(range(40))] * 3
        await bus.close()


@pytest.mark.slow
async def test_a_node_killed_while_it_refills(tmp_path: Path) -> None:
    """Again and again, on a disk that was wiped: it goes on from where it was, and ends with all of it."""
    count, size = 120, 100_000
    throttled = {"POSTBUS_CATCH_UP_BYTES_PER_SECOND": "4MiB"}
    async with running(tmp_path, environment=throttled) as cluster:
        bus = ClusterBus(cluster)
        await create_topic(bus, "t", partition_count=1)
        await publish(bus, range(count), size=size)
        await cluster.until_in_sync()
        leader = await cluster.leader("t")
        victim = next(number for number in cluster.nodes if number != leader)
        await cluster.kill(victim)
        shutil.rmtree(cluster.nodes[victim].folder)
        for _ in range(3):
            await cluster.nodes[victim].start(wait=False)
            await cluster.nodes[victim].until_logged('"registered"')
            assert not cluster.nodes[victim].ready.is_set()  # 12 MB take three seconds
            await cluster.kill(victim)
            await publish(bus, range(count, count + 5), size=size)
            count += 5
        await cluster.start()
        await cluster.until_in_sync()
        assert [await values(node) for node in cluster.nodes.values()] == [list(range(count))] * 3
        await bus.close()


@pytest.mark.slow
async def test_a_fourth_node_joins_and_leaves(tmp_path: Path) -> None:
    """As an observer; it gets its share, may become a voter, and goes when it is drained: without a failed publish."""
    async with running(tmp_path) as cluster:
        bus = ClusterBus(cluster)
        await create_topic(bus, "t", partition_count=1)
        await publish(bus, range(10))
        await cluster.join(4)
        admin = cluster.stub(1, cluster_pb2_grpc.ClusterServiceStub)
        members = (await admin.GetQuorum(cluster_pb2.GetQuorumRequest(), timeout=20)).members
        assert {member.node_id: member.voter for member in members} == {1: True, 2: True, 3: True, 4: False}
        await admin.AddVoter(cluster_pb2.AddVoterRequest(node_id=4), timeout=60)
        stop = asyncio.Event()

        async def keep_publishing() -> int:
            number = 10
            while not stop.is_set():
                assert await publish(bus, range(number, number + 1)) == 0
                number += 1
            return number

        publishing = asyncio.create_task(keep_publishing())
        moves = (await admin.RebalanceCluster(cluster_pb2.RebalanceClusterRequest(), timeout=60)).moves
        assert any(4 in move.new_replica_node_ids for move in moves)
        await reassigned(cluster, holds=True)
        await admin.RemoveVoter(cluster_pb2.RemoveVoterRequest(node_id=4), timeout=60)
        await admin.DrainNode(cluster_pb2.DrainNodeRequest(node_id=4, move_replicas=True), timeout=60)
        await reassigned(cluster, holds=False)
        await cluster.stop(4)
        left = cluster.nodes.pop(4)
        await until_removed(admin)
        stop.set()
        count = await publishing
        await left.close()
        await cluster.until_in_sync()
        assert {node.node_id for node in (await cluster.metadata()).nodes} == {1, 2, 3}
        assert [await values(node) for node in cluster.nodes.values()] == [list(range(count))] * 3
        await bus.close()


async def reassigned(cluster: Cluster, *, holds: bool) -> None:
    """Until nothing moves any more, and node 4 holds something, or nothing."""
    async with asyncio.timeout(90):
        while True:
            stub = cluster.stub(1, cluster_pb2_grpc.ClusterServiceStub)
            moving = (await stub.ListReassignments(cluster_pb2.ListReassignmentsRequest(), timeout=20)).reassignments
            topics = (await cluster.metadata(1)).topics
            held = any(4 in one.replica_node_ids for topic in topics for one in topic.partitions)
            if not moving and held == holds:
                return
            await asyncio.sleep(0.1)


async def until_removed(admin: Any) -> None:
    """A node can go once it is known to be away."""
    async with asyncio.timeout(30):
        while True:
            try:
                await admin.RemoveNode(cluster_pb2.RemoveNodeRequest(node_id=4), timeout=20)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE):
                    raise
                await asyncio.sleep(0.1)
