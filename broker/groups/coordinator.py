"""The coordinator of the groups of one groups log. Decides by pure functions, answers when it is durable.

Owns the order of things in each request: check, decide, write and replay without an `await` in between; then wait;
then look again, because a member may have been replaced meanwhile. Groups themselves, their timers and their log are
the driver's. It waits as long as its caller does: deadlines are the client's (`client`).
"""

import asyncio
import dataclasses
import secrets
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from postbus.v1 import group_pb2, subscriber_pb2

from broker import errors
from broker.clock import Clock
from broker.controller import names
from broker.errors import PostbusError, Reason
from broker.groups import descriptions, membership, offsets
from broker.groups.calls import (
    PROCESSING_TIMEOUT_MS_DEFAULT,
    Assigned,
    CommitEntry,
    HeartbeatCall,
    HeartbeatReply,
    OffsetChange,
    Topic,
)
from broker.groups.driver import CoordinatorSettings, GroupDriver, Topics
from broker.groups.group import SETTINGS_DEFAULT, Group, member_replaced
from broker.groups.group_config import changed_config, check_config, check_kind
from broker.groups.journal import CallLater, GroupsPartition, Journal
from broker.groups.records import SETTINGS, Member, PartitionKey, Record, Settings

LIST_PAGE_SIZE_DEFAULT = 100
LIST_PAGE_SIZE_MAX = 1_000
# A first heartbeat waits so long for the starts of its partitions; after that `watch` tells.
RESOLVE_WAIT_S = 1.0


