"""A broker as the SDK's tests need it: logs in memory, strict about sequences and fences, and able to misbehave.

It implements what the API promises, not how the real broker does it. Faults are set as attributes before or while a
test runs; each says how often it takes effect.
"""

# ruff: noqa: N802 - the methods have the names of RPCs
import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio
from postbus.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    error_pb2,
    publisher_pb2,
    publisher_pb2_grpc,
    record_pb2,
    subscriber_pb2,
    subscriber_pb2_grpc,
    topic_pb2,
    topic_pb2_grpc,
)

from broker.errors import PostbusError, Reason, partition_not_found, topic_not_found

REMEMBERED = 5


@dataclass
class Stored:
    base_offset: int
    batch: record_pb2.RecordBatch
    count: int

    @property
    def end_offset(self) -> int:
        return self.base_offset + self.count


@dataclass
class Producer:
    next_sequence: int = 0
    remembered: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


@dataclass
class Partition:
    batches: list[Stored] = field(default_factory=list)
    producers: dict[int, Producer] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def end_offset(self) -> int:
        return self.batches[-1].end_offset if self.batches else 0

    def records(self) -> list[record_pb2.Record]:
        """All, in order; only of batches that are not compressed."""
        return [record for stored in self.batches for record in stored.batch.records]

    def values(self) -> list[bytes]:
        return [record.value for record in self.records()]

    def append(self, request: publisher_pb2.PublishRequest) -> tuple[int, int, bool]:
        """(base offset, count, duplicate); raises what the API says about sequences."""
        producer_id, sequence = request.producer.id, request.producer.sequence
        state = self.producers.get(producer_id)
        if producer_id:
            if state is None:
                if sequence:
                    raise PostbusError(Reason.ERROR_REASON_PRODUCER_UNKNOWN, "who is this?")
                state = self.producers[producer_id] = Producer()
            if sequence > state.next_sequence:
                raise PostbusError(Reason.ERROR_REASON_SEQUENCE_GAP, f"{state.next_sequence} is next, not {sequence}")
            if sequence < state.next_sequence:
                for known, base in state.remembered:
                    if known == sequence:
                        return base, self._count(request), True
                raise PostbusError(Reason.ERROR_REASON_DUPLICATE_SEQUENCE, "long ago")
        stored = Stored(self.end_offset, record_pb2.RecordBatch(), self._count(request))
        stored.batch.CopyFrom(request.batch)
        self.batches.append(stored)
        if state is not None:
            state.remembered.append((sequence, stored.base_offset))
            state.next_sequence += 1
        return stored.base_offset, stored.count, False

    @staticmethod
    def _count(request: publisher_pb2.PublishRequest) -> int:
        return request.batch.record_count or len(request.batch.records)


