"""Codecs of record batches: which there are here, packing, and unpacking within a bound.

cramjam is optional (`pip install 'postbus[compression]'`). A batch that claims to unpack to more than a batch may hold
is refused before memory is spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from postbus import errors
from postbus.v1 import record_pb2

_cramjam: ModuleType | None
try:
    import cramjam as _cramjam
except ImportError:
    _cramjam = None

NAMES: Final[Mapping[str, record_pb2.Compression]] = {
    "gzip": record_pb2.COMPRESSION_GZIP,
    "zstd": record_pb2.COMPRESSION_ZSTD,
    "lz4": record_pb2.COMPRESSION_LZ4,
    "snappy": record_pb2.COMPRESSION_SNAPPY,
}
# Far above the broker's batch limit; only keeps a damaged or hostile size from costing memory.
UNCOMPRESSED_BYTES_MAX: Final = 64 * 1024 * 1024


def readable() -> tuple[record_pb2.Compression, ...]:
    """Codecs that batches may come in."""
    return tuple(NAMES.values()) if _cramjam is not None else ()


def codec(name: str | None) -> int:
    """The number of the codec called `name`; None and "none" are 0. Raises what says why it can't be used."""
    if name is None or name == "none":
        return record_pb2.COMPRESSION_UNSPECIFIED
    if name not in NAMES:
        raise errors.InvalidArgument(f"compression {name!r} is none of: none, {', '.join(NAMES)}", field="compression")
    _library()
    return NAMES[name]


def compress(codec_number: int, data: bytes) -> bytes:
    """`data` packed."""
    library = _library()
    if codec_number == record_pb2.COMPRESSION_GZIP:
        return bytes(library.gzip.compress(data, level=6))
    if codec_number == record_pb2.COMPRESSION_ZSTD:
        return bytes(library.zstd.compress(data, level=3))
    if codec_number == record_pb2.COMPRESSION_LZ4:
        return bytes(library.lz4.compress(data))
    assert codec_number == record_pb2.COMPRESSION_SNAPPY
    return bytes(library.snappy.compress_raw(data))


def decompress(codec_number: int, data: bytes, *, uncompressed_bytes: int) -> bytes:
    """`data` unpacked into exactly `uncompressed_bytes`; raises LogCorrupt if it is not what it claims."""
    library = _library()
    if uncompressed_bytes > UNCOMPRESSED_BYTES_MAX:
        raise errors.LogCorrupt(f"a batch claims {uncompressed_bytes} bytes uncompressed: more than a batch may hold")
    unpackers: dict[int, Any] = {
        record_pb2.COMPRESSION_GZIP: library.gzip.decompress_into,
        record_pb2.COMPRESSION_ZSTD: library.zstd.decompress_into,
        record_pb2.COMPRESSION_LZ4: library.lz4.decompress_into,
        record_pb2.COMPRESSION_SNAPPY: library.snappy.decompress_raw_into,
    }
    into = unpackers.get(codec_number)
    if into is None:
        raise errors.Unsupported(f"a batch is compressed in a way that this version does not know: {codec_number}")
    unpacked = bytearray(uncompressed_bytes)
    try:
        written = into(data, unpacked) if uncompressed_bytes else 0
    except Exception as failure:  # cramjam's own error class differs between its versions
        raise errors.LogCorrupt(f"a compressed batch does not unpack: {failure}") from failure
    if written != uncompressed_bytes:
        raise errors.LogCorrupt(f"a compressed batch unpacks to {written} bytes and claims {uncompressed_bytes}")
    return bytes(unpacked)


def _library() -> ModuleType:
    if _cramjam is None:
        raise errors.CompressionUnavailable("compression needs cramjam, which is not installed")
    return _cramjam
