"""How far fsync has promised: a sequence number in a small file beside the database.

RocksDB opens without a word when its WAL was deleted or cut at a record's border. This mark, which lives outside of
it, is the only way to notice. Two slots are written in turn, each with a counter and a CRC, so that a torn write of
one leaves the other. A mark that is too low is harmless; one that is too high would report a loss that did not
happen, so it is written only after the fsync that it speaks of.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import google_crc32c

_SLOT: Final = struct.Struct(">4sHBxQQ")
_CRC: Final = struct.Struct(">I")
_MAGIC: Final = b"PBMK"
_VERSION: Final = 1
# A block of its own each: a torn write can't reach the other slot.
_SLOT_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Mark:
    """What the file says."""

    sequence: int
    """All writes up to this number were fsynced."""
    clean: bool
    """The database was closed in good order after that."""


class DurableMark:
    """An open mark file; one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates. Raises OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if os.fstat(self._fd).st_size < 2 * _SLOT_BYTES:
            os.ftruncate(self._fd, 2 * _SLOT_BYTES)
        fsync_folder(path.parent)
        self._counter = max((counter for counter, _ in _slots(os.pread(self._fd, 2 * _SLOT_BYTES, 0))), default=0)

    def record(self, sequence: int, *, clean: bool = False) -> None:
        """Writes, without fsync. Raises OSError."""
        self._counter += 1
        body = _SLOT.pack(_MAGIC, _VERSION, clean, self._counter, sequence)
        slot = body + _CRC.pack(google_crc32c.value(body))
        os.pwrite(self._fd, slot, (self._counter % 2) * _SLOT_BYTES)

    def sync(self) -> None:
        """fsync. Raises OSError."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def read_mark(path: Path) -> Mark | None:
    """The newest whole slot; None: no file, or no slot is whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    newest = max(_slots(data), default=None, key=lambda slot: slot[0])
    return None if newest is None else newest[1]


def _slots(data: bytes) -> list[tuple[int, Mark]]:
    found = []
    for start in (0, _SLOT_BYTES):
        body = data[start : start + _SLOT.size]
        crc = data[start + _SLOT.size : start + _SLOT.size + _CRC.size]
        if len(crc) < _CRC.size or _CRC.unpack(crc)[0] != google_crc32c.value(body):
            continue
        magic, version, clean, counter, sequence = _SLOT.unpack(body)
        if magic == _MAGIC and version == _VERSION:
            found.append((counter, Mark(sequence=sequence, clean=bool(clean))))
    return found


def write_mark(path: Path, sequence: int) -> None:
    """Durable when it returns. Raises OSError."""
    mark = DurableMark(path)
    mark.record(sequence)
    mark.sync()
    mark.close()


def fsync_folder(path: Path) -> None:
    """Makes the creation of files in it durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
