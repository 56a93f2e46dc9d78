"""Where a subscription is in one partition, and the batches that were read ahead for it.

Reads from the tail are immediate; colder ones run as a task of the subscription and land in `buffer`. A cursor that
is moved (seek, reassignment) gets a new generation, so that a read under way for the old place is dropped.
"""

from collections import deque
from collections.abc import Iterator

from broker.groups.ack_tracker import AckTracker
from broker.replication.partition import Partition
from broker.services.delivery import Piece
from broker.storage.batch import StoredBatch

TAIL_READ_BYTES = 1024 * 1024


class Cursor:
    """A place in one partition. `stop_offset` is exclusive; None: never."""

    __slots__ = (
        "buffer",
        "caught_up",
        "committed_reported",
        "delayed",
        "end_asked",
        "end_known",
        "fence",
        "filling",
        "generation",
        "high_watermark_reported",
        "next_offset",
        "partition",
        "paused",
        "pieces",
        "queued",
        "revoking",
        "stop_offset",
        "tracker",
        "wake",
    )

    def __init__(
        self,
        partition: Partition,
        *,
        next_offset: int,
        stop_offset: int | None = None,
        fence: int = 0,
        tracker: AckTracker | None = None,
    ) -> None:
        self.partition = partition
        self.next_offset = next_offset
        self.stop_offset = stop_offset
        self.fence = fence
        self.tracker = tracker
        self.paused = False
        self.delayed = False  # a nack's delay runs, whether or not the member pauses or resumes meanwhile
        self.revoking = False  # nothing more is sent; passes on once all is acknowledged
        self.queued = False
        self.filling = False
        self.caught_up = False
        self.end_asked = False
        self.end_known = False  # all that was acknowledged when it got there may be read here
        self.generation = 0
        self.buffer: deque[StoredBatch] = deque()
        self.pieces: Iterator[Piece] | None = None
        self.wake = lambda: None  # the partition's listener
        self.high_watermark_reported = -1
        self.committed_reported = -1

    @property
    def key(self) -> tuple[str, int]:
        """Topic id and partition."""
        return (self.partition.topic_id, self.partition.number)

    @property
    def limit(self) -> int:
        """What may be sent ends here, exclusive."""
        high_watermark = self.partition.high_watermark
        return high_watermark if self.stop_offset is None else min(high_watermark, self.stop_offset)

    @property
    def has_more(self) -> bool:
        """Whether there is something to send now."""
        return not self.paused and not self.delayed and not self.revoking and self.next_offset < self.limit

    @property
    def stopped(self) -> bool:
        """Whether it has reached its stop."""
        return self.stop_offset is not None and self.next_offset >= self.stop_offset

    def move(self, offset: int) -> None:
        """Goes on from there; forgets what was read ahead."""
        self.generation += 1
        self.next_offset = offset
        self.buffer.clear()
        self.pieces = None
        self.caught_up = self.end_asked = self.end_known = False

    def forget_ahead(self) -> None:
        """Lets go of what was read ahead; the place stays."""
        self.buffer.clear()
        self.pieces = None

    @property
    def used_up(self) -> bool:
        """Whether nothing of what was read ahead is left to be sent."""
        return not self.buffer or self.buffer[-1].end_offset <= self.next_offset

    def head(self) -> StoredBatch | None:
        """The batch that holds `next_offset` or is the first after it; None: it has to be read from disk."""
        while self.buffer and self.buffer[0].end_offset <= self.next_offset:
            self.buffer.popleft()
            self.pieces = None
        if not self.buffer:
            tail = self.partition.log.read_tail(
                self.next_offset, end_offset=self.partition.high_watermark, max_bytes=TAIL_READ_BYTES
            )
            if not tail:
                return None
            self.buffer.extend(tail)
            self.pieces = None
        return self.buffer[0]
