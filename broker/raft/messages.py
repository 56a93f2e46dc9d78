"""The values of Raft: entries, messages, what is saved, what a step gives out, and every bound.

Values only: nothing here decides, encodes or sends.
"""

from dataclasses import dataclass
from typing import Final

from broker.peers.links import PeerId
from broker.raft.membership import Configuration

MIB: Final = 1024 * 1024
ENTRY_OVERHEAD_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class RaftSettings:
    """Every bound of Raft. Times in ticks unless the name says otherwise."""

    tick_ms: int = 50
    """One tick. Shorter: sooner failover when a node falls silent, more work while idle."""
    heartbeat_ticks: int = 2
    """How often a leader says that it lives."""
    election_ticks: int = 10
    """Silence of the leader after which a follower may campaign (random, up to twice that), and silence of a quorum
    after which a leader steps down."""
    campaign_ticks: int = 4
    """How long a first campaign waits for votes (random, up to twice that) before the next, which waits longer, up to
    `election_ticks`. Must exceed a round trip and two fsyncs."""
    leader_lost_delay_ms: int = 100
    """At most this long (random) after the link to the leader broke, a follower asks whether it may campaign."""
    entry_bytes_max: int = 4 * MIB
    """A larger proposal is refused. Half of what the peer port carries, at most."""
    append_bytes_max: int = MIB
    """Entries in one append, but for a single larger entry."""
    inflight_bytes_max: int = 4 * MIB
    """Entries sent to a follower and not answered. Memory; more helps only where round trips are long."""
    inflight_appends_max: int = 256
    """Appends sent to a follower and not answered."""
    uncommitted_bytes_max: int = 32 * MIB
    """Entries proposed and not committed, beyond which proposals are refused."""
    snapshot_chunk_bytes: int = 4 * MIB
    """A larger image travels in several messages."""
    snapshot_bytes_max: int = 256 * MIB
    """A larger image is not taken from a leader."""
    kept_entries: int = 1_000
    """Entries kept behind a snapshot, so that a node that was away for a moment needs no image."""
    apply_entries_max: int = 256
    """Committed entries applied before the loop gets a turn."""
    promote_lag_entries: int = 100
    """A learner votes only once it is at most this far behind."""
    members_max: int = 64
    """Voters and learners; more are not taken in."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log. A no-op has neither data nor a configuration."""

    index: int
    term: int
    data: bytes = b""
    configuration: Configuration | None = None
    """Holds from this entry on, committed or not."""

    @property
    def size_bytes(self) -> int:
        """What it counts against the bounds."""
        return len(self.data) + ENTRY_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class HardState:
    """What a node must remember. `commit` is only a convenience: it is saved along with the rest, never alone."""

    term: int = 0
    vote: int = 0  # node id; 0: nobody yet in this term
    commit: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The applied image, in place of all entries up to `index`."""

    index: int
    term: int
    configuration: Configuration
    data: bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a start finds on the disk."""

    hard_state: HardState = HardState()
    snapshot: Snapshot | None = None
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Vote:
    """Asks for a vote in the message's term; `pre`: only whether it would be given."""

    last_index: int
    last_term: int
    pre: bool = False
    force: bool = False
    """The leader itself asked for this election (transfer): that it lives is no reason to refuse."""


@dataclass(frozen=True, slots=True)
class VoteResponse:
    granted: bool
    pre: bool = False


@dataclass(frozen=True, slots=True)
class Append:
    """Entries after the one at `prev_index`, which must be of `prev_term`."""

    prev_index: int
    prev_term: int
    commit: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class AppendResponse:
    """The log equals the leader's up to `index`, durably. Rejected: it does not, at `index`."""

    index: int
    rejected: bool = False
    hint_index: int = 0
    """Rejected: the logs may be equal up to here, where the follower has an entry of `hint_term`."""
    hint_term: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    commit: int


@dataclass(frozen=True, slots=True)
class HeartbeatResponse:
    pass


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """A piece of an image of `size_bytes` bytes in all."""

    index: int
    snapshot_term: int
    configuration: Configuration
    offset: int
    size_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class InstallSnapshotResponse:
    """The next byte that is wanted of the image at `index`."""

    index: int
    offset: int


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """The leader hands over: campaign at once."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """A node that belongs nowhere yet says that it is there. Passed on once, to the leader."""

    origin: PeerId


Body = (
    Vote
    | VoteResponse
    | Append
    | AppendResponse
    | Heartbeat
    | HeartbeatResponse
    | InstallSnapshot
    | InstallSnapshotResponse
    | TimeoutNow
    | Greeting
)


@dataclass(frozen=True, slots=True)
class Message:
    """What one node tells another."""

    to: int
    to_store: str
    """Which disk of that node is meant; another one drops the message. Empty: any."""
    sender: PeerId
    term: int
    fresh: bool
    """The sender's log is empty: its disk is new."""
    body: Body


@dataclass(frozen=True, slots=True)
class Ready:
    """What is to be done, strictly in this order: save, all at once, in the order of the fields; make it durable;
    send; apply; `advance`. Several may be under way, but each is finished before the next one's sending."""

    term: int
    delete_from: int | None
    """Entries from here on are deleted: they contradict the leader's."""
    delete_below: int | None
    """Entries below are deleted: `snapshot` has them."""
    snapshot: Snapshot | None
    entries: tuple[Entry, ...]
    hard_state: HardState | None
    """None: nothing to save at all."""
    messages: tuple[Message, ...]
    restored: Snapshot | None
    """The leader's image replaces what was applied, before `committed` is."""
    committed: tuple[Entry, ...]

    @property
    def must_save(self) -> bool:
        """False: nothing goes to the disk."""
        return self.hard_state is not None


class RaftRefused(Exception):  # noqa: N818 - what was asked is not possible now; nothing is broken
    """Base of refusals."""


class NotLeader(RaftRefused):
    """Only the leader can do this, and it is not handing over."""

    def __init__(self, leader_id: int | None) -> None:
        super().__init__("not the leader")
        self.leader_id = leader_id


class TooMuchUncommitted(RaftRefused):
    """`uncommitted_bytes_max`: wait until entries are committed."""


class EntryTooLarge(RaftRefused):
    """`entry_bytes_max`."""
