"""The last look: everything that clients saw, and what each node has on its disk, against the rules of histories."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
from history import Anomaly, Committed, Copy, Event, Floors, History, Place, Polled, Positioned, report
from load import Load
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
CALL_S = 30.0


async def look_at_everything(stage: Stage) -> tuple[bool, str]:
    """Whether something is wrong, and what there is to say."""
    load = stage.load
    await load.stop(*load.running("publish"))
    wanted = sum(line[5] is not None for line in load.published())
    await stage.until(
        lambda: load.seen_by_all() >= wanted, CATCH_UP_S, f"the group and the reader get all {wanted} records"
    )
    await load.stop(*load.running("consume"), *load.running("read"))
    # In a thread: the kubelets must not fall silent for it.
    found = await asyncio.to_thread(_judge, load, stage.watch.addresses())
    if found:
        return True, f"HISTORIES ARE WRONG: {report(found)}"
    consumers = load.count("consume")
    return False, (
        f"{wanted} acknowledged records: none lost, none twice, each key in order, none missed by the group of three"
        f" ({consumers} members in all), no offset committed that was not acknowledged, the same on all"
        f" {len(stage.watch.addresses())} nodes."
    )


def _judge(load: Load, addresses: dict[int, str]) -> list[Anomaly]:
    history = History()
    for event in load.events():
        history.note(event)
    with grpc.insecure_channel(f"{addresses[min(addresses)]}:7070") as channel:
        for committed in _committed(channel):
            history.note(committed)
    for node, address in sorted(addresses.items()):
        with grpc.insecure_channel(f"{address}:7070") as channel:
            for event in _copy(channel, node):
                history.note(event)
    return history.check(groups=[GROUP], floors=Floors(operations=1000, acknowledgements=1000, polls=2000))


def _committed(channel: grpc.Channel) -> list[Committed]:
    stub: Any = group_pb2_grpc.GroupServiceStub(channel)
    answer = stub.GetCommittedOffsets(group_pb2.GetCommittedOffsetsRequest(group=GROUP), timeout=CALL_S)
    return [Committed(GROUP, Place(one.topic, one.partition), one.offset) for one in answer.offsets]


def _copy(channel: grpc.Channel, node: int) -> Iterator[Event]:
    """All of the topic as one node serves it: its own replica, since all are in sync."""
    name = f"copy of node {node}"
    cluster: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
    seen = cluster.GetMetadata(cluster_pb2.GetMetadataRequest(), timeout=CALL_S)
    selector = subscriber_pb2.TopicSelector(topic=TOPIC)
    for partition in range(next(len(topic.partitions) for topic in seen.topics if topic.name == TOPIC)):
        selector.positions.add(topic=TOPIC, partition=partition, offset=0)
        yield Positioned(name, Place(TOPIC, partition), 0)
    selector.stop_at.edge = subscriber_pb2.LOG_EDGE_LATEST
    start = subscriber_pb2.SubscribeRequest(start=subscriber_pb2.SubscribeStart(topics=[selector]))
    done = threading.Event()

    def requests() -> Iterator[subscriber_pb2.SubscribeRequest]:
        yield start
        done.wait(COPY_S)  # a half-close would end what is still to come

    stub: Any = subscriber_pb2_grpc.SubscriberServiceStub(channel)
    try:
        for response in stub.Subscribe(requests(), timeout=COPY_S):
            for batch in response.batches:
                assert batch.batch.compression == record_pb2.COMPRESSION_UNSPECIFIED
                place = Place(batch.delivery.topic, batch.delivery.partition)
                for offset, record in enumerate(batch.batch.records, batch.delivery.base_offset):
                    yield Polled(name, place, offset, record.value.decode())
    finally:
        done.set()
    yield Copy(node, TOPIC, name)
