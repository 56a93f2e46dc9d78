"""One partition as this node sees it: leading it, following its leader, or without a replica.

Owns the role, which follows the cluster's image, the high watermark as far as it is known here, and those who wait for
it. Appending never waits: `append` checks and appends in one go, and `when_safe` tells later, by callback, when the
records are as safe as was asked for. How far replicas are, and who is in sync, is decided in `leader.py`; where a
follower's log and its leader's part, in `follower.py`.

A leader epoch is led or followed from beginning to end: an image that changes anything else never makes it start over
(KAFKA-13790).
"""

import asyncio
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog
from postbus.v1 import publisher_pb2

from broker.clock import Clock
from broker.controller.state import NOBODY, NodeState, PartitionState
from broker.errors import PostbusError, Reason
from broker.replication.damages import Damages
from broker.replication.feeder import Feed, Feeder
from broker.replication.follower import FollowedPartition, Reset, Truncate
from broker.replication.isr_changes import IsrChanges, Session
from broker.replication.leader import LedPartition, Proposal, Registered, Replicas
from broker.replication.puller import Puller
from broker.replication.refusals import NotAppended, producer_refusal
from broker.replication.remote_log import ReadableLog, RemoteLog
from broker.replication.settings import ReplicationSettings
from broker.replication.succession import Succession
from broker.replication.waiters import Done, Waiters
from broker.storage.batch import NewBatch
from broker.storage.errors import DiskFull, LogCorrupt, StorageError, StoreCorrupt
from broker.storage.log import PartitionLog
from broker.storage.producers import ProducerRefusal
from broker.storage.request_ids import RequestIdsFull

__all__ = ["ACKS_LEADER", "ACKS_NONE", "Done", "NotAppended", "Partition", "Published", "Role", "Shared"]

ACKS_NONE: Final = int(publisher_pb2.ACKS_NONE)
ACKS_LEADER: Final = int(publisher_pb2.ACKS_LEADER)

log = structlog.get_logger()


class Role(enum.Enum):
    """What this node is to a partition."""

    LEADER = "leader"
    FOLLOWER = "follower"
    REMOTE = "remote"
    """It has no replica."""


class Published(NamedTuple):
    """Where the records of one request are in one partition. A tuple for speed."""

    partition: int
    base_offset: int
    record_count: int
    record_indexes: tuple[int, ...]
    append_time_us: int
    duplicate: bool

    @property
    def end_offset(self) -> int:
        """One past the last."""
        return self.base_offset + self.record_count


@dataclass(slots=True)
class Shared:
    """What all partitions of a node share."""

    node_id: int
    clock: Clock
    settings: ReplicationSettings
    session: Session
    isr_changes: IsrChanges
    damages: Damages
    succession: Succession
    feeder: Feeder | None
    """None: a node without peers."""
    puller: Puller | None
    nodes: Mapping[int, NodeState]
    """As the image has them."""
    registered: Mapping[int, Registered]
    """The same, as `leader.py` wants it."""


