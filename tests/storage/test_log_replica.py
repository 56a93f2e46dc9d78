"""A log that follows another: the same bytes, and back to where the two parted."""

from collections.abc import Awaitable, Callable

import pytest

from broker.clock import ManualClock
from broker.storage import envelope
from broker.storage.envelope import EnvelopeDamaged
from broker.storage.errors import OffsetOutOfRange, ReplicaDiverged, StoreFailed
from broker.storage.log import NewBatch, PartitionLog
from broker.storage.producers import ProducerBatch, ProducerUnknown, SequenceGap
from broker.storage.store import LogStore

OpenStore = Callable[..., Awaitable[LogStore]]


def enveloped(base_offset: int, count: int = 10, *, fill: bytes = b"x", epoch: int = 0, **fields: object) -> bytes:
    value, _ = envelope.encode(
        fill * 100,
        base_offset=base_offset,
        record_count=count,
        append_time_us=base_offset,
        leader_epoch=epoch,
        **fields,  # type: ignore[arg-type]
    )
    return value


@pytest.fixture
async def pair(store: LogStore) -> tuple[PartitionLog, PartitionLog]:
    """A leader's log with epochs 1 and 3, producers and requests; and an empty one."""
    leader = store.create_log(1)
    for sequence in range(10):
        leader.append(
            NewBatch(
                b"%d" % sequence * 100,
                10,
                leader_epoch=1 if sequence < 5 else 3,
                producer_id=7,
                producer_epoch=2,
                producer_sequence=sequence,
            ),
            now_us=sequence,
        )
    leader.append(NewBatch(b"r" * 100, 2, leader_epoch=3, request_id=b"r1", record_indexes=(1, 5)), now_us=10)
    await leader.barrier()
    return leader, store.create_log(2)


async def copy(leader: PartitionLog, follower: PartitionLog) -> None:
    found = await leader.read_envelopes(follower.end_offset, end_offset=leader.end_offset, max_bytes=1 << 30)
    assert follower.append_replicated([batch.envelope for batch in found]) == leader.end_offset
    await follower.barrier()


async def test_a_follower_holds_the_same_bytes_and_derives_the_same_state(
    open_store: OpenStore, pair: tuple[PartitionLog, PartitionLog], store: LogStore, clock: ManualClock
) -> None:
    leader, follower = pair
    await copy(leader, follower)
    await store.close()
    store = await open_store(tail_bytes_max=0)
    logs = leader, follower = store.log(1), store.log(2)
    whole = [await log.read_envelopes(0, end_offset=102, max_bytes=1 << 30) for log in logs]
    assert [batch.envelope for batch in whole[0]] == [batch.envelope for batch in whole[1]]
    for log in logs:
        log.request_ids.window_us = clock.wall_us()
        await log.load_request_ids()
    assert follower.leader_epochs == leader.leader_epochs == [(1, 0), (3, 50)]
    assert (follower.size_bytes, follower.last_append_time_us) == (leader.size_bytes, leader.last_append_time_us)
    for sequence in range(11):
        assert follower.producers.check(7, 2, sequence) == leader.producers.check(7, 2, sequence)
    assert follower.request_ids.find(b"r1") == leader.request_ids.find(b"r1") != ()
    assert await follower.offset_for_time(5, end_offset=102) == 50


async def test_followers_are_served_from_memory_before_anything_is_written(store: LogStore) -> None:
    log = store.create_log(1)
    log.append(NewBatch(b"x", 3), now_us=1)
    (found,) = log.read_tail_envelopes(0, end_offset=log.end_offset, max_bytes=1) or []
    assert log.written_end_offset == 0
    assert store.create_log(2).append_replicated([found.envelope]) == 3


