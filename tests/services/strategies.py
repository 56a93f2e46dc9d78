"""Record batches by chance: plain and compressed, with keys, without, and with empty ones."""

from collections.abc import Callable

import cramjam
from hypothesis import strategies as st
from postbus.v1 import record_pb2

COMPRESS: dict[int, Callable[[bytes], bytes]] = {
    record_pb2.COMPRESSION_GZIP: lambda data: bytes(cramjam.gzip.compress(data)),
    record_pb2.COMPRESSION_ZSTD: lambda data: bytes(cramjam.zstd.compress(data)),
    record_pb2.COMPRESSION_LZ4: lambda data: bytes(cramjam.lz4.compress(data)),
    record_pb2.COMPRESSION_SNAPPY: lambda data: bytes(cramjam.snappy.compress_raw(data)),
}


@st.composite
def records(draw: st.DrawFn) -> record_pb2.Record:
    """One record; every field may be absent, and key and value empty."""
    record = record_pb2.Record(event_time_us=draw(st.integers(0, 2**62)))
    key = draw(st.none() | st.binary(max_size=8))
    value = draw(st.none() | st.binary(max_size=60))
    if key is not None:
        record.key = key
    if value is not None:
        record.value = value
    for name in draw(st.lists(st.text(max_size=5), max_size=2)):
        record.headers.add(name=name, value=b"x")
    return record


def batches_of(least: int = 1, most: int = 12) -> st.SearchStrategy[list[record_pb2.Record]]:
    """Records for one batch."""
    return st.lists(records(), min_size=least, max_size=most)


def plain(chosen: list[record_pb2.Record]) -> bytes:
    """As a plain batch."""
    return record_pb2.RecordBatch(records=chosen).SerializeToString()


def compressed(chosen: list[record_pb2.Record], codec: int) -> bytes:
    """As a compressed one."""
    data = record_pb2.RecordSet(records=chosen).SerializeToString()
    return record_pb2.RecordBatch(
        compression=codec,  # type: ignore[arg-type]
        compressed_records=COMPRESS[codec](data),
        record_count=len(chosen),
        uncompressed_bytes=len(data),
    ).SerializeToString()


def stored(chosen: list[record_pb2.Record], codec: int) -> bytes:
    """Plain for codec 0."""
    return compressed(chosen, codec) if codec else plain(chosen)


def parsed(batch: bytes | memoryview) -> list[record_pb2.Record]:
    """The records of a plain batch."""
    message = record_pb2.RecordBatch.FromString(bytes(batch))
    assert not message.compression and not message.compressed_records
    return list(message.records)


codecs = st.sampled_from(sorted(COMPRESS))
any_codec = st.sampled_from([0, *sorted(COMPRESS)])
