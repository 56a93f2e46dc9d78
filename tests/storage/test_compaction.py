"""Log compaction: of each key the newest record stays, where it was; nothing else is ever missed, or seen twice."""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from postbus.v1 import record_pb2

from broker.cli.inspection import inspect
from broker.clock import ManualClock
from broker.storage.compaction import CompactionSettings
from broker.storage.log import NewBatch, PartitionLog
from broker.storage.maintenance import MaintenanceSettings
from broker.storage.producers import ProducerBatch
from broker.storage.records import LZ4, SNAPPY, ZSTD, compress, open_batch
from broker.storage.store import LogStore, StorageSettings

T = TypeVar("T")
OpenStore = Callable[..., Awaitable[LogStore]]
SECOND_US = 1_000_000
KEEP_TOMBSTONES_S = 3600
QUICK = CompactionSettings(delete_retention_ms=KEEP_TOMBSTONES_S * 1000, bytes_per_s_max=1 << 40)
MIB = 1 << 20


@dataclass(frozen=True)
class Rec:
    offset: int
    key: bytes | None
    value: bytes | None
    time_us: int


async def at_once(seconds: float) -> None:
    pass


def batch_of(*records: tuple[bytes | None, bytes | None], codec: int = 0) -> bytes:
    chosen = [record_pb2.Record(key=key, value=value) for key, value in records]
    if not codec:
        return record_pb2.RecordBatch(records=chosen).SerializeToString()
    plain = record_pb2.RecordSet(records=chosen).SerializeToString()
    return record_pb2.RecordBatch(
        compression=codec,  # type: ignore[arg-type]
        compressed_records=compress(plain, codec=codec),
        record_count=len(chosen),
        uncompressed_bytes=len(plain),
    ).SerializeToString()


def put(log: PartitionLog, *records: tuple[bytes | None, bytes | None], now_us: int = 1, **fields: Any) -> int:
    batch = batch_of(*records, codec=fields.get("codec", 0))
    return log.append(NewBatch(batch, len(records), **fields), now_us=now_us).base_offset


async def settled(log: PartitionLog) -> None:
    await log.barrier()
    log.set_high_watermark(log.end_offset)
    log.replicated_offset = log.end_offset


async def contents(log: PartitionLog, offset: int = 0, *, max_bytes: int = 2000) -> list[Rec]:
    """As a subscriber sees it from there on."""
    found: list[Rec] = []
    offset = max(offset, log.log_start_offset)
    while offset < log.end_offset:
        for stored in await log.read(offset, end_offset=log.end_offset, max_bytes=max_bytes) or [None]:
            if stored is None:
                return found  # a gap up to the end
            assert stored.end_offset > offset
            opened = open_batch(bytes(stored.batch))
            deltas = stored.offset_deltas or range(len(opened.keys))
            assert len(opened.keys) == stored.record_count == len(deltas)
            message = record_pb2.RecordBatch.FromString(opened.plain)
            for record, delta in zip(message.records, deltas, strict=True):
                at = stored.base_offset + delta
                assert at < stored.end_offset
                if at >= offset:
                    key = record.key if record.HasField("key") else None
                    value = record.value if record.HasField("value") else None
                    found.append(Rec(at, key, value, stored.append_time_us))
            offset = stored.end_offset
    return found


async def compacted(log: PartitionLog, now_us: int = 2, settings: CompactionSettings = QUICK) -> None:
    while await log.compact(now_us, settings, pause=at_once, force=True):
        pass


@pytest.mark.parametrize("codec", [0, ZSTD, LZ4, SNAPPY])
async def test_of_each_key_the_newest_record_stays_at_its_offset(open_store: OpenStore, codec: int) -> None:
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    put(log, (b"a", b"1"), (b"b", b"1"), (None, b"keyless"), (b"c" * 100, b"1"), codec=codec)
    put(log, (b"a", b"2"), (b"", b"empty key"), codec=codec)
    put(log, (b"b", b"2"), (b"b", b"3"), codec=codec)
    put(log, (b"c" * 100, b"2"), (b"", b""), codec=codec)
    await settled(log)
    await compacted(log)
    assert [(rec.offset, rec.key, rec.value) for rec in await contents(log)] == [
        (2, None, b"keyless"),
        (4, b"a", b"2"),
        (7, b"b", b"3"),
        (8, b"c" * 100, b"2"),
        (9, b"", b""),
    ]
    assert [rec.offset for rec in await contents(log, 5)] == [7, 8, 9], "from inside a batch and a gap"
    stored = await log.read(0, end_offset=10, max_bytes=MIB)
    assert [(batch.base_offset, batch.end_offset) for batch in stored] == [(0, 4), (4, 6), (6, 8), (8, 10)]
    assert {batch.codec for batch in stored} == {codec}


