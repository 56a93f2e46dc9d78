"""One group: its state, which `replay` of records alone makes, and what follows from it.

Owns: settings, members, owners of partitions with their fences, committed offsets, topics seen; derived from them,
the target assignment. No clock, no I/O, no randomness. Decisions that need records are in `membership` and `offsets`:
they read a Group and return records, and change nothing.

A fence is the offset of the owner record in the groups log: it grows with every new owner, seek and redelivery, over
coordinators and re-created groups too, because log offsets do.
"""

from collections.abc import Collection, Mapping
from typing import TypeVar

from postbus.v1 import group_pb2, subscriber_pb2

from broker.errors import PostbusError, Reason
from broker.groups.assignor import assign
from broker.groups.calls import Assigned, Topic
from broker.groups.records import (
    MEMBER,
    OFFSET,
    OWNER,
    SETTINGS,
    TOPIC,
    Committed,
    Member,
    Owner,
    PartitionKey,
    Record,
    SeenTopic,
    Settings,
    Value,
    WantedTopic,
)

SETTINGS_DEFAULT = Settings()
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Group:
    """State of one group. Change it only by `replay` (durable facts) and `retarget` (what follows from them)."""

    __slots__ = (
        "_config",
        "_config_bytes",
        "_topics",
        "committed",
        "members",
        "name",
        "owners",
        "seen",
        "settings",
        "target",
        "target_epoch",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.settings: Settings | None = None  # None: the group does not exist
        self.members: dict[str, Member] = {}
        self.owners: dict[PartitionKey, Owner] = {}
        self.committed: dict[PartitionKey, Committed] = {}
        self.seen: dict[str, SeenTopic] = {}
        self.target: dict[PartitionKey, str] = {}
        self.target_epoch = -1
        self._topics: dict[str, Topic] = {}  # by id, those wanted when the target was made
        self._config = group_pb2.GroupConfig()
        self._config_bytes = b""

    # --- durable facts

    def replay(self, record: Record, offset: int) -> None:
        """Applies a record that stands at `offset` of the groups log. The order of records of other keys is free."""
        assert record.group == self.name
        key = (record.topic_id, record.partition)
        value: Value | None = record.value
        if record.kind == SETTINGS:
            assert value is None or isinstance(value, Settings)
            self.settings = value
        elif record.kind == OWNER:
            assert value is None or isinstance(value, Owner)
            _put(self.owners, key, value and Owner(value.member_id, value.start_offset, offset))
        elif record.kind == OFFSET:
            assert value is None or isinstance(value, Committed)
            _put(self.committed, key, value)
        elif record.kind == MEMBER:
            assert value is None or isinstance(value, Member)
            _put(self.members, record.member_id, value)
        else:
            assert record.kind == TOPIC
            assert value is None or isinstance(value, SeenTopic)
            _put(self.seen, record.topic_id, value)

    @property
    def exists(self) -> bool:
        """Whether somebody created it, by a call or by joining."""
        return self.settings is not None

    @property
    def group_epoch(self) -> int:
        """Raised by each change of members or topics."""
        return self.settings.group_epoch if self.settings else 0

    @property
    def config(self) -> group_pb2.GroupConfig:
        """What was set. Not to be changed by the caller."""
        serialised = self.settings.config if self.settings else b""
        if serialised != self._config_bytes:
            self._config = group_pb2.GroupConfig.FromString(serialised)
            self._config_bytes = serialised
        return self._config

    @property
    def kind(self) -> subscriber_pb2.GroupKind:
        """Ordered unless set otherwise."""
        return self.config.kind or subscriber_pb2.GROUP_KIND_ORDERED

    def holder(self, key: PartitionKey) -> Member | None:
        """The member that may be using the partition. None: nobody, it can be given away."""
        owner = self.owners.get(key)
        return self.members.get(owner.member_id) if owner else None

    def holdings(self, member_id: str) -> list[PartitionKey]:
        """What a member may be using, in order."""
        return sorted(key for key, owner in self.owners.items() if owner.member_id == member_id)

    def member_of_instance(self, instance_id: str) -> Member | None:
        """The static member of that name."""
        if not instance_id:
            return None
        return next((member for member in self.members.values() if member.instance_id == instance_id), None)

    def check_member(self, member_id: str, member_epoch: int, *, instance_id: str = "") -> Member:
        """The member, if the caller is still it: raises MEMBER_REPLACED or ASSIGNMENT_LOST."""
        member = self.members.get(member_id)
        if member is None:
            if self.member_of_instance(instance_id) is not None:
                raise member_replaced(self.name, instance_id)
            raise membership_ended(self.name, member_id)
        if member_epoch < member.member_epoch:
            raise member_replaced(self.name, member.instance_id or member_id)
        if member_epoch > member.member_epoch:
            raise PostbusError(
                Reason.ERROR_REASON_INVALID_FIELD,
                f"member_epoch: {member_epoch} was never given; the newest is {member.member_epoch}",
                field="member_epoch",
            )
        return member

    # --- what follows

    def retarget(self, topics: Mapping[str, Topic]) -> set[str]:
        """Works the target out again from members, owners and `topics` (by name); returns whose view changed."""
        known = {
            topics[name].topic_id: topics[name]
            for name in sorted({name for member in self.members.values() for name in member.topics})
            if name in topics
        }
        ids = {topic.name: topic.topic_id for topic in known.values()}
        before = self.target
        self.target = assign(
            wanted={
                member_id: {ids[name] for name in member.topics if name in ids}
                for member_id, member in self.members.items()
            },
            partition_counts={topic_id: topic.partition_count for topic_id, topic in known.items()},
            owners={key: owner.member_id for key, owner in self.owners.items()},
        )
        self.target_epoch = self.group_epoch
        self._topics = known
        changed: set[str] = set()
        for key in before.keys() | self.target.keys():
            old, new = before.get(key, ""), self.target.get(key, "")
            if old != new:
                holder = self.holder(key)
                changed.update((old, new, holder.member_id if holder else ""))
        return changed & self.members.keys()

    def topic(self, topic_id: str) -> Topic | None:
        """A topic that a member wants, as the target knows it."""
        return self._topics.get(topic_id)

    def wanted_topics(self) -> Collection[Topic]:
        """Topics that the target is about."""
        return self._topics.values()

    def start_position(self, key: PartitionKey) -> bytes:
        """Where the partition starts as long as nothing is committed: a serialised StartPosition; empty: EARLIEST.

        Partitions added later start at EARLIEST: records may have been published to them before the group noticed.
        """
        topic_id, partition = key
        seen = self.seen.get(topic_id)
        if seen is not None and partition >= seen.partition_count:
            return b""
        if self.config.HasField("start_at"):
            return self.config.start_at.SerializeToString(deterministic=True)
        topic = self._topics.get(topic_id)
        member = self.members.get(self.target.get(key, ""))
        wanted = self._wanted(member, topic)
        if wanted is None:
            return b""
        if partition in wanted.positions:
            return subscriber_pb2.StartPosition(offset=wanted.positions[partition]).SerializeToString(
                deterministic=True
            )
        return wanted.start_at

    @staticmethod
    def _wanted(member: Member | None, topic: Topic | None) -> WantedTopic | None:
        if member is None or topic is None:
            return None
        return next((wanted for wanted in member.wanted if wanted.topic == topic.name), None)

    def usable(self, member_id: str, *, durable_end: int) -> tuple[Assigned, ...]:
        """What the member owns, should own, and may be told of: its owner record is below `durable_end`."""
        assigned = []
        for key in sorted(key for key, target in self.target.items() if target == member_id):
            owner = self.owners.get(key)
            topic = self._topics.get(key[0])
            if owner is None or topic is None or owner.member_id != member_id or owner.fence >= durable_end:
                continue
            committed = self.committed.get(key)
            offset = committed.offset if committed else owner.start_offset
            assigned.append(Assigned(topic.name, key[0], key[1], offset, owner.fence))
        return tuple(assigned)

    def has_fence_from(self, offset: int, member_id: str) -> bool:
        """Whether an owner record of the member stands at or after this offset of the log."""
        return any(owner.fence >= offset and owner.member_id == member_id for owner in self.owners.values())

    def revoking(self, member_id: str) -> list[PartitionKey]:
        """What the member may still be using and should give up."""
        return [key for key in self.holdings(member_id) if self.target.get(key) != member_id]

    @property
    def state(self) -> group_pb2.GroupState:
        """For people."""
        if not self.members:
            return group_pb2.GROUP_STATE_EMPTY
        settled = all(
            (owner := self.owners.get(key)) is not None and owner.member_id == member_id
            for key, member_id in self.target.items()
        )
        return group_pb2.GROUP_STATE_STABLE if settled else group_pb2.GROUP_STATE_RECONCILING

    def facts(self) -> tuple[object, ...]:
        """All that `replay` made, for comparison."""
        return (self.name, self.settings, self.members, self.owners, self.committed, self.seen)


def _put(facts: dict[_Key, _Value], key: _Key, value: _Value | None) -> None:
    if value is None:
        facts.pop(key, None)
    else:
        facts[key] = value


def member_replaced(group: str, who: str) -> PostbusError:
    """FAILED_PRECONDITION: a newer one came; this one must stop."""
    return PostbusError(
        Reason.ERROR_REASON_MEMBER_REPLACED,
        f"a newer member took the place of {who!r} in group {group!r}; stop this one",
        metadata={"group": group},
    )


def membership_ended(group: str, member_id: str) -> PostbusError:
    """ABORTED: join again."""
    return PostbusError(
        Reason.ERROR_REASON_ASSIGNMENT_LOST,
        f"member {member_id!r} is no longer in group {group!r}; join again",
        metadata={"group": group, "member_id": member_id},
    )
