"""Groups, on any node: what the services call, whoever coordinates the group.

Same methods as GroupCoordinator, which it asks directly where it is on this node, and by "group.*" calls where it is
not. A coordinator that moves is found again: a call waits out the election within its time and is put to the new one,
if nothing came of it before or if it may be repeated. After its time: UNAVAILABLE (NO_LEADER), or, for what may not be
repeated and may have happened, DEADLINE_EXCEEDED (TIMEOUT).
"""

import asyncio
import heapq
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from postbus.v1 import group_pb2, subscriber_pb2

from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.groups import peer_calls, wire
from broker.groups.attachments import Attachments
from broker.groups.calls import (
    Assigned,
    ChangesCall,
    ChangesReply,
    CommitEntry,
    HeartbeatCall,
    HeartbeatReply,
    OffsetChange,
    maybe_done,
    no_coordinator,
)
from broker.groups.coordinator import LIST_PAGE_SIZE_DEFAULT, LIST_PAGE_SIZE_MAX, GroupCoordinator
from broker.groups.coordinators import Coordinators
from broker.groups.journal import CallLater
from broker.groups.records import PartitionKey
from broker.groups.watches import POLL_S, SILENCE_S, Watches
from broker.peers.calls import PeerUnreachable
from broker.stubs import group_calls_pb2 as pb

RETRY_S_MIN: Final = 0.02
RETRY_S_MAX: Final = 0.25

_T = TypeVar("_T")

_NOT_DONE: Final = frozenset(
    {
        Reason.ERROR_REASON_NO_LEADER,
        Reason.ERROR_REASON_NOT_LEADER,
        Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS,
        Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        Reason.ERROR_REASON_DRAINING,
    }
)


