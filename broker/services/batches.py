"""Record batches at the door: validated once, split only where keys ask for it, sliced and decompressed on the way out.

A batch is stored as the bytes that came. Nothing here runs per record unless a batch has to be split, is larger than
the record limit, or mentions the reserved header prefix: the C parser looks at each record, Python does not.
"""

import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError
from postbus.v1 import record_pb2

from broker import errors
from broker.storage import records as stored_records
from broker.storage.records import RecordsDamaged, WrongSize
from broker.stubs import view_pb2

RESERVED_HEADER_PREFIX: Final = "postbus-"
_RESERVED_BYTES: Final = RESERVED_HEADER_PREFIX.encode()
_SMALLEST_RECORD_BYTES: Final = 2  # tag and length of an empty record

CODECS: Final = stored_records.CODECS
ZSTD: Final = stored_records.ZSTD
SNAPPY: Final = stored_records.SNAPPY


class BatchLimits(NamedTuple):
    """What a batch may be. Bytes are counted uncompressed."""

    record_bytes_max: int
    batch_bytes_max: int
    batch_records_max: int
    keys_required: bool = False  # the topic is compacted: a record without a key would stay for ever


class BatchFacts(NamedTuple):
    """What validation learned. `codec` is 0 for plain records. A tuple for speed."""

    record_count: int
    codec: int


class BatchPart(NamedTuple):
    """The records of a batch that go to one partition; `record_indexes` is empty when that is all of them."""

    partition: int
    batch: bytes
    record_count: int
    record_indexes: tuple[int, ...]


def validate(batch: bytes, limits: BatchLimits, *, field: str = "batch") -> BatchFacts:
    """Parses the batch once and checks its sizes; raises INVALID_ARGUMENT errors that name the part."""
    if not batch:
        raise errors.invalid_field(field, "is required and holds at least one record")
    # A compressed batch is checked against the limit below, once its uncompressed size is known.
    if len(batch) > limits.batch_bytes_max + 1024:
        raise _batch_too_large(field, len(batch), limits)
    _bound_record_count(batch, limits, field)
    message = _parse(record_pb2.RecordBatch, batch, field)
    count = len(message.records)
    if message.compression or message.compressed_records:
        return _validate_compressed(message, limits, field)
    if not count:
        raise errors.invalid_field(f"{field}.records", "is empty; a batch holds at least one record")
    if message.uncompressed_bytes:
        raise errors.invalid_field(f"{field}.uncompressed_bytes", "belongs to a compressed batch")
    if message.record_count not in {0, count}:
        raise errors.invalid_field(f"{field}.record_count", f"says {message.record_count}, there are {count} records")
    if len(batch) > limits.batch_bytes_max:
        raise _batch_too_large(field, len(batch), limits)
    _check_records(message.records, batch, limits, field)
    return BatchFacts(record_count=count, codec=0)


def _validate_compressed(message: record_pb2.RecordBatch, limits: BatchLimits, field: str) -> BatchFacts:
    if message.records:
        raise errors.invalid_field(f"{field}.records", "must be empty when compressed_records is set")
    if not message.compression:
        raise errors.invalid_field(f"{field}.compression", "is required with compressed_records")
    if not message.compressed_records:
        raise errors.invalid_field(f"{field}.compressed_records", "is required with compression")
    if not message.record_count:
        raise errors.invalid_field(f"{field}.record_count", "is required with compressed_records")
    if message.record_count > limits.batch_records_max:
        raise _too_many_records(field, message.record_count, limits)
    if not message.uncompressed_bytes:
        raise errors.invalid_field(f"{field}.uncompressed_bytes", "is required with compressed_records")
    if message.uncompressed_bytes > limits.batch_bytes_max:
        raise _batch_too_large(field, message.uncompressed_bytes, limits)
    plain = decompress(message, field=field)
    _bound_record_count(plain, limits, field)
    records = _parse(record_pb2.RecordSet, plain, f"{field}.compressed_records")
    if len(records.records) != message.record_count:
        raise errors.invalid_field(
            f"{field}.record_count", f"says {message.record_count}, there are {len(records.records)} records"
        )
    _check_records(records.records, plain, limits, field)
    return BatchFacts(record_count=message.record_count, codec=message.compression)


def decompress(message: record_pb2.RecordBatch, *, field: str = "batch") -> bytes:
    """The RecordSet's bytes."""
    if message.compression not in CODECS:
        raise errors.unknown_field(f"{field}.compression = {message.compression}")
    try:
        return stored_records.decompress(
            message.compressed_records, codec=message.compression, size_bytes=message.uncompressed_bytes
        )
    except WrongSize as error:
        raise errors.invalid_field(f"{field}.uncompressed_bytes", str(error)) from error
    except RecordsDamaged as error:
        raise errors.invalid_field(f"{field}.compressed_records", str(error)) from error