class FakeBroker:
    """Serves the public API on 127.0.0.1."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Partition]] = {}
        self.committed: dict[tuple[str, str, int], int] = {}
        self.record_bytes_max = 1024 * 1024
        self.address = ""
        self.port = 0
        # What happened.
        self.publish_streams = 0
        self.publish_requests = 0
        self.subscribe_starts: list[subscriber_pb2.SubscribeStart] = []
        self.acknowledged: list[subscriber_pb2.Delivery] = []
        self.unary_acks: list[subscriber_pb2.Delivery] = []
        self.half_closed = 0
        self.producer_ids = 0
        # Faults. Publishing: end the stream at the nth request from now, after appending it, with its ack lost.
        self.break_publish_at: deque[int] = deque()
        # Asked before each append; what it returns is the failure.
        self.offsets_failing = 0  # so many answers of ListOffsets lack the first partition that was asked for
        self.refuse: Callable[[publisher_pb2.PublishRequest], PostbusError | None] = lambda _: None
        self.drain_publish_at: deque[int] = deque()
        # Acknowledgements wait for this.
        self.answering = asyncio.Event()
        self.answering.set()
        # Subscribing: end the stream after so many deliveries.
        self.break_subscribe_after: deque[int] = deque()
        self.drain_subscribe_after: deque[int] = deque()
        # 1: while a stream is broken somebody else owns the partitions.
        self.new_owner_on_break = 0
        # What open subscriptions end with, once.
        self.end_subscribes: PostbusError | None = None
        self.silent_subscribes = 0
        self.heartbeat_interval = 5.0
        self.batch_records_max = 1_000_000
        self.fence = 100
        self._server: grpc.aio.Server | None = None
        # A cluster: what WatchMetadata says (None: there is none), and whether anybody is at home.
        self.cluster_id = "fakes"
        self.told: cluster_pb2.WatchMetadataResponse | None = None
        self.telling = asyncio.Condition()
        self.talking = asyncio.Event()
        self.talking.set()
        self.asked = asyncio.Event()  # GetMetadata

    async def tell(self, told: cluster_pb2.WatchMetadataResponse) -> None:
        """What the cluster is from now on."""
        self.told = told
        async with self.telling:
            self.telling.notify_all()

    def create(self, name: str, partition_count: int) -> None:
        self.topics[name] = [Partition() for _ in range(partition_count)]

    def fill(self, topic: str, partition: int, values: list[bytes], *, batch_records: int = 10) -> None:
        """Puts records in, without a publisher."""
        log = self.partition(topic, partition)
        for start in range(0, len(values), batch_records):
            records = [record_pb2.Record(value=value) for value in values[start : start + batch_records]]
            log.batches.append(Stored(log.end_offset, record_pb2.RecordBatch(records=records), len(records)))

    def partition(self, topic: str, number: int) -> Partition:
        if topic not in self.topics:
            raise topic_not_found(topic)
        partitions = self.topics[topic]
        if not 0 <= number < len(partitions):
            raise partition_not_found(topic, number, len(partitions))
        return partitions[number]

    def all_values(self, topic: str) -> list[bytes]:
        return [value for partition in self.topics[topic] for value in partition.values()]

    async def start(self, *, port: int = 0) -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        publisher_pb2_grpc.add_PublisherServiceServicer_to_server(_Publisher(self), server)
        subscriber_pb2_grpc.add_SubscriberServiceServicer_to_server(_Subscriber(self), server)
        topic_pb2_grpc.add_TopicServiceServicer_to_server(_Topics(self), server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(_Cluster(self), server)
        self.port = server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        await server.start()
        self._server = server

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def changed(self, partition: Partition) -> None:
        async with partition.changed:
            partition.changed.notify_all()


async def _abort(context: grpc.aio.ServicerContext, error: PostbusError) -> None:
    context.set_trailing_metadata(error.trailers())
    await context.abort(error.code, error.message)


def _at(faults: deque[int]) -> bool:
    """Counts a fault down; True when it is due."""
    if not faults:
        return False
    faults[0] -= 1
    if faults[0] > 0:
        return False
    faults.popleft()
    return True


class _Publisher(publisher_pb2_grpc.PublisherServiceServicer):
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker

    async def InitProducer(self, request, context):
        self.broker.producer_ids += 1
        return publisher_pb2.InitProducerResponse(id=self.broker.producer_ids, epoch=0)

    async def Publish(self, request, context):
        broker = self.broker
        try:
            partition = broker.partition(request.topic, request.partition)
            if request.HasField("precondition") and request.precondition.end_offset != partition.end_offset:
                raise PostbusError(
                    Reason.ERROR_REASON_PRECONDITION_NOT_MET,
                    "moved on",
                    metadata={"end_offset": partition.end_offset},
                )
            base, count, duplicate = partition.append(request)
        except PostbusError as error:
            await _abort(context, error)
        await broker.changed(partition)
        return publisher_pb2.PublishResponse(
            ranges=[
                publisher_pb2.PublishedRange(
                    partition=request.partition, base_offset=base, record_count=count, duplicate=duplicate
                )
            ]
        )

    async def PublishStream(self, request_iterator, context):
        broker = self.broker
        broker.publish_streams += 1
        blocked: set[tuple[str, int]] = set()
        async for request in request_iterator:
            broker.publish_requests += 1
            ack = await self._answer(request, blocked)
            if _at(broker.break_publish_at):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            await broker.answering.wait()
            yield publisher_pb2.PublishStreamResponse(acks=[ack])
            if _at(broker.drain_publish_at):
                yield publisher_pb2.PublishStreamResponse(draining=record_pb2.Draining())
        broker.half_closed += 1

    async def _answer(self, request, blocked):
        broker = self.broker
        publish = request.publish
        place = (publish.topic, publish.partition)
        ack = publisher_pb2.PublishAck(correlation_id=request.correlation_id)
        try:
            partition = broker.partition(*place)
            if place in blocked:
                raise PostbusError(Reason.ERROR_REASON_PREDECESSOR_FAILED, "an earlier one failed")
            refused = broker.refuse(publish)
            if refused is not None:
                raise refused
            base, count, duplicate = partition.append(publish)
        except PostbusError as error:
            ack.failure.CopyFrom(error.failure())
            if error.kind.retriable or error.kind.outcome_unknown:
                blocked.add(place)
            return ack
        await broker.changed(partition)
        ack.result.ranges.add(partition=publish.partition, base_offset=base, record_count=count, duplicate=duplicate)
        return ack


class _Topics(topic_pb2_grpc.TopicServiceServicer):
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker

    async def GetTopic(self, request, context):
        if request.name not in self.broker.topics:
            await _abort(context, topic_not_found(request.name))
        return topic_pb2.GetTopicResponse(topic=self._topic(request.name))

    def _topic(self, name):
        return topic_pb2.Topic(
            name=name,
            topic_id=f"id-{name}",
            partition_count=len(self.broker.topics[name]),
            effective_config=topic_pb2.TopicConfig(
                max_record_bytes=self.broker.record_bytes_max, max_batch_bytes=3 * 1024 * 1024
            ),
        )

    async def CreateTopic(self, request, context):
        if request.name in self.broker.topics:
            await _abort(context, PostbusError(Reason.ERROR_REASON_EXISTS, "there", resource=("topic", request.name)))
        self.broker.create(request.name, request.partition_count or 6)
        answer = topic_pb2.CreateTopicResponse(topic=self._topic(request.name))
        answer.topic.config.CopyFrom(request.config)
        return answer

    async def ListTopics(self, request, context):
        names = sorted(self.broker.topics)
        start = int(request.page_token or 0)
        page = names[start : start + 1]
        token = str(start + 1) if start + 1 < len(names) else ""
        return topic_pb2.ListTopicsResponse(topics=[self._topic(name) for name in page], next_page_token=token)

    async def ListOffsets(self, request, context):
        answer = topic_pb2.ListOffsetsResponse()
        for number, partition in enumerate(self.broker.topics[request.topic]):
            if not request.partitions or number in request.partitions:
                at = partition.end_offset if request.at.edge == subscriber_pb2.LOG_EDGE_LATEST else 0
                answer.partitions.add(partition=number, offset=at, high_watermark=partition.end_offset)
        if self.broker.offsets_failing:
            self.broker.offsets_failing -= 1
            lacking = answer.partitions[0].partition
            failure = error_pb2.Failure(
                code=14, reason=error_pb2.ERROR_REASON_NO_LEADER, message="nobody leads it", retriable=True
            )
            answer.partitions[0].CopyFrom(topic_pb2.PartitionOffsets(partition=lacking, failure=failure))
        return answer


class _Cluster(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker

    async def GetServerFeatures(self, request, context):
        return cluster_pb2.GetServerFeaturesResponse(version="fake")

    async def GetMetadata(self, request, context):
        self.broker.asked.set()
        await self.broker.talking.wait()
        return cluster_pb2.GetMetadataResponse(cluster_id=self.broker.cluster_id)

    async def WatchMetadata(self, request, context):
        told = self.broker.told
        if told is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a bus of its own")
        while True:
            yield told
            last = told
            async with self.broker.telling:
                await self.broker.telling.wait_for(lambda said=last: self.broker.told is not said)
            told = self.broker.told


class _Subscriber(subscriber_pb2_grpc.SubscriberServiceServicer):
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker

    async def Acknowledge(self, request, context):
        self.broker.unary_acks += request.acks
        for ack in request.acks:
            self.broker.committed[request.group, ack.topic, ack.partition] = ack.end_offset
        return subscriber_pb2.AcknowledgeResponse()

    async def Fetch(self, request, context):
        answer = subscriber_pb2.FetchResponse()
        partitions = self.broker.topics[request.topic]
        places = {position.partition: position.offset for position in request.positions}
        for number, partition in enumerate(partitions):
            offset = places.get(number, 0)
            for stored in partition.batches:
                if stored.base_offset >= offset:
                    answer.batches.append(delivered(request.topic, number, stored, fence=0))
            answer.next.add(topic=request.topic, partition=number, offset=partition.end_offset)
        return answer

    async def Subscribe(self, request_iterator, context):
        first = await anext(request_iterator)
        session = _Session(self.broker, first, context)
        reader = asyncio.create_task(session.read(request_iterator))
        try:
            async for response in session.responses():
                yield response
        finally:
            reader.cancel()


def delivered(topic: str, partition: int, stored: Stored, *, fence: int) -> subscriber_pb2.DeliveredBatch:
    batch = subscriber_pb2.DeliveredBatch(
        delivery=subscriber_pb2.Delivery(
            topic=topic,
            partition=partition,
            base_offset=stored.base_offset,
            end_offset=stored.end_offset,
            fence=fence,
        ),
        batch=stored.batch,
        high_watermark=stored.end_offset,
    )
    batch.append_time.FromMicroseconds(1_750_000_000_000_000)
    return batch


class _Session:
    """One Subscribe stream. A group has one member here, which gets everything."""

    def __init__(self, broker: FakeBroker, first, context) -> None:
        self.broker = broker
        self.start = first.start
        self.context = context
        broker.subscribe_starts.append(first.start)
        self.next: dict[tuple[str, int], int] = {}
        self.stops: dict[tuple[str, int], int] = {}
        self.delivered_to: dict[tuple[str, int], int] = defaultdict(lambda: -1)
        self.paused = {(each.topic, each.partition) for each in first.pause}
        self.wake = asyncio.Event()
        self.reports: list[subscriber_pb2.SubscribeResponse] = []
        self.failure: PostbusError | None = None
        self.left = False
        for selector in first.start.topics:
            exact = {position.partition: position.offset for position in selector.positions}
            for number, partition in enumerate(broker.topics[selector.topic]):
                if selector.partitions and number not in selector.partitions:
                    continue
                key = (selector.topic, number)
                start_at = selector.start_at if selector.HasField("start_at") else first.start.start_at
                latest = start_at.edge == subscriber_pb2.LOG_EDGE_LATEST
                self.next[key] = exact.get(number, partition.end_offset if latest else start_at.offset)
                if first.start.group:
                    self.next[key] = broker.committed.get((first.start.group, *key), self.next[key])
                if selector.HasField("stop_at"):
                    self.stops[key] = selector.stop_at.offset or partition.end_offset

    async def read(self, requests) -> None:
        try:
            async for request in requests:
                self.take(request)
        except PostbusError as error:
            self.failure = error
        self.left = True
        self.wake.set()

    def take(self, request) -> None:
        group = self.start.group
        report = subscriber_pb2.SubscribeResponse(command_id=request.command_id)
        for ack in request.acks:
            key = (ack.topic, ack.partition)
            if ack.fence == self.broker.fence and ack.end_offset > self.delivered_to[key]:
                raise PostbusError(Reason.ERROR_REASON_INVALID_FIELD, f"{key} was delivered to {self.delivered_to}")
            self.broker.acknowledged.append(ack)
            if ack.fence != self.broker.fence:
                report.ack_report.rejected.add(delivery=ack)
                continue
            committed = (group, *key)
            if ack.base_offset <= self.broker.committed.get(committed, 0):
                self.broker.committed[committed] = max(self.broker.committed.get(committed, 0), ack.end_offset)
                report.ack_report.committed.add(topic=key[0], partition=key[1], offset=self.broker.committed[committed])
        for nack in request.nacks:
            self.broker.fence += 1
            self.next[nack.delivery.topic, nack.delivery.partition] = nack.delivery.base_offset
        for seek in request.seeks:
            self.next[seek.partition.topic, seek.partition.partition] = seek.to.offset
            if group:
                self.broker.fence += 1
        self.paused |= {(each.topic, each.partition) for each in request.pause}
        self.paused -= {(each.topic, each.partition) for each in request.resume}
        if report.ByteSize():
            self.reports.append(report)
        self.wake.set()

    def _ready(self):
        for key, offset in self.next.items():
            if key in self.paused:
                continue
            for stored in self.broker.partition(*key).batches:
                stop = self.stops.get(key, stored.end_offset)
                begin, end = max(stored.base_offset, offset), min(stored.end_offset, stop)
                end = min(end, begin + self.broker.batch_records_max)
                if begin < end:
                    records = stored.batch.records[begin - stored.base_offset : end - stored.base_offset]
                    cut = Stored(begin, record_pb2.RecordBatch(records=records), end - begin)
                    if stored.batch.compression:
                        cut.batch.CopyFrom(stored.batch)
                    return key, cut
        return None

    async def responses(self) -> AsyncIterator[subscriber_pb2.SubscribeResponse]:
        broker, group = self.broker, self.start.group
        started = subscriber_pb2.SubscribeStarted(node_id=1)
        started.heartbeat_interval.FromMilliseconds(round(broker.heartbeat_interval * 1000))
        first = subscriber_pb2.SubscribeResponse(started=started)
        if group:
            first.started.member_id = self.start.member_id or f"member-{len(broker.subscribe_starts)}"
            for (topic, number), offset in self.next.items():
                first.assignment_change.assigned.add(topic=topic, partition=number, offset=offset)
        else:
            for (topic, number), offset in self.next.items():
                first.started.positions.add(topic=topic, partition=number, offset=offset)
        yield first
        if broker.silent_subscribes:
            broker.silent_subscribes -= 1
            await asyncio.Event().wait()
        told: set[tuple[str, int]] = set()
        while True:
            if broker.end_subscribes is not None:
                self.failure, broker.end_subscribes = broker.end_subscribes, None
            if self.failure is not None:
                await _abort(self.context, self.failure)
            while self.reports:
                yield self.reports.pop(0)
            if self.left:
                broker.half_closed += 1
                return
            found = self._ready()
            if found is not None:
                key, stored = found
                self.next[key] = stored.end_offset
                self.delivered_to[key] = max(self.delivered_to[key], stored.end_offset)
                fence = broker.fence if group else 0
                yield subscriber_pb2.SubscribeResponse(batches=[delivered(*key, stored, fence=fence)])
                if _at(broker.break_subscribe_after):
                    broker.fence += broker.new_owner_on_break
                    await self.context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
                if _at(broker.drain_subscribe_after):
                    yield subscriber_pb2.SubscribeResponse(draining=record_pb2.Draining())
                # Commands that came meanwhile have their turn.
                await asyncio.sleep(0)
                continue
            ends = {key: broker.partition(*key).end_offset for key in self.next}
            fresh = [key for key in self.next if key not in told and self.next[key] >= ends[key]]
            if fresh:
                told.update(fresh)
                response = subscriber_pb2.SubscribeResponse()
                for topic, number in fresh:
                    response.caught_up.add(topic=topic, partition=number, offset=self.next[topic, number])
                yield response
                continue
            if self.stops and all(self.next[key] >= stop for key, stop in self.stops.items()):
                return
            self.wake.clear()
            watchers = [asyncio.create_task(self._changed(key)) for key in self.next]
            watchers.append(asyncio.create_task(self.wake.wait()))
            await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
            for watcher in watchers:
                watcher.cancel()

    async def _changed(self, key: tuple[str, int]) -> None:
        partition = self.broker.partition(*key)
        async with partition.changed:
            await partition.changed.wait()


__all__ = ["FakeBroker", "PostbusError", "Reason", "error_pb2"]
