"""Stored batches as a subscriber gets them: whole ones verbatim, others cut to what was asked for.

Joining the response's bytes by hand around the batch, instead of copying it through two messages, is a third of
the cost of a 1 MB response. This is the one place that does so; tests/services/test_delivery.py compares it with
Protobuf's own encoding.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from broker import errors
from broker.errors import PostbusError
from broker.replication.partition import Partition
from broker.services import batches
from broker.services.publishing import timestamp
from broker.storage.batch import StoredBatch
from broker.stubs import view_pb2

# Delivery, times and lengths around a batch; topic names have 249 bytes at most.
ENVELOPE_BYTES_MAX: Final = 400

# Tag and length of a record; its offset delta where compaction took others out.
RECORD_FRAME_BYTES: Final = 6
DELTA_BYTES_MAX: Final = 5

# Each costs some 10 µs of the loop: with batches of one record, bytes alone would allow a second of them.
BATCHES_PER_RESPONSE_MAX: Final = 2000
# As `encode` makes them.
CHUNKS_PER_BATCH: Final = 4

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """What one subscriber can take."""

    codecs: frozenset[int]
    response_bytes_max: int
    batch_records_max: int  # 0: no limit


@dataclass(slots=True)
class Piece:
    """A batch, or a part of one, that goes out as one DeliveredBatch."""

    base_offset: int
    end_offset: int
    batch: Buffer
    record_count: int
    offset_deltas: Sequence[int] = ()  # empty: record i has base_offset + i


def pieces(stored: StoredBatch, *, first_offset: int, end_offset: int, limits: DeliveryLimits) -> Iterator[Piece]:
    """What of a stored batch lies within [first_offset, end_offset), in pieces that the subscriber can take.

    Raises TOO_LARGE for a record that fits no response, after the pieces before it.
    """
    begin = max(first_offset, stored.base_offset)
    end = min(end_offset, stored.end_offset)
    if begin >= end or not stored.record_count:
        return
    room = limits.response_bytes_max - ENVELOPE_BYTES_MAX
    batch: Buffer = stored.batch
    count = stored.record_count
    deltas = stored.offset_deltas if stored.deltas else ()
    readable = not stored.codec or stored.codec in limits.codecs
    whole = begin == stored.base_offset and end == stored.end_offset
    few = not limits.batch_records_max or count <= limits.batch_records_max
    if whole and readable and few and len(batch) + DELTA_BYTES_MAX * len(deltas) <= room:
        yield Piece(begin, end, batch, count, deltas)
        return
    if not readable or stored.codec:
        batch = batches.uncompressed(bytes(batch))
        if whole and few and len(batch) + DELTA_BYTES_MAX * len(deltas) <= room:
            yield Piece(begin, end, batch, count, deltas)
            return
    yield from _cut(
        bytes(batch),
        offsets=_offsets(stored),
        begin=begin,
        end=end,
        room=room,
        records_max=limits.batch_records_max or count,
    )


def end_after(stored: StoredBatch, first_offset: int, records_max: int) -> int:
    """Where the first `records_max` records from `first_offset` on end, at most at the end of the batch."""
    offsets = _offsets(stored)
    index = bisect_left(offsets, first_offset) + records_max
    return stored.end_offset if index >= len(offsets) else offsets[index]


def has_records(stored: StoredBatch, first_offset: int, end_offset: int) -> bool:
    """Whether there are any within [first_offset, end_offset)."""
    offsets = _offsets(stored)
    return bisect_left(offsets, first_offset) < bisect_left(offsets, end_offset)


def _offsets(stored: StoredBatch) -> Sequence[int]:
    base = stored.base_offset
    if stored.deltas:
        return [base + delta for delta in stored.offset_deltas]
    return range(base, base + stored.record_count)


def _cut(batch: bytes, *, offsets: Sequence[int], begin: int, end: int, room: int, records_max: int) -> Iterator[Piece]:
    """offsets: of the records of the batch, ascending."""
    records = view_pb2.RecordBatchView.FromString(batch).records
    chosen: list[bytes] = []
    chosen_offsets: list[int] = []
    size = 0
    at = begin
    frame = RECORD_FRAME_BYTES + (0 if isinstance(offsets, range) else DELTA_BYTES_MAX)
    for index in range(bisect_left(offsets, begin), bisect_left(offsets, end)):
        record, offset = records[index], offsets[index]
        record_size = len(record) + frame
        if chosen and (size + record_size > room or len(chosen) >= records_max):
            yield _piece(at, offset, chosen, chosen_offsets)
            chosen, chosen_offsets, size, at = [], [], 0, offset
        if record_size > room:
            raise _record_too_large(offset, len(record), room)
        chosen.append(record)
        chosen_offsets.append(offset)
        size += record_size
    if chosen:
        yield _piece(at, end, chosen, chosen_offsets)


def _piece(base_offset: int, end_offset: int, records: list[bytes], offsets: list[int]) -> Piece:
    contiguous = offsets[0] == base_offset and offsets[-1] == base_offset + len(offsets) - 1
    return Piece(
        base_offset,
        end_offset,
        view_pb2.RecordBatchView(records=records).SerializeToString(),
        len(records),
        () if contiguous else tuple(offset - base_offset for offset in offsets),
    )


def encode(piece: Piece, *, partition: Partition, stored: StoredBatch, fence: int) -> tuple[list[Buffer], int]:
    """Field 1 of SubscribeResponse and of FetchResponse: chunks to be joined, and how many bytes they are."""
    head = view_pb2.DeliveredBatchView(
        delivery=view_pb2.DeliveryView(
            topic=partition.topic,
            partition=partition.number,
            base_offset=piece.base_offset,
            end_offset=piece.end_offset,
            fence=fence,
        ),
        append_time=timestamp(stored.append_time_us),
        offset_deltas=piece.offset_deltas,
        leader_epoch=stored.leader_epoch,
        high_watermark=partition.high_watermark,
    ).SerializeToString()
    size = len(piece.batch)
    tag = b"\x12" + varint(size)
    length = len(head) + len(tag) + size
    lead = b"\x0a" + varint(length)
    return [lead, head, tag, piece.batch], len(lead) + length


def varint(value: int) -> bytes:
    """Protobuf's variable-length integer."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _record_too_large(offset: int, size: int, room: int) -> PostbusError:
    return errors.too_large(
        "max_response_bytes",
        f"the record at offset {offset} has {size} bytes and fits no response of yours: raise max_response_bytes"
        " (and your client's message limit), or seek past it",
        limit=room,
    )
