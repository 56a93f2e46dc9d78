"""A process that appends until it is killed. Prints one line an acknowledgement: `log end_offset`.

Not a test: test_crash.py runs it. What a batch holds follows from its log and offset alone, so that the reader needs
to remember nothing.
"""

import asyncio
import hashlib
import os
import sys
from functools import partial
from pathlib import Path

from broker.clock import SystemClock
from broker.storage.log import NewBatch, PartitionLog
from broker.storage.store import LogStore, StorageSettings

LOGS = (1, 2, 3)
# Small memtables and WAL, so that flushes and compactions run under the kill too.
SETTINGS = StorageSettings(
    memtable_bytes=1 << 20, wal_bytes_max=4 << 20, tail_bytes_max=0, append_queue_bytes_max=128 * 1024
)


def batch_of(log_id: int, offset: int) -> tuple[bytes, int]:
    seed = hashlib.sha256(b"%d/%d" % (log_id, offset)).digest()
    size = seed[0] * 100
    count = 1 + seed[1] % 20
    return seed * (size // len(seed) + 1), count


async def main(folder: Path) -> None:
    store = await LogStore.open(folder, SETTINGS, SystemClock(), lambda error: os._exit(3))

    def acknowledge(log: PartitionLog) -> None:
        os.write(1, b"%d %d\n" % (log.log_id, log.durable_end_offset))

    clock = SystemClock()
    sequences = {}
    for log_id in LOGS:
        log = store.create_log(log_id)
        log.on_progress = partial(acknowledge, log)
        sequences[log_id] = next_sequence(log)
    os.write(1, b"open\n")
    while True:
        for log_id in LOGS:
            await store.wait_for_room()
            log = store.log(log_id)
            batch, count = batch_of(log_id, log.end_offset)
            new = NewBatch(batch, count, producer_id=log_id, producer_sequence=sequences[log_id])
            sequences[log_id] += 1
            log.append(new, now_us=clock.wall_us())
        await asyncio.sleep(0)


def next_sequence(log: PartitionLog) -> int:
    """As a producer that asks the log itself: whichever sequence is new."""
    sequence = 0
    if log.end_offset:
        state = log.producers._producers[log.log_id]
        sequence = state.batches[-1].sequence + 1
        assert state.batches[-1].end_offset == log.end_offset
    assert log.producers.check(log.log_id, 0, sequence) is None
    return sequence


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