class Asks(Protocol):
    """What is needed of `peers.calls.Calls`."""

    def start_call(self, node_id: int, method: str, payload: bytes, *, timeout_s: float) -> asyncio.Future[bytes]: ...


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Bounds."""

    wait_s: float = 10.0
    """How long a call waits for a coordinator and its answer, unless its caller says."""


class CoordinatorClient:
    """The groups of the whole bus. On the loop only."""

    def __init__(
        self,
        coordinators: Coordinators,
        watches: Watches,
        calls: Asks,
        *,
        clock: Clock,
        call_later: CallLater,
        settings: ClientSettings | None = None,
        new_id: Callable[[], str] = lambda: secrets.token_hex(12),
        quorum_problem: Callable[[], str] = lambda: "",
    ) -> None:
        """new_id: never the same twice, on any node. quorum_problem: why none can be found; empty: there is nothing."""
        self.settings = settings or ClientSettings()
        self._coordinators = coordinators
        self._watches = watches
        self._calls = calls
        self._clock = clock
        self._new_id = new_id
        self._quorum_problem = quorum_problem
        self._attachments = Attachments(coordinators, self._ask_for_changes, call_later=call_later, new_watch_id=new_id)

    def close(self) -> None:
        """Watches no more."""
        self._attachments.close()

    # --- members

    async def heartbeat(self, call: HeartbeatCall, *, timeout_s: float | None = None) -> HeartbeatReply:
        """As GroupCoordinator.heartbeat. A join that has to be repeated is the same member."""
        if not call.member_epoch and not call.leave:
            call = replace(call, join_id=self._new_id())
        try:
            return await self._ask_group(
                call.group,
                peer_calls.HEARTBEAT,
                lambda coordinator: coordinator.heartbeat(call),
                lambda: wire.encode_heartbeat(call),
                wire.decode_reply,
                timeout_s=timeout_s,
            )
        except (asyncio.CancelledError, PostbusError) as error:
            if call.join_id and (not isinstance(error, PostbusError) or error.reason in _NOT_DONE):
                # Nobody knows of this membership, if there is one: it need not wait to be watched.
                self.disconnected(call.group, call.join_id, 1)
            raise

    async def member_node(self, group: str, member_id: str, *, timeout_s: float | None = None) -> int:
        """As GroupCoordinator.member_node."""
        return await self._ask_group(
            group,
            peer_calls.MEMBER_NODE,
            lambda coordinator: coordinator.member_node(group, member_id),
            pb.GroupMemberKey(group=group, member_id=member_id).SerializeToString,
            lambda data: pb.GroupMemberNode.FromString(data).node_id,
            timeout_s=timeout_s,
        )

    async def ask_node(self, node_id: int, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        """A question to the node that speaks for a member. Raises PostbusError, PeerUnreachable, TimeoutError."""
        return await self._calls.start_call(node_id, method, payload, timeout_s=timeout_s)

    def watch(self, group: str, member_id: str, on_change: Callable[[], None]) -> None:
        """As GroupCoordinator.watch, wherever the coordinator goes. Nothing is missed between a reply and this."""
        self._attachments.watch(group, member_id, on_change)

    def unwatch(self, group: str, member_id: str, on_change: Callable[[], None]) -> None:
        """The end of `watch`; unknown ones are fine."""
        self._attachments.unwatch(group, member_id, on_change)

    def disconnected(self, group: str, member_id: str, member_epoch: int) -> None:
        """The stream ended without leaving. If nobody hears it, the member is missed a little later."""
        number = self._coordinators.number_of(group)
        leader_id = None if number is None else self._coordinators.leader_of(number)
        if number is None or leader_id is None:
            return
        if leader_id == self._coordinators.node_id:
            coordinator = self._coordinators.serving(number)
            if coordinator is not None:
                coordinator.disconnected(group, member_id, member_epoch)
            return
        message = pb.GroupDisconnectedCall(group=group, member_id=member_id, member_epoch=member_epoch)
        told = self._calls.start_call(
            leader_id, peer_calls.DISCONNECTED, message.SerializeToString(), timeout_s=self.settings.wait_s
        )
        told.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def processing_timed_out(
        self, group: str, member_id: str, member_epoch: int, fences: Mapping[PartitionKey, int]
    ) -> None:
        """As GroupCoordinator.processing_timed_out."""
        await self._ask_group(
            group,
            peer_calls.TIMED_OUT,
            lambda coordinator: coordinator.processing_timed_out(group, member_id, member_epoch, fences),
            lambda: wire.encode_timed_out(group, member_id, member_epoch, fences),
            _nothing,
        )

    # --- offsets

    async def commit(
        self, group: str, member_id: str, entries: Sequence[CommitEntry], *, timeout_s: float | None = None
    ) -> list[PostbusError | None]:
        """As GroupCoordinator.commit."""
        return await self._ask_group(
            group,
            peer_calls.COMMIT,
            lambda coordinator: coordinator.commit(group, member_id, entries),
            lambda: wire.encode_commit(group, member_id, entries),
            wire.decode_outcomes,
            timeout_s=timeout_s,
        )

    async def seek(  # noqa: PLR0917 - a partition's place, in one order everywhere
        self, group: str, member_id: str, topic_id: str, partition: int, offset: int, fence: int
    ) -> Assigned:
        """As GroupCoordinator.seek."""
        return await self._ask_group(
            group,
            peer_calls.SEEK,
            lambda coordinator: coordinator.seek(group, member_id, topic_id, partition, offset, fence),
            lambda: wire.encode_seek(group, member_id, CommitEntry(topic_id, partition, offset, fence)),
            wire.decode_assigned,
        )

    async def reset_offsets(
        self,
        group: str,
        topic: str,
        *,
        partitions: Sequence[int] = (),
        to: subscriber_pb2.StartPosition | None = None,
        shift: int | None = None,
        validate_only: bool = False,
        timeout_s: float | None = None,
    ) -> list[OffsetChange]:
        """As GroupCoordinator.reset_offsets."""
        request = group_pb2.ResetOffsetsRequest(
            group=group, topic=topic, partitions=partitions, to=to, shift=shift, validate_only=validate_only
        )
        return await self._ask_group(
            group,
            peer_calls.RESET,
            lambda coordinator: coordinator.reset_offsets(
                group, topic, partitions=partitions, to=to, shift=shift, validate_only=validate_only
            ),
            request.SerializeToString,
            _offset_changes,
            timeout_s=timeout_s,
            repeatable=validate_only or shift is None,
        )

    async def committed_offsets(
        self, group: str, topics: Collection[str] = (), *, timeout_s: float | None = None
    ) -> list[group_pb2.CommittedOffset]:
        """As GroupCoordinator.committed_offsets."""
        return await self._ask_group(
            group,
            peer_calls.OFFSETS,
            lambda coordinator: coordinator.committed_offsets(group, topics),
            group_pb2.GetCommittedOffsetsRequest(group=group, topics=topics).SerializeToString,
            lambda data: list(group_pb2.GetCommittedOffsetsResponse.FromString(data).offsets),
            timeout_s=timeout_s,
        )

    # --- groups

    async def create_group(
        self, name: str, config: group_pb2.GroupConfig, *, timeout_s: float | None = None
    ) -> group_pb2.Group:
        """As GroupCoordinator.create_group."""
        return await self._ask_group(
            name,
            peer_calls.CREATE,
            lambda coordinator: coordinator.create_group(name, config),
            group_pb2.CreateGroupRequest(name=name, config=config).SerializeToString,
            group_pb2.Group.FromString,
            timeout_s=timeout_s,
            repeatable=False,
        )

    async def get_group(self, name: str, *, timeout_s: float | None = None) -> group_pb2.Group:
        """As GroupCoordinator.get_group."""
        return await self._ask_group(
            name,
            peer_calls.GET,
            lambda coordinator: coordinator.get_group(name),
            group_pb2.GetGroupRequest(name=name).SerializeToString,
            group_pb2.Group.FromString,
            timeout_s=timeout_s,
        )

    async def update_group(
        self, name: str, config: group_pb2.GroupConfig, paths: Sequence[str] = (), *, timeout_s: float | None = None
    ) -> group_pb2.Group:
        """As GroupCoordinator.update_group."""
        return await self._ask_group(
            name,
            peer_calls.UPDATE,
            lambda coordinator: coordinator.update_group(name, config, paths),
            group_pb2.UpdateGroupRequest(
                name=name, config=config, update_mask=FieldMask(paths=paths)
            ).SerializeToString,
            group_pb2.Group.FromString,
            timeout_s=timeout_s,
        )

    async def delete_group(self, name: str, *, timeout_s: float | None = None) -> None:
        """As GroupCoordinator.delete_group."""
        await self._ask_group(
            name,
            peer_calls.DELETE,
            lambda coordinator: coordinator.delete_group(name),
            group_pb2.DeleteGroupRequest(name=name).SerializeToString,
            _nothing,
            timeout_s=timeout_s,
            repeatable=False,
        )

    async def list_groups(
        self, *, page_size: int = 0, page_token: str = "", prefix: str = "", timeout_s: float | None = None
    ) -> tuple[list[group_pb2.Group], str]:
        """Groups by name, of all coordinators, and the token of the next page (empty: no more)."""
        page_size = min(page_size or LIST_PAGE_SIZE_DEFAULT, LIST_PAGE_SIZE_MAX)
        pages = await asyncio.gather(
            *(
                self._list_one(number, page_size=page_size, after=page_token, prefix=prefix, timeout_s=timeout_s)
                for number in range(max(self._coordinators.partition_count, 1))
            )
        )
        merged = list(heapq.merge(*(groups for groups, _ in pages), key=lambda group: group.name))
        more = len(merged) > page_size or any(last for _, last in pages)
        merged = merged[:page_size]
        return merged, merged[-1].name if more and merged else ""

    async def _list_one(
        self, number: int, *, page_size: int, after: str, prefix: str, timeout_s: float | None
    ) -> tuple[list[group_pb2.Group], str]:
        call = pb.GroupListCall(number=number, page_size=page_size, after=after, prefix=prefix)

        def decoded(data: bytes) -> tuple[list[group_pb2.Group], str]:
            response = group_pb2.ListGroupsResponse.FromString(data)
            return list(response.groups), response.next_page_token

        return await self._ask(
            lambda: number if number < self._coordinators.partition_count else None,
            peer_calls.LIST,
            lambda coordinator: coordinator.list_groups(page_size=page_size, page_token=after, prefix=prefix),
            call.SerializeToString,
            decoded,
            timeout_s=timeout_s,
            repeatable=True,
        )

    # --- asking

    async def _ask_group(
        self,
        group: str,
        method: str,
        local: Callable[[GroupCoordinator], Awaitable[_T]],
        payload: Callable[[], bytes],
        decode: Callable[[bytes], _T],
        *,
        timeout_s: float | None = None,
        repeatable: bool = True,
    ) -> _T:
        return await self._ask(
            lambda: self._coordinators.number_of(group),
            method,
            local,
            payload,
            decode,
            timeout_s=timeout_s,
            repeatable=repeatable,
        )

    async def _ask(
        self,
        number: Callable[[], int | None],
        method: str,
        local: Callable[[GroupCoordinator], Awaitable[_T]],
        payload: Callable[[], bytes],
        decode: Callable[[bytes], _T],
        *,
        timeout_s: float | None,
        repeatable: bool,
    ) -> _T:
        """repeatable: done twice is as good as once."""
        deadline = self._clock.monotonic() + (self.settings.wait_s if timeout_s is None else timeout_s)
        delay_s = RETRY_S_MIN
        while True:
            try:
                return await self._try(
                    number(), method, local, payload, decode, deadline=deadline, repeatable=repeatable
                )
            except PostbusError as error:
                if error.reason not in _NOT_DONE:
                    raise
                if maybe_done(error) and not repeatable:
                    raise _outcome_unknown() from error
                if deadline - self._clock.monotonic() <= delay_s:
                    raise self._why(error) from None
            # A new leader wakes this; that it has not heard of its election yet does not.
            await self._coordinators.changed(delay_s)
            delay_s = min(delay_s * 2, RETRY_S_MAX)

    def _why(self, error: PostbusError) -> PostbusError:
        """Without a quorum no coordinator moves anywhere: that is what is to be said."""
        problem = self._quorum_problem()
        if not problem or error.reason != Reason.ERROR_REASON_NO_LEADER:
            return error
        return PostbusError(
            error.reason, f"{error.message}: {problem}", retry_after_ms=error.retry_after_ms, metadata=error.metadata
        )

    async def _try(
        self,
        number: int | None,
        method: str,
        local: Callable[[GroupCoordinator], Awaitable[_T]],
        payload: Callable[[], bytes],
        decode: Callable[[bytes], _T],
        *,
        deadline: float,
        repeatable: bool,
    ) -> _T:
        leader_id = None if number is None else self._coordinators.leader_of(number)
        left_s = deadline - self._clock.monotonic()
        if number is None or leader_id is None or left_s <= 0:
            raise no_coordinator()
        try:
            if leader_id == self._coordinators.node_id:
                async with asyncio.timeout(left_s):
                    return await local(await self._coordinators.of_number(number))
            asked = self._calls.start_call(leader_id, method, payload(), timeout_s=left_s)
            return decode(await self._answer(asked, number, leader_id, repeatable=repeatable))
        except PeerUnreachable as error:
            raise no_coordinator(maybe_done=error.sent) from error
        except TimeoutError as error:
            raise no_coordinator(maybe_done=True) from error

    async def _answer(self, asked: asyncio.Future[bytes], number: int, leader_id: int, *, repeatable: bool) -> bytes:
        """Of what may be repeated it is not waited for any longer once another node leads."""
        try:
            while not asked.done():
                changed = asyncio.ensure_future(self._coordinators.changed(None))
                either: set[asyncio.Future[Any]] = {asked, changed}
                try:
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if not asked.done() and repeatable and self._coordinators.leader_of(number) != leader_id:
                    raise no_coordinator(maybe_done=True)
            return asked.result()
        finally:
            asked.cancel()

    def _ask_for_changes(self, node_id: int, call: ChangesCall) -> "asyncio.Future[ChangesReply]":
        if node_id == self._coordinators.node_id:
            return asyncio.ensure_future(self._watches.changes(node_id, call))
        asked = self._calls.start_call(
            node_id, peer_calls.CHANGES, wire.encode_changes(call), timeout_s=POLL_S + SILENCE_S
        )
        return asyncio.ensure_future(_decoded(asked))


async def _decoded(asked: asyncio.Future[bytes]) -> ChangesReply:
    return wire.decode_changes_reply(await asked)


def _nothing(_data: bytes) -> None:
    return None


def _offset_changes(data: bytes) -> list[OffsetChange]:
    return [
        OffsetChange(change.partition, change.old_offset if change.HasField("old_offset") else None, change.new_offset)
        for change in group_pb2.ResetOffsetsResponse.FromString(data).changes
    ]


def _outcome_unknown() -> PostbusError:
    return PostbusError(
        Reason.ERROR_REASON_TIMEOUT,
        "the group's coordinator went while it was asked: it may have happened or not; look, then try again",
    )
