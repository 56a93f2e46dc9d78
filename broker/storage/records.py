"""What storage may know of the inside of a batch: codecs, keys and tombstones, and a batch with fewer records.

Only log compaction looks in here; everything else keeps batches as the bytes that came. Nothing is validated: that
happened once, at the door (`services/batches.py`), with the same codecs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cramjam
from google.protobuf.message import DecodeError
from postbus.v1 import record_pb2

from broker.stubs import view_pb2

GZIP: Final = int(record_pb2.COMPRESSION_GZIP)
ZSTD: Final = int(record_pb2.COMPRESSION_ZSTD)
LZ4: Final = int(record_pb2.COMPRESSION_LZ4)
SNAPPY: Final = int(record_pb2.COMPRESSION_SNAPPY)
CODECS: Final = {GZIP: "gzip", ZSTD: "zstd", LZ4: "lz4", SNAPPY: "snappy"}


class RecordsDamaged(ValueError):  # noqa: N818 - named for what happened
    """The bytes are not what they claim to be."""


class WrongSize(RecordsDamaged):
    """They are not as many as was announced."""


@dataclass(frozen=True, slots=True)
class BatchRecords:
    """A batch, opened."""

    keys: list[bytes | None]
    tombstones: list[bool]
    """True: the record has no value."""
    plain: bytes
    """The records, without compression."""
    codec: int


def decompress(compressed: bytes, *, codec: int, size_bytes: int) -> bytes:
    """Into a buffer of exactly the size that was announced, so that a bomb costs nothing.

    Raises RecordsDamaged, WrongSize.
    """
    name = CODECS.get(codec)
    if name is None:
        raise RecordsDamaged(f"codec {codec} is not known")
    buffer = bytearray(size_bytes)
    try:
        module = getattr(cramjam, name)
        into = module.decompress_raw_into if codec == SNAPPY else module.decompress_into
        written = into(compressed, buffer)
    except Exception as error:  # cramjam raises one class for whatever is wrong with the bytes
        raise RecordsDamaged(f"is not {name} of {size_bytes} bytes: {error}") from error
    if written != size_bytes:
        raise WrongSize(f"says {size_bytes}, there are {written} bytes")
    return bytes(buffer)


def compress(plain: bytes, *, codec: int) -> bytes:
    """The opposite."""
    module = getattr(cramjam, CODECS[codec])
    return bytes(module.compress_raw(plain) if codec == SNAPPY else module.compress(plain))


def open_batch(batch: bytes) -> BatchRecords:
    """Keys and tombstones of a serialised RecordBatch. Raises RecordsDamaged."""
    try:
        message = record_pb2.RecordBatch.FromString(batch)
        codec = int(message.compression)
        if codec:
            batch = decompress(message.compressed_records, codec=codec, size_bytes=message.uncompressed_bytes)
            # RecordSet and RecordBatch number their records alike.
            message = record_pb2.RecordBatch.FromString(batch)
    except DecodeError as error:
        raise RecordsDamaged("is not a serialised batch of records") from error
    records = message.records
    return BatchRecords(
        keys=[record.key if record.HasField("key") else None for record in records],
        tombstones=[not record.HasField("value") for record in records],
        plain=batch,
        codec=codec,
    )


def with_records(opened: BatchRecords, kept: Sequence[int]) -> bytes:
    """A batch of those records alone, by their places, in the same codec."""
    encoded = view_pb2.RecordBatchView.FromString(opened.plain).records
    plain = view_pb2.RecordBatchView(records=[encoded[index] for index in kept]).SerializeToString()
    if not opened.codec:
        return plain
    return view_pb2.RecordBatchView(
        compression=opened.codec,
        compressed_records=compress(plain, codec=opened.codec),
        record_count=len(kept),
        uncompressed_bytes=len(plain),
    ).SerializeToString()
