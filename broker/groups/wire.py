"""Calls between nodes as bytes: each value of `calls` and its message of group_calls.proto. Decides nothing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from postbus.v1 import subscriber_pb2

from broker.errors import PostbusError
from broker.groups.calls import (
    Assigned,
    ChangesCall,
    ChangesReply,
    CommitEntry,
    HeartbeatCall,
    HeartbeatReply,
    MemberKey,
)
from broker.groups.records import PartitionKey
from broker.peers.calls import from_peer, to_peer
from broker.stubs import group_calls_pb2 as pb
from broker.stubs.peers_pb2 import PeerError


def encode_heartbeat(call: HeartbeatCall) -> bytes:
    """A HeartbeatCall."""
    message = pb.GroupHeartbeatCall(
        group=call.group,
        member_id=call.member_id,
        member_epoch=call.member_epoch,
        instance_id=call.instance_id,
        client_id=call.client_id,
        peer=call.peer,
        leave=call.leave,
        processing_timeout_ms=call.processing_timeout_ms,
        rack=call.rack,
        stream=call.stream,
        start_at={topic: start.SerializeToString() for topic, start in call.start_at.items()},
        start_positions=[
            pb.GroupStartPosition(topic=topic, partition=partition, offset=offset)
            for (topic, partition), offset in call.start_positions.items()
        ],
        group_kind=call.group_kind,
        node_id=call.node_id,
        join_id=call.join_id,
    )
    if call.topics is not None:
        message.topics.CopyFrom(pb.GroupTopicNames(names=call.topics))
    if call.owned is not None:
        message.owned.CopyFrom(pb.GroupPartitions(partitions=_partitions(call.owned)))
    return message.SerializeToString()


def decode_heartbeat(data: bytes) -> HeartbeatCall:
    """The same again."""
    message = pb.GroupHeartbeatCall.FromString(data)
    return HeartbeatCall(
        group=message.group,
        member_id=message.member_id,
        member_epoch=message.member_epoch,
        instance_id=message.instance_id,
        client_id=message.client_id,
        peer=message.peer,
        topics=tuple(message.topics.names) if message.HasField("topics") else None,
        owned=_keys(message.owned.partitions) if message.HasField("owned") else None,
        leave=message.leave,
        processing_timeout_ms=message.processing_timeout_ms,
        rack=message.rack,
        stream=message.stream,
        start_at={topic: subscriber_pb2.StartPosition.FromString(start) for topic, start in message.start_at.items()},
        start_positions={(start.topic, start.partition): start.offset for start in message.start_positions},
        group_kind=cast(subscriber_pb2.GroupKind, message.group_kind),
        node_id=message.node_id,
        join_id=message.join_id,
    )


def encode_reply(reply: HeartbeatReply) -> bytes:
    """A HeartbeatReply."""
    return pb.GroupHeartbeatReply(
        member_id=reply.member_id,
        member_epoch=reply.member_epoch,
        group_epoch=reply.group_epoch,
        target=[_assigned(assigned) for assigned in reply.target],
        lost=_partitions(reply.lost),
    ).SerializeToString()


def decode_reply(data: bytes) -> HeartbeatReply:
    """The same again."""
    message = pb.GroupHeartbeatReply.FromString(data)
    return HeartbeatReply(
        member_id=message.member_id,
        member_epoch=message.member_epoch,
        group_epoch=message.group_epoch,
        target=tuple(_assigned_again(assigned) for assigned in message.target),
        lost=_keys(message.lost),
    )


def encode_commit(group: str, member_id: str, entries: Sequence[CommitEntry]) -> bytes:
    """A commit."""
    return pb.GroupCommitCall(
        group=group, member_id=member_id, entries=[_entry(entry) for entry in entries]
    ).SerializeToString()


def decode_commit(data: bytes) -> tuple[str, str, list[CommitEntry]]:
    """Group, member, entries."""
    message = pb.GroupCommitCall.FromString(data)
    return message.group, message.member_id, [_entry_again(entry) for entry in message.entries]


def encode_outcomes(outcomes: Sequence[PostbusError | None]) -> bytes:
    """What became of a commit."""
    return pb.GroupCommitReply(
        outcomes=[
            pb.GroupCommitOutcome(error=b"" if error is None else to_peer(error).SerializeToString())
            for error in outcomes
        ]
    ).SerializeToString()


def decode_outcomes(data: bytes) -> list[PostbusError | None]:
    """The same again."""
    return [
        from_peer(PeerError.FromString(outcome.error)) if outcome.error else None
        for outcome in pb.GroupCommitReply.FromString(data).outcomes
    ]


def encode_seek(group: str, member_id: str, place: CommitEntry) -> bytes:
    """A seek: where to, and the fence so far."""
    return pb.GroupSeekCall(group=group, member_id=member_id, place=_entry(place)).SerializeToString()


def decode_seek(data: bytes) -> tuple[str, str, CommitEntry]:
    """Group, member, place."""
    message = pb.GroupSeekCall.FromString(data)
    return message.group, message.member_id, _entry_again(message.place)


def encode_assigned(assigned: Assigned) -> bytes:
    """The answer to a seek."""
    return _assigned(assigned).SerializeToString()


def decode_assigned(data: bytes) -> Assigned:
    """The same again."""
    return _assigned_again(pb.GroupAssigned.FromString(data))


def encode_timed_out(group: str, member_id: str, member_epoch: int, fences: Mapping[PartitionKey, int]) -> bytes:
    """A processing timeout."""
    held = [
        pb.GroupHeld(topic_id=topic_id, partition=number, fence=fence)
        for (topic_id, number), fence in sorted(fences.items())
    ]
    return pb.GroupTimedOutCall(
        group=group, member_id=member_id, member_epoch=member_epoch, held=held
    ).SerializeToString()


def decode_timed_out(data: bytes) -> tuple[str, str, int, dict[PartitionKey, int]]:
    """Group, member, its epoch, fences."""
    message = pb.GroupTimedOutCall.FromString(data)
    fences = {(held.topic_id, held.partition): held.fence for held in message.held}
    return message.group, message.member_id, message.member_epoch, fences


def encode_changes(call: ChangesCall) -> bytes:
    """A ChangesCall."""
    return pb.GroupChangesCall(
        watch_id=call.watch_id, first=call.first, added=_member_keys(call.added), removed=_member_keys(call.removed)
    ).SerializeToString()


def decode_changes(data: bytes) -> ChangesCall:
    """The same again."""
    message = pb.GroupChangesCall.FromString(data)
    return ChangesCall(message.watch_id, message.first, _members(message.added), _members(message.removed))


def encode_changes_reply(reply: ChangesReply) -> bytes:
    """A ChangesReply."""
    return pb.GroupChangesReply(known=reply.known, changed=_member_keys(reply.changed)).SerializeToString()


def decode_changes_reply(data: bytes) -> ChangesReply:
    """The same again."""
    message = pb.GroupChangesReply.FromString(data)
    return ChangesReply(message.known, _members(message.changed))


def _partitions(keys: Iterable[PartitionKey]) -> list[pb.GroupPartition]:
    return [pb.GroupPartition(topic_id=topic_id, partition=partition) for topic_id, partition in sorted(keys)]


def _keys(partitions: Iterable[pb.GroupPartition]) -> frozenset[PartitionKey]:
    return frozenset((place.topic_id, place.partition) for place in partitions)


def _assigned(assigned: Assigned) -> pb.GroupAssigned:
    return pb.GroupAssigned(
        topic=assigned.topic,
        topic_id=assigned.topic_id,
        partition=assigned.partition,
        offset=assigned.offset,
        fence=assigned.fence,
    )


def _assigned_again(message: pb.GroupAssigned) -> Assigned:
    return Assigned(message.topic, message.topic_id, message.partition, message.offset, message.fence)


def _entry(entry: CommitEntry) -> pb.GroupCommitEntry:
    return pb.GroupCommitEntry(
        topic_id=entry.topic_id, partition=entry.partition, offset=entry.offset, fence=entry.fence
    )


def _entry_again(message: pb.GroupCommitEntry) -> CommitEntry:
    return CommitEntry(message.topic_id, message.partition, message.offset, message.fence)


def _member_keys(keys: Iterable[MemberKey]) -> list[pb.GroupMemberKey]:
    return [pb.GroupMemberKey(group=group, member_id=member_id) for group, member_id in keys]


def _members(messages: Iterable[pb.GroupMemberKey]) -> tuple[MemberKey, ...]:
    return tuple((message.group, message.member_id) for message in messages)
