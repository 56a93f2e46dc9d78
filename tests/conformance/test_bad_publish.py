"""What a publisher may get wrong, in both ways to publish: the status, the details, and nothing appended."""

import asyncio
import zlib
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from postbus.v1 import publisher_pb2, record_pb2

Record, RecordBatch, Header = record_pb2.Record, record_pb2.RecordBatch, record_pb2.Header
GOOD = RecordBatch(records=[Record(value=b"v")])
LIMIT = 1024 * 1024
BATCH_LIMIT = 3 * LIMIT


def varint_field(number: int, value: int) -> bytes:
    return bytes([number << 3, value])


def text_field(number: int, data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def headed(name: str) -> RecordBatch:
    return RecordBatch(records=[Record(value=b"v", headers=[Header(name=name)])])


# Fields of a PublishRequest to a topic T of three partitions; reason; field.
TABLE: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "no topic": ({"topic": ""}, "INVALID_FIELD", "topic"),
    "unknown topic": ({"topic": "nowhere"}, "TOPIC_NOT_FOUND", None),
    "topic too long": ({"topic": "a" * 250}, "INVALID_FIELD", "topic"),
    "topic with a slash": ({"topic": "a/b"}, "INVALID_FIELD", "topic"),
    "topic of a dot": ({"topic": "."}, "INVALID_FIELD", "topic"),
    "topic of two dots": ({"topic": ".."}, "INVALID_FIELD", "topic"),
    "topic with a control character": ({"topic": "a\nb"}, "INVALID_FIELD", "topic"),
    "topic with a NUL": ({"topic": "a\0"}, "INVALID_FIELD", "topic"),
    "topic that is not ASCII": ({"topic": "größe"}, "INVALID_FIELD", "topic"),
    "topic of emoji": ({"topic": "🚌" * 240}, "INVALID_FIELD", "topic"),
    "the broker's own topic": ({"topic": "__groups"}, "TOPIC_NOT_FOUND", None),
    "partition too high": ({"partition": 3}, "PARTITION_NOT_FOUND", None),
    "partition negative": ({"partition": -1}, "INVALID_FIELD", "partition"),
    "partition huge": ({"partition": 2**31 - 1}, "PARTITION_NOT_FOUND", None),
    "no batch": ({"batch": None}, "INVALID_FIELD", "batch"),
    "empty batch": ({"batch": RecordBatch()}, "INVALID_FIELD", "batch"),
    "wrong record_count": (
        {"batch": RecordBatch(records=[Record()], record_count=2)},
        "INVALID_FIELD",
        "batch.record_count",
    ),
    "uncompressed_bytes without codec": (
        {"batch": RecordBatch(records=[Record()], uncompressed_bytes=2)},
        "INVALID_FIELD",
        "batch.uncompressed_bytes",
    ),
    "oversized record": (
        {"batch": RecordBatch(records=[Record(value=b"v"), Record(value=bytes(LIMIT))])},
        "TOO_LARGE",
        "batch.records[1]",
    ),
    "oversized key": ({"batch": RecordBatch(records=[Record(key=bytes(LIMIT))])}, "TOO_LARGE", "batch.records[0]"),
    "oversized batch": ({"batch": RecordBatch(records=[Record(value=bytes(LIMIT - 9))] * 4)}, "TOO_LARGE", "batch"),
    "a batch of one byte too many": (
        {"batch": RecordBatch(records=[Record(value=bytes(LIMIT - 64))] * 2 + [Record(value=bytes(LIMIT + 94))])},
        "TOO_LARGE",
        "batch*",
    ),
    "too many records": ({"batch": RecordBatch(records=[Record()] * 100_001)}, "TOO_LARGE", "batch.records"),
    "a million empty records": ({"batch": RecordBatch(records=[Record()] * 1_000_000)}, "TOO_LARGE", "batch.records"),
    "reserved header": ({"batch": headed("postbus-x")}, "INVALID_FIELD", "batch.records[0].headers"),
    "reserved header prefix alone": ({"batch": headed("postbus-")}, "INVALID_FIELD", "batch.records[0].headers"),
    "request id too long": ({"request_id": "x" * 65}, "TOO_LARGE", "request_id"),
    "request id too long in bytes": ({"request_id": "ü" * 33}, "TOO_LARGE", "request_id"),
    "acks unknown": ({"acks": 4}, "UNKNOWN_FIELD", "acks = 4"),
    "acks negative": ({"acks": -1}, "UNKNOWN_FIELD", "acks = -1"),
    "partition and partition_key": ({"partition": 0, "partition_key": b"k"}, "INVALID_FIELD", "partition_key"),
    "both forms of idempotence": (
        {"partition": 0, "request_id": "r", "producer": publisher_pb2.ProducerSequence(id=1)},
        "INVALID_FIELD",
        "producer",
    ),
    "producer without partition": (
        {"producer": publisher_pb2.ProducerSequence(id=1)},
        "INVALID_FIELD",
        "partition",
    ),
    "producer without id": (
        {"partition": 0, "producer": publisher_pb2.ProducerSequence()},
        "INVALID_FIELD",
        "producer.id",
    ),
    "producer id negative": (
        {"partition": 0, "producer": publisher_pb2.ProducerSequence(id=-1)},
        "INVALID_FIELD",
        "producer.id",
    ),
    "producer epoch negative": (
        {"partition": 0, "producer": publisher_pb2.ProducerSequence(id=1, epoch=-1)},
        "INVALID_FIELD",
        "producer.epoch",
    ),
    "producer sequence negative": (
        {"partition": 0, "producer": publisher_pb2.ProducerSequence(id=1, sequence=-1)},
        "INVALID_FIELD",
        "producer.sequence",
    ),
    "unknown producer in the middle": (
        {"partition": 0, "producer": publisher_pb2.ProducerSequence(id=1, sequence=7)},
        "PRODUCER_UNKNOWN",
        None,
    ),
    "a producer id that was never handed out": (
        {"partition": 0, "producer": publisher_pb2.ProducerSequence(id=2**62)},
        "INVALID_FIELD",
        "producer.id",
    ),
    "precondition without partition": (
        {"precondition": publisher_pb2.Precondition(end_offset=0)},
        "INVALID_FIELD",
        "partition",
    ),
    "precondition negative": (
        {"partition": 0, "precondition": publisher_pb2.Precondition(end_offset=-1)},
        "INVALID_FIELD",
        "precondition.end_offset",
    ),
    "precondition that says nothing": (
        {"partition": 0, "precondition": publisher_pb2.Precondition()},
        "INVALID_FIELD",
        "precondition*",
    ),
    "precondition not met": (
        {"partition": 0, "precondition": publisher_pb2.Precondition(end_offset=2**63 - 1)},
        "PRECONDITION_NOT_MET",
        None,
    ),
}


