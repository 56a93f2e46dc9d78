"""The loop between decisions and the log: writes their records, replays them, settles the group, tells who must know.

Owns all groups of one groups log and what is volatile about members: timers and watchers. It decides nothing itself,
and answers nobody: `coordinator` does. Nothing here awaits between a decision and its replay.
"""

import asyncio
import logging
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from postbus.v1 import subscriber_pb2

from broker.clock import Clock
from broker.errors import PostbusError
from broker.groups import membership, records
from broker.groups.calls import Topic
from broker.groups.group import Group
from broker.groups.journal import CallLater, Journal, Timer
from broker.groups.membership import Stayed
from broker.groups.offsets import decide_expiry, decide_topic_deleted, topic_ids_of
from broker.groups.records import Member, PartitionKey, Record
from broker.storage.errors import StorageError

logger = logging.getLogger(__name__)

RESOLVE_RETRY_S = 1.0
# Starts of partitions that are looked up at once; each may be a question to another node.
RESOLVE_AT_ONCE = 32
# Groups that a start settles before others have their turn on the loop.
SETTLE_A_TURN = 20


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """Times and bounds; a group's own settings win where it has them."""

    member_resume_ms: int = 500
    """How long a member whose stream broke may resume."""
    member_resume_after_node_loss_ms: int = 10_000
    """The same when the node that held the stream went silent, or the group came to another coordinator."""
    session_timeout_ms: int = 45_000
    """A member without a stream is removed after so long without a heartbeat."""
    static_member_timeout_ms: int = 45_000
    """How long an absent static member keeps its partitions."""
    processing_timeout_ms_max: int = 3_600_000
    """Longest processing timeout that a member may ask for."""
    offset_retention_us: int | None = 30 * 24 * 3600 * 1_000_000
    """How long offsets outlive the last member. None: for ever."""
    expiry_check_interval_ms: int = 600_000
    """How often expired offsets are looked for."""
    group_members_max: int = 1_000
    """Most members of one group."""
    groups_max: int = 10_000
    """Most groups of one groups log."""


class Topics(Protocol):
    """What groups need to know of topics; given by the node."""

    def by_name(self, name: str) -> Topic | None:
        """The topic that has this name now."""

    def by_id(self, topic_id: str) -> Topic | None:
        """The topic, if it still exists."""

    def resolve(self, topic_id: str, partition: int, start: subscriber_pb2.StartPosition) -> Awaitable[int]:
        """The offset of a place; an unset one is EARLIEST. Raises PostbusError."""

    def high_watermark(self, topic_id: str, partition: int) -> int:
        """End of what may be read, as far as this node knows. Raises PostbusError for a partition that isn't there."""

    def fresh_high_watermark(self, topic_id: str, partition: int) -> Awaitable[int]:
        """The same as its leader knows it now. Raises PostbusError."""

    def refresh(self, keys: Sequence[PartitionKey]) -> Awaitable[None]:
        """Asks the leaders of these for their high watermarks; those that do not answer soon stay as they are."""

    def end_offset(self, topic_id: str, partition: int) -> int | None:
        """The log's end, if this node leads it: nothing was ever delivered beyond. None: others know."""


class Session:
    """What is volatile about a member: who wants to hear of changes, and its timers."""

    __slots__ = ("dirty", "expires_at", "revoking", "revoking_timer", "timer", "timer_at", "watchers")

    def __init__(self) -> None:
        self.watchers: list[Callable[[], None]] = []
        self.dirty = False  # something changed since the last reply
        self.timer: Timer | None = None
        self.timer_at = 0.0
        self.expires_at: float | None = None  # None: a stream holds it
        self.revoking: dict[PartitionKey, tuple[int, float]] = {}  # fence, deadline; of members without a stream
        self.revoking_timer: Timer | None = None

    def cancel(self) -> None:
        """Stops its timers."""
        for timer in (self.timer, self.revoking_timer):
            if timer is not None:
                timer.cancel()
        self.timer = self.revoking_timer = None


