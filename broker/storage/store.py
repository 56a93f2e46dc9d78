"""A node's data: both databases, every log, and the lock on their folder.

Owns what lives in the data directory: `LOCK`, `FORMAT`, `IDENTITY`, `meta/` (the controller's metadata log) and
`data/` (partition logs), each with its durable mark. Opens and closes all of it, hands out logs by number, and runs
the loops that keep it healthy (`maintenance.py`). It knows logs by number only, never topics: `log_id`s come from the
controller, which never gives one out twice.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from broker.clock import Clock
from broker.storage.committer import Committer, CommitterSettings
from broker.storage.data_dir import DataDir, Identity
from broker.storage.disk_watch import DiskWatch, free_bytes
from broker.storage.engine import Engine
from broker.storage.errors import StoreCorrupt, StoreFailed, StoreLoss, UnknownLog
from broker.storage.log import LogContext, PartitionLog
from broker.storage.log_reader import LogReader
from broker.storage.log_state import (
    OVERWRITTEN_FAMILIES,
    PRODUCERS,
    RAFT,
    STATE,
    LogState,
    data_families,
    key_log_id,
    key_number,
    log_key,
    meta_families,
)
from broker.storage.maintenance import Maintenance, MaintenanceSettings
from broker.storage.producers import ProducerTable
from broker.storage.rebuild import Rebuilt, remember_failure, requested
from broker.storage.recovery import (
    DatabaseSpec,
    Loss,
    OpenDatabase,
    RecoveredDatabase,
    accept_loss,
    open_database,
    rebuild_database,
    set_aside,
)
from broker.storage.request_ids import RequestIdTable
from broker.storage.salvage import copy_logs, copy_raft, damaged_logs, live_bytes
from broker.storage.tail import Tail

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """Every bound of storage."""

    append_queue_bytes_max: int = 32 * MIB
    """Bytes appended and not yet durable, beyond which publishers wait. Memory, and time to stop."""
    tail_bytes_max: int = 64 * MIB
    """Recent batches kept in memory. Subscribers further behind read from RocksDB."""
    block_cache_bytes: int = 32 * MIB
    """RocksDB's cache of index and state blocks."""
    memtable_bytes: int = 32 * MIB
    """Of the batches, four at most. Less: more stalls. More: memory."""
    wal_bytes_max: int = 96 * MIB
    """Write-ahead log to replay after a crash: about a second for each 50 MB of tiny batches."""
    reader_threads: int = 2
    """For reads that are not in memory."""
    disk_free_min_bytes: int = 1024 * MIB
    """Below it publishing is refused; reading goes on, and publishing resumes by itself with a tenth more."""
    disk_reserve_bytes: int = 256 * MIB
    """Below it internal logs (committed offsets) are refused too."""
    request_ids_max: int = 200_000
    """Request ids remembered a partition; more inside the window are refused. About 300 bytes each."""
    producers_max: int = 10_000
    """Producers remembered a partition; beyond it the longest silent one is forgotten and must take a new epoch."""
    producer_expiry_ms: int = 7 * 24 * 3600 * 1000
    """Silence after which a producer is forgotten."""
    mark_sync_interval_ms: int = 1000
    """How often the durable mark of `data` is fsynced. A loss within this time before a power cut may go unnoticed."""
    disk_check_interval_ms: int = 1000
    """How often free space is looked at."""
    replicated: bool = False
    """Other nodes have what this one holds: it starts whatever was lost here, and says so (`recovery.unclean`)."""
    maintenance: MaintenanceSettings = field(default_factory=MaintenanceSettings)
    """Retention and the return of disk space."""


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What opening did, to be told at the start."""

    logs_count: int
    wal_bytes: int
    seconds: float
    clean: bool
    """The last stop was in good order."""
    created: bool
    """There was nothing before."""
    databases: tuple[RecoveredDatabase, ...]
    unclean: bool = False
    """Promised records were lost here (now, or before the cluster could be told): not to be elected on what is left."""
    losses: tuple[Loss, ...] = ()
    """What was found lost at this start."""
    rebuilt: tuple[Rebuilt, ...] = ()
    """Databases that could not be written any more, and were replaced by a copy."""


@dataclass(frozen=True, slots=True)
class MetaStore:
    """The database of Raft, which replicates the controller's metadata log."""

    engine: Engine
    committer: Committer


