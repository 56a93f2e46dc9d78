"""One open Subscribe stream: a pump that sends what is ready, and commands that change what that is.

One coroutine writes; it never reads from disk itself (cold reads are tasks that fill cursors) and never waits for
anything but the client's window and the next reason to write. Memory is bounded by what may be read ahead and by one
response, whether or not the client reads. What only groups have is in group_session.py.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final, Protocol

from postbus.v1 import record_pb2, subscriber_pb2

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.replication.partition import Partition
from broker.replication.partitions import PartitionedTopic, Partitions
from broker.replication.remote_log import ReadableLog
from broker.services import delivery, positions, requests
from broker.services.adapter import ServerStream
from broker.services.catch_up import CatchUp
from broker.services.cursor import Cursor
from broker.services.delivery import Buffer
from broker.services.partition_client import PartitionClient
from broker.services.subscribe_start import CREDIT_MAX, Plan, SubscriberSettings
from broker.services.together import together
from broker.storage.batch import StoredBatch
from broker.storage.errors import LogCorrupt, OffsetOutOfRange, StorageError

# A response stops growing once it holds so much: larger frames cost memory and latency, and gain nothing.
RESPONSE_BYTES_TARGET: Final = 1024 * 1024
# What is owed to a client that does not read: beyond that its commands wait, unread.
RESPONSES_MAX: Final = 100
# Rejections and skipped ranges in one frame, each below a kilobyte, so that none comes near a client's limit.
EVENTS_PER_FRAME_MAX: Final = 1000
CHUNKS_PER_RESPONSE_MAX: Final = delivery.BATCHES_PER_RESPONSE_MAX * delivery.CHUNKS_PER_BATCH
# Before another partition has its turn.
TURN_BYTES: Final = 512 * 1024


@dataclass(slots=True)
class Surroundings:
    """What a subscription needs of its node."""

    partitions: Partitions
    clock: Clock
    settings: SubscriberSettings
    delivered: Callable[[str, int, int], None]  # topic, records, bytes: for metrics
    # None: what is not known here, of the cluster or of partitions, does not exist.
    catch_up: CatchUp | None = None
    partition_client: PartitionClient | None = None

    async def look_for(self, topics: Iterable[tuple[str, Iterable[int]]]) -> None:
        """Names of topics and some of their partitions: if this node does not know them all, it makes sure that it
        knows all that there are. Raises NO_LEADER."""
        for name, numbers in topics:
            topic = self.partitions.find_name(name)
            if topic is None or any(number >= len(topic.partitions) for number in numbers):
                if self.catch_up is not None:
                    await self.catch_up.wait()
                return


class FlowControl(Protocol):
    """Whether more may be sent."""

    def open(self) -> bool: ...
    def spend(self, records: int, size_bytes: int) -> None: ...


class NoLimit:
    """HTTP/2's own flow control is enough."""

    def open(self) -> bool:
        return True

    def spend(self, records: int, size_bytes: int) -> None:
        """Costs nothing."""


class CreditLimit:
    """Additive credit; a batch goes while both are above zero and may overdraw them."""

    def __init__(self) -> None:
        self.records = 0
        self.size_bytes = 0

    def open(self) -> bool:
        return self.records > 0 and self.size_bytes > 0

    def spend(self, records: int, size_bytes: int) -> None:
        self.records -= records
        self.size_bytes -= size_bytes

    def add(self, credit: subscriber_pb2.Credit) -> None:
        """More credit."""
        self.records += credit.records
        self.size_bytes += credit.bytes


