"""A Subscribe stream that is a member of an ordered group.

Speaks to the coordinator on the member's behalf, as a smart client would with Heartbeat and CommitOffsets: reports
what it owns, takes what it is given, gives up what it is asked for once that is acknowledged. One task speaks to the
coordinator, in order: commits first, so that what was acknowledged counts before a partition passes on.

A coordinator that moves is the client's business (`groups.client`); when it is nowhere for long, acknowledgements are
kept here and delivery goes on for one window.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from postbus.v1 import record_pb2, subscriber_pb2

from broker import errors
from broker.errors import PostbusError, Reason
from broker.groups.ack_tracker import AckTracker
from broker.groups.calls import Assigned, CommitEntry, HeartbeatCall, HeartbeatReply
from broker.groups.client import CoordinatorClient
from broker.groups.records import PartitionKey
from broker.services import delivery, positions, requests
from broker.services.adapter import ServerStream
from broker.services.cursor import Cursor
from broker.services.subscribe_start import Plan
from broker.services.subscription import Subscription, Surroundings, check_seek, named, position_of

NACK_DELAY_MIN_S: Final = 1.0
NACK_DELAY_MAX_S: Final = 60.0
NACK_REASON_CHARS_MAX: Final = 1024
LEFT_MEMBERS_MAX: Final = 1000
# Between two tries to reach a coordinator that could not be reached within the client's time.
COORDINATOR_RETRY_S: Final = 0.5
# So much later than planned, a timer tells that this process was stopped: its members may have lost everything.
STOPPED_S: Final = 3.0
WATCH_INTERVAL_S_MAX: Final = 5.0
HIGH_WATERMARK_WAIT_S: Final = 5.0


@dataclass(slots=True)
class Membership:
    """What a member was sent and has acknowledged; outlives its stream, so that late acknowledgements count."""

    trackers: dict[PartitionKey, AckTracker] = field(default_factory=dict)
    # Where deliveries of earlier streams of this member ended, under the same fence.
    earlier_ends: dict[PartitionKey, tuple[int, int]] = field(default_factory=dict)


class Memberships:
    """All of this node; those whose stream is gone are forgotten, oldest first, beyond a bound."""

    def __init__(self) -> None:
        self._live: dict[tuple[str, str], GroupSession] = {}
        self._left: OrderedDict[tuple[str, str], Membership] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    def arrive(self, session: "GroupSession") -> Membership:
        """The member's stream is here (again)."""
        key = (session.plan.group, session.member_id)
        replaced = self._live.get(key)
        self._live[key] = session
        earlier = replaced.membership if replaced is not None else self._left.pop(key, None)
        membership = Membership()
        if earlier is not None:
            for partition, tracker in earlier.trackers.items():
                membership.earlier_ends[partition] = (tracker.fence, tracker.sent_end_offset)
        return membership

    def leave(self, session: "GroupSession") -> None:
        """Its stream ended."""
        key = (session.plan.group, session.member_id)
        if self._live.get(key) is session:
            del self._live[key]
            self._left[key] = session.membership
            while len(self._left) > LEFT_MEMBERS_MAX:
                self._left.popitem(last=False)

    def find(self, group: str, member_id: str) -> "GroupSession | Membership | None":
        """The stream, or what is left of it."""
        return self._live.get((group, member_id)) or self._left.get((group, member_id))


class WindowLimit:
    """At most so much delivered and not acknowledged; overdrawn by one batch at most."""

    def __init__(self, plan: Plan, trackers: Mapping[PartitionKey, AckTracker]) -> None:
        self._records_max = plan.window_records
        self._bytes_max = plan.window_bytes
        self._trackers = trackers
        # What is left at least: acknowledgements only add to it. To ask a thousand trackers for each batch would
        # hold up the loop, so they are asked again only once this is used up.
        self._records_left = 0
        self._bytes_left = 0
        # True: acknowledgements can't be committed now, and so give no room for more.
        self.frozen = False

    def open(self) -> bool:
        if (self._records_left <= 0 or self._bytes_left <= 0) and not self.frozen:
            trackers = self._trackers.values()
            self._records_left = self._records_max - sum(tracker.outstanding_records for tracker in trackers)
            self._bytes_left = self._bytes_max - sum(tracker.outstanding_bytes for tracker in trackers)
        return self._records_left > 0 and self._bytes_left > 0

    def spend(self, records: int, size_bytes: int) -> None:
        """For what the trackers count as sent."""
        self._records_left -= records
        self._bytes_left -= size_bytes


