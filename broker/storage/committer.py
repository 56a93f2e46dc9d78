"""Group commit: a bounded, ordered queue, and one thread a database that writes and fsyncs what is in it.

The loop submits; the thread takes all that is queued, writes it, fsyncs once, moves the durable mark, and tells the
loop with one wake-up for the whole group. Submissions are written, and told, in the order in which they came.
It never retries an fsync: after a failed one the state of the disk is unknown (and Linux forgets dirty pages), so the
first error is the last thing it does. Nothing is told durable after that.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from broker.storage.durable_mark import DurableMark
from broker.storage.engine import Op
from broker.storage.errors import StorageError, StoreFailed, WriteStalled

STALL_RETRY_S: Final = 0.002


class WritableEngine(Protocol):
    """What the committer needs of an `Engine`."""

    def write(self, ops: Sequence[Op]) -> None:
        """All or nothing; raises WriteStalled, StoreFailed."""

    def flush_wal(self) -> None:
        """fsync; raises StoreFailed."""

    def sequence(self) -> int:
        """Number of the last write."""


class ProgressListener(Protocol):
    """Is told once a group, however many of its submissions the group holds."""

    wants_written: bool

    def written(self, ticket: int) -> None:
        """All of its submissions up to this ticket survive the end of the process."""

    def durable(self, ticket: int) -> None:
        """All of its submissions up to this ticket are fsynced."""


@dataclass(frozen=True, slots=True)
class CommitterSettings:
    """Bounds of one committer."""

    append_queue_bytes_max: int = 32 * 1024 * 1024
    """Bytes submitted and not yet durable, beyond which `wait_for_room` waits. Memory, and time to drain."""
    group_bytes_max: int = 8 * 1024 * 1024
    """Bytes fsynced at once. Larger groups raise latency under load, smaller ones cost throughput."""
    write_bytes_max: int = 1024 * 1024
    """Bytes in one RocksDB write, which holds the interpreter lock for about a millisecond a megabyte."""
    write_stall_timeout_ms: int = 120_000
    """How long writes may stall before that counts as a failure of the disk."""
    mark_sync_interval_ms: int = 0
    """How often the durable mark itself is fsynced; 0: with every flush."""


@dataclass(slots=True)
class _Submission:
    ticket: int
    ops: Sequence[Op]
    size_bytes: int
    on_written: Callable[[], None] | None
    on_durable: Callable[[], None] | None
    listener: ProgressListener | None
    wants_written: bool


class Committer:
    """Used on the loop that is given, except for its own thread."""

    def __init__(
        self,
        engine: WritableEngine,
        mark: DurableMark,
        *,
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[Exception], None],
        settings: CommitterSettings | None = None,
        overwritten_families: frozenset[str] = frozenset(),
        name: str = "committer",
    ) -> None:
        """on_fatal: called on the loop, at most once; the process must end.

        overwritten_families: the same keys are put there again and again; a write holds only the last of each.
        """
        self._engine = engine
        self._mark = mark
        self._loop = loop
        self._on_fatal = on_fatal
        self._settings = settings or CommitterSettings()
        self._overwritten_families = overwritten_families
        self._queue: queue.SimpleQueue[_Submission | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        # On the loop.
        self._ticket = 0
        self._failure: StorageError | None = None  # what `submit` raises: a failure, or that it is closed
        self._fatal = False
        self._room_waiters: deque[asyncio.Future[None]] = deque()
        self._room_handovers = 0
        self._barriers: set[asyncio.Future[None]] = set()
        self.queued_bytes = 0
        # Written by the thread, read by metrics.
        self.groups_count = 0
        self.stalls_count = 0
        self.on_flush: Callable[[float], None] = lambda seconds: None  # in the thread, after each fsync
        # In the thread.
        self._mark_unsynced_since: float | None = None
        self._thread.start()

    def submit(
        self,
        ops: Sequence[Op],
        *,
        size_bytes: int,
        on_written: Callable[[], None] | None = None,
        on_durable: Callable[[], None] | None = None,
        listener: ProgressListener | None = None,
    ) -> int:
        """Queues a write; never blocks. The ops of one submission are written all or nothing.

        Returns its ticket, which grows with every submission. Raises StoreFailed after a failure or `close`.
        """
        self.check()
        self._ticket = ticket = self._ticket + 1
        self.queued_bytes += size_bytes
        wants_written = on_written is not None or (listener is not None and listener.wants_written)
        self._queue.put(_Submission(ticket, ops, size_bytes, on_written, on_durable, listener, wants_written))
        return ticket

    def check(self) -> None:
        """Raises what `submit` would raise."""
        if self._failure is not None:
            raise self._failure

    @property
    def append_queue_bytes_max(self) -> int:
        """The bound of `queued_bytes`."""
        return self._settings.append_queue_bytes_max

    @property
    def failed(self) -> bool:
        """True: a write or fsync failed, and on_fatal was called."""
        return self._fatal

    @property
    def has_room(self) -> bool:
        """True: `wait_for_room` would return at once."""
        return not self._room_waiters and not self._room_handovers and self._below_bound()

    async def wait_for_room(self) -> None:
        """Waits, in turn, until less than `append_queue_bytes_max` is queued; submit then without another await."""
        self.check()
        if self.has_room:
            return
        waiter = self._loop.create_future()
        self._room_waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._room_handed_over()
            else:
                with contextlib.suppress(ValueError):
                    self._room_waiters.remove(waiter)
            raise
        # The caller submits in this very step; the next one in line is asked after it, not together with it.
        self._loop.call_soon(self._room_handed_over)

    async def barrier(self) -> None:
        """Returns when all that was submitted so far is durable. Raises StoreFailed."""
        reached = self._loop.create_future()

        def arrive() -> None:
            if not reached.done():
                reached.set_result(None)

        self.submit((), size_bytes=0, on_durable=arrive)
        self._barriers.add(reached)
        try:
            await reached
        finally:
            self._barriers.discard(reached)

    async def close(self) -> None:
        """Drains: all that was submitted is durable, and told, when it returns (unless there was a failure)."""
        if self._failure is None:
            self._failure = StoreFailed("the store is closed")
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        # The last group's wake-up was scheduled before the thread ended: let it run.
        await asyncio.sleep(0)
        self._fail_waiters(self._failure)

    # --- The thread.

    def _run(self) -> None:
        try:
            open_ended = True
            while open_ended:
                group, open_ended = self._take()
                if group:
                    self._commit(group)
                if self._mark_is_due(closing=not open_ended):
                    self._mark.sync()
                    self._mark_unsynced_since = None
        except Exception as error:
            failure = error if isinstance(error, StorageError) else StoreFailed(f"committing: {error!r}")
            self._call_loop(self._fail, failure)

    def _take(self) -> tuple[list[_Submission], bool]:
        """All that is queued, up to the bound of a group; waits for the first. False: nothing comes any more."""
        timeout_s = None
        if self._mark_unsynced_since is not None:
            due = self._mark_unsynced_since + self._settings.mark_sync_interval_ms / 1000
            timeout_s = max(0.0, due - time.monotonic())
        group: list[_Submission] = []
        size_bytes = 0
        try:
            submission = self._queue.get(timeout=timeout_s)
            while submission is not None:
                group.append(submission)
                size_bytes += submission.size_bytes
                if size_bytes >= self._settings.group_bytes_max:
                    return group, True
                submission = self._queue.get_nowait()
        except queue.Empty:
            return group, True
        return group, False

    def _commit(self, group: list[_Submission]) -> None:
        ops: list[Op | None] = []
        ops_bytes = 0
        latest: dict[tuple[str, bytes], int] = {}
        wrote = False
        for submission in group:
            if ops and ops_bytes + submission.size_bytes > self._settings.write_bytes_max:
                self._write(ops)
                wrote, ops, ops_bytes, latest = True, [], 0, {}
            for op in submission.ops:
                if op[1] in self._overwritten_families and op[0] == "put":
                    # Within one write only the last value of a key is ever seen: leave the earlier ones out.
                    slot = (op[1], op[2])
                    earlier = latest.get(slot)
                    if earlier is not None:
                        ops[earlier] = None
                    latest[slot] = len(ops)
                ops.append(op)
            ops_bytes += submission.size_bytes
        if ops:
            self._write(ops)
            wrote = True
        if any(submission.wants_written for submission in group):
            self._call_loop(self._tell_written, group)
        if wrote:
            self._flush()
        self.groups_count += 1
        self._call_loop(self._tell_durable, group)

    def _flush(self) -> None:
        # Before the flush: a number taken after it could be of a write that the flush did not cover.
        sequence = self._engine.sequence()
        begin = time.perf_counter()
        self._engine.flush_wal()
        self.on_flush(time.perf_counter() - begin)
        self._mark.record(sequence)
        if self._settings.mark_sync_interval_ms == 0:
            self._mark.sync()
        elif self._mark_unsynced_since is None:
            self._mark_unsynced_since = time.monotonic()

    def _write(self, collected: list[Op | None]) -> None:
        ops = [op for op in collected if op is not None]
        deadline = 0.0
        while True:
            try:
                self._engine.write(ops)
                return
            except WriteStalled as stall:
                self.stalls_count += 1
                now = time.monotonic()
                deadline = deadline or now + self._settings.write_stall_timeout_ms / 1000
                if now >= deadline:
                    raise StoreFailed(f"writes stalled for {self._settings.write_stall_timeout_ms} ms") from stall
                time.sleep(STALL_RETRY_S)

    def _mark_is_due(self, *, closing: bool) -> bool:
        if self._mark_unsynced_since is None:
            return False
        return closing or time.monotonic() - self._mark_unsynced_since >= self._settings.mark_sync_interval_ms / 1000

    def _call_loop(self, function: Callable[[Any], None], argument: object) -> None:
        # A closed loop: the process is ending without `close`, and there is nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, argument)

    # --- Back on the loop.

    def _tell_written(self, group: list[_Submission]) -> None:
        listeners: dict[ProgressListener, int] = {}
        for submission in group:
            if submission.on_written is not None:
                self._call(submission.on_written)
            if submission.listener is not None:
                listeners[submission.listener] = submission.ticket
        for listener, ticket in listeners.items():
            if listener.wants_written:
                self._call(partial(listener.written, ticket))

    def _tell_durable(self, group: list[_Submission]) -> None:
        listeners: dict[ProgressListener, int] = {}
        for submission in group:
            self.queued_bytes -= submission.size_bytes
            if submission.on_durable is not None:
                self._call(submission.on_durable)
            if submission.listener is not None:
                listeners[submission.listener] = submission.ticket
        for listener, ticket in listeners.items():
            self._call(partial(listener.durable, ticket))
        self._admit_next()

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        """One listener's bug must not keep the others from their answers."""
        self._loop.call_exception_handler({"message": "a listener of the committer failed", "exception": error})

    def _fail(self, error: StorageError) -> None:
        """Called once: the thread has ended."""
        self._failure = error
        self._fatal = True
        self._fail_waiters(error)
        self._on_fatal(error)

    def _fail_waiters(self, error: StorageError) -> None:
        for waiter in [*self._room_waiters, *self._barriers]:
            if not waiter.done():
                waiter.set_exception(error)
        self._room_waiters.clear()

    def _below_bound(self) -> bool:
        return self.queued_bytes < self._settings.append_queue_bytes_max

    def _admit_next(self) -> None:
        while self._room_waiters and not self._room_handovers and self._below_bound():
            waiter = self._room_waiters.popleft()
            if not waiter.done():
                self._room_handovers += 1
                waiter.set_result(None)

    def _room_handed_over(self) -> None:
        self._room_handovers -= 1
        self._admit_next()
