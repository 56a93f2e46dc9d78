"""Decisions about offsets: commit, seek, reset, expiry, and the end of topics and groups.

Each reads a Group, changes nothing, and returns the records to append. A stale fence is an answer, never an exception:
it is what happens to every member whose partition moved on.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from broker.errors import PostbusError, Reason
from broker.groups.calls import CommitEntry
from broker.groups.group import Group
from broker.groups.records import (
    OFFSET,
    OWNER,
    SETTINGS,
    TOPIC,
    Committed,
    Owner,
    PartitionKey,
    Record,
)


@dataclass(frozen=True, slots=True)
class Commits:
    """What became of a commit: an outcome for each entry, in order; None is done."""

    records: list[Record]
    outcomes: list[PostbusError | None]


def decide_commit(group: Group, member_id: str, entries: Sequence[CommitEntry], *, now_us: int) -> Commits:
    """Commits under the fences of the member, or from outside (no member id): raises GROUP_NOT_EMPTY then.

    Under one fence a committed offset never goes back: an older one is already done. A member that is gone may still
    commit under its fence until somebody else owns the partition.
    """
    if not member_id:
        return _commit_from_outside(group, entries, now_us=now_us)
    records: dict[PartitionKey, Record] = {}
    outcomes: list[PostbusError | None] = []
    newest: dict[PartitionKey, int] = {}
    for entry in entries:
        key = (entry.topic_id, entry.partition)
        owner = group.owners.get(key)
        if owner is None or owner.fence != entry.fence or owner.member_id != member_id:
            outcomes.append(assignment_lost(group, key, entry.fence))
            continue
        outcomes.append(None)
        committed = group.committed.get(key)
        before = newest.get(key, committed.offset if committed else 0)
        if entry.offset > before:
            newest[key] = entry.offset
            records[key] = _record(group, OFFSET, key, Committed(entry.offset, now_us, entry.fence))
    return Commits(list(records.values()), outcomes)


def _commit_from_outside(group: Group, entries: Sequence[CommitEntry], *, now_us: int) -> Commits:
    check_empty(group)
    records: list[Record] = []
    for entry in entries:
        records += _moved(group, (entry.topic_id, entry.partition), entry.offset, now_us=now_us)
    return Commits(records, [None] * len(entries))


def decide_seek(
    group: Group, member_id: str, key: PartitionKey, offset: int, *, fence: int, now_us: int
) -> list[Record]:
    """Moves a member's place, back or forth, under a new fence: a seek, or the redelivery of what was not done.

    For redelivery `offset` is the first that isn't acknowledged: all after it goes out again, so that no
    acknowledgement under the old fence is missed. Raises ASSIGNMENT_LOST when the fence is stale.
    """
    owner = group.owners.get(key)
    if owner is None or owner.fence != fence or owner.member_id != member_id or member_id not in group.members:
        raise assignment_lost(group, key, fence)
    return [
        _record(group, OFFSET, key, Committed(offset, now_us)),
        _record(group, OWNER, key, Owner(member_id, offset)),
    ]


def moved_already(group: Group, member_id: str, key: PartitionKey, offset: int, *, fence: int) -> bool:
    """Whether the same seek was carried out before, and its answer lost: nothing was done since under the new fence."""
    owner, committed = group.owners.get(key), group.committed.get(key)
    return (
        owner is not None
        and committed is not None
        and owner.member_id == member_id
        and member_id in group.members
        and owner.fence > fence
        and (owner.start_offset, committed.offset, committed.fence) == (offset, offset, 0)
    )


def decide_reset(group: Group, offsets: Mapping[PartitionKey, int], *, now_us: int) -> list[Record]:
    """Moves committed offsets of a group without members; raises GROUP_NOT_EMPTY."""
    check_empty(group)
    records: list[Record] = []
    for key, offset in sorted(offsets.items()):
        records += _moved(group, key, offset, now_us=now_us)
    return records


def _moved(group: Group, key: PartitionKey, offset: int, *, now_us: int) -> list[Record]:
    records = [_record(group, OFFSET, key, Committed(offset, now_us))]
    if key in group.owners:
        # A late acknowledgement of a member that is gone must not undo this.
        records.append(_record(group, OWNER, key, Owner("", offset)))
    return records


def decide_topic_deleted(group: Group, topic_ids: Collection[str]) -> list[Record]:
    """Offsets and owners go with their topic."""
    records = [
        Record(group.name, OFFSET, None, topic_id=key[0], partition=key[1])
        for key in sorted(group.committed)
        if key[0] in topic_ids
    ]
    records += [
        Record(group.name, OWNER, None, topic_id=key[0], partition=key[1])
        for key in sorted(group.owners)
        if key[0] in topic_ids
    ]
    records += [
        Record(group.name, TOPIC, None, topic_id=topic_id) for topic_id in sorted(group.seen) if topic_id in topic_ids
    ]
    return records


def decide_delete(group: Group) -> list[Record]:
    """The group and all that is known of it goes; raises GROUP_NOT_EMPTY."""
    check_empty(group)
    return [*decide_topic_deleted(group, topic_ids_of(group)), Record(group.name, SETTINGS, None)]


def decide_expiry(group: Group, *, now_us: int, retention_us_default: int | None) -> list[Record]:
    """Offsets that nobody used for too long go, and with them the group, unless it was given settings."""
    if group.settings is None or group.members:
        return []
    config = group.config
    retention_us = retention_us_default
    if config.HasField("offset_retention"):
        retention_us = config.offset_retention.ToMicroseconds() or None
    if retention_us is None:
        return []
    newest_us = max((committed.commit_time_us for committed in group.committed.values()), default=0)
    used_us = max(group.settings.empty_since_us, newest_us)
    if used_us == 0 or now_us - used_us < retention_us:
        return []
    records = decide_topic_deleted(group, topic_ids_of(group))  # nothing, once they are gone
    if not group.settings.config:
        records.append(Record(group.name, SETTINGS, None))
    return records


def topic_ids_of(group: Group) -> set[str]:
    """Topics of which the group knows anything."""
    return {key[0] for key in group.committed} | {key[0] for key in group.owners} | set(group.seen)


def check_empty(group: Group) -> None:
    """Raises GROUP_NOT_EMPTY."""
    if group.members:
        raise PostbusError(
            Reason.ERROR_REASON_GROUP_NOT_EMPTY,
            f"group {group.name!r} has {len(group.members)} members; stop them first",
            resource=("group", group.name),
            metadata={"members": len(group.members)},
        )


def assignment_lost(group: Group, key: PartitionKey, fence: int) -> PostbusError:
    """ABORTED: the partition is not, or no longer, the member's under this fence."""
    owner = group.owners.get(key)
    topic = group.topic(key[0])
    return PostbusError(
        Reason.ERROR_REASON_ASSIGNMENT_LOST,
        f"fence {fence} of partition {topic.name if topic else key[0]}/{key[1]} in group {group.name!r} is stale",
        metadata={"group": group.name, "partition": key[1], "fence": owner.fence if owner else 0},
    )


def _record(group: Group, kind: int, key: PartitionKey, value: Owner | Committed) -> Record:
    return Record(group.name, kind, value, topic_id=key[0], partition=key[1])  # type: ignore[arg-type]
