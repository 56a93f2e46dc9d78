"""Damage to real files: a torn tail is normal, a lost promise is never silent."""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from broker.clock import ManualClock
from broker.storage.data_dir import DataDir, read_identity
from broker.storage.durable_mark import DurableMark, read_mark
from broker.storage.engine import Engine
from broker.storage.errors import LogCorrupt, StoreFailed, StoreLoss
from broker.storage.log import NewBatch
from broker.storage.log_state import LOG_FAMILIES, RAFT, data_families
from broker.storage.recovery import Loss, accepted_losses
from broker.storage.store import LogStore, StorageSettings, accept_losses

SETTINGS = StorageSettings(tail_bytes_max=0)
BATCHES = 200
BATCH_BYTES = 2000


def batch_at(offset: int) -> bytes:
    return offset.to_bytes(4, "big") * (BATCH_BYTES // 4)


def fail(error: Exception) -> None:
    raise error


async def opened(path: Path, *, replicated: bool = False) -> LogStore:
    return await LogStore.open(path, replace(SETTINGS, replicated=replicated), ManualClock(), fail)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A store with BATCHES acknowledged single-record batches, all of them in the WAL only."""
    path = tmp_path / "store"
    store = await opened(path)
    log = store.create_log(1)
    for offset in range(BATCHES):
        log.append(NewBatch(batch_at(offset), 1), now_us=offset)
        if offset % 10 == 0:
            await log.barrier()
    await store.close()
    return path


def wal(folder: Path, database: str = "data") -> Path:
    return max((folder / database).glob("*.log"), key=lambda file: file.stat().st_size)


def cut(file: Path, bytes_count: int) -> None:
    with file.open("r+b") as open_file:
        open_file.truncate(file.stat().st_size - bytes_count)


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def set_mark(folder: Path, sequence: int, database: str = "data") -> None:
    mark = DurableMark(folder / f"{database}.mark")
    mark.record(sequence)
    mark.close()


def promised(folder: Path) -> int:
    mark = read_mark(folder / "data.mark")
    assert mark is not None
    return mark.sequence


async def contents(store: LogStore) -> list[bytes]:
    log = store.log(1)
    found: list[bytes] = []
    while len(found) < log.end_offset:
        batches = await log.read(len(found), end_offset=log.end_offset, max_bytes=1 << 20)
        found.extend(bytes(batch.batch) for batch in batches)
    return found


async def test_a_whole_store_opens_and_says_what_it_did(folder: Path) -> None:
    store = await opened(folder)
    assert await contents(store) == [batch_at(offset) for offset in range(BATCHES)]
    assert store.recovery.clean
    assert store.recovery.logs_count == 1
    assert store.recovery.wal_bytes > BATCHES * BATCH_BYTES
    await store.close()


async def test_a_torn_tail_past_the_mark_is_no_loss(folder: Path) -> None:
    """What a power cut leaves of writes that were never acknowledged: gone, and nobody minds."""
    set_mark(folder, promised(folder) - 50)
    cut(wal(folder), 5000)
    store = await opened(folder)
    found = await contents(store)
    assert BATCHES - 20 < len(found) < BATCHES
    assert found == [batch_at(offset) for offset in range(len(found))]
    assert not store.recovery.clean
    await store.close()


async def test_damage_inside_the_wal_past_the_mark_is_no_loss(folder: Path) -> None:
    """RocksDB refuses this by itself; the copy shows that everything promised stands before it."""
    set_mark(folder, promised(folder) // 2)
    file = wal(folder)
    flip(file, file.stat().st_size * 3 // 4)
    store = await opened(folder)
    found = await contents(store)
    assert BATCHES // 2 < len(found) < BATCHES
    assert found == [batch_at(offset) for offset in range(len(found))]
    assert store.recovery.databases[1].damaged_tail
    assert store.log(1).append(NewBatch(b"on", 1), now_us=0).base_offset == len(found)
    await store.close()
    assert not (folder / "data.recovering").exists()


Damage = Callable[[Path], None]


def cut_half(folder: Path) -> None:
    cut(wal(folder), wal(folder).stat().st_size // 2)


def cut_the_last_bytes(folder: Path) -> None:
    cut(wal(folder), 100)


def delete_wal(folder: Path) -> None:
    wal(folder).unlink()


def flip_in_the_middle(folder: Path) -> None:
    flip(wal(folder), wal(folder).stat().st_size // 2)


def flip_in_the_last_record(folder: Path) -> None:
    flip(wal(folder), wal(folder).stat().st_size - 50)


def delete_database(folder: Path) -> None:
    for file in (folder / "data").iterdir():
        file.unlink()


def delete_mark(folder: Path) -> None:
    (folder / "data.mark").unlink()


def damage_manifest(folder: Path) -> None:
    for file in (folder / "data").glob("MANIFEST-*"):
        file.write_bytes(b"\xff" * 200)


DAMAGES = [
    cut_half,
    cut_the_last_bytes,
    delete_wal,
    flip_in_the_middle,
    flip_in_the_last_record,
    delete_database,
    delete_mark,
    damage_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_lost_promises_refuse_the_start_until_accepted(folder: Path, damage: Damage) -> None:
    """Every time, not only the first; the message names the way out; after it, what is left is whole."""
    damage(folder)
    for _ in range(2):
        with pytest.raises(StoreLoss, match="postbus doctor --accept-loss"):
            await opened(folder)
    losses = await asyncio.to_thread(accept_losses, folder, SETTINGS, now_us=77)
    assert [(loss.database, loss.time_us) for loss in losses] == [("data", 77)]
    assert accepted_losses(folder) == losses
    store = await opened(folder)
    left = await contents(store) if store.log_ids() else []
    assert left == [batch_at(offset) for offset in range(len(left))]
    store.create_log(1).append(NewBatch(b"on", 1), now_us=0)
    await store.close()
    await (await opened(folder)).close()
    assert await asyncio.to_thread(accept_losses, folder, SETTINGS, now_us=78) == []


async def test_accepting_keeps_the_damaged_files_and_all_that_can_be_read(folder: Path) -> None:
    flip_in_the_middle(folder)
    damaged = wal(folder).read_bytes()
    [loss] = await asyncio.to_thread(accept_losses, folder, SETTINGS, now_us=77)
    assert isinstance(loss, Loss)
    assert 0 < loss.recovered_sequence < loss.promised_sequence
    assert damaged in [file.read_bytes() for file in (folder / loss.set_aside).glob("*.log")]
    store = await opened(folder)
    assert len(await contents(store)) > BATCHES // 3
    await store.close()


async def test_a_lost_metadata_database_is_a_loss_too(folder: Path) -> None:
    store = await opened(folder)
    for number in range(10):
        store.meta.committer.submit([("put", RAFT, b"%d" % number, b"x" * 100)], size_bytes=100)
    await store.close()
    cut(wal(folder, "meta"), 150)
    with pytest.raises(StoreLoss, match="'meta'"):
        await opened(folder)


async def test_losing_a_race_of_openings_leaves_nothing_locked(folder: Path) -> None:
    """A refused start releases the folder: `doctor` can have it at once."""
    delete_wal(folder)
    with pytest.raises(StoreLoss):
        await opened(folder)
    assert len(await asyncio.to_thread(accept_losses, folder, SETTINGS, now_us=1)) == 1


async def test_an_unknown_format_is_refused_untouched(folder: Path) -> None:
    for other in ("postbus 1", "postbus 3"):
        (folder / "FORMAT").write_text(other + "\n")
        with pytest.raises(StoreFailed, match=other):
            await opened(folder)


async def test_a_part_of_a_cluster_is_not_opened_as_a_bus_of_its_own(folder: Path) -> None:
    await (await opened(folder, replicated=True)).close()
    with pytest.raises(StoreFailed, match="name the cluster's peers"):
        await opened(folder)
    await (await opened(folder, replicated=True)).close()


async def test_in_a_cluster_lost_data_opens_with_what_is_left_and_says_so_until_told(folder: Path) -> None:
    """The others have the records; what must not happen is that this copy passes for whole."""
    identity = read_identity(folder)
    assert identity is not None
    flip(wal(folder), BATCH_BYTES * 20)
    store = await opened(folder, replicated=True)
    assert store.recovery.unclean
    assert [loss.database for loss in store.recovery.losses] == ["data"]
    assert 0 < store.log(1).end_offset < BATCHES
    assert await contents(store) == [batch_at(offset) for offset in range(store.log(1).end_offset)]
    assert store.identity == replace(identity, replicated=True)
    await store.close()
    store = await opened(folder, replicated=True)
    assert store.recovery.unclean, "nobody was told yet"
    assert store.recovery.losses == ()
    store.clear_unclean()
    await store.close()
    store = await opened(folder, replicated=True)
    assert not store.recovery.unclean
    await store.close()
    assert [loss.database for loss in accepted_losses(folder)] == ["data"]


@pytest.mark.parametrize("damage", ["wal", "all", "all and its mark"])
async def test_in_a_cluster_lost_metadata_makes_another_store_of_it(folder: Path, damage: str) -> None:
    """Votes that were promised are forgotten, so it must not be counted as the store that promised them."""
    store = await opened(folder, replicated=True)
    before = store.identity
    for number in range(10):
        store.meta.committer.submit([("put", RAFT, b"%d" % number, b"x" * 100)], size_bytes=100)
    await store.close()
    if damage == "wal":
        cut(wal(folder, "meta"), 150)
    else:
        shutil.rmtree(folder / "meta")
    if damage == "all and its mark":
        (folder / "meta.mark").unlink()
    store = await opened(folder, replicated=True)
    assert store.identity.store_id != before.store_id
    assert (store.identity.node_id, store.identity.cluster_id) == (before.node_id, before.cluster_id)
    assert store.recovery.unclean
    assert store.meta.engine.scan(RAFT, b"", b"\xff") == []
    assert len(await contents(store)) == BATCHES
    after = store.identity
    await store.close()
    [loss] = accepted_losses(folder)
    assert loss.database == "meta"
    assert (damage == "wal") == bool(list((folder / loss.set_aside).glob("*.log")) if loss.set_aside else [])
    store = await opened(folder, replicated=True)
    assert store.identity == after
    await store.close()


async def test_accepting_lost_metadata_of_a_cluster_by_hand_makes_another_store_too(folder: Path) -> None:
    await (await opened(folder, replicated=True)).close()
    before = read_identity(folder)
    shutil.rmtree(folder / "meta")
    assert len(await asyncio.to_thread(accept_losses, folder, SETTINGS, now_us=1)) == 1
    after = read_identity(folder)
    assert before is not None
    assert after is not None
    assert before.store_id != after.store_id


@pytest.mark.parametrize("name", ["meta", "data"])
async def test_accepting_that_is_cut_short_leaves_no_store_that_passes_for_whole(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could vote a second time, or be elected without what it had promised to keep."""
    await (await opened(folder, replicated=True)).close()
    before = read_identity(folder)
    shutil.rmtree(folder / name)

    def cut_short(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DataDir, "_write", cut_short)
        with pytest.raises(KeyboardInterrupt):
            accept_losses(folder, SETTINGS, now_us=1)
    store = await opened(folder, replicated=True)
    assert store.recovery.unclean
    assert (store.identity != before) == (name == "meta")
    await store.close()


@pytest.mark.parametrize("name", ["meta", "data"])
async def test_a_database_that_vanished_whole_is_a_loss(folder: Path, name: str) -> None:
    """The identity says that it was there."""
    shutil.rmtree(folder / name)
    (folder / f"{name}.mark").unlink()
    with pytest.raises(StoreLoss, match="gone"):
        await opened(folder)
    assert len(await asyncio.to_thread(accept_losses, folder, SETTINGS, now_us=1)) == 1
    await (await opened(folder)).close()


def to_blob_files(folder: Path) -> None:
    """Empties the WAL into table and blob files."""
    engine = Engine.open(folder / "data", data_families(memtable_bytes=SETTINGS.memtable_bytes))
    for family in LOG_FAMILIES:
        engine.compact(family, b"", b"\xff")
    engine.close()


async def test_a_flipped_bit_in_a_blob_is_never_served(folder: Path) -> None:
    """The reads before and after it go on; the damaged batch itself raises, with its offset."""
    await asyncio.to_thread(to_blob_files, folder)
    [blob] = (folder / "data").glob("*.blob")
    flip(blob, blob.read_bytes().index(batch_at(120)) + 500)
    store = await opened(folder)
    log = store.log(1)
    found = await log.read(100, end_offset=BATCHES, max_bytes=1 << 20)
    assert [batch.base_offset for batch in found] == list(range(100, 120))
    with pytest.raises(LogCorrupt) as error:
        await log.read(120, end_offset=BATCHES, max_bytes=1 << 20)
    assert (error.value.log_id, error.value.offset) == (1, 120)
    found = await log.read(121, end_offset=BATCHES, max_bytes=1 << 20)
    assert [bytes(batch.batch) for batch in found] == [batch_at(offset) for offset in range(121, BATCHES)]
    await store.close()


async def test_a_flipped_bit_in_a_table_is_never_served(folder: Path) -> None:
    """Whatever table it hits: an error, or the right answer, but never a wrong one. Who keeps the error does not keep
    the files: they can be opened again."""
    await asyncio.to_thread(to_blob_files, folder)
    outcomes = set()
    kept: list[Exception] = []
    for table in sorted((folder / "data").glob("*.sst")):
        intact = table.read_bytes()
        flip(table, min(100, len(intact) // 4))
        try:
            store = await opened(folder)
        except StoreLoss as error:
            outcomes.add("StoreLoss")
            kept.append(error)
        else:
            try:
                assert await contents(store) == [batch_at(offset) for offset in range(BATCHES)]
                outcomes.add("fine")
            except LogCorrupt as error:
                outcomes.add("LogCorrupt")
                kept.append(error)
            await store.close()
        table.write_bytes(intact)
    assert outcomes >= {"LogCorrupt", "StoreLoss"} and kept


async def test_a_damaged_state_table_can_be_accepted_as_a_loss(folder: Path) -> None:
    """Its log ended nobody knows where: it is given up. What could not be read is kept."""
    await asyncio.to_thread(to_blob_files, folder)
    for table in (folder / "data").glob("*.sst"):
        flip(table, table.stat().st_size // 5)
    with pytest.raises(StoreLoss):
        await opened(folder)
    [loss] = await asyncio.to_thread(accept_losses, folder, SETTINGS, now_us=77)
    assert loss.recovered_sequence == loss.promised_sequence
    assert list((folder / loss.set_aside).glob("*.blob"))
    store = await opened(folder)
    assert store.log_ids() == []
    await store.close()
