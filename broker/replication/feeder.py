"""The leader's side of replication: sends followers what is appended, as soon as it is appended.

Owns the "pull" links that followers open, and for each of their partitions how far it was sent. Batches go out before
the own fsync, several partitions to a message, within the follower's credit. A change of the high watermark, of the log
start or of what all replicas have travels with the next batches, or alone after a moment: a message costs both ends as
much as a record, and nobody's acknowledgement waits for this one. It decides nothing: what a follower reports goes to
the partition.

Each link has two lanes with a credit each: one for followers in sync, one for those that catch up (behind the tail, or
new), which may be throttled and read from disk one partition at a time, so that they take nothing from the others.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from broker.clock import Clock
from broker.peers import wire
from broker.peers.links import Link, Transport
from broker.replication.follower import check_fetch
from broker.replication.settings import ReplicationSettings
from broker.storage.batch import StoredBatch
from broker.storage.errors import LogCorrupt, OffsetOutOfRange, StorageError
from broker.storage.log import PartitionLog
from broker.stubs import replication_pb2

SERVICE = "pull"

log = structlog.get_logger()


class FedPartition(Protocol):
    """A partition that this node leads, or may come to lead."""

    log_id: int
    leader_epoch: int
    feeds: list["Feed"]
    """Kept by the feeder."""

    @property
    def leading(self) -> bool: ...

    @property
    def local(self) -> PartitionLog | None: ...

    @property
    def high_watermark(self) -> int: ...

    @property
    def replicated_offset(self) -> int: ...

    def follower_in_sync(self, node_id: int) -> bool: ...

    def follower_may_fetch(self, node_id: int, *, partition_epoch: int) -> bool | None:
        """None: not before the image here is as new as the follower's."""

    def follower_fetched(self, node_id: int, *, broker_epoch: int, durable_offset: int) -> None: ...

    def follower_progressed(self, node_id: int, *, durable_offset: int, written_offset: int) -> None: ...

    def follower_lost(self, node_id: int) -> None: ...


class Feed:
    """One partition on its way to one follower."""

    __slots__ = ("alive", "link", "next_offset", "partition", "queued", "said", "session", "waits_for_disk")

    def __init__(self, link: "_FollowerLink", partition: FedPartition, start: replication_pb2.PullStart) -> None:
        self.link = link
        self.partition = partition
        self.session = start.session
        self.next_offset = start.fetch_offset
        self.said: tuple[int, int, int] | None = None  # high watermark, log start, replicated offset
        self.queued = False
        self.waits_for_disk = False
        self.alive = True

    def wake(self) -> None:
        """There is something to send."""
        if not self.queued:
            self.queued = True
            self.link.queue(self)
        self.link.send_now()

    def wake_later(self) -> None:
        """There is something to say, which may travel with what is sent next."""
        if not self.queued:
            self.queued = True
            self.link.queue(self)
            self.link.send_soon()


