"""A partition that this node leads: who is told what, when, and in which order."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postbus.v1 import error_pb2, publisher_pb2

from broker.clock import ManualClock
from broker.controller.state import PartitionState
from broker.errors import PostbusError
from broker.replication.damages import Damages
from broker.replication.isr_changes import IsrChanges, LoneSession
from broker.replication.partition import Partition, Shared
from broker.replication.settings import ReplicationSettings
from broker.replication.succession import Succession
from broker.storage.batch import Appended, NewBatch
from broker.storage.errors import DiskFull
from broker.storage.producers import ProducerTable
from broker.storage.request_ids import RequestIdTable, RequestPart

ALL, LEADER, NONE = publisher_pb2.ACKS_ALL, publisher_pb2.ACKS_LEADER, publisher_pb2.ACKS_NONE


@dataclass
class FakeLog:
    """Offsets, and progress as the test makes it."""

    end_offset: int = 0
    written_end_offset: int = 0
    durable_end_offset: int = 0
    log_start_offset: int = 0
    high_watermark: int = 0
    replicated_offset: int = 0
    last_epoch: int = -1
    wants_written: bool = False
    on_progress: Callable[[], None] | None = None
    full: bool = False
    damage: None = None
    producers: ProducerTable = field(default_factory=ProducerTable)
    request_ids: RequestIdTable = field(
        default_factory=lambda: RequestIdTable(monotonic=lambda: 0.0, request_ids_max=1)
    )

    def append(self, new: NewBatch, *, now_us: int, extra_ops: Any = ()) -> Appended:
        if self.full:
            raise DiskFull("too little room")
        base = self.end_offset
        self.end_offset += new.record_count
        return Appended(base, self.end_offset, now_us)

    def set_high_watermark(self, offset: int) -> None:
        assert offset <= self.end_offset
        self.high_watermark = max(self.high_watermark, offset)

    def progress(self, *, written: int | None = None, durable: int | None = None) -> None:
        """As the committer tells it: what is durable is written."""
        self.durable_end_offset = self.durable_end_offset if durable is None else durable
        self.written_end_offset = max(self.written_end_offset if written is None else written, self.durable_end_offset)
        if self.on_progress is not None:
            self.on_progress()


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


def partition_of(log: FakeLog, *, acks_when_written: bool = False) -> Partition:
    """Led by this node, which is alone."""
    session = LoneSession()
    settings = ReplicationSettings()
    shared = Shared(
        node_id=1,
        clock=ManualClock(),
        settings=settings,
        session=session,
        isr_changes=IsrChanges(session=session, settings=settings),
        damages=Damages(session=session, settings=settings),
        succession=Succession(None, known_epoch=lambda log_id: -1, settings=settings),
        feeder=None,
        puller=None,
        nodes={},
        registered={},
    )
    partition = Partition(topic="t", topic_id="id", number=3, log_id=7, shared=shared)
    partition.configure(min_insync_replicas=1, acks_when_written=acks_when_written)
    state = PartitionState(log_id=7, replicas=(1,), isr=(1,), leader=1)
    assert partition.follow(state, log_of_replica=lambda: log) is None  # type: ignore[arg-type, return-value]
    return partition


class Told:
    """Who was told, in order, and what."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.errors: list[PostbusError | None] = []

    def waiter(self, name: str) -> Callable[[PostbusError | None], None]:
        def done(error: PostbusError | None) -> None:
            self.names.append(name)
            self.errors.append(error)

        return done


def append(partition: Partition, count: int = 1) -> int:
    """Records; their end offset."""
    return partition.append(NewBatch(batch=b"x", record_count=count)).end_offset


def test_an_acknowledgement_waits_for_the_fsync(log: FakeLog) -> None:
    """Written is not enough; durable is, exactly up to where it goes."""
    partition, told = partition_of(log), Told()
    ends = [append(partition, 2) for _ in range(3)]
    for end in ends:
        partition.when_safe(end, ALL, told.waiter(f"{end}"))
    log.progress(written=6)
    assert told.names == [] and partition.high_watermark == 0
    log.progress(durable=3)
    assert told.names == ["2"] and partition.high_watermark == 3
    log.progress(durable=6)
    assert told.names == ["2", "4", "6"] and told.errors == [None] * 3


