"""A pass of log compaction over one log, driven: when one is due, chunk after chunk, each written in one go.

Never blocks the loop and never holds the log for longer than a chunk: appends, reads and replication go on meanwhile.
A log that is truncated or deleted under a pass ends it; what was rewritten so far is good, and the next pass goes over
it again. What is kept, and why, is in `compaction.py`.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from broker.storage.compaction import Chunk, CompactionPass, CompactionSettings, KeyMap

if TYPE_CHECKING:
    from broker.storage.log import PartitionLog

_SECOND_US: Final = 1_000_000
# A pass that could not take its tombstones because a replica lags is not repeated at once: it reads the whole log.
_TOMBSTONES_AGAIN_US: Final = 600 * _SECOND_US

Pause = Callable[[float], Awaitable[None]]


class LogCompaction:
    """Of one log that is compacted; on the loop."""

    def __init__(self, log: "PartitionLog") -> None:
        self._log = log
        self._looked_at_offset = -1
        self._tombstones_due_us: int | None = None

    async def run(self, now_us: int, settings: CompactionSettings, *, pause: Pause, force: bool = False) -> bool:
        """One pass, if one is due; durable then. True: there may be more to do at once. Raises StorageError."""
        begun = await self._begin(now_us, settings, force=force)
        if begun is None:
            return False
        log, generation = self._log, self._log.generation
        at, last = begun.end_offset, False
        while not last:
            async with log.rearranging:
                if log.generation != generation:
                    return False
                at, read_bytes, last = await log.in_reader(partial(begun.map_chunk, at))
            await pause(read_bytes / settings.bytes_per_s_max)
        position: int | None = None
        last = False
        while not last:
            await log.wait_for_room()
            async with log.rearranging:
                if log.generation != generation:
                    return False
                if position is None:
                    position = await self._position_at(begun.end_offset)
                chunk = await self._rewrite(begun, at, position)
                if log.deleted:
                    return False
                at, position, last = chunk.begin_offset, chunk.position, chunk.last
                log.commit_compaction(chunk, compacted_offset=begun.end_offset)
            await pause((chunk.read_bytes + chunk.size_bytes) / settings.bytes_per_s_max)
        await log.barrier()
        if log.generation == generation and not log.deleted:
            log.forget_compacted(begun.end_offset)
        self._note_tombstones(begun, now_us, settings)
        return begun.end_offset < begun.dirty_end_offset and begun.end_offset > begun.clean_end_offset

    async def _begin(self, now_us: int, settings: CompactionSettings, *, force: bool) -> CompactionPass | None:
        log = self._log
        clean_end, offset = log.compacted_offset, min(log.high_watermark, log.durable_end_offset)
        unfinished = log.positions_unsure
        tombstones_due = self._tombstones_due_us is not None and now_us >= self._tombstones_due_us
        looked = not settings.lag_min_ms and offset <= max(clean_end, self._looked_at_offset)
        if looked and not (force or unfinished or tombstones_due):
            return None
        young_since_us = now_us - settings.lag_min_ms * 1000
        async with log.rearranging:
            generation = log.generation
            dirty_end, dirty_bytes = await log.in_reader(
                lambda: _measure(log, clean_end, offset, young_since_us if settings.lag_min_ms else None)
            )
        if log.deleted or log.generation != generation:
            return None
        self._looked_at_offset = offset
        due = dirty_bytes > 0 and dirty_bytes >= settings.dirty_share_min * log.size_bytes
        if not (force or unfinished or tombstones_due or due):
            return None
        return CompactionPass(
            reader=log.reader,
            log_id=log.log_id,
            clean_end_offset=clean_end,
            dirty_end_offset=dirty_end,
            tombstones_before_us=now_us - settings.delete_retention_ms * 1000,
            replicated_offset=log.replicated_offset,
            requests_since_us=log.request_ids.log_time_us(now_us) - log.request_ids.window_us,
            producers_from=log.producers.first_offsets(),
            keys=KeyMap(keys_max=settings.keys_max),
            chunk_bytes_max=settings.chunk_bytes_max,
            end_offset=max(clean_end, log.log_start_offset),
        )

    async def _position_at(self, offset: int) -> int:
        """Of whatever follows there."""
        log = self._log
        durable_position = log.durable_position
        following = await log.in_reader(lambda: log.reader.first_from(offset))
        return durable_position if following is None else following.entry.position

    async def _rewrite(self, begun: CompactionPass, at: int, position: int) -> Chunk:
        log = self._log
        log_start = log.log_start_offset

        def rewrite() -> Chunk:
            first = log.reader.batch_at(log_start)
            begin = log_start if first is None else first.base_offset
            return begun.rewrite_chunk(at, position=position, begin_offset=begin)

        return await log.in_reader(rewrite)

    def _note_tombstones(self, done: CompactionPass, now_us: int, settings: CompactionSettings) -> None:
        self._tombstones_due_us = None
        if done.newest_tombstone_us:
            expiry_us = done.newest_tombstone_us + settings.delete_retention_ms * 1000
            self._tombstones_due_us = max(expiry_us, now_us + _TOMBSTONES_AGAIN_US)


def _measure(log: "PartitionLog", clean_end: int, offset: int, young_since_us: int | None) -> tuple[int, int]:
    """Where the dirty part ends, and its bytes. In a reader thread."""
    reader = log.reader
    begin = max(clean_end, log.log_start_offset)
    if young_since_us is not None:
        young = reader.first_where(lambda entry: entry.append_time_us >= young_since_us, begin=begin, end=offset)
        offset = offset if young is None else min(offset, max(begin, young.base_offset))
    first = reader.first_from(begin)
    last = reader.last_at_or_before(offset - 1) if offset > begin else None
    if first is None or last is None or last.base_offset < first.base_offset:
        return offset, 0
    return offset, last.entry.position + last.entry.size_bytes - first.entry.position
