"""One groups log as its coordinator uses it: records in, offsets at once, word when they are durable.

Owns the offsets of records that are not appended yet, and who waits for what. Lives as long as this node leads the
log's partition in one leader epoch: nobody else appends meanwhile. All records of one turn of the loop go into one
append. It knows nothing of groups: records are key and value, and a log holds at least the newest of each key.

A record's offset is known when it is written here, before it is appended, because nobody else appends to this log.
That makes fences available to decisions of the same turn; nobody outside hears of them before they are durable: on
every in-sync replica, below the high watermark.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from postbus.v1 import record_pb2

from broker.errors import PostbusError, Reason
from broker.groups.calls import no_coordinator
from broker.storage.batch import NewBatch, StoredBatch
from broker.storage.errors import StorageError

BATCH_RECORDS_MAX: Final = 5_000
# A batch stops growing there: a single record may exceed it, up to what a request may hold.
BATCH_BYTES_TARGET: Final = 1024 * 1024
# Records that wait for a log that can't take them (a full disk) before new requests are refused.
PENDING_RECORDS_MAX: Final = 50_000
RETRY_S: Final = 0.25
# What is read at once when the log is loaded, and replayed before others have their turn on the loop (some 10 ms).
LOAD_BYTES: Final = 256 * 1024
LOAD_RECORDS_A_TURN: Final = 500

Replay = Callable[[bytes, bytes | None, int], None]  # key, value (None: deleted), offset


class Timer(Protocol):
    """What `call_later` of a loop gives."""

    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]


class LocalLog(Protocol):
    """What is needed of this node's replica."""

    @property
    def end_offset(self) -> int: ...


class ReadableLog(Protocol):
    """What is needed to read it."""

    @property
    def log_start_offset(self) -> int: ...
    def read(self, offset: int, *, end_offset: int, max_bytes: int) -> Awaitable[Sequence[StoredBatch]]: ...


class GroupsPartition(Protocol):
    """What groups need of a `replication.partition.Partition` of the groups topic."""

    @property
    def number(self) -> int: ...
    @property
    def leader_id(self) -> int | None: ...
    @property
    def leader_epoch(self) -> int: ...
    @property
    def leading(self) -> bool: ...
    @property
    def high_watermark(self) -> int: ...
    @property
    def local(self) -> LocalLog | None: ...
    @property
    def log(self) -> ReadableLog: ...
    def writable_error(self) -> PostbusError | None: ...
    def append(self, new: NewBatch) -> Any: ...  # with a base_offset
    def add_listener(self, wake: Callable[[], None]) -> None: ...
    def remove_listener(self, wake: Callable[[], None]) -> None: ...


