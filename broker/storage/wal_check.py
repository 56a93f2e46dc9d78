"""Whether RocksDB's write-ahead log is whole, told by reading its files.

RocksDB leaves damaged records out without a word where it is to open a database with damaged tables: writes from the
middle of the log would be gone, and those behind them there. Pure format, no database: blocks of 32 KiB with fragments
of records, each with a CRC32C; a fragment never crosses a block.
"""

import struct
from pathlib import Path
from typing import Final

import google_crc32c

_BLOCK_BYTES: Final = 32 * 1024
_HEADER: Final = struct.Struct("<IHB")
_CRC_FROM: Final = 6  # over the type, too
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
# What may come behind: True: within a record.
_FOLLOWS: Final = {(_FULL, False): False, (_FIRST, False): True, (_MIDDLE, True): True, (_LAST, True): False}


def wal_is_whole(folder: Path) -> bool:
    """Every byte of it is part of a whole record. False: there is damage, a torn tail, or what this does not know."""
    return all(_is_whole(file.read_bytes()) for file in sorted(folder.glob("*.log")))


def _is_whole(data: bytes) -> bool:
    position, within = 0, False
    while position < len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _HEADER.size:
            if any(data[position : position + left]):
                return False
            position += left
            continue
        if position + _HEADER.size > len(data):
            return False
        masked, size_bytes, kind = _HEADER.unpack_from(data, position)
        end = position + _HEADER.size + size_bytes
        follows = _FOLLOWS.get((kind, within))
        if follows is None or end > len(data) or _HEADER.size + size_bytes > left:
            return False
        crc = google_crc32c.value(data[position + _CRC_FROM : end])
        if masked != (((crc >> 15 | crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF:
            return False
        position, within = end, follows
    return not within