class Throttle:
    """Bytes a second over all catching-up replicas of this leader."""

    def __init__(self, clock: Clock) -> None:
        self.bytes_per_s = 0
        """0: no limit."""
        self._clock = clock
        self._due_s = 0.0

    def take(self, size_bytes: int) -> None:
        """So much was sent."""
        if self.bytes_per_s > 0:
            self._due_s = max(self._due_s, self._clock.monotonic()) + size_bytes / self.bytes_per_s

    def share(self, bytes_max: int) -> int:
        """How much to send at once, so that it comes evenly."""
        return min(bytes_max, max(self.bytes_per_s // 10, 1)) if self.bytes_per_s > 0 else bytes_max

    @property
    def wait_s(self) -> float:
        """How long to wait before the next."""
        return max(0.0, self._due_s - self._clock.monotonic()) if self.bytes_per_s > 0 else 0.0


class Feeder:
    """All followers of this node."""

    def __init__(
        self,
        *,
        transport: Transport,
        clock: Clock,
        settings: ReplicationSettings,
        partitions: Mapping[int, FedPartition],
    ) -> None:
        """partitions: those with a replica here, by log id; others may come to be in it later."""
        self.clock = clock
        self.settings = settings
        self.partitions = partitions
        self.throttle = Throttle(clock)
        self._links: list[_FollowerLink] = []
        self._closed = False
        self._heartbeat: asyncio.TimerHandle | None = None
        transport.serve(SERVICE, self._accept)

    def led(self, partition: FedPartition) -> None:
        """This node leads it now: followers that asked too early are answered."""
        for link in list(self._links):
            link.led(partition)

    def replicas_changed(self, partition: FedPartition, replicas: Collection[int]) -> None:
        """The same leader in the same epoch: who is no replica any more asks anew when it is one again."""
        for feed in list(partition.feeds):
            if feed.link.node_id not in replicas:
                feed.link.drop(feed)
                partition.feeds.remove(feed)
        self.led(partition)

    def unled(self, partition: FedPartition) -> None:
        """This node no longer leads it in that epoch."""
        for feed in partition.feeds:
            feed.link.drop(feed)
        partition.feeds.clear()

    async def close(self) -> None:
        """Ends all links."""
        self._closed = True
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        tasks = [task for link in self._links for task in link.end()]
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def lost(self, link: "_FollowerLink") -> None:
        """A link is over."""
        if link in self._links:
            self._links.remove(link)

    def _accept(self, link: Link) -> "_FollowerLink":
        accepted = _FollowerLink(self, link)
        self._links.append(accepted)
        if self._heartbeat is None and not self._closed:
            self._beat()
        return accepted

    def _beat(self) -> None:
        interval_s = self.settings.link_heartbeat_ms / 1000
        self._heartbeat = asyncio.get_running_loop().call_later(interval_s, self._beat)
        before = self.clock.monotonic() - interval_s / 2
        for link in self._links:
            if link.sent_s <= before:
                link.send(replication_pb2.PullResponse())


class _Lane:
    """What is to be sent to one follower under one credit."""

    __slots__ = ("catch_up", "cold", "credit_bytes", "queue", "reader")

    def __init__(self, *, catch_up: bool) -> None:
        self.catch_up = catch_up
        self.credit_bytes = 0
        self.queue: deque[Feed] = deque()
        self.cold: deque[Feed] = deque()  # to be read from disk
        self.reader: asyncio.Task[None] | None = None


class _FollowerLink:
    """A link that a follower opened."""

    def __init__(self, feeder: Feeder, link: Link) -> None:
        self.sent_s = feeder.clock.monotonic()
        self._feeder = feeder
        self._settings = feeder.settings
        self._link = link
        self._node_id = link.peer.node_id
        self._broker_epoch = 0
        self._feeds: dict[int, Feed] = {}
        self._early: dict[int, replication_pb2.PullStart] = {}  # questions about a leadership that is yet to begin
        self._live = _Lane(catch_up=False)
        self._catching_up = _Lane(catch_up=True)
        self._lanes = (self._live, self._catching_up)
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._news: asyncio.TimerHandle | None = None
        self._closed = False

    # --- LinkHandler

    def received(self, message: bytes) -> None:
        """A PullRequest."""
        try:
            request = replication_pb2.PullRequest.FromString(message)
        except DecodeError:
            log.warning("peer_garbage", peer=self._node_id, service=SERVICE)
            self._link.close()
            return
        if request.broker_epoch:
            self._broker_epoch = request.broker_epoch
        for log_id in request.stops:
            self._early.pop(log_id, None)
            if (feed := self._feeds.get(log_id)) is not None:
                self._remove(feed)
        for start in request.starts:
            self._start(start)
        for progress in request.progress:
            feed = self._feeds.get(progress.log_id)
            if feed is not None and feed.session == progress.session:
                feed.partition.follower_progressed(
                    self._node_id, durable_offset=progress.durable_offset, written_offset=progress.written_offset
                )
        if request.credit_bytes or request.catch_up_credit_bytes:
            self._live.credit_bytes += request.credit_bytes
            self._catching_up.credit_bytes += request.catch_up_credit_bytes
            self._schedule()

    def writable(self) -> None:
        """There is room for more messages."""
        self._schedule()

    def closed(self) -> None:
        """The link broke: a hint that the follower died."""
        self._closed = True
        self._feeder.lost(self)
        self.end()
        for feed in list(self._feeds.values()):
            self._remove(feed)
            # It may have connected again before this was noticed.
            if not any(other.link.node_id == self._node_id for other in feed.partition.feeds):
                feed.partition.follower_lost(self._node_id)

    # ---

    @property
    def node_id(self) -> int:
        """The follower."""
        return self._node_id

    def end(self) -> list[asyncio.Task[None]]:
        """Sends nothing any more."""
        self._link.close()
        for timer in (self._timer, self._news):
            if timer is not None:
                timer.cancel()
        readers = [lane.reader for lane in self._lanes if lane.reader is not None]
        for reader in readers:
            reader.cancel()
        return readers

    def led(self, partition: FedPartition) -> None:
        """An early question's time may have come."""
        start = self._early.pop(partition.log_id, None)
        if start is not None:
            self._start(start)

    def drop(self, feed: Feed) -> None:
        """Forgets a feed; the partition does, too."""
        feed.alive = False
        if self._feeds.get(feed.partition.log_id) is feed:
            del self._feeds[feed.partition.log_id]

    def queue(self, feed: Feed) -> None:
        """It has something to send."""
        lane = self._live if feed.partition.follower_in_sync(self._node_id) else self._catching_up
        lane.queue.append(feed)

    def send_now(self) -> None:
        """In the next turn of the loop, with all else that is queued then."""
        self._schedule()

    def send_soon(self) -> None:
        """With the next batches, or alone if there are none for a moment."""
        if self._news is None and not self._scheduled and not self._closed:
            delay_s = self._settings.news_delay_ms / 1000
            self._news = asyncio.get_running_loop().call_later(delay_s, self._send_news)

    def _send_news(self) -> None:
        self._news = None
        self._schedule()

    def send(self, response: replication_pb2.PullResponse, fields: Sequence[bytes] = ()) -> None:
        """Queues a message. fields: more of it, as `_add` encodes them."""
        self.sent_s = self._feeder.clock.monotonic()
        self._link.send(b"".join((*fields, response.SerializeToString())))

    def _remove(self, feed: Feed) -> None:
        self.drop(feed)
        if feed in feed.partition.feeds:
            feed.partition.feeds.remove(feed)

    def _start(self, start: replication_pb2.PullStart) -> None:
        log_id = start.log_id
        if (earlier := self._feeds.get(log_id)) is not None:
            self._remove(earlier)
        partition = self._feeder.partitions.get(log_id)
        if partition is None or partition.leader_epoch < start.leader_epoch or partition.local is None:
            self._early[log_id] = start  # the follower heard of the election first
            return
        if partition.leader_epoch == start.leader_epoch and not partition.leading:
            self._early[log_id] = start  # about to lead
            return
        answer = replication_pb2.PulledPartition(log_id=log_id, session=start.session)
        if partition.leader_epoch > start.leader_epoch:
            answer.not_leader = True
            self.send(replication_pb2.PullResponse(partitions=[answer]))
            return
        may_fetch = partition.follower_may_fetch(self._node_id, partition_epoch=start.partition_epoch)
        if may_fetch is None:
            self._early[log_id] = start  # the follower heard of a change of the replicas first
            return
        if not may_fetch:
            return  # it will ask anew once it has heard
        source = partition.local
        if start.fetch_offset < source.log_start_offset:
            answer.reset_offset = source.log_start_offset
            self.send(replication_pb2.PullResponse(partitions=[answer]))
            return
        diverging = check_fetch(source, fetch_offset=start.fetch_offset, last_epoch=start.last_epoch)
        if diverging is not None:
            answer.diverging.epoch, answer.diverging.end_offset = diverging.epoch, diverging.end_offset
            self.send(replication_pb2.PullResponse(partitions=[answer]))
            return
        for other in list(partition.feeds):
            if other.link.node_id == self._node_id:  # an older link of the same node
                other.link.drop(other)
                partition.feeds.remove(other)
        feed = self._feeds[log_id] = Feed(self, partition, start)
        partition.feeds.append(feed)
        feed.wake()  # says at least that the logs agree
        partition.follower_fetched(self._node_id, broker_epoch=self._broker_epoch, durable_offset=start.durable_offset)

    # --- sending

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        if self._news is not None:
            self._news.cancel()
            self._news = None
        if self._closed:
            return
        again = False
        for lane in self._lanes:
            # Without credit a follower in sync still hears of the high watermark.
            if lane.queue and self._link.has_room and (lane is self._live or self._may_send(lane)):
                again = self._pump_lane(lane) or again
            self._read_cold(lane)
        if again:
            self._schedule()  # what others have to do in this loop comes first
        elif self._feeder.throttle.bytes_per_s and self._waits_for_throttle(self._catching_up):
            # Also if the wait is over by now: timers come early, by more than this took, and nobody else would look.
            self._pump_later(self._feeder.throttle.wait_s)

    def _pump_later(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._pump)

    def _waits_for_throttle(self, lane: _Lane) -> bool:
        """It has something to send, and nothing else that will wake it."""
        has_work = lane.queue or (lane.cold and lane.reader is None)
        return bool(has_work) and lane.credit_bytes > 0 and self._link.has_room

    def _may_send(self, lane: _Lane) -> bool:
        return lane.credit_bytes > 0 and not (lane.catch_up and self._feeder.throttle.wait_s > 0)

    def _pump_lane(self, lane: _Lane) -> bool:
        """One message, with as much as may be; True: there is more that may be sent."""
        fields: list[bytes] = []
        room_bytes = self._share(lane, self._settings.response_bytes_max) if self._may_send(lane) else 0
        partition_bytes = self._share(lane, self._settings.partition_bytes_max)
        sent_bytes = 0
        held: list[Feed] = []
        for _ in range(len(lane.queue)):
            if lane.catch_up and sent_bytes >= room_bytes:
                break
            feed = lane.queue.popleft()
            if not feed.alive:
                continue
            feed.queued = False
            source = feed.partition.local
            assert source is not None
            batches: list[StoredBatch] = []
            more = False
            if feed.next_offset < source.end_offset:
                if sent_bytes >= room_bytes:
                    more = True
                else:
                    found = self._read_tail(feed, source, partition_bytes)
                    if found is None:
                        lane.cold.append(feed)
                        feed.queued = True
                    else:
                        batches = found
                        more = bool(found) and found[-1].end_offset < source.end_offset
            sent_bytes += self._add(fields, feed, batches)
            if more:
                feed.queued = True
                held.append(feed)
        lane.queue.extend(held)
        if fields:
            self._send(lane, fields, sent_bytes)
        return bool(lane.queue) and self._may_send(lane) and self._link.has_room

    def _share(self, lane: _Lane, bytes_max: int) -> int:
        return self._feeder.throttle.share(bytes_max) if lane.catch_up else bytes_max

    def _read_tail(self, feed: Feed, source: PartitionLog, max_bytes: int) -> list[StoredBatch] | None:
        try:
            return source.read_tail_envelopes(feed.next_offset, end_offset=source.end_offset, max_bytes=max_bytes)
        except OffsetOutOfRange:
            return None

    def _send(self, lane: _Lane, fields: list[bytes], sent_bytes: int) -> None:
        lane.credit_bytes -= sent_bytes
        if lane.catch_up:
            self._feeder.throttle.take(sent_bytes)
        self.send(replication_pb2.PullResponse(catch_up=lane.catch_up), fields)

    def _add(self, fields: list[bytes], feed: Feed, batches: list[StoredBatch]) -> int:
        """Adds news of one partition, if there are any, as fields of a PullResponse; the size of its batches."""
        partition = feed.partition
        source = partition.local
        assert source is not None
        says = (partition.high_watermark, source.log_start_offset, partition.replicated_offset)
        if not batches and says == feed.said:
            return 0
        feed.said = says
        pulled = replication_pb2.PulledPartition(
            log_id=partition.log_id,
            session=feed.session,
            high_watermark=says[0],
            log_start_offset=says[1],
            replicated_offset=says[2],
        )
        within = [pulled.SerializeToString()]
        for batch in batches:
            within += (wire.head(wire.FIELD_3, len(batch.envelope)), batch.envelope)  # its `envelopes`
        fields.append(wire.head(wire.FIELD_1, sum(map(len, within))))  # the response's `partitions`
        fields += within
        if batches:
            feed.next_offset = batches[-1].end_offset
        return sum(len(batch.envelope) for batch in batches)

    # --- what is no longer in memory

    def _read_cold(self, lane: _Lane) -> None:
        if lane.cold and lane.reader is None and self._may_send(lane) and self._link.has_room and not self._closed:
            lane.reader = asyncio.get_running_loop().create_task(self._read_one(lane))
            lane.reader.add_done_callback(lambda _: self._cold_read(lane))

    def _cold_read(self, lane: _Lane) -> None:
        lane.reader = None
        self._schedule()

    async def _read_one(self, lane: _Lane) -> None:
        feed = lane.cold.popleft()
        if not feed.alive:
            return
        partition, source = feed.partition, feed.partition.local
        assert source is not None
        offset, end_offset = feed.next_offset, source.written_end_offset
        if offset >= end_offset:
            # No longer in memory, not written yet. Nothing waits between this look and the flag.
            feed.queued = False
            feed.waits_for_disk = True
            return
        try:
            batches = await source.read_envelopes(
                offset, end_offset=end_offset, max_bytes=self._share(lane, self._settings.response_bytes_max)
            )
            feed.queued = False  # until here, a wake-up would have put it in line twice
        except OffsetOutOfRange:
            # Trimmed meanwhile: the follower is told where the log starts when it asks again.
            if feed.alive:
                self._remove(feed)
                answer = replication_pb2.PulledPartition(
                    log_id=partition.log_id, session=feed.session, reset_offset=source.log_start_offset
                )
                self.send(replication_pb2.PullResponse(partitions=[answer]))
            return
        except LogCorrupt as error:
            log.error("replication_read_failure", error=str(error), follower=self._node_id)
            feed.queued = False
            return  # woken again with the next append; the follower leaves the ISR
        except StorageError:
            return  # deleted, or the disk failed
        if not feed.alive or self._closed:
            return  # another leader epoch, session or link
        if batches:
            fields: list[bytes] = []
            sent_bytes = self._add(fields, feed, batches)
            self._send(lane, fields, sent_bytes)
        else:
            feed.next_offset = end_offset  # compaction left nothing
        feed.wake()
