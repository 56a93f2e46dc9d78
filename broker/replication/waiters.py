"""Who waits for how far: callbacks in the order of their offsets. Pure."""

from collections import deque
from collections.abc import Callable

from broker.errors import PostbusError

Done = Callable[[PostbusError | None], None]


class Waiters:
    """Those who wait for one kind of progress."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: deque[tuple[int, Done]] | None = None  # most partitions never have any of most kinds

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, end_offset: int, done: Done) -> None:
        """In the order of offsets; equal ones in the order in which they came."""
        entries = self._entries
        if entries is None:
            entries = self._entries = deque()
        if not entries or entries[-1][0] <= end_offset:
            entries.append((end_offset, done))
            return
        # A duplicate waits for an append that was made before others that wait already.
        at = next(index for index, (end, _) in enumerate(entries) if end > end_offset)
        entries.insert(at, (end_offset, done))

    def release(self, end_offset: int) -> None:
        """All is well up to there."""
        entries = self._entries
        while entries and entries[0][0] <= end_offset:
            entries.popleft()[1](None)

    def fail_above(self, end_offset: int, error: Callable[[], PostbusError]) -> None:
        """Who waits for more is told."""
        entries = self._entries
        failed: list[Done] = []
        while entries and entries[-1][0] > end_offset:
            failed.append(entries.pop()[1])
        for done in reversed(failed):
            done(error())

    def move_to(self, other: "Waiters") -> None:
        """They wait for something else from now on."""
        entries, self._entries = self._entries, None
        for end_offset, done in entries or ():
            other.add(end_offset, done)