@pytest.mark.parametrize(("fields", "reason", "named"), TABLE.values(), ids=TABLE.keys())
async def test_a_bad_publish_is_refused_and_appends_nothing(
    bus: Any, tools: Any, fields: dict[str, Any], reason: str, named: str | None
) -> None:
    """Unary and on a stream, with the same facts; the stream goes on."""
    topic = await bus.topic(3)
    await bus.call("PublisherService/InitProducer")
    request = publisher_pb2.PublishRequest(**{"topic": topic, "batch": GOOD, **fields})
    (await bus.refused("PublisherService/Publish", request)).expect(reason, named)
    stream = bus.open("PublisherService/PublishStream")
    await stream.send(correlation_id=7, publish=request)
    (ack,) = (await stream.read()).acks
    assert ack.correlation_id == 7 and not ack.HasField("result") and not ack.HasField("partial")
    tools.refusal_in(ack.failure).expect(reason, named)
    # A final refusal blocks nothing.
    await stream.send(correlation_id=8, publish=publisher_pb2.PublishRequest(topic=topic, batch=GOOD, partition=0))
    assert (await stream.read()).acks[0].result.ranges[0].base_offset == 0
    await stream.end()
    ends = await bus.call("TopicService/ListOffsets", topic=topic)
    assert sum(found.high_watermark for found in ends.partitions) == 1


_PUBLISH = publisher_pb2.PublishRequest(topic="T", partition=0, acks=1, request_id="r").SerializeToString()
_BATCH = b"\x1a" + bytes([GOOD.ByteSize()]) + GOOD.SerializeToString()
REPEATED = {
    "batch twice": _PUBLISH + _BATCH + _BATCH,
    "batch in halves": _PUBLISH + _BATCH + b"\x1a\x02\x20\x01",
    "batch and an empty one": _PUBLISH + _BATCH + b"\x1a\x00",
    "topic twice": _PUBLISH + _BATCH + text_field(1, b"T"),
    "partition twice": _PUBLISH + _BATCH + varint_field(2, 0),
    "acks twice": _PUBLISH + _BATCH + varint_field(4, 1),
    "request_id twice": _PUBLISH + _BATCH + text_field(5, b"r"),
    "producer twice": publisher_pb2.PublishRequest(topic="T", partition=0).SerializeToString()
    + _BATCH
    + text_field(6, varint_field(1, 1))
    + text_field(6, varint_field(2, 1)),
}