async def test_what_a_pass_has_taken_is_not_read_from_memory_either(open_store: OpenStore) -> None:
    store = await open_store()
    log = store.create_log(1)
    put(log, (b"a", b"1"))
    put(log, (b"a", b"2"))
    await settled(log)
    assert len(await contents(log)) == 2
    await compacted(log)
    put(log, (b"b", b"1"))
    await settled(log)
    assert [(rec.offset, rec.value) for rec in await contents(log)] == [(1, b"2"), (2, b"1")]


async def test_what_is_not_below_the_high_watermark_supersedes_nothing(open_store: OpenStore) -> None:
    """It may be taken back, and then the older one is the newest again."""
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    put(log, (b"a", b"1"))
    put(log, (b"a", b"2"))
    await log.barrier()
    log.set_high_watermark(1)
    await compacted(log)
    assert [rec.value for rec in await contents(log)] == [b"1", b"2"]
    log.set_high_watermark(2)
    await compacted(log)
    assert [rec.value for rec in await contents(log)] == [b"2"]


async def test_young_records_stay(open_store: OpenStore) -> None:
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    for second in range(4):
        put(log, (b"a", b"%d" % second), now_us=second * SECOND_US)
    await settled(log)
    lagging = replace(QUICK, lag_min_ms=2000)
    await compacted(log, 4 * SECOND_US - 1, lagging)
    assert [rec.value for rec in await contents(log)] == [b"1", b"2", b"3"]


async def test_a_tombstone_goes_when_nobody_can_miss_it(open_store: OpenStore) -> None:
    """Not in the pass that takes the older record, not before its time, not while a replica is behind."""
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    put(log, (b"a", b"1"))
    put(log, (b"a", None))
    put(log, (b"z", b"end"))
    await settled(log)
    log.replicated_offset = 1
    late_us = (KEEP_TOMBSTONES_S + 10) * SECOND_US
    await compacted(log, now_us=10)
    assert [rec.offset for rec in await contents(log)] == [1, 2]
    await compacted(log, now_us=20)
    assert [rec.offset for rec in await contents(log)] == [1, 2], "too young"
    await compacted(log, now_us=late_us)
    assert [rec.offset for rec in await contents(log)] == [1, 2], "a replica is behind"
    log.replicated_offset = 3
    await compacted(log, now_us=late_us)
    assert [rec.offset for rec in await contents(log)] == [2]


async def test_a_tombstone_never_goes_before_what_it_deletes(open_store: OpenStore) -> None:
    """However late the first pass comes, and wherever it is cut short: the record would be back."""
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    put(log, (b"a", b"1"))
    put(log, (b"a", None))
    put(log, (b"z", b"end"))
    await settled(log)
    late_us = 2 * KEEP_TOMBSTONES_S * SECOND_US
    for chunks in range(1, 8):
        pauses = 0

        async def pause(seconds: float) -> None:
            nonlocal pauses
            pauses += 1
            if pauses == chunks:  # noqa: B023 - used within this round
                raise InterruptedError

        with contextlib.suppress(InterruptedError):
            await log.compact(late_us, replace(QUICK, chunk_bytes_max=1), pause=pause, force=True)
        await log.barrier()
        if log.compacted_offset:
            break
        assert 1 in [rec.offset for rec in await contents(log)]
    assert log.compacted_offset == 3
    assert [rec.offset for rec in await contents(log)] == [1, 2]


async def test_sizes_and_positions_stay_right(open_store: OpenStore, clock: ManualClock) -> None:
    """What is left below a batch that shrank is counted right, by retention and by the doctor too."""
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    for key in (b"lower", b"upper", b"upper", b"end"):
        put(log, (key, b"x" * 1000), (key + b"2", b"y" * 100))
    await settled(log)
    await compacted(log)
    assert [rec.offset for rec in await contents(log)] == [0, 1, 4, 5, 6, 7]
    sizes = [len(batch.envelope) for batch in await log.read(0, end_offset=8, max_bytes=MIB)]
    assert log.size_bytes == sum(sizes)
    assert await log.apply_retention(clock.wall_us(), None, sum(sizes)) == 0
    assert await log.apply_retention(clock.wall_us(), None, sum(sizes) - 1) == 4
    assert log.size_bytes == sum(sizes[1:])
    log.trim(5)
    await log.settle(clock.wall_us())
    assert log.size_bytes == sum(sizes[1:])
    log.trim(6)
    await log.settle(clock.wall_us())
    assert log.size_bytes == sum(sizes[2:])