@pytest.mark.parametrize("acks", [ALL, LEADER, publisher_pb2.ACKS_UNSPECIFIED])
def test_every_level_but_none_waits(log: FakeLog, acks: int) -> None:
    """NONE is answered at once."""
    partition, told = partition_of(log), Told()
    end = append(partition)
    partition.when_safe(end, acks, told.waiter("waits"))
    partition.when_safe(end, NONE, told.waiter("none"))
    assert told.names == ["none"]
    log.progress(durable=1)
    assert told.names == ["none", "waits"]


def test_a_replicated_topic_acknowledges_what_is_written(log: FakeLog) -> None:
    """The high watermark still follows what is durable: subscribers see nothing that a power cut could take."""
    partition, told = partition_of(log, acks_when_written=True), Told()
    end = append(partition)
    partition.when_safe(end, ALL, told.waiter("a"))
    log.progress(written=1)
    assert told.names == ["a"] and partition.high_watermark == 0
    partition.when_safe(end, ALL, told.waiter("late"))
    assert told.names == ["a", "late"]
    log.progress(durable=1)
    assert partition.high_watermark == 1


def test_a_change_of_durability_releases_each_waiter_as_it_was_promised(log: FakeLog) -> None:
    """Those from before wait for the fsync; new ones for the write."""
    partition, told = partition_of(log), Told()
    partition.when_safe(append(partition), ALL, told.waiter("fsync"))
    partition.acks_when_written = True
    partition.when_safe(append(partition), ALL, told.waiter("write"))
    log.progress(written=2)
    assert told.names == ["write"]
    log.progress(durable=2)
    assert told.names == ["write", "fsync"]


def test_what_is_durable_already_is_told_at_once(log: FakeLog) -> None:
    """A duplicate of an old request."""
    partition, told = partition_of(log), Told()
    end = append(partition)
    log.progress(durable=1)
    partition.when_safe(end, ALL, told.waiter("duplicate"))
    assert told.names == ["duplicate"]


def test_a_duplicate_waits_for_its_first_try_not_for_later_ones(log: FakeLog) -> None:
    """It stands in line where its records are."""
    partition, told = partition_of(log), Told()
    first, later = append(partition), append(partition)
    partition.when_safe(later, ALL, told.waiter("later"))
    partition.when_safe(first, ALL, told.waiter("duplicate of first"))
    log.progress(durable=1)
    assert told.names == ["duplicate of first"]
    log.progress(durable=2)
    assert told.names == ["duplicate of first", "later"]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.data())
def test_waiters_are_released_in_the_order_of_their_offsets(ends: list[int], data: st.DataObject) -> None:
    """In whatever order they came, and however far each step goes; equal ones in the order in which they came."""
    log = FakeLog(end_offset=20)
    partition, told = partition_of(log), Told()
    for index, end in enumerate(ends):
        partition.when_safe(end, ALL, told.waiter(f"{end} {index}"))
    durable = 0
    while durable < 20:
        durable = data.draw(st.integers(durable + 1, 20))
        log.progress(durable=durable)
        expected = [f"{end} {index}" for end, index in sorted((end, index) for index, end in enumerate(ends))]
        assert told.names == [name for name in expected if int(name.split()[0]) <= durable]


def test_deletion_tells_every_waiter_and_listener(log: FakeLog) -> None:
    """NOT_FOUND, once each; later progress of the log tells nobody; later appends are refused."""
    partition, told = partition_of(log), Told()
    woken: list[bool] = []
    partition.add_listener(lambda: woken.append(partition.deleted))
    partition.when_safe(append(partition), ALL, told.waiter("durable"))
    partition.acks_when_written = True
    partition.when_safe(append(partition), ALL, told.waiter("written"))
    partition.delete()
    log.progress(durable=2)
    assert sorted(told.names) == ["durable", "written"]
    assert {error.reason for error in told.errors if error} == {error_pb2.ERROR_REASON_TOPIC_NOT_FOUND}
    assert woken == [True]
    with pytest.raises(PostbusError) as refused:
        append(partition)
    assert refused.value.reason == error_pb2.ERROR_REASON_TOPIC_NOT_FOUND


