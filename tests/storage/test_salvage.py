"""A damaged database is copied as far as it can be read: nothing wrong is copied, nothing lost looks like a gap."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.clock import ManualClock
from broker.storage import rebuild, salvage
from broker.storage.engine import Engine
from broker.storage.errors import LogCorrupt, StoreCorrupt, StoreFailed, StoreLoss
from broker.storage.log import NewBatch, PartitionLog
from broker.storage.log_state import BATCHES, INDEX, LOG_FAMILIES, PRODUCERS, RAFT, STATE, data_families, meta_families
from broker.storage.recovery import accepted_losses
from broker.storage.store import LogStore, StorageSettings, accept_losses, rebuilds

SETTINGS = StorageSettings(tail_bytes_max=0, memtable_bytes=4 << 20)
COUNT = 400
LOGS = (1, 2)


def content(log_id: int, offset: int) -> bytes:
    """Small and large ones: in tables, and in blob files."""
    size = 3000 if offset % 5 == log_id else 200
    return (b"%d/%d " % (log_id, offset)) * (size // 8)


async def opened(path: Path, *, replicated: bool = False, free: int = 1 << 40, fatal: Any = None) -> LogStore:
    settings = replace(SETTINGS, replicated=replicated)
    return await LogStore.open(path, settings, ManualClock(), fatal or _fail, free_bytes=lambda folder: free)


def _fail(error: Exception) -> None:
    raise error


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose records are in tables and blob files, interleaved in time; and some in the WAL."""
    path = tmp_path_factory.mktemp("made") / "store"
    asyncio.run(make(path))
    return path