@dataclass(frozen=True, slots=True)
class _Opened:
    """What the opening thread hands to the loop."""

    data_dir: DataDir
    identity: Identity
    meta: OpenDatabase
    data: OpenDatabase
    disk: DiskWatch
    report: RecoveryReport


@dataclass(frozen=True, slots=True)
class _SavedLogs:
    """The only thing that a start reads of the logs."""

    states: dict[int, LogState]
    producers: dict[int, list[tuple[int, bytes]]]


class LogStore:
    """On the loop only."""

    def __init__(
        self,
        opened: _Opened,
        *,
        settings: StorageSettings,
        clock: Clock,
        on_fatal: Callable[[Exception], None],
        on_maintenance_error: Callable[[Exception], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Use `LogStore.open`."""
        self.recovery = opened.report
        self.identity = opened.identity
        self._settings = settings
        self._data_dir = opened.data_dir
        self._disk = opened.disk
        self._tail = Tail(bytes_max=settings.tail_bytes_max)
        self._readers = ThreadPoolExecutor(settings.reader_threads, thread_name_prefix="reader")
        self._databases = (opened.meta, opened.data)
        self._engine = opened.data.engine
        self._closed = False
        self._committer = Committer(
            self._engine,
            opened.data.mark,
            loop=loop,
            on_fatal=self._failing(opened.data, on_fatal),
            settings=CommitterSettings(
                append_queue_bytes_max=settings.append_queue_bytes_max,
                mark_sync_interval_ms=settings.mark_sync_interval_ms,
            ),
            overwritten_families=OVERWRITTEN_FAMILIES,
            name="commit-data",
        )
        meta_committer = Committer(
            opened.meta.engine,
            opened.meta.mark,
            loop=loop,
            on_fatal=self._failing(opened.meta, on_fatal),
            name="commit-meta",
        )
        self.meta = MetaStore(engine=opened.meta.engine, committer=meta_committer)
        self._maintenance = Maintenance(
            engine=self._engine,
            clock=clock,
            logs=self.logs,
            barrier=self.barrier,
            on_error=on_maintenance_error,
            check_disk=self.check_disk,
            disk_check_interval_ms=settings.disk_check_interval_ms,
            producer_expiry_ms=settings.producer_expiry_ms,
            settings=settings.maintenance,
        )
        self._context = LogContext(committer=self._committer, readers=self._readers, disk=self._disk, clock=clock)
        saved: _SavedLogs = opened.data.loaded
        self._logs: dict[int, PartitionLog] = {}
        for log_id, state in saved.states.items():
            self._logs[log_id] = self._make_log(log_id, state, saved.producers.get(log_id, ()))
        self._maintenance.start()

    @staticmethod
    def _failing(database: OpenDatabase, on_fatal: Callable[[Exception], None]) -> Callable[[Exception], None]:
        def failed(error: Exception) -> None:
            # Damage met by a compaction: it would be met again after every start, and end the process again.
            if isinstance(error, StoreCorrupt):
                remember_failure(database.engine.path, error)
            on_fatal(error)

        return failed

    @classmethod
    async def open(
        cls,
        data_dir: Path,
        settings: StorageSettings,
        clock: Clock,
        on_fatal: Callable[[Exception], None],
        *,
        node_id: int = 1,
        cluster_id: str = "",
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        on_maintenance_error: Callable[[Exception], None] = lambda error: None,
        free_bytes: Callable[[Path], int] = free_bytes,
    ) -> "LogStore":
        """Opens or creates. on_fatal: called on the loop when a disk fails; the process must end at once.

        node_id, cluster_id: whose directory it has to be, or becomes; cluster_id "": any, or a new one.
        on_maintenance_error: retention or reclaim failed and will be tried again; to be logged.

        Raises StoreLocked, StoreLoss (not if `replicated`), StoreFailed (another node's, too).
        """
        now_us = clock.wall_us()
        opened = await asyncio.to_thread(
            _open,
            data_dir,
            settings,
            node_id=node_id,
            cluster_id=cluster_id,
            new_id=new_id,
            now_us=now_us,
            free_bytes=free_bytes,
        )
        loop = asyncio.get_running_loop()
        return cls(
            opened,
            settings=settings,
            clock=clock,
            on_fatal=on_fatal,
            on_maintenance_error=on_maintenance_error,
            loop=loop,
        )

    def log(self, log_id: int) -> PartitionLog:
        """Raises UnknownLog."""
        try:
            return self._logs[log_id]
        except KeyError:
            raise UnknownLog(f"log {log_id} does not exist") from None

    def logs(self) -> list[PartitionLog]:
        """All of them."""
        return list(self._logs.values())

    def log_ids(self) -> list[int]:
        """Their numbers."""
        return list(self._logs)

    def create_log(self, log_id: int) -> PartitionLog:
        """A new, empty log; the one that is there already, if it is (a start repeats what may not have been saved)."""
        log = self._logs.get(log_id)
        if log is None:
            state = LogState()
            self._committer.submit([("put", STATE, log_key(log_id), state.encode())], size_bytes=64)
            log = self._logs[log_id] = self._make_log(log_id, state, ())
        return log

    def delete_log(self, log_id: int) -> None:
        """Deletes a log with all that belongs to it; does nothing if it is not there. Its space comes back later."""
        log = self._logs.pop(log_id, None)
        if log is not None:
            self._committer.submit(log.delete_ops(), size_bytes=256)
            log.close(deleted=True)
            self._maintenance.range_deleted(log_key(log_id), log_key(log_id + 1))

    @property
    def path(self) -> Path:
        """The data directory."""
        return self._data_dir.path

    def clear_unclean(self) -> None:
        """The cluster has been told of what was lost: the next start need not say it again."""
        if self._data_dir.unclean:
            self._data_dir.clear_unclean()

    @property
    def disk_full(self) -> bool:
        """True: nothing may be published."""
        return self._disk.full

    @property
    def disk_free_bytes(self) -> int:
        """As of the last look, at most `disk_check_interval_ms` ago."""
        return self._disk.free_bytes

    def check_disk(self) -> None:
        """Looks at the free space now."""
        self._disk.check()

    @property
    def committer(self) -> Committer:
        """Of the partition logs: back-pressure, barriers, metrics."""
        return self._committer

    @property
    def tail_bytes(self) -> int:
        """Recent batches in memory."""
        return self._tail.size_bytes

    @property
    def scrubbed_bytes(self) -> int:
        """Read since the start to see whether they can be."""
        return self._maintenance.scrub.scrubbed_bytes

    async def wait_for_room(self) -> None:
        """Back-pressure for publishers: waits, in turn, while too much is queued for the disk."""
        await self._committer.wait_for_room()

    async def barrier(self) -> None:
        """Returns when all that was appended, trimmed, created or deleted so far is durable."""
        await self._committer.barrier()

    async def maintain(self) -> None:
        """One round of retention and space reclaim, now. The loops do the same by themselves."""
        await self._maintenance.run_once()

    async def close(self) -> None:
        """Drains, closes, and leaves a clean mark. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._maintenance.stop()
        if not self._committer.failed:
            for log in self._logs.values():
                log.save_high_watermark()
        # Drain before RocksDB's background work is cancelled: writes could stall without it.
        await self._committer.close()
        await self.meta.committer.close()
        for log in self._logs.values():
            log.close()
        await asyncio.to_thread(self._close_files)

    def _close_files(self) -> None:
        self._maintenance.close()
        self._readers.shutdown(wait=True)
        committers = (self.meta.committer, self._committer)
        for database, committer in zip(self._databases, committers, strict=True):
            if not committer.failed:
                database.mark.record(database.engine.sequence(), clean=True)
                database.mark.sync()
            database.close()
        self._data_dir.release()

    def _make_log(self, log_id: int, state: LogState, saved_producers: Iterable[tuple[int, bytes]]) -> PartitionLog:
        producers = ProducerTable(producers_max=self._settings.producers_max)
        producers.load(iter(saved_producers))
        return PartitionLog(
            log_id,
            state,
            context=self._context,
            reader=LogReader(self._engine, log_id),
            tail=self._tail.of_log(),
            producers=producers,
            request_ids=RequestIdTable(
                monotonic=self._context.clock.monotonic, request_ids_max=self._settings.request_ids_max
            ),
        )


def accept_losses(data_dir: Path, settings: StorageSettings, *, now_us: int) -> list[Loss]:
    """For `postbus doctor --accept-loss`: makes a store that raised StoreLoss open again. Blocks.

    Returns what was lost, which is recorded in the data directory too. Raises StoreLocked, StoreFailed.
    """
    lock = DataDir.acquire(data_dir)
    try:
        identity = lock.read_identity()
        meta, data = database_specs(settings)
        losses = []
        for spec in (meta, data):

            def on_loss(spec: DatabaseSpec = spec) -> None:
                lock.write_unclean()
                if spec is meta and identity is not None and identity.replicated:
                    # What it had promised to its peers is forgotten: it must not pass for the store that promised it.
                    lock.write_identity(replace(identity, store_id=uuid.uuid4().hex))

            loss = accept_loss(data_dir, spec, now_us=now_us, expected=identity is not None, on_loss=on_loss)
            losses.extend([loss] if loss is not None else [])
        return losses
    finally:
        lock.release()


def database_specs(settings: StorageSettings) -> tuple[DatabaseSpec, DatabaseSpec]:
    """How `meta` and `data` are opened; for whoever looks at them offline, too."""
    meta = DatabaseSpec(
        name="meta",
        families=meta_families(),
        block_cache_bytes=2 * MIB,
        wal_bytes_max=settings.wal_bytes_max // 8,
        load=_check_meta,
        salvage=copy_raft,
        divisible=False,
    )
    data = DatabaseSpec(
        name="data",
        families=data_families(memtable_bytes=settings.memtable_bytes),
        block_cache_bytes=settings.block_cache_bytes,
        wal_bytes_max=settings.wal_bytes_max,
        load=_load_logs,
        salvage=copy_logs,
        divisible=True,
        live_bytes=live_bytes,
        damaged=damaged_logs,
    )
    return meta, data


def rebuilds(data_dir: Path) -> dict[str, str]:
    """The databases that the next start replaces by a copy, and why."""
    requests = {name: requested(data_dir / name) for name in ("meta", "data")}
    return {name: request.why for name, request in requests.items() if request is not None}


def _open(
    path: Path,
    settings: StorageSettings,
    *,
    node_id: int,
    cluster_id: str,
    new_id: Callable[[], str],
    now_us: int,
    free_bytes: Callable[[Path], int],
) -> _Opened:
    begin = time.monotonic()
    data_dir = DataDir.acquire(path)
    opened: list[OpenDatabase] = []
    losses: list[Loss] = []
    rebuilt: list[Rebuilt | None] = []
    rebuild = partial(
        rebuild_database, path, now_us=now_us, keep_damaged=not settings.replicated, free_bytes=free_bytes
    )
    try:
        identity = data_dir.read_identity()
        if identity is not None:
            _check_identity(path, identity, node_id=node_id, cluster_id=cluster_id, replicated=settings.replicated)
        meta_spec, data_spec = database_specs(settings)
        expected = identity is not None
        try:
            rebuilt.append(rebuild(meta_spec))
            opened.append(open_database(path, meta_spec, expected=expected))
        except StoreLoss as error:
            if not settings.replicated:
                raise
            # The new identity first: an empty `meta` under the old one could vote a second time.
            data_dir.write_unclean()
            if identity is not None:
                identity = replace(identity, store_id=new_id())
                data_dir.write_identity(identity)
            losses.append(set_aside(path, meta_spec, now_us=now_us, reason=str(error)))
            opened.append(open_database(path, meta_spec))
        try:
            rebuilt.append(rebuild(data_spec))
            opened.append(open_database(path, data_spec, expected=expected))
        except StoreLoss:
            if not settings.replicated:
                raise
            data_dir.write_unclean()
            loss = accept_loss(path, data_spec, now_us=now_us, expected=expected, keep_copy=False)
            losses.extend([loss] if loss is not None else [])
            rebuilt.append(rebuild(data_spec))
            opened.append(open_database(path, data_spec))
        if not settings.replicated and data_dir.unclean:
            data_dir.clear_unclean()  # accepted by an operator, and there is nobody to tell
        if identity is None:
            identity = Identity(cluster_id or new_id(), node_id, new_id(), settings.replicated)
            data_dir.write_identity(identity)
        elif settings.replicated and not identity.replicated:
            identity = replace(identity, replicated=True)
            data_dir.write_identity(identity)
        disk = DiskWatch(
            path,
            free_min_bytes=settings.disk_free_min_bytes,
            reserve_bytes=settings.disk_reserve_bytes,
            free_bytes=free_bytes,
        )
    except BaseException:
        for database in opened:
            database.close()
        data_dir.release()
        raise
    meta, data = opened
    reports = (meta.report, data.report)
    return _Opened(
        data_dir=data_dir,
        identity=identity,
        meta=meta,
        data=data,
        disk=disk,
        report=RecoveryReport(
            logs_count=len(data.loaded.states),
            wal_bytes=sum(report.wal_bytes for report in reports),
            seconds=time.monotonic() - begin,
            clean=all(report.clean for report in reports),
            created=all(report.created for report in reports),
            databases=reports,
            unclean=settings.replicated and data_dir.unclean,
            losses=tuple(losses),
            rebuilt=tuple(each for each in rebuilt if each is not None),
        ),
    )


def _check_identity(path: Path, identity: Identity, *, node_id: int, cluster_id: str, replicated: bool) -> None:
    if identity.node_id != node_id:
        raise StoreFailed(
            f"{path} is the data directory of node {identity.node_id}, and this node's id is {node_id}: set node_id to"
            f" {identity.node_id}, or name another data directory"
        )
    if cluster_id and identity.cluster_id != cluster_id:
        raise StoreFailed(
            f"{path} belongs to cluster {identity.cluster_id!r}, and this node is to be of {cluster_id!r}: correct"
            " cluster_id, or name another data directory"
        )
    if identity.replicated and not replicated:
        # Out of reach of the others it would wait for them for ever.
        raise StoreFailed(
            f"{path} is one node's part of cluster {identity.cluster_id!r}: name the cluster's peers (and its"
            " cluster_id), or another data directory"
        )


def _check_meta(engine: Engine) -> None:
    """All of it can be read. What Raft finds damaged later could only end the node. Raises StoreCorrupt."""
    engine.scan(RAFT, b"", b"\xff")


def _load_logs(engine: Engine) -> _SavedLogs:
    """States and producers of all logs. Raises StoreCorrupt."""
    producers: dict[int, list[tuple[int, bytes]]] = {}
    for key, value in engine.scan(PRODUCERS, b"", b"\xff" * 17):
        producers.setdefault(key_log_id(key), []).append((key_number(key), value))
    try:
        states = {key_log_id(key): LogState.decode(value) for key, value in engine.scan(STATE, b"", b"\xff" * 9)}
    except ValueError as error:
        raise StoreCorrupt(str(error)) from error
    return _SavedLogs(states=states, producers=producers)