@pytest.mark.parametrize("data", REPEATED.values(), ids=REPEATED.keys())
async def test_a_field_that_occurs_twice_is_refused(bus: Any, tools: Any, data: bytes) -> None:
    """An embedded batch would be merged, bytes take the last: two readers of one request may not differ."""
    topic = await bus.topic()
    data = data.replace(b"\x0a\x01T", text_field(1, topic.encode()))
    (await bus.refused("PublisherService/Publish", data)).expect("INVALID_FIELD", "field *")
    stream = bus.open("PublisherService/PublishStream")
    await stream.send(bytes([0x12, len(data)]) + data)
    (await stream.refusal()).expect("INVALID_FIELD", "publish.field *")
    stream = bus.open("PublisherService/PublishStream")
    good = publisher_pb2.PublishRequest(topic=topic, batch=GOOD).SerializeToString()
    await stream.send((bytes([0x12, len(good)]) + good) * 2)
    (await stream.refusal()).expect("INVALID_FIELD", "field 2")


async def test_records_that_do_not_parse_are_refused(bus: Any) -> None:
    """Nothing is stored that a subscriber could not read."""
    topic = await bus.topic()
    bad_header = b"\x0a\x06\x1a\x04\x0a\x02\xc3\x28"
    for batch in (b"\x0a\x05abc", b"\x0a\x01\xff", bad_header, b"\xff" * 20, b"\x0a\x02\x0a\x05"):
        data = text_field(1, topic.encode()) + text_field(3, batch)
        (await bus.refused("PublisherService/Publish", data)).expect("INVALID_FIELD", "batch")
    # Records of another wire type are not records.
    (await bus.refused("PublisherService/Publish", text_field(1, topic.encode()) + text_field(3, b"\x08\x01"))).expect(
        "INVALID_FIELD", "batch.records"
    )


async def test_a_reserved_name_in_a_value_is_only_a_value(bus: Any) -> None:
    """The prefix is searched for in the bytes, and looked at closely only on a hit."""
    topic = await bus.topic()
    batch = RecordBatch(records=[Record(key=b"postbus-", value=b"postbus-x", headers=[Header(name="x-postbus-y")])])
    await bus.call("PublisherService/Publish", topic=topic, batch=batch)


async def test_the_limits_themselves_are_allowed(bus: Any) -> None:
    """A record and a batch of exactly as much as is allowed, 100,000 records, names of 249, ids of 64 bytes."""
    name = "n" * 249
    await bus.call("TopicService/CreateTopic", name=name, partition_count=1)
    record = Record(value=bytes(LIMIT - 4))
    assert record.ByteSize() == LIMIT
    await bus.call("PublisherService/Publish", topic=name, batch=RecordBatch(records=[record]), request_id="x" * 64)
    room = BATCH_LIMIT - 2 * (LIMIT + 4)
    batch = RecordBatch(records=[record, record, Record(value=bytes(room - 8))])
    assert batch.ByteSize() == BATCH_LIMIT
    await bus.call("PublisherService/Publish", topic=name, batch=batch)
    await bus.call("PublisherService/Publish", topic=name, batch=RecordBatch(records=[Record()] * 100_000))
    await bus.call("TopicService/DeleteTopic", name=name)


async def test_a_topic_may_allow_less(bus: Any) -> None:
    """max_record_bytes and max_batch_bytes of the topic hold."""
    topic = await bus.topic(config={"max_record_bytes": 100, "max_batch_bytes": 200})
    for sizes, named in (([101], "batch.records[0]"), ([90, 90, 90], "batch")):
        batch = RecordBatch(records=[Record(value=bytes(size)) for size in sizes])
        refusal = await bus.refused("PublisherService/Publish", topic=topic, batch=batch)
        refusal.expect("TOO_LARGE", named)
        assert refusal.metadata["limit"] in {"100", "200"}


