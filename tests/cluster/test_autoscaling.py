"""What autoscaling is told while nodes die and links break: the whole lag or UNAVAILABLE, in time, and never less.

A lag that is too small would stop consumers that have work to do, all of them if it is zero.
"""

import asyncio
from pathlib import Path

import grpc
import pytest
from cluster import Cluster, ClusterBus, create_topic, running
from values import publish

from broker.stubs import externalscaler_pb2 as pb
from broker.stubs import externalscaler_pb2_grpc as pb_grpc

pytestmark = pytest.mark.timeout(240)

REF = pb.ScaledObjectRef(scalerMetadata={"group": "g", "topic": "t", "lagThreshold": "100000"})
ANSWER_S = 8.0  # the node's own bound is 5 s


async def lag(cluster: Cluster, number: int) -> int | None:
    """As a node tells it; None: UNAVAILABLE, which it says of itself before the caller's patience ends."""
    stub = cluster.stub(number, pb_grpc.ExternalScalerStub)
    try:
        answer = await stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=REF), timeout=ANSWER_S)
        active = await stub.IsActive(REF, timeout=ANSWER_S)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return None
    (metric,) = answer.metricValues
    assert active.result
    return int(metric.metricValue)


async def lag_in_time(cluster: Cluster, number: int) -> int:
    """Once it is known again."""
    async with asyncio.timeout(60):
        while (told := await lag(cluster, number)) is None:  # noqa: ASYNC110 - asked again, as KEDA does
            await asyncio.sleep(0.05)
    return told


async def led_by(cluster: Cluster, number: int) -> int:
    """Who leads, as a node sees it."""
    return (await cluster.metadata(number)).topics[0].partitions[0].leader_node_id


async def test_without_a_quorum_nobody_is_told_that_there_is_nothing_to_do(tmp_path: Path) -> None:
    """Two of three are gone: UNAVAILABLE. They are back: all that there was."""
    async with running(tmp_path) as cluster:
        bus = ClusterBus(cluster)
        await create_topic(bus, "t", partition_count=1)
        await publish(bus, range(30))
        await cluster.until_in_sync()
        assert [await lag_in_time(cluster, number) for number in cluster.nodes] == [30] * 3
        survivor = await cluster.leader("t")
        await cluster.kill(*(number for number in cluster.nodes if number != survivor))
        # For as long as its session holds it speaks for the partition, and rightly: nobody else can.
        async with asyncio.timeout(60):
            while (told := await lag(cluster, survivor)) is not None:
                assert told == 30
        await cluster.start()
        assert [await lag_in_time(cluster, number) for number in cluster.nodes] == [30] * 3
        await bus.close()


@pytest.mark.slow
async def test_a_leader_and_coordinator_that_dies_or_is_cut_off_hides_no_record(tmp_path: Path) -> None:
    """Whoever is asked, also the one that does not know yet that it was succeeded."""
    async with running(tmp_path, proxied=True) as cluster:
        bus = ClusterBus(cluster)
        await create_topic(bus, "t", partition_count=1)
        await publish(bus, range(10))
        acknowledged = 10
        done = asyncio.Event()

        async def ask(number: int) -> int:
            answers = 0
            while not done.is_set():
                before = acknowledged
                told = await lag(cluster, number)
                if told is not None:
                    assert before <= told <= acknowledged + 10, f"node {number} says {told}"
                    answers += 1
                await asyncio.sleep(0.01)
            return answers

        asking = [asyncio.create_task(ask(number)) for number in cluster.nodes]
        for how in ("cut", "killed"):
            old = await cluster.leader("t")
            if how == "cut":
                cluster.isolate(old)
            else:
                await cluster.kill(old)
            others = [number for number in cluster.nodes if number != old]
            async with asyncio.timeout(60):
                while await led_by(cluster, others[0]) not in others:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
            for _ in range(3):
                await publish(bus, range(acknowledged, acknowledged + 10))
                acknowledged += 10
            for number in others:
                assert await lag_in_time(cluster, number) == acknowledged
            cluster.heal()
            await cluster.start()
            await cluster.until_in_sync()
            assert await lag_in_time(cluster, old) == acknowledged
        done.set()
        assert all(count > 0 for count in await asyncio.gather(*asking))
        await bus.close()
