"""Compressed batches: each codec good, damaged and lying; a bomb costs the broker nothing."""

import resource
from collections.abc import Callable
from typing import Any

import cramjam
import pytest
from postbus.v1 import record_pb2, subscriber_pb2

Record, RecordBatch, RecordSet, Header = (
    record_pb2.Record,
    record_pb2.RecordBatch,
    record_pb2.RecordSet,
    record_pb2.Header,
)
CODECS: dict[int, Callable[[bytes], Any]] = {
    record_pb2.COMPRESSION_GZIP: cramjam.gzip.compress,
    record_pb2.COMPRESSION_ZSTD: cramjam.zstd.compress,
    record_pb2.COMPRESSION_LZ4: cramjam.lz4.compress,
    record_pb2.COMPRESSION_SNAPPY: cramjam.snappy.compress_raw,
}
NAMES = {codec: record_pb2.Compression.Name(codec) for codec in CODECS}
every_codec = pytest.mark.parametrize("codec", CODECS, ids=NAMES.values())
RECORDS = [Record(key=b"k", value=b"value %d" % number) for number in range(100)]
PLAIN = RecordSet(records=RECORDS).SerializeToString()


def compressed(codec: int, plain: bytes = PLAIN, count: int = 100, size: int | None = None) -> RecordBatch:
    return RecordBatch(
        compression=codec,  # type: ignore[arg-type]
        compressed_records=bytes(CODECS[codec](plain)),
        record_count=count,
        uncompressed_bytes=len(plain) if size is None else size,
    )


@every_codec
async def test_a_compressed_batch_goes_verbatim_to_whom_can_read_it_and_plain_to_others(bus: Any, codec: int) -> None:
    """Fetch and Subscribe alike."""
    topic = await bus.topic()
    batch = compressed(codec)
    await bus.call("PublisherService/Publish", topic=topic, batch=batch)
    verbatim = await bus.call("SubscriberService/Fetch", topic=topic, accept_compressions=[codec])
    assert verbatim.batches[0].batch == batch
    for accepted in ([], [other for other in CODECS if other != codec]):
        plain = await bus.call("SubscriberService/Fetch", topic=topic, accept_compressions=accepted)
        assert list(plain.batches[0].batch.records) == RECORDS and not plain.batches[0].batch.compression
    for accepted, wanted in (([codec], batch), ([], RecordBatch(records=RECORDS))):
        stream = await bus.subscribe(topic, accept_compressions=accepted)
        assert (await stream.until(lambda message: message.batches)).batches[0].batch == wanted


@every_codec
async def test_a_compressed_batch_is_cut_to_what_was_asked_for(bus: Any, tools: Any, codec: int) -> None:
    """By start, stop and size: then it goes without compression."""
    topic = await bus.topic()
    await bus.call("PublisherService/Publish", topic=topic, batch=compressed(codec))
    stream = await bus.subscribe(
        topic,
        at=subscriber_pb2.StartPosition(offset=10),
        selector={"stop_at": subscriber_pb2.StopPosition(offset=95)},
        accept_compressions=[codec],
        max_batch_records=40,
    )
    got: list[subscriber_pb2.DeliveredBatch] = []
    while (message := await stream.read()) is not None:
        got += message.batches
    assert tools.values_of(got) == [record.value for record in RECORDS[10:95]]
    assert max(len(batch.batch.records) for batch in got) == 40
    assert [(got[0].delivery.base_offset, got[-1].delivery.end_offset)] == [(10, 95)]


LIES: dict[str, tuple[Callable[[int], RecordBatch], str, str]] = {
    "too few records said": (lambda codec: compressed(codec, count=99), "INVALID_FIELD", "batch.record_count"),
    "too many records said": (lambda codec: compressed(codec, count=101), "INVALID_FIELD", "batch.record_count"),
    "no count": (lambda codec: compressed(codec, count=0), "INVALID_FIELD", "batch.record_count"),
    "a count over the limit": (lambda codec: compressed(codec, count=100_001), "TOO_LARGE", "batch.records"),
    "fewer bytes said": (lambda codec: compressed(codec, size=len(PLAIN) - 1), "INVALID_FIELD", "batch.*"),
    "more bytes said": (lambda codec: compressed(codec, size=len(PLAIN) + 1), "INVALID_FIELD", "batch.*"),
    "no bytes said": (lambda codec: compressed(codec, size=0), "INVALID_FIELD", "batch.uncompressed_bytes"),
    "bytes over the limit": (lambda codec: compressed(codec, size=2**32 - 1), "TOO_LARGE", "batch"),
    "a record over the limit": (
        lambda codec: compressed(codec, RecordSet(records=[Record(value=bytes(2**20))]).SerializeToString(), 1),
        "TOO_LARGE",
        "batch.records[0]",
    ),
    "a reserved header": (
        lambda codec: compressed(
            codec, RecordSet(records=[Record(headers=[Header(name="postbus-x")])]).SerializeToString(), 1
        ),
        "INVALID_FIELD",
        "batch.records[0].headers",
    ),
    "a header name that is not UTF-8": (
        lambda codec: compressed(codec, b"\x0a\x06\x1a\x04\x0a\x02\xc3\x28", 1),
        "INVALID_FIELD",
        "batch.compressed_records",
    ),
    "bytes that are no records": (
        lambda codec: compressed(codec, b"\xff" * 100, 1),
        "INVALID_FIELD",
        "batch.compressed_records",
    ),
    "more records than said and allowed": (
        lambda codec: compressed(codec, b"\x0a\x00" * 1_000_000, 1),
        "TOO_LARGE",
        "batch.records",
    ),
    "records beside it": (
        lambda codec: RecordBatch(records=RECORDS, compression=codec, compressed_records=b"x"),  # type: ignore[arg-type]
        "INVALID_FIELD",
        "batch.records",
    ),
    "nothing compressed": (
        lambda codec: RecordBatch(compression=codec, record_count=1, uncompressed_bytes=1),  # type: ignore[arg-type]
        "INVALID_FIELD",
        "batch.compressed_records",
    ),
    "no codec": (
        lambda codec: RecordBatch(compressed_records=b"x", record_count=1, uncompressed_bytes=1),
        "INVALID_FIELD",
        "batch.compression",
    ),
    "an unknown codec": (
        lambda codec: RecordBatch(
            compression=77,  # type: ignore[arg-type]
            compressed_records=b"x",
            record_count=1,
            uncompressed_bytes=1,
        ),
        "UNKNOWN_FIELD",
        "batch.compression = 77",
    ),
    "another codec": (
        lambda codec: RecordBatch(
            compression=codec % 4 + 1,  # type: ignore[arg-type]
            compressed_records=compressed(codec).compressed_records,
            record_count=100,
            uncompressed_bytes=len(PLAIN),
        ),
        "INVALID_FIELD",
        "batch.compressed_records",
    ),
}