def sequenced(topic: str, producer_id: int, epoch: int, sequence: int) -> publisher_pb2.PublishRequest:
    producer = publisher_pb2.ProducerSequence(id=producer_id, epoch=epoch, sequence=sequence)
    return publisher_pb2.PublishRequest(topic=topic, partition=0, batch=GOOD, producer=producer)


async def test_producer_state_that_is_wrong_stale_or_reused_is_refused(bus: Any) -> None:
    """Gap, duplicate, duplicate too old to tell where, older epoch, newer epoch that begins in the middle."""
    topic = await bus.topic()
    identity = await bus.call("PublisherService/InitProducer")

    def publish(epoch: int, sequence: int) -> publisher_pb2.PublishRequest:
        return sequenced(topic, identity.id, epoch, sequence)

    rpc = "PublisherService/Publish"
    (await bus.refused(rpc, publish(0, 1))).expect("PRODUCER_UNKNOWN")
    for sequence in range(8):
        answer = await bus.call(rpc, publish(0, sequence))
        assert (answer.ranges[0].base_offset, answer.ranges[0].duplicate) == (sequence, False)
    again = await bus.call(rpc, publish(0, 7))
    assert (again.ranges[0].base_offset, again.ranges[0].duplicate) == (7, True)
    gap = (await bus.refused(rpc, publish(0, 9))).expect("SEQUENCE_GAP")
    assert gap.metadata["expected_sequence"] == "8"
    (await bus.refused(rpc, publish(0, 0))).expect("DUPLICATE_SEQUENCE")
    assert (await bus.refused(rpc, publish(1, 3))).expect("SEQUENCE_GAP").metadata["expected_sequence"] == "0"
    newer = await bus.call("PublisherService/InitProducer", id=identity.id, epoch=0)
    assert newer.epoch == 1
    assert (await bus.call(rpc, publish(1, 0))).ranges[0].base_offset == 8
    fenced = (await bus.refused(rpc, publish(0, 8))).expect("PRODUCER_FENCED")
    assert fenced.metadata["producer_epoch"] == "1"
    (await bus.refused(rpc, publish(1, 2**63 - 1))).expect("SEQUENCE_GAP")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"id": -1}, "id"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": 3}, "epoch"),
        ({"id": 2**62}, "id"),
        ({"id": 1, "epoch": 2**31 - 1}, "epoch"),
    ],
)
async def test_a_bad_init_producer_is_refused(bus: Any, fields: dict[str, int], named: str) -> None:
    """Ids that were never handed out, epochs that can't be."""
    await bus.call("PublisherService/InitProducer")
    (await bus.refused("PublisherService/InitProducer", **fields)).expect("INVALID_FIELD", named)


async def test_producer_ids_differ(bus: Any) -> None:
    """Many at once too."""
    given = await asyncio.gather(*(bus.call("PublisherService/InitProducer") for _ in range(50)))
    assert len({identity.id for identity in given}) == 50 and all(identity.epoch == 0 for identity in given)


@pytest.mark.parametrize(
    "timeout",
    [
        Duration(seconds=0),
        Duration(seconds=-1),
        Duration(nanos=-1),
        Duration(seconds=601),
        Duration(seconds=2**63 - 1, nanos=2**31 - 1),
        Duration(seconds=1, nanos=2**31 - 1),
        Duration(seconds=1, nanos=-5),
    ],
    ids=str,
)
async def test_a_stream_timeout_that_can_not_be_is_refused(bus: Any, tools: Any, timeout: Duration) -> None:
    """In-band, as all that is wrong with one request of a stream."""
    topic = await bus.topic()
    stream = bus.open("PublisherService/PublishStream")
    publish = publisher_pb2.PublishRequest(topic=topic, batch=GOOD)
    await stream.send(correlation_id=1, publish=publish, timeout=timeout)
    tools.refusal_in((await stream.read()).acks[0].failure).expect("INVALID_FIELD", "timeout")
    await stream.send(correlation_id=2)
    tools.refusal_in((await stream.read()).acks[0].failure).expect("INVALID_FIELD", "publish")
    await stream.send(correlation_id=3, publish=publish, timeout=Duration(seconds=600))
    assert (await stream.read()).acks[0].HasField("result")
    await stream.end()


async def test_a_publish_stream_that_says_nothing_ends_well(bus: Any) -> None:
    """Half-closed at once."""
    stream = bus.open("PublisherService/PublishStream")
    await stream.end()


