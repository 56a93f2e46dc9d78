"""What a publisher holds for one partition: batches open, sealed and in flight, and the sequence that ties them.

Pure bookkeeping: no I/O, no clock. `pipeline` moves batches along; `publisher` fills the open one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator
from itertools import islice
from typing import TYPE_CHECKING, Final

from postbus import wire
from postbus.errors import PostbusError
from postbus.records import Published, PublishedRange

if TYPE_CHECKING:
    from postbus.sender import Sender

# The broker remembers the last five batches of a producer below the high watermark: with no more in flight, a repeated
# batch always gets its original offsets.
IN_FLIGHT_MAX: Final = 5
# The broker's limit.
RECORDS_MAX: Final = 100_000


class OutgoingBatch:
    """Records of one partition that travel together, and whoever waits for their fate."""

    __slots__ = (
        "_awaited",
        "_waiters",
        "base_offset",
        "chunks",
        "created",
        "error",
        "lane",
        "on_wire",
        "outcome_unknown",
        "payload",
        "record_count",
        "resolved",
        "sent_time",
        "sequence",
        "size_bytes",
    )

    def __init__(self, lane: Lane, created: float) -> None:
        self.lane = lane
        self.created = created
        self.chunks: list[bytes] = []
        self.size_bytes = 0
        self.record_count = 0
        self.payload = b""
        self.sequence = 0
        # Written to the stream that is open now, and not answered yet.
        self.on_wire = False
        self.sent_time = 0.0
        # Some try was written and never answered: it may be in the log.
        self.outcome_unknown = False
        self.resolved = False
        self.base_offset = -1
        self.error: PostbusError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._awaited = False

    @property
    def unseen_error(self) -> PostbusError | None:
        """The error, if nobody has asked for any of its deliveries."""
        return None if self._awaited else self.error

    def has_room(self, size_bytes: int, record_count: int, size_bytes_max: int) -> bool:
        """True: so much more fits."""
        return self.size_bytes + size_bytes <= size_bytes_max and self.record_count + record_count <= RECORDS_MAX

    def fitting(self, encoded: list[bytes], start: int, size_bytes_max: int) -> tuple[list[bytes], int]:
        """As many of the records from `start` on as still fit, and their size; at least one into an empty batch."""
        if not start:
            size_bytes = sum(map(len, encoded))
            if self.has_room(size_bytes, len(encoded), size_bytes_max):
                return encoded, size_bytes
        size_bytes = count = 0
        for record in islice(encoded, start, None):
            if not self.has_room(size_bytes + len(record), count + 1, size_bytes_max) and (count or self.record_count):
                break
            size_bytes += len(record)
            count += 1
        return encoded[start : start + count], size_bytes

    def resolve(self, *, base_offset: int = -1, error: PostbusError | None = None) -> bool:
        """Settles the fate of all records; False if it was settled before."""
        if self.resolved:
            return False
        self.resolved = True
        self.base_offset = base_offset
        self.error = error
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        return True

    async def wait(self) -> None:
        """Until it is resolved. Each waiter has a future of its own: cancelling one leaves the others."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def take(self) -> None:
        """Raises its error, if there is one; somebody has seen it then."""
        self._awaited = True
        if self.error is not None:
            raise self.error.copy()

    def published_range(self) -> PublishedRange:
        """Where its records are."""
        return PublishedRange(self.lane.topic, self.lane.partition, self.base_offset, self.record_count)


