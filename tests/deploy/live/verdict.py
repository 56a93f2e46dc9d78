"""The last look: everything that clients saw, and what each node has on its disk, against the rules of histories."""

import asyncio
from typing import Any

import grpc
from history import Committed, Copy, Floors, History, Place, Polled, Positioned, report
from postbus.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    group_pb2,
    group_pb2_grpc,
    record_pb2,
    subscriber_pb2,
    subscriber_pb2_grpc,
)
from stage import GROUP, TOPIC, Stage

CATCH_UP_S = 60.0
COPY_S = 120.0


async def look_at_everything(stage: Stage) -> tuple[bool, str]:
    """Whether something is wrong, and what there is to say."""
    load = stage.load
    await load.stop(*load.running("publish"))
    published = load.published()
    wanted = sum(line[5] is not None for line in published)
    await stage.until(
        lambda: load.seen_by_all() >= wanted, CATCH_UP_S, f"the group and the reader get all {wanted} records"
    )
    await load.stop(*load.running("consume"), *load.running("read"))
    history = History()
    for event in load.events():
        history.note(event)
    addresses = stage.watch.addresses()
    async with grpc.aio.insecure_channel(f"{addresses[min(addresses)]}:7070") as channel:
        for committed in await _committed(channel):
            history.note(committed)
    for node, address in sorted(addresses.items()):
        async with asyncio.timeout(COPY_S):
            for event in await _copy(node, address):
                history.note(event)
    found = history.check(groups=[GROUP], floors=Floors(operations=1000, acknowledgements=1000, polls=2000))
    if found:
        return True, f"HISTORIES ARE WRONG: {report(found)}"
    consumers = load.count("consume")
    return False, (
        f"{wanted} acknowledged records: none lost, none twice, each key in order, none missed by the group of three"
        f" ({consumers} members in all), no offset committed that was not acknowledged, the same on all"
        f" {len(addresses)} nodes."
    )


async def _committed(channel: grpc.aio.Channel) -> list[Committed]:
    stub: Any = group_pb2_grpc.GroupServiceStub(channel)
    answer = await stub.GetCommittedOffsets(group_pb2.GetCommittedOffsetsRequest(group=GROUP), timeout=30)
    return [Committed(GROUP, Place(one.topic, one.partition), one.offset) for one in answer.offsets]


async def _copy(node: int, address: str) -> list[Any]:
    """All of the topic as one node serves it: its own replica, since all are in sync."""
    name = f"copy of node {node}"
    events: list[Any] = []
    async with grpc.aio.insecure_channel(f"{address}:7070") as channel:
        cluster: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
        seen = await cluster.GetMetadata(cluster_pb2.GetMetadataRequest(), timeout=30)
        partitions = next(len(topic.partitions) for topic in seen.topics if topic.name == TOPIC)
        selector = subscriber_pb2.TopicSelector(topic=TOPIC)
        for partition in range(partitions):
            selector.positions.add(topic=TOPIC, partition=partition, offset=0)
            events.append(Positioned(name, Place(TOPIC, partition), 0))
        selector.stop_at.edge = subscriber_pb2.LOG_EDGE_LATEST
        stub: Any = subscriber_pb2_grpc.SubscriberServiceStub(channel)
        call = stub.Subscribe()
        start = subscriber_pb2.SubscribeStart(topics=[selector])
        await call.write(subscriber_pb2.SubscribeRequest(start=start))
        while (response := await call.read()) is not grpc.aio.EOF:
            for batch in response.batches:
                assert batch.batch.compression == record_pb2.COMPRESSION_UNSPECIFIED
                delivery = batch.delivery
                place = Place(delivery.topic, delivery.partition)
                for index, record in enumerate(batch.batch.records):
                    events.append(Polled(name, place, delivery.base_offset + index, record.value.decode()))
    return [*events, Copy(node, TOPIC, name)]
