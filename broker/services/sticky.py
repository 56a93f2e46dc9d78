"""Where records without a key go: one partition for a while, so that batches stay whole, then the next one.

Partitions that this node leads come first, because that saves a hop; then any that has a leader. Nothing but balance
depends on the choice.
"""

from collections.abc import Sequence
from typing import Final, Protocol

# A publisher without keys stays on a partition for so many bytes, then the next one has its turn.
STICKY_BYTES: Final = 64 * 1024


class Candidate(Protocol):
    """What is looked at (replication.partition.Partition)."""

    @property
    def leader_id(self) -> int | None: ...


class Sticky:
    """The choice for one topic."""

    __slots__ = ("_bytes", "_chosen", "_node_id")

    def __init__(self, node_id: int) -> None:
        self._node_id = node_id
        self._chosen = 0
        self._bytes = 0

    def choose(self, partitions: Sequence[Candidate], size_bytes: int) -> int:
        """The partition for the next records, which have so many bytes."""
        if self._bytes >= STICKY_BYTES or self._chosen >= len(partitions):
            self._bytes = 0
            self._chosen = self._best(partitions, self._chosen + 1)
        elif partitions[self._chosen].leader_id != self._node_id:
            # Another node's, or nobody's: there may be something better by now.
            self._chosen = self._best(partitions, self._chosen)
        self._bytes += size_bytes
        return self._chosen

    def _best(self, partitions: Sequence[Candidate], first: int) -> int:
        """The next one from `first` on, round about, that this node leads; else that anybody does; else the next."""
        count = len(partitions)
        turn = [number % count for number in range(first, first + count)]
        for number in turn:
            if partitions[number].leader_id == self._node_id:
                return number
        for number in turn:
            if partitions[number].leader_id is not None:
                return number
        return turn[0]
