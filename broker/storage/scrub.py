"""Reads what nobody reads, slowly, so that damage is found while another copy can still make it good.

Owns how far it is and how fast it goes: every log from its start to its durable end, index and batches, with checksums
checked, past the memory of recent batches. One pass after the other, none sooner than a day after the one before. What
it finds the log notes, as for any reading (`PartitionLog.damage`); a log that is known to be damaged is left alone.

It can't see what the kernel's page cache hides: pages that were read or written lately are not read from the disk.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from broker.clock import Clock
from broker.storage.engine import MIB
from broker.storage.errors import StorageError
from broker.storage.log import PartitionLog

CHUNK_BYTES: Final = 64 * 1024
# What a small batch costs: its search and its decoding, not its bytes.
BATCH_BYTES_MIN: Final = 1024


@dataclass(frozen=True, slots=True)
class ScrubSettings:
    """How fast, and how often."""

    bytes_per_s: int = MIB
    """0: not at all. Batches count as 1 KiB at least."""
    pass_interval_ms: int = 24 * 3600 * 1000
    """From the begin of a pass to that of the next, at least."""
    step_ms: int = 1000
    """How often a part of it is done."""


class Scrub:
    """Of one store; driven by its maintenance."""

    def __init__(self, *, logs: Callable[[], Sequence[PartitionLog]], clock: Clock, settings: ScrubSettings) -> None:
        self.scrubbed_bytes = 0
        """Since the start."""
        self._logs = logs
        self._clock = clock
        self._settings = settings
        self._next_pass_s = clock.monotonic()
        self._left: deque[PartitionLog] = deque()
        self._offset = 0
        self._room_bytes = 0

    async def step(self) -> None:
        """As much as one step may read; a batch that is larger is paid for by the next ones."""
        settings = self._settings
        if not self._left:
            if self._clock.monotonic() < self._next_pass_s:
                return
            self._next_pass_s = self._clock.monotonic() + settings.pass_interval_ms / 1000
            self._left.extend(self._logs())
            self._offset = self._room_bytes = 0
        self._room_bytes += settings.bytes_per_s * settings.step_ms // 1000
        while self._left and self._room_bytes > 0:
            await self._read_on(self._left[0])

    async def _read_on(self, log: PartitionLog) -> None:
        begin, end = max(self._offset, log.log_start_offset), log.durable_end_offset
        if not log.deleted and log.damage is None and begin < end:
            read = partial(log.reader.read, begin, end_offset=end, max_bytes=min(CHUNK_BYTES, self._room_bytes))
            try:
                batches = await log.in_reader(read)
            except StorageError:
                batches = []  # noted by the log, unless it was trimmed or deleted meanwhile
            if batches:
                self._offset = batches[-1].end_offset
                size_bytes = sum(len(batch.envelope) for batch in batches)
                self.scrubbed_bytes += size_bytes
                self._room_bytes -= max(size_bytes, BATCH_BYTES_MIN * len(batches))
                return
        self._left.popleft()
        self._offset = 0
