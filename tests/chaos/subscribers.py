"""Subscribers with nothing but generated stubs, alone and in a group; they come back after every break."""

import asyncio
import random
from collections import deque
from collections.abc import Iterable
from typing import Any

import grpc
from bus import Bus, Recorder, content_of, passes, plain_records
from history import Acknowledged, Place, Polled, Positioned
from postbus.v1 import record_pb2, subscriber_pb2

READS_ALL = (
    record_pb2.COMPRESSION_GZIP,
    record_pb2.COMPRESSION_ZSTD,
    record_pb2.COMPRESSION_LZ4,
    record_pb2.COMPRESSION_SNAPPY,
)


class Reader:
    """Subscribes without a group and keeps its own positions: after a break it goes on exactly where it was."""

    def __init__(self, bus: Bus, recorder: Recorder, name: str, topic: str, partition_count: int) -> None:
        self.name = name
        self.topic = topic
        self.bus = bus
        self.recorder = recorder
        self.positions = dict.fromkeys(range(partition_count), 0)

    async def run(self, *, until_end: bool = False, accept: Iterable[record_pb2.Compression] = ()) -> None:
        """Reads for ever, or to the end as it is at the start."""
        for partition, offset in self.positions.items():
            self.recorder.note(Positioned(self.name, Place(self.topic, partition), offset))
        while True:
            await self.bus.until_ready()
            call = self.bus.subscriber.Subscribe(wait_for_ready=True)
            try:
                await call.write(self._start(until_end=until_end, accept=accept))
                while (response := await call.read()) is not grpc.aio.EOF:
                    for batch in response.batches:
                        self._take(batch)
                assert until_end, "the stream ended by itself"
                return
            except grpc.aio.AioRpcError as error:
                if not passes(error):
                    raise
            except asyncio.InvalidStateError:
                continue
            finally:
                call.cancel()

    def _start(self, *, until_end: bool, accept: Iterable[record_pb2.Compression]) -> subscriber_pb2.SubscribeRequest:
        selector = subscriber_pb2.TopicSelector(topic=self.topic)
        for partition, offset in self.positions.items():
            selector.positions.add(topic=self.topic, partition=partition, offset=offset)
        if until_end:
            selector.stop_at.edge = subscriber_pb2.LOG_EDGE_LATEST
        return subscriber_pb2.SubscribeRequest(
            start=subscriber_pb2.SubscribeStart(topics=[selector], accept_compressions=accept)
        )

    def _take(self, batch: subscriber_pb2.DeliveredBatch) -> None:
        self.recorder.note(*polls_of(self.name, batch))
        self.positions[batch.delivery.partition] = batch.delivery.end_offset


def polls_of(subscriber: str, batch: subscriber_pb2.DeliveredBatch, *, group: str = "") -> list[Polled]:
    """The records of a delivered batch, as notes."""
    delivery = batch.delivery
    records = plain_records(batch.batch)
    assert len(records) == delivery.end_offset - delivery.base_offset, f"{len(records)} records in {delivery}"
    place = Place(delivery.topic, delivery.partition)
    return [
        Polled(subscriber, place, delivery.base_offset + index, content_of(record), group)
        for index, record in enumerate(records)
    ]


