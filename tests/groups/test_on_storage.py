"""The coordinator on the real log: what is answered survives closing and opening the store."""

from pathlib import Path

from broker.clock import ManualClock
from broker.groups.calls import CommitEntry
from broker.storage.store import LogStore, StorageSettings

LOG_ID = 7


async def test_a_group_survives_on_the_real_store(tmp_path: Path, new_bench) -> None:
    """Members, owners, fences and offsets come from the table; fences go on growing."""
    fatal: list[Exception] = []

    async def open_store() -> LogStore:
        return await LogStore.open(
            tmp_path / "store", StorageSettings(), ManualClock(), fatal.append, free_bytes=lambda path: 1 << 40
        )

    store = await open_store()
    bench = new_bench()
    bench.coordinator = bench._new(store.create_log(LOG_ID))
    await bench.coordinator.start()
    first = await bench.join(stream=False)
    entries = [CommitEntry(a.topic_id, a.partition, 30 + a.partition, a.fence) for a in first.target]
    assert await bench.coordinator.commit("g", first.member_id, entries) == [None] * 4
    await bench.coordinator.close()
    await store.close()

    store = await open_store()
    bench.coordinator = bench._new(store.create_log(LOG_ID))
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
