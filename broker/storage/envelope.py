"""How a batch is stored: a header, and the `RecordBatch` bytes verbatim; and its entry in the index.

The header opens with a CRC32C over all that follows, its own base offset included, so that a batch that is damaged,
or turns up in the wrong place, is never served. Followers get the envelope as it is: everything derived (index, state,
deduplication) can be rebuilt from it. The index entry repeats what searches need, because RocksDB reads the whole
blob when an iterator stops at its key.

A batch covers `span` offsets from its base. As appended it has a record for each; log compaction takes records out and
says with offset deltas which are left, so that offsets never change. A batch without any record may stay for what
deduplication needs to know of it.

Never looks into the batch. Layouts carry a version; a reader refuses what it does not know.
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import sub
from typing import Final, NamedTuple

import google_crc32c

VERSION: Final = 2
# version, codec, length of the request id, reserved, record count, span, leader epoch, base offset, append time,
# producer id, producer epoch, producer sequence, lengths of the record indexes and of the offset deltas.
_HEADER: Final = struct.Struct(">BBBxIIiqqqiqII")
_CRC: Final = struct.Struct(">I")
_CRC_AND_HEADER: Final = struct.Struct(">IBBBxIIiqqqiqII")
HEADER_BYTES: Final = _CRC_AND_HEADER.size
REQUEST_ID_BYTES_MAX: Final = 64

# version, flags, record count, span, size of the envelope, its CRC, append time, leader epoch, position.
_ENTRY: Final = struct.Struct(">BBIIIIqiq")
_ENTRY_PRODUCER: Final = struct.Struct(">qiq")
_HAS_PRODUCER: Final = 1
_HAS_REQUEST_ID: Final = 2
_HAS_INDEXES: Final = 4

_INDEXES_DELTAS: Final = b"\x01"
_INDEXES_WIDE: Final = b"\x02"


class EnvelopeDamaged(ValueError):  # noqa: N818 - named for what happened
    """These bytes are not what was stored."""


class Envelope(NamedTuple):
    """A stored batch, taken apart as far as nothing has to be copied. A tuple for speed."""

    crc: int
    base_offset: int
    record_count: int
    span: int
    append_time_us: int
    leader_epoch: int
    codec: int
    producer_id: int
    producer_epoch: int
    producer_sequence: int
    request_id: bytes
    indexes: bytes
    """Record indexes as `encode_indexes` made them."""
    deltas: bytes
    """Offset deltas, likewise."""
    batch_begin: int
    """Where in the envelope the `RecordBatch` begins."""

    @property
    def end_offset(self) -> int:
        """Exclusive."""
        return self.base_offset + self.span

    @property
    def record_indexes(self) -> tuple[int, ...]:
        """Which records of a request these were when they were appended; empty: all."""
        return decode_indexes(self.indexes)

    @property
    def offset_deltas(self) -> tuple[int, ...]:
        """Offsets of the records, counted from the base; empty: record i has delta i."""
        return decode_indexes(self.deltas)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What the index knows of a batch."""

    record_count: int
    span: int
    """Offsets that it covers: how many records it had when it was appended."""
    size_bytes: int
    """Of the envelope."""
    crc: int
    append_time_us: int
    leader_epoch: int
    position: int
    """Differences of it are the sizes of ranges of the log, envelopes included. Compaction may make it negative."""
    producer_id: int = 0
    producer_epoch: int = 0
    producer_sequence: int = 0
    request_id: bytes = b""
    record_indexes: tuple[int, ...] = ()


def encode(
    batch: bytes,
    *,
    base_offset: int,
    record_count: int,
    append_time_us: int,
    span: int = 0,
    leader_epoch: int = 0,
    codec: int = 0,
    producer_id: int = 0,
    producer_epoch: int = 0,
    producer_sequence: int = 0,
    request_id: bytes = b"",
    record_indexes: bytes = b"",
    offset_deltas: bytes = b"",
) -> tuple[bytes, int]:
    """The envelope, and its CRC. record_indexes, offset_deltas: from `encode_indexes`; span 0: the record count."""
    header = _HEADER.pack(
        VERSION,
        codec,
        len(request_id),
        record_count,
        span or record_count,
        leader_epoch,
        base_offset,
        append_time_us,
        producer_id,
        producer_epoch,
        producer_sequence,
        len(record_indexes),
        len(offset_deltas),
    )
    if request_id or record_indexes or offset_deltas:
        header = header + request_id + record_indexes + offset_deltas
    crc = google_crc32c.extend(google_crc32c.value(header), batch)
    return b"".join((_CRC.pack(crc), header, batch)), crc


def decode(value: bytes) -> Envelope:
    """Checks the CRC and takes the envelope apart. Raises EnvelopeDamaged."""
    if len(value) < HEADER_BYTES:
        raise EnvelopeDamaged(f"only {len(value)} bytes")
    (
        crc,
        version,
        codec,
        request_id_bytes,
        record_count,
        span,
        leader_epoch,
        base_offset,
        append_time_us,
        producer_id,
        producer_epoch,
        producer_sequence,
        indexes_bytes,
        deltas_bytes,
    ) = _CRC_AND_HEADER.unpack_from(value)
    if google_crc32c.value(value[_CRC.size :]) != crc:
        raise EnvelopeDamaged("the checksum does not match")
    if version != VERSION:
        raise EnvelopeDamaged(f"version {version} is not known")
    batch_begin = HEADER_BYTES
    request_id = indexes = deltas = b""
    if request_id_bytes or indexes_bytes or deltas_bytes:
        indexes_begin = HEADER_BYTES + request_id_bytes
        deltas_begin = indexes_begin + indexes_bytes
        batch_begin = deltas_begin + deltas_bytes
        if batch_begin > len(value):
            raise EnvelopeDamaged("the header is longer than the value")
        request_id = value[HEADER_BYTES:indexes_begin]
        indexes = value[indexes_begin:deltas_begin]
        deltas = value[deltas_begin:batch_begin]
    return Envelope(
        crc,
        base_offset,
        record_count,
        span,
        append_time_us,
        leader_epoch,
        codec,
        producer_id,
        producer_epoch,
        producer_sequence,
        request_id,
        indexes,
        deltas,
        batch_begin,
    )


