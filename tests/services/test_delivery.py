"""What subscribers get: hand-joined bytes as Protobuf would write them, and exactly the records that were asked for."""

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postbus.v1 import error_pb2, record_pb2, subscriber_pb2
from strategies import any_codec, batches_of, parsed, plain, stored

from broker.errors import PostbusError
from broker.services import delivery
from broker.services.delivery import ENVELOPE_BYTES_MAX, DeliveryLimits, Piece
from broker.storage import envelope
from broker.storage.batch import StoredBatch


@dataclass
class FakePartition:
    """What `encode` looks at."""

    topic: str = "orders"
    number: int = 0
    high_watermark: int = 0


def batch_at(base_offset: int, chosen: list[record_pb2.Record], codec: int = 0) -> StoredBatch:
    value, _ = envelope.encode(
        stored(chosen, codec),
        base_offset=base_offset,
        record_count=len(chosen),
        append_time_us=1_700_000_000_123_456,
        leader_epoch=3,
        codec=codec,
    )
    return StoredBatch.of_envelope(value)


def limits(*, codecs: frozenset[int] = frozenset(), room: int = 1 << 20, records: int = 0) -> DeliveryLimits:
    return DeliveryLimits(codecs=codecs, response_bytes_max=room + ENVELOPE_BYTES_MAX, batch_records_max=records)


def records_in(piece: Piece) -> list[record_pb2.Record]:
    """Of a piece, compressed or not."""
    message = record_pb2.RecordBatch.FromString(bytes(piece.batch))
    if not message.compression:
        return list(message.records)
    from broker.services import batches

    return parsed(batches.uncompressed(bytes(piece.batch)))


@settings(max_examples=300)
@given(
    batches_of(),
    any_codec,
    st.booleans(),
    st.integers(0, 1000),
    st.integers(-3, 15),
    st.integers(-3, 15),
    st.integers(140, 600),
    st.integers(0, 5),
)
def test_pieces_cover_exactly_what_was_asked_for(  # noqa: PLR0917 - drawn
    chosen: list[record_pb2.Record],
    codec: int,
    reads_codec: bool,
    base: int,
    first: int,
    end: int,
    room: int,
    records_max: int,
) -> None:
    """For any cut, codec and limit: each wanted record once, in order, none besides, each piece within its limits."""
    batch = batch_at(base, chosen, codec)
    taken = limits(codecs=frozenset({codec} if reads_codec else ()), room=room, records=records_max)
    found = list(delivery.pieces(batch, first_offset=base + first, end_offset=base + end, limits=taken))
    begin, stop = max(first, 0), min(end, len(chosen))
    at = base + begin
    got: list[record_pb2.Record] = []
    for piece in found:
        assert piece.base_offset == at < piece.end_offset
        inside = records_in(piece)
        assert len(inside) == piece.end_offset - piece.base_offset
        assert not records_max or len(inside) <= records_max
        assert len(piece.batch) <= room
        if record_pb2.RecordBatch.FromString(bytes(piece.batch)).compression:
            assert reads_codec
        got += inside
        at = piece.end_offset
    assert got == chosen[begin:stop] if begin < stop else not got


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.binary(max_size=20)), max_size=10),
    st.integers(0, 3),
    any_codec,
    st.integers(-3, 40),
    st.integers(-3, 40),
    st.integers(0, 5),
)
def test_what_compaction_left_keeps_its_offsets(  # noqa: PLR0917 - drawn
    left: list[tuple[int, bytes]], gap_at_the_end: int, codec: int, first: int, end: int, records_max: int
) -> None:
    """Each record that is left, under its own offset; a piece covers the gaps between and after its records."""
    offsets, at = [], -1
    for step, _ in left:
        at += step
        offsets.append(at)
    span = at + 1 + gap_at_the_end
    batch = batch_at(100, [record_pb2.Record(value=value) for _, value in left], codec if left else 0)
    batch = dataclasses.replace(batch, end_offset=100 + span, deltas=envelope.encode_indexes(offsets))
    wanted = {100 + offset: value for offset, (_, value) in zip(offsets, left, strict=True) if first <= offset < end}
    got: dict[int, bytes] = {}
    at = 100 + max(first, 0)
    for piece in delivery.pieces(
        batch, first_offset=100 + first, end_offset=100 + end, limits=limits(room=200, records=records_max)
    ):
        inside = records_in(piece)
        assert len(inside) == piece.record_count and (not records_max or len(inside) <= records_max)
        assert piece.base_offset == at < piece.end_offset
        deltas = piece.offset_deltas or range(len(inside))
        for delta, record in zip(deltas, inside, strict=True):
            assert piece.base_offset + delta < piece.end_offset
            got[piece.base_offset + delta] = record.value
        at = piece.end_offset
    assert got == wanted
    few = delivery.end_after(batch, 100 + max(first, 0), 2)
    between = [offset for offset in offsets if 100 + max(first, 0) <= 100 + offset < few]
    assert len(between) == min(2, sum(offset >= max(first, 0) for offset in offsets))
    assert delivery.has_records(batch, 100 + first, 100 + end) == bool(wanted)


