"""Recent batches in memory, so that subscribers that keep up never touch RocksDB.

One bound in bytes for the whole node; when it is reached the oldest batch of all goes first, whichever log it belongs
to. They are kept as envelopes, the very bytes that are written, so that subscribers and followers are served alike
and nothing is copied. On the loop only.
"""

from bisect import bisect_right
from collections import deque
from typing import Final

from broker.storage.batch import StoredBatch

# The objects around a batch's bytes; without it a million tiny batches would count as almost nothing.
BATCH_OVERHEAD_BYTES: Final = 320
_COMPACT_COUNT: Final = 1024


class Tail:
    """The node's bound, and the order of eviction."""

    def __init__(self, *, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.size_bytes = 0
        self._order: deque[LogTail] = deque()  # one entry a batch

    def of_log(self) -> "LogTail":
        """An empty tail for one log."""
        return LogTail(self)

    def added(self, log_tail: "LogTail", size_bytes: int) -> None:
        """Counts a batch, and evicts what no longer fits."""
        self.size_bytes += size_bytes
        self._order.append(log_tail)
        while self.size_bytes > self.bytes_max:
            oldest = self._order.popleft()
            if not oldest.closed:  # a closed one was subtracted as a whole
                self.size_bytes -= oldest.evict_first()


class LogTail:
    """The recent batches of one log, without a gap up to its end."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        # Two parallel lists, so that bisect compares integers. Entries before _head are evicted already.
        self._batches: list[StoredBatch | None] = []
        self._base_offsets: list[int] = []
        self._head = 0
        self.size_bytes = 0
        self.closed = False

    def add(self, batch: StoredBatch) -> None:
        """Appends the log's newest batch."""
        size_bytes = len(batch.envelope) + BATCH_OVERHEAD_BYTES
        self._batches.append(batch)
        self._base_offsets.append(batch.base_offset)
        self.size_bytes += size_bytes
        self._tail.added(self, size_bytes)

    def read(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch] | None:
        """Whole batches from the one that holds `offset`, below end_offset, at least one. None: not in memory."""
        if offset >= end_offset:
            return []
        at = bisect_right(self._base_offsets, offset, self._head) - 1
        if at < self._head:
            return None
        found: list[StoredBatch] = []
        size_bytes = 0
        for index in range(at, len(self._batches)):
            batch = self._batches[index]
            assert batch is not None
            if batch.base_offset >= end_offset:
                break
            if batch.end_offset <= offset:
                continue  # `offset` lies in the gap after it
            size_bytes += len(batch.envelope)
            if found and size_bytes > max_bytes:
                break
            found.append(batch)
        return found

    def evict_first(self) -> int:
        """Forgets the oldest batch; returns what it counted for."""
        oldest = self._batches[self._head]
        assert oldest is not None
        size_bytes = len(oldest.envelope) + BATCH_OVERHEAD_BYTES
        self.size_bytes -= size_bytes
        self._batches[self._head] = None
        self._head += 1
        # Deleting from a list's front moves the rest: do it seldom, when at least half is gone.
        if self._head >= _COMPACT_COUNT and self._head * 2 >= len(self._batches):
            del self._batches[: self._head]
            del self._base_offsets[: self._head]
            self._head = 0
        return size_bytes

    def cut(self, end_offset: int) -> "LogTail":
        """A tail with the batches below end_offset, in place of this one."""
        kept = [batch for batch in self._batches[self._head :] if batch is not None and batch.end_offset <= end_offset]
        return self._succeeded(kept)

    def rest(self, offset: int) -> "LogTail":
        """A tail with the batches from `offset` on, in place of this one."""
        kept = [batch for batch in self._batches[self._head :] if batch is not None and batch.base_offset >= offset]
        return self._succeeded(kept)

    def _succeeded(self, kept: list[StoredBatch]) -> "LogTail":
        # The order of eviction names this object once a batch, oldest first: others than the oldest can't be taken.
        self.close()
        successor = self._tail.of_log()
        for batch in kept:
            successor.add(batch)
        return successor

    def close(self) -> None:
        """Forgets everything, for good."""
        if not self.closed:
            self.closed = True
            self._tail.size_bytes -= self.size_bytes
            self.size_bytes = 0
            self._batches.clear()
            self._base_offsets.clear()
            self._head = 0
