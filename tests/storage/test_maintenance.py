"""Disk space that records no longer need comes back."""

import asyncio
import os
from collections.abc import Awaitable, Callable

from broker.clock import ManualClock
from broker.storage.log import NewBatch, PartitionLog
from broker.storage.maintenance import Maintenance, MaintenanceSettings
from broker.storage.store import LogStore

OpenStore = Callable[..., Awaitable[LogStore]]
MIB = 1024 * 1024
BATCH = 100_000
SETTINGS = {"memtable_bytes": MIB, "tail_bytes_max": 0, "maintenance": MaintenanceSettings(garbage_bytes_min=MIB)}


def blob_bytes(store: LogStore) -> int:
    return sum(file.stat().st_size for file in (store.path / "data").glob("*.blob"))


async def fill(store: LogStore, log_ids: range, *, batches: int, now_us: int = 0) -> None:
    """Logs written in turn, so that their batches share files."""
    for number in range(batches):
        for log_id in log_ids:
            await store.wait_for_room()
            store.create_log(log_id).append(NewBatch(os.urandom(BATCH), 10), now_us=now_us + number)
    await store.barrier()
    for log_id in log_ids:
        store.log(log_id).set_high_watermark(store.log(log_id).end_offset)


async def test_the_space_of_deleted_logs_comes_back(open_store: OpenStore) -> None:
    store = await open_store(**SETTINGS)
    await fill(store, range(4), batches=40)
    for log_id in range(3):
        store.delete_log(log_id)
    await store.maintain()
    live = store.log(3).size_bytes
    assert blob_bytes(store) <= 2 * live + MIB
    assert len(await store.log(3).read(0, end_offset=400, max_bytes=64 * MIB)) == 40


async def test_the_space_of_all_logs_comes_back(open_store: OpenStore) -> None:
    store = await open_store(**SETTINGS)
    await fill(store, range(3), batches=30)
    for log_id in range(3):
        store.delete_log(log_id)
    await store.maintain()
    assert blob_bytes(store) <= MIB


async def test_the_space_of_expired_batches_comes_back(open_store: OpenStore, clock: ManualClock) -> None:
    """By time in one log, by size in another, while a third keeps everything."""
    store = await open_store(**SETTINGS)
    await fill(store, range(3), batches=40, now_us=clock.wall_us())
    by_time, by_size, kept = (store.log(log_id) for log_id in range(3))
    by_time.retention_us = 1_000_000
    by_size.retention_bytes = MIB
    clock.advance(10)
    await store.maintain()
    assert (by_time.log_start_offset, by_time.size_bytes) == (400, 0)
    assert by_size.size_bytes <= MIB
    live = sum(log.size_bytes for log in (by_time, by_size, kept))
    assert blob_bytes(store) <= 2 * live + MIB
    assert len(await kept.read(0, end_offset=400, max_bytes=64 * MIB)) == 40


async def test_small_batches_come_back_too(open_store: OpenStore) -> None:
    """They live in tables, not in blob files."""
    store = await open_store(**SETTINGS)
    log = store.create_log(1)
    for _ in range(20_000):
        log.append(NewBatch(os.urandom(300), 1), now_us=1)
    await log.barrier()
    log.trim(20_000)
    await store.maintain()
    tables = sum(file.stat().st_size for file in (store.path / "data").glob("*.sst"))
    # The index entries stay for the deduplication window.
    assert tables < 3 * MIB


async def test_a_round_that_fails_is_told_and_is_not_the_last(clock: ManualClock) -> None:
    """Whatever it failed of: without the loop the disk would fill up unseen."""
    failed: list[Exception] = []
    went_on = asyncio.Event()

    def logs() -> list[PartitionLog]:
        if not failed:
            raise ZeroDivisionError("a bug")
        went_on.set()
        return []

    maintenance = Maintenance(
        engine=None,  # type: ignore[arg-type]
        clock=clock,
        logs=logs,
        barrier=lambda: asyncio.sleep(0),
        check_disk=lambda: None,
        disk_check_interval_ms=1_000_000,
        producer_expiry_ms=1,
        settings=MaintenanceSettings(interval_ms=1, reclaim_interval_ms=1_000_000),
        on_error=failed.append,
    )
    maintenance.start()
    try:
        async with asyncio.timeout(10):
            await went_on.wait()
    finally:
        await maintenance.stop()
    assert [type(error) for error in failed] == [ZeroDivisionError]
