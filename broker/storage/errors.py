"""What storage can refuse or suffer, as types.

Storage knows nothing of gRPC: the layers above translate these into the errors that clients see. Errors of the two
deduplication tables live beside them (`producers.py`, `request_ids.py`).
"""

# ruff: noqa: N818 - named for what happened: callers catch most of these as outcomes, not as faults.


class StorageError(Exception):
    """Any of them."""


class WriteStalled(StorageError):
    """RocksDB would have to wait (memtables or level 0 full). The same write may be tried again, built anew."""


class StoreFailed(StorageError):
    """A write, an fsync or the environment failed. What is on disk is unknown: end the process and open again."""


class StoreCorrupt(StorageError):
    """RocksDB found damage."""


class StoreLocked(StorageError):
    """Another process holds the data directory."""


class StoreLoss(StorageError):
    """Records that had been promised as durable are gone. A single node does not start on that by itself."""


class DiskFull(StorageError):
    """Free space is below `disk_free_min_bytes`: nothing is appended until there is room again."""


class UnknownLog(StorageError):
    """No log has this id: it was never created, or is deleted."""


class OffsetOutOfRange(StorageError):
    """The offset was trimmed, or was not given out yet."""

    def __init__(self, offset: int, *, log_start_offset: int, end_offset: int) -> None:
        super().__init__(f"offset {offset} is outside of {log_start_offset} to {end_offset}")
        self.offset = offset
        self.log_start_offset = log_start_offset
        self.end_offset = end_offset


class LogCorrupt(StorageError):
    """A stored batch is damaged or missing. Later offsets may be fine."""

    def __init__(self, log_id: int, offset: int, why: str) -> None:
        super().__init__(f"log {log_id} at offset {offset}: {why}")
        self.log_id = log_id
        self.offset = offset
        self.why = why


class ReplicaDiverged(StorageError):
    """What a leader sent does not follow on what is here. Nothing of it was appended."""
