"""What this node's coordinators are asked by other nodes: "group.*" calls, taken apart and put to them.

Requests of GroupService that concern one group travel as their public messages. A node that does not coordinate the
group (any more, or not yet) answers NO_LEADER at once, and the asking node looks again who does.
"""

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from postbus.v1 import group_pb2

from broker.groups import wire
from broker.groups.coordinators import Coordinators
from broker.groups.watches import Watches
from broker.peers.links import PeerId
from broker.stubs import group_calls_pb2 as pb

HEARTBEAT: Final = "group.heartbeat"
COMMIT: Final = "group.commit"
SEEK: Final = "group.seek"
TIMED_OUT: Final = "group.processing_timed_out"
DISCONNECTED: Final = "group.disconnected"
MEMBER_NODE: Final = "group.member_node"
CHANGES: Final = "group.changes"
CREATE: Final = "group.create"
GET: Final = "group.get"
LIST: Final = "group.list"
UPDATE: Final = "group.update"
DELETE: Final = "group.delete"
OFFSETS: Final = "group.committed_offsets"
RESET: Final = "group.reset_offsets"


class Handles(Protocol):
    """What is needed of `peers.calls.Calls`."""

    def handle(self, method: str, handler: Callable[[PeerId, bytes], Awaitable[bytes]]) -> None: ...


def serve(calls: Handles, coordinators: Coordinators, watches: Watches) -> None:
    """Answers all of them from now on."""
    asked = _Asked(coordinators, watches)
    for method, handler in (
        (HEARTBEAT, asked.heartbeat),
        (COMMIT, asked.commit),
        (SEEK, asked.seek),
        (TIMED_OUT, asked.processing_timed_out),
        (DISCONNECTED, asked.disconnected),
        (MEMBER_NODE, asked.member_node),
        (CHANGES, asked.changes),
        (CREATE, asked.create),
        (GET, asked.get),
        (LIST, asked.list),
        (UPDATE, asked.update),
        (DELETE, asked.delete),
        (OFFSETS, asked.committed_offsets),
        (RESET, asked.reset_offsets),
    ):
        calls.handle(method, handler)


class _Asked:
    def __init__(self, coordinators: Coordinators, watches: Watches) -> None:
        self._coordinators = coordinators
        self._watches = watches

    async def heartbeat(self, _peer: PeerId, data: bytes) -> bytes:
        call = wire.decode_heartbeat(data)
        coordinator = await self._coordinators.of_group(call.group)
        return wire.encode_reply(await coordinator.heartbeat(call))

    async def commit(self, _peer: PeerId, data: bytes) -> bytes:
        group, member_id, entries = wire.decode_commit(data)
        coordinator = await self._coordinators.of_group(group)
        return wire.encode_outcomes(await coordinator.commit(group, member_id, entries))

    async def seek(self, _peer: PeerId, data: bytes) -> bytes:
        group, member_id, to = wire.decode_seek(data)
        coordinator = await self._coordinators.of_group(group)
        assigned = await coordinator.seek(group, member_id, to.topic_id, to.partition, to.offset, to.fence)
        return wire.encode_assigned(assigned)

    async def processing_timed_out(self, _peer: PeerId, data: bytes) -> bytes:
        group, member_id, member_epoch, fences = wire.decode_timed_out(data)
        coordinator = await self._coordinators.of_group(group)
        await coordinator.processing_timed_out(group, member_id, member_epoch, fences)
        return b""

    async def disconnected(self, _peer: PeerId, data: bytes) -> bytes:
        call = pb.GroupDisconnectedCall.FromString(data)
        coordinator = await self._coordinators.of_group(call.group)
        coordinator.disconnected(call.group, call.member_id, call.member_epoch)
        return b""

    async def member_node(self, _peer: PeerId, data: bytes) -> bytes:
        member = pb.GroupMemberKey.FromString(data)
        coordinator = await self._coordinators.of_group(member.group)
        node_id = await coordinator.member_node(member.group, member.member_id)
        return pb.GroupMemberNode(node_id=node_id).SerializeToString()

    async def changes(self, peer: PeerId, data: bytes) -> bytes:
        return wire.encode_changes_reply(await self._watches.changes(peer.node_id, wire.decode_changes(data)))

    async def create(self, _peer: PeerId, data: bytes) -> bytes:
        request = group_pb2.CreateGroupRequest.FromString(data)
        coordinator = await self._coordinators.of_group(request.name)
        return (await coordinator.create_group(request.name, request.config)).SerializeToString()

    async def get(self, _peer: PeerId, data: bytes) -> bytes:
        request = group_pb2.GetGroupRequest.FromString(data)
        coordinator = await self._coordinators.of_group(request.name)
        return (await coordinator.get_group(request.name)).SerializeToString()

    async def list(self, _peer: PeerId, data: bytes) -> bytes:
        call = pb.GroupListCall.FromString(data)
        coordinator = await self._coordinators.of_number(call.number)
        groups, last = await coordinator.list_groups(
            page_size=call.page_size, page_token=call.after, prefix=call.prefix
        )
        return group_pb2.ListGroupsResponse(groups=groups, next_page_token=last).SerializeToString()

    async def update(self, _peer: PeerId, data: bytes) -> bytes:
        request = group_pb2.UpdateGroupRequest.FromString(data)
        coordinator = await self._coordinators.of_group(request.name)
        group = await coordinator.update_group(request.name, request.config, list(request.update_mask.paths))
        return group.SerializeToString()

    async def delete(self, _peer: PeerId, data: bytes) -> bytes:
        request = group_pb2.DeleteGroupRequest.FromString(data)
        coordinator = await self._coordinators.of_group(request.name)
        await coordinator.delete_group(request.name)
        return b""

    async def committed_offsets(self, _peer: PeerId, data: bytes) -> bytes:
        request = group_pb2.GetCommittedOffsetsRequest.FromString(data)
        coordinator = await self._coordinators.of_group(request.group)
        offsets = await coordinator.committed_offsets(request.group, list(request.topics))
        return group_pb2.GetCommittedOffsetsResponse(offsets=offsets).SerializeToString()

    async def reset_offsets(self, _peer: PeerId, data: bytes) -> bytes:
        request = group_pb2.ResetOffsetsRequest.FromString(data)
        coordinator = await self._coordinators.of_group(request.group)
        changes = await coordinator.reset_offsets(
            request.group,
            request.topic,
            partitions=list(request.partitions),
            to=request.to if request.HasField("to") else None,
            shift=request.shift if request.HasField("shift") else None,
            validate_only=request.validate_only,
        )
        return group_pb2.ResetOffsetsResponse(
            changes=[
                group_pb2.OffsetChange(
                    partition=change.partition, old_offset=change.old_offset, new_offset=change.new_offset
                )
                for change in changes
            ]
        ).SerializeToString()
