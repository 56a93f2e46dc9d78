"""Decisions about members and owners: each reads a Group, changes nothing, and returns the records to append.

The protocol is KIP-848's idea: the target says who should have a partition; it passes on only when its holder no
longer reports it, left, or ran out of time. So after every event the driver replays the records and then settles:
`decide_seen`, `Group.retarget`, `decide_owners`, in that order.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from broker.groups.calls import HeartbeatCall, Topic
from broker.groups.group import SETTINGS_DEFAULT, Group
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
    WantedTopic,
)


@dataclass(frozen=True, slots=True)
class Joined:
    """A member came or came back. `released`: held by its earlier self, and by nobody now."""

    records: list[Record]
    member: Member
    released: frozenset[PartitionKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Stayed:
    """A heartbeat. `released`: partitions that the member has given up."""

    records: list[Record]
    released: frozenset[PartitionKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Owners:
    """Owner records, and where partitions wait to learn their start: a serialised StartPosition each."""

    records: list[Record]
    unresolved: dict[PartitionKey, bytes] = field(default_factory=dict)


def decide_join(group: Group, call: HeartbeatCall, *, new_member_id: str, now_us: int) -> Joined:
    """A new member, or one that comes back: a static one by its instance id, a dynamic one by its member id.

    Coming back raises the member epoch, which shuts out its earlier self, and takes all its partitions anew: what was
    out under the old fences is delivered again.
    """
    assert call.member_epoch == 0
    earlier = _earlier_self(group, call)
    member = Member(
        member_id=earlier.member_id if earlier else new_member_id,
        member_epoch=earlier.member_epoch + 1 if earlier else 1,
        wanted=_wanted(call, earlier),
        processing_timeout_ms=call.processing_timeout_ms,
        joined_time_us=now_us,
        instance_id=call.instance_id,
        client_id=call.client_id,
        peer=call.peer,
        node_id=call.node_id,
        rack=call.rack,
        heartbeats=not call.stream,
        join_id=call.join_id,
    )
    records = [_member(group, member)]
    if earlier is None or set(earlier.topics) != set(member.topics):
        records.insert(0, _next_epoch(group, members_left=True, now_us=now_us))
    released = frozenset(group.holdings(member.member_id)) if earlier else frozenset()
    return Joined(records, member, released)


def joined_already(group: Group, call: HeartbeatCall) -> Member | None:
    """The member, if this very call was carried out before."""
    member = _earlier_self(group, call) or group.members.get(call.join_id)
    return member if member is not None and call.join_id and member.join_id == call.join_id else None


def _earlier_self(group: Group, call: HeartbeatCall) -> Member | None:
    earlier = group.member_of_instance(call.instance_id) if call.instance_id else group.members.get(call.member_id)
    return earlier if earlier is not None and earlier.instance_id == call.instance_id else None


def decide_heartbeat(group: Group, call: HeartbeatCall, *, now_us: int) -> Stayed:
    """A member reports what it holds and wants. Raises MEMBER_REPLACED, ASSIGNMENT_LOST, INVALID_FIELD."""
    member = group.check_member(call.member_id, call.member_epoch, instance_id=call.instance_id)
    records: list[Record] = []
    if call.topics is not None and set(call.topics) != set(member.topics):
        records.append(_next_epoch(group, members_left=True, now_us=now_us))
        records.append(_member(group, dataclasses.replace(member, wanted=_wanted(call, member))))
    if call.owned is None:
        return Stayed(records)
    return Stayed(records, frozenset(key for key in group.revoking(member.member_id) if key not in call.owned))


def decide_removal(group: Group, member_id: str, *, now_us: int) -> list[Record]:
    """The member left or ran out of time: what it held is free. Until a new owner comes its fences still commit."""
    if member_id not in group.members:
        return []
    return [
        _next_epoch(group, members_left=len(group.members) > 1, now_us=now_us),
        Record(group.name, MEMBER, None, member_id=member_id),
    ]


def decide_lost(group: Group, member_id: str, fences: Mapping[PartitionKey, int], *, now_us: int) -> Stayed:
    """The member did not finish with these partitions in time. `fences`: under which it held them; stale ones pass.

    What it was giving up is taken from it. If it should have kept any, it hangs: it is removed, so that the others
    take over all it has. Either way its late acknowledgements of these no longer count.
    """
    lost = frozenset(
        key
        for key, fence in fences.items()
        if (owner := group.owners.get(key)) is not None and owner.fence == fence and owner.member_id == member_id
    )
    hangs = any(group.target.get(key) == member_id for key in lost)
    return Stayed(decide_removal(group, member_id, now_us=now_us) if hangs else [], lost)


def decide_new_epoch(group: Group, *, now_us: int) -> list[Record]:
    """Topics that members want came, grew or went: the target must be worked out again."""
    return [_next_epoch(group, members_left=bool(group.members), now_us=now_us)] if group.exists else []


def decide_seen(group: Group, topics: Mapping[str, Topic]) -> list[Record]:
    """Remembers how many partitions a topic had when the group first saw it. `topics` by name."""
    names = {name for member in group.members.values() for name in member.topics}
    wanted = [topics[name] for name in sorted(names) if name in topics]
    return [
        Record(group.name, TOPIC, SeenTopic(topic.partition_count), topic_id=topic.topic_id)
        for topic in wanted
        if topic.topic_id not in group.seen
    ]


def decide_owners(
    group: Group,
    *,
    released: Collection[PartitionKey] = (),
    starts: Mapping[tuple[PartitionKey, bytes], int],
    now_us: int,
) -> Owners:
    """Gives each partition that nobody holds, or that was `released`, to the one that should have it.

    starts: resolved offsets by partition and position. Where nothing is committed the start is committed with the
    owner, before any delivery: otherwise LATEST would pass over records when a member dies before its first
    acknowledgement.
    """
    assert group.target_epoch == group.group_epoch, "retarget comes first"
    decided = Owners([])
    for key in sorted(group.target.keys() | set(released)):
        freed = key in released
        member_id = group.target.get(key, "")
        if not freed and (not member_id or group.holder(key) is not None):
            continue
        committed = group.committed.get(key)
        start = committed.offset if committed else None
        if start is None and member_id:
            position = group.start_position(key)
            start = starts.get((key, position))
            if start is None:
                decided.unresolved[key] = position
            else:
                decided.records.append(_record(group, OFFSET, key, Committed(start, now_us)))
        if start is None:
            # Nobody may have it before its start is known, its last holder neither.
            if freed:
                decided.records.append(_record(group, OWNER, key, Owner("", 0)))
            continue
        decided.records.append(_record(group, OWNER, key, Owner(member_id, start)))
    return decided


def _wanted(call: HeartbeatCall, earlier: Member | None) -> tuple[WantedTopic, ...]:
    if call.topics is None:
        return earlier.wanted if earlier else ()
    return tuple(
        WantedTopic(
            topic=topic,
            start_at=call.start_at[topic].SerializeToString(deterministic=True) if topic in call.start_at else b"",
            positions={
                partition: offset for (name, partition), offset in call.start_positions.items() if name == topic
            },
        )
        for topic in dict.fromkeys(call.topics)
    )


def _next_epoch(group: Group, *, members_left: bool, now_us: int) -> Record:
    settings = group.settings or SETTINGS_DEFAULT
    changed = dataclasses.replace(
        settings, group_epoch=settings.group_epoch + 1, empty_since_us=0 if members_left else now_us
    )
    return Record(group.name, SETTINGS, changed)


def _member(group: Group, member: Member) -> Record:
    return Record(group.name, MEMBER, member, member_id=member.member_id)


def _record(group: Group, kind: int, key: PartitionKey, value: Owner | Committed) -> Record:
    return Record(group.name, kind, value, topic_id=key[0], partition=key[1])  # type: ignore[arg-type]
