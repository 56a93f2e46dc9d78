"""From a checked request to its place in the log: a retry adds only what is missing, whatever else has happened."""

import asyncio
import gc
import weakref
import zlib
from typing import Any

import grpc
import pytest
from live_node import LiveNode, OpenNode
from postbus.v1 import error_pb2, publisher_pb2, record_pb2, subscriber_pb2, topic_pb2

from broker.services import batches
from broker.services.forwarding import Work
from broker.storage.batch import NewBatch
from broker.storage.errors import StoreFailed


def request(topic: str, *keys: bytes, request_id: str = "", **fields: Any) -> publisher_pb2.PublishRequest:
    """One record a key, its value the key and its number."""
    published = publisher_pb2.PublishRequest(topic=topic, request_id=request_id, **fields)
    for number, key in enumerate(keys):
        published.batch.records.add(key=key, value=key + b" %d" % number)
    return published


async def values(bus: LiveNode, topic: str) -> dict[int, list[bytes]]:
    """Everything, by partition."""
    found: dict[int, list[bytes]] = {}
    for batch in (await bus.subscriber.Fetch(subscriber_pb2.FetchRequest(topic=topic))).batches:
        found.setdefault(batch.delivery.partition, []).extend(record.value for record in batch.batch.records)
    return found


def ranges(response: publisher_pb2.PublishResponse) -> list[tuple[int, int, list[int], bool]]:
    return [
        (part.partition, part.base_offset, list(part.record_indexes), part.duplicate)
        for part in sorted(response.ranges, key=lambda part: (part.partition, part.base_offset))
    ]


KEYS = [b"key %d" % number for number in range(3, 9)]
COUNT = 3
BY_PARTITION = {
    number: [index for index, key in enumerate(KEYS) if zlib.crc32(key) % COUNT == number] for number in range(COUNT)
}


async def test_a_retry_adds_the_parts_that_a_crash_left_out(open_node: OpenNode) -> None:
    """Only those; the answer names every record once, and says which were there."""
    assert all(BY_PARTITION.values()), "each partition has a part"
    bus = await open_node()
    await bus.create("t", COUNT)
    published = request("t", *KEYS, request_id="r")
    for partition in bus.topic("t").partitions:
        await partition.local.load_request_ids()
    part = next(
        part
        for part in batches.split_by_key(
            published.batch.SerializeToString(), partition_count=COUNT, keyless_partition=0
        )
        if part.partition == 1
    )
    bus.topic("t").partitions[1].append(
        NewBatch(batch=part.batch, record_count=part.record_count, request_id=b"r", record_indexes=part.record_indexes)
    )
    first = await bus.publisher.Publish(published)
    assert ranges(first) == [(number, 0, BY_PARTITION[number], number == 1) for number in range(COUNT)]
    again = await bus.publisher.Publish(published)
    assert ranges(again) == [(number, 0, BY_PARTITION[number], True) for number in range(COUNT)]
    assert await values(bus, "t") == {
        number: [KEYS[index] + b" %d" % index for index in chosen] for number, chosen in BY_PARTITION.items()
    }


async def test_a_retry_after_partitions_were_added_stays_where_it_was(open_node: OpenNode) -> None:
    """Keys map elsewhere by then: the first try counts, and nothing is appended again."""
    bus = await open_node()
    await bus.create("t", COUNT)
    published = request("t", *KEYS, request_id="r")
    first = ranges(await bus.publisher.Publish(published))
    await bus.topics.AddPartitions(topic_pb2.AddPartitionsRequest(name="t", partition_count=7))
    again = ranges(await bus.publisher.Publish(published))
    assert [(*place, True) for *place, _ in first] == again
    assert sum(map(len, (await values(bus, "t")).values())) == len(KEYS)


async def test_request_ids_survive_a_restart(open_node: OpenNode) -> None:
    """Split and whole requests alike; the table is rebuilt from the index before the first publish with an id."""
    bus = await open_node()
    await bus.create("t", COUNT)
    split, whole = request("t", *KEYS, request_id="split"), request("t", b"k", request_id="whole")
    for published in (split, whole):
        await bus.publisher.Publish(published)
    await bus.channel.close()
    await bus.node.stop()
    bus = await open_node()
    assert not any(partition.local.request_ids_loaded for partition in bus.topic("t").partitions)
    answers = await asyncio.gather(*(bus.publisher.Publish(published) for published in (split, whole) * 3))
    assert all(part.duplicate for answer in answers for part in answer.ranges)
    assert sum(map(len, (await values(bus, "t")).values())) == len(KEYS) + 1


