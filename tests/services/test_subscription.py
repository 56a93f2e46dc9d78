"""One Subscribe stream: it reads ahead within a bound, and nothing of it stays when it ends."""

import asyncio
from typing import Any

from live_node import OpenNode
from postbus.v1 import record_pb2, subscriber_pb2

from broker.services.delivery import BATCHES_PER_RESPONSE_MAX
from broker.services.subscribe_start import SubscriberSettings
from broker.storage.batch import NewBatch

PARTITIONS = 8


async def test_no_read_begins_after_the_stream_has_ended(open_node: OpenNode) -> None:
    """Many cold partitions wait for their turn to be read: when the client goes, none of them has it any more."""
    bus = await open_node(tail_bytes_max=0)
    await bus.create("t", PARTITIONS)
    for partition in range(PARTITIONS):
        await bus.publish("t", b"cold", partition=partition)
    reads: list[int] = []
    two_began, go_on = asyncio.Event(), asyncio.Event()
    for partition in bus.topic("t").partitions:
        read = partition.log.read

        async def held(*arguments: Any, number: int = partition.number, read: Any = read, **named: Any) -> Any:
            reads.append(number)
            if len(reads) == 2:
                two_began.set()
            await go_on.wait()
            return await read(*arguments, **named)

        partition.log.read = held  # type: ignore[method-assign]
    call = bus.subscriber.Subscribe()
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")])
    await call.write(subscriber_pb2.SubscribeRequest(start=start))
    async with asyncio.timeout(30):
        await two_began.wait()
        (subscription,) = bus.node._subscriber._subscriptions
        ended = asyncio.Event()
        leave = subscription.leave

        async def left() -> None:
            await leave()
            ended.set()

        subscription.leave = left  # type: ignore[method-assign]
        call.cancel()
        await ended.wait()
    go_on.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(reads) == 2
    assert not any(partition._listeners for partition in bus.topic("t").partitions)


async def test_every_cold_partition_has_its_turn(open_node: OpenNode) -> None:
    """More partitions than reads at once: all are read, each record once."""
    bus = await open_node(tail_bytes_max=0)
    await bus.create("t", PARTITIONS)
    sent = set()
    for number in range(3 * PARTITIONS):
        value = b"%d" % number
        sent.add(value)
        await bus.publish("t", value, partition=number % PARTITIONS)
    selector = subscriber_pb2.TopicSelector(topic="t")
    selector.stop_at.edge = subscriber_pb2.LOG_EDGE_LATEST
    call = bus.subscriber.Subscribe()
    await call.write(subscriber_pb2.SubscribeRequest(start=subscriber_pb2.SubscribeStart(topics=[selector])))
    got: list[bytes] = []
    async for response in call:
        got += [record.value for batch in response.batches for record in batch.batch.records]
    assert len(got) == len(sent) and set(got) == sent


async def test_batches_of_one_record_hold_up_nobody(open_node: OpenNode) -> None:
    """Each costs the loop time whatever its size: an answer holds so many at most, and the next goes on there."""
    bus = await open_node()
    await bus.create("t")
    (partition,) = bus.topic("t").partitions
    count = 2 * BATCHES_PER_RESPONSE_MAX + 10
    for number in range(count):
        batch = record_pb2.RecordBatch(records=[record_pb2.Record(value=b"%d" % number)]).SerializeToString()
        partition.append(NewBatch(batch=batch, record_count=1))
    await partition.local.barrier()
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")])
    streamed: list[bytes] = []
    fetched: list[bytes] = []
    async with asyncio.timeout(30):
        call = bus.subscriber.Subscribe()
        await call.write(subscriber_pb2.SubscribeRequest(start=start))
        while len(streamed) < count:
            response = await call.read()
            assert len(response.batches) <= BATCHES_PER_RESPONSE_MAX
            streamed.extend(batch.batch.records[0].value for batch in response.batches)
        call.cancel()
        request = subscriber_pb2.FetchRequest(topic="t", max_records=count, max_bytes=16 << 20)
        while len(fetched) < count:
            answer = await bus.subscriber.Fetch(request)
            assert 0 < len(answer.batches) <= BATCHES_PER_RESPONSE_MAX
            fetched.extend(batch.batch.records[0].value for batch in answer.batches)
            del request.positions[:]
            request.positions.extend(answer.next)
    assert streamed == fetched == [b"%d" % number for number in range(count)]


async def test_what_is_read_ahead_is_bounded_for_all_partitions_together(open_node: OpenNode) -> None:
    """A client with many partitions far behind does not read: a stream's memory does not grow with their number.

    Partitions that are paused with something read ahead keep nothing from the others.
    """
    bus = await open_node(tail_bytes_max=0)
    ahead_max = SubscriberSettings().partitions_ahead_max
    count = 3 * ahead_max
    await bus.create("t", count)
    partitions = bus.topic("t").partitions
    # More than the client's window and what gRPC buffers, with a few partitions alone.
    batch = record_pb2.RecordBatch(records=[record_pb2.Record(value=bytes(500_000))]).SerializeToString()
    for partition in partitions:
        for _ in range(4):
            partition.append(NewBatch(batch=batch, record_count=1))
        await partition.local.barrier()
    call = bus.subscriber.Subscribe()
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")])
    await call.write(subscriber_pb2.SubscribeRequest(start=start))
    async with asyncio.timeout(60):
        assert (await call.read()).HasField("started")
        (subscription,) = bus.node._subscriber._subscriptions
        # Nothing tells that there is nothing more to do.
        while subscription.stream.writing_since is None or subscription._fills or not subscription._ahead:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert subscription._waiting_fills
        ahead = [cursor for cursor in subscription.cursors.values() if cursor.buffer]
        assert 0 < len(ahead) <= ahead_max
        paused = {cursor.partition.number for cursor in ahead}
        places = [record_pb2.TopicPartition(topic="t", partition=number) for number in paused]
        await call.write(subscriber_pb2.SubscribeRequest(pause=places, command_id=1))
        got: dict[int, list[int]] = {number: [] for number in range(count)}

        async def read_all(numbers: set[int]) -> None:
            while any(len(got[number]) < 4 for number in numbers):
                for batch in (await call.read()).batches:
                    got[batch.delivery.partition].append(batch.delivery.base_offset)

        await read_all(set(got) - paused)
        await call.write(subscriber_pb2.SubscribeRequest(resume=places))
        await read_all(set(got))
        assert set(map(tuple, got.values())) == {(0, 1, 2, 3)}
    call.cancel()
