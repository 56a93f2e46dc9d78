"""One partition log: offsets, reads from memory and from disk, time, trimming, retention, what it remembers."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from broker.clock import ManualClock
from broker.storage.engine import Engine
from broker.storage.errors import LogCorrupt, OffsetOutOfRange, StoreFailed, UnknownLog
from broker.storage.log import NewBatch, PartitionLog
from broker.storage.log_state import BATCHES, INDEX, data_families
from broker.storage.producers import ProducerBatch, ProducerFenced, ProducerUnknown
from broker.storage.request_ids import RequestIdsFull, RequestPart
from broker.storage.store import LogStore

OpenStore = Callable[..., Awaitable[LogStore]]
SECOND_US = 1_000_000


def new(count: int = 1, *, size: int = 100, fill: bytes = b"x", **fields: object) -> NewBatch:
    return NewBatch(batch=fill * size, record_count=count, **fields)  # type: ignore[arg-type]


async def filled(store: LogStore, clock: ManualClock, *, batches: int = 10, size: int = 100) -> PartitionLog:
    """Batches of ten records, a second apart; the first at the clock's time."""
    log = store.create_log(1)
    for number in range(batches):
        log.append(new(10, size=size, fill=b"%d" % (number % 10)), now_us=clock.wall_us() + number * SECOND_US)
    await log.barrier()
    log.set_high_watermark(log.end_offset)
    return log


async def test_offsets_are_given_at_once_and_become_durable_later(store: LogStore) -> None:
    log = store.create_log(1)
    first = log.append(new(3), now_us=10)
    second = log.append(new(2), now_us=11)
    assert (first.base_offset, first.end_offset, second.base_offset, second.end_offset) == (0, 3, 3, 5)
    assert (log.end_offset, log.durable_end_offset) == (5, 0)
    await log.barrier()
    assert (log.written_end_offset, log.durable_end_offset) == (5, 5)


async def test_progress_is_told_when_the_durable_end_has_moved(store: LogStore) -> None:
    log = store.create_log(1)
    await store.barrier()
    ends: list[int] = []
    log.on_progress = lambda: ends.append(log.durable_end_offset)
    log.append(new(3), now_us=10)
    await log.barrier()
    log.append(new(4), now_us=10)
    await log.barrier()
    assert ends == [3, 7]


async def test_written_is_told_ahead_where_wanted(store: LogStore) -> None:
    log = store.create_log(1)
    log.wants_written = True
    seen: list[tuple[int, int]] = []
    log.on_progress = lambda: seen.append((log.written_end_offset, log.durable_end_offset))
    log.append(new(3), now_us=10)
    await log.barrier()
    assert seen == [(3, 0), (3, 3)]


async def test_what_was_appended_after_a_flush_began_is_not_durable_with_it(store: LogStore) -> None:
    """The ends move as far as the ticket says, and no further."""
    log = store.create_log(1)
    log.append(new(3), now_us=10)
    log.append(new(4), now_us=10)
    ticket = store.committer.submit((), size_bytes=0)
    log.append(new(5), now_us=10)
    log.written(ticket)
    assert (log.written_end_offset, log.durable_end_offset, log.end_offset) == (7, 0, 12)
    log.durable(ticket)
    assert (log.written_end_offset, log.durable_end_offset, log.end_offset) == (7, 7, 12)
    with pytest.raises(OffsetOutOfRange):
        log.trim(8)
    await log.barrier()
    assert log.durable_end_offset == 12


async def test_append_time_never_falls(store: LogStore) -> None:
    log = store.create_log(1)
    assert log.append(new(), now_us=100).append_time_us == 100
    assert log.append(new(), now_us=50).append_time_us == 100
    assert log.append(new(), now_us=150).append_time_us == 150


