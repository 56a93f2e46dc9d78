"""A write-ahead log counts as whole only if every byte of it is."""

import random
from pathlib import Path

import pytest

from broker.storage.engine import Engine
from broker.storage.log_state import RAFT, meta_families
from broker.storage.wal_check import wal_is_whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of all sizes: within a block, over many, and up to each place near a block's end."""
    path = tmp_path_factory.mktemp("wal") / "meta"
    engine = Engine.open(path, meta_families())
    for number in range(400):
        size = 100_000 if number % 50 == 0 else 300 + number % 17
        engine.write([("put", RAFT, b"%06d" % number, bytes([number % 256]) * size)])
    engine.flush_wal()
    engine.close()
    return path


def wal(folder: Path) -> Path:
    [file] = [file for file in folder.glob("*.log") if file.stat().st_size]
    return file


def test_what_rocksdb_wrote_is_whole(folder: Path) -> None:
    assert wal(folder).stat().st_size > 20 * 32768
    assert wal_is_whole(folder)


def test_no_log_is_whole(tmp_path: Path) -> None:
    assert wal_is_whole(tmp_path)


def test_one_bit_anywhere_is_found(folder: Path, tmp_path: Path) -> None:
    data = wal(folder).read_bytes()
    places = random.Random(1)
    for at in [0, 4, 6, len(data) - 1, *(places.randrange(len(data)) for _ in range(100))]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << places.randrange(8)
        (tmp_path / "000001.log").write_bytes(flipped)
        assert not wal_is_whole(tmp_path), at


@pytest.mark.parametrize("left_bytes", [1, 6, 7, 32768, 50_000, 100_000])
def test_a_cut_within_a_record_is_found(folder: Path, tmp_path: Path, left_bytes: int) -> None:
    (tmp_path / "000001.log").write_bytes(wal(folder).read_bytes()[:left_bytes])
    assert not wal_is_whole(tmp_path)


def test_zeros_behind_the_last_record_are_found(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "000001.log").write_bytes(wal(folder).read_bytes() + bytes(1000))
    assert not wal_is_whole(tmp_path)
