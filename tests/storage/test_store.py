"""The data directory as a whole: its lock, the disk's state, the metadata database, closing."""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from broker.clock import ManualClock
from broker.storage.data_dir import DataDir
from broker.storage.errors import DiskFull, StoreFailed, StoreLocked
from broker.storage.log import NewBatch
from broker.storage.log_state import RAFT
from broker.storage.store import LogStore, StorageSettings

OpenStore = Callable[..., Awaitable[LogStore]]
NEW = NewBatch(b"x" * 100, 1)


async def test_a_second_opening_is_refused_and_names_the_holder(store: LogStore, open_store: OpenStore) -> None:
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
        await open_store()


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailed, match="it is no folder"):
        DataDir.acquire(tmp_path / "file")


HOLD = """
import sys
from pathlib import Path
from broker.storage.data_dir import DataDir
lock = DataDir.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(StoreLocked, match=f"process {child.pid}"):
            DataDir.acquire(tmp_path)
    finally:
        child.kill()
        child.communicate()
    DataDir.acquire(tmp_path).release()


async def test_a_folder_of_something_else_is_refused(tmp_path: Path, open_store: OpenStore) -> None:
    (tmp_path / "store" / "data").mkdir(parents=True)
    with pytest.raises(StoreFailed, match="is it a Postbus data directory"):
        await open_store()


async def test_a_path_that_cannot_be_used_is_said_so(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="cannot be used"):
        await LogStore.open(tmp_path / "file", StorageSettings(), clock, lambda error: None)


async def test_below_the_minimum_nothing_is_appended_until_there_is_room_again(open_store: OpenStore) -> None:
    """Reading goes on; internal logs use the reserve; a tenth more than the minimum resumes."""
    free = 2000
    store = await open_store(
        free_bytes=lambda path: free, disk_free_min_bytes=1000, disk_reserve_bytes=300, tail_bytes_max=0
    )
    log, internal = store.create_log(1), store.create_log(2)
    internal.may_use_reserve = True
    log.append(NEW, now_us=1)
    await log.barrier()

    free = 999
    store.check_disk()
    assert store.disk_full
    with pytest.raises(DiskFull):
        log.append(NEW, now_us=1)
    assert log.end_offset == 1
    assert len(await log.read(0, end_offset=1, max_bytes=1)) == 1
    internal.append(NEW, now_us=1)

    free = 299
    store.check_disk()
    with pytest.raises(DiskFull):
        internal.append(NEW, now_us=1)
    log.trim(1)  # which gives room
    store.create_log(3)
    store.delete_log(3)

    free = 1050
    store.check_disk()
    internal.append(NEW, now_us=1)
    with pytest.raises(DiskFull):
        log.append(NEW, now_us=1)

    free = 1100
    store.check_disk()
    assert not store.disk_full
    log.append(NEW, now_us=1)
    await log.barrier()


async def test_the_metadata_database_keeps_what_is_committed(open_store: OpenStore) -> None:
    store = await open_store()
    for number in range(5):
        store.meta.committer.submit([("put", RAFT, b"%d" % number, b"record")], size_bytes=10)
    store.meta.committer.submit([("put", RAFT, b"s", b"image")], size_bytes=10)
    await store.meta.committer.barrier()
    await store.close()
    store = await open_store()
    assert [key for key, _ in store.meta.engine.scan(RAFT, b"", b"9")] == [b"0", b"1", b"2", b"3", b"4"]
    assert store.meta.engine.multi_get(RAFT, [b"s"]) == [b"image"]


async def test_creating_a_log_again_gives_the_same_log(open_store: OpenStore) -> None:
    store = await open_store()
    log = store.create_log(4)
    log.append(NEW, now_us=1)
    assert store.create_log(4) is log
    await store.close()
    store = await open_store()
    assert store.log_ids() == [4]
    assert store.create_log(4).end_offset == 1


async def test_closing_makes_durable_what_was_appended(open_store: OpenStore) -> None:
    store = await open_store()
    log = store.create_log(1)
    for _ in range(500):
        log.append(NEW, now_us=1)
    await store.close()
    await store.close()
    assert log.durable_end_offset == 500
    store = await open_store()
    assert store.log(1).end_offset == 500
    assert store.recovery.clean


async def test_a_new_store_says_that_it_is_new(open_store: OpenStore) -> None:
    store = await open_store()
    assert store.recovery.created
    await store.close()
    assert not (await open_store()).recovery.created