async def test_two_tries_at_once_append_once(open_node: OpenNode) -> None:
    """The second waits for the first to be durable; both are answered with the same places."""
    bus = await open_node()
    await bus.create("t", COUNT)
    published = request("t", *KEYS, request_id="r")
    answers = await asyncio.gather(*(bus.publisher.Publish(published) for _ in range(10)))
    places = {tuple((part.partition, part.base_offset) for part in answer.ranges) for answer in answers}
    assert len({tuple(sorted(place)) for place in places}) == 1
    assert sum(all(not part.duplicate for part in answer.ranges) for answer in answers) == 1


async def test_nothing_is_appended_if_any_part_is_refused(open_node: OpenNode) -> None:
    """One partition has no room for another request id: the others get nothing either."""
    bus = await open_node(request_ids_max=1)
    await bus.create("t", COUNT)
    await bus.publisher.Publish(request("t", KEYS[BY_PARTITION[1][0]], request_id="first"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await bus.publisher.Publish(request("t", *KEYS, request_id="second"))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert list(await values(bus, "t")) == [1]


async def test_deduplication_comes_before_the_precondition(open_node: OpenNode) -> None:
    """By request id and by sequence: a retry never fails against its own write; a new request does."""
    bus = await open_node()
    await bus.create("t")
    producer = await bus.publisher.InitProducer(publisher_pb2.InitProducerRequest())
    sequence = publisher_pb2.ProducerSequence(id=producer.id, epoch=producer.epoch, sequence=0)
    for number, published in enumerate(
        (request("t", b"k", request_id="r", partition=0), request("t", b"k", partition=0, producer=sequence))
    ):
        published.precondition.end_offset = number
        for duplicate in (False, True):
            (part,) = (await bus.publisher.Publish(published)).ranges
            assert (part.base_offset, part.duplicate) == (number, duplicate)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await bus.publisher.Publish(
            published.__class__(topic="t", partition=0, batch=published.batch, precondition=published.precondition)
        )
    assert dict(refused.value.trailing_metadata() or ())["postbus-reason"] == "PRECONDITION_NOT_MET"


async def test_keyless_records_stay_together_for_a_while_then_move_on(open_node: OpenNode) -> None:
    """Sticky by bytes, so that batches stay whole; every partition has its turn."""
    bus = await open_node()
    await bus.create("t", COUNT)
    chosen = []
    for _ in range(12):
        published = publisher_pb2.PublishRequest(topic="t")
        published.batch.records.extend([record_pb2.Record(value=bytes(20_000))] * 2)
        (part,) = (await bus.publisher.Publish(published)).ranges
        chosen.append(part.partition)
    assert chosen == [0, 0, 1, 1, 2, 2] * 2


async def stream_acks(
    bus: LiveNode, *published: publisher_pb2.PublishRequest
) -> tuple[list[publisher_pb2.PublishAck], grpc.StatusCode]:
    """The answers of a stream with these requests, half-closed after them, and its status."""
    call = bus.publisher.PublishStream()
    for number, one in enumerate(published, 1):
        await call.write(publisher_pb2.PublishStreamRequest(correlation_id=number, publish=one))
    await call.done_writing()
    acks: list[publisher_pb2.PublishAck] = []
    try:
        async with asyncio.timeout(30):
            while (response := await call.read()) is not grpc.aio.EOF:
                acks += response.acks
    except grpc.aio.AioRpcError:
        pass
    return acks, await call.code()


async def test_final_refusals_on_a_stream_block_nothing(open_node: OpenNode) -> None:
    """Invalid, not found, precondition: what follows for the same partition is appended."""
    bus = await open_node()
    await bus.create("t")
    wrong = request("t", b"k", partition=0)
    wrong.precondition.end_offset = 9
    acks, code = await stream_acks(bus, request("t"), request("nowhere", b"k"), wrong, request("t", b"k", partition=0))
    assert code is grpc.StatusCode.OK
    assert [ack.failure.reason for ack in acks] == [
        error_pb2.ERROR_REASON_INVALID_FIELD,
        error_pb2.ERROR_REASON_TOPIC_NOT_FOUND,
        error_pb2.ERROR_REASON_PRECONDITION_NOT_MET,
        0,
    ]
    assert acks[3].result.ranges[0].base_offset == 0


@pytest.mark.parametrize("error", [StoreFailed("closed"), RuntimeError("fault")])
async def test_a_stream_ends_whatever_the_log_raises(open_node: OpenNode, error: Exception) -> None:
    """Storage's refusals answer the request and block what follows; a fault ends the stream. Neither hangs it."""
    bus = await open_node()
    await bus.create("t", 2)
    log = bus.topic("t").partitions[0].local
    append = log.append

    def fails(*_: Any, **__: Any) -> Any:
        log.append = append  # type: ignore[method-assign]
        raise error

    log.append = fails  # type: ignore[method-assign]
    acks, code = await stream_acks(bus, *(request("t", b"k", partition=number) for number in (1, 0, 0, 1)))
    assert acks[0].HasField("result")
    if isinstance(error, RuntimeError):
        assert (len(acks), code) == (1, grpc.StatusCode.INTERNAL)
        return
    assert code is grpc.StatusCode.OK
    reasons = [ack.failure.reason for ack in acks[1:]]
    assert reasons == [error_pb2.ERROR_REASON_DRAINING, error_pb2.ERROR_REASON_PREDECESSOR_FAILED, 0]


async def test_a_topic_that_goes_while_its_records_wait_answers_them(open_node: OpenNode) -> None:
    """Unary and on a stream: NOT_FOUND, and the stream goes on."""
    bus = await open_node()
    await bus.create("t")
    partition = bus.topic("t").partitions[0]
    partition.local.on_progress = None  # nothing becomes durable as far as the partition hears
    both, when_safe, waiting = asyncio.Event(), partition.when_safe, []

    def counted(*arguments: Any) -> None:
        when_safe(*arguments)
        waiting.append(arguments)
        if len(waiting) == 2:
            both.set()

    partition.when_safe = counted  # type: ignore[method-assign]
    call = bus.publisher.PublishStream()
    await call.write(publisher_pb2.PublishStreamRequest(correlation_id=1, publish=request("t", b"k")))
    unary = bus.publisher.Publish(request("t", b"k"))
    async with asyncio.timeout(30):
        await both.wait()
        await bus.topics.DeleteTopic(topic_pb2.DeleteTopicRequest(name="t"))
        (ack,) = (await call.read()).acks
        assert ack.failure.reason == error_pb2.ERROR_REASON_TOPIC_NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await unary
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


async def test_a_deleted_topic_leaves_nothing_in_memory(open_node: OpenNode) -> None:
    """Its partitions hold tables of producers and request ids: topics that come and go must not add up."""
    bus = await open_node()
    await bus.create("t", 2)
    kept = [weakref.ref(partition) for partition in bus.topic("t").partitions]
    for partition in range(2):
        await bus.publisher.Publish(request("t", b"key", request_id=f"r{partition}", partition=partition))
        await bus.publisher.Publish(request("t", b"key", request_id=f"r{partition}", partition=partition))
    await bus.subscriber.Fetch(subscriber_pb2.FetchRequest(topic="t"))
    await bus.topics.DeleteTopic(topic_pb2.DeleteTopicRequest(name="t"))
    await bus.node._store.barrier()
    gc.collect()
    assert [partition() for partition in kept] == [None, None]


async def test_what_is_answered_is_let_go_at_once(open_node: OpenNode) -> None:
    """Not when the collector comes: until then it would keep each batch, and it would have to look at each."""
    bus = await open_node()
    await bus.create("let-go", 2)
    gc.collect()
    gc.disable()
    try:
        call = bus.publisher.PublishStream()
        for number, publish in enumerate((request("let-go", b"a", b"b", b"c"), request("let-go", b"a", partition=7))):
            await call.write(publisher_pb2.PublishStreamRequest(correlation_id=number, publish=publish))
            await call.read()
        await bus.publisher.Publish(request("let-go", b"a", b"b", b"c"))
        with pytest.raises(grpc.aio.AioRpcError):
            await bus.publisher.Publish(request("let-go", b"a", partition=0, precondition={"end_offset": 7}))
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        works = [held for held in gc.get_objects() if isinstance(held, Work)]
        assert [work for work in works if work.partition.topic == "let-go"] == []
    finally:
        gc.enable()
