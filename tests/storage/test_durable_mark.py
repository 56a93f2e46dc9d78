"""The durable mark survives torn writes and never claims too much."""

from pathlib import Path

import pytest

from broker.storage.durable_mark import DurableMark, Mark, read_mark


def test_the_last_record_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    mark = DurableMark(path)
    for sequence in range(1, 8):
        mark.record(sequence)
        assert read_mark(path) == Mark(sequence=sequence, clean=False)
    mark.close()


def test_it_goes_on_after_reopening_and_keeps_the_clean_flag(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    mark = DurableMark(path)
    mark.record(5)
    mark.record(6, clean=True)
    mark.sync()
    mark.close()
    assert read_mark(path) == Mark(sequence=6, clean=True)
    mark = DurableMark(path)
    mark.record(7)
    mark.close()
    assert read_mark(path) == Mark(sequence=7, clean=False)


@pytest.mark.parametrize("at", range(32))
def test_a_torn_newest_slot_leaves_the_one_before(tmp_path: Path, at: int) -> None:
    """Whatever byte of the newest slot is wrong, the older slot answers."""
    path = tmp_path / "mark"
    mark = DurableMark(path)
    mark.record(10)
    mark.record(11)
    mark.close()
    data = bytearray(path.read_bytes())
    newest = 0 if data[16:24] == (11).to_bytes(8, "big") else 4096
    data[newest + at % 28] ^= 0x40
    path.write_bytes(data)
    assert read_mark(path) == Mark(sequence=10, clean=False)


def test_no_file_and_no_whole_slot_are_no_mark(tmp_path: Path) -> None:
    assert read_mark(tmp_path / "none") is None
    (tmp_path / "zeroes").write_bytes(bytes(8192))
    assert read_mark(tmp_path / "zeroes") is None
    (tmp_path / "short").write_bytes(b"PBMK")
    assert read_mark(tmp_path / "short") is None
