"""What keeps the node's data healthy by itself: retention, log compaction, disk space and the look at it, scrubbing.

Owns when; the logs own what is too old (`PartitionLog.apply_retention`, `settle`) or superseded (`compact`), and the
engine how space comes back.
RocksDB gives deleted space back only as whole blob files, after a compaction has noticed the deletion. So deleted
ranges are compacted soon, and where live batches of other logs keep half-empty files alive, those are rewritten, but
only when at least as much is won as is written.

The loops run on the event loop; compactions run in a thread of their own, because they take seconds.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from broker.clock import Clock
from broker.storage.compaction import CompactionSettings
from broker.storage.engine import MIB, Engine
from broker.storage.errors import StorageError
from broker.storage.log import PartitionLog
from broker.storage.log_state import BATCHES, INDEX
from broker.storage.scrub import Scrub, ScrubSettings

RANGES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class MaintenanceSettings:
    """When space is given back."""

    interval_ms: int = 5_000
    """How often retention is applied and trimmed batches are deleted."""
    reclaim_interval_ms: int = 15_000
    """How often the space of what was deleted is given back. Less: more compaction under steady retention."""
    garbage_share_max: float = 0.5
    """Blob files are rewritten when this share of them is garbage. Less than half would write more than it frees."""
    garbage_bytes_min: int = 64 * MIB
    """Garbage that is not worth the trouble."""
    collect_timeout_ms: int = 30_000
    """How long one round of rewriting may take before ordinary work goes on."""
    compaction: CompactionSettings = field(default_factory=CompactionSettings)
    """Log compaction."""
    scrub: ScrubSettings = field(default_factory=ScrubSettings)
    """Reading what nobody reads."""


class Maintenance:
    """The loops of one store."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        logs: Callable[[], Sequence[PartitionLog]],
        barrier: Callable[[], Awaitable[None]],
        check_disk: Callable[[], None],
        disk_check_interval_ms: int,
        producer_expiry_ms: int,
        settings: MaintenanceSettings,
        on_error: Callable[[Exception], None],
    ) -> None:
        """on_error: a round failed; the next one tries again."""
        self._engine = engine
        self._clock = clock
        self._logs = logs
        self._barrier = barrier
        self._check_disk = check_disk
        self._disk_check_interval_ms = disk_check_interval_ms
        self._producer_expiry_ms = producer_expiry_ms
        self._settings = settings
        self._on_error = on_error
        self.scrub = Scrub(logs=logs, clock=clock, settings=settings.scrub)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="maintenance")
        self._round = asyncio.Lock()
        self._stopping = threading.Event()
        self._deleted_ranges: list[tuple[bytes, bytes]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the loops; `stop` ends them, and `close` the thread."""
        settings = self._settings
        for interval_ms, work in (
            (self._disk_check_interval_ms, self._look_at_disk),
            (settings.interval_ms, self.apply_retention),
            (settings.compaction.interval_ms, self.compact),
            (settings.reclaim_interval_ms, self.reclaim),
        ):
            self._tasks.append(asyncio.ensure_future(self._repeat(interval_ms / 1000, work)))
        if settings.scrub.bytes_per_s:
            self._tasks.append(asyncio.ensure_future(self._repeat(settings.scrub.step_ms / 1000, self.scrub.step)))

    async def stop(self) -> None:
        """Ends the loops. A compaction may go on until `close`."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Cancels compactions, and waits. Nothing can be written to the database afterwards. Blocks."""
        self._engine.cancel_background()
        self._thread.shutdown(wait=True)

    def range_deleted(self, begin: bytes, end: bytes) -> None:
        """The next round gives the space of these keys back."""
        self._deleted_ranges.append((begin, end))
        if len(self._deleted_ranges) > RANGES_MAX:
            begins, ends = zip(*self._deleted_ranges, strict=True)
            self._deleted_ranges = [(min(begins), max(ends))]

    async def run_once(self) -> None:
        """Everything, now."""
        await self._look_at_disk()
        await self.compact()
        await self.apply_retention()
        await self.reclaim()

    async def apply_retention(self) -> None:
        """Trims each log as its settings say, and deletes what lies before the log starts."""
        async with self._round:
            for log in self._logs():
                try:
                    await self._trim(log)
                except StorageError as error:
                    # One damaged log must not keep the disk full of the others.
                    if not self._stopping.is_set():
                        self._on_error(error)

    async def compact(self) -> None:
        """Compacts the logs that have enough to gain, one after the other. Retention goes on meanwhile."""
        settings = self._settings.compaction
        for log in self._logs():
            try:
                while log.compacts and not log.deleted:
                    if not await log.compact(self._clock.wall_us(), settings):
                        break
            except StorageError as error:
                if not self._stopping.is_set() and not log.deleted:
                    self._on_error(error)

    async def _trim(self, log: PartitionLog) -> None:
        now_us = self._clock.wall_us()
        if not log.deleted and (log.retention_us is not None or log.retention_bytes is not None):
            await log.apply_retention(now_us, log.retention_us, log.retention_bytes)
        if not log.deleted and log.settle_is_due(now_us):
            for deleted_range in await log.settle(now_us):
                self.range_deleted(*deleted_range)
        if not log.deleted:
            log.expire_producers(now_us - self._producer_expiry_ms * 1000)

    async def reclaim(self) -> None:
        """Gives back the space of what was deleted."""
        async with self._round:
            ranges, self._deleted_ranges = self._deleted_ranges, []
            if ranges:
                # The deletions may still be on their way to RocksDB.
                await self._barrier()
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._reclaim, ranges)
            except BaseException:
                self._deleted_ranges.extend(ranges)
                raise

    def _reclaim(self, ranges: Sequence[tuple[bytes, bytes]]) -> None:
        for begin, end in ranges:
            for family in (BATCHES, INDEX):
                if self._stopping.is_set():
                    return
                self._engine.compact(family, begin, end)
        usage = self._engine.blob_usage(BATCHES)
        settings = self._settings
        if (
            usage.garbage_bytes >= settings.garbage_bytes_min
            and usage.garbage_bytes >= settings.garbage_share_max * usage.total_bytes
        ):
            self._engine.collect_garbage(
                BATCHES,
                below=settings.garbage_share_max,
                timeout_s=settings.collect_timeout_ms / 1000,
                stopping=self._stopping,
            )

    async def _look_at_disk(self) -> None:
        self._check_disk()

    async def _repeat(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await work()
            except Exception as error:
                # Whatever it is: a loop that ended here would let the disk fill up, and nobody would be told.
                if not self._stopping.is_set():
                    self._on_error(error)