class Delivery:
    """The fate of one record: `await` it for where it went, or for the error."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: OutgoingBatch, index: int) -> None:
        self._batch = batch
        self._index = index

    def __await__(self) -> Generator[object, None, Published]:
        batch = self._batch
        if not batch.resolved:
            batch._awaited = True
            yield from batch.wait().__await__()
        return self.result()

    def done(self) -> bool:
        """True: `result` has an answer."""
        return self._batch.resolved

    def result(self) -> Published:
        """Where the record is; raises its error, or InvalidStateError while it is under way."""
        batch = self._batch
        if not batch.resolved:
            raise asyncio.InvalidStateError("the record is under way: await it")
        batch.take()
        base = batch.base_offset
        return Published(batch.lane.topic, batch.lane.partition, base + self._index if base >= 0 else -1)


class BulkDelivery:
    """The fate of records that were published in one call: `await` it for where they went, or for the first error.

    record_count: how many were handed over.
    """

    __slots__ = ("_parts", "record_count")

    def __init__(self) -> None:
        self.record_count = 0
        # (batch, index of the first in it, how many), in the order of handing over.
        self._parts: list[tuple[OutgoingBatch, int, int]] = []

    def add(self, batch: OutgoingBatch, index: int, count: int) -> None:
        """`count` more records, which lie at `index` of `batch`."""
        self.record_count += count
        if self._parts:
            last, first, so_far = self._parts[-1]
            if last is batch and first + so_far == index:
                self._parts[-1] = (batch, first, so_far + count)
                return
        self._parts.append((batch, index, count))

    def __await__(self) -> Generator[object, None, list[PublishedRange]]:
        for batch, _, _ in self._parts:
            if not batch.resolved:
                batch._awaited = True
                yield from batch.wait().__await__()
        return self.result()

    def done(self) -> bool:
        """True: `result` has an answer."""
        return all(batch.resolved for batch, _, _ in self._parts)

    def result(self) -> list[PublishedRange]:
        """Ranges of offsets, those of one partition in order; raises the first error if any record has one."""
        if not self.done():
            raise asyncio.InvalidStateError("the records are under way: await them")
        failed: PostbusError | None = None
        ranges: list[PublishedRange] = []
        for batch, index, count in self._parts:
            try:
                batch.take()
            except PostbusError as error:
                failed = failed or error
                continue
            base = batch.base_offset
            ranges.append(
                PublishedRange(batch.lane.topic, batch.lane.partition, base + index if base >= 0 else -1, count)
            )
        if failed is not None:
            failed.metadata["records_published"] = str(sum(each.record_count for each in ranges))
            failed.metadata["records_given"] = str(self.record_count)
            raise failed
        return ranges


class Lane:
    """One partition, as a publisher sees it.

    A batch moves from `open` (being filled) to `sealed` (complete, waiting for the window) to `in_flight` (it has a
    sequence). Those in flight stay there, in order, across tries and connections, until they are answered.
    """

    __slots__ = (
        "attempts",
        "blocked",
        "due",
        "head",
        "identity",
        "in_flight",
        "moving",
        "next_sequence",
        "on_wire_count",
        "open",
        "partition",
        "recovery",
        "sealed",
        "sender",
        "topic",
    )

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.head = wire.request_head(topic=topic, partition=partition)
        self.open: OutgoingBatch | None = None
        self.sealed: deque[OutgoingBatch] = deque()
        self.in_flight: deque[OutgoingBatch] = deque()
        self.on_wire_count = 0
        # (producer id, epoch) if it needed one of its own; None: the publisher's.
        self.identity: tuple[int, int] | None = None
        self.next_sequence = 0
        # The linger of the open batch is over, but the window is full: it goes with the next answer.
        self.due = False
        # The partition can't be published to for a while; tries so far.
        self.blocked = False
        self.attempts = 0
        self.recovery: Recovery | None = None
        # Its way to the log, and whether it waits for another one.
        self.sender: Sender | None = None
        self.moving = False

    @property
    def held(self) -> bool:
        """True: nothing may be sent now."""
        return self.blocked or self.moving or self.recovery is not None

    def unresolved(self) -> list[OutgoingBatch]:
        """Every batch whose records somebody may be waiting for, oldest first."""
        batches = [*self.in_flight, *self.sealed]
        if self.open is not None:
            batches.append(self.open)
        return [batch for batch in batches if not batch.resolved]

    def to_flight(self) -> list[OutgoingBatch]:
        """Gives sequences to as many sealed batches as the window allows, and returns them."""
        moved: list[OutgoingBatch] = []
        while self.sealed and len(self.in_flight) < IN_FLIGHT_MAX and not self.held:
            batch = self.sealed.popleft()
            batch.sequence = self.next_sequence
            self.next_sequence += 1
            self.in_flight.append(batch)
            moved.append(batch)
        return moved

    def leave_flight(self, batch: OutgoingBatch) -> None:
        """`batch` has its final answer."""
        if self.in_flight and self.in_flight[0] is batch:
            self.in_flight.popleft()
        elif batch in self.in_flight:
            self.in_flight.remove(batch)

    def may_send(self, batch: OutgoingBatch) -> bool:
        """True: it is this batch's turn, all before it being on the wire and itself not."""
        if self.held or batch.on_wire or batch not in self.in_flight:
            return False
        index = self.in_flight.index(batch)
        return index == 0 or self.in_flight[index - 1].on_wire

    def renumber(self, first_sequence: int) -> None:
        """Closes the gap that refused batches left from `first_sequence` on.

        Only when nothing behind the gap is in the log: the broker saw to that by refusing what came out of turn.
        """
        sequence = first_sequence
        for batch in self.in_flight:
            if batch.sequence >= first_sequence:
                batch.sequence = sequence
                sequence += 1
        self.next_sequence = sequence


class Recovery:
    """A lane waits until all that it has on the wire is answered; then its sequence goes on from a known place.

    sequence: which the next batch gets; None: the broker no longer knows the producer, a new identity is needed.
    gap_certain: True: what is on the wire behind the cause is surely refused for the gap in the sequence. False: the
        cause may be in the log from an earlier try, so what follows it may get there too.
    """

    __slots__ = ("cause", "gap_certain", "sequence", "started")

    def __init__(self, sequence: int | None, cause: PostbusError, *, gap_certain: bool = True) -> None:
        self.sequence = sequence
        self.cause = cause
        self.gap_certain = gap_certain
        self.started = False
