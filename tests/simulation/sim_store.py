"""A node's store on a simulated disk: the real `LogStore` with engines, committers and marks of `sim_disk.py`.

Owns what `LogStore.open` does with files: it opens databases, finds out what is left of them and says so. Everything
after that is storage's own code. A disk damaged in what every start reads of `data` makes the node unclean; damage in
`meta` makes it a new store.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sim_disk import SimCommitter, SimDisk, SimEngine, SimMark
from sim_loop import Process

from broker.clock import Clock
from broker.storage import store as store_module
from broker.storage.disk_watch import DiskWatch
from broker.storage.recovery import OpenDatabase, RecoveredDatabase
from broker.storage.store import LogStore, RecoveryReport, StorageSettings


def open_store(
    disk: SimDisk,
    process: Process,
    *,
    clock: Clock,
    on_fatal: Callable[[Exception], None],
    settings: StorageSettings | None = None,
) -> LogStore:
    """In the process's own code."""
    settings = settings or StorageSettings()
    opened = {name: _open(disk, process, name) for name in ("meta", "data")}
    reports = tuple(database.report for database in opened.values())
    report: dict[str, Any] = {
        "logs_count": len(opened["data"].loaded.states),
        "wal_bytes": 0,
        "seconds": 0.0,
        "clean": all(report.clean for report in reports),
        "created": all(report.created for report in reports),
        "databases": reports,
    }
    opened_all = store_module._Opened(
        data_dir=SimpleNamespace(path=Path("simulated"), release=lambda: None),  # type: ignore[arg-type]
        meta=opened["meta"],
        data=opened["data"],
        disk=DiskWatch(Path("simulated"), free_min_bytes=1, reserve_bytes=1, free_bytes=lambda path: 1 << 40),
        report=RecoveryReport(**report),
    )
    with mock.patch.object(store_module, "Committer", SimCommitter):
        return LogStore(
            opened_all,
            settings=settings,
            clock=clock,
            on_fatal=on_fatal,
            on_maintenance_error=lambda error: None,
            loop=disk.loop,
        )


def _open(disk: SimDisk, process: Process, name: str) -> OpenDatabase:
    created = name not in disk.databases
    engine = SimEngine(disk, disk.database(name), process)
    loaded = store_module._load_logs(engine) if name == "data" else None  # type: ignore[arg-type]
    report = RecoveredDatabase(
        name=name, clean=engine.database.clean, created=created, damaged_tail=False, wal_bytes=0, seconds=0.0
    )
    return OpenDatabase(engine=engine, mark=SimMark(engine), loaded=loaded, report=report)  # type: ignore[arg-type]