class GroupSession(Subscription):
    """A member's stream."""

    def __init__(
        self,
        stream: ServerStream,
        plan: Plan,
        surroundings: Surroundings,
        *,
        coordinator: CoordinatorClient,
        memberships: Memberships,
    ) -> None:
        super().__init__(stream, plan, surroundings)
        self._coordinator = coordinator
        self._memberships = memberships
        self.member_id = ""
        self._member_epoch = 0
        self.membership = Membership()
        self._joined = False
        self._changed = False
        self._commits: dict[PartitionKey, CommitEntry] = {}
        self._on_their_way: list[list[CommitEntry]] = []
        self._committed: dict[PartitionKey, tuple[int, int]] = {}
        self._retries: dict[PartitionKey, tuple[int, int]] = {}
        self._attention = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._static_leave = False
        self._ticked_at = surroundings.clock.monotonic()
        self._tick_s = min(plan.processing_timeout_s / 4, WATCH_INTERVAL_S_MAX)
        self._unsure = False  # whether it still holds what it did
        self._checks: set[asyncio.Task[None]] = set()

    # --- joining and leaving ---

    async def begin(self) -> None:
        """Joins the group and takes what it is given."""
        plan = self.plan
        for name, selector in plan.selectors.items():
            topic = self.surroundings.partitions.topic(name)
            for position in selector.positions:
                topic.partition(position.partition)
        reply = await self._join(
            HeartbeatCall(
                group=plan.group,
                member_id=plan.member_id,
                instance_id=plan.instance_id,
                client_id=plan.client_id,
                peer=self.stream.peer,
                topics=tuple(plan.selectors),
                processing_timeout_ms=round(plan.processing_timeout_s * 1000),
                rack=plan.rack,
                stream=True,
                start_at={
                    name: selector.start_at if selector.start_at.WhichOneof("at") else plan.start_at
                    for name, selector in plan.selectors.items()
                },
                start_positions={
                    (name, position.partition): position.offset
                    for name, selector in plan.selectors.items()
                    for position in selector.positions
                },
                group_kind=plan.group_kind,
                node_id=self.surroundings.settings.node_id,
            )
        )
        self.member_id, self._member_epoch = reply.member_id, reply.member_epoch
        self._joined = True
        self.membership = self._memberships.arrive(self)
        if not plan.explicit_credit:
            self.flow = WindowLimit(plan, self.membership.trackers)
        self._coordinator.watch(plan.group, self.member_id, self._on_change)
        started = subscriber_pb2.SubscribeStarted(
            node_id=self.surroundings.settings.node_id,
            member_id=self.member_id,
            group_kind=subscriber_pb2.GROUP_KIND_ORDERED,
        )
        started.heartbeat_interval.FromMilliseconds(round(plan.heartbeat_interval_s * 1000))
        self.events.started.CopyFrom(started)
        self.emit()
        self._apply(reply)
        owner = asyncio.current_task()
        assert owner is not None
        self._tasks = [asyncio.create_task(self._coordinate()), asyncio.create_task(self._watch_processing(owner))]

    async def _join(self, call: HeartbeatCall) -> HeartbeatReply:
        """The coordinator's node may not have heard yet of topics that this one knows."""
        catch_up = self.surroundings.catch_up
        if catch_up is None:
            return await self._coordinator.heartbeat(call)
        return await catch_up.again(lambda: self._coordinator.heartbeat(call))

    async def finish(self) -> None:
        """A half-close: commits what was acknowledged, then leaves; a static member keeps its place unless it says."""
        # What is on its way may go to a coordinator that moves, and nobody repeats it once this stream is gone.
        for entries in reversed(self._on_their_way):
            self._keep(entries)
        await self._commit_pending()
        if not self.plan.instance_id or self._static_leave:
            await self._leave_group()

    async def leave(self) -> None:
        """The stream ended: the member has half a second to come back, unless it left."""
        for task in (*self._tasks, *self._checks):
            task.cancel()
        if self._joined:
            self._coordinator.unwatch(self.plan.group, self.member_id, self._on_change)
            self._memberships.leave(self)
            # Whatever was said before: where the coordinator still has the member, nobody else would end it.
            self._coordinator.disconnected(self.plan.group, self.member_id, self._member_epoch)

    async def _leave_group(self) -> None:
        await self._coordinator.heartbeat(
            HeartbeatCall(
                group=self.plan.group,
                member_id=self.member_id,
                member_epoch=self._member_epoch,
                instance_id=self.plan.instance_id,
                leave=True,
                stream=True,
            )
        )

    def topics_changed(self) -> None:
        """The coordinator tells what that means for the group; a topic that went ends the stream."""
        for name in self.plan.selectors:
            if self.surroundings.partitions.find_name(name) is None:
                self.fail(errors.topic_not_found(name))

    # --- the coordinator ---

    def _on_change(self) -> None:
        self._changed = True
        self._attention.set()

    async def _coordinate(self) -> None:
        try:
            while True:
                await self._attention.wait()
                self._attention.clear()
                try:
                    await self._commit_pending()
                    if self._changed:
                        self._changed = False
                        await self._heartbeat_coordinator()
                    self._freeze(False)
                except PostbusError as error:
                    if not error.kind.retriable:
                        raise
                    self._freeze(True)
                    self._on_change()
                    await asyncio.sleep(COORDINATOR_RETRY_S)
        except Exception as error:
            self.fail(error)

    def _freeze(self, frozen: bool) -> None:
        if isinstance(self.flow, WindowLimit) and self.flow.frozen != frozen:
            self.flow.frozen = frozen
            self.wake()

    async def _heartbeat_coordinator(self) -> None:
        reply = await self._coordinator.heartbeat(
            HeartbeatCall(
                group=self.plan.group,
                member_id=self.member_id,
                member_epoch=self._member_epoch,
                instance_id=self.plan.instance_id,
                owned=frozenset(self.cursors),
                stream=True,
            )
        )
        self._member_epoch = reply.member_epoch
        self._unsure = False
        self._apply(reply)
        self.wake()

    def _collect(self) -> list[delivery.Buffer]:
        """After this process was stopped for long others may own the partitions: asks before it sends more of them."""
        if not self._unsure and self._late():
            self._unsure = True
            self._on_change()
        return [] if self._unsure else super()._collect()

    def _late(self) -> bool:
        now = self.surroundings.clock.monotonic()
        late, self._ticked_at = now - self._ticked_at > self._tick_s + STOPPED_S, now
        return late

    def _apply(self, reply: HeartbeatReply) -> None:
        """Takes and gives up partitions as the target says."""
        change = subscriber_pb2.AssignmentChange(group_epoch=reply.group_epoch)
        for key in reply.lost:
            if key in self.cursors:
                change.lost.extend(named([self._drop(self.cursors[key])]))
        target = {assigned.key: assigned for assigned in reply.target}
        for key, cursor in list(self.cursors.items()):
            if key not in target and not cursor.revoking:
                cursor.revoking = True
                change.revoking.extend(named([cursor]))
        for key, assigned in target.items():
            known = self.cursors.get(key)
            if known is not None and known.fence == assigned.fence:
                known.revoking = False
                self.queue(known)
            elif (taken := self._take(assigned, known)) is not None:
                change.assigned.append(position_of(taken, taken.next_offset))
        if change.assigned or change.revoking or change.lost:
            self.events.assignment_change.CopyFrom(change)
            self.emit()
        self._release_finished()

    def _take(self, assigned: Assigned, known: Cursor | None) -> Cursor | None:
        if known is not None:
            self._drop(known)
        topic = self.surroundings.partitions.find(assigned.topic_id)
        if topic is None or assigned.partition >= len(topic.partitions):
            # This node has not heard of it yet, or the coordinator not of its end: one of them soon has.
            asyncio.get_running_loop().call_later(COORDINATOR_RETRY_S, self._on_change)
            return None
        partition = topic.partitions[assigned.partition]
        tracker = AckTracker(start_offset=assigned.offset, fence=assigned.fence)
        self.membership.trackers[assigned.key] = tracker
        cursor = Cursor(partition, next_offset=assigned.offset, fence=assigned.fence, tracker=tracker)
        cursor.paused = self.plan.assign_paused
        self.add_cursor(cursor)
        if assigned.offset > partition.high_watermark:
            check = asyncio.create_task(self._check_offset(cursor, assigned.offset))
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)
        return cursor

    async def _check_offset(self, cursor: Cursor, offset: int) -> None:
        """The group is past what this node knows of the partition: its leader says whether that is there."""
        try:
            end_offset = await cursor.partition.fresh_high_watermark(HIGH_WATERMARK_WAIT_S)
        except PostbusError:
            return  # nothing is to be read then, either
        if offset > end_offset and self.cursors.get(cursor.key) is cursor and cursor.next_offset == offset:
            self.fail(positions.out_of_range(cursor.partition, offset))

    def _drop(self, cursor: Cursor) -> Cursor:
        self.remove_cursor(cursor)
        self.membership.trackers.pop(cursor.key, None)
        self._commits.pop(cursor.key, None)
        return cursor

    def _release_finished(self) -> None:
        """Passes on what is being revoked and acknowledged to the end."""
        done = [
            cursor
            for cursor in self.cursors.values()
            if cursor.revoking and cursor.tracker is not None and cursor.tracker.all_done()
        ]
        if done:
            self._pass_on(done)

    def _pass_on(self, cursors: list[Cursor]) -> None:
        for cursor in cursors:
            # Its last commit may still be to be made: that stays.
            self.remove_cursor(cursor)
            self.membership.trackers.pop(cursor.key, None)
        change = subscriber_pb2.AssignmentChange()
        change.revoked.extend(named(cursors))
        self.events.assignment_change.CopyFrom(change)
        self.emit()
        self._on_change()

    # --- acknowledging ---

    async def handle(self, request: subscriber_pb2.SubscribeRequest) -> None:
        """Carries out a request, in the order of its fields."""
        for index, ack in enumerate(request.acks):
            self._acknowledge_in_band(f"acks[{index}]", ack)
        for index, nack in enumerate(request.nacks):
            await self._nack(f"nacks[{index}]", nack)
        self.handle_credit(request)
        for index, seek in enumerate(request.seeks):
            await self._seek(f"seeks[{index}]", seek)
        self.handle_pauses(request)
        for index, release in enumerate(request.release):
            released = self._held(f"release[{index}]", release)
            # It may have become the member's again, or gone, before the command came.
            if released is not None and released.revoking:
                self._pass_on([released])
        self.echo(request)
        if request.leave:
            self._static_leave = True
            self.half_close()

    def _acknowledge_in_band(self, field: str, ack: subscriber_pb2.Delivery) -> None:
        try:
            self.acknowledge(field, ack)
        except PostbusError as error:
            if error.reason != Reason.ERROR_REASON_ASSIGNMENT_LOST:
                raise
            self.events.ack_report.rejected.add(delivery=ack, failure=error.failure())
            self.note_event()

    def acknowledge(self, field: str, ack: subscriber_pb2.Delivery) -> PartitionKey:
        """Counts an acknowledgement; raises ASSIGNMENT_LOST for a stale one."""
        key = self._key_of(field, ack)
        tracker = self.membership.trackers.get(key)
        if tracker is None:
            raise assignment_lost(ack)
        fence, earlier_end = self.membership.earlier_ends.get(key, (0, 0))
        if ack.fence == fence == tracker.fence and tracker.sent_end_offset < ack.end_offset <= earlier_end:
            return key  # delivered on an earlier stream, and about to be sent again
        try:
            news = tracker.acknowledge(
                ack.base_offset, ack.end_offset, fence=ack.fence, now=self.surroundings.clock.monotonic()
            )
        except PostbusError as error:
            raise _at(error, field) from error
        if news:
            self._note_commit(key, tracker)
        if tracker.all_done():
            self._release_finished()
        self.wake()
        return key

    def _key_of(self, field: str, ack: subscriber_pb2.Delivery) -> PartitionKey:
        check_delivery(field, ack)
        topic = self.surroundings.partitions.find_name(ack.topic)
        if topic is None:
            raise assignment_lost(ack)
        return (topic.topic_id, ack.partition)

    def _note_commit(self, key: PartitionKey, tracker: AckTracker) -> None:
        if self._committed.get(key) == (tracker.fence, tracker.commit_offset):
            return
        self._committed[key] = (tracker.fence, tracker.commit_offset)
        self._commits[key] = CommitEntry(key[0], key[1], tracker.commit_offset, tracker.fence)
        self._attention.set()

    async def _commit_pending(self) -> bool:
        """Whether all of it counted."""
        all_counted = True
        while self._commits:
            entries, self._commits = list(self._commits.values()), {}
            self._on_their_way.append(entries)
            try:
                outcomes = await self._coordinator.commit(self.plan.group, self.member_id, entries)
            except PostbusError:
                self._keep(entries)
                raise
            finally:
                self._on_their_way.remove(entries)
            for entry, outcome in zip(entries, outcomes, strict=True):
                self._report_commit(entry, outcome)
                all_counted = all_counted and outcome is None
        return all_counted

    def _keep(self, entries: list[CommitEntry]) -> None:
        """They are still to be made, unless newer ones came."""
        for entry in entries:
            self._commits.setdefault((entry.topic_id, entry.partition), entry)

    def _report_commit(self, entry: CommitEntry, outcome: PostbusError | None) -> None:
        topic = self.surroundings.partitions.find(entry.topic_id)
        if topic is None:
            return
        if outcome is None:
            if self.plan.report_acks:
                self.events.ack_report.committed.add(topic=topic.name, partition=entry.partition, offset=entry.offset)
                self.note_event()
            return
        rejected = self.events.ack_report.rejected.add(failure=outcome.failure())
        rejected.delivery.topic = topic.name
        rejected.delivery.partition = entry.partition
        rejected.delivery.end_offset = entry.offset
        rejected.delivery.fence = entry.fence
        self.note_event()

    async def acknowledge_now(self, ack: subscriber_pb2.Delivery, field: str) -> int:
        """For the unary call: the committed offset, once it is durable."""
        # The last one of a partition that is being given up ends its tracker.
        tracker = self.membership.trackers.get(self._key_of(field, ack))
        key = self.acknowledge(field, ack)
        assert tracker is not None
        # In its own words, although the stream may be about to commit the same: its outcome is this call's answer.
        entry = CommitEntry(key[0], key[1], tracker.commit_offset, tracker.fence)
        outcome = (await self._coordinator.commit(self.plan.group, self.member_id, [entry]))[0]
        if outcome is not None:
            raise outcome
        return entry.offset

    async def before_batches(self) -> bool:
        """At most once: what is about to be sent is committed first, and what was refused belongs to somebody else."""
        return not self.plan.acks_on_send or await self._commit_pending()

    def account(self, cursor: Cursor, piece: delivery.Piece, records: int, size_bytes: int) -> None:
        """Counts what goes out."""
        tracker = cursor.tracker
        assert tracker is not None
        now = self.surroundings.clock.monotonic()
        tracker.sent(piece.base_offset, piece.end_offset, record_count=records, size_bytes=size_bytes, now=now)
        if self.plan.acks_on_send:
            tracker.acknowledge(piece.base_offset, piece.end_offset, fence=tracker.fence, now=now)
            self._note_commit(cursor.key, tracker)

    def passed_over(self, cursor: Cursor, end: int) -> None:
        """What retention took needs no acknowledgement."""
        if cursor.tracker is not None and end >= cursor.tracker.sent_end_offset:
            cursor.tracker.passed(end)
            self._note_commit(cursor.key, cursor.tracker)

    # --- moving ---

    async def _nack(self, field: str, nack: subscriber_pb2.Nack) -> None:
        if nack.action == subscriber_pb2.NACK_ACTION_DEAD_LETTER:
            raise errors.unknown_field(f"{field}.action", "this version has no dead letters")
        requests.check_label(f"{field}.reason", nack.reason, chars_max=NACK_REASON_CHARS_MAX)
        key = self._key_of(f"{field}.delivery", nack.delivery)
        tracker = self.membership.trackers.get(key)
        cursor = self.cursors.get(key)
        try:
            if tracker is None or cursor is None:
                raise assignment_lost(nack.delivery)
            try:
                tracker.check(nack.delivery.base_offset, nack.delivery.end_offset, fence=nack.delivery.fence)
            except PostbusError as error:
                raise _at(error, f"{field}.delivery") from error
            if cursor.revoking:
                # To seek would take it back from its next owner, who gets what is not acknowledged anyway.
                self._pass_on([cursor])
                return
            delay_s = self._nack_delay_s(field, nack, key, tracker.commit_offset)
            # What is acknowledged by now counts before the place is chosen: it must not go back behind that.
            await self._commit_pending()
            # Whatever is out of this partition comes again, from the first that is not acknowledged: order is kept.
            await self._move_group(cursor, tracker.commit_offset, delay_s=delay_s)
        except PostbusError as error:
            if error.reason != Reason.ERROR_REASON_ASSIGNMENT_LOST:
                raise
            self.events.ack_report.rejected.add(delivery=nack.delivery, failure=error.failure())
            self.note_event()

    def _nack_delay_s(self, field: str, nack: subscriber_pb2.Nack, key: PartitionKey, offset: int) -> float:
        at, count = self._retries.get(key, (-1, 0))
        count = count + 1 if at == offset else 0
        self._retries[key] = (offset, count)
        if nack.HasField("delay"):
            return requests.seconds(f"{field}.delay", nack.delay, maximum=3600.0)
        return min(NACK_DELAY_MIN_S * 2.0 ** min(count, 10), NACK_DELAY_MAX_S)

    async def _seek(self, field: str, seek: subscriber_pb2.Seek) -> None:
        cursor = self._held(f"{field}.partition", seek.partition)
        check_seek(field, seek)
        target = subscriber_pb2.Delivery(topic=seek.partition.topic, partition=seek.partition.partition)
        try:
            if cursor is None or cursor.revoking:
                raise assignment_lost(target)
            wanted = await positions.resolve_start(cursor.partition, seek.to, self.surroundings.clock)
            offset = positions.within_range(cursor.partition, wanted, self.plan.out_of_range)
            await self._commit_pending()
            await self._move_group(cursor, offset)
        except PostbusError as error:
            if error.reason != Reason.ERROR_REASON_ASSIGNMENT_LOST:
                raise
            self.events.ack_report.rejected.add(delivery=target, failure=error.failure())
            self.note_event()
            return
        if offset != wanted:
            self.skipped(cursor, wanted, offset)

    def handle_pauses(self, request: subscriber_pb2.SubscribeRequest) -> None:
        """Stops and goes on; partitions that went meanwhile need neither."""
        for name, paused in (("pause", True), ("resume", False)):
            for index, place in enumerate(getattr(request, name)):
                cursor = self._held(f"{name}[{index}]", place)
                if cursor is not None:
                    cursor.paused = paused
                    self.queue(cursor)

    def _held(self, field: str, place: record_pb2.TopicPartition) -> Cursor | None:
        """The cursor of a partition of the group's; None: it is not held now, which the member may not know yet."""
        key = self.check_place(field, place)
        if place.topic not in self.plan.selectors:
            raise errors.invalid_field(field, f"{place.topic!r} is not among the topics of this stream")
        return self.cursors.get(key)

    async def _move_group(self, cursor: Cursor, offset: int, *, delay_s: float = 0.0) -> None:
        """Moves the committed offset; what was sent before is stale from now on. Nothing is to be committed."""
        cursor.paused, paused = True, cursor.paused
        key = cursor.key
        assigned = await self._coordinator.seek(self.plan.group, self.member_id, key[0], key[1], offset, cursor.fence)
        # Meanwhile a heartbeat may have told of the new fence first, asked for the partition, or taken it.
        moved = self.cursors.get(key)
        if moved is cursor:
            if cursor.revoking:
                self._pass_on([cursor])  # its next owner begins at the new place
                return
            moved = self._take(assigned, cursor)
        if moved is None or moved.fence != assigned.fence:
            return
        moved.paused = paused
        self.queue(moved)
        if delay_s > 0:
            moved.delayed = True
            asyncio.get_running_loop().call_later(delay_s, self._go_on, moved)

    def _go_on(self, cursor: Cursor) -> None:
        if self.cursors.get(cursor.key) is cursor:
            cursor.delayed = False
            self.queue(cursor)

    # --- members that hang ---

    async def _watch_processing(self, owner: asyncio.Task[Any]) -> None:
        timeout_s = self.plan.processing_timeout_s
        while True:
            await asyncio.sleep(self._tick_s)
            now = self.surroundings.clock.monotonic()
            if self._late():
                self._unsure = True
                self._on_change()
            late = [
                cursor
                for cursor in self.cursors.values()
                if cursor.tracker is not None
                and cursor.tracker.waiting_since is not None
                and now - cursor.tracker.waiting_since > timeout_s
            ]
            if not late:
                continue
            # Those being given up go to their next owner; if it should have kept any, the member is out.
            expelled = not all(cursor.revoking for cursor in late)
            fences = {cursor.key: cursor.fence for cursor in late}
            try:
                await self._coordinator.processing_timed_out(
                    self.plan.group, self.member_id, self._member_epoch, fences
                )
            except PostbusError:
                continue  # the groups log takes nothing now; the member is as late the next time
            if expelled:
                await self._expelled(owner, timeout_s)
                return

    async def _expelled(self, owner: asyncio.Task[Any], timeout_s: float) -> None:
        error = PostbusError(
            Reason.ERROR_REASON_PROCESSING_TIMEOUT,
            f"nothing was acknowledged for {timeout_s:g} s while records were out; the partitions went to other"
            " members: raise processing_timeout, or take smaller windows",
        )
        self.fail(error)
        if self.stream.writing_since is not None:
            # It does not read either: the pump is stuck and will not see the failure.
            await self.stream.end_unread(owner, error)


