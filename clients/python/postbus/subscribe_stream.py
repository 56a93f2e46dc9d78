"""The connection of a subscription: opens the stream, fills a bounded queue, sends what is said, comes back.

A stream that breaks is opened again at the next address, from exactly where this one was: without a group by its own
positions, in a group as the same member, with the acknowledgements repeated that may not have arrived. Silence of
three heartbeats counts as broken. What a handler is doing in the meantime goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, cast

import grpc
import grpc.aio

from postbus import compression, errors
from postbus.connection import Connections, backoff
from postbus.reading import Reading
from postbus.records import Batch
from postbus.v1 import record_pb2, subscriber_pb2, topic_pb2

log = logging.getLogger("postbus.subscription")

TICK: Final = 0.5
HEARTBEAT_DEFAULT: Final = 5.0
SILENT_HEARTBEATS: Final = 3
# Until `started`: joining a group may wait for its coordinator.
START_TIMEOUT: Final = 45.0
FIND_ENDS_TIMEOUT: Final = 30.0

_Frame = tuple[int, subscriber_pb2.SubscribeResponse]
_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a subscription.

    kind: "assigned", "revoking" (finish what you have), "revoked", "lost" (drop what you have), "caught_up",
        "skipped" (offsets were passed over), "ack_rejected", "connected", "disconnected".
    partitions: (topic, partition, offset): where they start, where they are; -1 where there is no offset to tell.
    detail: for people.
    """

    kind: str
    partitions: tuple[tuple[str, int, int], ...] = ()
    detail: str = ""


@dataclass(slots=True)
class SubscribePlan:
    """What was asked for, and what to ask for when coming back."""

    start: subscriber_pb2.SubscribeStart
    selectors: list[subscriber_pb2.TopicSelector]
    prefetch_bytes_max: int
    until_end: bool
    started: bool = field(default=False)

    def request(self, readings: Iterable[Reading]) -> subscriber_pb2.SubscribeRequest:
        """The first message of a stream: the original one, or one that goes on where `readings` are."""
        request = subscriber_pb2.SubscribeRequest()
        start = request.start
        start.CopyFrom(self.start)
        start.accept_compressions.extend(compression.readable())
        for selector in self.selectors:
            start.topics.add().CopyFrom(selector)
        if start.group or not self.started:
            return request
        by_topic = {selector.topic: selector for selector in start.topics}
        for selector in start.topics:
            del selector.positions[:]
            # Partitions that are not known here came later: they are read from their beginning.
            selector.start_at.edge = subscriber_pb2.LOG_EDGE_EARLIEST
        for reading in readings:
            by_topic[reading.topic].positions.add(
                topic=reading.topic, partition=reading.partition, offset=reading.received_offset or 0
            )
            if reading.paused:
                request.pause.add(topic=reading.topic, partition=reading.partition)
        return request