@pytest.mark.parametrize(
    ("batches", "refusal"),
    [
        ([enveloped(30), enveloped(39)], ReplicaDiverged),
        ([enveloped(19)], ReplicaDiverged),
        ([enveloped(30, epoch=4), enveloped(40, epoch=3)], ReplicaDiverged),
        ([enveloped(30), enveloped(40)[:-1]], EnvelopeDamaged),
    ],
    ids=["overlapping", "before the end", "a lower epoch", "damaged"],
)
async def test_what_does_not_follow_is_refused_whole(
    store: LogStore, batches: list[bytes], refusal: type[Exception]
) -> None:
    log = store.create_log(1)
    log.append_replicated([enveloped(0), enveloped(10), enveloped(20)])
    with pytest.raises(refusal):
        log.append_replicated(batches)
    assert log.end_offset == 30
    assert log.append_replicated([enveloped(35, epoch=4)]) == 45, "gaps are fine"
    await log.barrier()
    assert [batch.base_offset for batch in await log.read(0, end_offset=45, max_bytes=1 << 20)] == [0, 10, 20, 35]


async def test_epochs_tell_where_two_logs_part(pair: tuple[PartitionLog, PartitionLog]) -> None:
    leader, empty = pair
    assert [leader.end_offset_for_epoch(epoch) for epoch in range(5)] == [(-1, 0), (1, 50), (1, 50), (3, 102), (3, 102)]
    assert (leader.last_epoch, empty.last_epoch, empty.end_offset_for_epoch(9)) == (3, -1, (-1, 0))


async def test_an_epoch_goes_with_its_first_record(pair: tuple[PartitionLog, PartitionLog]) -> None:
    log, _ = pair
    assert await log.truncate(60) == 60
    assert log.leader_epochs == [(1, 0), (3, 50)]
    assert await log.truncate(50) == 50
    assert log.leader_epochs == [(1, 0)]


async def test_a_truncation_takes_back_all_that_follows_from_the_log(
    open_store: OpenStore, pair: tuple[PartitionLog, PartitionLog], store: LogStore
) -> None:
    """In one durable write: a crash right after it changes nothing."""
    log, _ = pair
    size_bytes = log.size_bytes
    assert await log.truncate(47) == 40, "the start of the batch"
    assert (log.end_offset, log.durable_end_offset, log.written_end_offset) == (40, 40, 40)
    assert log.read_tail(40, end_offset=50, max_bytes=1) == []
    assert log.request_ids.find(b"r1") == ()
    await store.close()
    log = (await open_store()).log(1)
    await log.load_request_ids()
    assert (log.end_offset, log.last_epoch, log.last_append_time_us) == (40, 1, 3)
    assert (
        log.size_bytes
        == sum(len(batch.envelope) for batch in await log.read(0, end_offset=40, max_bytes=1 << 20))
        < size_bytes
    )
    assert [log.producers.check(7, 2, sequence) for sequence in range(5)] == [
        *(ProducerBatch(sequence, sequence * 10, sequence * 10 + 10, sequence) for sequence in range(4)),
        None,
    ]
    with pytest.raises(SequenceGap):
        log.producers.check(7, 2, 5)
    assert log.request_ids.find(b"r1") == ()
    assert log.append(NewBatch(b"other", 1, leader_epoch=4), now_us=0) == (40, 41, 3)


async def test_a_truncation_goes_back_to_the_producers_former_epoch(store: LogStore) -> None:
    log = store.create_log(1)
    for number in range(8):
        epoch, sequence = (1, number) if number < 6 else (2, number - 6)
        log.append(NewBatch(b"x", 10, producer_id=7, producer_epoch=epoch, producer_sequence=sequence), now_us=number)
    log.append(NewBatch(b"x", 10, producer_id=8), now_us=9)
    await log.truncate(60)
    assert log.producers.check(7, 1, 5) == ProducerBatch(5, 50, 60, 5)
    assert log.producers.check(7, 1, 1) == ProducerBatch(1, 10, 20, 1)
    assert log.producers.check(7, 1, 6) is None
    with pytest.raises(ProducerUnknown):
        log.producers.check(8, 0, 1)


