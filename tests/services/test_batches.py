"""Batches: validated once, split with each record in exactly one part, cut without losing one."""

import zlib

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st
from postbus.v1 import error_pb2, record_pb2
from strategies import any_codec, batches_of, codecs, compressed, parsed, plain, stored

from broker.errors import PostbusError
from broker.services import batches
from broker.services.batches import BatchLimits, BatchPart

LIMITS = BatchLimits(record_bytes_max=1 << 20, batch_bytes_max=3 << 20, batch_records_max=1000)
INVALID, TOO_LARGE, UNKNOWN = (
    error_pb2.ERROR_REASON_INVALID_FIELD,
    error_pb2.ERROR_REASON_TOO_LARGE,
    error_pb2.ERROR_REASON_UNKNOWN_FIELD,
)


def refusal(batch: bytes, limits: BatchLimits = LIMITS) -> PostbusError:
    with pytest.raises(PostbusError) as raised:
        batches.validate(batch, limits)
    return raised.value


def record(value: bytes, **fields: object) -> record_pb2.Record:
    return record_pb2.Record(value=value, **fields)  # type: ignore[arg-type]


@given(batches_of(), any_codec)
def test_what_is_well_formed_is_counted(chosen: list[record_pb2.Record], codec: int) -> None:
    """Number of records and codec, whatever the records hold."""
    facts = batches.validate(stored(chosen, codec), LIMITS)
    assert (facts.record_count, facts.codec) == (len(chosen), codec)


@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused(batch: bytes) -> None:
    """Nothing but a PostbusError comes out, and it is the client's fault."""
    try:
        facts = batches.validate(batch, LIMITS)
    except PostbusError as error:
        assert error.code.name == "INVALID_ARGUMENT"
    else:
        assert facts.record_count > 0


@given(batches_of(), codecs, st.data())
def test_a_damaged_compressed_batch_is_refused_or_whole(
    chosen: list[record_pb2.Record], codec: int, data: st.DataObject
) -> None:
    """One flipped bit: an error, or a batch whose records can be read in the number that it says."""
    batch = bytearray(compressed(chosen, codec))
    batch[data.draw(st.integers(0, len(batch) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        facts = batches.validate(bytes(batch), LIMITS)
    except PostbusError as error:
        assert error.code.name == "INVALID_ARGUMENT"
    else:
        message = record_pb2.RecordBatch.FromString(bytes(batch))
        readable = batches.uncompressed(bytes(batch)) if message.compression else bytes(batch)
        assert len(parsed(readable)) == facts.record_count


def test_sizes_are_limits_not_less() -> None:
    """A record and a batch of exactly the limit pass, one byte more does not, and the error names the record."""
    small = record(b"x" * 100)
    size = small.ByteSize()
    limits = BatchLimits(record_bytes_max=size, batch_bytes_max=1000, batch_records_max=5)
    assert batches.validate(plain([small]), limits).record_count == 1
    error = refusal(plain([small, record(b"x" * 101)]), limits)
    assert (error.reason, error.field, error.metadata["limit"]) == (TOO_LARGE, "batch.records[1]", str(size))
    exact = BatchLimits(record_bytes_max=1000, batch_bytes_max=len(plain([small])), batch_records_max=5)
    assert batches.validate(plain([small]), exact).record_count == 1
    assert refusal(plain([record(b"x" * 101)]), exact).reason == TOO_LARGE


@pytest.mark.parametrize("codec", [0, *sorted(batches.CODECS)])
def test_the_number_of_records_is_bounded_before_they_become_objects(codec: int) -> None:
    """Exactly the limit passes; one more is refused, compressed or not, whatever the batch says of itself."""
    limits = BatchLimits(record_bytes_max=100, batch_bytes_max=10_000, batch_records_max=50)
    assert batches.validate(stored([record_pb2.Record()] * 50, codec), limits).record_count == 50
    assert refusal(stored([record_pb2.Record()] * 51, codec), limits).reason == TOO_LARGE
    if codec:
        lying = record_pb2.RecordBatch.FromString(stored([record_pb2.Record()] * 51, codec))
        lying.record_count = 50
        assert refusal(lying.SerializeToString(), limits).reason == TOO_LARGE


@pytest.mark.parametrize("codec", sorted(batches.CODECS))
def test_a_bomb_is_refused_by_what_it_says_and_by_what_it_is(codec: int) -> None:
    """A batch that unpacks to more than it says, or says more than is allowed, costs nothing."""
    bomb = record_pb2.RecordBatch.FromString(stored([record(bytes(2_000_000))], codec))
    bomb.uncompressed_bytes = 100
    assert refusal(bomb.SerializeToString()).field == "batch.compressed_records"
    bomb.uncompressed_bytes = LIMITS.batch_bytes_max + 1
    assert refusal(bomb.SerializeToString()).reason == TOO_LARGE
    bomb.uncompressed_bytes = 2_500_000
    assert refusal(bomb.SerializeToString()).reason == INVALID


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda batch: batch.ClearField("compression"), "batch.compression"),
        (lambda batch: batch.ClearField("compressed_records"), "batch.compressed_records"),
        (lambda batch: batch.ClearField("record_count"), "batch.record_count"),
        (lambda batch: batch.ClearField("uncompressed_bytes"), "batch.uncompressed_bytes"),
        (lambda batch: batch.records.add(), "batch.records"),
        (lambda batch: setattr(batch, "record_count", 7), "batch.record_count"),
        (lambda batch: setattr(batch, "compression", 99), "batch.compression = 99"),
    ],
)
def test_each_part_of_a_compressed_batch_is_checked(change: object, field: str) -> None:
    """The error names the part that is wrong."""
    batch = record_pb2.RecordBatch.FromString(compressed([record(b"v")], batches.ZSTD))
    change(batch)  # type: ignore[operator]
    assert refusal(batch.SerializeToString()).field == field


