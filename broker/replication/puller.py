"""The follower's side of replication: one "pull" link to each node that leads something we replicate.

Owns the links: connects, notices silence, connects again with back-off; asks for partitions that are new or whose role
changed; hands what comes to the logs; and reports, once a turn of the loop, what has become durable. What to do with an
answer is decided in `follower.py`; the partition carries it out.

Back-pressure is credit: so many bytes may be under way from a leader, and they are given back once the batches are in
the committer's queue and that has room.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from broker.clock import Clock
from broker.peers.backoff import Backoff
from broker.peers.links import Link, Transport
from broker.replication.feeder import SERVICE
from broker.replication.follower import Diverging, FollowedPartition, Reset, Truncate
from broker.replication.settings import ReplicationSettings
from broker.storage.envelope import EnvelopeDamaged
from broker.storage.errors import DiskFull, ReplicaDiverged, StorageError
from broker.storage.log import PartitionLog
from broker.stubs import replication_pb2

log = structlog.get_logger()


class FollowingPartition(Protocol):
    """A partition that has a replica here."""

    log_id: int

    @property
    def partition_epoch(self) -> int:
        """As the image here has it."""

    @property
    def local(self) -> PartitionLog | None: ...

    @property
    def followed(self) -> FollowedPartition | None:
        """None: not following."""

    @property
    def cutting(self) -> bool:
        """The log is being truncated, or about to be emptied; `Puller.ask` follows."""

    def leader_said(self, *, replicated_offset: int) -> None:
        """High watermark and log start of the leader may have moved."""

    def cut(self, act: Truncate | Reset) -> None:
        """Carries it out, and calls `Puller.ask` when it is durable."""


class Puller:
    """All leaders that this node follows."""

    def __init__(
        self,
        *,
        transport: Transport,
        clock: Clock,
        random: Random,
        settings: ReplicationSettings,
        broker_epoch: Callable[[], int],
        has_room: Callable[[], bool],
        wait_for_room: Callable[[], Awaitable[None]],
    ) -> None:
        """has_room, wait_for_room: of the committer."""
        self.transport = transport
        self.clock = clock
        self.random = random
        self.settings = settings
        self.broker_epoch = broker_epoch
        self.has_room = has_room
        self.wait_for_room = wait_for_room
        self._leaders: dict[int, _Leader] = {}
        self._closed = False

    def ask(self, partition: FollowingPartition) -> None:
        """It follows a leader as of now, or has to ask its leader anew."""
        followed = partition.followed
        if followed is None or self._closed:
            return
        leader = self._leaders.get(followed.leader_id)
        if leader is None:
            leader = self._leaders[followed.leader_id] = _Leader(self, followed.leader_id)
        leader.ask(partition)

    def forget(self, partition: FollowingPartition, leader_id: int) -> None:
        """It does not follow this leader any more."""
        leader = self._leaders.get(leader_id)
        if leader is not None and leader.forget(partition):
            del self._leaders[leader_id]

    def progressed(self, partition: FollowingPartition, followed: FollowedPartition) -> None:
        """Its log's durable end has moved."""
        leader = self._leaders.get(followed.leader_id)
        if leader is not None:
            leader.progressed(partition.log_id)

    def ask_all_again(self) -> None:
        """This node was registered anew: leaders hear of its broker epoch."""
        for leader in self._leaders.values():
            leader.ask_all()

    async def close(self) -> None:
        """Ends all links."""
        self._closed = True
        tasks = [task for leader in self._leaders.values() if (task := leader.end()) is not None]
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


