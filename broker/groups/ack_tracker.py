"""What was sent of one partition under one fence, and how much of it is acknowledged.

Owns the arithmetic between deliveries and the committed offset: acknowledgements in any order, whole or partial; the
contiguous prefix, which is what may be committed; what is out, for the window. Pure: time comes with the calls, in
seconds of a monotonic clock. A new fence means a new tracker.

Echoing whole batches in order costs O(1) each; anything else a binary search.
"""

from bisect import bisect_left, bisect_right

from broker.errors import PostbusError, Reason

_COMPACT_AFTER = 512


class _Sent:
    """A delivered batch. `acked`: disjoint, sorted intervals inside it; None once all of it is acknowledged."""

    __slots__ = ("acked", "acked_offsets", "base", "end", "records", "size_bytes")

    def __init__(self, base: int, end: int, records: int, size_bytes: int) -> None:
        self.base = base
        self.end = end
        self.records = records
        self.size_bytes = size_bytes
        self.acked: list[tuple[int, int]] | None = []
        self.acked_offsets = 0

    def share(self) -> tuple[int, int]:
        """Records and bytes that count as done: in proportion, exact once all is acknowledged."""
        span = self.end - self.base
        return self.records * self.acked_offsets // span, self.size_bytes * self.acked_offsets // span

    def acknowledge(self, start: int, end: int) -> bool:
        """Adds an interval inside the batch; False if it said nothing new."""
        if self.acked is None:
            return False
        first = bisect_left(self.acked, start, key=lambda interval: interval[1])
        last = bisect_right(self.acked, end, key=lambda interval: interval[0])
        merged = self.acked[first:last]
        before = sum(stop - begin for begin, stop in merged)
        if merged:
            start, end = min(start, merged[0][0]), max(end, merged[-1][1])
        gained = end - start - before
        if gained == 0:
            return False
        self.acked[first:last] = [(start, end)]
        self.acked_offsets += gained
        if self.acked_offsets == self.end - self.base:
            self.acked = None
        return True


class AckTracker:
    """One partition under one fence.

    commit_offset: all below is acknowledged; commit this. sent_end_offset: nothing from here on was delivered.
    outstanding_records, outstanding_bytes: sent and not acknowledged; of a partly acknowledged batch in proportion.
    waiting_since: when the last acknowledgement advanced something, or the first record went out after none was;
    None: nothing is out. The processing timeout runs from here.
    """

    __slots__ = (
        "_ends",
        "_head",
        "_sent",
        "commit_offset",
        "fence",
        "outstanding_bytes",
        "outstanding_records",
        "sent_end_offset",
        "start_offset",
        "waiting_since",
    )

    def __init__(self, *, start_offset: int, fence: int) -> None:
        self.fence = fence
        self.start_offset = start_offset
        self.commit_offset = start_offset
        self.sent_end_offset = start_offset
        self.outstanding_records = 0
        self.outstanding_bytes = 0
        self.waiting_since: float | None = None
        self._sent: list[_Sent] = []
        self._ends: list[int] = []  # of each in _sent
        self._head = 0  # all before it in _sent are done

    def sent(self, base_offset: int, end_offset: int, *, record_count: int, size_bytes: int, now: float) -> None:
        """A batch goes out. Offsets only grow; gaps before it hold no records and need no acknowledgement."""
        assert self.sent_end_offset <= base_offset < end_offset
        self._sent.append(_Sent(base_offset, end_offset, record_count, size_bytes))
        self._ends.append(end_offset)
        self.sent_end_offset = end_offset
        self.outstanding_records += record_count
        self.outstanding_bytes += size_bytes
        if self.waiting_since is None:
            self.waiting_since = now

    def passed(self, end_offset: int) -> None:
        """Nothing up to `end_offset` is to be delivered (filtered, gone): it counts once all before it is done."""
        assert end_offset >= self.sent_end_offset
        self.sent_end_offset = end_offset
        if self.all_done():
            self.commit_offset = end_offset

    def acknowledge(self, base_offset: int, end_offset: int, *, fence: int, now: float) -> bool:
        """Done with [base_offset, end_offset); True if that was news.

        Raises ASSIGNMENT_LOST for an older fence, to be reported in-band, and INVALID_FIELD for what was never
        delivered under this one, which ends the stream.
        """
        self.check(base_offset, end_offset, fence=fence)
        if base_offset == end_offset or end_offset <= self.commit_offset:
            return False
        head = self._sent[self._head] if self._head < len(self._sent) else None
        if head is not None and base_offset == head.base and end_offset == head.end and head.acked_offsets == 0:
            self.outstanding_records -= head.records
            self.outstanding_bytes -= head.size_bytes
            head.acked = None
            self._advance(now)
            return True
        return self._acknowledge_range(base_offset, end_offset, now)

    def check(self, base_offset: int, end_offset: int, *, fence: int) -> None:
        """Whether these were delivered under this fence; raises as `acknowledge` does."""
        if fence < self.fence:
            raise PostbusError(
                Reason.ERROR_REASON_ASSIGNMENT_LOST,
                f"fence {fence} is stale, the partition is at {self.fence}",
                metadata={"fence": self.fence},
            )
        if fence > self.fence or not self.start_offset <= base_offset <= end_offset <= self.sent_end_offset:
            raise PostbusError(
                Reason.ERROR_REASON_INVALID_FIELD,
                f"offsets {base_offset} to {end_offset} were not delivered under fence {fence}; "
                f"fence {self.fence} has {self.start_offset} to {self.sent_end_offset}",
                field="acks",
                metadata={"fence": self.fence, "delivered_end_offset": self.sent_end_offset},
            )

    def all_done(self) -> bool:
        """Whether everything that was sent is acknowledged."""
        return self._head == len(self._sent)

    def _acknowledge_range(self, base_offset: int, end_offset: int, now: float) -> bool:
        news = False
        index = bisect_right(self._ends, base_offset, lo=self._head)
        while index < len(self._sent) and self._sent[index].base < end_offset:
            batch = self._sent[index]
            index += 1
            records, size_bytes = batch.share()
            start, end = max(base_offset, batch.base), min(end_offset, batch.end)
            if start < end and batch.acknowledge(start, end):
                news = True
                records_now, size_bytes_now = batch.share()
                self.outstanding_records -= records_now - records
                self.outstanding_bytes -= size_bytes_now - size_bytes
        if news:
            self._advance(now)
        return news

    def _advance(self, now: float) -> None:
        head, sent = self._head, self._sent
        while head < len(sent) and sent[head].acked is None:
            head += 1
        self._head = head
        if head == len(sent):
            self.commit_offset = self.sent_end_offset
            self.waiting_since = None
            sent.clear()
            self._ends.clear()
            self._head = 0
            return
        self.waiting_since = now
        batch = sent[head]
        assert batch.acked is not None
        # A gap before the batch holds nothing; inside it, what is acknowledged from its start on counts.
        self.commit_offset = batch.acked[0][1] if batch.acked and batch.acked[0][0] == batch.base else batch.base
        if head >= _COMPACT_AFTER and head * 2 > len(sent):
            del sent[:head]
            del self._ends[:head]
            self._head = 0
