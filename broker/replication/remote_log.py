"""A partition without a replica in sync here, read through its leader; and the leader's side of that.

`RemoteLog` reads as a `PartitionLog` does. Owns a long poll for news of the partition that runs only while somebody
listens. It keeps what was read last (remote_buffers.py), and nothing else: each answer is the leader's of that moment,
and says with the bounds what may be read at all. `RemoteReads` answers, and refuses what this node does not lead.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import structlog

from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.peers.calls import Calls, PeerUnreachable
from broker.peers.links import PeerId
from broker.replication.remote_buffers import RemoteBuffers
from broker.replication.settings import ReplicationSettings
from broker.storage.batch import StoredBatch
from broker.storage.envelope import EnvelopeDamaged
from broker.storage.errors import LogCorrupt, OffsetOutOfRange, StorageError
from broker.stubs import replication_pb2

log = structlog.get_logger()

READ, WATCH, TIME, BOUNDS = "partition.read", "partition.watch", "partition.offset_for_time", "partition.high_watermark"
# A leader in a new epoch, or this node, may be a moment behind the image.
_RETRY_S = 0.05
# What a call may take beyond the time that its handler waits.
_MARGIN_S = 1.0
_AGAIN = frozenset((Reason.ERROR_REASON_NOT_LEADER, Reason.ERROR_REASON_NO_LEADER))


class ReadableLog(Protocol):
    """What can be read of a partition, wherever its records are."""

    @property
    def log_start_offset(self) -> int: ...

    def read_tail(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch] | None: ...

    async def read(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch]: ...

    async def offset_for_time(self, time_us: int, *, end_offset: int) -> int: ...


class RemotePartition(Protocol):
    """The partition that is read."""

    topic: str
    number: int
    log_id: int
    leader_id: int | None
    leader_epoch: int
    log: ReadableLog
    deleted: bool

    @property
    def high_watermark(self) -> int: ...

    def remote_news(self, *, high_watermark: int, log_start_offset: int) -> None:
        """The leader says how it is."""


class RemoteLog:
    """Reads one partition of another node."""

    def __init__(
        self,
        partition: RemotePartition,
        *,
        calls: Calls | None,
        clock: Clock,
        buffers: RemoteBuffers,
        settings: ReplicationSettings,
    ) -> None:
        """calls: None on a node without peers. buffers: of all partitions of this node."""
        self.log_start_offset = 0
        """As the leader said last."""
        self._partition = partition
        self._calls = calls
        self._clock = clock
        self._settings = settings
        self._buffers = buffers
        self._watch: asyncio.Task[None] | None = None
        self._watching = False

    # --- reading

    def read_tail(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch] | None:
        """See PartitionLog: here, what was read last."""
        if offset >= end_offset:
            return []
        if offset < self.log_start_offset:
            raise self._out_of_range(offset)
        buffer = self._buffers.find(self._partition.log_id, offset)
        return None if buffer is None else list(_pick(buffer, offset, end_offset, max_bytes))

    async def read(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch]:
        """See PartitionLog; raises PostbusError, too, if no leader answers."""
        found = self.read_tail(offset, end_offset=end_offset, max_bytes=max_bytes)
        if found is not None:
            return found
        payload = replication_pb2.PartitionReadRequest(
            log_id=self._partition.log_id, offset=offset, end_offset=end_offset, bytes_max=max_bytes
        ).SerializeToString()
        deadline = self._clock.monotonic() + self._settings.remote_timeout_ms / 1000
        while True:
            answer = await self._ask(READ, payload, timeout_s=deadline - self._clock.monotonic())
            response = replication_pb2.PartitionReadResponse.FromString(answer)
            self._learn(response.bounds)
            if response.out_of_range:
                raise self._out_of_range(offset)
            if response.corrupt:
                raise LogCorrupt(self._partition.log_id, offset, response.corrupt)
            if response.envelopes or response.next_offset >= end_offset:
                break
            # Nothing is not the same as a gap that compaction left: nobody may go on behind it.
            await asyncio.sleep(_RETRY_S)
        try:
            batches = [StoredBatch.of_envelope(value) for value in response.envelopes]
        except EnvelopeDamaged as error:
            raise LogCorrupt(self._partition.log_id, offset, str(error)) from error
        if batches and self._partition.log is self and not self._partition.deleted:
            self._buffers.keep(self._partition.log_id, batches)
        return list(_pick(batches, offset, end_offset, max_bytes))

    async def offset_for_time(self, time_us: int, *, end_offset: int) -> int:
        """See PartitionLog; raises PostbusError, too, if no leader answers."""
        request = replication_pb2.PartitionTimeRequest(
            log_id=self._partition.log_id, time_us=time_us, end_offset=end_offset
        )
        answer = await self._ask(TIME, request.SerializeToString(), timeout_s=self._settings.remote_timeout_ms / 1000)
        return replication_pb2.PartitionTimeResponse.FromString(answer).offset

    async def fresh_bounds(self, timeout_s: float) -> replication_pb2.PartitionBounds:
        """What may be read, asked of the leader: at least all that was acknowledged before. Raises PostbusError."""

        def request(left_s: float) -> bytes:
            wait_ms = max(1, round(left_s * 900))  # so that its refusal, which says why, comes in time
            asked = replication_pb2.PartitionBoundsRequest(log_id=self._partition.log_id, wait_ms=wait_ms)
            return asked.SerializeToString()

        answer = await self._ask(BOUNDS, request, timeout_s=timeout_s)
        bounds = replication_pb2.PartitionBounds.FromString(answer)
        self._learn(bounds)
        return bounds

    # --- news

    def watch(self, wanted: bool) -> None:
        """Whether anybody listens."""
        self._watching = wanted and self._calls is not None
        if self._watching and self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._poll())
        elif not self._watching and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def forget(self) -> None:
        """It is read elsewhere from now on."""
        self._buffers.drop(self._partition.log_id)

    async def close(self) -> None:
        """Nobody is told anything any more."""
        task = self._watch
        self.watch(False)
        if task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _poll(self) -> None:
        known = replication_pb2.PartitionBounds(high_watermark=-1)
        wait_ms = self._settings.remote_wait_ms
        while True:
            partition = self._partition
            request = replication_pb2.PartitionWatchRequest(log_id=partition.log_id, known=known, wait_ms=wait_ms)
            try:
                answer = await self._ask(WATCH, request.SerializeToString(), timeout_s=wait_ms / 1000 + _MARGIN_S)
            except PostbusError:
                await asyncio.sleep(_RETRY_S * 4)
                continue
            known = replication_pb2.PartitionBounds.FromString(answer)
            self._learn(known)

    def _learn(self, bounds: replication_pb2.PartitionBounds) -> None:
        self.log_start_offset = max(self.log_start_offset, bounds.log_start_offset)
        self._partition.remote_news(high_watermark=bounds.high_watermark, log_start_offset=self.log_start_offset)

    # ---

    async def _ask(self, method: str, payload: bytes | Callable[[float], bytes], *, timeout_s: float) -> bytes:
        """Asks the leader, whoever that is by then, until one answers or the time is up."""
        calls = self._calls
        deadline = self._clock.monotonic() + timeout_s
        why = "nobody leads it"
        while calls is not None and (left_s := deadline - self._clock.monotonic()) > 0:
            leader_id = self._partition.leader_id
            if leader_id is not None:
                try:
                    return await calls.call(
                        leader_id, method, payload if isinstance(payload, bytes) else payload(left_s), timeout_s=left_s
                    )
                except PostbusError as error:
                    if error.reason not in _AGAIN:
                        raise
                    why = error.message
                except (PeerUnreachable, TimeoutError) as error:
                    why = f"node {leader_id}, which leads it, does not answer: {error}"
            await asyncio.sleep(min(_RETRY_S, max(0.0, deadline - self._clock.monotonic())))
        raise PostbusError(
            Reason.ERROR_REASON_NO_LEADER,
            f"{self._partition.topic}/{self._partition.number} can't be read now: {why}",
            retry_after_ms=500,
        )

    def _out_of_range(self, offset: int) -> OffsetOutOfRange:
        return OffsetOutOfRange(
            offset, log_start_offset=self.log_start_offset, end_offset=self._partition.high_watermark
        )


def _pick(batches: list[StoredBatch], offset: int, end_offset: int, max_bytes: int) -> Iterator[StoredBatch]:
    """Whole batches from the one that holds `offset`, at least one."""
    size_bytes = 0
    for batch in batches:
        if batch.end_offset <= offset:
            continue
        if batch.base_offset >= end_offset:
            return
        size_bytes += len(batch.envelope)
        if size_bytes > max_bytes and size_bytes > len(batch.envelope):
            return
        yield batch


# --- the leader's side


class ServedPartition(Protocol):
    """A partition, as the leader's side needs it."""

    topic: str
    number: int
    leader_epoch: int

    @property
    def leading(self) -> bool: ...

    @property
    def log(self) -> ReadableLog: ...

    @property
    def durable_end_offset(self) -> int: ...

    @property
    def high_watermark(self) -> int: ...

    def not_leading(self) -> PostbusError: ...

    async def another_copy(self, damaged: ReadableLog) -> bool: ...

    async def fresh_high_watermark(self, timeout_s: float) -> int: ...

    def add_listener(self, wake: Callable[[], None]) -> None: ...

    def remove_listener(self, wake: Callable[[], None]) -> None: ...


