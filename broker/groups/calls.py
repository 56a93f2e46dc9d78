"""What is asked of the coordinator and what it answers: values, shared with the services.

Start positions are messages of the public API; everything else is plain. Here too: the error of a coordinator that is
nowhere just now, because everybody on the way raises or reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from postbus.v1 import subscriber_pb2

from broker.errors import PostbusError, Reason
from broker.groups.records import PartitionKey

PROCESSING_TIMEOUT_MS_DEFAULT = 300_000
MOVE_RETRY_MS = 200
_MAYBE_DONE = "maybe_done"

MemberKey: TypeAlias = tuple[str, str]  # group, member id


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the cluster knows it now."""

    name: str
    topic_id: str
    partition_count: int


@dataclass(frozen=True, slots=True)
class HeartbeatCall:
    """A member's sign of life: joins (member_epoch 0), stays or leaves.

    member_id: empty to join as a new member; with member_epoch 0, to come back as the same member. A static member
    comes back by its instance_id alone.
    topics: None: as before. owned: what it holds, by topic id and partition; None: not said, nothing is given up.
    On joining nothing is held, whatever `owned` says.
    leave: for good, a static member too.
    stream: a Subscribe stream holds the membership: no session timeout; `disconnected` tells of its end.
    start_at, start_positions: for partitions without a committed offset, by topic and by (topic, partition).
    group_kind: postbus.v1.GroupKind; unspecified: what the group is.
    join_id: names a join, and a new member; never used before. Carried out twice, because an answer was lost or late,
    the same call is one join.
    """

    group: str
    member_id: str = ""
    member_epoch: int = 0
    instance_id: str = ""
    client_id: str = ""
    peer: str = ""
    topics: tuple[str, ...] | None = None
    owned: frozenset[PartitionKey] | None = None
    leave: bool = False
    processing_timeout_ms: int = PROCESSING_TIMEOUT_MS_DEFAULT
    rack: str = ""
    stream: bool = False
    start_at: Mapping[str, subscriber_pb2.StartPosition] = field(default_factory=dict)
    start_positions: Mapping[tuple[str, int], int] = field(default_factory=dict)
    group_kind: subscriber_pb2.GroupKind = subscriber_pb2.GROUP_KIND_UNSPECIFIED
    node_id: int = 0
    join_id: str = ""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A partition that belongs to a member: read on from `offset`, commit under `fence`."""

    topic: str
    topic_id: str
    partition: int
    offset: int
    fence: int

    @property
    def key(self) -> PartitionKey:
        """Topic id and partition."""
        return (self.topic_id, self.partition)


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """What a member should hold. All of it is durable.

    target: may be used now. What the member holds and is not in it must be given up: finish, commit, and report
    `owned` without it. A partition whose fence differs from the one known was sought, rewound or reassigned: begin
    again at its offset.
    lost: reported as owned, but no longer the member's: stop at once, nothing of it can be committed any more.
    """

    member_id: str
    member_epoch: int
    group_epoch: int
    target: tuple[Assigned, ...]
    lost: frozenset[PartitionKey] = frozenset()


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """The next offset to read of a partition, and the fence under which the ones before were read."""

    topic_id: str
    partition: int
    offset: int
    fence: int = 0


@dataclass(frozen=True, slots=True)
class OffsetChange:
    """A moved committed offset; `old_offset` None: there was none."""

    partition: int
    old_offset: int | None
    new_offset: int


@dataclass(frozen=True, slots=True)
class ChangesCall:
    """A node asks one that coordinates which of its members should send a heartbeat; answered when there is one.

    watch_id: chosen by the asking node. first: it begins here; `added` are all its members. A second call of one
    watch ends the wait of the one before: that is how members are added meanwhile.
    """

    watch_id: str
    first: bool
    added: tuple[MemberKey, ...] = ()
    removed: tuple[MemberKey, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangesReply:
    """`known` False: there is no such watch (any more), begin it again. Empty: nothing happened for a while."""

    known: bool
    changed: tuple[MemberKey, ...] = ()


def no_coordinator(*, maybe_done: bool = False) -> PostbusError:
    """UNAVAILABLE: the group's coordinator is on its way to another node. maybe_done: what was asked may hold."""
    return PostbusError(
        Reason.ERROR_REASON_NO_LEADER,
        "the coordinator of this group is moving to another node; try again",
        retry_after_ms=MOVE_RETRY_MS,
        metadata={_MAYBE_DONE: "true"} if maybe_done else None,
    )


def maybe_done(error: PostbusError) -> bool:
    """Whether what was asked may hold although this is the answer."""
    return error.kind.outcome_unknown or _MAYBE_DONE in error.metadata
