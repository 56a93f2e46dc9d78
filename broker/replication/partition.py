"""A partition that this node leads: what may be appended, and how far it is safe.

Owns the high watermark and those who wait for it. On one node the high watermark is the durable end of the log. It
never waits: `publish` checks and appends in one go, and tells later, by callback, when the records are as safe as
was asked for.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from postbus.v1 import publisher_pb2

from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.storage.batch import NewBatch
from broker.storage.errors import DiskFull
from broker.storage.log import PartitionLog
from broker.storage.producers import DuplicateTooOld, ProducerFenced, ProducerRefusal, ProducerUnknown, SequenceGap
from broker.storage.request_ids import RequestIdsFull

ACKS_NONE: Final = int(publisher_pb2.ACKS_NONE)

Done = Callable[[PostbusError | None], None]


@dataclass(frozen=True, slots=True)
class Published:
    """Where the records of one request are in one partition."""

    partition: int
    base_offset: int
    record_count: int
    record_indexes: tuple[int, ...]
    append_time_us: int
    duplicate: bool

    @property
    def end_offset(self) -> int:
        """One past the last."""
        return self.base_offset + self.record_count


class Partition:
    """The leader's side of one partition. Lives on the event loop."""

    def __init__(
        self,
        *,
        topic: str,
        topic_id: str,
        number: int,
        log: PartitionLog,
        clock: Clock,
        acks_when_written: bool = False,
    ) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.number = number
        self.log = log
        self.leader_epoch = 0
        # The topic's durability is "replicated": an ack waits for the page cache alone, the high watermark does not.
        self.acks_when_written = acks_when_written
        self.high_watermark = log.durable_end_offset
        self.deleted = False
        self._clock = clock
        self._durable_waiters: deque[tuple[int, Done]] = deque()
        self._written_waiters: deque[tuple[int, Done]] = deque()
        self._listeners: set[Callable[[], None]] = set()
        log.on_progress = self._progressed

    def append(self, new: NewBatch) -> Published:
        """Appends; what storage refuses is raised as a PostbusError."""
        if self.deleted:
            raise PostbusError(
                Reason.ERROR_REASON_TOPIC_NOT_FOUND,
                f"topic {self.topic!r} was deleted",
                resource=("topic", self.topic),
            )
        try:
            appended = self.log.append(new, now_us=self._clock.wall_us())
        except DiskFull as error:
            raise PostbusError(
                Reason.ERROR_REASON_DISK_FULL,
                f"{error}; publishing goes on by itself once there is room",
                retry_after_ms=1000,
            ) from error
        return Published(
            self.number, appended.base_offset, new.record_count, new.record_indexes, appended.append_time_us, False
        )

    def find_sequence(self, *, producer_id: int, producer_epoch: int, sequence: int) -> Published | None:
        """Where this batch of a producer is, if it was appended before; raises unless it is that or the next one."""
        try:
            earlier = self.log.producers.check(producer_id, producer_epoch, sequence)
        except ProducerRefusal as error:
            raise _refusal(error, producer_id) from error
        if earlier is None:
            return None
        count = earlier.end_offset - earlier.base_offset
        return Published(self.number, earlier.base_offset, count, (), earlier.append_time_us, True)

    def check_request_room(self, request_id: bytes) -> None:
        """Raises QUOTA_EXCEEDED if no more request ids can be remembered."""
        try:
            self.log.request_ids.check_room(request_id, now_us=self._clock.wall_us())
        except RequestIdsFull as error:
            raise PostbusError(
                Reason.ERROR_REASON_QUOTA_EXCEEDED,
                f"{self.topic}/{self.number} remembers {error.count} request ids, as many as it may: publish more"
                " records a request, shorten the topic's deduplication_window, or wait",
                retry_after_ms=min(max(error.retry_after_us // 1000, 100), 60_000),
            ) from error

    def check_end_offset(self, expected: int) -> None:
        """Compare-and-append: raises unless the log ends there."""
        if self.log.end_offset != expected:
            raise PostbusError(
                Reason.ERROR_REASON_PRECONDITION_NOT_MET,
                f"{self.topic}/{self.number} ends at {self.log.end_offset}, not at {expected}: read what was"
                " appended since, decide again, and publish with the new end offset",
                metadata={"end_offset": self.log.end_offset},
            )

    def when_safe(self, end_offset: int, acks: int, done: Done) -> None:
        """Calls `done` once the log up to `end_offset` is as safe as `acks` asks; at once if it is."""
        if self.deleted:
            done(self._gone())  # its log tells of no progress any more
        elif acks == ACKS_NONE or end_offset <= self.high_watermark:
            done(None)
        elif self.acks_when_written:
            if end_offset <= self.log.written_end_offset:
                done(None)
            else:
                _enqueue(self._written_waiters, end_offset, done)
        else:
            _enqueue(self._durable_waiters, end_offset, done)

    def add_listener(self, wake: Callable[[], None]) -> None:
        """`wake` is called when the high watermark, the log start or the partition's existence changes."""
        self._listeners.add(wake)

    def remove_listener(self, wake: Callable[[], None]) -> None:
        """The opposite; no harm if it was not there."""
        self._listeners.discard(wake)

    def trimmed(self) -> None:
        """The log start moved."""
        self._wake()

    def delete(self) -> None:
        """The topic went: whoever waits is told."""
        self.deleted = True
        self.log.on_progress = None
        gone = self._gone()
        for waiters in (self._durable_waiters, self._written_waiters):
            while waiters:
                waiters.popleft()[1](gone)
        self._wake()

    def _progressed(self) -> None:
        durable = self.log.durable_end_offset
        if durable > self.high_watermark:
            self.high_watermark = durable
            _release(self._durable_waiters, durable)
            self._wake()
        if self._written_waiters:
            _release(self._written_waiters, self.log.written_end_offset)

    def _gone(self) -> PostbusError:
        return PostbusError(
            Reason.ERROR_REASON_TOPIC_NOT_FOUND,
            f"topic {self.topic!r} was deleted meanwhile",
            resource=("topic", self.topic),
        )

    def _wake(self) -> None:
        for wake in tuple(self._listeners):
            wake()


def _refusal(error: ProducerRefusal, producer_id: int) -> PostbusError:
    facts: dict[str, object] = {"producer_id": producer_id}
    if isinstance(error, ProducerFenced):
        facts["producer_epoch"] = error.current_epoch
        return PostbusError(
            Reason.ERROR_REASON_PRODUCER_FENCED,
            f"producer {producer_id} has epoch {error.current_epoch} by now: another instance took over, stop",
            metadata=facts,
        )
    if isinstance(error, SequenceGap):
        facts["expected_sequence"] = error.expected_sequence
        return PostbusError(
            Reason.ERROR_REASON_SEQUENCE_GAP,
            f"the next sequence of producer {producer_id} here is {error.expected_sequence}",
            metadata=facts,
        )
    if isinstance(error, DuplicateTooOld):
        return PostbusError(Reason.ERROR_REASON_DUPLICATE_SEQUENCE, f"producer {producer_id}: {error}", metadata=facts)
    assert isinstance(error, ProducerUnknown)
    return PostbusError(
        Reason.ERROR_REASON_PRODUCER_UNKNOWN,
        f"nothing is remembered of producer {producer_id} here: take a new epoch with InitProducer and begin at"
        " sequence 0",
        metadata=facts,
    )


def _enqueue(waiters: deque[tuple[int, Done]], end_offset: int, done: Done) -> None:
    if not waiters or waiters[-1][0] <= end_offset:
        waiters.append((end_offset, done))
        return
    # A duplicate waits for an append that was made before others that wait already.
    at = next(index for index, (end, _) in enumerate(waiters) if end > end_offset)
    waiters.insert(at, (end_offset, done))


def _release(waiters: deque[tuple[int, Done]], end_offset: int) -> None:
    while waiters and waiters[0][0] <= end_offset:
        waiters.popleft()[1](None)
