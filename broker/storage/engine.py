"""RocksDB, as Postbus uses it. The only module that imports rocksdict.

Owns the options (each measured, see the comments), the shape of writes and reads, and `classify`, the one place that
understands RocksDB's error texts. It knows nothing of logs, and never decides when to write or fsync: `committer.py`
does. Everything here blocks.

What holds the interpreter lock decides who may call what. `flush_wal`, `multi_get`, `flush` and `compact` release it:
they belong in threads. `write` and iterators hold it: writes are kept small (they are memory and page cache only, and
`no_slowdown` makes them fail instead of waiting), scans are bounded by `limit`.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import rocksdict

from broker.storage.errors import StorageError, StoreCorrupt, StoreFailed, WriteStalled
from broker.storage.wal_check import wal_is_whole

PutOp = tuple[Literal["put"], str, bytes, bytes]
DeleteOp = tuple[Literal["delete"], str, bytes]
DeleteRangeOp = tuple[Literal["delete_range"], str, bytes, bytes]
Op = PutOp | DeleteOp | DeleteRangeOp
"""("put", family, key, value) | ("delete", family, key) | ("delete_range", family, begin, end): end is exclusive."""

MIB: Final = 1024 * 1024
RecoveryMode = Literal["tolerate_torn_tail", "point_in_time"]


@dataclass(frozen=True, slots=True)
class FamilyOptions:
    """How one column family is kept."""

    write_buffer_bytes: int = 8 * MIB
    """A memtable; four of them before writes stall."""
    blobs: bool = False
    """Values of `blob_bytes_min` and more are written to blob files once, instead of being merged again and again."""
    blob_bytes_min: int = 1024
    compressed: bool = False
    """LZ4. Batches are compressed by publishers or not at all."""


@dataclass(frozen=True, slots=True)
class BlobUsage:
    """Bytes of a family's blob files, and how many of them no key refers to."""

    total_bytes: int
    garbage_bytes: int


