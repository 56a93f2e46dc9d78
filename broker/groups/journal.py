"""The groups log as the coordinator uses it: records in, offsets at once, word when they are durable.

Owns the offsets of records that are not appended yet, the compacted table beside the log, and who waits for what.
All records of one turn of the loop go into one append. It knows nothing of groups: records are key and value.

A record's offset is known when it is written here, before it is appended, because nobody else appends to this log.
That makes fences available to decisions of the same turn; nobody outside hears of them before they are durable.
"""

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from postbus.v1 import record_pb2

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.storage.batch import NewBatch
from broker.storage.errors import StorageError

# The table holds everything, the log is for followers and for people: a tail of it is enough.
LOG_RECORDS_MAX: Final = 20_000
LOG_RECORDS_MIN: Final = 10_000
BATCH_RECORDS_MAX: Final = 5_000
# Records that wait for a log that can't take them (a full disk) before new requests are refused.
PENDING_RECORDS_MAX: Final = 50_000
RETRY_S: Final = 0.25

_OFFSET: Final = struct.Struct(">Q")


class Timer(Protocol):
    """What `call_later` of a loop gives."""

    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]


class GroupsLog(Protocol):
    """What the journal needs of a `storage.log.PartitionLog`."""

    on_progress: Callable[[], None] | None

    @property
    def log_start_offset(self) -> int: ...
    @property
    def end_offset(self) -> int: ...
    @property
    def durable_end_offset(self) -> int: ...
    def append(self, new: NewBatch, *, now_us: int, extra_ops: Sequence[Any] = ()) -> Any: ...
    def table_put_op(self, key: bytes, value: bytes) -> Any: ...
    def table_delete_op(self, key: bytes) -> Any: ...
    async def table_items(self) -> list[tuple[bytes, bytes]]: ...
    def trim(self, new_log_start: int) -> None: ...


class Journal:
    """One log and its table. On the loop only."""

    def __init__(self, log: GroupsLog, *, clock: Clock, call_later: CallLater) -> None:
        self._log = log
        self._clock = clock
        self._call_later = call_later
        self._pending: list[tuple[bytes, bytes | None]] = []
        self._next_offset = log.end_offset
        self._flush_scheduled = False
        self._retry: Timer | None = None
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._callbacks: deque[tuple[int, Callable[[], None]]] = deque()
        self._closed = False
        log.on_progress = self._on_progress

    @property
    def next_offset(self) -> int:
        """The offset of the next record: the log's end and what waits to be appended."""
        return self._next_offset

    @property
    def durable_end_offset(self) -> int:
        """All below survives anything."""
        return self._log.durable_end_offset

    async def load(self) -> list[tuple[bytes, bytes, int]]:
        """Key, value and offset of the newest record of each key."""
        return [
            (key, value[_OFFSET.size :], _OFFSET.unpack_from(value)[0]) for key, value in await self._log.table_items()
        ]

    def write(self, key: bytes, value: bytes | None) -> int:
        """Takes a record, or the deletion of one; returns its offset. It is appended at the end of this turn."""
        offset = self._next_offset
        self._next_offset += 1
        self._pending.append((key, value))
        if not self._flush_scheduled and self._retry is None:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_scheduled_now)
        return offset

    def check_room(self) -> None:
        """Raises DISK_FULL when the log has not taken anything for long; call before deciding anything."""
        if self._closed:
            raise errors.draining()
        if len(self._pending) >= PENDING_RECORDS_MAX:
            raise PostbusError(
                Reason.ERROR_REASON_DISK_FULL,
                "the groups log can't be written now; try again",
                retry_after_ms=round(RETRY_S * 1000),
            )

    async def durable(self) -> None:
        """Returns when all that was written so far is durable."""
        if self._log.durable_end_offset >= self._next_offset:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._next_offset, waiter))
        await waiter

    def when_durable(self, callback: Callable[[], None]) -> None:
        """The same for a callback, which comes at once if nothing is to be waited for."""
        if self._log.durable_end_offset >= self._next_offset:
            callback()
        else:
            self._callbacks.append((self._next_offset, callback))

    def close(self) -> None:
        """Appends what waits, as well as it goes; answers that still wait are UNAVAILABLE."""
        if self._closed:
            return
        self._flush()
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._log.on_progress = None
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(errors.draining())
        self._waiters.clear()
        self._callbacks.clear()

    def _flush_scheduled_now(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        self._retry = None
        while self._pending and not self._closed:
            records = self._pending[:BATCH_RECORDS_MAX]
            try:
                self._append(records)
            except StorageError:
                # The records are decided and stay first in line; nobody was told of them.
                self._retry = self._call_later(RETRY_S, self._flush)
                return
            del self._pending[: len(records)]
        self._trim()

    def _append(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        base_offset = self._log.end_offset
        batch = record_pb2.RecordBatch(records=[record_pb2.Record(key=key, value=value) for key, value in records])
        # The table's rows go into the same write. Of several records of one key the last one counts.
        rows = {key: (base_offset + index, value) for index, (key, value) in enumerate(records)}
        ops = [
            self._log.table_delete_op(key)
            if value is None
            else self._log.table_put_op(key, _OFFSET.pack(offset) + value)
            for key, (offset, value) in rows.items()
        ]
        self._log.append(
            NewBatch(batch=batch.SerializeToString(), record_count=len(records)),
            now_us=self._clock.wall_us(),
            extra_ops=ops,
        )
        assert self._log.end_offset == base_offset + len(records), "somebody else appends to the groups log"

    def _trim(self) -> None:
        durable = self._log.durable_end_offset
        if durable - self._log.log_start_offset > LOG_RECORDS_MAX:
            with contextlib.suppress(StorageError):  # the next append tries again
                self._log.trim(durable - LOG_RECORDS_MIN)

    def _on_progress(self) -> None:
        durable = self._log.durable_end_offset
        while self._waiters and self._waiters[0][0] <= durable:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)
        while self._callbacks and self._callbacks[0][0] <= durable:
            self._callbacks.popleft()[1]()