class GroupCoordinator:
    """The groups of one log, in one epoch of its leader. On the loop only."""

    def __init__(
        self,
        partition: GroupsPartition,
        topics: Topics,
        *,
        clock: Clock,
        call_later: CallLater,
        settings: CoordinatorSettings | None = None,
        node_id: int = 1,
        new_member_id: Callable[[], str] = lambda: secrets.token_hex(12),
        groups_elsewhere: Callable[[], int] = lambda: 0,
    ) -> None:
        """partition: this node leads it. call_later: as of the loop. new_member_id: never the same twice.

        groups_elsewhere: groups of this node's other coordinators, which count as well.
        """
        self.settings = settings or CoordinatorSettings()
        self._journal = Journal(partition, call_later=call_later)
        self._driver = GroupDriver(self._journal, topics, clock=clock, call_later=call_later, settings=self.settings)
        self._topics = topics
        self._node_id = node_id
        self._new_member_id = new_member_id
        self._groups_elsewhere = groups_elsewhere

    @property
    def group_count(self) -> int:
        """Groups of this log."""
        return len(self._driver.groups)

    async def start(self) -> None:
        """Loads the groups. Call once, when the topics are known. Raises StorageError, GroupLogError, NO_LEADER."""
        await self._driver.start()

    def flush(self) -> None:
        """What was decided is handed to the log, now."""
        self._driver.journal.flush()

    def stop(self) -> list[asyncio.Task[None]]:
        """Calls that wait and later ones are UNAVAILABLE; returns tasks that are about to end.

        What was decided is handed to the log, if this node still leads it.
        """
        return self._driver.stop()

    async def close(self) -> None:
        """The same; returns when it is all over."""
        await asyncio.gather(*self.stop(), return_exceptions=True)

    # --- members

    async def heartbeat(self, call: HeartbeatCall) -> HeartbeatReply:
        """Joins, stays in or leaves a group.

        Raises MEMBER_REPLACED (stop), ASSIGNMENT_LOST (join again), TOPIC_NOT_FOUND, GROUP_KIND_MISMATCH,
        INVALID_FIELD, QUOTA_EXCEEDED (too many groups or members).
        """
        self._journal.check_room()
        if call.leave:
            return await self._leave(call)
        if call.member_epoch == 0:
            return await self._join(call)
        group = self._existing(call.group)
        self._check_topics(call)
        stayed = membership.decide_heartbeat(group, call, now_us=self._driver.now_us())
        self._driver.write(group, stayed.records)
        self._driver.settle(group, released=stayed.released)
        member = group.members[call.member_id]
        self._heard_from(group, member)
        return await self._answer(group, member, call)

    async def _join(self, call: HeartbeatCall) -> HeartbeatReply:
        names.check_name("group", call.group)
        group = self._driver.groups.get(call.group)
        if group is None:
            names.check_user_name("group", call.group)
            if call.group_kind == subscriber_pb2.GROUP_KIND_SHARED:
                raise errors.unknown_field("group_kind", "shared groups come in a later version")
            self._check_group_count()
            group = Group(call.group)
        check_kind(group.name, group.kind, call.group_kind)
        self._check_topics(call)
        call = self._with_processing_timeout(group, call)
        earlier = membership.joined_already(group, call)
        if earlier is not None:
            return await self._answer_again(group, earlier, call)
        new_member_id = call.join_id or self._new_member_id()
        joined = membership.decide_join(group, call, new_member_id=new_member_id, now_us=self._driver.now_us())
        if joined.member.member_id not in group.members and len(group.members) >= self.settings.group_members_max:
            raise _quota(f"group {group.name!r} has {len(group.members)} members, as many as are allowed")
        member = joined.member
        self._driver.write(group, joined.records)
        self._driver.open_session(group, member.member_id)
        self._driver.settle(group, released=joined.released)
        self._heard_from(group, member)
        try:
            resolving = self._driver.resolving(group)
            if resolving is not None:
                await asyncio.wait({resolving}, timeout=RESOLVE_WAIT_S)
            return await self._answer(group, member, call)
        except BaseException:
            # Nobody knows of this membership: it must not stay for ever.
            self.disconnected(group.name, member.member_id, member.member_epoch)
            raise

    async def _answer_again(self, group: Group, member: Member, call: HeartbeatCall) -> HeartbeatReply:
        """The first answer may have been lost, and the member knows nothing; or this call is late, and it does."""
        self._heard_from(group, member)
        reply = await self._answer(group, member, dataclasses.replace(call, member_epoch=member.member_epoch))
        # What it was given and has to give up again it may not know of: it is to say what it holds.
        self._driver.tell(group, member.member_id)
        return reply

    async def _leave(self, call: HeartbeatCall) -> HeartbeatReply:
        group = self._driver.groups.get(call.group) or Group(call.group)
        member = group.members.get(call.member_id)
        if member is not None:
            group.check_member(call.member_id, call.member_epoch, instance_id=call.instance_id)
            self._driver.remove(group, call.member_id)
        elif group.member_of_instance(call.instance_id) is not None:
            raise member_replaced(group.name, call.instance_id)
        await self._journal.durable()
        return HeartbeatReply(call.member_id, call.member_epoch, group.group_epoch, ())

    async def _answer(self, group: Group, member: Member, call: HeartbeatCall) -> HeartbeatReply:
        while True:
            await self._journal.durable()
            # A newer one may have come while we waited.
            group.check_member(member.member_id, member.member_epoch, instance_id=call.instance_id)
            # Or a new fence: without it the partition would look as if it were to be given up.
            if not group.has_fence_from(self._journal.durable_end_offset, member.member_id):
                break
        self._give_up_untold(group, member, call)
        session = self._driver.session(group, member.member_id)
        assert session is not None
        session.dirty = False
        lost = frozenset(
            key
            for key in call.owned or ()
            if (owner := group.owners.get(key)) is None or owner.member_id != member.member_id
        )
        return HeartbeatReply(
            member_id=member.member_id,
            member_epoch=member.member_epoch,
            group_epoch=group.group_epoch,
            target=group.usable(member.member_id, durable_end=self._journal.durable_end_offset),
            lost=lost if call.member_epoch else frozenset(),
        )

    def _give_up_untold(self, group: Group, member: Member, call: HeartbeatCall) -> None:
        """What the member was given and has to give up again before it could be told was never in its hands.

        It will not report it, so nobody else would pass it on.
        """
        held = call.owned if call.member_epoch else frozenset[PartitionKey]()
        if held is None:
            return
        untold = frozenset(key for key in group.revoking(member.member_id) if key not in held)
        if untold:
            self._driver.settle(group, released=untold)

    def _heard_from(self, group: Group, member: Member) -> None:
        if member.heartbeats:
            self._driver.expire_in(group, member, self.settings.session_timeout_ms)
        else:
            self._driver.held(group, member)

    async def member_node(self, group: str, member_id: str) -> int:
        """The node that speaks for a member; 0: there is no such member. Raises GROUP_NOT_FOUND."""
        self._journal.check_leading()
        member = self._existing(group).members.get(member_id)
        return member.node_id if member is not None else 0

    def watch(self, group: str, member_id: str, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the member should send a heartbeat: its target changed, or its membership ended.

        Nothing is missed between a reply and this: what happened since is told at once. While a stream member is
        watched it stays, without heartbeats.
        """
        existing = self._driver.groups.get(group)
        session = self._driver.session(existing, member_id) if existing else None
        if session is not None and existing is not None:
            session.watchers.append(on_change)
            member = existing.members[member_id]
            if not member.heartbeats:
                self._driver.held(existing, member)
        if session is None or session.dirty:
            asyncio.get_running_loop().call_soon(on_change)

    def unwatch(self, group: str, member_id: str, on_change: Callable[[], None]) -> None:
        """The end of `watch`; unknown ones are fine."""
        existing = self._driver.groups.get(group)
        session = self._driver.session(existing, member_id) if existing else None
        if session is not None and existing is not None and on_change in session.watchers:
            session.watchers.remove(on_change)
            self._driver.unwatched(existing, existing.members[member_id])

    def disconnected(self, group: str, member_id: str, member_epoch: int) -> None:
        """The stream ended without leaving: the member has half a second to resume, a static one its timeout."""
        existing = self._driver.groups.get(group)
        member = existing.members.get(member_id) if existing else None
        if existing is None or member is None or member.member_epoch != member_epoch:
            return  # it resumed on another stream, or is gone
        patience_ms = self.settings.member_resume_ms
        if member.instance_id:
            patience_ms = self._driver.static_member_timeout_ms(existing)
        self._driver.expire_in(existing, member, patience_ms)

    async def processing_timed_out(
        self, group: str, member_id: str, member_epoch: int, fences: Mapping[PartitionKey, int]
    ) -> None:
        """A stream member acknowledged nothing in time of partitions that it holds under these fences.

        What it was giving up is lost to it. If it should have kept any, it is removed: end its stream with
        PROCESSING_TIMEOUT. Members without a stream are watched by the coordinator itself.
        """
        self._journal.check_room()
        existing = self._driver.groups.get(group)
        member = existing.members.get(member_id) if existing else None
        if existing is not None and member is not None and member.member_epoch == member_epoch:
            self._driver.take_away(existing, member_id, fences)
        await self._journal.durable()

    # --- offsets

    async def commit(self, group: str, member_id: str, entries: Sequence[CommitEntry]) -> list[PostbusError | None]:
        """Commits; an outcome for each entry, in order: None, ASSIGNMENT_LOST, or what was wrong with it.

        member_id empty: from outside; raises GROUP_NOT_EMPTY unless the group has no members.
        """
        self._journal.check_room()
        self._existing(group)
        if member_id:
            outcomes = [self._check_member_entry(entry) for entry in entries]
        else:
            outcomes = list(await asyncio.gather(*(self._check_outside_entry(entry) for entry in entries)))
            self._journal.check_room()
        existing = self._existing(group)
        good = [entry for entry, wrong in zip(entries, outcomes, strict=True) if wrong is None]
        commits = offsets.decide_commit(existing, member_id, good, now_us=self._driver.now_us())
        self._driver.write(existing, commits.records)
        if member_id and commits.records:
            self._driver.progressed(
                existing, member_id, [(record.topic_id, record.partition) for record in commits.records]
            )
        await self._journal.durable()
        decided = iter(commits.outcomes)
        return [next(decided) if wrong is None else wrong for wrong in outcomes]

    async def seek(  # noqa: PLR0917 - a partition's place, in one order everywhere
        self, group: str, member_id: str, topic_id: str, partition: int, offset: int, fence: int
    ) -> Assigned:
        """Moves the member's place, back or forth, under a new fence. Raises ASSIGNMENT_LOST.

        For redelivery (a Nack) give the first offset that is not acknowledged: `AckTracker.commit_offset`.
        """
        self._journal.check_room()
        existing = self._existing(group)
        key = (topic_id, partition)
        topic = self._topics.by_id(topic_id)
        if topic is None:
            raise offsets.assignment_lost(existing, key, fence)
        if offset < 0:
            raise errors.invalid_field("offset", f"{offset} is negative")
        if not offsets.moved_already(existing, member_id, key, offset, fence=fence):
            self._driver.write(
                existing,
                offsets.decide_seek(existing, member_id, key, offset, fence=fence, now_us=self._driver.now_us()),
            )
            self._driver.follow_revoking(existing, existing.members[member_id])
        new_fence = existing.owners[key].fence
        await self._journal.durable()
        owner = existing.owners.get(key)
        if owner is None or owner.fence != new_fence:
            raise offsets.assignment_lost(existing, key, new_fence)
        return Assigned(topic.name, topic_id, partition, offset, new_fence)

    def _check_member_entry(self, entry: CommitEntry) -> PostbusError | None:
        """The fence tells whether the partition is there and the member's; how far it was delivered others know."""
        if entry.offset < 0:
            return errors.invalid_field("offset", f"{entry.offset} is negative")
        end_offset = self._topics.end_offset(entry.topic_id, entry.partition)
        return _past_the_end(entry.offset, end_offset) if end_offset is not None else None

    async def _check_outside_entry(self, entry: CommitEntry) -> PostbusError | None:
        if entry.offset < 0:
            return errors.invalid_field("offset", f"{entry.offset} is negative")
        try:
            high_watermark = await self._topics.fresh_high_watermark(entry.topic_id, entry.partition)
        except PostbusError as error:
            return error
        return _past_the_end(entry.offset, high_watermark)

    async def reset_offsets(
        self,
        group: str,
        topic: str,
        *,
        partitions: Sequence[int] = (),
        to: subscriber_pb2.StartPosition | None = None,
        shift: int | None = None,
        validate_only: bool = False,
    ) -> list[OffsetChange]:
        """Moves committed offsets of a group without members; exactly one of `to` and `shift`."""
        if (to is None) == (shift is None):
            raise errors.invalid_field("to", "exactly one of `to` and `shift` is required")
        self._journal.check_room()
        existing = self._existing(group)
        offsets.check_empty(existing)
        found = self._topics.by_name(topic)
        if found is None:
            raise errors.topic_not_found(topic)
        places = await self._reset_places(existing, found, partitions, to, shift)
        # Members may have come, the group or the topic may have gone while the places were looked up.
        if self._existing(group) is not existing:
            raise errors.group_not_found(group)
        if self._topics.by_id(found.topic_id) is None:
            raise errors.topic_not_found(topic)
        offsets.check_empty(existing)
        changes = [
            OffsetChange(partition, committed.offset if (committed := existing.committed.get(key)) else None, offset)
            for key, offset in sorted(places.items())
            for partition in (key[1],)
        ]
        if not validate_only:
            self._driver.write(existing, offsets.decide_reset(existing, places, now_us=self._driver.now_us()))
            await self._journal.durable()
        return changes

    async def _reset_places(
        self,
        group: Group,
        topic: Topic,
        partitions: Sequence[int],
        to: subscriber_pb2.StartPosition | None,
        shift: int | None,
    ) -> dict[PartitionKey, int]:
        places: dict[PartitionKey, int] = {}
        for partition in sorted(set(partitions)) or range(topic.partition_count):
            if not 0 <= partition < topic.partition_count:
                raise errors.partition_not_found(topic.name, partition, topic.partition_count)
            key = (topic.topic_id, partition)
            earliest = await self._topics.resolve(*key, subscriber_pb2.StartPosition())
            if to is not None:
                place = await self._topics.resolve(*key, to)
            else:
                committed = group.committed.get(key)
                place = (committed.offset if committed else earliest) + (shift or 0)
            places[key] = min(max(place, earliest), await self._topics.fresh_high_watermark(*key))
        return places

    async def committed_offsets(self, group: str, topics: Collection[str] = ()) -> list[group_pb2.CommittedOffset]:
        """Committed offsets and lag, by topic and partition. topics: only these; empty: all."""
        existing = await self._refreshed(group)
        for topic in topics:
            if self._topics.by_name(topic) is None:
                raise errors.topic_not_found(topic)
        return list(descriptions.describe_offsets(existing, self._topics, only=topics))

    # --- groups

    async def create_group(self, name: str, config: group_pb2.GroupConfig) -> group_pb2.Group:
        """Raises EXISTS, and for settings what `check_config` does."""
        self._journal.check_room()
        names.check_user_name("name", name)
        check_config(config)
        if name in self._driver.groups:
            raise PostbusError(Reason.ERROR_REASON_EXISTS, f"group {name!r} exists already", resource=("group", name))
        self._check_group_count()
        kept = group_pb2.GroupConfig()
        kept.CopyFrom(config)
        kept.kind = config.kind or subscriber_pb2.GROUP_KIND_ORDERED
        group = Group(name)
        self._driver.write(group, [Record(name, SETTINGS, Settings(config=_serialised(kept)))])
        await self._journal.durable()
        return self._describe(group)

    async def get_group(self, name: str) -> group_pb2.Group:
        """With members, offsets and lag."""
        return self._describe(await self._refreshed(name))

    async def list_groups(
        self, *, page_size: int = 0, page_token: str = "", prefix: str = ""
    ) -> tuple[list[group_pb2.Group], str]:
        """Groups by name, without members and offsets, and the token of the next page (empty: no more)."""
        self._journal.check_leading()
        if page_size < 0:
            raise errors.invalid_field("page_size", f"{page_size} is negative")
        page_size = min(page_size or LIST_PAGE_SIZE_DEFAULT, LIST_PAGE_SIZE_MAX)
        # The token is the last name of the page before.
        after = max(page_token, prefix)
        index = bisect_right(self._driver.names, after)
        if after and not page_token and index and self._driver.names[index - 1] == after:
            index -= 1
        page: list[str] = []
        for name in self._driver.names[index : index + page_size + 1]:
            if not name.startswith(prefix):
                break
            page.append(name)
        token = page[page_size - 1] if len(page) > page_size else ""
        return [self._describe(self._driver.groups[name], in_full=False) for name in page[:page_size]], token

    async def update_group(
        self, name: str, config: group_pb2.GroupConfig, paths: Sequence[str] = ()
    ) -> group_pb2.Group:
        """Sets the fields that `paths` name (empty: those set in `config`); unset there: back to the default."""
        self._journal.check_room()
        group = self._existing(name)
        after = changed_config(group.config, config, paths)
        check_config(after)
        before = group.settings or SETTINGS_DEFAULT
        changed = Settings(_serialised(after), before.group_epoch, before.empty_since_us)
        if changed != before:
            self._driver.write(group, [Record(name, SETTINGS, changed)])
        await self._journal.durable()
        return self._describe(group)

    async def delete_group(self, name: str) -> None:
        """And its offsets. Raises GROUP_NOT_EMPTY."""
        self._journal.check_room()
        self._driver.write(self._existing(name), offsets.decide_delete(self._existing(name)))
        await self._journal.durable()

    def topics_changed(self, *, deleted: Collection[str] = (), changed: Collection[str] = ()) -> None:
        """The cluster's topics changed. deleted: topic ids that are gone; changed: names that are new or have grown."""
        self._driver.topics_changed(deleted=deleted, changed=changed)

    def samples(self) -> Iterator[tuple[str, int, dict[str, int], int]]:
        """Name, number of members, lag by topic and epoch of every group, for metrics."""
        for name in self._driver.names:
            group = self._driver.groups[name]
            yield name, len(group.members), descriptions.lag(group, self._topics), group.group_epoch

    async def refresh_lags(self) -> None:
        """For `samples`: asks the leaders of what other nodes alone have how far it is."""
        groups = [self._driver.groups[name] for name in self._driver.names]
        await self._topics.refresh(sorted(set().union(*(_keys(group) for group in groups))))

    # --- checks

    def _existing(self, name: str) -> Group:
        names.check_name("group", name)
        group = self._driver.groups.get(name)
        if group is None:
            raise errors.group_not_found(name)
        return group

    async def _refreshed(self, name: str) -> Group:
        """The group, and lag that means something: its partitions may be led by other nodes."""
        self._journal.check_leading()
        group = self._existing(name)
        await self._topics.refresh(sorted(_keys(group)))
        self._journal.check_leading()
        return self._existing(name)

    def _check_topics(self, call: HeartbeatCall) -> None:
        for topic in call.topics or ():
            if self._topics.by_name(topic) is None:
                raise errors.topic_not_found(topic)

    def _with_processing_timeout(self, group: Group, call: HeartbeatCall) -> HeartbeatCall:
        limit_ms = self.settings.processing_timeout_ms_max
        if group.config.HasField("max_processing_timeout"):
            limit_ms = group.config.max_processing_timeout.ToMilliseconds()
        if call.processing_timeout_ms == PROCESSING_TIMEOUT_MS_DEFAULT:
            # Not asked for: a group that allows less is no reason to refuse.
            return dataclasses.replace(call, processing_timeout_ms=min(limit_ms, PROCESSING_TIMEOUT_MS_DEFAULT))
        if not 0 < call.processing_timeout_ms <= limit_ms:
            raise errors.invalid_field(
                "processing_timeout", f"{call.processing_timeout_ms} ms is not within 1 ms and {limit_ms} ms"
            )
        return call

    def _check_group_count(self) -> None:
        count = self.group_count + self._groups_elsewhere()
        if count >= self.settings.groups_max:
            raise _quota(f"this node coordinates {count} groups, as many as are allowed")

    def _describe(self, group: Group, *, in_full: bool = True) -> group_pb2.Group:
        return descriptions.describe(group, self._topics, self.settings, node_id=self._node_id, in_full=in_full)


def _serialised(config: group_pb2.GroupConfig) -> bytes:
    return config.SerializeToString(deterministic=True)


def _past_the_end(offset: int, end_offset: int) -> PostbusError | None:
    if offset <= end_offset:
        return None
    return PostbusError(
        Reason.ERROR_REASON_OFFSET_OUT_OF_RANGE,
        f"offset {offset} is past the end of what may be read, {end_offset}",
        field="offset",
        metadata={"offset": offset, "latest": end_offset},
    )


def _quota(message: str) -> PostbusError:
    return PostbusError(Reason.ERROR_REASON_QUOTA_EXCEEDED, message, retry_after_ms=10_000)


def _keys(group: Group) -> set[PartitionKey]:
    """Partitions that it reads, or has read."""
    keys = {(topic.topic_id, number) for topic in group.wanted_topics() for number in range(topic.partition_count)}
    return keys | group.committed.keys()