def encode_entry(
    *,
    record_count: int,
    size_bytes: int,
    crc: int,
    append_time_us: int,
    leader_epoch: int,
    position: int,
    span: int = 0,
    producer_id: int = 0,
    producer_epoch: int = 0,
    producer_sequence: int = 0,
    request_id: bytes = b"",
    record_indexes: bytes = b"",
) -> bytes:
    """The value of an index entry. span 0: the record count."""
    flags = 0
    rest = b""
    if producer_id:
        flags |= _HAS_PRODUCER
        rest = _ENTRY_PRODUCER.pack(producer_id, producer_epoch, producer_sequence)
    if request_id:
        flags |= _HAS_REQUEST_ID
        rest += bytes((len(request_id),)) + request_id
    if record_indexes:
        flags |= _HAS_INDEXES
        rest += record_indexes
    fixed = _ENTRY.pack(
        VERSION, flags, record_count, span or record_count, size_bytes, crc, append_time_us, leader_epoch, position
    )
    return fixed + rest if flags else fixed


def entry_of(stored: Envelope, *, size_bytes: int, position: int) -> bytes:
    """The index entry of an envelope."""
    return encode_entry(
        record_count=stored.record_count,
        span=stored.span,
        size_bytes=size_bytes,
        crc=stored.crc,
        append_time_us=stored.append_time_us,
        leader_epoch=stored.leader_epoch,
        position=position,
        producer_id=stored.producer_id,
        producer_epoch=stored.producer_epoch,
        producer_sequence=stored.producer_sequence,
        request_id=stored.request_id,
        record_indexes=stored.indexes,
    )


def encode_entry_at(entry: IndexEntry, *, position: int) -> bytes:
    """The same entry at another position."""
    return encode_entry(
        record_count=entry.record_count,
        span=entry.span,
        size_bytes=entry.size_bytes,
        crc=entry.crc,
        append_time_us=entry.append_time_us,
        leader_epoch=entry.leader_epoch,
        position=position,
        producer_id=entry.producer_id,
        producer_epoch=entry.producer_epoch,
        producer_sequence=entry.producer_sequence,
        request_id=entry.request_id,
        record_indexes=encode_indexes(entry.record_indexes),
    )


def decode_entry(value: bytes) -> IndexEntry:
    """Takes an index entry apart. Raises EnvelopeDamaged."""
    try:
        version, flags, record_count, span, size_bytes, crc, append_time_us, leader_epoch, position = (
            _ENTRY.unpack_from(value)
        )
        if version != VERSION:
            raise EnvelopeDamaged(f"version {version} of an index entry is not known")
        if not flags:
            return IndexEntry(record_count, span, size_bytes, crc, append_time_us, leader_epoch, position)
        at = _ENTRY.size
        producer = (0, 0, 0)
        request_id = b""
        record_indexes: tuple[int, ...] = ()
        if flags & _HAS_PRODUCER:
            producer = _ENTRY_PRODUCER.unpack_from(value, at)
            at += _ENTRY_PRODUCER.size
        if flags & _HAS_REQUEST_ID:
            end = at + 1 + value[at]
            request_id, at = value[at + 1 : end], end
        if flags & _HAS_INDEXES:
            record_indexes = decode_indexes(memoryview(value)[at:])
    except (struct.error, IndexError) as error:
        raise EnvelopeDamaged(f"an index entry of {len(value)} bytes is cut short") from error
    return IndexEntry(
        record_count,
        span,
        size_bytes,
        crc,
        append_time_us,
        leader_epoch,
        position,
        *producer,
        request_id,
        record_indexes,
    )


def encode_indexes(indexes: Sequence[int]) -> bytes:
    """Ascending numbers, compactly: mostly one byte each. Empty: all of them."""
    if not indexes:
        return b""
    try:
        return _INDEXES_DELTAS + bytes(map(sub, indexes, chain((0,), indexes)))
    except ValueError:  # a gap of more than 255
        return _INDEXES_WIDE + struct.pack(f">{len(indexes)}I", *indexes)


def decode_indexes(data: bytes | memoryview) -> tuple[int, ...]:
    """Undoes `encode_indexes`. Raises EnvelopeDamaged."""
    if not data:
        return ()
    kind = bytes(data[:1])
    if kind == _INDEXES_DELTAS:
        return tuple(accumulate(data[1:]))
    if kind == _INDEXES_WIDE and len(data) % 4 == 1:
        wide = array("I", bytes(data[1:]))
        if struct.pack("=I", 1) != struct.pack(">I", 1):
            wide.byteswap()
        return tuple(wide)
    raise EnvelopeDamaged("record indexes in an unknown form")
