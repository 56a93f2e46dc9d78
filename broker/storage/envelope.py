"""How a batch is stored: a header, and the `RecordBatch` bytes verbatim; and its entry in the index.

The header opens with a CRC32C over all that follows, its own base offset included, so that a batch that is damaged,
or turns up in the wrong place, is never served. Followers get the envelope as it is: everything derived (index, state,
deduplication) can be rebuilt from it. The index entry repeats what searches need, because RocksDB reads the whole
blob when an iterator stops at its key.

Never looks into the batch. Layouts carry a version; a reader refuses what it does not know.
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import sub
from typing import Final

import google_crc32c

VERSION: Final = 1
# version, codec, length of the request id, reserved, record count, leader epoch, base offset, append time,
# producer id, producer epoch, producer sequence, length of the record indexes.
_HEADER: Final = struct.Struct(">BBBxIiqqqiqI")
_CRC: Final = struct.Struct(">I")
HEADER_BYTES: Final = _CRC.size + _HEADER.size
REQUEST_ID_BYTES_MAX: Final = 64

# version, flags, record count, size of the envelope, its CRC, append time, leader epoch, position.
_ENTRY: Final = struct.Struct(">BBIIIqiQ")
_ENTRY_PRODUCER: Final = struct.Struct(">qiq")
_HAS_PRODUCER: Final = 1
_HAS_REQUEST_ID: Final = 2
_HAS_INDEXES: Final = 4

_INDEXES_DELTAS: Final = b"\x01"
_INDEXES_WIDE: Final = b"\x02"


class EnvelopeDamaged(ValueError):  # noqa: N818 - named for what happened
    """These bytes are not what was stored."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A stored batch, decoded."""

    crc: int
    base_offset: int
    record_count: int
    append_time_us: int
    leader_epoch: int
    codec: int
    producer_id: int
    producer_epoch: int
    producer_sequence: int
    request_id: bytes
    record_indexes: tuple[int, ...]
    batch: bytes


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What the index knows of a batch."""

    record_count: int
    size_bytes: int
    """Of the envelope."""
    crc: int
    append_time_us: int
    leader_epoch: int
    position: int
    """Bytes of all envelopes ever appended to the log before this one: sizes of ranges without adding them up."""
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
    leader_epoch: int = 0,
    codec: int = 0,
    producer_id: int = 0,
    producer_epoch: int = 0,
    producer_sequence: int = 0,
    request_id: bytes = b"",
    record_indexes: bytes = b"",
) -> tuple[bytes, int]:
    """The envelope, and its CRC. record_indexes: from `encode_indexes`."""
    header = _HEADER.pack(
        VERSION,
        codec,
        len(request_id),
        record_count,
        leader_epoch,
        base_offset,
        append_time_us,
        producer_id,
        producer_epoch,
        producer_sequence,
        len(record_indexes),
    )
    if request_id or record_indexes:
        header = header + request_id + record_indexes
    crc = google_crc32c.extend(google_crc32c.value(header), batch)
    return b"".join((_CRC.pack(crc), header, batch)), crc


def decode(value: bytes) -> Envelope:
    """Checks the CRC and takes the envelope apart. Raises EnvelopeDamaged."""
    if len(value) < HEADER_BYTES:
        raise EnvelopeDamaged(f"only {len(value)} bytes")
    (crc,) = _CRC.unpack_from(value)
    view = memoryview(value)
    if google_crc32c.value(value[_CRC.size :]) != crc:
        raise EnvelopeDamaged("the checksum does not match")
    (
        version,
        codec,
        request_id_bytes,
        record_count,
        leader_epoch,
        base_offset,
        append_time_us,
        producer_id,
        producer_epoch,
        producer_sequence,
        indexes_bytes,
    ) = _HEADER.unpack_from(value, _CRC.size)
    if version != VERSION:
        raise EnvelopeDamaged(f"version {version} is not known")
    indexes_begin = HEADER_BYTES + request_id_bytes
    batch_begin = indexes_begin + indexes_bytes
    if batch_begin > len(value):
        raise EnvelopeDamaged("the header is longer than the value")
    return Envelope(
        crc=crc,
        base_offset=base_offset,
        record_count=record_count,
        append_time_us=append_time_us,
        leader_epoch=leader_epoch,
        codec=codec,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        producer_sequence=producer_sequence,
        request_id=value[HEADER_BYTES:indexes_begin],
        record_indexes=decode_indexes(view[indexes_begin:batch_begin]),
        batch=value[batch_begin:],
    )


def encode_entry(
    *,
    record_count: int,
    size_bytes: int,
    crc: int,
    append_time_us: int,
    leader_epoch: int,
    position: int,
    producer_id: int = 0,
    producer_epoch: int = 0,
    producer_sequence: int = 0,
    request_id: bytes = b"",
    record_indexes: bytes = b"",
) -> bytes:
    """The value of an index entry."""
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
    fixed = _ENTRY.pack(VERSION, flags, record_count, size_bytes, crc, append_time_us, leader_epoch, position)
    return fixed + rest if flags else fixed


def decode_entry(value: bytes) -> IndexEntry:
    """Takes an index entry apart. Raises EnvelopeDamaged."""
    try:
        version, flags, record_count, size_bytes, crc, append_time_us, leader_epoch, position = _ENTRY.unpack_from(
            value
        )
        if version != VERSION:
            raise EnvelopeDamaged(f"version {version} of an index entry is not known")
        if not flags:
            return IndexEntry(record_count, size_bytes, crc, append_time_us, leader_epoch, position)
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
        record_count, size_bytes, crc, append_time_us, leader_epoch, position, *producer, request_id, record_indexes
    )


def encode_indexes(indexes: Sequence[int]) -> bytes:
    """Which records of a request a part holds, compactly: mostly one byte a record. Empty: all of them."""
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