class _Leader:
    """Another node, and what it leads of ours."""

    def __init__(self, puller: Puller, node_id: int) -> None:
        self._puller = puller
        self._settings = puller.settings
        self._node_id = node_id
        self._partitions: dict[int, FollowingPartition] = {}
        self._session = 0
        self._backoff = Backoff(puller.random)
        self._pulling: _Pulling | None = None
        self._timer: asyncio.TimerHandle | None = None  # for the next connection
        self._silence: asyncio.TimerHandle | None = None
        self._ended = False
        # What the next message says.
        self._scheduled = False
        self._starts: dict[int, None] = {}
        self._stops: dict[int, None] = {}
        self._progress: dict[int, None] = {}
        self._credit_bytes = 0
        self._catch_up_credit_bytes = 0
        self._room: asyncio.Task[None] | None = None
        self._failing: dict[int, Backoff] = {}  # by log id: what came last could not be taken

    # --- what we follow

    def ask(self, partition: FollowingPartition) -> None:
        self._partitions[partition.log_id] = partition
        self._starts[partition.log_id] = None
        self._stops.pop(partition.log_id, None)
        if self._pulling is None and self._timer is None:
            self._connect()
        self._schedule()

    def ask_all(self) -> None:
        # Those that were asked for and not answered yet, too: the question named the broker epoch before.
        self._starts.update(dict.fromkeys(self._partitions))
        self._schedule()

    def forget(self, partition: FollowingPartition) -> bool:
        """True: nothing is left, and the link is closed."""
        if self._partitions.get(partition.log_id) is partition:
            del self._partitions[partition.log_id]
            self._starts.pop(partition.log_id, None)
            self._progress.pop(partition.log_id, None)
            self._failing.pop(partition.log_id, None)
            self._stops[partition.log_id] = None
        if self._partitions:
            self._schedule()
            return False
        self.end()
        return True

    def progressed(self, log_id: int) -> None:
        if log_id not in self._progress:
            self._progress[log_id] = None
            self._schedule()

    # --- the link

    def end(self) -> asyncio.Task[None] | None:
        self._ended = True
        for timer in (self._timer, self._silence):
            if timer is not None:
                timer.cancel()
        if self._pulling is not None:
            self._pulling.link.close()
            self._pulling = None
        if self._room is not None:
            self._room.cancel()
        return self._room

    def _connect(self) -> None:
        self._timer = None
        if self._ended:
            return
        pulling = self._pulling = _Pulling(self)
        pulling.link = self._puller.transport.connect(self._node_id, SERVICE, pulling)
        pulling.heard_s = self._puller.clock.monotonic()
        self._progress.clear()
        self._stops.clear()
        self._credit_bytes = self._settings.credit_bytes
        self._catch_up_credit_bytes = self._settings.catch_up_credit_bytes
        self._starts = dict.fromkeys(self._partitions)
        if self._silence is not None:
            self._silence.cancel()
        self._watch(pulling)
        self._schedule()

    def _watch(self, pulling: "_Pulling") -> None:
        """A stalled link looks like one on which nothing happens; but a leader always has something to say."""
        if self._pulling is not pulling:
            return
        silence_s = self._settings.link_silence_ms / 1000
        left_s = pulling.heard_s + silence_s - self._puller.clock.monotonic()
        if left_s <= 0:
            log.warning("replication_link_stall", leader=self._node_id)
            pulling.link.close()
            self.lost(pulling)
        else:
            self._silence = asyncio.get_running_loop().call_later(left_s, self._watch, pulling)

    def lost(self, pulling: "_Pulling") -> None:
        if self._pulling is not pulling:
            return
        self._pulling = None
        for partition in self._partitions.values():
            if partition.followed is not None:
                partition.followed.silence()
        if self._ended:
            return
        # A link that worked is worth one try at once: the leader drops us from the ISR if we stay away.
        delay_s = 0.0 if pulling.heard else self._backoff.failed()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._connect)

    def received(self, pulling: "_Pulling", message: bytes) -> None:
        if self._pulling is not pulling:
            return
        try:
            response = replication_pb2.PullResponse.FromString(message)
        except DecodeError:
            log.warning("peer_garbage", peer=self._node_id, service=SERVICE)
            pulling.link.close()
            return
        pulling.heard = True
        pulling.heard_s = self._puller.clock.monotonic()
        self._backoff.worked()
        size_bytes = 0
        for pulled in response.partitions:
            envelopes = list(pulled.envelopes)
            size_bytes += sum(map(len, envelopes))
            partition = self._partitions.get(pulled.log_id)
            if partition is None:
                continue
            followed = partition.followed
            if followed is not None and followed.session == pulled.session:
                self._take(partition, followed, pulled, envelopes)
        if size_bytes:
            if response.catch_up:
                self._catch_up_credit_bytes += size_bytes
            else:
                self._credit_bytes += size_bytes
            self._schedule()

    def _take(
        self,
        partition: FollowingPartition,
        followed: FollowedPartition,
        pulled: replication_pb2.PulledPartition,
        envelopes: list[bytes],
    ) -> None:
        local = partition.local
        assert local is not None
        if pulled.not_leader:
            self._ask_later(partition, followed)
            return
        diverging = None
        if pulled.HasField("diverging"):
            diverging = Diverging(pulled.diverging.epoch, pulled.diverging.end_offset)
        act = followed.answered(
            local,
            log_start_offset=pulled.log_start_offset,
            high_watermark=pulled.high_watermark,
            diverging=diverging,
            reset_offset=pulled.reset_offset if pulled.HasField("reset_offset") else None,
        )
        if act is not None:
            partition.cut(act)
            return
        if envelopes:
            try:
                local.append_replicated(envelopes)
            except (EnvelopeDamaged, ReplicaDiverged, DiskFull) as error:
                if partition.log_id not in self._failing:
                    log.warning("replication_failure", leader=self._node_id, log_id=partition.log_id, error=str(error))
                self._ask_later(partition, followed)
                return
            except StorageError:
                followed.silence()  # deleted, or the disk failed, which ends the process
                return
            self._failing.pop(partition.log_id, None)
        partition.leader_said(replicated_offset=pulled.replicated_offset)

    def _ask_later(self, partition: FollowingPartition, followed: FollowedPartition) -> None:
        followed.silence()
        backoff = self._failing.setdefault(
            partition.log_id, Backoff(delay_min_s=self._settings.retry_ms / 1000, delay_max_s=1.0)
        )

        def again() -> None:
            if not self._ended and partition.followed is followed and not followed.session:
                self.ask(partition)

        asyncio.get_running_loop().call_later(backoff.failed(), again)

    # --- what we say

    def _schedule(self) -> None:
        if not self._scheduled and self._pulling is not None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Says all there is to say, in one message."""
        self._scheduled = False
        pulling = self._pulling
        if pulling is None or self._ended or not pulling.link.has_room:
            return
        request = replication_pb2.PullRequest()
        self._say_starts(request)
        for log_id in self._progress:
            self._say_progress(request, log_id)
        self._progress.clear()
        request.stops.extend(self._stops)
        self._stops.clear()
        if self._credit_bytes or self._catch_up_credit_bytes:
            if self._puller.has_room():
                request.credit_bytes, request.catch_up_credit_bytes = self._credit_bytes, self._catch_up_credit_bytes
                self._credit_bytes = self._catch_up_credit_bytes = 0
            elif self._room is None:
                self._room = asyncio.get_running_loop().create_task(self._wait_for_room())
        if request.ByteSize():
            pulling.link.send(request.SerializeToString())

    def _say_starts(self, request: replication_pb2.PullRequest) -> None:
        if not self._starts:
            return
        request.broker_epoch = self._puller.broker_epoch()
        for log_id in self._starts:
            partition = self._partitions[log_id]
            followed, local = partition.followed, partition.local
            if followed is None or local is None or partition.cutting:
                continue
            self._session += 1
            ask = followed.ask(local, session=self._session)
            request.starts.add(
                log_id=log_id,
                leader_epoch=ask.leader_epoch,
                session=ask.session,
                fetch_offset=ask.fetch_offset,
                last_epoch=ask.last_epoch,
                durable_offset=ask.durable_offset,
                partition_epoch=partition.partition_epoch,
            )
        self._starts.clear()

    def _say_progress(self, request: replication_pb2.PullRequest, log_id: int) -> None:
        partition = self._partitions.get(log_id)
        if partition is None or partition.followed is None or partition.local is None:
            return
        local, session = partition.local, partition.followed.session
        if session:
            written = local.written_end_offset if local.wants_written else 0
            request.progress.add(
                log_id=log_id, session=session, durable_offset=local.durable_end_offset, written_offset=written
            )

    async def _wait_for_room(self) -> None:
        try:
            with contextlib.suppress(StorageError):  # it failed for good
                await self._puller.wait_for_room()
        finally:
            self._room = None
        self._schedule()


class _Pulling:
    """One connection's handler: what comes late from an earlier one is known by it."""

    link: Link

    def __init__(self, leader: _Leader) -> None:
        self._leader = leader
        self.heard = False
        self.heard_s = 0.0

    def received(self, message: bytes) -> None:
        """A PullResponse."""
        self._leader.received(self, message)

    def writable(self) -> None:
        """There is room for what was held back."""
        self._leader.flush()

    def closed(self) -> None:
        """Connect again."""
        self._leader.lost(self)