@pytest.mark.parametrize("tail_bytes_max", [0, 1 << 20], ids=["disk", "memory"])
async def test_reads_give_whole_batches_from_the_one_that_holds_the_offset(
    open_store: OpenStore, clock: ManualClock, tail_bytes_max: int
) -> None:
    store = await open_store(tail_bytes_max=tail_bytes_max)
    log = await filled(store, clock)
    assert (log.read_tail(0, end_offset=100, max_bytes=1) is None) == (tail_bytes_max == 0)
    found = await log.read(25, end_offset=100, max_bytes=1 << 20)
    assert [batch.base_offset for batch in found] == list(range(20, 100, 10))
    assert [bytes(batch.batch) for batch in found] == [b"%d" % number * 100 for number in range(2, 10)]
    assert found[0].append_time_us == clock.wall_us() + 2 * SECOND_US
    assert [batch.base_offset for batch in await log.read(0, end_offset=100, max_bytes=1)] == [0]
    assert [batch.base_offset for batch in await log.read(0, end_offset=40, max_bytes=1 << 20)] == [0, 10, 20, 30]
    assert await log.read(100, end_offset=100, max_bytes=1) == []
    for outside in (101, -1):
        with pytest.raises(OffsetOutOfRange):
            await log.read(outside, end_offset=100, max_bytes=1)


async def test_memory_serves_subscribers_and_followers_the_same_bytes(store: LogStore) -> None:
    log = store.create_log(1)
    batch = new(2)
    log.append(batch, now_us=1)
    found = log.read_tail(0, end_offset=2, max_bytes=1)
    assert found is not None
    (in_queue,) = log.read_tail_envelopes(0, end_offset=2, max_bytes=1) or []
    assert found[0].envelope is in_queue.envelope
    assert found[0].batch == batch.batch


async def test_logs_do_not_see_each_other(open_store: OpenStore) -> None:
    store = await open_store(tail_bytes_max=0)
    for log_id in (1, 2, 3):
        store.create_log(log_id).append(new(log_id, fill=b"%d" % log_id), now_us=log_id)
    await store.barrier()
    for log_id in (1, 2, 3):
        found = await store.log(log_id).read(0, end_offset=log_id, max_bytes=1 << 20)
        assert [bytes(batch.batch) for batch in found] == [b"%d" % log_id * 100]


async def test_everything_is_there_after_reopening(open_store: OpenStore, clock: ManualClock) -> None:
    store = await open_store()
    log = await filled(store, clock)
    log.append(new(5, leader_epoch=4, codec=2), now_us=clock.wall_us())
    size_bytes, last_us = log.size_bytes, log.last_append_time_us
    await store.close()
    log = (await open_store()).log(1)
    assert (log.log_start_offset, log.end_offset, log.durable_end_offset) == (0, 105, 105)
    assert (log.size_bytes, log.last_append_time_us) == (size_bytes, last_us)
    assert log.leader_epochs == [(0, 0), (4, 100)]
    assert log.read_tail(0, end_offset=105, max_bytes=1) is None
    found = await log.read(0, end_offset=105, max_bytes=1 << 20)
    assert [bytes(batch.batch)[:1] for batch in found] == [b"%d" % number for number in range(10)] + [b"x"]
    assert (found[-1].leader_epoch, found[-1].codec) == (4, 2)
    assert log.append(new(leader_epoch=4), now_us=0).base_offset == 105


async def test_the_first_offset_at_or_after_a_time(open_store: OpenStore, clock: ManualClock) -> None:
    store = await open_store()
    log = await filled(store, clock)
    t0 = clock.wall_us()
    for time_us, offset in [
        (0, 0),
        (t0, 0),
        (t0 + 1, 10),
        (t0 + SECOND_US, 10),
        (t0 + 9 * SECOND_US, 90),
        (t0 + 9 * SECOND_US + 1, 100),
    ]:
        assert await log.offset_for_time(time_us, end_offset=100) == offset
    assert await log.offset_for_time(t0 + 9 * SECOND_US, end_offset=50) == 50
    log.trim(35)
    assert await log.offset_for_time(0, end_offset=100) == 35