class Partition:
    """Lives on the event loop."""

    def __init__(
        self, *, topic: str, topic_id: str, number: int, log_id: int, shared: Shared, remote: RemoteLog | None = None
    ) -> None:
        """remote: how it is read without a replica; None: through calls of `shared` (`attach_remote`)."""
        self.topic = topic
        self.topic_id = topic_id
        self.number = number
        self.log_id = log_id
        self.role = Role.REMOTE
        self.leader_id: int | None = None
        self.leader_epoch = -1
        self.state: PartitionState | None = None
        """As the image has it."""
        self.local: PartitionLog | None = None
        """The replica of this node, whatever its state."""
        self.log: ReadableLog
        """Where its records are read: the own replica while that leads or is in sync."""
        self.followed: FollowedPartition | None = None
        self.feeds: list[Feed] = []
        self.high_watermark = 0
        self.deleted = False
        self.lacked_room = False
        """Records were refused because this node's disk is full, which another node's may not be."""
        self.acks_when_written = False
        """The topic's durability is "replicated": an ack waits for the page cache, the high watermark never does."""
        self._shared = shared
        self._led: LedPartition | None = None
        self._min_insync_replicas = 1
        self._paused = False
        self._epoch_used = False  # records of this leader epoch were appended before this process started
        self._cutting: asyncio.Task[None] | None = None
        self._uncounted_since: int | None = None  # the partition epoch; the own copy is damaged, and may be emptied
        self._safe_waiters = Waiters()
        self._durable_waiters = Waiters()  # the own fsync
        self._written_waiters = Waiters()  # the page cache of everyone in sync
        self._own_written_waiters = Waiters()
        self._listeners: dict[Callable[[], None], None] = {}
        self._remote = remote

    # --- reading

    @property
    def leading(self) -> bool:
        """This node leads it, as far as it knows, and its log is in order."""
        return self._led is not None

    @property
    def partition_epoch(self) -> int:
        """As the image has it."""
        return -1 if self.state is None else self.state.partition_epoch

    @property
    def durable_end_offset(self) -> int:
        """Of the own replica."""
        return 0 if self.local is None else self.local.durable_end_offset

    async def fresh_high_watermark(self, timeout_s: float) -> int:
        """At least everything that was acknowledged before this was called. Raises PostbusError, and nothing else.

        Where the partition is not in sync here, `log.log_start_offset` and `high_watermark` are fresh then, too.
        """
        deadline = self._shared.clock.monotonic() + timeout_s
        while True:
            if self.deleted:
                raise self._gone()
            led = self._led
            if led is None:
                break
            if self._shared.session.session_valid and self.high_watermark >= led.start_offset:
                if await self._shared.succession.still_leads(self):
                    return self.high_watermark
                if self._led is led:
                    await self._pause(deadline)
            else:
                await self._changed_or_timeout(deadline)
        if self._remote is None:
            raise self.not_leading()
        bounds = await self._remote.fresh_bounds(max(0.0, deadline - self._shared.clock.monotonic()))
        return max(bounds.high_watermark, self.high_watermark)

    async def another_copy(self, damaged: ReadableLog) -> bool:
        """Reading `damaged`, which was `log`, failed. True: read again, from what is `log` by now. Waits for that."""
        deadline = self._shared.clock.monotonic() + self._shared.settings.damage_wait_ms / 1000
        try:
            while self.log is damaged and self.damaged and self.others_have_all and not self.deleted:
                await self._changed_or_timeout(deadline)
        except PostbusError:
            return False
        return self.log is not damaged or (damaged is self.local and not self.damaged)

    def add_listener(self, wake: Callable[[], None]) -> None:
        """`wake` is called when the high watermark, the log start, the leader or the partition's existence changes."""
        self._listeners[wake] = None
        self._watch_remote()

    def remove_listener(self, wake: Callable[[], None]) -> None:
        """The opposite; no harm if it was not there."""
        self._listeners.pop(wake, None)
        self._watch_remote()

    def trimmed(self) -> None:
        """The log start moved."""
        self._wake_feeds()
        self._wake()

    @property
    def successors(self) -> tuple[int, ...]:
        """Other nodes that may lead it by now, without this one, which leads it as far as it knows, having heard."""
        return () if self._led is None else tuple(sorted(self._led.maximal_isr - {self._shared.node_id}))

    # --- publishing

    def writable_error(self) -> PostbusError | None:
        """None: records can be appended here, now."""
        led = self._led
        if (
            led is not None
            and led.enough_in_sync
            and not self._paused
            and not self._epoch_used
            and self._shared.session.session_valid
        ):
            return None
        return self._why_not_writable()

    def append(self, new: NewBatch) -> Published:
        """Appends, in this leader epoch; refusals, storage's among them, are raised as PostbusErrors."""
        refusal = self.writable_error()
        if refusal is not None:
            raise refusal
        assert self.local is not None
        new.leader_epoch = self.leader_epoch
        try:
            appended = self.local.append(new, now_us=self._shared.clock.wall_us())
        except DiskFull as error:
            self.lacked_room = True
            raise PostbusError(
                Reason.ERROR_REASON_DISK_FULL,
                f"{error}; publishing goes on by itself once there is room",
                retry_after_ms=1000,
            ) from error
        for feed in self.feeds:
            feed.wake()
        return Published(
            self.number, appended.base_offset, new.record_count, new.record_indexes, appended.append_time_us, False
        )

    async def load_request_ids(self) -> None:
        """Comes before the first publish with a request id in a leader epoch. Raises PostbusError, StorageError."""
        local = self.local
        if local is None:
            raise self.not_leading()
        try:
            await local.load_request_ids()
        except (LogCorrupt, StoreCorrupt) as error:
            where = f"{self.topic}/{self.number}"
            if not await self.another_copy(local):
                raise PostbusError(
                    Reason.ERROR_REASON_LOG_CORRUPT,
                    f"{where} is damaged, and no other copy is whole: what was published before can't be told",
                ) from error
            raise PostbusError(
                Reason.ERROR_REASON_NO_LEADER,
                f"the copy of {where} that led it is damaged: another one leads",
                retry_after_ms=100,
            ) from error

    def find_sequence(self, *, producer_id: int, producer_epoch: int, sequence: int) -> Published | None:
        """Where this batch of a producer is, if it was appended before; raises unless it is that or the next one."""
        assert self.local is not None
        try:
            earlier = self.local.producers.check(producer_id, producer_epoch, sequence)
        except ProducerRefusal as error:
            raise producer_refusal(error, producer_id) from error
        if earlier is None:
            return None
        count = earlier.end_offset - earlier.base_offset
        return Published(self.number, earlier.base_offset, count, (), earlier.append_time_us, True)

    def check_request_room(self, request_id: bytes) -> None:
        """Raises QUOTA_EXCEEDED if no more request ids can be remembered."""
        assert self.local is not None
        try:
            self.local.request_ids.check_room(request_id)
        except RequestIdsFull as error:
            raise PostbusError(
                Reason.ERROR_REASON_QUOTA_EXCEEDED,
                f"{self.topic}/{self.number} remembers {error.count} request ids, as many as it may: publish more"
                " records a request, shorten the topic's deduplication_window, or wait",
                retry_after_ms=min(max(error.retry_after_us // 1000, 100), 60_000),
            ) from error

    def check_end_offset(self, expected: int) -> None:
        """Compare-and-append: raises unless the log ends there."""
        assert self.local is not None
        if self.local.end_offset != expected:
            raise PostbusError(
                Reason.ERROR_REASON_PRECONDITION_NOT_MET,
                f"{self.topic}/{self.number} ends at {self.local.end_offset}, not at {expected}: read what was"
                " appended since, decide again, and publish with the new end offset",
                metadata={"end_offset": self.local.end_offset},
            )

    def when_safe(self, end_offset: int, acks: int, done: Done) -> None:
        """Calls `done` once the log up to `end_offset` is as safe as `acks` asks; at once if it is.

        Who waits when the leadership is lost is told by what becomes of the records: None once they are committed,
        NotAppended if they were truncated, and an error with an unknown outcome if this node can't learn it.
        """
        led = self._led
        if self.deleted:
            done(self._gone())  # its log tells of no progress any more
        elif acks == ACKS_NONE or end_offset <= self.high_watermark:
            done(None)
        elif led is None or self.local is None:
            done(self._unknown())
        else:
            self._wait(led, self.local, end_offset, acks, done)

    def _wait(self, led: LedPartition, local: PartitionLog, end_offset: int, acks: int, done: Done) -> None:
        valid = self._shared.session.session_valid
        if not self.acks_when_written:
            if acks != ACKS_LEADER:
                self._safe_waiters.add(end_offset, done)
            elif valid and end_offset <= local.durable_end_offset:
                done(None)
            else:
                self._durable_waiters.add(end_offset, done)
        elif acks == ACKS_LEADER:
            if valid and end_offset <= local.written_end_offset:
                done(None)
            else:
                self._own_written_waiters.add(end_offset, done)
        elif valid and led.enough_in_sync and end_offset <= led.written_watermark:
            done(None)
        else:
            self._written_waiters.add(end_offset, done)

    # --- hand-over of the leadership

    def pause(self) -> None:
        """Nothing is appended until `resume`, or another leader epoch."""
        self._paused = True

    def resume(self) -> None:
        """The opposite."""
        if self._paused:
            self._paused = False
            self._wake()

    async def settled(self) -> None:
        """Returns when all that was appended is committed, or this node does not lead it any more."""
        led = self._led
        while led is not None and self._led is led and self.local is not None:
            if self.high_watermark >= self.local.end_offset:
                return
            await self._changed_or_timeout(None)

    # --- the image

    def follow(self, state: PartitionState, *, log_of_replica: Callable[[], PartitionLog]) -> PartitionLog | None:
        """Takes the role that the image says. log_of_replica: makes or finds this node's log.

        Returns the log that has no place here any more, to be deleted.
        """
        me = self._shared.node_id
        self.state = state
        has_replica = me in state.replicas
        if has_replica and self.local is None:
            self.local = log_of_replica()
            self.local.on_progress = self._progressed
            self.local.on_damage = self._damage_found
            self.local.wants_written = self.acks_when_written
            self.high_watermark = max(self.high_watermark, self.local.high_watermark)
            if self.damaged:
                self._damage_found()
        leader_id = None if state.leader == NOBODY else state.leader
        role = Role.REMOTE if not has_replica else Role.LEADER if leader_id == me else Role.FOLLOWER
        if (role, leader_id, state.leader_epoch) == (self.role, self.leader_id, self.leader_epoch):
            self._replicas_changed(state)
        else:
            self._step_down()
            self.role, self.leader_id, self.leader_epoch = role, leader_id, state.leader_epoch
            self._choose_log(state)
            self._step_up()
        unassigned = None if has_replica else self.local
        if unassigned is not None:
            self.local = None
            unassigned.on_progress = unassigned.on_damage = None
            self._forget_damage()
            self._safe_waiters.fail_above(-1, self._unknown)
        self._look_at_damage(state)
        self._watch_remote()
        self._wake()
        return unassigned

    def configure(self, *, min_insync_replicas: int, acks_when_written: bool) -> None:
        """The topic's settings."""
        self._min_insync_replicas = min_insync_replicas
        self.acks_when_written = acks_when_written
        if self.local is not None:
            self.local.wants_written = acks_when_written
        if self._led is not None:
            self._led.min_insync_replicas = min_insync_replicas
            self._advance(self._led)

    def nodes_changed(self) -> None:
        """Nodes came, went, or may join the ISR now."""
        if self._led is not None:
            self._shared.isr_changes.look(self)

    def session_changed(self) -> None:
        """This node may act as a leader again, or must not any more."""
        if self._led is not None:
            self._progressed()
            self._shared.isr_changes.look(self)
            self._wake()

    def delete(self) -> None:
        """The topic went: whoever waits is told."""
        self.deleted = True
        if self._remote is not None:
            self._remote.forget()
        self._step_down()
        if self.local is not None:
            self.local.on_progress = self.local.on_damage = None
        self._forget_damage()
        self._safe_waiters.fail_above(-1, self._gone)
        self._watch_remote()
        self._wake()

    async def close(self) -> None:
        """The node stops."""
        if self._remote is not None:
            await self._remote.close()
        if self._cutting is not None:
            await asyncio.wait([self._cutting])

    def _replicas_changed(self, state: PartitionState) -> None:
        """The same leader in the same epoch."""
        led = self._led
        if led is not None:
            led.changed(_replicas(state), now_s=self._shared.clock.monotonic())
            self._replicas_adopted(led)
            self._advance(led)
            self._wake_feeds()
            self._shared.isr_changes.look(self)
        elif self.followed is not None and self._shared.node_id not in state.isr and self._shared.puller is not None:
            # The leader counts only what it was asked for since this node became a replica.
            self._shared.puller.ask(self)
        self._choose_log(state)

    def _replicas_adopted(self, led: LedPartition) -> None:
        if self._shared.feeder is not None:
            self._shared.feeder.replicas_changed(self, led.followers)

    def _choose_log(self, state: PartitionState) -> None:
        in_sync = self.role is Role.LEADER or self._shared.node_id in state.isr
        if self.local is not None and (in_sync or self._remote is None) and self.role is not Role.REMOTE:
            self.log = self.local
            if self._remote is not None:
                self._remote.forget()
        elif self._remote is not None:
            self.log = self._remote

    def _step_down(self) -> None:
        """The leader epoch that was is over."""
        shared = self._shared
        self._paused = False
        if self._led is not None:
            self._led = None
            shared.isr_changes.unled(self)
            if shared.feeder is not None:
                shared.feeder.unled(self)
            # What was promised for less is now as safe as what the next leader makes of it.
            for waiters in (self._durable_waiters, self._written_waiters, self._own_written_waiters):
                waiters.move_to(self._safe_waiters)
        if self.followed is not None:
            if shared.puller is not None:
                shared.puller.forget(self, self.followed.leader_id)
            self.followed = None

    def _step_up(self) -> None:
        """The leader epoch that is begins, unless the log is still being cut: then after that."""
        if self._cutting is not None or self.local is None or self.deleted or self.state is None:
            return
        shared, local = self._shared, self.local
        if self.role is Role.LEADER:
            # A node that comes back is elected anew before it appends: what it lost with its last moments may still
            # be elsewhere, and must not share offset and epoch with something else.
            self._epoch_used = local.last_epoch >= self.leader_epoch
            self._led = LedPartition(
                shared.node_id,
                _replicas(self.state),
                min_insync_replicas=self._min_insync_replicas,
                start_offset=local.end_offset,
                durable_offset=local.durable_end_offset,
                high_watermark=min(self.high_watermark, local.durable_end_offset),
                settings=shared.settings.isr,
                now_s=shared.clock.monotonic(),
            )
            # Only after an unclean election there is less than was committed.
            self.high_watermark = self._led.high_watermark
            self._progressed()
            shared.isr_changes.led(self)
            if shared.feeder is not None:
                shared.feeder.led(self)
        elif self.leader_id is not None and shared.puller is not None and local.last_epoch <= self.leader_epoch:
            # (A leader of an epoch before that of records which are here led long ago: it would take them back.)
            self.followed = FollowedPartition(leader_id=self.leader_id, leader_epoch=self.leader_epoch)
            shared.puller.ask(self)

    # --- leading

    @property
    def has_followers(self) -> bool:
        """Whether there is anybody who might be in sync or not."""
        return self._led is not None and bool(self._led.followers)

    @property
    def followers_offsets(self) -> tuple[tuple[int, int], ...]:
        """How far each follower durably is, by node, as far as this leader knows."""
        if self._led is None:
            return ()
        return tuple((node_id, max(one.durable_offset, 0)) for node_id, one in self._led.followers.items())

    @property
    def replicated_offset(self) -> int:
        """Every replica durably has all before it."""
        return 0 if self._led is None else self._led.replicated_offset

    def follower_may_fetch(self, node_id: int, *, partition_epoch: int) -> bool | None:
        """Whether a follower whose image is of that epoch may be fed; None: it is ahead of the image here."""
        return self._led is not None and self._led.may_fetch(node_id, partition_epoch=partition_epoch)

    def follower_in_sync(self, node_id: int) -> bool:
        """Acknowledgements wait for it."""
        return self._led is not None and self._led.in_sync(node_id)

    def follower_fetched(self, node_id: int, *, broker_epoch: int, durable_offset: int) -> None:
        """A follower's log agrees with this one."""
        led, local = self._led, self.local
        if led is None or local is None:
            return
        now_s = self._shared.clock.monotonic()
        led.fetched(
            node_id,
            broker_epoch=broker_epoch,
            durable_offset=durable_offset,
            end_offset=local.end_offset,
            now_s=now_s,
        )
        self._follower_moved(led, node_id)

    def follower_progressed(self, node_id: int, *, durable_offset: int, written_offset: int) -> None:
        """A follower has stored more."""
        led, local = self._led, self.local
        if led is None or local is None:
            return
        led.progressed(
            node_id,
            durable_offset=durable_offset,
            written_offset=written_offset,
            end_offset=local.end_offset,
            now_s=self._shared.clock.monotonic(),
        )
        self._follower_moved(led, node_id)

    def follower_lost(self, node_id: int) -> None:
        """A follower's link broke."""
        if self._led is not None and self._led.lost(node_id, now_s=self._shared.clock.monotonic()):
            self._shared.isr_changes.look_after_grace(self)

    def propose(self) -> Proposal | None:
        """The change of the ISR that is called for."""
        if self._led is None or self.local is None:
            return None
        return self._led.propose(
            end_offset=self.local.end_offset,
            registered=self._shared.registered,
            now_s=self._shared.clock.monotonic(),
        )

    def proposal_accepted(self, proposal: Proposal, state: PartitionState) -> None:
        """The controller's answer."""
        led = self._led
        if led is not None and led.leader_epoch == proposal.leader_epoch:
            led.accepted(proposal, _replicas(state), now_s=self._shared.clock.monotonic())
            self._replicas_adopted(led)
            self._advance(led)
            self._wake()

    def proposal_refused(self, proposal: Proposal, *, outdated: bool) -> None:
        """The controller's answer."""
        led = self._led
        if led is not None and led.leader_epoch == proposal.leader_epoch:
            led.refused(proposal, outdated=outdated, now_s=self._shared.clock.monotonic())
            self._advance(led)

    def proposal_unanswered(self, proposal: Proposal) -> None:
        """There was none."""
        led = self._led
        if led is not None and led.leader_epoch == proposal.leader_epoch:
            led.unanswered(proposal, now_s=self._shared.clock.monotonic())

    def _follower_moved(self, led: LedPartition, node_id: int) -> None:
        self._advance(led)
        if self.local is not None:
            self.local.replicated_offset = led.replicated_offset
        if node_id not in led.isr:
            self._shared.isr_changes.look(self)

    def _advance(self, led: LedPartition) -> None:
        """Lets everybody know how far it is safe by now; nobody if others may lead by now."""
        if not self._shared.session.session_valid:
            return
        if led.advance():
            local = self.local
            assert local is not None
            self.high_watermark = max(self.high_watermark, led.high_watermark)
            local.set_high_watermark(led.high_watermark)
            if led.followers:
                self._wake_feeds()
            else:
                local.replicated_offset = led.high_watermark
            self._safe_waiters.release(led.high_watermark)
            self._wake()
        if self._written_waiters and led.enough_in_sync:
            self._written_waiters.release(led.written_watermark)

    def _progressed(self) -> None:
        """The own log's written or durable end, or its start, has moved."""
        local, led = self.local, self._led
        if local is None:
            return
        if led is not None:
            led.local(durable_offset=local.durable_end_offset, written_offset=local.written_end_offset)
            self._advance(led)
            if self._shared.session.session_valid:
                if self._durable_waiters:
                    self._durable_waiters.release(local.durable_end_offset)
                if self._own_written_waiters:
                    self._own_written_waiters.release(local.written_end_offset)
            for feed in self.feeds:
                if feed.waits_for_disk:
                    feed.waits_for_disk = False
                    feed.wake()
        elif self.followed is not None and self._shared.puller is not None:
            self._follow_watermark(self.followed)
            self._shared.puller.progressed(self, self.followed)

    # --- following

    @property
    def cutting(self) -> bool:
        """The log is being truncated, or about to be emptied."""
        return self._cutting is not None or self.damaged

    def leader_said(self, *, replicated_offset: int) -> None:
        """The leader told its high watermark and log start."""
        if self.followed is not None and self.local is not None:
            self.local.replicated_offset = max(self.local.replicated_offset, replicated_offset)
            self._follow_watermark(self.followed)

    def cut(self, act: Truncate | Reset) -> None:
        """The logs part: gives up what the leader does not have, and asks again."""
        if self._cutting is None:
            self._cutting = asyncio.get_running_loop().create_task(self._cut(act))

    async def _cut(self, act: Truncate | Reset) -> None:
        local = self.local
        assert local is not None
        before = local.end_offset
        try:
            if isinstance(act, Truncate):
                end_offset = await local.truncate(act.end_offset)
                # What an unclean election took away must not count as committed when something else is in its place.
                self.high_watermark = min(self.high_watermark, end_offset)
                self._safe_waiters.fail_above(end_offset, self._not_appended)
                log.info("log_truncated", topic=self.topic, partition=self.number, end_offset=end_offset, was=before)
            else:
                await local.reset(act.start_offset)
                self._uncounted_since = None
                local.replicated_offset = 0
                # Whether the leader has, or had, what was here can't be told.
                self._safe_waiters.fail_above(-1, self._unknown)
                log.info("log_reset", topic=self.topic, partition=self.number, offset=act.start_offset, was=before)
        except StorageError as error:
            # Deleted, or the disk failed (which ends the process), or damaged. Without an answer nothing is followed.
            log.error("truncation_failure", topic=self.topic, partition=self.number, error=str(error))
        finally:
            self._cutting = None
        if isinstance(act, Truncate) and self.state is not None and self.local is local:
            self._look_at_damage(self.state)
        if self.followed is None or self.local is not local:
            self._step_up()  # the role changed meanwhile
            self._wake()
        elif self._shared.puller is not None:
            self._shared.puller.ask(self)

    def _follow_watermark(self, followed: FollowedPartition) -> None:
        local = self.local
        if local is None or not followed.matched:
            return
        log_start = followed.log_start(local)
        if log_start > local.log_start_offset:
            local.trim(log_start)
        high_watermark = followed.high_watermark(local)
        local.set_high_watermark(high_watermark)
        if high_watermark > self.high_watermark:
            self.high_watermark = high_watermark
            self._safe_waiters.release(high_watermark)
            self._wake()

    # --- damage

    @property
    def damaged(self) -> bool:
        """A part of the own copy can't be read."""
        return self.local is not None and self.local.damage is not None

    @property
    def others_have_all(self) -> bool:
        """Others may take the place of the own copy."""
        state, me, nodes = self.state, self._shared.node_id, self._shared.nodes
        if state is None:
            return False
        eligible = (other for other in state.elr if other in nodes and not nodes[other].fenced)
        return any(other != me for other in (*state.isr, *eligible))

    def _damage_found(self) -> None:
        local = self.local
        assert local is not None and local.damage is not None
        log.error(
            "log_damage",
            topic=self.topic,
            partition=self.number,
            offset=local.damage.offset,
            error=local.damage.why,
            action="it is made anew from another copy" if self.others_have_all else "there is no other whole copy",
        )
        self._shared.damages.found(self)

    def uncounted(self, *, partition_epoch: int) -> None:
        """Since that partition epoch nobody counts on the damaged copy."""
        self._uncounted_since = partition_epoch
        if self.state is not None:
            self._look_at_damage(self.state)

    def _look_at_damage(self, state: PartitionState) -> None:
        """Empties the damaged copy once nobody counts on it and another one leads; it is filled from there.

        From when the damage was found nothing is asked of a leader until then, so that none can come to count on it.
        """
        if not self.damaged:
            return
        me, since = self._shared.node_id, self._uncounted_since
        if since is None:
            self._shared.damages.look(self)
        elif state.partition_epoch < since:
            pass  # not heard of yet
        elif me in state.isr or me in state.elr:
            # Elected although it lacks something, for want of anybody else: it counts again.
            self._uncounted_since = None
            self._shared.damages.ask(self)
        elif self.followed is not None and self._cutting is None:
            self.followed.silence()
            self.cut(Reset(0))

    def _forget_damage(self) -> None:
        self._uncounted_since = None
        self._shared.damages.forget(self)

    # --- neither

    def remote_news(self, *, high_watermark: int, log_start_offset: int) -> None:
        """What the leader said to a reader here."""
        if self.log is self._remote and self._led is None:
            self.high_watermark = max(self.high_watermark, high_watermark)
            self._wake()

    def attach_remote(self, remote: RemoteLog) -> None:
        """How it is read without a replica in sync."""
        self._remote = remote
        self.log = remote

    def _watch_remote(self) -> None:
        if self._remote is not None:
            reads_remotely = getattr(self, "log", None) is self._remote
            self._remote.watch(bool(self._listeners) and reads_remotely and not self.deleted)

    @property
    def isr_count(self) -> int:
        """Replicas in sync."""
        return 0 if self.state is None else len(self.state.isr)

    # --- refusals

    def not_leading(self) -> PostbusError:
        """Somebody else leads it, or nobody."""
        where = f"{self.topic}/{self.number}"
        leader_id = self.leader_id
        if leader_id is None or leader_id == self._shared.node_id:
            return PostbusError(
                Reason.ERROR_REASON_NO_LEADER, f"{where} has no leader at the moment", retry_after_ms=100
            )
        node = self._shared.nodes.get(leader_id)
        endpoint = "" if node is None else node.client_endpoint
        return PostbusError(
            Reason.ERROR_REASON_NOT_LEADER,
            f"{where} is led by node {leader_id}{f' at {endpoint}' if endpoint else ''}",
            metadata={"leader_id": leader_id, "leader_endpoint": endpoint},
        )

    def _why_not_writable(self) -> PostbusError:
        where = f"{self.topic}/{self.number}"
        led = self._led
        if self.deleted:
            return PostbusError(
                Reason.ERROR_REASON_TOPIC_NOT_FOUND,
                f"topic {self.topic!r} was deleted",
                resource=("topic", self.topic),
            )
        if led is None:
            return self.not_leading()
        if self._epoch_used or not self._shared.session.session_valid:
            return PostbusError(
                Reason.ERROR_REASON_NO_LEADER,
                f"node {self._shared.node_id}, which leads {where}, is not in touch with the controller",
                retry_after_ms=100,
            )
        if self._paused:
            return PostbusError(
                Reason.ERROR_REASON_NO_LEADER, f"the leadership of {where} is being handed over", retry_after_ms=100
            )
        return PostbusError(
            Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS,
            f"{where} has {len(led.isr)} replicas in sync and needs {led.min_insync_replicas}",
            retry_after_ms=500,
            metadata={"in_sync_replicas": len(led.isr), "min_insync_replicas": led.min_insync_replicas},
        )

    def _gone(self) -> PostbusError:
        return PostbusError(
            Reason.ERROR_REASON_TOPIC_NOT_FOUND,
            f"topic {self.topic!r} was deleted meanwhile",
            resource=("topic", self.topic),
        )

    def _not_appended(self) -> PostbusError:
        return NotAppended(f"the leader of {self.topic}/{self.number} changed before these records were safe")

    def _unknown(self) -> PostbusError:
        return PostbusError(
            Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            f"the leader of {self.topic}/{self.number} changed; whether these records are kept is not known",
        )

    # ---

    def _wake_feeds(self) -> None:
        for feed in self.feeds:
            feed.wake_later()

    def _wake(self) -> None:
        for wake in tuple(self._listeners):
            wake()

    async def _pause(self, deadline: float) -> None:
        """Before asking again. Raises NO_LEADER when the deadline is near."""
        left_s = deadline - self._shared.clock.monotonic()
        pause_s = self._shared.settings.retry_ms / 1000
        if left_s < pause_s:
            raise PostbusError(
                Reason.ERROR_REASON_NO_LEADER,
                f"whether node {self._shared.node_id} still leads {self.topic}/{self.number} is not known now",
                retry_after_ms=100,
            )
        await asyncio.sleep(pause_s)

    async def _changed_or_timeout(self, deadline: float | None) -> None:
        """Waits for news. Raises NO_LEADER when the deadline has passed."""
        changed = asyncio.Event()
        self.add_listener(changed.set)
        try:
            async with asyncio.timeout(
                None if deadline is None else max(0.0, deadline - self._shared.clock.monotonic())
            ):
                await changed.wait()
        except TimeoutError:
            raise PostbusError(
                Reason.ERROR_REASON_NO_LEADER,
                f"the new leader of {self.topic}/{self.number} does not know yet what is committed",
                retry_after_ms=100,
            ) from None
        finally:
            self.remove_listener(changed.set)


def _replicas(state: PartitionState) -> Replicas:
    return Replicas(
        replicas=state.replicas,
        isr=state.isr,
        elr=state.elr,
        leader_epoch=state.leader_epoch,
        partition_epoch=state.partition_epoch,
    )
