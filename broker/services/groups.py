"""GroupService: looks at groups, manages them, and coordinates clients that read partitions themselves."""

import asyncio
import contextlib
from collections.abc import Iterable

from postbus.v1 import group_pb2, record_pb2

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError
from broker.groups.calls import CommitEntry, HeartbeatCall, HeartbeatReply
from broker.groups.client import CoordinatorClient
from broker.groups.records import PartitionKey
from broker.replication.partitions import Partitions
from broker.services import positions, requests, subscribe_start
from broker.services.adapter import Call
from broker.services.catch_up import CatchUp
from broker.services.paging import PAGE_SIZE_MAX, decoded, encoded

CLIENT_ID_CHARS_MAX = subscribe_start.CLIENT_ID_CHARS_MAX
# A caller without patience of its own is told so late that the groups log takes nothing, or has no leader.
ANSWER_S_MAX = 30.0


class GroupService:
    """Groups."""

    def __init__(
        self,
        *,
        coordinator: CoordinatorClient,
        partitions: Partitions,
        clock: Clock,
        node_id: int,
        heartbeat_wait_s: float,
        session_timeout_s: float,
        processing_timeout_s: float,
    ) -> None:
        self._coordinator = coordinator
        self._partitions = partitions
        self._clock = clock
        self._node_id = node_id
        self._heartbeat_wait_s = heartbeat_wait_s
        self._session_timeout_s = session_timeout_s
        self._processing_timeout_s = processing_timeout_s
        self.catch_up: CatchUp | None = None  # None: what is not known here does not exist

    async def create_group(self, request: group_pb2.CreateGroupRequest, call: Call) -> group_pb2.CreateGroupResponse:
        """CreateGroup."""
        positions.check_start("config.start_at", request.config.start_at)
        group = await self._coordinator.create_group(request.name, request.config, timeout_s=_patience_s(call))
        return group_pb2.CreateGroupResponse(group=group)

    async def get_group(self, request: group_pb2.GetGroupRequest, call: Call) -> group_pb2.GetGroupResponse:
        """GetGroup: with members and lag."""
        requests.check_name("name", request.name)
        group = await self._coordinator.get_group(request.name, timeout_s=_patience_s(call))
        return group_pb2.GetGroupResponse(group=group)

    async def list_groups(self, request: group_pb2.ListGroupsRequest, call: Call) -> group_pb2.ListGroupsResponse:
        """ListGroups: by name."""
        if not 0 <= request.page_size <= PAGE_SIZE_MAX:
            raise errors.invalid_field(
                "page_size", f"{request.page_size} is not within 0 (for 100) and {PAGE_SIZE_MAX}"
            )
        after = decoded(request.page_token) if request.page_token else ""
        groups, last = await self._coordinator.list_groups(
            page_size=request.page_size, page_token=after, prefix=request.prefix, timeout_s=_patience_s(call)
        )
        return group_pb2.ListGroupsResponse(groups=groups, next_page_token=encoded(last) if last else "")

    async def update_group(self, request: group_pb2.UpdateGroupRequest, call: Call) -> group_pb2.UpdateGroupResponse:
        """UpdateGroup: the fields of the mask."""
        requests.check_name("name", request.name)
        positions.check_start("config.start_at", request.config.start_at)
        group = await self._coordinator.update_group(
            request.name, request.config, list(request.update_mask.paths), timeout_s=_patience_s(call)
        )
        return group_pb2.UpdateGroupResponse(group=group)

    async def delete_group(self, request: group_pb2.DeleteGroupRequest, call: Call) -> group_pb2.DeleteGroupResponse:
        """DeleteGroup: only without members."""
        requests.check_name("name", request.name)
        await self._coordinator.delete_group(request.name, timeout_s=_patience_s(call))
        return group_pb2.DeleteGroupResponse()

    async def heartbeat(self, request: group_pb2.HeartbeatRequest, call: Call) -> group_pb2.HeartbeatResponse:
        """Heartbeat: answers at once when the member has something to do, else after a while."""
        if self.catch_up is not None and any(self._partitions.find_name(each.topic) is None for each in request.owned):
            # What this node does not know yet is owned all the same.
            await self.catch_up.wait()
        heartbeat = self._heartbeat_call(request, call)
        began = self._clock.monotonic()
        reply = await self._coordinator.heartbeat(heartbeat, timeout_s=_patience_s(call))
        nothing_to_do = not request.leave and heartbeat.member_epoch and not self._has_news(heartbeat, reply)
        # The second question, too, has to be answered within the caller's time.
        left_s = _patience_s(call) - (self._clock.monotonic() - began)
        if nothing_to_do and await self._changed(heartbeat, min(self._heartbeat_wait_s, left_s * 0.8)):
            left_s = _patience_s(call) - (self._clock.monotonic() - began)
            reply = await self._coordinator.heartbeat(heartbeat, timeout_s=left_s)
        response = group_pb2.HeartbeatResponse(member_id=reply.member_id, member_epoch=reply.member_epoch)
        for assigned in reply.target:
            assignment = response.target.add(fence=assigned.fence)
            assignment.position.topic = assigned.topic
            assignment.position.partition = assigned.partition
            assignment.position.offset = assigned.offset
        response.session_timeout.FromMilliseconds(round(self._session_timeout_s * 1000))
        return response

    def _heartbeat_call(self, request: group_pb2.HeartbeatRequest, call: Call) -> HeartbeatCall:
        requests.check_name("group", request.group)
        if request.member_epoch < 0:
            raise errors.invalid_field("member_epoch", f"{request.member_epoch} is negative; 0 joins")
        if request.member_epoch and not request.member_id:
            raise errors.invalid_field("member_id", "is required with `member_epoch`")
        if not request.member_epoch and not request.topics and not request.leave:
            raise errors.invalid_field("topics", "is required on joining")
        if request.leave and not request.member_id:
            raise errors.invalid_field("member_id", "is required to leave")
        if request.leave and not request.member_epoch:
            raise errors.invalid_field("member_epoch", "is required to leave: it says which life of the member ends")
        for index, topic in enumerate(request.topics):
            requests.check_name(f"topics[{index}]", topic)
        for name in ("member_id", "instance_id", "client_id", "rack"):
            requests.check_label(name, getattr(request, name), chars_max=CLIENT_ID_CHARS_MAX)
        timeout_s = self._processing_timeout_s
        if request.HasField("processing_timeout"):
            timeout_s = requests.seconds("processing_timeout", request.processing_timeout, minimum=0.1)
        return HeartbeatCall(
            group=request.group,
            member_id=request.member_id,
            member_epoch=request.member_epoch,
            instance_id=request.instance_id,
            client_id=request.client_id or call.peer,
            peer=call.peer,
            topics=tuple(dict.fromkeys(request.topics)) or None,
            owned=self._keys(request.owned),
            leave=request.leave,
            processing_timeout_ms=round(timeout_s * 1000),
            rack=request.rack,
            node_id=self._node_id,
        )

    def _keys(self, owned: Iterable[record_pb2.TopicPartition]) -> frozenset[PartitionKey]:
        keys: set[PartitionKey] = set()
        for index, place in enumerate(owned):
            requests.check_name(f"owned[{index}].topic", place.topic)
            if not place.HasField("partition"):
                raise errors.invalid_field(f"owned[{index}].partition", "is required; partitions begin at 0")
            led = self._partitions.find_name(place.topic)
            if led is not None:  # a deleted topic's partitions are nobody's
                keys.add((led.topic_id, place.partition))
        return frozenset(keys)

    def _has_news(self, heartbeat: HeartbeatCall, reply: HeartbeatReply) -> bool:
        return bool(reply.lost) or frozenset(assigned.key for assigned in reply.target) != heartbeat.owned

    async def _changed(self, heartbeat: HeartbeatCall, timeout_s: float) -> bool:
        changed = asyncio.Event()
        self._coordinator.watch(heartbeat.group, heartbeat.member_id, changed.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await changed.wait()
        finally:
            self._coordinator.unwatch(heartbeat.group, heartbeat.member_id, changed.set)
        return changed.is_set()

    async def commit_offsets(
        self, request: group_pb2.CommitOffsetsRequest, call: Call
    ) -> group_pb2.CommitOffsetsResponse:
        """CommitOffsets: an outcome for each partition."""
        requests.check_name("group", request.group)
        if not request.offsets:
            raise errors.invalid_field("offsets", "is empty")
        entries: list[CommitEntry] = []
        for index, assignment in enumerate(request.offsets):
            subscribe_start.check_position(f"offsets[{index}].position", assignment.position)
            led = self._partitions.topic(assignment.position.topic)
            led.partition(assignment.position.partition)
            if assignment.fence < 0:
                raise errors.invalid_field(f"offsets[{index}].fence", f"{assignment.fence} is negative")
            place = assignment.position
            entries.append(CommitEntry(led.topic_id, place.partition, place.offset, assignment.fence))
        outcomes = await self._coordinator.commit(
            request.group, request.member_id, entries, timeout_s=_patience_s(call)
        )
        response = group_pb2.CommitOffsetsResponse()
        for assignment, outcome in zip(request.offsets, outcomes, strict=True):
            _report(response, assignment, outcome)
        return response

    async def get_committed_offsets(
        self, request: group_pb2.GetCommittedOffsetsRequest, call: Call
    ) -> group_pb2.GetCommittedOffsetsResponse:
        """GetCommittedOffsets: with lag."""
        requests.check_name("group", request.group)
        for index, topic in enumerate(request.topics):
            requests.check_name(f"topics[{index}]", topic)
        offsets = await self._coordinator.committed_offsets(
            request.group, list(request.topics), timeout_s=_patience_s(call)
        )
        return group_pb2.GetCommittedOffsetsResponse(offsets=offsets)

    async def reset_offsets(self, request: group_pb2.ResetOffsetsRequest, call: Call) -> group_pb2.ResetOffsetsResponse:
        """ResetOffsets: only without members."""
        requests.check_name("group", request.group)
        requests.check_name("topic", request.topic)
        positions.check_start("to", request.to)
        to = request.to if request.HasField("to") else None
        if to is not None and to.WhichOneof("at") is None:
            raise errors.invalid_field("to", "is empty: say where to")
        changes = await self._coordinator.reset_offsets(
            request.group,
            request.topic,
            partitions=list(request.partitions),
            to=to,
            shift=request.shift if request.HasField("shift") else None,
            validate_only=request.validate_only,
            timeout_s=_patience_s(call),
        )
        return group_pb2.ResetOffsetsResponse(
            changes=[
                group_pb2.OffsetChange(
                    partition=change.partition, old_offset=change.old_offset, new_offset=change.new_offset
                )
                for change in changes
            ]
        )


def _patience_s(call: Call) -> float:
    """An answer that comes after the caller gave up is wasted: leaves a tenth of the time for the way back."""
    return min(call.timeout_s * 0.9, ANSWER_S_MAX)


def _report(
    response: group_pb2.CommitOffsetsResponse, assignment: group_pb2.Assignment, outcome: PostbusError | None
) -> None:
    place = assignment.position
    if outcome is None:
        response.report.committed.add(topic=place.topic, partition=place.partition, offset=place.offset)
        return
    rejected = response.report.rejected.add(failure=outcome.failure())
    rejected.delivery.topic = place.topic
    rejected.delivery.partition = place.partition
    rejected.delivery.end_offset = place.offset
    rejected.delivery.fence = assignment.fence