async def test_expired_tombstones_are_reason_enough_for_a_pass(open_store: OpenStore) -> None:
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    put(log, (b"a", b"1"), (b"a", None), (b"z", b"end"))
    await settled(log)
    await log.compact(10, QUICK, pause=at_once)
    assert len(await contents(log)) == 2
    await log.compact(20, QUICK, pause=at_once)
    assert len(await contents(log)) == 2
    await log.compact((KEEP_TOMBSTONES_S + 1) * SECOND_US, QUICK, pause=at_once)
    assert len(await contents(log)) == 1


async def test_a_pass_waits_for_enough_to_gain(open_store: OpenStore) -> None:
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    for number in range(10):
        put(log, (b"%d" % number, b"x" * 100))
    await settled(log)
    await log.compact(1, QUICK, pause=at_once)
    assert log.compacted_offset == 10
    for number in range(8):
        put(log, (b"%d" % number, b"x" * 100))
    await settled(log)
    await log.compact(1, QUICK, pause=at_once)
    assert log.compacted_offset == 10, "eight of eighteen are less than half"
    for number in range(3):
        put(log, (b"%d" % number, b"x" * 100))
    await settled(log)
    await log.compact(1, QUICK, pause=at_once)
    assert log.compacted_offset == 21
    assert [rec.offset for rec in await contents(log)] == [8, 9, *range(13, 21)]


async def test_what_deduplicates_survives(open_store: OpenStore, clock: ManualClock) -> None:
    """An emptied batch stays while its producer or request may still be asked for, restarts included."""
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    now_us = clock.wall_us()
    for sequence in range(9):
        await settled(log)
        put(log, (b"a", b"%d" % sequence), producer_id=7, producer_sequence=sequence, now_us=now_us)
    put(log, (b"a", b"r"), (b"a", b"r2"), request_id=b"r1", record_indexes=(3, 5), now_us=now_us)
    put(log, (b"a", b"end"), now_us=now_us)
    await settled(log)
    await compacted(log, now_us)
    assert [rec.value for rec in await contents(log)] == [b"end"]
    bases = [batch.base_offset for batch in await log.read(0, end_offset=12, max_bytes=MIB)]
    assert bases == [3, 4, 5, 6, 7, 8, 9, 11]
    await store.close()
    log = (await open_store(tail_bytes_max=0)).log(1)
    await log.load_request_ids()
    (part,) = log.request_ids.find(b"r1")
    assert (part.base_offset, part.record_count, part.record_indexes) == (9, 2, (3, 5))
    assert log.producers.check(7, 0, 8) == ProducerBatch(8, 8, 9, now_us)
    await log.truncate(8)
    assert log.producers.check(7, 0, 7) == ProducerBatch(7, 7, 8, now_us)
    assert log.producers.check(7, 0, 8) is None


async def test_a_request_leaves_nothing_behind_once_its_window_has_passed(
    open_store: OpenStore, clock: ManualClock
) -> None:
    """Not when the wall clock says so alone."""
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    put(log, (b"a", b"r"), request_id=b"r1", now_us=SECOND_US)
    put(log, (b"a", b"end"), now_us=SECOND_US)
    await settled(log)
    await compacted(log, SECOND_US)
    assert log.reader.at(0) is not None
    later_us = SECOND_US + log.request_ids.window_us + SECOND_US
    await compacted(log, later_us)
    assert log.reader.at(0) is not None
    clock.advance(log.request_ids.window_us / SECOND_US + 1)
    await compacted(log, later_us)
    assert log.reader.at(0) is None


async def test_a_follower_reaches_the_end_of_a_compacted_log(open_store: OpenStore) -> None:
    store = await open_store(tail_bytes_max=0)
    leader, follower = store.create_log(1), store.create_log(2)
    for number in range(20):
        put(leader, (b"%d" % (number % 3), b"x"), now_us=number)
    put(leader, (b"0", None), (b"1", None), (b"2", None), now_us=20)
    await settled(leader)
    await compacted(leader)
    await compacted(leader, (KEEP_TOMBSTONES_S + 1) * SECOND_US)
    assert await contents(leader) == []
    found = await leader.read_envelopes(0, end_offset=23, max_bytes=MIB)
    assert follower.append_replicated([batch.envelope for batch in found]) == leader.end_offset == 23
    await follower.barrier()
    assert follower.size_bytes == leader.size_bytes