class RemoteReads:
    """Answers other nodes."""

    def __init__(
        self, calls: Calls, *, partitions: Mapping[int, ServedPartition], settings: ReplicationSettings
    ) -> None:
        """partitions: all, by log id."""
        self._partitions = partitions
        self._settings = settings
        calls.handle(READ, self._read)
        calls.handle(WATCH, self._watch)
        calls.handle(TIME, self._offset_for_time)
        calls.handle(BOUNDS, self._fresh_bounds)

    async def _read(self, peer: PeerId, payload: bytes) -> bytes:
        request = replication_pb2.PartitionReadRequest.FromString(payload)
        partition = self._led(request.log_id)
        response = replication_pb2.PartitionReadResponse()
        # Whoever asks knows that it is safe up to there; a new leader may not know yet, but it has it.
        end_offset = min(request.end_offset, partition.durable_end_offset)
        source = partition.log
        try:
            batches = await source.read(
                request.offset,
                end_offset=end_offset,
                max_bytes=min(request.bytes_max, self._settings.remote_buffer_bytes),
            )
            response.envelopes.extend([batch.envelope for batch in batches])
            response.next_offset = batches[-1].end_offset if batches else end_offset
        except OffsetOutOfRange:
            response.out_of_range = True
        except LogCorrupt as error:
            if await partition.another_copy(source):
                raise partition.not_leading() from error
            response.corrupt = error.why
        except StorageError as error:
            raise PostbusError(Reason.ERROR_REASON_NO_LEADER, str(error)) from error
        response.bounds.CopyFrom(_bounds(partition))
        return response.SerializeToString()

    async def _watch(self, peer: PeerId, payload: bytes) -> bytes:
        request = replication_pb2.PartitionWatchRequest.FromString(payload)
        partition = self._led(request.log_id)
        changed = asyncio.Event()
        partition.add_listener(changed.set)
        try:
            async with asyncio.timeout(request.wait_ms / 1000):
                while partition.leading and _bounds(partition) == request.known:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            pass
        finally:
            partition.remove_listener(changed.set)
        return _bounds(self._led(request.log_id)).SerializeToString()

    async def _offset_for_time(self, peer: PeerId, payload: bytes) -> bytes:
        request = replication_pb2.PartitionTimeRequest.FromString(payload)
        partition = self._led(request.log_id)
        end_offset = min(request.end_offset, partition.durable_end_offset)
        source = partition.log
        try:
            offset = await source.offset_for_time(request.time_us, end_offset=end_offset)
        except LogCorrupt as error:
            if await partition.another_copy(source):
                raise partition.not_leading() from error
            raise PostbusError(Reason.ERROR_REASON_LOG_CORRUPT, str(error)) from error
        except StorageError as error:
            raise PostbusError(Reason.ERROR_REASON_NO_LEADER, str(error)) from error
        return replication_pb2.PartitionTimeResponse(offset=offset).SerializeToString()

    async def _fresh_bounds(self, peer: PeerId, payload: bytes) -> bytes:
        request = replication_pb2.PartitionBoundsRequest.FromString(payload)
        partition = self._led(request.log_id)
        await partition.fresh_high_watermark(request.wait_ms / 1000)
        return _bounds(self._led(request.log_id)).SerializeToString()

    def _led(self, log_id: int) -> ServedPartition:
        partition = self._partitions.get(log_id)
        if partition is None:
            raise PostbusError(Reason.ERROR_REASON_NO_LEADER, f"this node does not know log {log_id}")
        if not partition.leading:
            raise partition.not_leading()
        return partition


def _bounds(partition: ServedPartition) -> replication_pb2.PartitionBounds:
    return replication_pb2.PartitionBounds(
        log_start_offset=partition.log.log_start_offset,
        high_watermark=partition.high_watermark,
        leader_epoch=partition.leader_epoch,
    )