async def test_producers_above_the_high_watermark_are_known_after_a_restart(open_store: OpenStore) -> None:
    """A retry of any of them may still come, to whoever leads next; only the last five are saved with each append."""
    store = await open_store()
    log = store.create_log(1)
    for sequence in range(20):
        if sequence == 10:
            log.set_high_watermark(10)
        log.append(NewBatch(b"x", 1, producer_id=7, producer_sequence=sequence), now_us=sequence)
    await store.close()
    log = (await open_store()).log(1)
    assert log.high_watermark == 10
    await log.load_request_ids()
    assert [log.producers.check(7, 0, sequence) for sequence in range(10, 20)] == [
        ProducerBatch(sequence, sequence, sequence + 1, sequence) for sequence in range(10, 20)
    ]


async def test_a_truncation_waits_for_what_is_in_flight(store: LogStore) -> None:
    log = store.create_log(1)
    for _ in range(5):
        log.append(NewBatch(b"x" * 1000, 10), now_us=1)
    assert await log.truncate(20) == 20
    log.append(NewBatch(b"y", 10), now_us=1)
    await log.barrier()
    found = await log.read(0, end_offset=30, max_bytes=1 << 20)
    assert [(batch.base_offset, bytes(batch.batch[:1])) for batch in found] == [(0, b"x"), (10, b"x"), (20, b"y")]


async def test_below_the_log_start_nothing_can_be_truncated(store: LogStore) -> None:
    log = store.create_log(1)
    log.append(NewBatch(b"x", 30), now_us=1)
    await log.barrier()
    log.trim(20)
    with pytest.raises(OffsetOutOfRange):
        await log.truncate(10)
    assert await log.truncate(25) == 20, "its batch goes, its log start stays"
    assert log.log_start_offset == log.end_offset == 20


async def test_a_reset_log_is_empty_and_begins_there(open_store: OpenStore, clock: ManualClock) -> None:
    """Even inside a batch: the leader's log may start in the middle of one."""
    store = await open_store()
    log = store.create_log(1)
    await log.load_request_ids()
    log.append(NewBatch(b"x", 30, producer_id=7, request_id=b"r"), now_us=1)
    await log.reset(1005)
    assert (log.log_start_offset, log.end_offset, log.durable_end_offset, log.size_bytes) == (1005, 1005, 1005, 0)
    assert log.append_replicated([enveloped(1000), enveloped(1010)]) == 1020
    await store.maintain()
    await store.close()
    log = (await open_store()).log(1)
    await log.load_request_ids()
    assert (log.log_start_offset, log.high_watermark, log.end_offset) == (1005, 1005, 1020)
    assert [batch.base_offset for batch in await log.read(1005, end_offset=1020, max_bytes=1 << 20)] == [1000, 1010]
    assert log.producers.check(7, 0, 0) is None
    assert log.request_ids.find(b"r") == ()
    log.trim(1010)
    await log.settle(clock.wall_us())
    assert log.reader.at(1000) is None, "deleted with the log start, though it begins before the reset's"


async def test_a_follower_that_was_leader_goes_on_remembering_requests(
    pair: tuple[PartitionLog, PartitionLog],
) -> None:
    leader, follower = pair
    await follower.load_request_ids()
    await copy(leader, follower)
    assert follower.request_ids.find(b"r1") == leader.request_ids.find(b"r1")


async def test_after_a_failed_disk_a_truncation_fails_too(
    store: LogStore, fatal_errors: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    from broker.storage.engine import Engine

    log = store.create_log(1)
    log.append(NewBatch(b"x", 30), now_us=1)
    await log.barrier()

    def fail(self: Engine) -> None:
        raise StoreFailed("fsync: IO error: Input/output error")

    monkeypatch.setattr(Engine, "flush_wal", fail)
    with pytest.raises(StoreFailed):
        await log.truncate(0)
    assert len(fatal_errors) == 1