class Pending:
    """Deliveries that a member has handled and not acknowledged yet, in an order by chance."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._held: deque[subscriber_pb2.Delivery] = deque()

    def handled(self, delivery: subscriber_pb2.Delivery) -> list[subscriber_pb2.Delivery]:
        """One more; returns what is to be acknowledged now: some at once, some late, in reverse, or in halves."""
        self._held.append(delivery)
        return self.flush() if len(self._held) >= self._chance.choice((1, 1, 2, 4)) else []

    def flush(self) -> list[subscriber_pb2.Delivery]:
        """All of them."""
        acks: list[subscriber_pb2.Delivery] = []
        while self._held:
            delivery = self._held.pop() if self._chance.random() < 0.5 else self._held.popleft()
            middle = (delivery.base_offset + delivery.end_offset) // 2
            if middle == delivery.base_offset or self._chance.random() < 0.7:
                acks.append(delivery)
                continue
            first, second = subscriber_pb2.Delivery(), subscriber_pb2.Delivery()
            first.CopyFrom(delivery)
            second.CopyFrom(delivery)
            first.end_offset = second.base_offset = middle
            acks += [second, first]
        return acks

    def clear(self) -> None:
        """The stream broke: all of it comes again."""
        self._held.clear()


class Member:
    """Reads, acknowledges, and notes both. `leave` makes it half-close once what it has is acknowledged."""

    def __init__(
        self,
        bus: Bus,
        recorder: Recorder,
        name: str,
        group: str,
        topics: list[str],
        *,
        seed: int,
        resumes: bool,
        acknowledges: bool = True,
    ) -> None:
        self.name = name
        self.group = group
        self.assigned: set[Place] = set()
        self.breaks = 0
        self._bus = bus
        self._recorder = recorder
        self._topics = topics
        self._resumes = resumes
        self._acknowledges = acknowledges
        self._member_id = ""
        self._pending = Pending(random.Random(f"{name} {seed}"))
        self._leaving = False
        self._call: Any = None
        self._writing = asyncio.Lock()  # one write at a time

    async def leave(self) -> None:
        """Commits what was acknowledged and ends `run`."""
        self._leaving = True
        if self._call is not None:
            await self._finish(self._call)

    async def run(self) -> None:
        """Until it has left."""
        while not self._leaving:
            await self._bus.until_ready()
            call = self._call = self._bus.subscriber.Subscribe(wait_for_ready=True)
            try:
                await call.write(self._start())
                while (response := await call.read()) is not grpc.aio.EOF:
                    await self._take(call, response)
                assert self._leaving, f"the stream of {self.name} ended by itself"
            except grpc.aio.AioRpcError as error:
                if not passes(error):
                    raise
                if error.code() is grpc.StatusCode.ABORTED:
                    self._member_id = ""  # what it was is over
            except asyncio.InvalidStateError:
                pass  # broken between a read and a write
            finally:
                self._call = None
                self.breaks += 1
                self.assigned.clear()
                self._pending.clear()
                call.cancel()

    def _start(self) -> subscriber_pb2.SubscribeRequest:
        start = subscriber_pb2.SubscribeStart(
            group=self.group,
            topics=[subscriber_pb2.TopicSelector(topic=topic) for topic in self._topics],
            accept_compressions=READS_ALL if self._resumes else (),
            client_id=self.name,
        )
        start.heartbeat_interval.FromMilliseconds(500)
        if self._resumes:
            start.member_id = self._member_id
        return subscriber_pb2.SubscribeRequest(start=start)

    async def _take(self, call: Any, response: subscriber_pb2.SubscribeResponse) -> None:
        if response.HasField("started"):
            self._member_id = response.started.member_id
        change = response.assignment_change
        for position in change.assigned:
            place = Place(position.topic, position.partition)
            self.assigned.add(place)
            self._recorder.note(Positioned(self.name, place, position.offset))
        for gone in (*change.revoked, *change.lost):
            self.assigned.discard(Place(gone.topic, gone.partition))
        acks: list[subscriber_pb2.Delivery] = []
        for batch in response.batches:
            self._recorder.note(*polls_of(self.name, batch, group=self.group))
            acks += self._pending.handled(batch.delivery)
        if response.HasField("heartbeat") or change.revoking:
            acks += self._pending.flush()
        await self._acknowledge(call, acks)

    async def _acknowledge(self, call: Any, acks: list[subscriber_pb2.Delivery]) -> None:
        if not acks or not self._acknowledges:
            return
        for ack in acks:
            self._recorder.note(
                Acknowledged(self.group, Place(ack.topic, ack.partition), ack.base_offset, ack.end_offset)
            )
        async with self._writing:
            await call.write(subscriber_pb2.SubscribeRequest(acks=acks))

    async def _finish(self, call: Any) -> None:
        try:
            await self._acknowledge(call, self._pending.flush())
            async with self._writing:
                await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # broken: `run` sees it
