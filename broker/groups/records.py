"""What a group's log holds, as values: one record per fact, and its form in Protobuf.

A record replaces the earlier one of its key, or deletes it (`value` is None), and depends on no other, so that the
compacted table gives the same state as the log. This module decides nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from broker.stubs import group_log_pb2 as pb

PartitionKey: TypeAlias = tuple[str, int]  # topic_id, partition

SETTINGS: Final = pb.GROUP_RECORD_KIND_SETTINGS
MEMBER: Final = pb.GROUP_RECORD_KIND_MEMBER
OWNER: Final = pb.GROUP_RECORD_KIND_OWNER
OFFSET: Final = pb.GROUP_RECORD_KIND_OFFSET
TOPIC: Final = pb.GROUP_RECORD_KIND_TOPIC


@dataclass(frozen=True, slots=True)
class Settings:
    """The group exists.

    config: a serialised postbus.v1.GroupConfig, as set. empty_since_us: when the last member left; 0: it has
    members, or never had any.
    """

    config: bytes = b""
    group_epoch: int = 0
    empty_since_us: int = 0


@dataclass(frozen=True, slots=True)
class WantedTopic:
    """A topic that a member wants, and where it would start in partitions without a committed offset.

    start_at: a serialised postbus.v1.StartPosition; empty: not said. positions: exact offsets by partition; they win.
    """

    topic: str
    start_at: bytes = b""
    positions: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Member:
    """A member. `member_epoch` is raised each time it joins again; heartbeats: no stream holds its membership.

    join_id: of the call that made it, or made it come back.
    """

    member_id: str
    member_epoch: int
    wanted: tuple[WantedTopic, ...]
    processing_timeout_ms: int
    joined_time_us: int
    instance_id: str = ""
    client_id: str = ""
    peer: str = ""
    node_id: int = 0
    rack: str = ""
    heartbeats: bool = False
    join_id: str = ""

    @property
    def topics(self) -> tuple[str, ...]:
        """Names of the topics that it wants."""
        return tuple(wanted.topic for wanted in self.wanted)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a partition belongs to. `fence` is the record's offset in the log: 0 until it is replayed."""

    member_id: str
    start_offset: int
    fence: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    """The next offset that the group reads. `fence` under which it was committed; 0: none."""

    offset: int
    commit_time_us: int
    fence: int = 0


@dataclass(frozen=True, slots=True)
class SeenTopic:
    """Partitions from `partition_count` on were added after the group first saw the topic."""

    partition_count: int


Value: TypeAlias = Settings | Member | Owner | Committed | SeenTopic


@dataclass(frozen=True, slots=True)
class Record:
    """One fact about one group; `value` None deletes it."""

    group: str
    kind: pb.GroupRecordKind
    value: Value | None
    member_id: str = ""
    topic_id: str = ""
    partition: int = 0


class GroupLogError(Exception):
    """A record of the group log can't be read."""


def encode_key(record: Record) -> bytes:
    """A serialised GroupRecordKey; equal records have equal keys."""
    return pb.GroupRecordKey(
        group=record.group,
        kind=record.kind,
        member_id=record.member_id,
        topic_id=record.topic_id,
        partition=record.partition,
    ).SerializeToString(deterministic=True)


def encode_value(value: Value) -> bytes:
    """The Protobuf message of the value."""
    message: pb.GroupSettings | pb.GroupMemberRecord | pb.GroupOwner | pb.GroupOffset | pb.GroupTopic
    match value:
        case Committed():
            message = pb.GroupOffset(offset=value.offset, commit_time_us=value.commit_time_us, fence=value.fence)
        case Owner():
            message = pb.GroupOwner(member_id=value.member_id, start_offset=value.start_offset)
        case Settings():
            message = pb.GroupSettings(
                config=value.config, group_epoch=value.group_epoch, empty_since_us=value.empty_since_us
            )
        case SeenTopic():
            message = pb.GroupTopic(partition_count=value.partition_count)
        case Member():
            message = pb.GroupMemberRecord(
                instance_id=value.instance_id,
                client_id=value.client_id,
                peer=value.peer,
                node_id=value.node_id,
                wanted=[
                    pb.GroupWantedTopic(topic=wanted.topic, start_at=wanted.start_at, positions=wanted.positions)
                    for wanted in value.wanted
                ],
                heartbeats=value.heartbeats,
                processing_timeout_ms=value.processing_timeout_ms,
                joined_time_us=value.joined_time_us,
                rack=value.rack,
                member_epoch=value.member_epoch,
                join_id=value.join_id,
            )
    return message.SerializeToString(deterministic=True)


def decode(key: bytes, value: bytes | None) -> Record:
    """The record again; raises GroupLogError."""
    try:
        name = pb.GroupRecordKey.FromString(key)
        decoded = None if value is None else _decode_value(name, value)
    except DecodeError as error:
        raise GroupLogError(f"unreadable group record: {error}") from error
    return Record(
        group=name.group,
        kind=name.kind,
        value=decoded,
        member_id=name.member_id,
        topic_id=name.topic_id,
        partition=name.partition,
    )


def _decode_value(key: pb.GroupRecordKey, value: bytes) -> Value:
    if key.kind == OFFSET:
        offset = pb.GroupOffset.FromString(value)
        return Committed(offset=offset.offset, commit_time_us=offset.commit_time_us, fence=offset.fence)
    if key.kind == OWNER:
        owner = pb.GroupOwner.FromString(value)
        return Owner(member_id=owner.member_id, start_offset=owner.start_offset)
    if key.kind == SETTINGS:
        settings = pb.GroupSettings.FromString(value)
        return Settings(
            config=settings.config, group_epoch=settings.group_epoch, empty_since_us=settings.empty_since_us
        )
    if key.kind == TOPIC:
        return SeenTopic(partition_count=pb.GroupTopic.FromString(value).partition_count)
    if key.kind == MEMBER:
        member = pb.GroupMemberRecord.FromString(value)
        return Member(
            member_id=key.member_id,
            member_epoch=member.member_epoch,
            wanted=tuple(
                WantedTopic(topic=wanted.topic, start_at=wanted.start_at, positions=dict(wanted.positions))
                for wanted in member.wanted
            ),
            processing_timeout_ms=member.processing_timeout_ms,
            joined_time_us=member.joined_time_us,
            instance_id=member.instance_id,
            client_id=member.client_id,
            peer=member.peer,
            node_id=member.node_id,
            rack=member.rack,
            heartbeats=member.heartbeats,
            join_id=member.join_id,
        )
    raise GroupLogError(f"group record of unknown kind {key.kind}")