class Engine:
    """One open database."""

    def __init__(self, path: Path, db: Any, families: Mapping[str, FamilyOptions]) -> None:
        self.path = path
        self._db = db
        self._families = {name: db.get_column_family(name) for name in families}
        self._handles = {name: db.get_column_family_handle(name) for name in families}
        self._blob_families = frozenset(name for name, options in families.items() if options.blobs)
        self._write_options = rocksdict.WriteOptions()
        # Without it a stalled write waits with the interpreter lock held: the process froze for up to 1.1 s.
        # `sync` stays off for the same reason: `flush_wal` releases the lock.
        self._write_options.no_slowdown = True

    @classmethod
    def open(
        cls,
        path: Path,
        families: Mapping[str, FamilyOptions],
        *,
        block_cache_bytes: int = 32 * MIB,
        wal_bytes_max: int = 96 * MIB,
        recovery_mode: RecoveryMode = "tolerate_torn_tail",
    ) -> "Engine":
        """Opens or creates. The caller holds the data directory's lock: RocksDB takes its own too late.

        Raises StoreCorrupt where RocksDB finds damage, StoreFailed for anything else.
        """
        # RocksDB takes options that are left out from those saved at the last opening: always pass all of them.
        cache = rocksdict.Cache(block_cache_bytes)
        column_families = {name: _family_options(options, cache) for name, options in families.items()}
        try:
            path.mkdir(parents=True, exist_ok=True)
            db = rocksdict.Rdict(str(path), _database_options(wal_bytes_max, recovery_mode), column_families)
            return cls(path, db, families)
        except Exception as error:
            raise classify(error, f"opening {path}") from error

    @classmethod
    def open_damaged(cls, path: Path, families: Mapping[str, FamilyOptions]) -> "Engine":
        """To be read only, and changed in nothing, as far as it can be. Raises StoreCorrupt, StoreFailed.

        A table that can't be opened makes reading of its keys fail, not the opening of the rest. What it holds is all
        that was written, or all up to some point: what damage in the WAL stands before is not there.
        """
        cache = rocksdict.Cache(32 * MIB)
        options = _database_options(96 * MIB, "point_in_time")
        options.create_if_missing(False)
        # Without them damaged tables are opened around, but damaged records of the WAL are passed over, too.
        options.set_paranoid_checks(not wal_is_whole(path))
        column_families = {name: _family_options(family, cache) for name, family in families.items()}
        try:
            access = rocksdict.AccessType.read_only()
            return cls(path, rocksdict.Rdict(str(path), options, column_families, access), families)
        except Exception as error:
            raise classify(error, f"opening {path}") from error

    def write(self, ops: Sequence[Op]) -> None:
        """Writes all or nothing, to the page cache. Raises WriteStalled (try again) or StoreFailed (fatal)."""
        handles = self._handles
        batch = rocksdict.WriteBatch(raw_mode=True)
        for op in ops:
            if op[0] == "put":
                batch.put(op[2], op[3], handles[op[1]])
            elif op[0] == "delete":
                batch.delete(op[2], handles[op[1]])
            else:
                batch.delete_range(op[2], op[3], handles[op[1]])
        try:
            self._db.write(batch, self._write_options)
        except Exception as error:
            raise classify(error, "writing") from error

    def flush_wal(self) -> None:
        """fsync: what was written before is durable afterwards. Any error is fatal (StoreFailed)."""
        try:
            self._db.flush_wal(True)
        except Exception as error:
            raise StoreFailed(f"fsync of {self.path}: {error}") from error

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys; None where there is none. Raises StoreCorrupt."""
        try:
            values: list[bytes | None] = self._families[family].get(list(keys))
        except Exception as error:
            raise classify(error, "reading") from error
        return values

    def scan(
        self, family: str, begin: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Entries with begin <= key < end, in order of keys, or against it from the end."""
        found: list[tuple[bytes, bytes]] = []
        try:
            for key, value in self._items(family, begin, end, reverse=reverse):
                found.append((key, value))
                if limit is not None and len(found) >= limit:
                    break
        except Exception as error:
            raise classify(error, "scanning") from error
        return found

    def _items(self, family: str, begin: bytes, end: bytes, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        options = rocksdict.ReadOptions()
        # rocksdict 0.3.29's set_iterate_lower_bound sets the upper bound: the lower one is watched below.
        options.set_iterate_upper_bound(end)
        cursor = self._families[family].iter(options)
        step = cursor.prev if reverse else cursor.next
        try:
            if reverse:
                cursor.seek_to_last()
            else:
                cursor.seek(begin)
            while cursor.valid():
                key = cursor.key()
                if key < begin:
                    return
                yield key, cursor.value()
                step()
            # Damage ends an iteration too; it must not pass for the end of the data.
            cursor.status()
        finally:
            # Whoever keeps the error keeps this frame, and a cursor keeps RocksDB's lock on the files.
            del cursor, step

    def sequence(self) -> int:
        """Number of the last write; grows by one with each operation, and is never handed out twice."""
        number: int = self._db.latest_sequence_number()
        return number

    def blob_usage(self, family: str) -> BlobUsage:
        """How much the family's blob files hold, as far as compaction has found out."""
        handle = self._families[family]
        total = handle.property_int_value("rocksdb.live-blob-file-size")
        garbage = handle.property_int_value("rocksdb.live-blob-file-garbage-size")
        return BlobUsage(total_bytes=int(total or 0), garbage_bytes=int(garbage or 0))

    def compact(self, family: str, begin: bytes, end: bytes) -> None:
        """Gives the space of a deleted range back, as far as whole blob files became free. Takes its time."""
        try:
            self._families[family].flush(True)
            self._families[family].compact_range(begin, end)
        except Exception as error:
            raise classify(error, "compacting") from error

    def collect_garbage(self, family: str, *, below: float, timeout_s: float, stopping: threading.Event) -> bool:
        """Rewrites blob files until the garbage is below this share. True: it is.

        Collecting all the time would rewrite live data for nothing (age cutoff 0.25 cost half as many writes again
        and holds of 109 ms), so the thresholds are lowered only while there is much to win.
        """
        assert family in self._blob_families
        handle = self._families[family]
        deadline = time.monotonic() + timeout_s
        try:
            handle.set_options(_BLOB_GC_ACTIVE)
            try:
                least = self.blob_usage(family).garbage_bytes
                progress_deadline = time.monotonic() + _GC_PROGRESS_S
                while time.monotonic() < deadline and not stopping.is_set():
                    usage = self.blob_usage(family)
                    if usage.garbage_bytes < below * max(1, usage.total_bytes):
                        return True
                    if usage.garbage_bytes < least:
                        least, progress_deadline = usage.garbage_bytes, time.monotonic() + _GC_PROGRESS_S
                    elif time.monotonic() >= progress_deadline:
                        # RocksDB looks at the oldest files only; if those are full, it sees no reason to begin.
                        options = rocksdict.CompactOptions()
                        options.set_exclusive_manual_compaction(False)
                        options.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force())
                        handle.compact_range(None, None, options)
                        progress_deadline = deadline
                    stopping.wait(_GC_POLL_S)
                return False
            finally:
                handle.set_options(_BLOB_GC_IDLE)
        except Exception as error:
            raise classify(error, "collecting blob garbage") from error

    def cancel_background(self) -> None:
        """Ends compactions, those that other threads wait for too. Only `close` comes after it."""
        try:
            self._db.cancel_all_background(True)
        except Exception as error:
            raise classify(error, "stopping") from error

    def close(self) -> None:
        """Waits for background work, and closes. Writes nothing: unflushed memtables are in the WAL."""
        # First: letting go of a column family flushes its memtable, unless background work is cancelled.
        self.cancel_background()
        # rocksdict lets go of the files when the last reference to a column family has gone, not in close().
        self._families.clear()
        self._handles.clear()
        try:
            self._db.close()
        except Exception as error:
            # It wants to flush memtables, which the cancellation forbids. The database is closed all the same.
            if "Shutdown in progress" not in str(error):
                raise classify(error, "closing") from error