def _at(error: PostbusError, field: str) -> PostbusError:
    """The same error with the path of the request's field, which the tracker does not know."""
    if not error.field:
        return error
    return PostbusError(error.reason, error.message, field=field, metadata=error.metadata)


def check_delivery(field: str, delivery: subscriber_pb2.Delivery) -> None:
    """A delivery names a range of one partition."""
    requests.check_name(f"{field}.topic", delivery.topic)
    for name in ("partition", "base_offset", "end_offset"):
        if not delivery.HasField(name):
            raise errors.invalid_field(f"{field}.{name}", "is required; send the delivery back as it came")
    if delivery.partition < 0:
        raise errors.invalid_field(f"{field}.partition", f"{delivery.partition} is negative")
    requests.check_offset(f"{field}.base_offset", delivery.base_offset)
    if delivery.end_offset < delivery.base_offset:
        raise errors.invalid_field(f"{field}.end_offset", "is before base_offset")


def assignment_lost(delivery: subscriber_pb2.Delivery) -> PostbusError:
    """ABORTED: the partition is not (any more) this member's."""
    return PostbusError(
        Reason.ERROR_REASON_ASSIGNMENT_LOST,
        f"{delivery.topic}/{delivery.partition} does not belong to this member any more; another one gets the records",
    )