def test_a_plain_batch_is_checked_too() -> None:
    """Empty, wrongly counted, with a size that belongs to compressed ones."""
    assert refusal(b"").field == "batch"
    assert refusal(record_pb2.RecordBatch(record_count=1).SerializeToString()).field == "batch.records"
    counted = record_pb2.RecordBatch(records=[record(b"v")], record_count=2)
    assert refusal(counted.SerializeToString()).field == "batch.record_count"
    counted.record_count = 1
    assert batches.validate(counted.SerializeToString(), LIMITS).record_count == 1
    counted.uncompressed_bytes = 1
    assert refusal(counted.SerializeToString()).field == "batch.uncompressed_bytes"


@pytest.mark.parametrize("codec", [0, batches.ZSTD])
def test_reserved_headers_are_refused_and_mentions_are_not(codec: int) -> None:
    """Names that begin with "postbus-" belong to the broker; values, keys and other names may hold it."""
    harmless = record(b"postbus-value", key=b"postbus-key")
    harmless.headers.add(name="not-postbus-", value=b"postbus-")
    assert batches.validate(stored([harmless], codec), LIMITS).record_count == 1
    taken = record(b"v")
    taken.headers.add(name="postbus-reason", value=b"")
    assert refusal(stored([harmless, taken], codec)).field == "batch.records[1].headers"


def test_a_header_name_that_is_not_utf8_is_refused_in_compressed_batches_too() -> None:
    """It would make the whole batch unreadable in many languages."""
    bad = b"\x0a\x06\x1a\x04\x0a\x02\xff\xfe"  # RecordBatch.records[0].headers[0].name
    assert refusal(bad).field == "batch"
    data = record_pb2.RecordBatch(
        compression=batches.SNAPPY,  # type: ignore[arg-type]
        compressed_records=bytes(cramjam.snappy.compress_raw(bad)),
        record_count=1,
        uncompressed_bytes=len(bad),
    )
    assert refusal(data.SerializeToString()).field == "batch.compressed_records"


# --- splitting


@given(batches_of(), st.integers(1, 7), st.integers(0, 6))
def test_split_parts_hold_each_record_once_in_order(
    chosen: list[record_pb2.Record], partition_count: int, keyless: int
) -> None:
    """Together the parts are the batch; within a part the order is the batch's; the partition is CRC-32 of the key."""
    keyless %= partition_count
    parts = batches.split_by_key(plain(chosen), partition_count=partition_count, keyless_partition=keyless)
    placed: dict[int, record_pb2.Record] = {}
    for part in parts:
        indexes = part.record_indexes or tuple(range(len(chosen)))
        inside = parsed(part.batch)
        assert len(inside) == part.record_count == len(indexes)
        assert list(indexes) == sorted(indexes)
        for index, one in zip(indexes, inside, strict=True):
            assert index not in placed
            placed[index] = one
            expected = zlib.crc32(one.key) % partition_count if one.HasField("key") else keyless
            assert part.partition == expected
    assert [placed[index] for index in range(len(chosen))] == chosen
    assert len({part.partition for part in parts}) == len(parts)


def test_a_batch_for_one_partition_stays_as_it_came() -> None:
    """Verbatim, not encoded again."""
    chosen = [record(b"1", key=b"k"), record(b"2", key=b"k")]
    batch = record_pb2.RecordBatch(records=chosen, record_count=2).SerializeToString()
    (part,) = batches.split_by_key(batch, partition_count=5, keyless_partition=0)
    assert (part.batch, part.record_indexes) == (batch, ())


def test_the_partitioner_is_zlib_crc32() -> None:
    """Known values, so that other languages can be held against them."""
    known = {b"": 0, b"a": 0xE8B7BE43, b"123456789": 0xCBF43926}
    for key, crc in known.items():
        (part,) = batches.split_by_key(plain([record(b"", key=key)]), partition_count=1000, keyless_partition=1)
        assert part.partition == crc % 1000


@given(batches_of(), st.data())
def test_select_keeps_what_is_wanted(chosen: list[record_pb2.Record], data: st.DataObject) -> None:
    """Of a whole batch and of a part alike, by the indexes of the request, in order."""
    indexes = tuple(sorted(data.draw(st.sets(st.integers(0, 99), min_size=len(chosen), max_size=len(chosen)))))
    wanted = data.draw(st.sets(st.sampled_from(indexes), min_size=1))
    part = batches.select(BatchPart(3, plain(chosen), len(chosen), indexes), sorted(wanted))
    assert part.record_indexes == tuple(sorted(wanted))
    assert parsed(part.batch) == [one for index, one in zip(indexes, chosen, strict=True) if index in wanted]
    assert (part.partition, part.record_count) == (3, len(wanted))
    whole = batches.select(BatchPart(3, plain(chosen), len(chosen), ()), range(len(chosen)))
    assert parsed(whole.batch) == chosen


# --- on the way out


@given(batches_of(), any_codec, st.data())
def test_slices_hold_exactly_their_records(chosen: list[record_pb2.Record], codec: int, data: st.DataObject) -> None:
    """Of plain and compressed batches; the result is never compressed."""
    first = data.draw(st.integers(0, len(chosen) - 1))
    end = data.draw(st.integers(first, len(chosen)))
    assert parsed(batches.slice_records(stored(chosen, codec), first=first, end=end)) == chosen[first:end]


@given(batches_of(), any_codec)
def test_uncompressed_holds_all(chosen: list[record_pb2.Record], codec: int) -> None:
    """Every record, in order."""
    assert parsed(batches.uncompressed(stored(chosen, codec))) == chosen
