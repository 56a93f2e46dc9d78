"""What is asked of the coordinator and what it answers: values, shared with the services.

Start positions are messages of the public API; everything else is plain.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from postbus.v1 import subscriber_pb2

from broker.groups.records import PartitionKey

PROCESSING_TIMEOUT_MS_DEFAULT = 300_000


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
