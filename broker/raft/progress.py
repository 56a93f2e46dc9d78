"""What a leader knows of one member's log, and what it may send it next. Pure.

PROBE: where the logs are equal is not known; one append at a time. REPLICATE: it is known; appends are sent ahead of
the answers, up to a bound. SNAPSHOT: the member is further back than the log goes; pieces of the image, one at a time.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from broker.raft.messages import RaftSettings, Snapshot


class Pace(Enum):
    """How a member is sent entries."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Progress:
    """Of one member. `match`: durable and equal up to here."""

    store_id: str
    next: int
    heard_tick: int
    match: int = 0
    pace: Pace = Pace.PROBE
    waiting: bool = False
    """PROBE: an append is on its way."""
    sent_commit: int = 0
    """If it is lost, the next heartbeat tells it."""
    inflight: deque[tuple[int, int]] = field(default_factory=deque)
    """REPLICATE: last index and bytes of each append without an answer."""
    inflight_bytes: int = 0
    snapshot: Snapshot | None = None
    snapshot_offset: int = 0
    snapshot_sent_tick: int = 0

    def has_room(self, settings: RaftSettings) -> bool:
        """Entries may be sent now."""
        if self.pace is Pace.REPLICATE:
            return (
                self.inflight_bytes < settings.inflight_bytes_max and len(self.inflight) < settings.inflight_appends_max
            )
        return self.pace is Pace.PROBE and not self.waiting

    def sent(self, last_index: int, size_bytes: int) -> None:
        """Entries up to `last_index` are on their way."""
        if self.pace is Pace.REPLICATE:
            self.next = last_index + 1
            self.inflight.append((last_index, size_bytes))
            self.inflight_bytes += size_bytes
        else:
            self.waiting = True

    def accepted(self, index: int, *, first_index: int) -> None:
        """Equal and durable up to `index`. `first_index`: of the leader's log."""
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        self.waiting = False
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        if self.pace is Pace.PROBE or (self.pace is Pace.SNAPSHOT and self.match + 1 >= first_index):
            self._begin(Pace.REPLICATE)
        elif self.pace is Pace.SNAPSHOT and self.snapshot is not None and self.match >= self.snapshot.index:
            # It has the image, and the log went on without it: it needs a newer one.
            self._begin(Pace.PROBE)

    def rejected(self, index: int, *, may_equal: int) -> bool:
        """The logs differ at `index`; try after `may_equal`. False: that answer is out of date."""
        if self.pace is Pace.REPLICATE:
            if index <= self.match:
                return False
            self.probe()
            return True
        if self.pace is Pace.SNAPSHOT or index != self.next - 1:
            return False
        self.next = max(min(index, may_equal + 1), self.match + 1)
        self.waiting = False
        return True

    def probe(self) -> None:
        """What was sent may be lost."""
        if self.pace is Pace.REPLICATE:
            self._begin(Pace.PROBE)
            self.next = self.match + 1
        self.waiting = False

    def begin_snapshot(self, snapshot: Snapshot) -> None:
        """Entries that it needs are gone."""
        self._begin(Pace.SNAPSHOT)
        self.snapshot = snapshot

    def _begin(self, pace: Pace) -> None:
        self.pace = pace
        self.waiting = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.snapshot = None
        self.snapshot_offset = 0
