"""RocksDB as the rest of storage relies on it."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.storage.engine import MIB, Engine, FamilyOptions, classify
from broker.storage.errors import StoreCorrupt, StoreFailed, WriteStalled

FAMILIES = {"blobs": FamilyOptions(blobs=True, write_buffer_bytes=MIB), "small": FamilyOptions(compressed=True)}


@pytest.fixture
def open_engine(tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    engines: list[Engine] = []

    def open_engine() -> Engine:
        engines.append(Engine.open(tmp_path / "db", FAMILIES))
        return engines[-1]

    yield open_engine
    if engines:
        engines[-1].close()


def key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def test_a_write_is_read_back_and_survives_reopening(open_engine: Callable[[], Engine]) -> None:
    engine = open_engine()
    engine.write([("put", "small", b"a", b"1"), ("put", "blobs", b"a", b"2" * 5000), ("put", "small", b"b", b"")])
    engine.write([("delete", "small", b"b")])
    engine.flush_wal()
    sequence = engine.sequence()
    engine.close()
    engine = open_engine()
    assert engine.multi_get("small", [b"b", b"a", b"none"]) == [None, b"1", None]
    assert engine.multi_get("blobs", [b"a"]) == [b"2" * 5000]
    assert engine.sequence() >= sequence == 4


def test_scans_are_half_open_in_both_directions(open_engine: Callable[[], Engine]) -> None:
    engine = open_engine()
    engine.write([("put", "small", key(number), b"%d" % number) for number in range(10)])
    forward = [(key(number), b"%d" % number) for number in range(3, 7)]
    assert engine.scan("small", key(3), key(7)) == forward
    assert engine.scan("small", key(3), key(7), reverse=True) == forward[::-1]
    assert engine.scan("small", key(3), key(7), limit=2) == forward[:2]
    assert engine.scan("small", key(3), key(7), limit=1, reverse=True) == forward[-1:]
    assert engine.scan("small", key(20), key(30), reverse=True) == []


def test_a_range_is_deleted_without_its_end(open_engine: Callable[[], Engine]) -> None:
    engine = open_engine()
    engine.write([("put", "small", key(number), b"") for number in range(10)])
    engine.write([("delete_range", "small", key(2), key(8))])
    assert [found for found, _ in engine.scan("small", key(0), key(99))] == [key(0), key(1), key(8), key(9)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Result incomplete: Write stall", WriteStalled),
        ("Corruption: block checksum mismatch", StoreCorrupt),
        ("IO error: No such file or directory: While open a file: 000012.sst", StoreCorrupt),
        ("IO error: While appending to file: 000008.log: No space left on device", StoreFailed),
        ("IO error: While fdatasync: Input/output error", StoreFailed),
        ("something new", StoreFailed),
    ],
)
def test_errors_are_told_apart_by_their_text(text: str, kind: type[Exception]) -> None:
    assert type(classify(Exception(text), "testing")) is kind


def test_the_space_of_a_deleted_range_comes_back(open_engine: Callable[[], Engine]) -> None:
    engine = open_engine()
    value = os.urandom(64 * 1024)
    for log in range(4):
        engine.write([("put", "blobs", key(log) + key(number), value) for number in range(16)])
        engine.compact("blobs", key(log), key(log + 1))
    before = engine.blob_usage("blobs").total_bytes
    assert before > 4 * MIB
    engine.write([("delete_range", "blobs", key(0), key(3))])
    engine.compact("blobs", key(0), key(3))
    assert engine.blob_usage("blobs").total_bytes < before / 3
    assert len(engine.scan("blobs", b"", b"\xff")) == 16


def test_half_empty_files_are_rewritten(open_engine: Callable[[], Engine], tmp_path: Path) -> None:
    """Where live and deleted batches share files, deleting frees nothing until they are rewritten."""
    engine = open_engine()
    value = os.urandom(64 * 1024)
    for begin in range(0, 64, 8):
        engine.write([("put", "blobs", key(n % 2) + key(n), value) for n in range(begin, begin + 8)])
        engine.compact("blobs", key(9), key(10))  # flushes: files that both share
    engine.write([("delete_range", "blobs", key(0), key(1))])
    engine.compact("blobs", key(0), key(1))
    usage = engine.blob_usage("blobs")
    assert usage.garbage_bytes > usage.total_bytes * 0.4
    assert engine.collect_garbage("blobs", below=0.4, timeout_s=20, stopping=threading.Event())
    on_disk = sum(file.stat().st_size for file in (tmp_path / "db").glob("*.blob"))
    assert on_disk < 3 * MIB
    assert len(engine.multi_get("blobs", [key(1) + key(n) for n in range(1, 64, 2)])) == 32
    assert None not in engine.multi_get("blobs", [key(1) + key(n) for n in range(1, 64, 2)])