async def test_trimming_inside_a_batch_moves_the_start_and_keeps_the_batch(
    open_store: OpenStore, clock: ManualClock
) -> None:
    store = await open_store(tail_bytes_max=0)
    log = await filled(store, clock)
    whole = log.size_bytes
    log.trim(35)
    with pytest.raises(OffsetOutOfRange) as refusal:
        await log.read(34, end_offset=100, max_bytes=1)
    assert (refusal.value.log_start_offset, refusal.value.end_offset) == (35, 100)
    await store.maintain()
    assert [batch.base_offset for batch in await log.read(35, end_offset=100, max_bytes=1)] == [30]
    assert log.size_bytes == whole * 7 // 10
    log.trim(20)
    assert log.log_start_offset == 35
    await store.close()
    log = (await open_store()).log(1)
    assert (log.log_start_offset, log.size_bytes) == (35, whole * 7 // 10)


async def test_a_trim_that_was_cut_short_is_finished_after_the_restart(
    open_store: OpenStore, clock: ManualClock
) -> None:
    store = await open_store()
    log = await filled(store, clock)
    whole = log.size_bytes
    log.trim(50)
    await store.close()
    clock.advance(3600)
    store = await open_store()
    await store.maintain()
    assert store.log(1).size_bytes == whole // 2
    await store.close()
    engine = Engine.open(store.path / "data", data_families(memtable_bytes=1 << 20))
    try:
        for family in (BATCHES, INDEX):
            assert len(engine.scan(family, b"", b"\xff")) == 5
    finally:
        engine.close()


async def test_nothing_above_the_durable_end_is_trimmed(store: LogStore) -> None:
    log = store.create_log(1)
    log.append(new(10), now_us=1)
    with pytest.raises(OffsetOutOfRange):
        log.trim(5)
    await log.barrier()
    log.trim(10)
    assert (log.log_start_offset, log.size_bytes) == (10, 0)
    assert await log.read(10, end_offset=10, max_bytes=1) == []
    assert log.append(new(1), now_us=1).base_offset == 10


async def test_retention_by_time_takes_what_is_older(store: LogStore, clock: ManualClock) -> None:
    log = await filled(store, clock)
    now_us = clock.wall_us() + 10 * SECOND_US
    assert await log.apply_retention(now_us, 20 * SECOND_US, None) == 0
    assert await log.apply_retention(now_us, 5 * SECOND_US, None) == 50  # appended exactly 5 s ago: stays
    assert await log.apply_retention(now_us + 1, 5 * SECOND_US, None) == 60
    assert await log.apply_retention(now_us + 3600 * SECOND_US, 5 * SECOND_US, None) == 100
    assert log.size_bytes == 0
    assert await log.apply_retention(now_us + 7200 * SECOND_US, 5 * SECOND_US, None) == 100


async def test_retention_by_size_keeps_what_fits_and_always_the_newest(store: LogStore, clock: ManualClock) -> None:
    log = await filled(store, clock)
    batch_bytes = log.size_bytes // 10
    now_us = clock.wall_us()
    assert await log.apply_retention(now_us, None, log.size_bytes) == 0
    assert await log.apply_retention(now_us, None, 4 * batch_bytes) == 60
    assert log.size_bytes == 4 * batch_bytes
    assert await log.apply_retention(now_us, None, 4 * batch_bytes - 1) == 70
    assert await log.apply_retention(now_us, None, 1) == 90
    assert log.size_bytes == batch_bytes


async def test_retention_never_passes_the_high_watermark(store: LogStore, clock: ManualClock) -> None:
    log = await filled(store, clock)
    log.append(new(10), now_us=clock.wall_us() + 10 * SECOND_US)
    await log.barrier()
    assert await log.apply_retention(clock.wall_us() + 3600 * SECOND_US, 1, None) == 100
    assert (await log.read(100, end_offset=110, max_bytes=1))[0].base_offset == 100


async def test_the_store_applies_retention_by_itself(store: LogStore, clock: ManualClock) -> None:
    log = await filled(store, clock)
    log.retention_us = 5 * SECOND_US
    moved: list[int] = []
    log.on_progress = lambda: moved.append(log.log_start_offset)
    clock.advance(10)
    await store.maintain()
    assert log.log_start_offset == 50
    assert 50 in moved


async def test_producer_state_comes_back_with_the_log(open_store: OpenStore) -> None:
    store = await open_store()
    log = store.create_log(1)
    for sequence in range(8):
        assert log.producers.check(77, 2, sequence) is None
        log.append(new(10, producer_id=77, producer_epoch=2, producer_sequence=sequence), now_us=sequence)
    await store.close()
    log = (await open_store()).log(1)
    assert log.producers.check(77, 2, 6) == ProducerBatch(6, 60, 70, 6)
    assert log.producers.check(77, 2, 8) is None
    with pytest.raises(ProducerFenced):
        log.producers.check(77, 1, 8)


async def test_request_ids_come_back_with_the_log(open_store: OpenStore, clock: ManualClock) -> None:
    store = await open_store()
    log = store.create_log(1)
    t0 = clock.wall_us()
    log.append(new(2, request_id=b"old"), now_us=t0)
    log.append(new(3, request_id=b"split", record_indexes=(0, 2, 5)), now_us=t0 + 200 * SECOND_US)
    log.append(new(1), now_us=t0 + 200 * SECOND_US)
    log.append(new(2, request_id=b"split", record_indexes=(1, 3)), now_us=t0 + 201 * SECOND_US)
    await store.close()
    log = (await open_store()).log(1)
    log.request_ids.window_us = 150 * SECOND_US
    clock.advance(202)
    await asyncio.gather(log.load_request_ids(), log.load_request_ids())
    await log.load_request_ids()
    assert log.request_ids.find(b"old") == ()
    assert log.request_ids.find(b"split") == (
        RequestPart(2, 3, t0 + 200 * SECOND_US, (0, 2, 5)),
        RequestPart(6, 2, t0 + 201 * SECOND_US, (1, 3)),
    )


async def test_while_nobody_knows_how_late_it_is_old_request_ids_stay_old(
    open_store: OpenStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a log has ever had would be read, and leave no room for new ones."""
    store = await open_store()
    log = store.create_log(1)
    t0 = clock.wall_us()
    log.append(new(1, request_id=b"old"), now_us=t0)
    log.append(new(1, request_id=b"young"), now_us=t0 + 3600 * SECOND_US)
    await store.close()
    monkeypatch.setattr(clock, "wall_us", lambda: 0)  # as `ClusterClock.ages` has it
    log = (await open_store()).log(1)
    await log.load_request_ids()
    assert log.request_ids.find(b"young")
    assert len(log.request_ids) == 1


async def test_request_ids_outlive_their_trimmed_records_by_the_window(
    open_store: OpenStore, clock: ManualClock
) -> None:
    """Deleting records must not let a retry append them again."""
    store = await open_store()
    log = store.create_log(1)
    log.append(new(2, request_id=b"r"), now_us=clock.wall_us())
    await log.barrier()
    log.trim(2)
    await store.maintain()
    await store.close()
    store = await open_store()
    log = store.log(1)
    await log.load_request_ids()
    assert log.request_ids.find(b"r")
    clock.advance(301)
    await store.maintain()
    await store.close()
    log = (await open_store()).log(1)
    await log.load_request_ids()
    assert len(log.request_ids) == 0


async def test_a_wall_clock_that_jumps_ahead_deletes_no_request_ids(open_store: OpenStore, clock: ManualClock) -> None:
    """Not even for the next start, by which it may have been set right: ids age by the time that passes."""
    store = await open_store()
    log = store.create_log(1)
    log.append(new(2, request_id=b"r"), now_us=clock.wall_us())
    await log.barrier()
    log.trim(2)
    await log.settle(clock.wall_us() + 3600 * SECOND_US)
    await store.close()
    log = (await open_store()).log(1)
    await log.load_request_ids()
    assert log.request_ids.find(b"r")


async def test_too_many_request_ids_refuse_new_ones_and_append_nothing(
    open_store: OpenStore, clock: ManualClock
) -> None:
    store = await open_store(request_ids_max=2)
    log = store.create_log(1)
    log.append(new(request_id=b"a"), now_us=1)
    log.append(new(request_id=b"b"), now_us=2)
    with pytest.raises(RequestIdsFull):
        log.append(new(request_id=b"c"), now_us=3)
    assert log.end_offset == 2
    log.append(new(), now_us=3)
    clock.advance(301)
    log.append(new(request_id=b"c"), now_us=4)


async def test_a_deleted_log_refuses_everything_and_does_not_come_back(open_store: OpenStore) -> None:
    store = await open_store(tail_bytes_max=0)
    log, kept = store.create_log(1), store.create_log(2)
    for each in (log, kept):
        each.append(new(producer_id=5), now_us=1)
    await store.barrier()
    store.delete_log(1)
    store.delete_log(1)
    for attempt in (lambda: log.append(new(), now_us=1), lambda: log.trim(0), lambda: store.log(1)):
        with pytest.raises(UnknownLog):
            attempt()
    with pytest.raises(UnknownLog):
        await log.read(0, end_offset=1, max_bytes=1)
    await store.maintain()
    await store.close()
    store = await open_store(tail_bytes_max=0)
    assert store.log_ids() == [2]
    assert len(await store.log(2).read(0, end_offset=1, max_bytes=1)) == 1
    with pytest.raises(ProducerUnknown):
        store.create_log(1).producers.check(5, 0, 1)


@pytest.mark.parametrize("work", ["retention", "settling"])
async def test_a_log_deleted_during_maintenance_does_not_come_back(
    open_store: OpenStore, clock: ManualClock, work: str
) -> None:
    """Its state must not be saved again after the deletion."""
    store = await open_store()
    log = await filled(store, clock)
    clock.advance(3600)
    if work == "retention":
        working: asyncio.Future[object] = asyncio.ensure_future(log.apply_retention(clock.wall_us(), 1, None))
    else:
        log.trim(50)
        working = asyncio.ensure_future(log.settle(clock.wall_us()))
    await asyncio.sleep(0)
    assert not working.done()
    store.delete_log(1)
    await working
    await store.close()
    assert (await open_store()).log_ids() == []


async def test_a_read_that_races_with_a_trim_says_out_of_range(open_store: OpenStore, clock: ManualClock) -> None:
    """Never LogCorrupt: the missing batch was deleted on purpose."""
    store = await open_store(tail_bytes_max=0)
    log = await filled(store, clock)
    reading = asyncio.ensure_future(log.read(5, end_offset=100, max_bytes=1 << 20))
    await asyncio.sleep(0)
    log.trim(50)
    with pytest.raises(OffsetOutOfRange):
        await reading


async def test_a_missing_batch_inside_the_log_is_corruption(
    open_store: OpenStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tail_bytes_max=0)
    log = await filled(store, clock)
    monkeypatch.setattr(Engine, "multi_get", lambda self, family, keys: [None for _ in keys])
    with pytest.raises(LogCorrupt) as error:
        await log.read(25, end_offset=100, max_bytes=1 << 20)
    assert error.value.offset == 20


async def test_an_fsync_error_is_fatal_once_and_nothing_later_is_durable(
    open_store: OpenStore, fatal_errors: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store()
    log = store.create_log(1)
    log.append(new(3), now_us=1)
    await log.barrier()

    def fail(self: Engine) -> None:
        raise StoreFailed("fsync: IO error: Input/output error")

    monkeypatch.setattr(Engine, "flush_wal", fail)
    log.append(new(3), now_us=1)
    with pytest.raises(StoreFailed):
        await log.barrier()
    with pytest.raises(StoreFailed):
        log.append(new(3), now_us=1)
    assert log.durable_end_offset == 3
    assert len(fatal_errors) == 1
