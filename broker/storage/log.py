"""One partition log: append, read, time look-up, log start, and what retention would take.

Owns offsets: which are given out, written and durable, and where the log starts. All of it lives on the loop; blocking
reads go to the reader threads (`log_reader.py`), and writes to the committer. It never decides who may append, what
is deduplicated or what subscribers may see: replication does, with the two tables that are kept here because they
derive from the log.

A follower's log gets the leader's envelopes as they are (`append_replicated`), and gives up its end where it went
another way than the leader's (`truncate`, `reset`); all that derives from the log goes with it in the same write.

Time look-up searches the index by halves, because append times never fall within a log: exact, and with nothing to
keep in step.

Trimming has two steps. `trim` moves the log start at once, in memory and in the saved state. The store's maintenance
then looks up which batches lie wholly before it (`settle`) and deletes their ranges; index entries stay until the
deduplication window has passed, because request ids are rebuilt from them.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

from broker.clock import Clock
from broker.storage import envelope
from broker.storage.batch import Appended, NewBatch, StoredBatch
from broker.storage.committer import Committer
from broker.storage.compaction import Chunk, CompactionSettings
from broker.storage.engine import Op, PutOp
from broker.storage.envelope import Envelope
from broker.storage.errors import (
    DiskFull,
    LogCorrupt,
    OffsetOutOfRange,
    ReplicaDiverged,
    StorageError,
    StoreCorrupt,
    UnknownLog,
)
from broker.storage.log_compaction import LogCompaction, Pause
from broker.storage.log_cut import Cut, plan_cut
from broker.storage.log_reader import Indexed, LogReader
from broker.storage.log_state import (
    BATCHES,
    INDEX,
    LOG_FAMILIES,
    PRODUCERS,
    STATE,
    LogState,
    log_key,
    offset_key,
    producer_key,
)
from broker.storage.producers import ProducerBatch, ProducerTable
from broker.storage.request_ids import RequestIdTable, RequestPart
from broker.storage.tail import LogTail

__all__ = ["Appended", "LogContext", "NewBatch", "PartitionLog", "StoredBatch"]

_T = TypeVar("_T")

# Keys and values of the small puts that come with each batch.
_APPEND_OVERHEAD_BYTES: Final = 256
# How often index entries that wait for the deduplication window are looked at.
_SETTLE_AGAIN_US: Final = 30_000_000


class DiskState(Protocol):
    """Whether there is room; see `disk_watch.py`."""

    @property
    def full(self) -> bool:
        """Nothing is to be published."""

    @property
    def exhausted(self) -> bool:
        """Nothing at all is to be appended."""


@dataclass(frozen=True, slots=True)
class LogContext:
    """What all logs of a node share."""

    committer: Committer
    readers: Executor
    disk: DiskState
    clock: Clock


class PartitionLog:
    """On the loop only. Made by `LogStore`."""

    wants_written = False
    """True: `written_end_offset` is told ahead of `durable_end_offset`, at the price of a wake-up a group."""

    def __init__(
        self,
        log_id: int,
        state: LogState,
        *,
        context: LogContext,
        reader: LogReader,
        tail: LogTail,
        producers: ProducerTable,
        request_ids: RequestIdTable,
    ) -> None:
        self.log_id = log_id
        self.producers = producers
        self.request_ids = request_ids
        self.on_progress: Callable[[], None] | None = None
        """Called when the written or durable end, or the log start, has moved. Once a group commit at most."""
        self.damage: LogCorrupt | None = None
        """The first that could not be read of what should be here; None again once the log was reset."""
        self.on_damage: Callable[[], None] | None = None
        """Called when `damage` was found."""
        self.retention_us: int | None = None
        self.retention_bytes: int | None = None
        """Set by whoever knows the topic's settings; the store's maintenance follows them. None: unlimited."""
        self.may_use_reserve = False
        """True, for internal logs: appends go on below `disk_free_min_bytes`, down to `disk_reserve_bytes`."""
        self.compacts = False
        """Log compaction: of each key only the newest record stays. Set by whoever knows the topic's settings."""
        self.replicated_offset = 0
        """The smallest end offset of all replicas, set by replication: tombstones from there on may not go yet."""
        self.written_end_offset = state.end_offset
        self.durable_end_offset = state.end_offset
        self.deleted = False
        self._state = state
        self._key = log_key(log_id)
        self._context = context
        self.reader = reader
        """Blocking; for `in_reader`."""
        self._tail = tail
        self._durable_position = state.end_position
        # When `settle` may find something to delete; None: not before the next trim.
        behind = min(state.batches_deleted_offset, state.index_deleted_offset)
        self._settle_due_us: int | None = 0 if state.log_start_offset > behind else None
        self._in_flight: deque[tuple[int, int, int]] = deque()  # (ticket, end offset, end position)
        self._request_ids_loaded = state.end_offset == 0
        self._request_ids_load: asyncio.Task[None] | None = None
        self._start_time: tuple[int, int] | None = None  # (log start, append time of its batch), for retention
        self.rearranging = asyncio.Lock()
        """Held by what reads the index, and then writes what follows from it."""
        self.generation = 0
        """Grows when records are taken back, so that work over several holds of the lock can tell."""
        self._compaction: LogCompaction | None = None
        self._frozen = False  # while truncate or reset run: nothing may be appended
        self._saved_high_watermark = state.high_watermark
        if state.damaged:
            self.damage = LogCorrupt(log_id, state.damaged_offset, "it was found damaged before this start")
        self._deleted_ranges: list[tuple[bytes, bytes]] = []  # whose space maintenance has to give back
        producers.high_watermark = state.high_watermark

    @property
    def log_start_offset(self) -> int:
        """The first offset that may be read; may lie inside a batch."""
        return self._state.log_start_offset

    @property
    def end_offset(self) -> int:
        """The next offset to be given out; exclusive. May be ahead of what is written."""
        return self._state.end_offset

    @property
    def high_watermark(self) -> int:
        """As set; at a start as saved, which may be less than it was. Up to there records are never taken back."""
        return self._state.high_watermark

    def set_high_watermark(self, offset: int) -> None:
        """Moves it; a lower one is ignored. Saved with the next append."""
        assert offset <= self._state.end_offset
        if offset > self._state.high_watermark:
            self._state.high_watermark = offset
            self.producers.high_watermark = offset

    @property
    def last_append_time_us(self) -> int:
        """Of the newest batch; 0: never."""
        return self._state.last_append_time_us

    @property
    def size_bytes(self) -> int:
        """Stored bytes between log start and end, envelopes included."""
        return self._state.end_position - self._state.start_position

    @property
    def request_ids_loaded(self) -> bool:
        """Whether `request_ids` knows what was appended before this process started."""
        return self._request_ids_loaded

    @property
    def leader_epochs(self) -> Sequence[tuple[int, int]]:
        """(leader epoch, its first offset), ascending."""
        return self._state.leader_epochs

    @property
    def last_epoch(self) -> int:
        """The newest batch's leader epoch; -1: there is none."""
        epochs = self._state.leader_epochs
        return epochs[-1][0] if epochs else -1

    def end_offset_for_epoch(self, epoch: int) -> tuple[int, int]:
        """The largest known epoch that is not above, and its end offset; (-1, log start) if there is none.

        The two sides compare these to find where they parted (KIP-101, KIP-279).
        """
        end_offset = self._state.end_offset
        for known, first_offset in reversed(self._state.leader_epochs):
            if known <= epoch:
                return known, end_offset
            end_offset = first_offset
        return -1, self._state.log_start_offset

    def append(self, new: NewBatch, *, now_us: int) -> Appended:
        """Gives out offsets and queues the write. Never blocks.

        The caller has checked deduplication (`producers.check`, `request_ids.find`) in the same step.
        Raises DiskFull, RequestIdsFull, UnknownLog (deleted), StoreFailed. Appends nothing then.
        """
        self._check_appendable()
        assert not self._frozen
        state = self._state
        epochs = state.leader_epochs
        assert new.record_count > 0
        assert not epochs or epochs[-1][0] <= new.leader_epoch
        base_offset = state.end_offset
        end_offset = base_offset + new.record_count
        # Never falls, whatever the clock does: searches by time rely on it.
        append_time_us = max(now_us, state.last_append_time_us)
        indexes = envelope.encode_indexes(new.record_indexes) if new.record_indexes else b""
        if new.request_id:
            assert self._request_ids_loaded, "load_request_ids comes first"
            self.request_ids.check_room(new.request_id)
        value, crc = envelope.encode(
            new.batch,
            base_offset=base_offset,
            record_count=new.record_count,
            append_time_us=append_time_us,
            leader_epoch=new.leader_epoch,
            codec=new.codec,
            producer_id=new.producer_id,
            producer_epoch=new.producer_epoch,
            producer_sequence=new.producer_sequence,
            request_id=new.request_id,
            record_indexes=indexes,
        )
        entry = envelope.encode_entry(
            record_count=new.record_count,
            size_bytes=len(value),
            crc=crc,
            append_time_us=append_time_us,
            leader_epoch=new.leader_epoch,
            position=state.end_position,
            producer_id=new.producer_id,
            producer_epoch=new.producer_epoch,
            producer_sequence=new.producer_sequence,
            request_id=new.request_id,
            record_indexes=indexes,
        )
        # From here on nothing is refused, so state and queue can't part.
        state.end_offset = end_offset
        state.last_append_time_us = append_time_us
        state.end_position += len(value)
        if not epochs or epochs[-1][0] != new.leader_epoch:
            epochs.append((new.leader_epoch, base_offset))
        key = offset_key(self.log_id, base_offset)
        ops: list[Op] = [
            ("put", BATCHES, key, value),
            ("put", INDEX, key, entry),
            ("put", STATE, self._key, state.encode()),
        ]
        size_bytes = len(value) + len(entry) + _APPEND_OVERHEAD_BYTES
        if new.producer_id:
            ops.extend(self._remember_producer(new, base_offset, end_offset, append_time_us))
        self.request_ids.passed(append_time_us)
        if new.request_id:
            part = RequestPart(base_offset, new.record_count, append_time_us, new.record_indexes)
            self.request_ids.add(new.request_id, part)
        ticket = self._context.committer.submit(ops, size_bytes=size_bytes, listener=self)
        self._in_flight.append((ticket, end_offset, state.end_position))
        self._tail.add(
            StoredBatch(
                base_offset,
                end_offset,
                new.record_count,
                append_time_us,
                new.leader_epoch,
                new.codec,
                value,
                len(value) - len(new.batch),
            )
        )
        return Appended(base_offset, end_offset, append_time_us)

    def append_replicated(self, envelopes: Sequence[bytes]) -> int:
        """Appends what the leader has stored, byte by byte; all or nothing. Returns the new end offset. Never blocks.

        Offsets may have gaps. A log that holds nothing takes a first batch that its start lies in.
        Raises EnvelopeDamaged, ReplicaDiverged, DiskFull, UnknownLog, StoreFailed.
        """
        self._check_appendable()
        assert not self._frozen
        decoded = [envelope.decode(value) for value in envelopes]
        self._check_follows(decoded)
        if not decoded:
            return self._state.end_offset
        state, log_id = self._state, self.log_id
        epochs = state.leader_epochs
        ops: list[Op] = []
        size_bytes = _APPEND_OVERHEAD_BYTES
        producer_ids: dict[int, None] = {}
        state.batches_deleted_offset = min(state.batches_deleted_offset, decoded[0].base_offset)
        state.index_deleted_offset = min(state.index_deleted_offset, decoded[0].base_offset)
        for value, batch in zip(envelopes, decoded, strict=True):
            entry = envelope.entry_of(batch, size_bytes=len(value), position=state.end_position)
            key = offset_key(log_id, batch.base_offset)
            ops.append(("put", BATCHES, key, value))
            ops.append(("put", INDEX, key, entry))
            size_bytes += len(value) + len(entry)
            state.end_position += len(value)
            if not epochs or epochs[-1][0] != batch.leader_epoch:
                epochs.append((batch.leader_epoch, batch.base_offset))
            if batch.producer_id:
                known = ProducerBatch(
                    batch.producer_sequence, batch.base_offset, batch.end_offset, batch.append_time_us
                )
                forgotten = self.producers.replicate(batch.producer_id, batch.producer_epoch, known)
                producer_ids[batch.producer_id] = None
                producer_ids.update(dict.fromkeys(forgotten))
            self.request_ids.passed(batch.append_time_us)
            if batch.request_id and self._request_ids_loaded:
                part = RequestPart(batch.base_offset, batch.span, batch.append_time_us, batch.record_indexes)
                self.request_ids.add(batch.request_id, part)
            self._tail.add(StoredBatch.of_decoded(value, batch))
        last = decoded[-1]
        state.end_offset = last.end_offset
        state.last_append_time_us = max(state.last_append_time_us, last.append_time_us)
        self.request_ids.expire()
        ops.extend(self._producer_ops(producer_ids))
        ops.append(self._state_op())
        ticket = self._context.committer.submit(ops, size_bytes=size_bytes, listener=self)
        self._in_flight.append((ticket, state.end_offset, state.end_position))
        return state.end_offset

    def _check_follows(self, decoded: Sequence[Envelope]) -> None:
        end_offset, epoch = self._state.end_offset, self.last_epoch
        # Nothing at all is left in the index, as after a reset: a leader's log may start inside a batch.
        empty = end_offset == self._state.log_start_offset == self._state.index_deleted_offset
        for batch in decoded:
            covers_start = empty and batch.base_offset < end_offset < batch.end_offset
            if batch.base_offset < end_offset and not covers_start:
                raise ReplicaDiverged(f"a batch at offset {batch.base_offset}, the log ends at {end_offset}")
            if batch.leader_epoch < epoch:
                raise ReplicaDiverged(f"a batch of leader epoch {batch.leader_epoch} after one of {epoch}")
            if batch.span < 1 or batch.record_count > batch.span:
                raise ReplicaDiverged(f"a batch of {batch.record_count} records over {batch.span} offsets")
            end_offset, epoch, empty = batch.end_offset, batch.leader_epoch, False

    async def truncate(self, end_offset: int) -> int:
        """Takes back all from there on, and from the start of the batch that it lies in; returns the new end.

        All that derives from the log goes with it in one write, which is durable when this returns. Nothing may be
        appended meanwhile. Raises OffsetOutOfRange below the log start, LogCorrupt, UnknownLog, StoreFailed.
        """
        async with self.rearranging, self._freeze():
            state = self._state
            if end_offset >= state.end_offset:
                return state.end_offset
            if end_offset < state.log_start_offset:
                raise OffsetOutOfRange(end_offset, log_start_offset=state.log_start_offset, end_offset=state.end_offset)
            changed = self.producers.after_cut(end_offset)
            incomplete = [producer_id for producer_id, needs_index in changed.items() if needs_index]
            index_begin = state.index_deleted_offset
            cut = await self.in_reader(
                lambda: plan_cut(self.reader, end_offset, begin=index_begin, incomplete_producers=incomplete)
            )
            self._check_exists()
            self._cut(cut)
            await self._context.committer.barrier()
            return state.end_offset

    def _cut(self, cut: Cut) -> None:
        state = self._state
        # The log start may lie in the batch that goes.
        end_offset = max(cut.end_offset, state.log_start_offset)
        state.end_offset = end_offset
        state.last_append_time_us = cut.last_append_time_us
        if cut.end_position is not None:
            state.end_position = cut.end_position
            state.start_position = min(state.start_position, cut.end_position)
        if cut.end_offset <= state.index_deleted_offset:
            # Nothing is left: as after a reset, the leader's next batch may begin before the log start.
            state.batches_deleted_offset = state.index_deleted_offset = end_offset
        state.leader_epochs[:] = [epoch for epoch in state.leader_epochs if epoch[1] < cut.end_offset]
        state.high_watermark = min(state.high_watermark, end_offset)
        state.compacted_offset = min(state.compacted_offset, end_offset)
        if cut.end_offset <= state.positions_from:
            state.positions_from = 0  # only such are left as no pass has come to: they go together
        self.request_ids.cut(cut.end_offset)
        producer_ids = self.producers.cut(cut.end_offset, cut.producers)
        ops: list[Op] = []
        for family in (BATCHES, INDEX):
            begin, end = offset_key(self.log_id, cut.end_offset), log_key(self.log_id + 1)
            ops.append(("delete_range", family, begin, end))
            self._deleted_ranges.append((begin, end))
        ops.extend(self._producer_ops(producer_ids))
        self._ends_anew(ops)

    async def reset(self, start_offset: int) -> None:
        """Empties the log; it begins and ends there. Durable when this returns. Nothing may be appended meanwhile."""
        async with self.rearranging, self._freeze():
            begin, end = log_key(self.log_id), log_key(self.log_id + 1)
            self._state = LogState(
                end_offset=start_offset,
                log_start_offset=start_offset,
                batches_deleted_offset=start_offset,
                index_deleted_offset=start_offset,
                high_watermark=start_offset,
                compacted_offset=start_offset,
            )
            self.request_ids.clear()
            self.producers.clear()
            self.producers.high_watermark = start_offset
            ops: list[Op] = [("delete_range", family, begin, end) for family in LOG_FAMILIES if family != STATE]
            if self.damage is None:
                # Compacting a damaged table stops all writing: that is left to RocksDB, as late as it comes to it.
                self._deleted_ranges.append((begin, end))
            self._ends_anew(ops)
            await self._context.committer.barrier()
            self.written_end_offset = self.durable_end_offset = start_offset
            self.damage = None

    def _ends_anew(self, ops: list[Op]) -> None:
        state = self._state
        self.generation += 1
        self._tail = self._tail.cut(state.end_offset)
        self._start_time = None
        self._settle_due_us = 0
        self.written_end_offset = min(self.written_end_offset, state.end_offset)
        self.durable_end_offset = min(self.durable_end_offset, state.end_offset)
        self._durable_position = state.end_position
        self._context.committer.submit([*ops, self._state_op()], size_bytes=_APPEND_OVERHEAD_BYTES)

    @contextlib.asynccontextmanager
    async def _freeze(self) -> AsyncIterator[None]:
        """Nothing is appended within, and nothing is in flight."""
        self._check_exists()
        assert not self._frozen
        self._frozen = True
        try:
            await self._context.committer.barrier()
            self._check_exists()
            yield
        finally:
            self._frozen = False

    def read_tail_envelopes(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch] | None:
        """For followers: as `read_tail`, and up to the end of the log if end_offset says so."""
        return self.read_tail(offset, end_offset=end_offset, max_bytes=max_bytes)

    async def read_envelopes(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch]:
        """For followers: as `read`. Ends below end_offset where that is neither in memory nor written yet."""
        return await self.read(offset, end_offset=end_offset, max_bytes=max_bytes)

    def read_tail(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch] | None:
        """As `read`, from memory alone. None: not in memory. Raises OffsetOutOfRange, UnknownLog."""
        self._check_readable(offset)
        return self._tail.read(offset, end_offset=min(end_offset, self._state.end_offset), max_bytes=max_bytes)

    async def read(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch]:
        """Whole batches below end_offset, in order, at least one if there is one.

        The first holds `offset`, or is the first after the gap that does. Empty: nothing is written up to end_offset,
        or compaction left nothing up to there; below the high watermark it is the latter.
        Raises OffsetOutOfRange (before the log start, or after the end), LogCorrupt, UnknownLog.
        """
        found = self.read_tail(offset, end_offset=end_offset, max_bytes=max_bytes)
        if found is not None:
            return found
        end_offset, generation = min(end_offset, self.written_end_offset), self.generation
        try:
            return await self._in_thread(lambda: self._read_cold(offset, end_offset, max_bytes))
        except LogCorrupt as error:
            if offset >= self._state.log_start_offset:
                self._note_damage(error, generation)
            raise
        finally:
            # What was read may have been trimmed meanwhile; an error because of that is this one.
            self._check_readable(offset)

    def _read_cold(self, offset: int, end_offset: int, max_bytes: int) -> list[StoredBatch]:
        try:
            return self.reader.read(offset, end_offset=end_offset, max_bytes=max_bytes)
        except StoreCorrupt as error:  # in the index
            raise LogCorrupt(self.log_id, offset, str(error)) from error

    async def offset_for_time(self, time_us: int, *, end_offset: int) -> int:
        """The first offset that was appended then or later; end_offset if there is none below it.

        Raises LogCorrupt, UnknownLog.
        """
        self._check_exists()
        begin = self._state.log_start_offset
        if time_us > self._state.last_append_time_us:
            return end_offset
        end = min(end_offset, self.written_end_offset)

        def search() -> Indexed | None:
            try:
                return self.reader.first_where(lambda entry: entry.append_time_us >= time_us, begin=begin, end=end)
            except StoreCorrupt as error:
                raise LogCorrupt(self.log_id, begin, str(error)) from error

        found = await self.in_reader(search)
        # The log start may have moved meanwhile, and may lie inside the batch.
        return end_offset if found is None else min(end_offset, max(found.base_offset, self._state.log_start_offset))

    def trim(self, new_log_start: int) -> None:
        """Deletes all records before this offset; `await barrier()` for it to be durable.

        Raises OffsetOutOfRange if it lies above what is durable. Below the log start: does nothing.
        """
        self._check_exists()
        if new_log_start > self.durable_end_offset:
            raise OffsetOutOfRange(
                new_log_start, log_start_offset=self.log_start_offset, end_offset=self.durable_end_offset
            )
        self._trim(new_log_start, position=None)

    def _trim(self, new_log_start: int, *, position: int | None) -> None:
        if new_log_start <= self._state.log_start_offset:
            return
        self._state.log_start_offset = new_log_start
        if position is not None:
            self._state.start_position = position
        elif new_log_start == self.durable_end_offset:
            self._state.start_position = self._durable_position
        self._settle_due_us = 0
        self._context.committer.submit([self._state_op()], size_bytes=_APPEND_OVERHEAD_BYTES)
        if self.on_progress is not None:
            self.on_progress()

    async def apply_retention(self, now_us: int, retention_us: int | None, retention_bytes: int | None) -> int:
        """Trims what is too old or too much, never past the high watermark; returns the log start.

        A batch goes when its append time is more than retention_us ago. By size, whole batches go until the rest fits,
        but never the newest one.
        """
        self._check_exists()
        if not self._retention_is_due(now_us, retention_us, retention_bytes):
            return self.log_start_offset
        async with self.rearranging:
            await self._apply_retention(now_us, retention_us, retention_bytes)
        return self.log_start_offset

    async def _apply_retention(self, now_us: int, retention_us: int | None, retention_bytes: int | None) -> None:
        state = self._state
        begin, end = state.log_start_offset, min(self.durable_end_offset, state.high_watermark)
        end_position = state.end_position
        if state.positions_from > begin:
            retention_bytes = None  # sizes are known again when log compaction is through
        since_us = None if retention_us is None else now_us - retention_us
        least_position = None if retention_bytes is None else end_position - retention_bytes
        kept = await self.in_reader(lambda: self._kept(begin, end, since_us=since_us, least_position=least_position))
        if not self.deleted:
            if kept is None:
                self._trim(end, position=None)
            else:
                self._start_time = (kept.base_offset, kept.entry.append_time_us)
                self._trim(kept.base_offset, position=kept.entry.position)

    def _retention_is_due(self, now_us: int, retention_us: int | None, retention_bytes: int | None) -> bool:
        """A look that costs nothing, for the many logs with nothing to do."""
        if self.log_start_offset >= min(self.durable_end_offset, self.high_watermark):
            return False
        if retention_bytes is not None and self.size_bytes > retention_bytes:
            return True
        if retention_us is None:
            return False
        known = self._start_time is not None and self._start_time[0] == self.log_start_offset
        return not known or self._start_time is None or self._start_time[1] < now_us - retention_us

    def _kept(self, begin: int, end: int, *, since_us: int | None, least_position: int | None) -> Indexed | None:
        """The first batch that stays; None: none does. In a reader thread."""
        first_where = self.reader.first_where
        kept = first_where(lambda _: True, begin=begin, end=end)
        if kept is not None and since_us is not None:
            kept = first_where(lambda entry: entry.append_time_us >= since_us, begin=begin, end=end)
        if kept is not None and least_position is not None and kept.entry.position < least_position:
            fits = first_where(lambda entry: entry.position >= least_position, begin=kept.base_offset, end=end)
            kept = fits or self.reader.last_at_or_before(end - 1)
        return kept

    def settle_is_due(self, now_us: int) -> bool:
        """True: `settle` may find something to delete."""
        return self._settle_due_us is not None and now_us >= self._settle_due_us

    async def settle(self, now_us: int) -> list[tuple[bytes, bytes]]:
        """Deletes the batches that lie wholly before the log start. For the store's maintenance.

        Returns the ranges of keys whose space is to be given back.
        """
        async with self.rearranging:
            return await self._settle(now_us)

    async def _settle(self, now_us: int) -> list[tuple[bytes, bytes]]:
        if self._in_flight:
            # The first batch after a reset may begin before the log start: it must not be overlooked.
            await self._context.committer.barrier()
        state = self._state
        log_start, position = state.log_start_offset, self._durable_position
        window_from_us = self.request_ids.log_time_us(now_us) - self.request_ids.window_us
        begin, index_begin = state.batches_deleted_offset, state.index_deleted_offset

        def look_up() -> tuple[Indexed | None, int, int]:
            first = self.reader.batch_at(log_start) or self.reader.first_from(log_start)
            keep_from = log_start if first is None else min(log_start, first.base_offset)
            young = self.reader.first_where(
                lambda entry: entry.append_time_us >= window_from_us, begin=index_begin, end=keep_from
            )
            return first, keep_from, keep_from if young is None else young.base_offset

        first, batches_end, index_end = await self.in_reader(look_up)
        if self.deleted or state.log_start_offset != log_start:
            return []  # deleted as a whole, or moved on: next time
        if first is not None:
            state.start_position = first.entry.position
        elif log_start == self.durable_end_offset:
            state.start_position = position
        epochs = state.leader_epochs
        while len(epochs) > 1 and epochs[1][1] <= log_start:
            del epochs[0]
        ops: list[Op] = []
        deleted_ranges, self._deleted_ranges = self._deleted_ranges, []
        if batches_end > begin:
            state.batches_deleted_offset = batches_end
            batches_begin_key, batches_end_key = offset_key(self.log_id, begin), offset_key(self.log_id, batches_end)
            ops.append(("delete_range", BATCHES, batches_begin_key, batches_end_key))
            deleted_ranges.append((batches_begin_key, batches_end_key))
        if index_end > index_begin:
            state.index_deleted_offset = index_end
            ops.append(
                ("delete_range", INDEX, offset_key(self.log_id, index_begin), offset_key(self.log_id, index_end))
            )
        # Index entries within the window: come back for them.
        self._settle_due_us = None if index_end >= batches_end else now_us + _SETTLE_AGAIN_US
        if ops:
            self._context.committer.submit([*ops, self._state_op()], size_bytes=_APPEND_OVERHEAD_BYTES)
            await self._context.committer.barrier()
        return deleted_ranges

    async def load_request_ids(self) -> None:
        """Rebuilds `request_ids` from the index, and completes `producers` above the high watermark.

        Comes before the first append as a leader; idempotent. Followers keep it up once it is loaded.
        """
        if self._request_ids_loaded:
            return
        if self._request_ids_load is None:
            self._request_ids_load = asyncio.ensure_future(self._load_request_ids())
        await asyncio.shield(self._request_ids_load)

    async def _load_request_ids(self) -> None:
        try:
            async with self.rearranging:
                state = self._state
                # As long as nobody knows how late it is: no earlier than the last append, or all there is were young.
                wall_us = self._context.clock.wall_us() or state.last_append_time_us
                log_time_us = self.request_ids.log_time_us(wall_us)
                since_us = log_time_us - self.request_ids.window_us
                high_watermark = state.high_watermark
                begin = state.index_deleted_offset
                while begin < state.end_offset:  # a follower may go on appending
                    end = state.end_offset
                    await self._context.committer.barrier()  # what is queued must be in the index
                    parts, producers = await self.in_reader(
                        partial(self._read_known, begin, end, since_us, high_watermark)
                    )
                    self.request_ids.add_all(parts, log_time_us=log_time_us)
                    self.producers.prepend(producers)
                    begin = end
                self._request_ids_loaded = True
        finally:
            self._request_ids_load = None

    def _read_known(
        self, begin: int, end: int, since_us: int, high_watermark: int
    ) -> tuple[list[tuple[bytes, RequestPart]], list[tuple[int, int, ProducerBatch]]]:
        parts = self.reader.request_parts(begin=begin, since_us=since_us, end=end)
        return parts, self.reader.producer_batches(begin=max(begin, high_watermark), end=end)

    # --- Log compaction, driven by `log_compaction.py`.

    @property
    def compacted_offset(self) -> int:
        """Below, of each key one record is left."""
        return self._state.compacted_offset

    @property
    def positions_unsure(self) -> bool:
        """A pass was cut short: sizes are known again when one went through."""
        return self._state.positions_from > self._state.log_start_offset

    @property
    def durable_position(self) -> int:
        """Of the durable end."""
        return self._durable_position

    async def compact(
        self, now_us: int, settings: CompactionSettings, *, pause: Pause = asyncio.sleep, force: bool = False
    ) -> bool:
        """One pass of log compaction, if one is due (or forced). True: another may be. Raises LogCorrupt, StoreFailed.

        pause: called between the parts of a pass with the seconds that it is to rest.
        """
        self._check_exists()
        if self._compaction is None:
            self._compaction = LogCompaction(self)
        return await self._compaction.run(now_us, settings, pause=pause, force=force)

    def commit_compaction(self, chunk: Chunk, *, compacted_offset: int) -> None:
        """Writes a part of a pass; with the last one the pass is done."""
        state = self._state
        if chunk.last:
            state.positions_from = 0
            state.compacted_offset = max(state.compacted_offset, compacted_offset)
            if chunk.begin_offset >= state.log_start_offset or chunk.ops:
                state.start_position = chunk.position
            self._settle_due_us = 0
        elif state.positions_from or chunk.removed_bytes:
            state.positions_from = chunk.begin_offset
        if chunk.removed_bytes:
            begin, end = offset_key(self.log_id, chunk.begin_offset), offset_key(self.log_id, compacted_offset)
            if self._deleted_ranges and self._deleted_ranges[-1][1] == end:
                self._deleted_ranges.pop()  # of the chunks above
            self._deleted_ranges.append((begin, end))
        self._context.committer.submit(
            [*chunk.ops, self._state_op()], size_bytes=chunk.size_bytes + _APPEND_OVERHEAD_BYTES
        )

    def forget_compacted(self, offset: int) -> None:
        """A pass is durable: what memory holds from before it is read from the disk from now on."""
        self._tail = self._tail.rest(offset)

    async def wait_for_room(self) -> None:
        """Back-pressure; see `Committer`."""
        await self._context.committer.wait_for_room()

    async def barrier(self) -> None:
        """Returns when all that was appended or trimmed so far is durable."""
        await self._context.committer.barrier()

    def expire_producers(self, before_us: int) -> None:
        """Forgets producers that have been silent since then."""
        if self._frozen:
            return  # what a truncation has found out about them must stay true
        expired = self.producers.expire(before_us)
        if expired:
            self._context.committer.submit(self._producer_ops(expired), size_bytes=32 * len(expired))

    def delete_ops(self) -> list[Op]:
        """For the store: what deletes the log whole."""
        begin, end = self._key, log_key(self.log_id + 1)
        ranges: list[Op] = [("delete_range", family, begin, end) for family in LOG_FAMILIES if family != STATE]
        return [("delete", STATE, self._key), *ranges]

    def close(self, *, deleted: bool = False) -> None:
        """For the store: lets go of the memory."""
        self.deleted = self.deleted or deleted
        self._tail.close()
        self.generation += 1
        if deleted and self.on_progress is not None:
            self.on_progress()

    # --- ProgressListener, for the committer.

    def written(self, ticket: int) -> None:
        """See ProgressListener."""
        end_offset = self.written_end_offset
        for flight_ticket, flight_end_offset, _ in self._in_flight:
            if flight_ticket > ticket:
                break
            end_offset = flight_end_offset
        if end_offset > self.written_end_offset:
            self.written_end_offset = end_offset
            if self.on_progress is not None:
                self.on_progress()

    def durable(self, ticket: int) -> None:
        """See ProgressListener."""
        in_flight = self._in_flight
        while in_flight and in_flight[0][0] <= ticket:
            _, self.durable_end_offset, self._durable_position = in_flight.popleft()
        self.written_end_offset = max(self.written_end_offset, self.durable_end_offset)
        if self.on_progress is not None:
            self.on_progress()

    # ---

    def _remember_producer(self, new: NewBatch, base_offset: int, end_offset: int, append_time_us: int) -> list[Op]:
        batch = ProducerBatch(new.producer_sequence, base_offset, end_offset, append_time_us)
        forgotten = self.producers.record(new.producer_id, new.producer_epoch, batch)
        return self._producer_ops((new.producer_id, *forgotten))

    def _producer_ops(self, producer_ids: Iterable[int]) -> list[Op]:
        """Saves, or deletes, what is remembered of them."""
        producers, log_id = self.producers, self.log_id
        return [
            ("put", PRODUCERS, producer_key(log_id, producer_id), producers.encode(producer_id))
            if producer_id in producers
            else ("delete", PRODUCERS, producer_key(log_id, producer_id))
            for producer_id in producer_ids
        ]

    def save_high_watermark(self) -> None:
        """For the store, before it closes."""
        if self._state.high_watermark != self._saved_high_watermark and not self.deleted:
            self._saved_high_watermark = self._state.high_watermark
            self._context.committer.submit([self._state_op()], size_bytes=_APPEND_OVERHEAD_BYTES)

    def _state_op(self) -> PutOp:
        return ("put", STATE, self._key, self._state.encode())

    def _check_exists(self) -> None:
        if self.deleted:
            raise UnknownLog(f"log {self.log_id} is deleted")

    def _check_appendable(self) -> None:
        self._check_exists()
        disk = self._context.disk
        if disk.full and (disk.exhausted or not self.may_use_reserve):
            raise DiskFull("too little free disk space to append")
        self._context.committer.check()

    def _check_readable(self, offset: int) -> None:
        self._check_exists()
        if not self._state.log_start_offset <= offset <= self._state.end_offset:
            raise OffsetOutOfRange(
                offset, log_start_offset=self._state.log_start_offset, end_offset=self._state.end_offset
            )

    async def in_reader(self, function: Callable[[], _T]) -> _T:
        """Runs what blocks in a reader thread. Damage that it meets in what should be there is noted."""
        generation = self.generation
        try:
            return await self._in_thread(function)
        except LogCorrupt as error:
            if error.offset >= self._state.log_start_offset:  # not trimmed meanwhile
                self._note_damage(error, generation)
            raise
        except StoreCorrupt as error:
            self._note_damage(LogCorrupt(self.log_id, self._state.log_start_offset, str(error)), generation)
            raise

    def _note_damage(self, error: LogCorrupt, generation: int) -> None:
        if self.damage is None and not self.deleted and self.generation == generation:
            self.damage = error
            self._state.damaged_offset = max(error.offset, self._state.log_start_offset)
            with contextlib.suppress(StorageError):  # found again, then, at the next reading
                self._context.committer.submit([self._state_op()], size_bytes=_APPEND_OVERHEAD_BYTES)
            if self.on_damage is not None:
                self.on_damage()

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._context.readers, function)