class Subscription:
    """The state of one stream. Subclassed for groups."""

    def __init__(self, stream: ServerStream, plan: Plan, surroundings: Surroundings) -> None:
        self.stream = stream
        self.plan = plan
        self.surroundings = surroundings
        self.cursors: dict[tuple[str, int], Cursor] = {}
        self.flow: FlowControl = CreditLimit() if plan.explicit_credit else NoLimit()
        self.events = subscriber_pb2.SubscribeResponse()
        self._has_events = False
        self._responses: deque[subscriber_pb2.SubscribeResponse] = deque()
        self._ready: deque[Cursor] = deque()
        self._fills: set[asyncio.Task[None]] = set()
        self._waiting_fills: deque[Cursor] = deque()
        self._asks: set[asyncio.Task[None]] = set()
        self._places_to_ask = asyncio.Semaphore(surroundings.settings.places_at_once_max)
        self._ahead: set[Cursor] = set()  # whose buffers came from disk and are not used up
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._heartbeat_due = False
        self._failure: Exception | None = None
        self.half_closed = False
        self._begun = False
        self._ending = False

    # --- what a plain subscription does; groups override ---

    async def begin(self) -> None:
        """Finds the places to start and announces them."""
        for selector in self.plan.selectors.values():
            topic = self.surroundings.partitions.topic(selector.topic)
            numbers = list(selector.partitions) or range(len(topic.partitions))
            exact = {position.partition: position.offset for position in selector.positions}
            for number in exact:
                topic.partition(number)
            # Each leader is asked where its partition ends: not one after the other.
            begun = await together(
                [partial(self._find_place, topic, number, selector, exact.get(number)) for number in numbers],
                at_once_max=self.surroundings.settings.places_at_once_max,
            )
            for cursor, wanted in begun:
                self.add_cursor(cursor)
                if cursor.next_offset != wanted:
                    self.skipped(cursor, wanted, cursor.next_offset)
        started = subscriber_pb2.SubscribeStarted(node_id=self.surroundings.settings.node_id)
        started.heartbeat_interval.FromMilliseconds(round(self.plan.heartbeat_interval_s * 1000))
        for cursor in self.cursors.values():
            started.positions.append(position_of(cursor, cursor.next_offset))
        self.events.started.CopyFrom(started)
        self.emit()

    async def _find_place(
        self, topic: PartitionedTopic, number: int, selector: subscriber_pb2.TopicSelector, exact: int | None
    ) -> tuple[Cursor, int]:
        """A cursor at the place to start, and the place that was asked for."""
        partition = topic.partition(number)
        timeout_s = self.surroundings.settings.leader_wait_s
        if exact is None:
            start = selector.start_at if selector.start_at.WhichOneof("at") else self.plan.start_at
            exact = await positions.resolve_start(partition, start, self.surroundings.clock, timeout_s=timeout_s)
        else:
            await positions.make_sure(partition, exact, timeout_s=timeout_s)
        offset = positions.within_range(partition, exact, self.plan.out_of_range)
        stop = None
        if selector.HasField("stop_at"):
            stop = await positions.resolve_stop(partition, selector.stop_at, timeout_s=timeout_s)
        return Cursor(partition, next_offset=offset, stop_offset=stop), exact

    def topics_changed(self) -> None:
        """Partitions came, or topics went."""
        if not self._begun:
            return  # `run` looks again once all places to start are found
        for selector in self.plan.selectors.values():
            topic = self.surroundings.partitions.find_name(selector.topic)
            ids = {topic_id for topic_id, _ in self.cursors}
            if topic is None or topic.topic_id not in ids:
                self.fail(errors.topic_not_found(selector.topic))
                return
            if selector.partitions or selector.HasField("stop_at"):
                continue
            for partition in topic.partitions:
                if (topic.topic_id, partition.number) not in self.cursors:
                    self.add_cursor(Cursor(partition, next_offset=partition.log.log_start_offset))

    async def handle(self, request: subscriber_pb2.SubscribeRequest) -> None:
        """Carries out a later request, in the order of its fields."""
        for name in ("acks", "nacks", "release"):
            if getattr(request, name):
                raise errors.invalid_field(name, "there is nothing to acknowledge or release without a group")
        self.handle_credit(request)
        for index, seek in enumerate(request.seeks):
            cursor = self.cursor_named(f"seeks[{index}].partition", seek.partition)
            check_seek(f"seeks[{index}]", seek)
            wanted = await positions.resolve_start(
                cursor.partition,
                seek.to,
                self.surroundings.clock,
                timeout_s=self.surroundings.settings.leader_wait_s,
            )
            offset = positions.within_range(cursor.partition, wanted, self.plan.out_of_range)
            self.move_cursor(cursor, offset)
            if offset != wanted:
                self.skipped(cursor, wanted, offset)
        self.handle_pauses(request)
        self.echo(request)
        if request.leave:
            self.half_close()

    async def finish(self) -> None:
        """After a half-close."""

    async def leave(self) -> None:
        """However it ended."""

    async def before_batches(self) -> bool:
        """Batches were collected and are about to be written; False: they must not be."""
        return True

    def account(self, cursor: Cursor, piece: delivery.Piece, records: int, size_bytes: int) -> None:
        """A piece is about to go out."""

    def wake(self) -> None:
        """There may be something to do for the pump."""
        self._wake.set()

    # --- requests ---

    async def receive(self, data: bytes) -> None:
        """A message after the first."""
        await self._room.wait()
        request = requests.parse(subscriber_pb2.SubscribeRequest, data)
        if request.HasField("start"):
            raise errors.invalid_field("start", "belongs into the first message only; open another stream")
        requests.refuse_unknown(request)
        if request.lease_extensions:
            raise errors.unknown_field("lease_extensions", "this version has ordered groups only")
        await self.handle(request)
        self._wake.set()

    def handle_credit(self, request: subscriber_pb2.SubscribeRequest) -> None:
        """More credit."""
        if not request.HasField("credit"):
            return
        if not isinstance(self.flow, CreditLimit):
            raise errors.invalid_field("credit", "needs start.explicit_credit")
        if max(request.credit.records, request.credit.bytes) > CREDIT_MAX:
            raise errors.invalid_field("credit", "is too much")
        self.flow.add(request.credit)

    def handle_pauses(self, request: subscriber_pb2.SubscribeRequest) -> None:
        """Stops and goes on."""
        for name, paused in (("pause", True), ("resume", False)):
            for index, named in enumerate(getattr(request, name)):
                cursor = self.cursor_named(f"{name}[{index}]", named)
                cursor.paused = paused
                self.queue(cursor)

    def echo(self, request: subscriber_pb2.SubscribeRequest) -> None:
        """The next frame carries the command id; the batches that follow know of the command."""
        if request.command_id:
            self.events.command_id = request.command_id
            self.emit()

    def cursor_named(self, field: str, named: record_pb2.TopicPartition) -> Cursor:
        """The cursor of a partition that is being read; raises where it is not."""
        cursor = self.cursors.get(self.check_place(field, named))
        if cursor is None:
            raise errors.invalid_field(field, f"{named.topic}/{named.partition} is not being read by this stream")
        return cursor

    def check_place(self, field: str, named: record_pb2.TopicPartition) -> tuple[str, int]:
        """Topic id and partition; raises where there is no such partition."""
        requests.check_name(f"{field}.topic", named.topic)
        if not named.HasField("partition"):
            raise errors.invalid_field(f"{field}.partition", "is required; partitions begin at 0")
        topic = self.surroundings.partitions.topic(named.topic)
        topic.partition(named.partition)
        return (topic.topic_id, named.partition)

    # --- cursors ---

    def add_cursor(self, cursor: Cursor) -> None:
        """Begins to read a partition."""
        assert cursor.key not in self.cursors
        self.cursors[cursor.key] = cursor
        cursor.wake = lambda: self.queue(cursor)
        cursor.partition.add_listener(cursor.wake)
        self.queue(cursor)

    def remove_cursor(self, cursor: Cursor) -> None:
        """Ends it."""
        cursor.partition.remove_listener(cursor.wake)
        cursor.move(cursor.next_offset)
        cursor.revoking = True  # it may be in a queue still
        self.cursors.pop(cursor.key, None)
        self._ahead.discard(cursor)
        self._start_fills()

    def move_cursor(self, cursor: Cursor, offset: int) -> None:
        """Goes on from elsewhere."""
        cursor.move(offset)
        self.queue(cursor)

    def queue(self, cursor: Cursor) -> None:
        """There may be something to send, or to say, of this partition."""
        if not cursor.queued and not cursor.filling:
            cursor.queued = True
            self._ready.append(cursor)
        self._wake.set()

    def skipped(self, cursor: Cursor, begin: int, end: int) -> None:
        """Tells that offsets were passed over, or that the place does not exist."""
        went_back = end < begin
        gone = self.events.skipped.add(reason="the log does not reach so far" if went_back else "no longer in the log")
        gone.range.topic = cursor.partition.topic
        gone.range.partition = cursor.partition.number
        gone.range.base_offset = min(begin, end)
        gone.range.end_offset = max(begin, end)
        gone.range.fence = cursor.fence
        self.note_event()

    # --- the pump ---

    async def run(self, begun: Callable[[], None]) -> None:
        """Sends until the stream ends; raises what ends it other than well. `begun`: commands may come now."""
        heartbeat = asyncio.create_task(self._beat())
        try:
            await self.begin()
            self._begun = True
            self.topics_changed()
            begun()
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._ending:
                    raise errors.draining()
                if self.half_closed or self._all_stopped():
                    await self.finish()
                    await self._write_events()
                    return
                if await self._write_events():
                    continue
                chunks = self._collect()
                if chunks:
                    if await self.before_batches():
                        await self.stream.write(b"".join(chunks))
                    continue
                if self._heartbeat_due:
                    self._heartbeat_due = False
                    self.events.heartbeat.CopyFrom(self._heartbeat())
                    self._has_events = True
                    continue
                await self._wake.wait()
                self._wake.clear()
        finally:
            heartbeat.cancel()
            self._waiting_fills.clear()  # or each read that ends now would begin another
            for task in (*self._fills, *self._asks):
                task.cancel()
            for cursor in list(self.cursors.values()):
                self.remove_cursor(cursor)
            await self.leave()

    def _all_stopped(self) -> bool:
        return bool(self.cursors) and all(cursor.stopped for cursor in self.cursors.values())

    def emit(self) -> None:
        """Ends a frame of events; what is said later goes into another one."""
        self._responses.append(self.events)
        if len(self._responses) >= RESPONSES_MAX:
            self._room.clear()
        self.events = subscriber_pb2.SubscribeResponse()
        self._has_events = False
        self._wake.set()

    def note_event(self) -> None:
        """Something was added to `events`."""
        self._has_events = True
        if len(self.events.ack_report.rejected) + len(self.events.skipped) >= EVENTS_PER_FRAME_MAX:
            self.emit()
        self._wake.set()

    async def _write_events(self) -> bool:
        if self._has_events:
            self.emit()
        if not self._responses:
            return False
        while self._responses:
            await self.stream.write(self._responses.popleft().SerializeToString())
        self._room.set()
        return True

    def _collect(self) -> list[Buffer]:
        """The bytes of one response: batches of ready partitions in turn. Empty: nothing to send now."""
        chunks: list[Buffer] = []
        size = 0
        limit = min(self.plan.limits.response_bytes_max, RESPONSE_BYTES_TARGET)
        while self._ready and size < limit and not self._responses:
            if len(chunks) >= CHUNKS_PER_RESPONSE_MAX or not self.flow.open():
                break
            cursor = self._ready.popleft()
            cursor.queued = False
            size = self._take_turn(cursor, chunks, size, limit)
            if cursor in self._ahead and not cursor.has_more:
                # Paused, given up or caught up: others need its place.
                cursor.forget_ahead()
                self._ahead.discard(cursor)
        self._start_fills()
        return chunks

    def _take_turn(self, cursor: Cursor, chunks: list[Buffer], size: int, limit: int) -> int:
        turn_end = min(limit, size + TURN_BYTES)
        hard_limit = self.plan.limits.response_bytes_max
        while cursor.has_more:
            if size >= turn_end or len(chunks) >= CHUNKS_PER_RESPONSE_MAX or not self.flow.open():
                self.queue(cursor)
                return size
            stored = self._head(cursor)
            if stored is None:
                return size
            if cursor.pieces is None:
                cursor.pieces = delivery.pieces(
                    stored, first_offset=cursor.next_offset, end_offset=cursor.limit, limits=self.plan.limits
                )
            try:
                piece = next(cursor.pieces, None)
            except PostbusError as error:
                # What was collected before it goes out first.
                self.fail(error)
                return size
            if piece is None:
                # Nothing of it is wanted, or it is used up.
                cursor.pieces = None
                self._pass_over_gap(cursor, min(stored.end_offset, cursor.limit))
                continue
            parts, length = delivery.encode(piece, partition=cursor.partition, stored=stored, fence=cursor.fence)
            if chunks and size + length > hard_limit:
                # It goes first in the next response.
                cursor.pieces = chain((piece,), cursor.pieces)
                self.queue(cursor)
                return limit
            chunks += parts
            size += length
            records = piece.record_count
            self.flow.spend(records, len(piece.batch))
            self.account(cursor, piece, records, len(piece.batch))
            self.surroundings.delivered(cursor.partition.topic, records, len(piece.batch))
            cursor.next_offset = piece.end_offset
        self._note_caught_up(cursor)
        return size

    def _note_caught_up(self, cursor: Cursor) -> None:
        if not cursor.caught_up and not cursor.paused and cursor.next_offset >= cursor.partition.high_watermark:
            if not (cursor.end_known or cursor.partition.leading):
                self._ask_end(cursor)
                return
            cursor.caught_up = True
            self.events.caught_up.append(position_of(cursor, cursor.next_offset))
            self.note_event()

    def _ask_end(self, cursor: Cursor) -> None:
        """Whoever stops once caught up must have seen all that was acknowledged before: its leader knows."""
        if not cursor.end_asked:
            cursor.end_asked = True
            task = asyncio.create_task(self._find_end(cursor))
            self._asks.add(task)
            task.add_done_callback(self._asks.discard)

    async def _find_end(self, cursor: Cursor) -> None:
        settings, generation = self.surroundings.settings, cursor.generation
        while self.cursors.get(cursor.key) is cursor and cursor.generation == generation:
            try:
                async with self._places_to_ask:
                    await positions.latest(cursor.partition, settings.leader_wait_s)
            except PostbusError as error:
                if not error.kind.retriable:
                    return  # the topic went, which others tell
                await asyncio.sleep(settings.read_retry_s)
                continue
            if cursor.generation == generation:
                cursor.end_known = True
                self.queue(cursor)
            return

    def _head(self, cursor: Cursor) -> StoredBatch | None:
        if cursor.next_offset < cursor.partition.log.log_start_offset:
            self._pass_over_gone(cursor)
            if not cursor.has_more:
                return None
        if cursor in self._ahead and cursor.used_up:
            self._ahead.discard(cursor)
        try:
            stored = cursor.head()
        except OffsetOutOfRange:
            self._pass_over_gone(cursor)
            return None
        if stored is None:
            self._fill(cursor)
        return stored

    def _pass_over_gone(self, cursor: Cursor) -> None:
        """Retention overtook the cursor."""
        begin = cursor.next_offset
        if self.plan.out_of_range == subscriber_pb2.OUT_OF_RANGE_POLICY_FAIL:
            self.fail(positions.out_of_range(cursor.partition, begin))
            return
        end = cursor.partition.log.log_start_offset
        if self.plan.out_of_range == subscriber_pb2.OUT_OF_RANGE_POLICY_LATEST:
            end = cursor.partition.high_watermark
        cursor.move(end)
        self.passed_over(cursor, end)
        self.skipped(cursor, begin, end)
        self.queue(cursor)

    def _pass_over_gap(self, cursor: Cursor, end: int) -> None:
        """There are no records up to `end` (compaction took them): nobody needs to be told."""
        if end > cursor.next_offset:
            cursor.next_offset = end
            self.passed_over(cursor, end)

    def passed_over(self, cursor: Cursor, end: int) -> None:
        """Offsets up to `end` will not be delivered."""

    def _fill(self, cursor: Cursor) -> None:
        """Reads on from disk; the cursor is queued again when that is done."""
        cursor.filling = True
        self._waiting_fills.append(cursor)
        self._start_fills()

    def _start_fills(self) -> None:
        settings = self.surroundings.settings
        while (
            self._waiting_fills
            and len(self._fills) < settings.reads_at_once_max
            and len(self._fills) + len(self._ahead) < settings.partitions_ahead_max
        ):
            self._fills.add(asyncio.create_task(self._read(self._waiting_fills.popleft())))

    async def _read(self, cursor: Cursor) -> None:
        generation = cursor.generation
        retry = False
        source = cursor.partition.log
        try:
            end_offset = cursor.partition.high_watermark
            here = positions.is_here(cursor.partition)
            stored = await source.read(
                cursor.next_offset,
                end_offset=end_offset,
                max_bytes=self.surroundings.settings.read_ahead_bytes,
            )
            if generation != cursor.generation:
                pass
            elif stored:
                cursor.buffer.extend(stored)
                self._ahead.add(cursor)
            elif here:
                self._pass_over_gap(cursor, end_offset)  # compaction left nothing there
            else:
                retry = True  # a leader that does not know yet how far is safe
        except OffsetOutOfRange:
            pass  # retention was faster: `_head` tells the subscriber
        except LogCorrupt as error:
            retry = await self._read_elsewhere(cursor.partition, source, error)
        except (PostbusError, StorageError) as error:
            # Nobody leads it, or its log went from this node: it is elsewhere, and the stream goes on there.
            retry = not isinstance(error, PostbusError) or error.kind.retriable
            if not retry:
                self.fail(error)
        except Exception as error:
            self.fail(error)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._fills.discard(task)
            if retry:
                asyncio.get_running_loop().call_later(self.surroundings.settings.read_retry_s, self._filled, cursor)
            else:
                self._filled(cursor)

    async def _read_elsewhere(self, partition: Partition, source: ReadableLog, error: LogCorrupt) -> bool:
        """The copy that was read is damaged. True: there is another one by now."""
        if await partition.another_copy(source):
            return True
        self.fail(log_corrupt(partition, error))
        return False

    def _filled(self, cursor: Cursor) -> None:
        cursor.filling = False
        self.queue(cursor)
        self._start_fills()

    # --- heartbeats and endings ---

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.plan.heartbeat_interval_s)
            self._heartbeat_due = True
            self._wake.set()

    def _heartbeat(self) -> subscriber_pb2.SubscribeHeartbeat:
        heartbeat = subscriber_pb2.SubscribeHeartbeat()
        for cursor in self.cursors.values():
            committed = cursor.tracker.commit_offset if cursor.tracker is not None else 0
            figures = (cursor.partition.high_watermark, cursor.next_offset + committed)
            if figures == (cursor.high_watermark_reported, cursor.committed_reported):
                continue
            cursor.high_watermark_reported, cursor.committed_reported = figures
            heartbeat.progress.add(
                topic=cursor.partition.topic,
                partition=cursor.partition.number,
                next_offset=cursor.next_offset,
                high_watermark=cursor.partition.high_watermark,
                committed_offset=committed,
            )
        return heartbeat

    def half_close(self) -> None:
        """The client has said all; it leaves in good order."""
        self.half_closed = True
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """Ends the stream with this."""
        if self._failure is None:
            self._failure = error
        self._wake.set()

    def drain(self, draining: record_pb2.Draining) -> None:
        """Tells that the node is going."""
        self.events.draining.CopyFrom(draining)
        self.emit()

    def end(self) -> None:
        """Ends it: the grace is over."""
        self._ending = True
        self._wake.set()


def check_seek(field: str, seek: subscriber_pb2.Seek) -> None:
    """A seek says where to: without that it would read all from the start again."""
    if seek.to.WhichOneof("at") is None:
        raise errors.invalid_field(f"{field}.to", "is required: say where to")
    positions.check_start(f"{field}.to", seek.to)


def position_of(cursor: Cursor, offset: int) -> record_pb2.Position:
    """A place in the cursor's partition."""
    return record_pb2.Position(topic=cursor.partition.topic, partition=cursor.partition.number, offset=offset)


def named(cursors: Sequence[Cursor]) -> list[record_pb2.TopicPartition]:
    """Their partitions."""
    return [
        record_pb2.TopicPartition(topic=cursor.partition.topic, partition=cursor.partition.number) for cursor in cursors
    ]


def log_corrupt(partition: Partition, error: LogCorrupt) -> PostbusError:
    """DATA_LOSS, with the place."""
    return PostbusError(
        Reason.ERROR_REASON_LOG_CORRUPT,
        f"{partition.topic}/{partition.number} is damaged at offset {error.offset}: {error.why}; start after it to"
        " read on, and look at the node's disk",
        metadata={"topic": partition.topic, "partition": partition.number, "offset": error.offset},
    )