async def test_repeated_correlation_ids_are_answered_once_each(bus: Any) -> None:
    """The broker does not look at them."""
    topic = await bus.topic()
    stream = bus.open("PublisherService/PublishStream")
    for _ in range(3):
        await stream.send(correlation_id=5, publish=publisher_pb2.PublishRequest(topic=topic, batch=GOOD))
    answered = 0
    while answered < 3:
        answered += len([ack for ack in (await stream.read()).acks if ack.correlation_id == 5])
    await stream.end()


async def test_a_call_that_expires_or_is_cancelled_harms_nobody(bus: Any) -> None:
    """A deadline of a millisecond and cancellation, over and over: what was appended is whole, and the rest is not."""
    topic = await bus.topic()
    request = publisher_pb2.PublishRequest(topic=topic, batch=RecordBatch(records=[Record(value=b"v")] * 10))
    publish = bus.channel.unary_unary("/postbus.v1.PublisherService/Publish")
    expired = [publish(request.SerializeToString(), timeout=0.001) for _ in range(50)]
    for outcome in await asyncio.gather(*expired, return_exceptions=True):
        if isinstance(outcome, grpc.RpcError):
            assert outcome.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    cancelled = [publish(request.SerializeToString()) for _ in range(50)]
    await asyncio.sleep(0)
    for call in cancelled:
        call.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    stream = bus.open("PublisherService/PublishStream", timeout_s=0.001)
    assert (await stream.refusal()).code == "DEADLINE_EXCEEDED"
    found = await bus.call("TopicService/ListOffsets", topic=topic)
    assert found.partitions[0].high_watermark % 10 == 0


async def test_retries_with_a_request_id_append_once(bus: Any) -> None:
    """Through unary calls and streams, at once and later; what was there already says so."""
    topic = await bus.topic(3)
    batch = RecordBatch(records=[Record(key=b"k%d" % number, value=b"v") for number in range(20)])
    request = publisher_pb2.PublishRequest(topic=topic, batch=batch, request_id="once")
    answers = await asyncio.gather(*(bus.call("PublisherService/Publish", request) for _ in range(5)))
    stream = bus.open("PublisherService/PublishStream")
    await stream.send(correlation_id=1, publish=request)
    answers.append((await stream.read()).acks[0].result)
    places = {
        tuple(sorted((part.partition, part.base_offset, tuple(part.record_indexes)) for part in answer.ranges))
        for answer in answers
    }
    assert len(places) == 1
    assert sum(not part.duplicate for answer in answers for part in answer.ranges) == len(answers[0].ranges)
    ends = await bus.call("TopicService/ListOffsets", topic=topic)
    assert sum(found.high_watermark for found in ends.partitions) == 20


async def test_keyless_records_with_a_request_id_go_where_its_crc_says(bus: Any, tools: Any) -> None:
    """So that a retry through whichever node meets its first try."""
    topic = await bus.topic(6)
    for number in range(20):
        answer = await bus.publish(topic, b"v", request_id=f"request-{number}")
        (part,) = answer.ranges
        assert part.partition == zlib.crc32(b"request-%d" % number) % 6


async def test_keys_go_where_their_crc_says_and_a_split_answer_names_each_record_once(bus: Any) -> None:
    """CRC-32 as zlib computes it, modulo the partitions; the order of a key's records is kept."""
    topic = await bus.topic(6)
    keys = [b"key-%d" % (number % 40) for number in range(200)] + [b""]
    records = [Record(key=key, value=b"%d" % index) for index, key in enumerate(keys)]
    answer = await bus.call("PublisherService/Publish", topic=topic, batch=RecordBatch(records=records))
    named = [index for part in answer.ranges for index in part.record_indexes]
    assert sorted(named) == list(range(201))
    for part in answer.ranges:
        assert part.record_count == len(part.record_indexes)
        assert list(part.record_indexes) == sorted(part.record_indexes)
        assert all(zlib.crc32(keys[index]) % 6 == part.partition for index in part.record_indexes)
    fetched = await bus.call("SubscriberService/Fetch", topic=topic)
    stored = {
        (batch.delivery.partition, batch.delivery.base_offset + place): int(record.value)
        for batch in fetched.batches
        for place, record in enumerate(batch.batch.records)
    }
    assert stored == {
        (part.partition, part.base_offset + place): index
        for part in answer.ranges
        for place, index in enumerate(part.record_indexes)
    }
    whole = await bus.call(
        "PublisherService/Publish", topic=topic, batch=RecordBatch(records=records), partition_key=b"whole"
    )
    (part,) = whole.ranges
    assert part.partition == zlib.crc32(b"whole") % 6 and not part.record_indexes and part.record_count == 201