@every_codec
@pytest.mark.parametrize(("make", "reason", "named"), LIES.values(), ids=LIES.keys())
async def test_a_compressed_batch_that_lies_is_refused(
    bus: Any, codec: int, make: Callable[[int], RecordBatch], reason: str, named: str
) -> None:
    """Counts, sizes and contents are checked, not believed."""
    topic = await bus.topic()
    (await bus.refused("PublisherService/Publish", topic=topic, batch=make(codec))).expect(reason, named)


@every_codec
async def test_damaged_compression_is_refused(bus: Any, codec: int) -> None:
    """Cut short, empty frames, something appended, bits flipped: refused, or readable as said; never stored broken."""
    topic = await bus.topic()
    good = compressed(codec)
    data = good.compressed_records
    damaged = [data[:cut] for cut in range(1, len(data), max(1, len(data) // 20))]
    damaged += [data + b"garbage", data[1:], b"\0" * len(data), data[::-1]]
    for index in range(0, len(data), max(1, len(data) // 60)):
        for bit in (1, 128):
            flipped = bytearray(data)
            flipped[index] ^= bit
            damaged.append(bytes(flipped))
    stored = 0
    for bad in damaged:
        batch = RecordBatch()
        batch.CopyFrom(good)
        batch.compressed_records = bad
        try:
            await bus.call("PublisherService/Publish", topic=topic, batch=batch)
            stored += 1
        except Exception:
            (await bus.refused("PublisherService/Publish", topic=topic, batch=batch)).expect("INVALID_FIELD", "batch.*")
    assert stored < len(damaged) / 2
    # What was taken (a flip in a header's spare bits, or in a value) has to come out as it was announced.
    fetched = await bus.call("SubscriberService/Fetch", topic=topic, max_bytes=16 * 2**20)
    assert [len(batch.batch.records) for batch in fetched.batches] == [100] * stored


@every_codec
async def test_a_decompression_bomb_costs_nothing(bus: Any, codec: int) -> None:
    """However much comes out, the broker holds no more than was announced and allowed."""
    topic = await bus.topic()
    size = 16 * 2**20 if codec == record_pb2.COMPRESSION_SNAPPY else 1500 * 2**20
    step = 2**20
    if codec == record_pb2.COMPRESSION_SNAPPY:
        bomb = bytes(cramjam.snappy.compress_raw(bytes(size)))
    else:
        module = {1: cramjam.gzip, 2: cramjam.zstd, 3: cramjam.lz4}[codec]
        # Frames one after the other decompress as one.
        frame = bytes(module.compress(bytes(step * 16)))
        bomb = frame * min(size // (step * 16), 2**20 // len(frame))
    assert len(bomb) < 2 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for said in (1000, 3 * 2**20):
        batch = RecordBatch(compression=codec, compressed_records=bomb, record_count=1, uncompressed_bytes=said)  # type: ignore[arg-type]
        (await bus.refused("PublisherService/Publish", topic=topic, batch=batch)).expect("INVALID_FIELD", "batch.*")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024


async def test_a_million_empty_records_cost_little(bus: Any) -> None:
    """They are counted before they become objects, compressed or not."""
    topic = await bus.topic()
    plain = b"\x0a\x00" * 1_000_000
    batches = [plain, compressed(record_pb2.COMPRESSION_ZSTD, plain, 100_000).SerializeToString()]
    requests = []
    for batch in batches:
        request = record_pb2.RecordBatch.FromString(b"")
        del request
        length = bytearray()
        size = len(batch)
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        length.append(size)
        requests.append(bytes([0x0A, len(topic)]) + topic.encode() + b"\x1a" + bytes(length) + batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for request in requests:
        (await bus.refused("PublisherService/Publish", request)).expect("TOO_LARGE", "batch.records")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


async def test_a_compressed_batch_names_its_partition_or_one_key(bus: Any) -> None:
    """Splitting it by record would mean to decompress, split and compress."""
    topic = await bus.topic(2)
    batch = compressed(record_pb2.COMPRESSION_ZSTD)
    (await bus.refused("PublisherService/Publish", topic=topic, batch=batch)).expect("INVALID_FIELD", "partition")
    for fields in ({"partition": 1}, {"partition_key": b"k"}):
        assert (await bus.call("PublisherService/Publish", topic=topic, batch=batch, **fields)).ranges
