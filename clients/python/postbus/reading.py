"""One partition as a subscription reads it: what came, what may be acknowledged, what has to be said again.

Pure bookkeeping, no I/O: what makes a reconnect invisible is decided here. Under one fence the broker delivers the
same records again after a broken stream; those that are here already are dropped, and acknowledgements are held back
until the new stream has delivered what they name (the broker refuses them before). A new fence means that the
partition was elsewhere in between: everything of the old one is void.
"""

from __future__ import annotations

from collections.abc import Iterator


class Ranges:
    """Offsets as [begin, end) ranges, in the order they came; neighbours are joined."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, begin: int, end: int) -> None:
        """One more."""
        ranges = self._ranges
        if ranges:
            last_begin, last_end = ranges[-1]
            if last_end == begin:
                ranges[-1] = (last_begin, end)
                return
        ranges.append((begin, end))

    def take(self, up_to: int) -> list[tuple[int, int]]:
        """Removes and gives what lies wholly below `up_to`."""
        ranges = self._ranges
        if not ranges:
            return []
        if len(ranges) == 1 and ranges[0][1] <= up_to:
            self._ranges = []
            return ranges
        self._ranges = [each for each in ranges if each[1] > up_to]
        return [each for each in ranges if each[1] <= up_to]

    def forget(self, below: int) -> None:
        """What lies wholly below needs no more care."""
        if self._ranges:
            self._ranges = [each for each in self._ranges if each[1] > below]

    def clear(self) -> None:
        """Nothing is left."""
        self._ranges = []

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._ranges)


class Reading:
    """A partition that is being read.

    received_offset: where the next delivery goes on; None: nothing came yet, anything is right.
    """

    __slots__ = (
        "_held",
        "_unconfirmed",
        "assigned",
        "caught_up",
        "committed_offset",
        "fence",
        "high_watermark",
        "partition",
        "paused",
        "received_offset",
        "seek_command_id",
        "seek_offset",
        "stop_offset",
        "stream_offset",
        "topic",
    )

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.fence = 0
        self.received_offset: int | None = None
        # How far the stream that is open now has delivered.
        self.stream_offset = -1
        self.stop_offset: int | None = None
        self.high_watermark = 0
        self.committed_offset = 0
        self.assigned = True
        self.caught_up = False
        self.paused = False
        # A seek that the broker has not confirmed yet; what comes until then is of before.
        self.seek_command_id = 0
        self.seek_offset = 0
        # Acknowledged, not sent; sent, not known to be committed.
        self._held = Ranges()
        self._unconfirmed = Ranges()

    def stream_started(self) -> None:
        """A new stream: what was sent on the old one may not have arrived."""
        self.stream_offset = -1
        self.caught_up = False
        again = Ranges()
        for ranges in (self._unconfirmed, self._held):
            for begin, end in ranges:
                again.add(begin, end)
        self._held, self._unconfirmed = again, Ranges()

    def new_fence(self, fence: int) -> bool:
        """Takes note of a delivery's fence; True: the partition was elsewhere, all that is here of it is void."""
        if fence == self.fence:
            return False
        changed = self.fence != 0
        self.fence = fence
        self.received_offset = None
        self._held.clear()
        self._unconfirmed.clear()
        return changed

    def received(self, end_offset: int) -> None:
        """A delivery came, or the broker passed over offsets."""
        self.stream_offset = max(self.stream_offset, end_offset)
        if self.received_offset is None or end_offset > self.received_offset:
            self.received_offset = end_offset

    def moved(self, offset: int, command_id: int) -> None:
        """A seek was asked for."""
        self.seek_command_id = command_id
        self.seek_offset = offset
        self.received_offset = offset
        self.caught_up = False
        self._held.clear()
        self._unconfirmed.clear()

    def acknowledge(self, begin: int, end: int) -> None:
        """Done with [begin, end)."""
        self._held.add(begin, end)

    def sendable(self, *, anything: bool = False) -> list[tuple[int, int]]:
        """Acknowledgements that the stream may carry now. `anything`: no matter what it has delivered."""
        ready = self._held.take(1 << 63 if anything else self.stream_offset)
        for begin, end in ready:
            self._unconfirmed.add(begin, end)
        return ready

    def committed(self, offset: int) -> None:
        """The broker has it durably up to here."""
        self.committed_offset = max(self.committed_offset, offset)
        self._unconfirmed.forget(offset)

    def lost(self) -> None:
        """The partition is somebody else's; acknowledgements count no more."""
        self.assigned = False
        self.received_offset = None
        self.stream_offset = -1
        self._held.clear()
        self._unconfirmed.clear()

    @property
    def stopped(self) -> bool:
        """True: all up to the stop is here."""
        return self.stop_offset is not None and (self.received_offset or 0) >= self.stop_offset