class GroupDriver:
    """All groups of one log. On the loop only."""

    def __init__(
        self,
        journal: Journal,
        topics: Topics,
        *,
        clock: Clock,
        call_later: CallLater,
        settings: CoordinatorSettings,
    ) -> None:
        self.journal = journal
        self.topics = topics
        self.settings = settings
        self.groups: dict[str, Group] = {}
        self.names: list[str] = []  # sorted
        self._clock = clock
        self._call_later = call_later
        self._sessions: dict[tuple[str, str], Session] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._retries: dict[str, Timer] = {}
        self._expiry_timer: Timer | None = None
        self._loaded = False
        self._missed: list[tuple[Collection[str], Collection[str]]] = []  # changes of topics while it was loaded

    # --- life

    async def start(self) -> None:
        """Loads all groups. Topics must be known by now: offsets of those that aren't go. Raises what `load` does."""
        await self.journal.load(self._replay)
        self.groups = {name: self.groups[name] for name in sorted(self.groups) if self.groups[name].exists}
        self.names = list(self.groups)
        for number, group in enumerate(list(self.groups.values()), 1):
            gone = {topic_id for topic_id in topic_ids_of(group) if self.topics.by_id(topic_id) is None}
            self.write(group, decide_topic_deleted(group, gone))
            for member in group.members.values():
                self._sessions[group.name, member.member_id] = Session()
                self.expire_in(group, member, self._patience_after_move_ms(group, member))
            if group.members:
                self.settle(group)
            if number % SETTLE_A_TURN == 0:
                await asyncio.sleep(0)
        self._loaded = True
        for deleted, changed in self._missed:
            self.topics_changed(deleted=deleted, changed=changed)
        self._missed.clear()
        self._schedule_expiry()

    def _replay(self, key: bytes, value: bytes | None, offset: int) -> None:
        record = records.decode(key, value)
        group = self.groups.get(record.group)
        if group is None:
            group = self.groups[record.group] = Group(record.group)
        group.replay(record, offset)

    def stop(self) -> list[asyncio.Task[None]]:
        """Stops timers and ends what waits; the tasks are about to end. Members stay: they resume elsewhere."""
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        for session in self._sessions.values():
            session.cancel()
        for retry in self._retries.values():
            retry.cancel()
        tasks = list(self._resolving.values())
        for task in tasks:
            task.cancel()
        # Those whose calls end now would begin to wait for their members.
        self._call_later = _never
        self.journal.close()
        return tasks

    def now_us(self) -> int:
        """Wall clock."""
        return self._clock.wall_us()

    # --- records

    def write(self, group: Group, decided: Iterable[Record]) -> set[str]:
        """Writes and replays; returns the members whose partitions changed hands or fences."""
        affected: set[str] = set()
        for record in decided:
            value = None if record.value is None else records.encode_value(record.value)
            offset = self.journal.write(records.encode_key(record), value)
            if record.kind == records.OWNER:
                key = (record.topic_id, record.partition)
                before = group.owners.get(key)
                if before is not None:
                    affected.add(before.member_id)
                if isinstance(record.value, records.Owner):
                    affected.add(record.value.member_id)
            group.replay(record, offset)
        if group.exists != (group.name in self.groups):
            self._list_or_forget(group)
        return affected

    def _list_or_forget(self, group: Group) -> None:
        if group.exists:
            self.groups[group.name] = group
            insort(self.names, group.name)
        else:
            del self.groups[group.name]
            del self.names[bisect_left(self.names, group.name)]

    def settle(
        self,
        group: Group,
        *,
        released: Collection[PartitionKey] = (),
        starts: Mapping[tuple[PartitionKey, bytes], int] | None = None,
        affected: Collection[str] = (),
    ) -> None:
        """Brings owners as near to the target as their holders allow, and tells whom it concerns once it is durable."""
        concerned = set(affected)
        if group.target_epoch != group.group_epoch:
            catalog = self._catalog(group)
            self.write(group, membership.decide_seen(group, catalog))
            concerned |= group.retarget(catalog)
        decided = membership.decide_owners(group, released=released, starts=starts or {}, now_us=self.now_us())
        concerned |= self.write(group, decided.records)
        if decided.unresolved:
            self._resolve(group, decided.unresolved)
        concerned &= group.members.keys()
        for member_id in concerned:
            self.follow_revoking(group, group.members[member_id])
        if concerned:
            self.journal.when_durable(partial(self._tell, group.name, tuple(sorted(concerned))))

    def remove(self, group: Group, member_id: str, *, released: Collection[PartitionKey] = ()) -> None:
        """A member goes, for whatever reason; its watchers hear of it."""
        self.write(group, membership.decide_removal(group, member_id, now_us=self.now_us()))
        self.drop_session(group, member_id)
        self.settle(group, released=released)

    def _catalog(self, group: Group) -> dict[str, Topic]:
        names = {name for member in group.members.values() for name in member.topics}
        return {name: topic for name in sorted(names) if (topic := self.topics.by_name(name)) is not None}

    # --- where to start

    def resolving(self, group: Group) -> asyncio.Task[None] | None:
        """The task that finds out where partitions start, if one runs."""
        return self._resolving.get(group.name)

    def _resolve(self, group: Group, unresolved: Mapping[PartitionKey, bytes]) -> None:
        # One at a time for a group: when it ends the group is settled, which finds what came up meanwhile.
        if group.name not in self._resolving and group.name not in self._retries:
            task = asyncio.get_running_loop().create_task(self._resolve_starts(group, dict(unresolved)))
            self._resolving[group.name] = task

    async def _resolve_starts(self, group: Group, unresolved: Mapping[PartitionKey, bytes]) -> None:
        starts: dict[tuple[PartitionKey, bytes], int] = {}
        wanted = list(unresolved.items())
        try:
            for begin in range(0, len(wanted), RESOLVE_AT_ONCE):
                chunk = wanted[begin : begin + RESOLVE_AT_ONCE]
                found = await asyncio.gather(*(self._resolve_start(group.name, *each) for each in chunk))
                starts.update((each, at) for each, at in zip(chunk, found, strict=True) if at is not None)
        finally:
            del self._resolving[group.name]
        if len(starts) < len(unresolved):
            self._retries[group.name] = self._call_later(RESOLVE_RETRY_S, partial(self._retry_resolving, group))
        if self.groups.get(group.name) is group:
            self.settle(group, starts=starts)

    async def _resolve_start(self, group_name: str, key: PartitionKey, position: bytes) -> int | None:
        try:
            return await self.topics.resolve(*key, subscriber_pb2.StartPosition.FromString(position))
        except (PostbusError, StorageError) as error:  # a topic that goes, a partition without a leader, a damaged log
            logger.warning("group %s: start of partition %s/%d unknown: %s", group_name, *key, error)
            return None

    def _retry_resolving(self, group: Group) -> None:
        del self._retries[group.name]
        if self.groups.get(group.name) is group:
            self.settle(group)

    # --- topics

    def topics_changed(self, *, deleted: Collection[str], changed: Collection[str]) -> None:
        """Topic ids that are gone, names of topics that are new or have grown."""
        if not self._loaded:
            self._missed.append((deleted, changed))
            return
        for group in list(self.groups.values()):
            gone = topic_ids_of(group) & set(deleted)
            affected = self.write(group, decide_topic_deleted(group, gone)) if gone else set()
            if not group.members:
                continue
            wanted = {name for member in group.members.values() for name in member.topics}
            if gone or not wanted.isdisjoint(changed) or any(group.topic(topic_id) for topic_id in deleted):
                self.write(group, membership.decide_new_epoch(group, now_us=self.now_us()))
                self.settle(group, affected=affected)

    # --- sessions

    def session(self, group: Group, member_id: str) -> Session | None:
        """Volatile state of a member."""
        return self._sessions.get((group.name, member_id))

    def open_session(self, group: Group, member_id: str) -> Session:
        """A member came, or came back: its earlier self, if there is one, is told."""
        self.drop_session(group, member_id)
        session = self._sessions[group.name, member_id] = Session()
        return session

    def drop_session(self, group: Group, member_id: str) -> None:
        """Ends one; its watchers are called once what ended it is durable."""
        session = self._sessions.pop((group.name, member_id), None)
        if session is None:
            return
        session.cancel()
        if session.watchers:
            self.journal.when_durable(partial(_call_all, session.watchers))

    def expire_in(self, group: Group, member: Member, timeout_ms: int) -> None:
        """Unless something is heard of it, the member is removed then."""
        session = self._sessions[group.name, member.member_id]
        session.expires_at = self._clock.monotonic() + timeout_ms / 1000
        # A timer that runs is left alone if it comes early enough: it looks at the time again.
        if session.timer is not None:
            if session.timer_at <= session.expires_at:
                return
            session.timer.cancel()
        session.timer_at = session.expires_at
        session.timer = self._call_later(timeout_ms / 1000, partial(self._expired, group, member.member_id, session))

    def held(self, group: Group, member: Member) -> None:
        """Heard of a member whose stream holds its membership: while a node watches for the stream, it stays."""
        session = self._sessions[group.name, member.member_id]
        if session.watchers:
            self._keep(session)
        else:
            self.expire_in(group, member, self.settings.member_resume_after_node_loss_ms)

    def unwatched(self, group: Group, member: Member) -> None:
        """The node of a member's stream watches no longer, and did not say what became of the stream."""
        session = self._sessions[group.name, member.member_id]
        if not session.watchers and not member.heartbeats and session.expires_at is None:
            self.expire_in(group, member, self._patience_after_move_ms(group, member))

    def _keep(self, session: Session) -> None:
        session.expires_at = None
        if session.timer is not None:
            session.timer.cancel()
            session.timer = None

    def _expired(self, group: Group, member_id: str, session: Session) -> None:
        session.timer = None
        if self._sessions.get((group.name, member_id)) is not session or session.expires_at is None:
            return
        left_s = session.expires_at - self._clock.monotonic()
        if left_s > 0:
            session.timer_at = session.expires_at
            session.timer = self._call_later(left_s, partial(self._expired, group, member_id, session))
            return
        logger.info("group %s: member %s timed out", group.name, member_id)
        self.remove(group, member_id)

    def static_member_timeout_ms(self, group: Group) -> int:
        """How long an absent static member keeps its partitions."""
        if group.config.HasField("static_member_timeout"):
            return group.config.static_member_timeout.ToMilliseconds()
        return self.settings.static_member_timeout_ms

    def _patience_after_move_ms(self, group: Group, member: Member) -> int:
        patience_ms = self.settings.member_resume_after_node_loss_ms
        if member.instance_id:
            patience_ms = max(patience_ms, self.static_member_timeout_ms(group))
        if member.heartbeats:
            patience_ms = max(patience_ms, self.settings.session_timeout_ms)
        return patience_ms

    def tell(self, group: Group, member_id: str) -> None:
        """The member should send a heartbeat."""
        self._tell(group.name, (member_id,))

    def _tell(self, group_name: str, member_ids: Iterable[str]) -> None:
        for member_id in member_ids:
            session = self._sessions.get((group_name, member_id))
            if session is not None:
                session.dirty = True
                _call_all(session.watchers)

    # --- what a member without a stream should give up in time (streams watch their own acknowledgements)

    def follow_revoking(self, group: Group, member: Member) -> None:
        """Its partitions to give up, or their fences, changed."""
        session = self._sessions.get((group.name, member.member_id))
        if session is None or not member.heartbeats:
            return
        deadline = self._clock.monotonic() + member.processing_timeout_ms / 1000
        before = session.revoking
        session.revoking = {
            key: before[key] if before.get(key, (0,))[0] == fence else (fence, deadline)
            for key in group.revoking(member.member_id)
            for fence in (group.owners[key].fence,)
        }
        self._arm_revoking(group, member, session)

    def progressed(self, group: Group, member_id: str, keys: Iterable[PartitionKey]) -> None:
        """The member committed: it has the whole time again to give these up."""
        session, member = self._sessions.get((group.name, member_id)), group.members.get(member_id)
        if session is None or member is None or not session.revoking:
            return
        deadline = self._clock.monotonic() + member.processing_timeout_ms / 1000
        for key in keys:
            if key in session.revoking:
                session.revoking[key] = (session.revoking[key][0], deadline)

    def _arm_revoking(self, group: Group, member: Member, session: Session) -> None:
        if session.revoking and session.revoking_timer is None:
            left_s = min(deadline for _, deadline in session.revoking.values()) - self._clock.monotonic()
            session.revoking_timer = self._call_later(
                max(left_s, 0), partial(self._revoking_timed_out, group, member, session)
            )

    def _revoking_timed_out(self, group: Group, member: Member, session: Session) -> None:
        session.revoking_timer = None
        if self._sessions.get((group.name, member.member_id)) is not session:
            return
        now = self._clock.monotonic()
        late = {key: fence for key, (fence, deadline) in session.revoking.items() if deadline <= now}
        if late:
            self.take_away(group, member.member_id, late)
        elif member.member_id in group.members:
            self._arm_revoking(group, member, session)

    def take_away(self, group: Group, member_id: str, fences: Mapping[PartitionKey, int]) -> None:
        """The processing timeout ended these."""
        lost: Stayed = membership.decide_lost(group, member_id, fences, now_us=self.now_us())
        self.write(group, lost.records)
        if member_id not in group.members:
            self.drop_session(group, member_id)
        self.settle(group, released=lost.released)

    # --- offsets that nobody uses

    def _schedule_expiry(self) -> None:
        self._expiry_timer = self._call_later(self.settings.expiry_check_interval_ms / 1000, self._expire_offsets)

    def _expire_offsets(self) -> None:
        for group in list(self.groups.values()):
            if not group.members:
                decided = decide_expiry(
                    group, now_us=self.now_us(), retention_us_default=self.settings.offset_retention_us
                )
                if decided:
                    logger.info("group %s: offsets expired", group.name)
                    self.write(group, decided)
        self._schedule_expiry()


class _NoTimer:
    def cancel(self) -> None:
        """It will not come."""


def _never(_delay_s: float, _callback: Callable[[], None]) -> Timer:
    return _NoTimer()


def _call_all(callbacks: Collection[Callable[[], None]]) -> None:
    for callback in list(callbacks):
        callback()
