"""A coordinator on the real log: what is answered survives closing and opening the store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.clock import ManualClock
from broker.groups.calls import CommitEntry
from broker.storage.batch import NewBatch
from broker.storage.log import PartitionLog
from broker.storage.store import LogStore, StorageSettings

LOG_ID = 7


class LonePartition:
    """A log that nobody else has: safe is what is durable here."""

    number, leader_id, leader_epoch, leading = 0, 1, 0, True

    def __init__(self, log: PartitionLog) -> None:
        self.log = self.local = log
        self._listeners: dict[Callable[[], None], None] = {}
        log.on_progress = self._progressed

    @property
    def high_watermark(self) -> int:
        return self.log.durable_end_offset

    def writable_error(self) -> None:
        return None

    def append(self, new: NewBatch) -> Any:
        return self.log.append(new, now_us=1)

    def add_listener(self, wake: Callable[[], None]) -> None:
        self._listeners[wake] = None

    def remove_listener(self, wake: Callable[[], None]) -> None:
        self._listeners.pop(wake, None)

    def _progressed(self) -> None:
        for wake in list(self._listeners):
            wake()


async def test_a_group_survives_on_the_real_store(tmp_path: Path, new_bench) -> None:
    """Members, owners, fences and offsets come from the log; fences go on growing."""
    fatal: list[Exception] = []

    async def open_store() -> LogStore:
        return await LogStore.open(
            tmp_path / "store", StorageSettings(), ManualClock(), fatal.append, free_bytes=lambda path: 1 << 40
        )

    store = await open_store()
    bench = new_bench()
    bench.coordinator = bench.new(LonePartition(store.create_log(LOG_ID)))
    await bench.coordinator.start()
    first = await bench.join(stream=False)
    entries = [CommitEntry(a.topic_id, a.partition, 30 + a.partition, a.fence) for a in first.target]
    assert await bench.coordinator.commit("g", first.member_id, entries) == [None] * 4
    await bench.coordinator.close()
    await store.close()

    store = await open_store()
    bench.coordinator = bench.new(LonePartition(store.create_log(LOG_ID)))
    await bench.coordinator.start()
    after = await bench.beat(first, 0, 1, 2, 3, stream=False)
    assert [(a.key, a.fence) for a in after.target] == [(a.key, a.fence) for a in first.target]
    assert [a.offset for a in after.target] == [30, 31, 32, 33]
    place = after.target[0]
    moved = await bench.coordinator.seek("g", first.member_id, place.topic_id, place.partition, 3, place.fence)
    assert moved.fence > max(a.fence for a in after.target)
    await bench.coordinator.close()
    await store.close()
    assert not fatal
