"""How a publisher's batches reach the log: lanes, windows, answers, and what is done when something fails.

Every batch carries producer id, epoch and sequence, so repeating it never appends it twice, and batches of a partition
are only ever sent in the order of their sequences: nothing is lost, repeated or overtaken by a retry.

- A lane goes straight to the node that leads it, if that is known and reachable, else to any (`directory`, `sender`).
  It changes its way only when nothing of it is on the wire.
- The stream broke: all that was not answered is sent again, in order, with the same sequences, to whichever address
  answers.
- A retriable failure of one partition (no leader, too few replicas): the broker refuses later requests of that
  partition on the same stream (PREDECESSOR_FAILED), so a new stream is opened at once; the partition itself waits.
- A final refusal (too large, topic gone): those records fail; the batches behind it were refused for a gap in the
  sequence and get new numbers, once all of them are answered.
- The broker lost the producer's state: the partition gets a new producer id; what might be in the log already fails
  with outcome_unknown instead of being repeated.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import grpc

from postbus import compression, errors, wire
from postbus.connection import Connections, backoff
from postbus.directory import Directory
from postbus.lanes import IN_FLIGHT_MAX, Lane, OutgoingBatch, Recovery
from postbus.sender import Sender, Stream
from postbus.v1 import publisher_pb2

log = logging.getLogger("postbus.publisher")

# The broker answers each request within 30 s, if only with a failure; more silence means a dead stream.
ANSWER_TIMEOUT: Final = 45.0
# An answer that is so late may be slow, or the node gone without a word.
DOUBT_AFTER: Final = 2.0
INIT_TIMEOUT: Final = 30.0
TICK: Final = 0.5
# publish() gives way to the loop whenever so much was put in, so that sending goes on beside a busy publisher.
YIELD_BYTES: Final = 128 * 1024
WAKE_MAX: Final = 64


class Pipeline:
    """The sending half of a publisher.

    buffered_bytes: held for records whose fate is open; publishing pauses at `pause_bytes`.
    """

    def __init__(
        self,
        connections: Connections,
        directory: Directory | None,
        *,
        acks: int,
        codec: int,
        linger: float,
        buffer_bytes_max: int,
        delivery_timeout: float,
        on_missing: Callable[[str], None],
    ) -> None:
        """directory: None: all goes to any node."""
        self._connections = connections
        self._directory = directory
        self._acks = acks
        self._codec = codec
        self._linger = linger
        self._buffer_bytes_max = buffer_bytes_max
        self._delivery_timeout = delivery_timeout
        self._on_missing = on_missing
        self._loop = asyncio.get_running_loop()

        self.buffered_bytes = 0
        self.pause_bytes = 0
        self._room_waiters: deque[asyncio.Future[None]] = deque()

        self._lanes: dict[tuple[str, int], Lane] = {}
        self._senders: dict[str, Sender] = {}
        self._unseen: deque[OutgoingBatch] = deque(maxlen=1000)
        self._idle_lanes: list[Lane] = []
        self._lingering: deque[tuple[float, Lane, OutgoingBatch]] = deque()
        self._linger_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None

        self._identity: tuple[int, int] | None = None
        self._identifying = asyncio.Lock()
        self.closed = False
        self._fatal: errors.PostbusError | None = None
        self._side_tasks: set[asyncio.Task[None]] = set()
        if directory is not None:
            directory.add_listener(self._ways_changed)

    # --- filling -------------------------------------------------------------------------------------------------

    def lane(self, topic: str, partition: int) -> Lane:
        """The lane of a partition."""
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = Lane(topic, partition)
        return lane

    def drop_idle(self, topic: str) -> None:
        """Forgets the lanes of a topic that is gone, if they are empty."""
        for key, lane in list(self._lanes.items()):
            if key[0] == topic and not (lane.in_flight or lane.sealed or lane.open):
                del self._lanes[key]
                if lane.sender is not None:
                    lane.sender.lanes.pop(lane, None)

    def open_batch(self, lane: Lane) -> OutgoingBatch:
        """A new open batch: sealed when full, when the linger is over, or at once if nothing is in flight."""
        now = self._loop.time()
        batch = lane.open = OutgoingBatch(lane, now)
        if not lane.in_flight and not lane.sealed:
            if not self._idle_lanes:
                # Not now but when the caller lets the loop run: records put in together go together.
                self._loop.call_soon(self._seal_idle)
            self._idle_lanes.append(lane)
        else:
            self._lingering.append((now + self._linger, lane, batch))
            if self._linger_timer is None:
                self._linger_timer = self._loop.call_later(self._linger, self._seal_lingering)
        if self._tick_timer is None:
            self._tick_timer = self._loop.call_later(TICK, self._tick)
        return batch

    def seal(self, lane: Lane) -> None:
        """The open batch is complete."""
        batch = lane.open
        if batch is None:
            return
        lane.open = None
        lane.due = False
        records = b"".join(batch.chunks)
        batch.chunks = []
        batch.payload = records
        if self._codec:
            packed = wire.compressed_batch(
                codec=self._codec,
                compressed=compression.compress(self._codec, records),
                record_count=batch.record_count,
                uncompressed_bytes=len(records),
            )
            if len(packed) < len(records):
                batch.payload = packed
        lane.sealed.append(batch)
        self._dispatch(lane)

    def _seal_idle(self) -> None:
        lanes, self._idle_lanes = self._idle_lanes, []
        for lane in lanes:
            self.seal(lane)

    def _seal_lingering(self) -> None:
        self._linger_timer = None
        now = self._loop.time()
        while self._lingering and self._lingering[0][0] <= now + 0.0005:
            _, lane, batch = self._lingering.popleft()
            if lane.open is batch:
                self._seal_if_room(lane)
        if self._lingering:
            self._linger_timer = self._loop.call_at(self._lingering[0][0], self._seal_lingering)

    def _seal_if_room(self, lane: Lane) -> None:
        # With a full window the batch would only wait: let it fill further.
        if len(lane.in_flight) + len(lane.sealed) < IN_FLIGHT_MAX:
            self.seal(lane)
        else:
            lane.due = True

    def _dispatch(self, lane: Lane) -> None:
        sender = self._place(lane)
        moved = lane.to_flight()
        if moved:
            sender.push(moved)

    # --- ways ----------------------------------------------------------------------------------------------------

    def _place(self, lane: Lane) -> Sender:
        """The lane's way now. While it has to change, nothing more is sent; it does when all on the wire is answered:
        a later batch must not arrive before an earlier one."""
        wanted = "" if self._directory is None else self._directory.address(lane.topic, lane.partition)
        sender = lane.sender
        if sender is not None and sender.address != wanted and lane.on_wire_count:
            lane.moving = True
            return sender
        lane.moving = False
        if sender is not None and sender.address == wanted:
            return sender
        if sender is not None:
            sender.lanes.pop(lane, None)
        sender = lane.sender = self._sender(wanted)
        sender.lanes[lane] = None
        if not lane.held:
            sender.push(lane.in_flight)
        return sender

    def _sender(self, address: str) -> Sender:
        sender = self._senders.get(address)
        if sender is None:
            sender = self._senders[address] = Sender(self, self._connections, address, acks=self._acks)
        return sender

    def _ways_changed(self, silent: str = "") -> None:
        """Somebody else leads, or can be reached now, or can't. silent: an address where nobody answers any more."""
        assert self._directory is not None
        for sender in list(self._senders.values()):
            # What hangs at a node that is gone is answered by another.
            stream = sender.stream
            gone = sender.address and not self._directory.usable(sender.address)
            if stream is not None and (gone or stream.address == silent):
                stream.cut("nobody answers there any more")
        for lane in list(self._lanes.values()):
            if lane.sender is not None:
                self._go_on(lane)

    def gave_up(self, sender: Sender, *, worked: bool) -> None:
        """A direct way failed; its lanes go to any node until it was seen again."""
        if self._directory is not None:
            self._directory.distrust(sender.address, worked=worked)
        for lane in list(sender.lanes):
            self._go_on(lane)

    # --- back-pressure -------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Waits while the buffer is full; otherwise lets the loop run once. Raises if nothing can be published."""
        self.check_open()
        if self.buffered_bytes < self._buffer_bytes_max:
            await asyncio.sleep(0)
            self.check_open()
        while self.buffered_bytes >= self._buffer_bytes_max:
            waiter = self._loop.create_future()
            self._room_waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._wake_waiters(1)  # The room that this one was woken for belongs to another.
                raise
            self.check_open()
        self._wake_waiters(1)
        self.pause_bytes = min(self._buffer_bytes_max, self.buffered_bytes + YIELD_BYTES)

    def check_open(self) -> None:
        """Raises what keeps this publisher from publishing."""
        if self._fatal is not None:
            raise self._fatal.copy()
        if self.closed:
            raise errors.Closed("the publisher is closed")

    def _release(self, size_bytes: int) -> None:
        self.buffered_bytes -= size_bytes
        if self.pause_bytes >= 0:
            self.pause_bytes = min(self._buffer_bytes_max, self.buffered_bytes + YIELD_BYTES)
        self._wake_waiters(WAKE_MAX)

    def _wake_waiters(self, count: int) -> None:
        while self._room_waiters and count and (self.buffered_bytes < self._buffer_bytes_max or self.closed):
            waiter = self._room_waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

    # --- waiting and closing -------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Sends all that is held, waits for its fate, and raises the first error that nobody has seen."""
        for lane in list(self._lanes.values()):
            self.seal(lane)
        waiting = [batch for lane in self._lanes.values() for batch in lane.unresolved()]
        for batch in waiting:
            if not batch.resolved:
                await batch.wait()
        unseen = [batch.unseen_error for batch in self._unseen]
        self._unseen.clear()
        for error in unseen:
            if error is not None:
                raise error.copy()

    async def close(self) -> None:
        """Ends the stream; what is still under way fails."""
        self.closed = True
        self.pause_bytes = -1
        if self._directory is not None:
            self._directory.remove_listener(self._ways_changed)
        for timer in (self._linger_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        self._linger_timer = self._tick_timer = None
        tasks = [*self._side_tasks, *(sender.task for sender in self._senders.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.fail_all(errors.Closed("the publisher was closed before this was acknowledged"))
        self._wake_waiters(len(self._room_waiters))

    # --- what senders ask and tell ---------------------------------------------------------------------------------

    async def ensure_identity(self) -> None:
        """There is one when this returns."""
        async with self._identifying:
            if self._identity is None:
                self._identity = await self._new_identity()

    def identity_of(self, lane: Lane) -> tuple[int, int]:
        """(producer id, epoch) of what is sent for it."""
        return lane.identity or self._identity or (0, 0)

    def fail(self, cause: errors.PostbusError) -> None:
        """Nothing can be published any more."""
        self._fatal = cause
        self.pause_bytes = -1
        self.fail_all(cause)

    async def _new_identity(self) -> tuple[int, int]:
        # Always a new id: when an outcome is unknown, an id must not be asked for again.
        answer = await self._connections.call(
            "PublisherService/InitProducer",
            publisher_pb2.InitProducerRequest(),
            publisher_pb2.InitProducerResponse.FromString,
            timeout=INIT_TIMEOUT,
        )
        return answer.id, answer.epoch

    def stream_ended(self, sender: Sender) -> None:
        """What it had on the wire is not answered any more."""
        for lane in list(sender.lanes):
            for batch in lane.in_flight:
                if batch.on_wire:
                    batch.on_wire = False
                    # Behind a batch that was refused, nothing was appended: the gap in the sequence forbids it.
                    if lane.recovery is None or not lane.recovery.gap_certain:
                        batch.outcome_unknown = True
            lane.on_wire_count = 0
            self._go_on(lane)

    # --- answers -------------------------------------------------------------------------------------------------

    def answered(self, sender: Sender, stream: Stream, ack: publisher_pb2.PublishAck) -> None:
        """One request's fate."""
        batch = stream.sent.pop(ack.correlation_id, None)
        if batch is None or not batch.on_wire:
            return
        stream.answers += 1
        lane = batch.lane
        batch.on_wire = False
        lane.on_wire_count -= 1
        if not ack.HasField("failure"):
            ranges = ack.result.ranges
            self._succeeded(batch, base_offset=ranges[0].base_offset if ranges else -1)
        else:
            self._failed(sender, batch, errors.from_failure(ack.failure))
        self._go_on(lane)

    def _succeeded(self, batch: OutgoingBatch, *, base_offset: int) -> None:
        lane = batch.lane
        lane.leave_flight(batch)
        lane.attempts = 0
        self._settle(batch, base_offset=base_offset)

    def _failed(self, sender: Sender, batch: OutgoingBatch, failure: errors.PostbusError) -> None:
        lane = batch.lane
        reason = failure.reason
        if reason == "DUPLICATE_SEQUENCE":
            self._succeeded(batch, base_offset=-1)  # In the log, too long ago to say where.
        elif reason == "PREDECESSOR_FAILED":
            # Not appended; goes again behind its predecessor, on the next stream.
            if not lane.held:
                sender.leave()
        elif reason in {"PRODUCER_UNKNOWN", "SEQUENCE_GAP"} and lane.recovery is not None:
            pass  # As expected behind a refused batch; it is sent again with a new number.
        elif reason in ("PRODUCER_UNKNOWN", "SEQUENCE_GAP"):
            lane.recovery = Recovery(None, failure)
        elif failure.retriable or failure.outcome_unknown or failure.code is grpc.StatusCode.ABORTED:
            batch.outcome_unknown = batch.outcome_unknown or failure.outcome_unknown
            lane.attempts += 1
            if not lane.blocked:
                lane.blocked = True
                delay = max(backoff(lane.attempts), failure.retry_after or 0.0)
                log.info("%s/%d: %s; again in %.2f s", lane.topic, lane.partition, failure, delay)
                self._loop.call_later(delay, self._unblock, lane)
            sender.leave()
        else:
            was_unknown = batch.outcome_unknown
            lane.leave_flight(batch)
            if lane.recovery is None:
                # An earlier try may be in the log: only a new identity is sure not to repeat what follows it.
                sequence = None if was_unknown else batch.sequence
                lane.recovery = Recovery(sequence, failure, gap_certain=not was_unknown)
            failure.outcome_unknown = was_unknown
            self._settle(batch, error=failure)
            if isinstance(failure, errors.NotFound):
                self._on_missing(lane.topic)
            if isinstance(failure, errors.ProducerFenced):
                self.fail(failure)

    def _settle(self, batch: OutgoingBatch, *, base_offset: int = -1, error: errors.PostbusError | None = None) -> None:
        if not batch.resolve(base_offset=base_offset, error=error):
            return
        if error is not None:
            self._unseen.append(batch)
        self._release(batch.size_bytes)

    def _unblock(self, lane: Lane) -> None:
        lane.blocked = False
        if self.closed:
            return
        self._expire(lane)
        # On the stream that the failure happened on, the broker would refuse; the next one starts with all lanes.
        sender = self._place(lane)
        if sender.stream is not None and not sender.stream.leaving and not lane.held:
            sender.push(batch for batch in lane.in_flight if not batch.on_wire)
        sender.wake()
        self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        """After any change of a lane: ends a recovery that can end, and sends what may be sent."""
        recovery = lane.recovery
        if recovery is not None:
            if lane.on_wire_count or recovery.started or self.closed:
                return
            if recovery.sequence is None:
                recovery.started = True
                task = self._loop.create_task(self._renew(lane, recovery.cause))
                self._side_tasks.add(task)
                task.add_done_callback(self._side_tasks.discard)
                return
            self._resume(lane, recovery.sequence)
        self._dispatch(lane)
        if lane.open is not None and (lane.due or not lane.in_flight) and not lane.held:
            self._seal_if_room(lane)

    def _resume(self, lane: Lane, sequence: int) -> None:
        lane.renumber(sequence)
        lane.recovery = None
        if not lane.held:
            self._place(lane).push(lane.in_flight)

    async def _renew(self, lane: Lane, cause: errors.PostbusError) -> None:
        """Gives a lane an identity of its own, after the broker lost what it knew of the old one."""
        for batch in [each for each in lane.in_flight if each.outcome_unknown]:
            lane.leave_flight(batch)
            lost = errors.SequenceBroken(
                f"{lane.topic}/{lane.partition}: nobody can tell any more whether this is in the log: {cause.message}",
                reason=cause.reason,
                code=cause.code,
                outcome_unknown=True,
                metadata=cause.metadata,
            )
            self._settle(batch, error=lost)
        attempt = 0
        while True:
            attempt += 1
            try:
                lane.identity = await self._new_identity()
                break
            except errors.PostbusError as failure:
                log.info("no new producer id yet: %s", failure)
                await asyncio.sleep(backoff(attempt))
        self._resume(lane, 0)
        self._go_on(lane)

    # --- time ----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._tick_timer = None
        for lane in self._lanes.values():
            self._expire(lane)
        for sender in self._senders.values():
            stream = sender.stream
            if stream is not None and stream.sent:
                oldest = next(iter(stream.sent.values()))
                late = self._loop.time() - oldest.sent_time if oldest.on_wire else 0.0
                if late > ANSWER_TIMEOUT:
                    stream.cut(f"no answer for {ANSWER_TIMEOUT:g} s")
                elif late > DOUBT_AFTER and self._directory is not None:
                    self._directory.doubt(stream.address)
        if self.buffered_bytes or any(lane.in_flight for lane in self._lanes.values()):
            self._tick_timer = self._loop.call_later(TICK, self._tick)

    def _expire(self, lane: Lane) -> None:
        limit = self._loop.time() - self._delivery_timeout
        for batch in list(lane.in_flight):
            if batch.created > limit:
                break
            if batch.resolved:
                continue
            if batch.on_wire or batch.outcome_unknown:
                # It keeps its place and its sequence: what follows must neither overtake nor repeat it.
                self._settle(batch, error=self._too_late(batch, outcome_unknown=True))
            else:
                lane.leave_flight(batch)
                late = self._too_late(batch, outcome_unknown=False)
                lane.recovery = lane.recovery or Recovery(batch.sequence, late)
                self._settle(batch, error=late)
        if lane.open is not None and lane.open.created <= limit:
            self.seal(lane)
        while lane.sealed and lane.sealed[0].created <= limit:
            batch = lane.sealed.popleft()
            self._settle(batch, error=self._too_late(batch, outcome_unknown=False))
        if lane.recovery is not None:
            self._go_on(lane)

    def _too_late(self, batch: OutgoingBatch, *, outcome_unknown: bool) -> errors.PostbusError:
        lane = batch.lane
        return errors.Timeout(
            f"{lane.topic}/{lane.partition}: not acknowledged within delivery_timeout ({self._delivery_timeout:g} s); "
            + ("it may have been appended" if outcome_unknown else "it was not appended"),
            reason="TIMEOUT",
            code=grpc.StatusCode.DEADLINE_EXCEEDED,
            outcome_unknown=outcome_unknown,
        )

    def fail_all(self, cause: errors.PostbusError) -> None:
        """All that is under way fails."""
        for lane in self._lanes.values():
            if lane.open is not None:
                self.seal(lane)
            for batch in [*lane.in_flight, *lane.sealed]:
                failure = cause.copy()
                failure.outcome_unknown = batch.on_wire or batch.outcome_unknown
                self._settle(batch, error=failure)
            if any(batch.on_wire or batch.outcome_unknown for batch in lane.in_flight):
                lane.recovery = Recovery(None, cause)
            elif lane.in_flight and lane.recovery is None:
                lane.next_sequence = lane.in_flight[0].sequence
            for batch in lane.in_flight:
                batch.on_wire = False
            lane.on_wire_count = 0
            lane.in_flight.clear()
            lane.sealed.clear()
            self._go_on(lane)