def test_whoever_asks_after_the_deletion_is_told_at_once(log: FakeLog) -> None:
    """A retry that waited for room meanwhile finds its first try in the log, which makes no progress any more."""
    partition, told = partition_of(log), Told()
    end_offset = append(partition)
    partition.delete()
    partition.when_safe(end_offset, ALL, told.waiter("late"))
    assert told.names == ["late"]
    assert [error and error.reason for error in told.errors] == [error_pb2.ERROR_REASON_TOPIC_NOT_FOUND]


def test_listeners_hear_of_the_high_watermark_alone(log: FakeLog) -> None:
    """Not of writes that are not durable; one that is removed while others are told hurts nobody."""
    partition = partition_of(log)
    woken: list[str] = []

    def first() -> None:
        woken.append("first")
        partition.remove_listener(first)
        partition.remove_listener(first)

    partition.add_listener(first)
    partition.add_listener(lambda: woken.append("second"))
    append(partition, 2)
    log.progress(written=2)
    assert woken == []
    log.progress(durable=2)
    assert sorted(woken) == ["first", "second"]
    partition.trimmed()
    assert sorted(woken) == ["first", "second", "second"]


def test_a_full_disk_is_a_refusal_that_may_be_repeated(log: FakeLog) -> None:
    """RESOURCE_EXHAUSTED with the time to wait; nothing is given out."""
    log.full = True
    partition = partition_of(log)
    with pytest.raises(PostbusError) as refused:
        append(partition)
    assert refused.value.reason == error_pb2.ERROR_REASON_DISK_FULL
    assert refused.value.kind.retriable and refused.value.retry_after_ms
    assert log.end_offset == 0


def test_compare_and_append_names_the_end(log: FakeLog) -> None:
    """So that the publisher can decide again."""
    partition = partition_of(log)
    append(partition, 5)
    partition.check_end_offset(5)
    with pytest.raises(PostbusError) as refused:
        partition.check_end_offset(4)
    assert refused.value.metadata["end_offset"] == "5"


def test_a_full_table_of_request_ids_says_how_long(log: FakeLog) -> None:
    """An id that is known passes; a new one is told when the oldest leaves the window, within reason."""
    partition = partition_of(log)
    log.request_ids.window_us = 10_000_000
    log.request_ids.add(b"known", RequestPart(0, 1, ManualClock().wall_us(), ()))
    partition.check_request_room(b"known")
    with pytest.raises(PostbusError) as refused:
        partition.check_request_room(b"new")
    assert refused.value.reason == error_pb2.ERROR_REASON_QUOTA_EXCEEDED
    assert 9_000 <= (refused.value.retry_after_ms or 0) <= 11_000


def test_what_a_producer_is_told(log: FakeLog) -> None:
    """Unknown, next, duplicate, gap, too old, fenced: each its own reason, with the fact that helps."""
    partition = partition_of(log)

    def find(epoch: int, sequence: int) -> Any:
        return partition.find_sequence(producer_id=9, producer_epoch=epoch, sequence=sequence)

    def refusal(epoch: int, sequence: int) -> PostbusError:
        with pytest.raises(PostbusError) as refused:
            find(epoch, sequence)
        return refused.value

    from broker.storage.producers import ProducerBatch

    assert refusal(0, 1).reason == error_pb2.ERROR_REASON_PRODUCER_UNKNOWN
    for sequence in range(20):
        assert find(0, sequence) is None
        log.producers.record(9, 0, ProducerBatch(sequence, sequence * 2, sequence * 2 + 2, 77))
        log.producers.high_watermark = sequence * 2 + 2
    duplicate = find(0, 19)
    assert (duplicate.base_offset, duplicate.end_offset, duplicate.duplicate, duplicate.partition) == (38, 40, True, 3)
    gap = refusal(0, 21)
    assert (gap.reason, gap.metadata["expected_sequence"]) == (error_pb2.ERROR_REASON_SEQUENCE_GAP, "20")
    assert refusal(0, 0).reason == error_pb2.ERROR_REASON_DUPLICATE_SEQUENCE
    assert find(2, 0) is None
    log.producers.record(9, 2, ProducerBatch(0, 40, 42, 78))
    fenced = refusal(0, 20)
    assert (fenced.reason, fenced.metadata["producer_epoch"]) == (error_pb2.ERROR_REASON_PRODUCER_FENCED, "2")