def classify(error: Exception, doing: str) -> StorageError:
    """What a RocksDB error means. rocksdict raises bare `Exception`s; only their text tells them apart."""
    text = str(error)
    if isinstance(error, StorageError):
        return error
    if "Result incomplete" in text or "Write stall" in text:
        return WriteStalled(text)
    if text.startswith("Corruption") or "Corruption:" in text or "No such file or directory" in text:
        return StoreCorrupt(f"{doing}: {text}")
    return StoreFailed(f"{doing}: {text}")


_GC_POLL_S: Final = 0.25
_GC_PROGRESS_S: Final = 3.0
_BLOB_GC_IDLE: Final = {
    "blob_garbage_collection_age_cutoff": "0.0",
    "blob_garbage_collection_force_threshold": "1.0",
}
_BLOB_GC_ACTIVE: Final = {
    "blob_garbage_collection_age_cutoff": "1.0",
    "blob_garbage_collection_force_threshold": "0.5",
}


def _database_options(wal_bytes_max: int, recovery_mode: RecoveryMode) -> Any:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    # Bounds the time of the next opening: 28 to 50 MB of small batches replay in about a second.
    options.set_max_total_wal_size(wal_bytes_max)
    # A torn tail is what a power cut leaves; damage further in must not pass silently (the default loses all after it).
    options.set_wal_recovery_mode(
        rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records()
        if recovery_mode == "tolerate_torn_tail"
        else rocksdict.DBRecoveryMode.point_in_time()
    )
    # A recycled WAL file holds old records behind the new: they look like a damaged tail.
    options.set_recycle_log_file_num(0)
    options.set_max_background_jobs(2)
    options.set_max_open_files(1000)
    # Spreads the writing of table and blob files, so that an fsync of the WAL doesn't wait behind them.
    options.set_bytes_per_sync(MIB)
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(4 * MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _family_options(family: FamilyOptions, cache: Any) -> Any:
    options = rocksdict.Options(raw_mode=True)
    options.set_write_buffer_size(family.write_buffer_bytes)
    options.set_max_write_buffer_number(4)
    compression = rocksdict.DBCompressionType.lz4() if family.compressed else rocksdict.DBCompressionType.none()
    options.set_compression_type(compression)
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    options.set_enable_blob_files(family.blobs)
    if family.blobs:
        options.set_min_blob_size(family.blob_bytes_min)
        # Small files become free as a whole more often.
        options.set_blob_file_size(64 * MIB)
        options.set_blob_compression_type(rocksdict.DBCompressionType.none())
        # On, but idle: see `collect_garbage`.
        options.set_enable_blob_gc(True)
        options.set_blob_gc_age_cutoff(0.0)
        options.set_blob_gc_force_threshold(1.0)
    return options