class StreamRunner:
    """Keeps a stream open for as long as the subscription lives."""

    def __init__(
        self,
        connections: Connections,
        plan: SubscribePlan,
        *,
        make_batch: Callable[[subscriber_pb2.DeliveredBatch], Batch],
        on_event: Callable[[Event], None] | None,
        on_tick: Callable[[], None],
        on_void: Callable[[str, int], None],
        reconnect_timeout: float | None,
    ) -> None:
        self._connections = connections
        self._plan = plan
        self._make_batch = make_batch
        self._on_event = on_event
        self._on_tick = on_tick
        self._on_void = on_void
        self._reconnect_timeout = reconnect_timeout

        self.readings: dict[_Key, Reading] = {}
        self.command = subscriber_pb2.SubscribeRequest()
        self.ended = False
        self.failure: errors.PostbusError | None = None
        self._shared = False
        self._assigned_once = False
        self._queue: deque[tuple[Batch, int]] = deque()
        self._queue_bytes = 0
        self._dirty: dict[_Key, Reading] = {}
        self._command_id = 0
        self._consumers: list[asyncio.Future[None]] = []
        self._room = asyncio.Event()
        self._send_wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._call: grpc.aio.StreamStreamCall[bytes, _Frame] | None = None
        self._closing = False
        self._leaving = False
        # Why we cancelled the call ourselves, if we did.
        self._cut = ""
        self._connected_time = 0.0
        self._reading_since = 0.0
        self._heartbeat = 0.0

    # --- the consumer's side -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens the stream, once."""
        if self._task is None and not self.ended:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="postbus-subscription")

    def pop(self) -> Batch | None:
        """The next batch that may be handed out, or None."""
        queue = self._queue
        if not queue:
            return None
        for index, (batch, size) in enumerate(queue):
            if not self.readings[batch.topic, batch.partition].paused:
                del queue[index]
                self._queue_bytes -= size
                if self._queue_bytes < self._plan.prefetch_bytes_max:
                    self._room.set()
                return batch
        return None

    def queued(self) -> Iterator[Batch]:
        """Batches that were read ahead."""
        return (batch for batch, _ in self._queue)

    async def wait(self) -> None:
        """Until there may be something new for the consumer."""
        waiter = asyncio.get_running_loop().create_future()
        self._consumers.append(waiter)
        await waiter

    @property
    def caught_up(self) -> bool:
        """True: everything assigned was read to its end, and handed out."""
        mine = [reading for reading in self.readings.values() if reading.assigned]
        return self._assigned_once and not self._queue and all(reading.caught_up for reading in mine)

    def _notify(self) -> None:
        waiters, self._consumers = self._consumers, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def acknowledge(self, topic: str, partition: int, begin: int, end: int, fence: int) -> None:
        """Done with [begin, end), which came under `fence`."""
        reading = self.readings.get((topic, partition))
        if reading is None or reading.fence != fence or not reading.assigned:
            self._tell("ack_rejected", [(topic, partition, begin)], "the partition went elsewhere")
            return
        reading.acknowledge(begin, end)
        self._dirty[topic, partition] = reading
        self._send_wake.set()

    def send(self) -> None:
        """`command` was filled."""
        self._send_wake.set()

    def seek(self, reading: Reading, offset: int) -> None:
        """Goes on from `offset`; what was read ahead is void."""
        self._command_id += 1
        reading.moved(offset, self._command_id)
        self._drop(reading)
        self._put_seek(reading)

    def _put_seek(self, reading: Reading) -> None:
        seek = self.command.seeks.add()
        seek.partition.topic = reading.topic
        seek.partition.partition = reading.partition
        seek.to.offset = reading.seek_offset
        self.command.command_id = reading.seek_command_id
        self._send_wake.set()

    def pause(self, reading: Reading, *, paused: bool) -> None:
        """Stops or goes on with a partition."""
        reading.paused = paused
        into = self.command.pause if paused else self.command.resume
        into.add(topic=reading.topic, partition=reading.partition)
        self._send_wake.set()
        self._notify()

    def _drop(self, reading: Reading) -> None:
        """Drops what was read ahead of a partition, and what the consumer has in hand of it."""
        kept: deque[tuple[Batch, int]] = deque()
        for batch, size in self._queue:
            if batch.topic == reading.topic and batch.partition == reading.partition:
                self._queue_bytes -= size
            else:
                kept.append((batch, size))
        self._queue = kept
        self._room.set()
        self._on_void(reading.topic, reading.partition)

    def _tell(self, kind: str, partitions: Iterable[tuple[str, int, int]] = (), detail: str = "") -> None:
        if self._on_event is not None:
            try:
                self._on_event(Event(kind, tuple(partitions), detail))
            except Exception:
                log.exception("on_event failed")

    # --- the stream's side ---------------------------------------------------------------------------------------

    async def _run(self) -> None:
        attempt = 0
        tick = asyncio.get_running_loop().create_task(self._tick())
        self._connected_time = time.monotonic()
        try:
            if self._plan.until_end:
                await self._find_ends()
            while not self.ended:
                address = self._connections.address
                self._leaving = False
                before = self._connected_time
                failure = await self._serve(address)
                if self._closing or self.ended:
                    return
                if failure is None and not self._leaving:
                    self._finish(None)
                    return
                if self._connected_time > before:
                    attempt = 0
                self._tell("disconnected", detail=str(failure or f"{address} is going away"))
                self._connections.rotate(address)
                if failure is None:
                    await asyncio.sleep(self._connections.moving_delay)
                    continue
                if not _worth_another_try(failure):
                    self._finish(failure)
                    return
                if failure.reason in {"PROCESSING_TIMEOUT", "ASSIGNMENT_LOST"}:
                    log.warning("%s", failure)
                    self._all_lost(failure)
                patience = self._reconnect_timeout
                if patience is not None and time.monotonic() - self._connected_time > patience:
                    self._finish(failure)
                    return
                attempt += 1
                delay = max(backoff(attempt), failure.retry_after or 0.0)
                log.info("subscription at %s broke (%s); again in %.2f s", address, failure, delay)
                await asyncio.sleep(delay)
        except errors.PostbusError as failure:
            self._finish(failure)
        except Exception as error:
            log.exception("a subscription failed")
            self._finish(errors.PostbusError(f"the subscription failed: {error!r}"))
        finally:
            tick.cancel()

    def _all_lost(self, failure: errors.PostbusError) -> None:
        """The membership ended: what is here belongs to others now, and comes again if it comes back."""
        held = [reading for reading in self.readings.values() if reading.assigned]
        for reading in held:
            reading.lost()
            self._drop(reading)
        self._tell("lost", [(reading.topic, reading.partition, -1) for reading in held], str(failure))

    def _finish(self, failure: errors.PostbusError | None) -> None:
        self.ended = True
        self.failure = failure
        self._notify()

    async def _find_ends(self) -> None:
        """Where "until the end" is, fixed once: a stream that is opened again must not end later."""
        deadline = time.monotonic() + FIND_ENDS_TIMEOUT
        for selector in self._plan.selectors:
            request = topic_pb2.ListOffsetsRequest(topic=selector.topic, partitions=selector.partitions)
            attempt = 0
            while True:
                left = max(0.001, deadline - time.monotonic())
                answer = await self._connections.call(
                    "TopicService/ListOffsets", request, topic_pb2.ListOffsetsResponse.FromString, timeout=left
                )
                for found in answer.partitions:
                    self._reading(selector.topic, found.partition).stop_offset = found.high_watermark
                # A partition whose leader does not answer now has an end that nobody else knows.
                failing = [found for found in answer.partitions if found.HasField("failure")]
                if not failing:
                    break
                failure = errors.from_failure(failing[0].failure)
                self._tell("disconnected", detail=str(failure))
                attempt += 1
                delay = max(backoff(attempt), failure.retry_after or 0.0)
                if not failure.retriable or time.monotonic() + delay >= deadline:
                    raise failure
                await asyncio.sleep(delay)
                del request.partitions[:]
                request.partitions.extend(found.partition for found in failing)

    async def _serve(self, address: str) -> errors.PostbusError | None:
        """Reads one stream to its end: None if that was OK."""
        for reading in self.readings.values():
            reading.stream_started()
        self._dirty = {key: reading for key, reading in self.readings.items() if reading.assigned}
        call = self._connections.stream("SubscriberService/Subscribe", response=_frame)
        self._call = call
        self._cut = ""
        # Three times the interval that `started` will tell; until then, as long as joining may take.
        self._heartbeat = START_TIMEOUT / SILENT_HEARTBEATS
        self._reading_since = time.monotonic()
        writer = asyncio.get_running_loop().create_task(self._write(call))
        try:
            while True:
                frame = await call.read()
                if frame is grpc.aio.EOF:
                    break
                size, response = cast(_Frame, frame)
                self._reading_since = 0.0
                self._received(size, response)
                if self._queue_bytes >= self._plan.prefetch_bytes_max:
                    self._room.clear()
                    await self._room.wait()
                self._reading_since = time.monotonic()
            code = await call.code()
            if code is grpc.StatusCode.OK:
                return None
            failure = errors.from_status(code, await call.details() or "", list(await call.trailing_metadata() or ()))
        except grpc.aio.AioRpcError as error:
            failure = errors.from_rpc(error)
        except asyncio.CancelledError:
            # Our own cancelling of the call looks the same as being cancelled ourselves.
            if not self._cut or self._closing:
                raise
            if self._cut != "silent":
                return None
            failure = errors.Unavailable("the broker fell silent", code=grpc.StatusCode.UNAVAILABLE, retriable=True)
        finally:
            self._call = None
            self._reading_since = 0.0
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            call.cancel()
        if not failure.reason:
            failure.message = f"{address}: {failure.message}"
        return failure

    async def _write(self, call: grpc.aio.StreamStreamCall[bytes, _Frame]) -> None:
        try:
            await call.write(self._plan.request(self.readings.values()).SerializeToString())
            while True:
                await self._send_wake.wait()
                self._send_wake.clear()
                request = self._next_request()
                if request is not None:
                    await call.write(request.SerializeToString())
                # Not before all is said: more may have been acknowledged while this was being written.
                if self._send_wake.is_set():
                    continue
                if self._leaving and self._plan.start.group and not self._closing:
                    # A half-close would give the partitions up; a member that comes back at once keeps them.
                    self._cut = "leaving"
                    call.cancel()
                    return
                if self._closing or self._leaving:
                    await call.done_writing()
                    return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            return  # The reading side learns why.

    def _next_request(self) -> subscriber_pb2.SubscribeRequest | None:
        request = self.command
        said = request.ByteSize() > 0
        dirty, self._dirty = self._dirty, {}
        for key, reading in dirty.items():
            for begin, end in reading.sendable(anything=self._shared):
                said = True
                request.acks.add(topic=key[0], partition=key[1], base_offset=begin, end_offset=end, fence=reading.fence)
        if not said:
            return None
        self.command = subscriber_pb2.SubscribeRequest()
        return request

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._on_tick()
            since, call = self._reading_since, self._call
            if since > 0 and call is not None and time.monotonic() - since > SILENT_HEARTBEATS * self._heartbeat:
                log.info("the broker fell silent")
                self._reading_since = 0.0
                self._cut = "silent"
                call.cancel()

    # --- what the broker says ------------------------------------------------------------------------------------

    def _reading(self, topic: str, partition: int) -> Reading:
        reading = self.readings.get((topic, partition))
        if reading is None:
            reading = self.readings[topic, partition] = Reading(topic, partition)
        return reading

    def _received(self, size: int, response: subscriber_pb2.SubscribeResponse) -> None:
        if response.HasField("started"):
            self._started(response.started)
        if response.HasField("assignment_change"):
            self._assignment_changed(response.assignment_change)
        if response.skipped:
            self._passed_over(response.skipped)
        if response.batches:
            share = size // len(response.batches)
            for delivered in response.batches:
                self._delivered(delivered, share)
        if response.HasField("ack_report"):
            self._acks_reported(response.ack_report)
        self._progress_told(response)
        if response.command_id:
            self._command_echoed(response.command_id)
        if response.HasField("draining"):
            log.info("the broker is going away: moving on")
            self._leaving = True
            self._send_wake.set()
        if self._plan.until_end and self.readings and all(each.stopped for each in self.readings.values()):
            self._finish(None)
            if self._call is not None:
                self._cut = "done"
                self._call.cancel()
        self._notify()

    def _passed_over(self, ranges: Iterable[subscriber_pb2.SkippedRange]) -> None:
        for skipped in ranges:
            gone = skipped.range
            place = f"{gone.topic}/{gone.partition}"
            log.warning("%s: %d to %d passed over: %s", place, gone.base_offset, gone.end_offset, skipped.reason)
            self._tell("skipped", [(gone.topic, gone.partition, gone.base_offset)], skipped.reason)

    def _progress_told(self, response: subscriber_pb2.SubscribeResponse) -> None:
        for progress in response.heartbeat.progress:
            reading = self._reading(progress.topic, progress.partition)
            reading.high_watermark = max(reading.high_watermark, progress.high_watermark)
            reading.committed(progress.committed_offset)
            if not reading.seek_command_id and not self._shared:
                reading.received(progress.next_offset)
        for position in response.caught_up:
            reading = self._reading(position.topic, position.partition)
            if not reading.seek_command_id:
                reading.caught_up = True
        if response.caught_up:
            self._tell("caught_up", _places(response.caught_up))

    def _command_echoed(self, command_id: int) -> None:
        for reading in self.readings.values():
            if 0 < reading.seek_command_id <= command_id:
                reading.seek_command_id = 0

    def _started(self, started: subscriber_pb2.SubscribeStarted) -> None:
        self._connected_time = time.monotonic()
        interval = started.heartbeat_interval.ToTimedelta().total_seconds()
        self._heartbeat = interval or HEARTBEAT_DEFAULT
        self._shared = started.group_kind == subscriber_pb2.GROUP_KIND_SHARED
        if started.member_id:
            self._plan.start.member_id = started.member_id
        for position in started.positions:
            reading = self._reading(position.topic, position.partition)
            if not self._plan.started:
                reading.received(position.offset)
        self._plan.started = True
        self._tell("connected", _places(started.positions))

    def _assignment_changed(self, change: subscriber_pb2.AssignmentChange) -> None:
        for position in change.assigned:
            reading = self._reading(position.topic, position.partition)
            reading.assigned = True
            reading.caught_up = False
            reading.committed_offset = position.offset
            reading.committed(position.offset)
            if reading.seek_command_id:
                self._put_seek(reading)
            if reading.paused:
                self.pause(reading, paused=True)
        self._assigned_once = self._assigned_once or bool(change.assigned)
        for kind, gone in (("revoked", change.revoked), ("lost", change.lost)):
            for partition in gone:
                reading = self._reading(partition.topic, partition.partition)
                reading.lost()
                self._drop(reading)
            if gone:
                self._tell(kind, _partitions(gone))
        if change.assigned:
            self._tell("assigned", _places(change.assigned))
        if change.revoking:
            self._tell("revoking", _partitions(change.revoking))

    def _delivered(self, delivered: subscriber_pb2.DeliveredBatch, size: int) -> None:
        delivery = delivered.delivery
        reading = self._reading(delivery.topic, delivery.partition)
        if reading.seek_command_id:
            return  # Sent before the broker knew of the seek.
        if self._plan.start.group and reading.new_fence(delivery.fence):
            self._drop(reading)
        reading.high_watermark = max(reading.high_watermark, delivered.high_watermark)
        batch = self._make_batch(delivered)
        if not self._shared:
            begin = reading.received_offset
            reading.received(delivery.end_offset)
            if reading._held:
                self._dirty[delivery.topic, delivery.partition] = reading
                self._send_wake.set()
            end = delivery.end_offset if reading.stop_offset is None else reading.stop_offset
            if (begin is not None and delivery.base_offset < begin) or end < delivery.end_offset:
                # Here already, from a stream that broke; or beyond the end that was asked for.
                batch.cut(delivery.base_offset if begin is None else begin, end)
        if len(batch):
            self._queue.append((batch, size))
            self._queue_bytes += size

    def _acks_reported(self, report: subscriber_pb2.AckReport) -> None:
        for position in report.committed:
            self._reading(position.topic, position.partition).committed(position.offset)
        for rejected in report.rejected:
            gone = rejected.delivery
            log.info("acknowledgement of %s/%d@%d did not count", gone.topic, gone.partition, gone.base_offset)
            self._tell("ack_rejected", [(gone.topic, gone.partition, gone.base_offset)], rejected.failure.message)

    # --- leaving -------------------------------------------------------------------------------------------------

    async def close(self, *, timeout: float) -> None:
        """Sends what was acknowledged, half-closes, and waits for the broker's OK; after `timeout` just ends."""
        if self._task is None:
            self.ended = True
            return
        self._closing = True
        if self._call is not None and not self.ended:
            self._send_wake.set()
            self._queue.clear()
            self._queue_bytes = 0
            self._plan.prefetch_bytes_max = 1 << 62
            self._room.set()
            await asyncio.wait({self._task}, timeout=timeout)
        elif self._plan.start.group and not self.ended:
            await self._acknowledge_without_stream()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.ended = True
        self._notify()

    async def _acknowledge_without_stream(self) -> None:
        """The stream is broken at the moment of leaving: what is done is said by a call of its own, if it can be."""
        request = subscriber_pb2.AcknowledgeRequest(group=self._plan.start.group, member_id=self._plan.start.member_id)
        for (topic, partition), reading in self.readings.items():
            reading.stream_started()
            for begin, end in reading.sendable(anything=True):
                request.acks.add(
                    topic=topic, partition=partition, base_offset=begin, end_offset=end, fence=reading.fence
                )
        if not request.acks:
            return
        try:
            await self._connections.call(
                "SubscriberService/Acknowledge",
                request,
                subscriber_pb2.AcknowledgeResponse.FromString,
                timeout=2.0,
            )
        except errors.PostbusError as failure:
            log.info("the last acknowledgements could not be sent; those records come again: %s", failure)


def _frame(data: bytes) -> _Frame:
    return len(data), subscriber_pb2.SubscribeResponse.FromString(data)


def _worth_another_try(failure: errors.PostbusError) -> bool:
    # The API's rule by code alone; and what transports say when they break.
    if failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED) or failure.retriable:
        return True
    return not failure.reason and failure.code in (
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


def _places(positions: Iterable[record_pb2.Position]) -> list[tuple[str, int, int]]:
    return [(position.topic, position.partition, position.offset) for position in positions]


def _partitions(partitions: Iterable[record_pb2.TopicPartition]) -> list[tuple[str, int, int]]:
    return [(partition.topic, partition.partition, -1) for partition in partitions]