async def make(path: Path) -> None:
    store = await opened(path)
    logs = [store.create_log(log_id) for log_id in LOGS]
    for offset in range(COUNT):
        for log in logs:
            producer = {"producer_id": 7, "producer_epoch": 1, "producer_sequence": offset // 2} if offset % 2 else {}
            request = {} if offset % 2 else {"request_id": b"request-%d" % offset}
            log.append(NewBatch(content(log.log_id, offset), 1, leader_epoch=1, **producer, **request), now_us=offset)
        if offset == COUNT - 40:
            for log in logs:
                await log.barrier()
            for family in LOG_FAMILIES:
                store._engine._families[family].flush(True)
    await store.close()


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def tables(folder: Path, family: str) -> list[Path]:
    """A table's properties name its family: column.family.name, of which only the end is written out, and its value."""
    return [file for file in folder.glob("*.sst") if b"name%s\n" % family.encode() in file.read_bytes()]


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def flip_in(folder: Path, *families: str, part: float = 0.4) -> None:
    for family in families:
        [table] = tables(folder / "data", family)
        flip(table, int(table.stat().st_size * part))


async def read_all(log: PartitionLog) -> dict[int, bytes]:
    """What can be read, offset by offset. Offsets that look as if nothing had ever been there fail the test."""
    found: dict[int, bytes] = {}
    offset = log.log_start_offset
    while offset < log.end_offset:
        try:
            batches = await log.read(offset, end_offset=log.end_offset, max_bytes=1 << 16)
        except LogCorrupt:
            offset += 1
            continue
        assert batches, f"nothing at {offset}"
        assert batches[0].base_offset == offset, f"a gap from {offset} to {batches[0].base_offset}"
        found.update((batch.base_offset, bytes(batch.batch)) for batch in batches)
        offset = batches[-1].end_offset
    return found


async def rebuilt(folder: Path, **options: Any) -> LogStore:
    rebuild.request(folder / "data", "a test")
    store = await opened(folder, **options)
    assert [each.database for each in store.recovery.rebuilt] == ["data"]
    assert rebuilds(folder) == {}
    assert [name for name in beside(folder) if not name.startswith("data.damaged-")] == ["data", "data.mark"]
    return store


def beside(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("data*"))


def compact_all(store: LogStore) -> None:
    for family in LOG_FAMILIES:
        store._engine.compact(family, b"", b"\xff")


async def check(store: LogStore, *, whole: bool | None = None) -> int:
    """Everything is right or unreadable, damage is noted exactly where there is some, and writing works."""
    unreadable = 0
    for log_id in LOGS:
        log = store.log(log_id)
        assert log.end_offset == COUNT
        noted = log.damage.offset if log.damage is not None else None
        found = await read_all(log)
        missing = [offset for offset in range(COUNT) if offset not in found]
        assert found == {offset: content(log_id, offset) for offset in range(COUNT) if offset not in missing}
        assert not missing or noted == missing[0]
        unreadable += len(missing)
        assert log.append(NewBatch(b"on", 1, leader_epoch=1), now_us=COUNT).base_offset == COUNT
        await log.barrier()
    await asyncio.to_thread(compact_all, store)
    assert whole is None or whole == (unreadable == 0)
    return unreadable


async def test_a_whole_database_is_copied_whole(folder: Path) -> None:
    """With all that deduplication knows, and none of the damaged files left."""
    store = await rebuilt(folder)
    log = store.log(1)
    await log.load_request_ids()
    assert log.request_ids.find(b"request-10") is not None
    known = log.producers.check(7, 1, COUNT // 2 - 1)
    assert known is not None
    assert known.base_offset == COUNT - 1
    await check(store, whole=True)
    assert all(store.log(log_id).damage is None for log_id in LOGS)
    await store.close()
    store = await opened(folder)
    assert store.recovery.rebuilt == ()
    await store.close()
    assert accepted_losses(folder) == []


async def test_a_compaction_that_meets_damage_ends_the_process_once(folder: Path) -> None:
    """RocksDB refuses every write from then on; without the copy it would again, after every start."""
    flip_in(folder, INDEX)
    fatal: list[Exception] = []
    ended = asyncio.Event()

    def end(error: Exception) -> None:
        fatal.append(error)
        ended.set()

    store = await opened(folder, fatal=end)
    with pytest.raises(StoreCorrupt):
        await asyncio.to_thread(compact_all, store)
    store.log(1).append(NewBatch(b"on", 1, leader_epoch=1), now_us=COUNT)
    await asyncio.wait_for(ended.wait(), 30)
    assert isinstance(fatal[0], StoreCorrupt)
    await store.close()
    assert list(rebuilds(folder)) == ["data"]
    store = await opened(folder)
    assert len(store.recovery.rebuilt) == 1
    await check(store)
    await store.close()


@pytest.mark.parametrize("family", [BATCHES, INDEX, PRODUCERS])
@pytest.mark.parametrize("part", [0.1, 0.6, 0.97, 0.999])
async def test_one_bit_anywhere_in_a_table(folder: Path, family: str, part: float) -> None:
    """Nothing wrong is ever read, damage is known before anybody reads, and everything else is there."""
    [table] = tables(folder / "data", family)
    flip(table, int(table.stat().st_size * part))
    # On a lone node, damage in what every start reads has to be accepted.
    await asyncio.to_thread(accept_losses, folder, SETTINGS, now_us=1)
    store = await rebuilt(folder)
    assert await check(store) < 2 * COUNT
    await store.close()
    store = await opened(folder)
    for log_id in LOGS:
        assert store.log(log_id).end_offset == COUNT + 1
    await store.close()


async def test_damaged_index_entries_are_made_again_from_batches(folder: Path) -> None:
    flip_in(folder, INDEX)
    store = await rebuilt(folder)
    log = store.log(1)
    assert await check(store, whole=True) == 0
    assert await log.offset_for_time(150, end_offset=COUNT) == 150
    await log.load_request_ids()
    assert all(log.request_ids.find(b"request-%d" % offset) is not None for offset in range(0, COUNT, 2))
    await store.close()


async def test_where_index_and_batches_are_damaged_reading_fails(folder: Path) -> None:
    """It must not pass for what log compaction leaves out."""
    [batches], [index] = tables(folder / "data", BATCHES), tables(folder / "data", INDEX)
    for table in (batches, index):
        for part in range(1, 9):
            flip(table, int(table.stat().st_size * part / 20))
    store = await rebuilt(folder)
    assert 10 < await check(store, whole=False) < 2 * COUNT
    await store.close()


async def test_damage_stays_known_until_the_log_is_emptied(folder: Path) -> None:
    """A lone node keeps the damaged files, too."""
    flip_in(folder, BATCHES)
    store = await rebuilt(folder)
    damaged = {log_id: log.damage.offset for log_id in LOGS if (log := store.log(log_id)).damage is not None}
    assert damaged
    assert (folder / store.recovery.rebuilt[0].set_aside / "CURRENT").exists()
    await store.close()
    store = await opened(folder)
    for log_id, offset in damaged.items():
        log = store.log(log_id)
        assert log.damage is not None
        assert log.damage.offset == offset
        await log.reset(0)
        assert log.damage is None
    await store.close()
    store = await opened(folder)
    assert all(store.log(log_id).damage is None for log_id in LOGS)
    await store.close()
    assert len(accepted_losses(folder)) == 1


async def test_in_a_cluster_the_damaged_files_go(folder: Path) -> None:
    flip_in(folder, BATCHES)
    store = await rebuilt(folder, replicated=True)
    assert not store.recovery.unclean, "what is damaged is known log by log"
    assert any(store.log(log_id).damage is not None for log_id in LOGS)
    assert beside(folder) == ["data", "data.mark"]
    await store.close()


async def many_logs(path: Path, count: int) -> None:
    store = await opened(path)
    for log_id in range(1, count + 1):
        store.create_log(log_id).append(NewBatch(b"%d" % log_id, 1, leader_epoch=1), now_us=1)
    await store.barrier()
    await store.close()
    engine = Engine.open(path / "data", data_families(memtable_bytes=SETTINGS.memtable_bytes))
    compact_family(engine, STATE)
    engine.close()


def compact_family(engine: Engine, family: str) -> None:
    engine.compact(family, b"", b"\xff")


@pytest.mark.parametrize("replicated", [True, False])
async def test_damaged_states_cost_their_own_logs_only(tmp_path: Path, *, replicated: bool) -> None:
    """Logs are missing: the node is unclean in a cluster, and a lone one waits for its operator."""
    path, count = tmp_path / "store", 400
    await many_logs(path, count)
    flip_in(path, STATE)
    if not replicated:
        with pytest.raises(StoreLoss):
            await opened(path)
        await asyncio.to_thread(accept_losses, path, SETTINGS, now_us=1)
    store = await opened(path, replicated=replicated)
    assert store.recovery.unclean is replicated
    assert count * 3 // 4 < len(store.log_ids()) < count
    for log in store.logs():
        [batch] = await log.read(0, end_offset=1, max_bytes=100)
        assert bytes(batch.batch) == b"%d" % log.log_id
    await store.close()


@pytest.mark.parametrize("replicated", [True, False])
async def test_a_table_that_cannot_be_opened_costs_its_own_records_only(folder: Path, *, replicated: bool) -> None:
    """RocksDB refuses to open the database then."""
    [table] = tables(folder / "data", BATCHES)
    flip(table, table.stat().st_size - 3)
    if not replicated:
        with pytest.raises(StoreLoss):
            await opened(folder)
        await asyncio.to_thread(accept_losses, folder, SETTINGS, now_us=1)
    store = await opened(folder, replicated=replicated)
    assert store.recovery.unclean is replicated
    # Those in the WAL are whole.
    assert 0 < await check(store, whole=False) < 2 * COUNT
    await store.close()


class _CutShort(Exception):  # noqa: N818 - stands for the end of the process
    pass


async def test_a_copy_that_is_cut_short_goes_on_behind_what_is_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, copied = salvage._LogCopy.run, []

    def run_once(self: Any) -> None:
        if copied:
            raise _CutShort
        copied.append(self._log_id)
        run(self)

    def run_and_note(self: Any) -> None:
        copied.append(self._log_id)
        run(self)

    rebuild.request(folder / "data", "a test")
    monkeypatch.setattr(salvage._LogCopy, "run", run_once)
    with pytest.raises(_CutShort):
        await opened(folder)
    monkeypatch.setattr(salvage._LogCopy, "run", run_and_note)
    store = await rebuilt(folder)
    assert copied == [1, 2]
    await check(store, whole=True)
    await store.close()


async def test_a_copy_that_a_power_cut_has_damaged_is_begun_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it was promised, so nothing of it is a loss."""

    run, copied = salvage._LogCopy.run, []

    def run_once(self: Any) -> None:
        if copied:
            raise _CutShort
        copied.append(self._log_id)
        run(self)

    rebuild.request(folder / "data", "a test")
    monkeypatch.setattr(salvage._LogCopy, "run", run_once)
    with pytest.raises(_CutShort):
        await opened(folder)
    monkeypatch.undo()
    wal = max((folder / "data.rebuilding").glob("*.log"), key=lambda file: file.stat().st_size)
    flip(wal, wal.stat().st_size // 2)
    store = await rebuilt(folder, replicated=True)
    assert not store.recovery.unclean
    await check(store, whole=True)
    await store.close()


async def test_a_log_is_durable_before_its_state_says_that_it_is_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    write, flush_wal = Engine.write, Engine.flush_wal

    def note_write(self: Engine, ops: Any) -> None:
        if self.path.name == "data.rebuilding":
            steps.append("state" if any(op[1] == STATE for op in ops) else "write")
        write(self, ops)

    def note_flush(self: Engine) -> None:
        if self.path.name == "data.rebuilding":
            steps.append("fsync")
        flush_wal(self)

    monkeypatch.setattr(Engine, "write", note_write)
    monkeypatch.setattr(Engine, "flush_wal", note_flush)
    await (await rebuilt(folder)).close()
    assert [steps[at - 1] for at, step in enumerate(steps) if step == "state"] == ["fsync"] * len(LOGS)
    assert steps[-1] == "fsync"


async def test_damage_in_the_wal_is_not_passed_over(tmp_path: Path) -> None:
    """Records behind it would be copied, those that it took would look as if they had never been."""
    path, count = tmp_path / "store", 200
    store = await opened(path)
    log = store.create_log(1)
    for offset in range(count):
        log.append(NewBatch(content(1, offset), 1, leader_epoch=1), now_us=offset)
        await log.barrier()
    await store.close()
    wal = max((path / "data").glob("*.log"), key=lambda file: file.stat().st_size)
    flip(wal, wal.stat().st_size // 2)
    rebuild.request(path / "data", "a test")
    with pytest.raises(StoreLoss):
        await opened(path)
    store = await opened(path, replicated=True)
    assert store.recovery.unclean
    log = store.log(1)
    assert 0 < log.end_offset < count
    assert list(await read_all(log)) == list(range(log.end_offset))
    await store.close()


@pytest.mark.parametrize("step", range(8))
async def test_the_replacement_may_be_cut_short_anywhere(
    folder: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start finds one whole database, whichever that is, and finishes."""
    steps: Iterator[int] = iter(range(100))

    def cut_short(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(steps) == step:
                raise _CutShort
            return function(*arguments, **options)

        return call

    rebuild.request(folder / "data", "a test")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut_short(Path.rename))
        patch.setattr(rebuild, "write_mark", cut_short(rebuild.write_mark))
        patch.setattr(rebuild, "fsync_folder", cut_short(rebuild.fsync_folder))
        try:
            await (await opened(folder)).close()
        except _CutShort:
            pass
        else:
            assert step > 6
    store = await opened(folder)
    await check(store, whole=True)
    await store.close()
    assert rebuilds(folder) == {}
    assert beside(folder) == ["data", "data.mark"]


async def test_a_replacement_that_is_cut_short_keeps_the_damaged_files_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(*arguments: object, **options: object) -> None:
        raise _CutShort

    flip_in(folder, BATCHES)
    rebuild.request(folder / "data", "a test")
    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "replace", cut_short)
        with pytest.raises(_CutShort):
            await opened(folder)
    store = await opened(folder)
    assert (folder / store.recovery.rebuilt[0].set_aside / "CURRENT").exists()
    assert store.recovery.rebuilt[0].salvaged.damaged
    await check(store, whole=False)
    await store.close()


async def test_without_room_for_a_copy_nothing_is_given_up(folder: Path) -> None:
    """It may be the only one."""
    flip_in(folder, INDEX)
    rebuild.request(folder / "data", "a test")
    for _ in range(2):
        with pytest.raises(StoreFailed, match="make room"):
            await opened(folder, replicated=True, free=1 << 20)
    store = await opened(folder, replicated=True)
    await check(store, whole=True)
    await store.close()


async def with_votes(path: Path) -> str:
    """A store whose Raft log is in a table; entries that are deleted stand before those that live."""
    store = await opened(path, replicated=True)
    submit: Callable[..., Awaitable[None]] = store.meta.committer.submit  # type: ignore[assignment]
    submit([("put", RAFT, b"e" + number.to_bytes(8, "big"), bytes(500)) for number in range(400)], size_bytes=1)
    submit([("put", RAFT, b"h", b"voted for 2")], size_bytes=1)
    await store.meta.committer.barrier()
    store.meta.engine._families[RAFT].flush(True)
    submit([("delete_range", RAFT, b"e", b"e" + (200).to_bytes(8, "big"))], size_bytes=1)
    await store.meta.committer.barrier()
    await store.close()
    return store.identity.store_id


async def test_metadata_that_is_damaged_where_nothing_lives_is_copied(tmp_path: Path) -> None:
    """Nothing was forgotten: it stays the store that it was."""
    path = tmp_path / "store"
    before = await with_votes(path)
    [table] = tables(path / "meta", RAFT)
    flip(table, table.stat().st_size // 5)
    rebuild.request(path / "meta", "a test")
    store = await opened(path, replicated=True)
    assert [each.database for each in store.recovery.rebuilt] == ["meta"]
    assert store.identity.store_id == before
    assert not store.recovery.unclean
    assert store.meta.engine.multi_get(RAFT, [b"h"]) == [b"voted for 2"]
    assert len(store.meta.engine.scan(RAFT, b"e", b"f")) == 200
    await asyncio.to_thread(compact_family, store.meta.engine, RAFT)
    await store.close()


async def test_metadata_that_the_wal_has_lost_makes_another_store_of_it(tmp_path: Path) -> None:
    """RocksDB passes over a damaged record if it is to pass over damaged tables: a vote, for one."""
    path = tmp_path / "store"
    store = await opened(path, replicated=True)
    for number in range(100):
        store.meta.committer.submit([("put", RAFT, b"e%d" % number, bytes(500))], size_bytes=1)
        await store.meta.committer.barrier()
    before = store.identity.store_id
    await store.close()
    wal = max((path / "meta").glob("*.log"), key=lambda file: file.stat().st_size)
    flip(wal, wal.stat().st_size // 2)
    rebuild.request(path / "meta", "a test")
    store = await opened(path, replicated=True)
    assert store.identity.store_id != before
    assert store.recovery.unclean
    await store.close()


@pytest.mark.parametrize("running", [True, False])
async def test_metadata_that_cannot_be_read_makes_another_store_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, running: bool
) -> None:
    """Whether a compaction met the damage or the start does: a vote may be forgotten, and must not be cast again."""
    path = tmp_path / "store"
    before = await with_votes(path)
    [table] = tables(path / "meta", RAFT)
    if running:
        fatal: list[Exception] = []
        ended = asyncio.Event()

        def end(error: Exception) -> None:
            fatal.append(error)
            ended.set()

        def refuse(ops: object) -> None:
            raise StoreCorrupt("as after a compaction that met damage")

        store = await opened(path, replicated=True, fatal=end)
        monkeypatch.setattr(store.meta.engine, "write", refuse)
        store.meta.committer.submit([("put", RAFT, b"x", b"x")], size_bytes=1)
        await asyncio.wait_for(ended.wait(), 30)
        await store.close()
        assert isinstance(fatal[0], StoreCorrupt)
        assert list(rebuilds(path)) == ["meta"]
    flip(table, table.stat().st_size * 4 // 5)
    store = await opened(path, replicated=True)
    assert store.identity.store_id != before
    assert store.recovery.unclean
    assert store.meta.engine.scan(RAFT, b"", b"\xff") == []
    await store.close()
    assert rebuilds(path) == {}
    store = await opened(path, replicated=True)
    assert store.recovery.rebuilt == ()
    await store.close()


async def test_a_lone_nodes_damaged_metadata_waits_for_its_operator(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = await opened(path)
    puts = [("put", RAFT, b"e" + number.to_bytes(8, "big"), bytes(500)) for number in range(400)]
    store.meta.committer.submit(puts, size_bytes=1)  # type: ignore[arg-type]
    await store.close()
    engine = Engine.open(path / "meta", meta_families())
    compact_family(engine, RAFT)
    engine.close()
    [table] = tables(path / "meta", RAFT)
    flip(table, table.stat().st_size // 2)
    with pytest.raises(StoreLoss, match="'meta'"):
        await opened(path)
    [loss] = await asyncio.to_thread(accept_losses, path, SETTINGS, now_us=1)
    assert (loss.database, loss.set_aside) == ("meta", "meta.damaged-1")
    await (await opened(path)).close()