async def test_acks_none_is_answered_without_offsets(bus: Any) -> None:
    """On a stream too: exactly one answer."""
    topic = await bus.topic()
    assert not (await bus.publish(topic, b"v", acks=publisher_pb2.ACKS_NONE)).ranges
    stream = bus.open("PublisherService/PublishStream")
    publish = publisher_pb2.PublishRequest(topic=topic, batch=GOOD, acks=publisher_pb2.ACKS_NONE)
    await stream.send(correlation_id=9, publish=publish)
    (ack,) = (await stream.read()).acks
    assert ack.correlation_id == 9 and ack.HasField("result") and not ack.result.ranges
    await stream.end()


async def test_a_retry_never_fails_against_its_own_write(bus: Any, tools: Any) -> None:
    """Deduplication comes before the precondition, in both forms of idempotence."""
    topic = await bus.topic()
    empty = publisher_pb2.Precondition(end_offset=0)
    for _ in range(2):
        answer = await bus.publish(topic, b"v", partition=0, precondition=empty, request_id="r")
        assert answer.ranges[0].base_offset == 0
    met = await bus.refused(
        "PublisherService/Publish", topic=topic, partition=0, precondition=empty, batch=tools.batch_of(b"w")
    )
    assert met.expect("PRECONDITION_NOT_MET").metadata["end_offset"] == "1"
    identity = await bus.call("PublisherService/InitProducer")
    for _ in range(2):
        request = sequenced(topic, identity.id, 0, 0)
        request.precondition.end_offset = 1
        assert (await bus.call("PublisherService/Publish", request)).ranges[0].base_offset == 1


async def test_a_full_table_of_request_ids_says_when_to_come_back_and_blocks_what_follows(
    start_bus: Any, tools: Any
) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo; later requests of the stream for the partition: PREDECESSOR_FAILED."""
    bus = await start_bus(request_ids_max="2")
    topic = await bus.topic(2)

    def publish(partition: int, request_id: str = "") -> publisher_pb2.PublishRequest:
        return publisher_pb2.PublishRequest(topic=topic, batch=GOOD, partition=partition, request_id=request_id)

    stream = bus.open("PublisherService/PublishStream")
    requests = [publish(0, "a"), publish(0, "b"), publish(0, "c"), publish(0), publish(1), publish(0, "a")]
    for number, request in enumerate(requests):
        await stream.send(correlation_id=number, publish=request)
    acks = {}
    while len(acks) < len(requests):
        acks.update({ack.correlation_id: ack for ack in (await stream.read()).acks})
    assert [acks[number].HasField("result") for number in range(6)] == [True, True, False, False, True, False]
    tools.refusal_in(acks[2].failure).expect("QUOTA_EXCEEDED")
    tools.refusal_in(acks[3].failure).expect("PREDECESSOR_FAILED")
    tools.refusal_in(acks[5].failure).expect("PREDECESSOR_FAILED")
    await stream.end()
    (await bus.refused("PublisherService/Publish", publish(0, "d"))).expect("QUOTA_EXCEEDED")
    assert (await bus.call("PublisherService/Publish", publish(0, "a"))).ranges[0].duplicate
    assert not (await bus.call("PublisherService/Publish", publish(0))).ranges[0].duplicate


async def test_producers_beyond_the_node_s_bound_are_forgotten_oldest_first(start_bus: Any) -> None:
    """The setting holds; who was forgotten is told to take a new epoch."""
    bus = await start_bus(producers_max="1")
    topic = await bus.topic()
    first, second = [(await bus.call("PublisherService/InitProducer")).id for _ in range(2)]
    for producer_id in (first, second):
        await bus.call("PublisherService/Publish", sequenced(topic, producer_id, 0, 0))
    (await bus.refused("PublisherService/Publish", sequenced(topic, first, 0, 1))).expect("PRODUCER_UNKNOWN")
    assert (await bus.call("PublisherService/Publish", sequenced(topic, second, 0, 1))).ranges
