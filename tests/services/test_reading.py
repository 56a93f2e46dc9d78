"""Fetch and Subscribe against a real node: what fits is delivered, what does not is named, and nothing in between."""

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from live_node import OpenNode
from postbus.v1 import subscriber_pb2, topic_pb2

LEAST = 64 * 1024


def fetch(topic: str, offset: int, **fields: object) -> subscriber_pb2.FetchRequest:
    request = subscriber_pb2.FetchRequest(topic=topic, **fields)  # type: ignore[arg-type]
    request.positions.add(topic=topic, partition=0, offset=offset)
    return request


def values(response: subscriber_pb2.FetchResponse | subscriber_pb2.SubscribeResponse) -> list[bytes]:
    return [record.value for batch in response.batches for record in batch.batch.records]


async def test_fetch_counts_records_from_where_it_starts(open_node: OpenNode) -> None:
    """From the middle of a batch it gives as many as were asked for, not one."""
    bus = await open_node()
    await bus.create("t")
    await bus.publish("t", *(b"%d" % number for number in range(100)))
    response = await bus.subscriber.Fetch(fetch("t", 50, max_records=10))
    assert values(response) == [b"%d" % number for number in range(50, 60)]
    assert response.next[0].offset == 60


async def test_fetch_walks_through_everything(open_node: OpenNode) -> None:
    """Echoing `next` reads each record once, whatever the limits cut."""
    bus = await open_node()
    await bus.create("t", 3)
    sent = set()
    for number in range(30):
        batch = [b"%d-%d " % (number, index) + bytes(3000) for index in range(number % 7 + 1)]
        sent.update(batch)
        await bus.publish("t", *batch, partition=number % 3)
    request = subscriber_pb2.FetchRequest(topic="t", max_bytes=LEAST, max_records=11)
    read: list[bytes] = []
    while got := await bus.subscriber.Fetch(request):
        if not got.batches:
            break
        assert got.ByteSize() <= LEAST
        assert len(values(got)) <= 11
        read += values(got)
        del request.positions[:]
        request.positions.extend(got.next)
    assert len(read) == len(sent) and set(read) == sent


async def test_fetch_answers_before_it_names_a_record_that_does_not_fit(open_node: OpenNode) -> None:
    """First what comes before it, of this partition and of others; then, asked again, the error."""
    bus = await open_node()
    await bus.create("t")
    await bus.publish("t", b"small", bytes(2 * LEAST), b"after")
    request = fetch("t", 0, max_bytes=LEAST)
    response = await bus.subscriber.Fetch(request)
    assert (values(response), response.next[0].offset) == ([b"small"], 1)
    with pytest.raises(grpc.aio.AioRpcError, match="offset 1 has 13") as refused:
        await bus.subscriber.Fetch(fetch("t", 1, max_bytes=LEAST))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert values(await bus.subscriber.Fetch(fetch("t", 2, max_bytes=LEAST))) == [b"after"]


async def test_fetch_fits_with_all_that_it_says_of_partitions(open_node: OpenNode) -> None:
    """A long name and many partitions leave less room for records; the answer is never larger than was asked for."""
    bus = await open_node()
    topic = "t" * 249
    await bus.create(topic, 40)
    for partition in range(3):
        await bus.publish(topic, *(bytes(1000) for _ in range(100)), partition=partition)
    response = await bus.subscriber.Fetch(subscriber_pb2.FetchRequest(topic=topic, max_bytes=LEAST))
    assert LEAST // 3 < response.ByteSize() <= LEAST
    assert len(response.next) == 40


async def test_a_fetch_that_waits_is_told_that_its_topic_went(open_node: OpenNode) -> None:
    """At once, not when the wait is over."""
    bus = await open_node()
    await bus.create("t")
    waiting = bus.subscriber.Fetch(fetch("t", 0, max_wait=Duration(seconds=60)))
    partition = bus.topic("t").partitions[0]
    while not partition._listeners:  # noqa: ASYNC110 - until it waits
        await asyncio.sleep(0)
    await bus.topics.DeleteTopic(topic_pb2.DeleteTopicRequest(name="t"))
    async with asyncio.timeout(30):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await waiting
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_stream_delivers_up_to_a_record_that_does_not_fit(open_node: OpenNode) -> None:
    """Then it ends, with offset and size."""
    bus = await open_node()
    await bus.create("t")
    await bus.publish("t", b"first")
    await bus.publish("t", b"second", bytes(2 * LEAST), b"after")
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")], max_response_bytes=LEAST)
    call = bus.subscriber.Subscribe()
    await call.write(subscriber_pb2.SubscribeRequest(start=start))
    got: list[bytes] = []
    with pytest.raises(grpc.aio.AioRpcError, match="offset 2 has 13"):
        while (response := await call.read()) is not grpc.aio.EOF:
            got += values(response)
    assert got == [b"first", b"second"]


async def test_a_seek_passes_a_record_that_does_not_fit(open_node: OpenNode) -> None:
    """What the error recommends works."""
    bus = await open_node()
    await bus.create("t")
    await bus.publish("t", b"first", bytes(2 * LEAST), b"after")
    selector = subscriber_pb2.TopicSelector(topic="t")
    selector.positions.add(topic="t", partition=0, offset=2)
    selector.stop_at.edge = subscriber_pb2.LOG_EDGE_LATEST
    call = bus.subscriber.Subscribe()
    start = subscriber_pb2.SubscribeStart(topics=[selector], max_response_bytes=LEAST)
    await call.write(subscriber_pb2.SubscribeRequest(start=start))
    got: list[bytes] = []
    while (response := await call.read()) is not grpc.aio.EOF:
        got += values(response)
    assert got == [b"after"]


async def test_a_group_member_gets_each_record_of_cut_batches_once(open_node: OpenNode) -> None:
    """Small batches for slow handlers, acknowledged one by one: committed to the end."""
    bus = await open_node()
    await bus.create("t")
    sent = [b"%d" % number for number in range(95)]
    await bus.publish("t", *sent)
    call = bus.subscriber.Subscribe()
    start = subscriber_pb2.SubscribeStart(
        topics=[subscriber_pb2.TopicSelector(topic="t")], group="g", max_batch_records=10, report_acks=True
    )
    await call.write(subscriber_pb2.SubscribeRequest(start=start))
    got: list[bytes] = []
    committed = 0
    while committed < len(sent):
        response = await call.read()
        for batch in response.batches:
            assert len(batch.batch.records) <= 10
            got += [record.value for record in batch.batch.records]
        if response.batches:
            acks = [batch.delivery for batch in response.batches]
            await call.write(subscriber_pb2.SubscribeRequest(acks=acks))
        for position in response.ack_report.committed:
            committed = position.offset
    assert got == sent
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