class Journal:
    """One log in one leader epoch. On the loop only."""

    def __init__(self, partition: GroupsPartition, *, call_later: CallLater) -> None:
        assert partition.leading and partition.local is not None
        self._partition = partition
        self._epoch = partition.leader_epoch
        self._call_later = call_later
        self._pending: list[tuple[bytes, bytes | None]] = []
        self._next_offset = partition.local.end_offset
        # As this epoch's leader knew it: what the high watermark does later may be about other records.
        self._durable_end = min(partition.high_watermark, self._next_offset)
        self._flush_scheduled = False
        self._retry: Timer | None = None
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._callbacks: deque[tuple[int, Callable[[], None]]] = deque()
        self._closed = False
        partition.add_listener(self._progressed)

    @property
    def next_offset(self) -> int:
        """The offset of the next record: the log's end and what waits to be appended."""
        return self._next_offset

    @property
    def durable_end_offset(self) -> int:
        """All below survives anything."""
        return self._durable_end

    @property
    def leads(self) -> bool:
        """Whether this node still leads the partition, in the epoch that this is about."""
        partition = self._partition
        return not self._closed and partition.leading and partition.leader_epoch == self._epoch

    async def load(self, replay: Replay) -> None:
        """Replays the whole log; returns when nothing of an earlier leader can come any more. Before any `write`.

        Waits first until all that is there is durable: what an earlier leader appended last may have been told to
        nobody, but once this one decides on it, it must not go. Raises StorageError, NO_LEADER.
        """
        end_offset = self._next_offset
        await self.durable()
        log = self._partition.log
        offset = log.log_start_offset
        replayed = 0
        while offset < end_offset:
            batches = await log.read(offset, end_offset=end_offset, max_bytes=LOAD_BYTES)
            if not batches:
                break  # what was there is compacted away
            for stored in batches:
                for at, record in _records(stored):
                    if at < offset:
                        continue
                    replay(record.key, record.value if record.HasField("value") else None, at)
                    replayed += 1
                    if replayed % LOAD_RECORDS_A_TURN == 0:
                        await asyncio.sleep(0)
            offset = batches[-1].end_offset
            await asyncio.sleep(0)
        if not self.leads:
            raise no_coordinator()

    def write(self, key: bytes, value: bytes | None) -> int:
        """Takes a record, or the deletion of one; returns its offset. It is appended at the end of this turn."""
        offset = self._next_offset
        self._next_offset += 1
        self._pending.append((key, value))
        if not self._flush_scheduled and self._retry is None:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_now)
        return offset

    def check_leading(self) -> None:
        """Raises NO_LEADER unless what is known here is the newest there is; before answering from it."""
        if not self.leads:
            raise no_coordinator()
        refusal = self._partition.writable_error()
        if refusal is not None and refusal.reason == Reason.ERROR_REASON_NO_LEADER:
            raise refusal

    def check_room(self) -> None:
        """Raises what keeps the log from taking anything (NO_LEADER, NOT_ENOUGH_REPLICAS, DISK_FULL).

        Before anything is decided, so that it has not happened.
        """
        if not self.leads:
            raise no_coordinator()
        refusal = self._partition.writable_error()
        if refusal is not None:
            raise refusal
        if len(self._pending) >= PENDING_RECORDS_MAX:
            raise PostbusError(
                Reason.ERROR_REASON_DISK_FULL,
                "the groups log can't be written now; try again",
                retry_after_ms=round(RETRY_S * 1000),
            )

    async def durable(self) -> None:
        """Returns when all that was written so far is durable; raises NO_LEADER if that is no longer to be known."""
        if self._durable_end >= self._next_offset:
            return
        if self._closed:
            raise no_coordinator(maybe_done=True)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._next_offset, waiter))
        await waiter

    def when_durable(self, callback: Callable[[], None]) -> None:
        """The same for a callback, which comes at once if nothing is to be waited for, and never after the end."""
        if self._durable_end >= self._next_offset:
            callback()
        elif not self._closed:
            self._callbacks.append((self._next_offset, callback))

    def flush(self) -> None:
        """Appends what was written, now."""
        if self._retry is None:
            self._flush()

    def close(self) -> None:
        """Appends what waits, if this node still leads; answers that still wait are UNAVAILABLE, outcome unknown."""
        if self._closed:
            return
        self._flush()
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._partition.remove_listener(self._progressed)
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(no_coordinator(maybe_done=True))
        self._waiters.clear()
        self._callbacks.clear()

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        self._retry = None
        while self._pending and self.leads:
            records = self._next_batch()
            try:
                self._append(records)
            except (PostbusError, StorageError):
                # The records are decided and stay first in line; nobody was told of them.
                self._retry = self._call_later(RETRY_S, self._flush)
                return
            del self._pending[: len(records)]

    def _next_batch(self) -> list[tuple[bytes, bytes | None]]:
        size_bytes = 0
        for count, (key, value) in enumerate(self._pending[:BATCH_RECORDS_MAX], 1):
            size_bytes += len(key) + len(value or b"")
            if size_bytes >= BATCH_BYTES_TARGET:
                return self._pending[:count]
        return self._pending[:BATCH_RECORDS_MAX]

    def _append(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        batch = record_pb2.RecordBatch(records=[record_pb2.Record(key=key, value=value) for key, value in records])
        published = self._partition.append(NewBatch(batch=batch.SerializeToString(), record_count=len(records)))
        expected = self._next_offset - len(self._pending)
        assert published.base_offset == expected, "somebody else appends to the groups log"

    def _progressed(self) -> None:
        if not self.leads:
            return  # the owner closes this
        durable = min(self._partition.high_watermark, self._next_offset)
        if durable <= self._durable_end:
            return
        self._durable_end = durable
        while self._waiters and self._waiters[0][0] <= durable:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)
        while self._callbacks and self._callbacks[0][0] <= durable:
            self._callbacks.popleft()[1]()


def _records(stored: StoredBatch) -> Iterator[tuple[int, record_pb2.Record]]:
    """Records and their offsets; compaction leaves gaps."""
    records = record_pb2.RecordBatch.FromString(bytes(stored.batch)).records
    if not stored.offset_deltas:
        return zip(range(stored.base_offset, stored.base_offset + len(records)), records, strict=True)
    return zip((stored.base_offset + delta for delta in stored.offset_deltas), records, strict=True)
