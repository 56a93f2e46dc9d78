"""A node's store on a simulated disk: the real `LogStore` with engines, committers and marks of `sim_disk.py`.

Owns what `LogStore.open` does with files: it opens databases, finds out what is left of them and says so. Everything
after that is storage's own code. A `data` database that can't be read at a start begins anew, and the node is unclean
until the cluster knows; a damaged `meta` makes it a new store as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from sim_disk import SimCommitter, SimDisk, SimEngine, SimMark
from sim_loop import Process

from broker.clock import Clock
from broker.raft import storage as raft_storage
from broker.storage import store as store_module
from broker.storage.data_dir import Identity
from broker.storage.disk_watch import DiskWatch
from broker.storage.errors import StoreCorrupt
from broker.storage.recovery import OpenDatabase, RecoveredDatabase
from broker.storage.store import LogStore, RecoveryReport, StorageSettings

UNCLEAN = "UNCLEAN"


class _DataDir:
    """What is used of storage's DataDir."""

    path = Path("simulated")

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk

    @property
    def unclean(self) -> bool:
        return UNCLEAN in self._disk.files

    def clear_unclean(self) -> None:
        self._disk.files.pop(UNCLEAN, None)

    def release(self) -> None:
        """There is no lock."""


def open_store(
    disk: SimDisk,
    process: Process,
    *,
    clock: Clock,
    on_fatal: Callable[[Exception], None],
    node_id: int = 1,
    cluster_id: str = "simulated",
    settings: StorageSettings | None = None,
) -> LogStore:
    """In the process's own code. May give the disk another store id."""
    settings = settings or StorageSettings(replicated=True)
    meta = _open(disk, process, "meta", raft_storage.load)
    data = _open(disk, process, "data", store_module._load_logs)
    reports = (meta.report, data.report)
    data_dir = _DataDir(disk)
    report = RecoveryReport(
        logs_count=len(data.loaded.states),
        wal_bytes=0,
        seconds=0.0,
        clean=all(each.clean for each in reports),
        created=all(each.created for each in reports),
        databases=reports,
        unclean=data_dir.unclean,
    )
    opened = store_module._Opened(
        data_dir=data_dir,  # type: ignore[arg-type]
        identity=Identity(cluster_id, node_id, disk.store_id, settings.replicated),
        meta=meta,
        data=data,
        disk=DiskWatch(Path("simulated"), free_min_bytes=1, reserve_bytes=1, free_bytes=lambda path: 1 << 40),
        report=report,
    )
    with mock.patch.object(store_module, "Committer", SimCommitter):
        return LogStore(
            opened,
            settings=settings,
            clock=clock,
            on_fatal=on_fatal,
            on_maintenance_error=lambda error: None,
            loop=disk.loop,
        )


def _open(disk: SimDisk, process: Process, name: str, load: Callable[[Any], Any]) -> OpenDatabase:
    created = name not in disk.databases
    engine = SimEngine(disk, disk.database(name), process)
    try:
        loaded = load(engine)
    except StoreCorrupt:
        disk.files[UNCLEAN] = b""
        del disk.databases[name]
        if name == "meta":
            disk.new_identity()
        engine = SimEngine(disk, disk.database(name), process)
        loaded = load(engine)
    report = RecoveredDatabase(
        name=name, clean=engine.database.clean, created=created, damaged_tail=False, wal_bytes=0, seconds=0.0
    )
    return OpenDatabase(engine=engine, mark=SimMark(engine), loaded=loaded, report=report)  # type: ignore[arg-type]
