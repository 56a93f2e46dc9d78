"""What nobody reads is read all the same, slowly: damage is found, and nothing is looked at for ever."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from broker.clock import ManualClock
from broker.storage.log import NewBatch
from broker.storage.log_state import LOG_FAMILIES
from broker.storage.maintenance import MaintenanceSettings
from broker.storage.scrub import Scrub, ScrubSettings
from broker.storage.store import LogStore

OpenStore = Callable[..., Awaitable[LogStore]]
COUNT, SIZE = 40, 10_000
DAY_S = 24 * 3600


async def cold(open_store: OpenStore) -> LogStore:
    """Three logs in tables and blob files; none of it in memory."""
    store = await open_store()
    for log_id in (1, 2, 3):
        log = store.create_log(log_id)
        for number in range(COUNT):
            log.append(NewBatch(bytes([log_id, number]) * (SIZE // 2), 1, leader_epoch=1), now_us=number)
    await store.barrier()
    for family in LOG_FAMILIES:
        store._engine._families[family].flush(True)
    await store.close()
    return await open_store(maintenance=MaintenanceSettings(scrub=ScrubSettings(bytes_per_s=0)))


async def test_a_pass_reads_every_batch_once_at_its_rate_and_rests_for_a_day(
    open_store: OpenStore, clock: ManualClock
) -> None:
    store = await cold(open_store)
    scrub = Scrub(logs=store.logs, clock=clock, settings=ScrubSettings(bytes_per_s=100_000))
    total = sum(log.size_bytes for log in store.logs())
    steps = 0
    while scrub.scrubbed_bytes < total:
        before = scrub.scrubbed_bytes
        await scrub.step()
        assert 0 < scrub.scrubbed_bytes - before <= 200_000
        steps += 1
    assert total // 100_000 <= steps <= total // 100_000 + 2
    for _ in range(5):
        await scrub.step()
    assert scrub.scrubbed_bytes == total
    clock.advance(DAY_S)
    await scrub.step()
    assert scrub.scrubbed_bytes > total


async def test_damage_is_found_and_the_rest_is_read(open_store: OpenStore, clock: ManualClock, tmp_path: Path) -> None:
    """Of a log that is known to be damaged no more is read: it is about to be emptied, or stays as it is."""
    store = await cold(open_store)
    await store.close()
    [blob] = await asyncio.to_thread(lambda: list((tmp_path / "store" / "data").glob("*.blob")))
    data = bytearray(blob.read_bytes())
    data[data.index(bytes([2, 7]) * 100) + 50] ^= 0x10
    blob.write_bytes(data)
    store = await open_store(maintenance=MaintenanceSettings(scrub=ScrubSettings(bytes_per_s=0)))
    found: list[int] = []
    store.log(2).on_damage = lambda: found.append(2)
    scrub = Scrub(logs=store.logs, clock=clock, settings=ScrubSettings(bytes_per_s=10 << 20))
    await scrub.step()
    assert found == [2]
    damage = store.log(2).damage
    assert damage is not None
    assert damage.offset == 7
    assert store.log(1).damage is store.log(3).damage is None
    assert scrub.scrubbed_bytes >= 2 * COUNT * SIZE


async def test_logs_that_are_trimmed_or_deleted_meanwhile_are_passed_over(
    open_store: OpenStore, clock: ManualClock
) -> None:
    store = await cold(open_store)
    scrub = Scrub(logs=store.logs, clock=clock, settings=ScrubSettings(bytes_per_s=50_000))
    await scrub.step()
    store.log(1).trim(COUNT)
    store.delete_log(2)
    await store.maintain()
    for _ in range(20):
        await scrub.step()
    assert store.log(3).size_bytes <= scrub.scrubbed_bytes <= store.log(3).size_bytes + 100_000
    assert all(log.damage is None for log in store.logs())


async def test_the_store_does_it_by_itself_unless_it_is_off(open_store: OpenStore) -> None:
    store = await cold(open_store)
    await store.close()
    settings = ScrubSettings(bytes_per_s=100 << 20, step_ms=1)
    store = await open_store(maintenance=MaintenanceSettings(scrub=settings))
    total = sum(log.size_bytes for log in store.logs())
    async with asyncio.timeout(30):
        while store.scrubbed_bytes < total:
            await store.barrier()
    assert store.scrubbed_bytes == total
