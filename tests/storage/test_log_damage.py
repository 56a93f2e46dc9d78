"""What RocksDB finds damaged in its files: it is noted once, the rest can be read, and a reset makes the log whole."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from broker.storage.errors import LogCorrupt, OffsetOutOfRange
from broker.storage.log import NewBatch, PartitionLog
from broker.storage.log_state import LOG_FAMILIES
from broker.storage.store import LogStore

OpenStore = Callable[..., Awaitable[LogStore]]
COUNT = 100


def fill(log: PartitionLog, size: int) -> None:
    for number in range(COUNT):
        log.append(NewBatch(bytes([number]) * size, 1), now_us=number)


async def read_all(log: PartitionLog) -> list[int]:
    """The offsets that can be read."""
    found: list[int] = []
    offset = log.log_start_offset
    while offset < log.end_offset:
        try:
            batches = await log.read(offset, end_offset=log.end_offset, max_bytes=1 << 20)
        except LogCorrupt as error:
            assert error.log_id == log.log_id
            offset += 1
            continue
        found += [batch.base_offset for batch in batches]
        offset = batches[-1].end_offset
    return found


async def damaged(open_store: OpenStore, folder: Path, kind: str, size: int) -> tuple[LogStore, PartitionLog]:
    """A log whose largest file of that kind has one bit flipped."""
    store = await open_store(tail_bytes_max=1 << 16)
    log = store.create_log(1)
    fill(log, size)
    await log.barrier()
    for family in LOG_FAMILIES:
        store._engine._families[family].flush(True)
    await store.close()
    file = max((folder / "store" / "data").glob(f"*.{kind}"), key=lambda each: each.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0x10
    file.write_bytes(data)
    store = await open_store(tail_bytes_max=1 << 16)
    return store, store.log(1)


@pytest.mark.parametrize(("kind", "size"), [("sst", 300), ("blob", 20_000)])
async def test_damage_is_noted_and_gone_after_a_reset(
    open_store: OpenStore, tmp_path: Path, fatal_errors: list[Exception], kind: str, size: int
) -> None:
    store, log = await damaged(open_store, tmp_path, kind, size)
    told: list[int] = []
    log.on_damage = lambda: told.append(log.damage.offset if log.damage else -1)
    whole = await read_all(log)
    assert 0 < len(whole) < COUNT
    assert told == [min(set(range(COUNT)) - set(whole))]
    await log.reset(0)
    assert log.damage is None
    fill(log, size)
    await log.barrier()
    assert await read_all(log) == list(range(COUNT))
    await store.maintain()
    log.append(NewBatch(b"x", 1), now_us=COUNT)
    await log.barrier()
    assert told[1:] == [] and not fatal_errors


async def test_what_was_trimmed_meanwhile_is_no_damage(open_store: OpenStore, tmp_path: Path) -> None:
    store, log = await damaged(open_store, tmp_path, "blob", 20_000)
    bad = min(set(range(COUNT)) - set(await read_all(log)))
    log.damage = None
    reading = asyncio.ensure_future(log.read(bad, end_offset=COUNT, max_bytes=1))
    await asyncio.sleep(0)  # it is on its way to the disk
    log.trim(bad + 1)
    with pytest.raises(OffsetOutOfRange):
        await reading
    assert log.damage is None
    await store.barrier()
