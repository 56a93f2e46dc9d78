"""What RocksDB alone does on this disk with the same batches, written and fsynced by the same group commit.

No gRPC, no validation, no subscribers: the ceiling that a node's publishing is compared with.
"""

import asyncio
import os
import time
from pathlib import Path

from broker.clock import SystemClock
from broker.storage.batch import NewBatch
from broker.storage.store import LogStore, StorageSettings

IN_FLIGHT = 32


def measure(folder: Path, *, record_bytes: int, records_per_batch: int, record_count: int) -> float:
    """Records a second that become durable, with as many batches in flight as a publisher has."""
    return asyncio.run(_measure(folder, record_bytes, records_per_batch, record_count))


async def _measure(folder: Path, record_bytes: int, records_per_batch: int, record_count: int) -> float:
    store = await LogStore.open(folder, StorageSettings(disk_free_min_bytes=0), SystemClock(), _failed)
    log = store.create_log(1)
    batch = os.urandom((record_bytes + 4) * records_per_batch)
    room = asyncio.Semaphore(IN_FLIGHT)
    durable = asyncio.Event()
    batches = record_count // records_per_batch
    seen = 0

    def progressed() -> None:
        nonlocal seen
        while seen < log.durable_end_offset:
            seen += records_per_batch
            room.release()
        if seen >= record_count:
            durable.set()

    log.on_progress = progressed
    begin = time.perf_counter()
    for _ in range(batches):
        await room.acquire()
        log.append(NewBatch(batch=batch, record_count=records_per_batch), now_us=time.time_ns() // 1000)
    await durable.wait()
    seconds = time.perf_counter() - begin
    await store.close()
    return batches * records_per_batch / seconds


def _failed(error: Exception) -> None:
    raise SystemExit(f"the disk failed: {error}")
