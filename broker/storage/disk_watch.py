"""Is there room on the disk? With hysteresis, so that publishing does not flap.

RocksDB is never allowed to meet a full disk: an ENOSPC inside a flush is an fsync error, and ends the process. So
publishing is refused long before, and internal logs (committed offsets) a little later. Decides nothing by itself
about time: the store calls `check` every second.
"""

import shutil
from collections.abc import Callable
from pathlib import Path


def free_bytes(path: Path) -> int:
    """What an unprivileged process may still write there."""
    return shutil.disk_usage(path).free


def size_bytes(path: Path) -> int:
    """Of the whole disk."""
    return shutil.disk_usage(path).total


class DiskWatch:
    """Of one data directory."""

    def __init__(
        self,
        path: Path,
        *,
        free_min_bytes: int,
        reserve_bytes: int,
        free_bytes: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._path = path
        self._free_min_bytes = free_min_bytes
        self._reserve_bytes = min(reserve_bytes, free_min_bytes)
        self._free_bytes = free_bytes
        self.free_bytes = 0
        """As of the last check."""
        self.full = False
        self.exhausted = False
        self.check()

    def check(self) -> None:
        """Looks, and decides anew. Raises OSError."""
        self.free_bytes = self._free_bytes(self._path)
        self.full = self._is_below(self._free_min_bytes, before=self.full)
        self.exhausted = self._is_below(self._reserve_bytes, before=self.exhausted)

    def _is_below(self, minimum_bytes: int, *, before: bool) -> bool:
        # Once full, a tenth more must be free before it counts as room.
        return self.free_bytes < (minimum_bytes + minimum_bytes // 10 if before else minimum_bytes)