async def test_readers_in_the_middle_of_a_pass_see_every_surviving_record_once(open_store: OpenStore) -> None:
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    for number in range(600):
        put(log, (b"%d" % (number % 50), b"%d" % number), (None, b"keep %d" % number))
    await settled(log)
    survivors = {2 * number + 1 for number in range(600)} | {2 * number for number in range(550, 600)}
    small = replace(QUICK, chunk_bytes_max=3000)
    passing = asyncio.ensure_future(log.compact(2, small, pause=asyncio.sleep, force=True))
    rounds = 0
    while not passing.done() or rounds == 0:
        rounds += 1
        offsets = [rec.offset for rec in await contents(log)]
        assert offsets == sorted(set(offsets))
        assert set(offsets) >= survivors
    await passing
    assert {rec.offset for rec in await contents(log)} == survivors


async def test_a_deleted_log_does_not_come_back(open_store: OpenStore) -> None:
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    for number in range(100):
        put(log, (b"a", b"%d" % number))
    await settled(log)
    pauses = 0

    async def delete_soon(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 3:
            store.delete_log(1)

    await log.compact(2, replace(QUICK, chunk_bytes_max=1000), pause=delete_soon, force=True)
    await store.close()
    store = await open_store()
    assert store.log_ids() == []
    assert store.create_log(1).reader.first_from(0) is None


async def test_a_damaged_batch_is_left_alone_and_takes_nothing_with_it(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tail_bytes_max=0)
    log = store.create_log(1)
    put(log, (b"a", b"1"))
    log.append(NewBatch(b"\xff not a batch of records", 1), now_us=1)
    put(log, (b"a", b"2"))
    await settled(log)
    await compacted(log)
    stored = await log.read(0, end_offset=3, max_bytes=MIB)
    assert [batch.base_offset for batch in stored] == [1, 2]
    assert bytes(stored[0].batch) == b"\xff not a batch of records"


async def test_the_store_compacts_by_itself_and_the_space_comes_back(open_store: OpenStore, clock: ManualClock) -> None:
    store = await open_store(
        memtable_bytes=MIB,
        tail_bytes_max=0,
        maintenance=MaintenanceSettings(garbage_bytes_min=MIB, compaction=QUICK),
    )
    log, kept = store.create_log(1), store.create_log(2)
    log.compacts = True
    for number in range(300):
        await store.wait_for_room()
        for each in (log, kept):
            put(each, (b"%d" % (number % 10), os.urandom(50_000)))
    for each in (log, kept):
        await settled(each)
    await store.maintain()
    assert log.size_bytes < 11 * 51_000
    assert len(await contents(log, max_bytes=64 * MIB)) == 10
    assert len(await contents(kept, max_bytes=64 * MIB)) == 300
    blobs = sum(file.stat().st_size for file in (store.path / "data").glob("*.blob"))
    assert blobs <= 2 * (log.size_bytes + kept.size_bytes) + MIB


class CompactionMachine(RuleBasedStateMachine):
    """Against a list of all records: what a dict of it would hold must stay the same, whatever is compacted when."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="postbus-compaction-"))
        self.clock = ManualClock()
        self.all: list[Rec] = []
        self.gone: set[int] = set()
        self.start = self.end = self.clean_end = self.replicated = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def open_store(self) -> None:
        def fail(error: Exception) -> None:
            raise error

        self.store = self.run(
            LogStore.open(self.folder / "store", StorageSettings(tail_bytes_max=500), self.clock, fail)
        )
        self.log = self.store.create_log(7)
        self.log.replicated_offset = self.replicated

    @initialize()
    def begin(self) -> None:
        self.open_store()

    @rule(
        records=st.lists(
            st.tuples(st.sampled_from([None, b"", b"a", b"b", b"k" * 40]), st.sampled_from([None, b"", b"v" * 50])),
            min_size=1,
            max_size=6,
        ),
        codec=st.sampled_from([0, 0, ZSTD, SNAPPY]),
        request_id=st.sampled_from([b"", b"r1"]),
        repeat=st.integers(1, 4),
    )
    def publish(
        self, records: list[tuple[bytes | None, bytes | None]], codec: int, request_id: bytes, repeat: int
    ) -> None:
        self.run(self.log.load_request_ids())
        for _ in range(repeat):
            now_us = self.clock.wall_us()
            put(self.log, *records, now_us=now_us, codec=codec, request_id=request_id)
            for key, value in records:
                self.all.append(Rec(self.end, key, value, self.log.last_append_time_us))
                self.end += 1

    @rule(
        keys_max=st.sampled_from([1, 3, 100]),
        chunk_bytes=st.sampled_from([1, 400, MIB]),
        cut_short_after=st.sampled_from([None, None, 1, 3, 6]),
        advance_s=st.sampled_from([0, 10, KEEP_TOMBSTONES_S + 1]),
    )
    def compact(self, keys_max: int, chunk_bytes: int, cut_short_after: int | None, advance_s: int) -> None:
        """cut_short_after: so many chunks, as when the process ends."""
        self.clock.advance(advance_s)
        self.run(self.log.barrier())
        self.log.set_high_watermark(self.end)
        pauses = 0

        async def pause(seconds: float) -> None:
            nonlocal pauses
            pauses += 1
            if pauses == cut_short_after:
                raise InterruptedError

        policy = replace(QUICK, keys_max=keys_max, chunk_bytes_max=chunk_bytes)
        now_us = self.clock.wall_us()
        before = self.log.compacted_offset
        done = True
        try:
            while self.run(self.log.compact(now_us, policy, pause=pause, force=True)):
                pass
        except InterruptedError:
            done = False
        self.run(self.log.barrier())
        found = {rec.offset for rec in self.run(contents(self.reopened()))}
        newest = {rec.key: rec.offset for rec in self.all if rec.key is not None}
        expired_us = now_us - KEEP_TOMBSTONES_S * SECOND_US
        for rec in self.all:
            if rec.offset < self.start or rec.offset in self.gone:
                continue
            superseded = rec.key is not None and newest[rec.key] > rec.offset
            may_go = superseded or (
                rec.key is not None and rec.value is None and rec.offset < self.replicated and rec.time_us < expired_us
            )
            assert rec.offset in found or may_go, rec
            if done:
                assert rec.offset not in found or not superseded, rec
                tombstone_seen_before = may_go and rec.offset < before
                assert rec.offset not in found or not tombstone_seen_before, rec
            if rec.offset not in found:
                self.gone.add(rec.offset)
        if done:
            assert self.log.compacted_offset == self.end

    def reopened(self) -> PartitionLog:
        """So that nothing comes from memory."""
        self.run(self.store.close())
        self.open_store()
        return self.log

    @rule(data=st.data())
    def replicate(self, data: st.DataObject) -> None:
        self.replicated = data.draw(st.integers(self.replicated, self.end))
        self.log.replicated_offset = self.replicated

    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        self.run(self.log.barrier())
        self.start = max(self.start, data.draw(st.integers(0, self.end)))
        self.log.trim(self.start)

    @rule()
    def maintain(self) -> None:
        """Sizes are exact: also after any number of passes and trims."""
        self.run(self.log.barrier())
        self.run(self.store.maintain())
        stored = self.run(self.log.read(self.start, end_offset=self.end, max_bytes=1 << 30))
        if not self.log.positions_unsure:
            assert self.log.size_bytes == sum(len(batch.envelope) for batch in stored)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        self.run(self.log.barrier())
        offset = data.draw(st.integers(self.start, self.end))
        expected = [rec for rec in self.all if rec.offset >= offset and rec.offset not in self.gone]
        found = self.run(contents(self.log, offset, max_bytes=data.draw(st.sampled_from([1, 1000]))))
        # The tail still has what compaction has taken from the disk.
        assert [rec for rec in found if rec.offset not in self.gone] == expected
        assert [rec.offset for rec in found] == sorted({rec.offset for rec in found})

    @rule()
    def inspect(self) -> None:
        """What compaction leaves is no damage to the doctor."""
        self.run(self.store.close())
        found = inspect(self.folder / "store", verify=True)
        assert found.damage == []
        self.open_store()

    @invariant()
    def a_dict_of_it_is_as_it_was(self) -> None:
        kept = [rec for rec in self.all if rec.offset not in self.gone and rec.offset >= self.start]
        whole = {rec.key: rec.value for rec in self.all if rec.key is not None}
        left = {rec.key: rec.value for rec in kept if rec.key is not None}
        newest = {rec.key: rec.offset for rec in self.all if rec.key is not None}
        for key, value in whole.items():
            if newest[key] >= self.start:
                assert left.get(key) == value

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)


TestCompactionModel = CompactionMachine.TestCase
TestCompactionModel.settings = settings(
    max_examples=5, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
