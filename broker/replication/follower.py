"""One followed partition: what to ask the leader, and what follows from its answers. Pure.

Owns the number of the session: each question opens one, and answers to earlier questions count for nothing. That is
what makes truncation safe with answers still on their way.

A follower truncates to where the leader says that their epochs diverge, never to a high watermark: its own may lag
behind what was acknowledged (KIP-101), and a leader's epochs may have gaps on either side (KIP-279).
"""

from dataclasses import dataclass
from typing import Protocol


class LogView(Protocol):
    """What is asked of the follower's log."""

    @property
    def log_start_offset(self) -> int: ...

    @property
    def end_offset(self) -> int: ...

    @property
    def durable_end_offset(self) -> int: ...

    @property
    def last_epoch(self) -> int:
        """-1: none."""

    def end_offset_for_epoch(self, epoch: int) -> tuple[int, int]:
        """(the largest epoch <= `epoch`, its end); (-1, log start) if there is none."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to the leader."""

    leader_epoch: int
    session: int
    fetch_offset: int
    last_epoch: int
    durable_offset: int


@dataclass(frozen=True, slots=True)
class Diverging:
    """The leader's log has an end for `epoch`, and none above it up to the follower's last epoch, at `end_offset`."""

    epoch: int
    end_offset: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Cut the log there, durably, and ask again."""

    end_offset: int


@dataclass(frozen=True, slots=True)
class Reset:
    """Nothing here is of use: begin anew there, and ask again."""

    start_offset: int


class FollowedPartition:
    """A follower's side of one partition in one leader epoch."""

    def __init__(self, *, leader_id: int, leader_epoch: int) -> None:
        self.leader_id = leader_id
        self.leader_epoch = leader_epoch
        self.session = 0
        """0: nothing is asked; no answer counts."""
        self.matched = False
        """The leader has confirmed that this log is a prefix of its own."""
        self.leader_high_watermark = 0
        self.leader_log_start = 0

    def ask(self, log: LogView, *, session: int) -> Ask:
        """The question that fits the log as it is now. session: greater than any before on this link."""
        self.session = session
        self.matched = False
        return Ask(
            leader_epoch=self.leader_epoch,
            session=session,
            fetch_offset=log.end_offset,
            last_epoch=log.last_epoch,
            durable_offset=log.durable_end_offset,
        )

    def silence(self) -> None:
        """Nothing on its way counts any more."""
        self.session = 0
        self.matched = False

    def answered(
        self,
        log: LogView,
        *,
        log_start_offset: int,
        high_watermark: int,
        diverging: Diverging | None = None,
        reset_offset: int | None = None,
    ) -> Truncate | Reset | None:
        """What the leader says of its log, in answer to the last question. None: what it sends is to be appended.

        reset_offset: its first batch; what came before is trimmed, and this log ends there.
        """
        assert self.session
        if reset_offset is not None:
            return self._stop(Reset(reset_offset))
        if diverging is not None:
            return self._stop(_common(log, diverging))
        self.matched = True
        self.leader_high_watermark = max(self.leader_high_watermark, high_watermark)
        self.leader_log_start = max(self.leader_log_start, log_start_offset)
        return None

    def high_watermark(self, log: LogView) -> int:
        """As far as it is known here: what the leader said, and this log durably has."""
        return min(self.leader_high_watermark, log.durable_end_offset)

    def log_start(self, log: LogView) -> int:
        """Up to where this log may be trimmed."""
        return min(self.leader_log_start, log.durable_end_offset)

    def _stop(self, act: Truncate | Reset) -> Truncate | Reset:
        self.silence()
        return act


def _common(log: LogView, diverging: Diverging) -> Truncate | Reset:
    """Where the two logs were surely the same."""
    own_epoch, own_end = log.end_offset_for_epoch(diverging.epoch)
    end_offset = min(own_end, diverging.end_offset, log.end_offset)
    if own_epoch < 0 or diverging.epoch < 0 or end_offset < log.log_start_offset:
        return Reset(0)  # nothing in common; the leader says where it begins when it is asked again
    return Truncate(end_offset)


def check_fetch(log: LogView, *, fetch_offset: int, last_epoch: int) -> Diverging | None:
    """The leader's look at a question: None if the follower's log is a prefix of `log`, as far as that can be told.

    Before the log start it can't: there the follower begins anew. Source: Kafka's Partition.readRecords, KIP-595.
    """
    if fetch_offset < log.log_start_offset or (last_epoch < 0 and fetch_offset <= log.end_offset):
        return None
    epoch, end_offset = log.end_offset_for_epoch(last_epoch)
    if epoch < last_epoch or end_offset < fetch_offset:
        return Diverging(epoch, end_offset)
    return None