def _bound_record_count(batch: bytes, limits: BatchLimits, field: str) -> None:
    # A batch of empty records costs a stalled loop and fifty times its size once each is an object: count first.
    if len(batch) < limits.batch_records_max * _SMALLEST_RECORD_BYTES:
        return
    count = len(_parse(view_pb2.RecordBatchView, batch, field).records)
    if count > limits.batch_records_max:
        raise _too_many_records(field, count, limits)


def _check_records(records: Sequence[record_pb2.Record], encoded: bytes, limits: BatchLimits, field: str) -> None:
    if limits.keys_required:
        for index, record in enumerate(records):
            if not record.HasField("key"):
                raise errors.invalid_field(
                    f"{field}.records[{index}].key",
                    "is required: the topic is compacted, so that the latest record of each key stays",
                )
    if len(encoded) > limits.record_bytes_max:
        for index, size in enumerate(map(len, view_pb2.RecordBatchView.FromString(encoded).records)):
            if size > limits.record_bytes_max:
                raise errors.too_large(
                    f"{field}.records[{index}]",
                    f"has {size} bytes, at most {limits.record_bytes_max} are allowed",
                    limit=limits.record_bytes_max,
                )
    if _RESERVED_BYTES in encoded:
        for index, record in enumerate(records):
            for header in record.headers:
                if header.name.startswith(RESERVED_HEADER_PREFIX):
                    raise errors.invalid_field(
                        f"{field}.records[{index}].headers",
                        f"{header.name!r}: names that begin with {RESERVED_HEADER_PREFIX!r} belong to the broker",
                    )


def split_by_key(batch: bytes, *, partition_count: int, keyless_partition: int) -> list[BatchPart]:
    """The batch in parts, one a partition, each in the order given. The batch is valid and not compressed.

    A key goes to CRC-32 of its bytes (as zlib computes it) modulo the partition count. 1 to 3 µs a record: the
    comfort path for clients that do not choose partitions themselves.
    """
    message = record_pb2.RecordBatch.FromString(batch)
    crc32 = zlib.crc32
    targets = [
        crc32(record.key) % partition_count if record.HasField("key") else keyless_partition
        for record in message.records
    ]
    first = targets[0]
    if targets.count(first) == len(targets):
        return [BatchPart(first, batch, len(targets), ())]
    encoded = view_pb2.RecordBatchView.FromString(batch).records
    indexes: dict[int, list[int]] = {}
    for index, target in enumerate(targets):
        indexes.setdefault(target, []).append(index)
    return [
        BatchPart(
            partition,
            view_pb2.RecordBatchView(records=[encoded[index] for index in chosen]).SerializeToString(),
            len(chosen),
            tuple(chosen),
        )
        for partition, chosen in sorted(indexes.items())
    ]


def select(part: BatchPart, wanted: Sequence[int]) -> BatchPart:
    """The part with only the records whose indexes in the request are `wanted`: what an earlier try left out."""
    indexes = part.record_indexes or tuple(range(part.record_count))
    keep = set(wanted)
    encoded = view_pb2.RecordBatchView.FromString(part.batch).records
    chosen = [position for position, index in enumerate(indexes) if index in keep]
    return BatchPart(
        part.partition,
        view_pb2.RecordBatchView(records=[encoded[position] for position in chosen]).SerializeToString(),
        len(chosen),
        tuple(indexes[position] for position in chosen),
    )


def slice_records(batch: bytes, *, first: int, end: int) -> bytes:
    """Records `first` to `end` (exclusive) of a stored batch, as a batch without compression."""
    view = _plain_view(batch)
    return view_pb2.RecordBatchView(records=view.records[first:end]).SerializeToString()


def uncompressed(batch: bytes) -> bytes:
    """A stored compressed batch, without compression."""
    return view_pb2.RecordBatchView(records=_plain_view(batch).records).SerializeToString()


def _plain_view(batch: bytes) -> view_pb2.RecordBatchView:
    view = view_pb2.RecordBatchView.FromString(batch)
    if view.compression:
        # RecordSet and RecordBatch number their records alike.
        return view_pb2.RecordBatchView.FromString(decompress(record_pb2.RecordBatch.FromString(batch)))
    return view


def _parse(message_type: type, data: bytes, field: str):  # type: ignore[no-untyped-def]
    try:
        return message_type.FromString(data)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise errors.invalid_field(field, "is not a serialised batch of records; header names must be UTF-8") from error


def _batch_too_large(field: str, size: int, limits: BatchLimits) -> errors.PostbusError:
    return errors.too_large(
        field,
        f"has {size} bytes uncompressed, at most {limits.batch_bytes_max} are allowed; send smaller batches",
        limit=limits.batch_bytes_max,
    )


def _too_many_records(field: str, count: int, limits: BatchLimits) -> errors.PostbusError:
    return errors.too_large(
        f"{field}.records",
        f"has {count} records, at most {limits.batch_records_max} are allowed; send smaller batches",
        limit=limits.batch_records_max,
    )