@given(batches_of(), any_codec)
def test_a_whole_batch_goes_out_verbatim(chosen: list[record_pb2.Record], codec: int) -> None:
    """The very bytes that were stored, not copied, if the subscriber can read it and it fits."""
    batch = batch_at(5, chosen, codec)
    (piece,) = delivery.pieces(
        batch, first_offset=0, end_offset=100, limits=limits(codecs=frozenset({codec}), records=len(chosen))
    )
    assert isinstance(piece.batch, memoryview) and piece.batch.obj is batch.envelope and piece.batch == batch.batch


def test_a_record_that_fits_no_response_is_named() -> None:
    """Offset and size; those before it came."""
    batch = batch_at(10, [record_pb2.Record(value=b"small"), record_pb2.Record(value=bytes(500))])
    found = delivery.pieces(batch, first_offset=10, end_offset=12, limits=limits(room=200))
    with pytest.raises(PostbusError, match="offset 11 has 50") as raised:
        list(found)
    assert raised.value.reason == error_pb2.ERROR_REASON_TOO_LARGE


def test_records_before_one_that_fits_nowhere_are_delivered() -> None:
    """The subscriber gets as far as it can before it is told."""
    batch = batch_at(10, [record_pb2.Record(value=b"small"), record_pb2.Record(value=bytes(500))])
    found = delivery.pieces(batch, first_offset=10, end_offset=12, limits=limits(room=200))
    first = next(found)
    assert (first.base_offset, first.end_offset) == (10, 11)
    with pytest.raises(PostbusError):
        next(found)


@given(
    batches_of(most=3),
    st.text(alphabet="abc.", min_size=1, max_size=249),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
)
def test_hand_joined_bytes_are_protobufs_own(  # noqa: PLR0917 - drawn
    chosen: list[record_pb2.Record], topic: str, number: int, base: int, fence: int, high_watermark: int
) -> None:
    """Byte for byte what the public message gives, in both responses; the length is right; the envelope is bounded."""
    partition = FakePartition(topic, number, high_watermark)
    batch = batch_at(base, chosen)
    piece = Piece(base, base + len(chosen), batch.batch, len(chosen))
    parts, length = delivery.encode(piece, partition=partition, stored=batch, fence=fence)  # type: ignore[arg-type]
    joined = b"".join(parts)
    expected = subscriber_pb2.DeliveredBatch(leader_epoch=3, high_watermark=high_watermark)
    expected.delivery.topic = topic
    expected.delivery.partition = number
    expected.delivery.base_offset = base
    expected.delivery.end_offset = base + len(chosen)
    expected.delivery.fence = fence
    expected.batch.ParseFromString(plain(chosen))
    expected.append_time.FromMicroseconds(1_700_000_000_123_456)
    assert len(joined) == length <= len(piece.batch) + ENVELOPE_BYTES_MAX
    for response in (subscriber_pb2.SubscribeResponse, subscriber_pb2.FetchResponse):
        assert response.FromString(joined * 2) == response(batches=[expected, expected])
        assert len(joined) == response(batches=[expected]).ByteSize()


@given(st.integers(0, 2**64 - 1))
def test_varint_is_protobufs(value: int) -> None:
    """Of any size."""
    assert record_pb2.RecordBatch.FromString(b"\x20" + delivery.varint(value & 0xFFFFFFFF)).record_count == (
        value & 0xFFFFFFFF
    )
    credit = subscriber_pb2.Credit.FromString(b"\x08" + delivery.varint(value))
    assert credit.records == value
