"""Publishers with nothing but generated stubs: they try again, with the same ids, until it worked.

Values are unique, so that a record can be told from any other; everything random comes from a seed.
"""

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import grpc
from bus import CALL_TIMEOUT_S, CODECS, RETRIED, Bus, Recorder, content_of, passes
from history import Outcome, Place, Sent
from postbus.v1 import publisher_pb2, record_pb2


class Records:
    """A source of records that are never the same."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.random = random.Random(f"{name} {seed}")
        self.count = 0

    def take(self, count: int, *, keyed: bool = True) -> list[record_pb2.Record]:
        """The next ones."""
        return [self._next(keyed=keyed) for _ in range(count)]

    def _next(self, *, keyed: bool) -> record_pb2.Record:
        self.count += 1
        chance = self.random
        record = record_pb2.Record(
            value=b"%s-%d " % (self.name.encode(), self.count) + chance.randbytes(chance.choice((0, 10, 100, 1000))),
            event_time_us=self.count,
        )
        if keyed and chance.random() < 0.9:
            record.key = b"key %d" % chance.randrange(40)
        if chance.random() < 0.2:
            record.headers.add(name="number", value=b"%d" % self.count)
        return record

    def batch(self, records: list[record_pb2.Record], *, compressed: bool = False) -> record_pb2.RecordBatch:
        """As one batch, with a codec by chance."""
        if not compressed:
            return record_pb2.RecordBatch(records=records)
        codec = self.random.choice(list(CODECS))
        plain = record_pb2.RecordSet(records=records).SerializeToString()
        return record_pb2.RecordBatch(
            compression=codec,
            compressed_records=CODECS[codec](plain),
            record_count=len(records),
            uncompressed_bytes=len(plain),
        )


def notes_of(
    publisher: str,
    topic: str,
    records: list[record_pb2.Record],
    outcome: Outcome,
    *,
    first_number: int,
    ranges: Iterable[publisher_pb2.PublishedRange] = (),
) -> list[Sent]:
    """What is known of each record of a request after its answer. The answer has to name each exactly once."""
    places: dict[int, tuple[Place, int]] = {}
    for part in ranges:
        indexes = list(part.record_indexes) or list(range(len(records)))
        assert len(indexes) == part.record_count, f"{part.record_count} records, indexes {indexes}"
        for step, index in enumerate(indexes):
            assert index not in places, f"record {index} is answered for twice"
            places[index] = (Place(topic, part.partition), part.base_offset + step)
    assert outcome is not Outcome.OK or sorted(places) == list(range(len(records))), "not all records are answered for"
    noted = []
    for index, record in enumerate(records):
        place, offset = places.get(index, (None, None))
        noted.append(
            Sent(publisher, content_of(record), outcome, number=first_number + index, place=place, offset=offset)
        )
    return noted


class UnaryPublisher:
    """Publish, one request at a time, with a request id: the same request again until it worked."""

    def __init__(self, bus: Bus, recorder: Recorder, name: str, topic: str, seed: int) -> None:
        self.name = name
        self.topic = topic
        self.bus = bus
        self.recorder = recorder
        self.records = Records(name, seed)

    async def run(self, stop: asyncio.Event) -> None:
        """Publishes until told to stop."""
        while not stop.is_set():
            await self.publish_one()

    async def publish_one(self) -> None:
        """One request, until it worked."""
        records = self.records.take(self.records.random.choice((1, 1, 3, 10, 40)))
        request = self.request(records)
        self.recorder.sent(1)
        response = await self.bus.until_done(self.bus.publisher.Publish, request)
        self.recorder.sent(-1)
        self.answered(request, records, response)

    def request(self, records: list[record_pb2.Record]) -> publisher_pb2.PublishRequest:
        """Split by key, whole by a key of its own and compressed, or to one partition."""
        chance = self.records.random.random()
        request = publisher_pb2.PublishRequest(topic=self.topic, request_id=f"{self.name} {self.records.count}")
        if chance < 0.3:
            request.partition_key = b"whole %d" % self.records.random.randrange(20)
        elif chance < 0.4:
            request.partition = 0
        request.batch.CopyFrom(self.records.batch(records, compressed=chance < 0.35))
        return request

    def answered(
        self,
        request: publisher_pb2.PublishRequest,
        records: list[record_pb2.Record],
        response: publisher_pb2.PublishResponse,
    ) -> None:
        """Notes what the answer says."""
        self.recorder.acknowledgements += 1
        first = self.records.count - len(records)
        self.recorder.note(
            *notes_of(self.name, self.topic, records, Outcome.OK, first_number=first, ranges=response.ranges)
        )


class ComparingPublisher(UnaryPublisher):
    """Compare-and-append with a request id: a retry never fails against its own write."""

    end_offset = 0

    def request(self, records: list[record_pb2.Record]) -> publisher_pb2.PublishRequest:
        request = publisher_pb2.PublishRequest(topic=self.topic, partition=0)
        request.request_id = f"{self.name} {self.records.count}"
        request.precondition.end_offset = self.end_offset
        request.batch.CopyFrom(self.records.batch(records))
        return request

    def answered(
        self,
        request: publisher_pb2.PublishRequest,
        records: list[record_pb2.Record],
        response: publisher_pb2.PublishResponse,
    ) -> None:
        (written,) = response.ranges
        assert written.base_offset == self.end_offset, "it was appended elsewhere than where it was to be"
        self.end_offset += len(records)
        super().answered(request, records, response)


class OncePublisher(UnaryPublisher):
    """No id and no retry: what is not answered is unknown. Every other request must be refused."""

    async def publish_one(self) -> None:
        records = self.records.take(self.records.random.choice((1, 5)))
        first = self.records.count - len(records)
        refused = self.records.random.random() < 0.5
        request = publisher_pb2.PublishRequest(topic=self.topic, batch=self.records.batch(records))
        if refused:
            request.partition = 0
            request.precondition.end_offset = 1 << 60
        outcome = Outcome.UNKNOWN
        ranges: Iterable[publisher_pb2.PublishedRange] = ()
        await self.bus.until_ready()
        self.recorder.sent(1)
        try:
            response = await self.bus.publisher.Publish(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True)
            assert not refused
            outcome, ranges = Outcome.OK, response.ranges
            self.recorder.acknowledgements += 1
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION and refused:
                outcome = Outcome.FAILED
            elif not passes(error):
                raise
        self.recorder.sent(-1)
        self.recorder.note(*notes_of(self.name, self.topic, records, outcome, first_number=first, ranges=ranges))


class StreamPublisher:
    """PublishStream, several requests in flight. A broken stream: open another, send what is unanswered, in order."""

    depth = 8

    def __init__(self, bus: Bus, recorder: Recorder, name: str, topic: str, seed: int) -> None:
        self.name = name
        self.topic = topic
        self.bus = bus
        self.recorder = recorder
        self.records = Records(name, seed)
        self._unanswered: dict[int, tuple[publisher_pb2.PublishStreamRequest, list[record_pb2.Record], int]] = {}
        self._correlation_id = 0
        self._answered = asyncio.Event()

    async def prepare(self) -> None:
        """Before the first request."""

    def request(self, records: list[record_pb2.Record]) -> publisher_pb2.PublishRequest:
        """Split by key; or compressed, to one partition."""
        request = publisher_pb2.PublishRequest(topic=self.topic, request_id=f"{self.name} {self.records.count}")
        compressed = self.records.random.random() < 0.2
        if compressed:
            request.partition = 1
        request.batch.CopyFrom(self.records.batch(records, compressed=compressed))
        return request

    async def run(self, stop: asyncio.Event) -> None:
        """Publishes until told to stop, and all is answered."""
        await self.prepare()
        while not stop.is_set() or self._unanswered:
            await self.bus.until_ready()
            call = self.bus.publisher.PublishStream(wait_for_ready=True)
            reader = asyncio.create_task(self._read(call))
            try:
                await self._write(call, reader, stop)
                await reader
            except asyncio.InvalidStateError:
                await self._outcome_of(call)
            except grpc.aio.AioRpcError as error:
                if not passes(error):
                    raise
            except _Again:
                pass
            finally:
                call.cancel()
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def _outcome_of(self, call: Any) -> None:
        if await call.code() not in RETRIED:
            raise AssertionError(f"the stream ended with {await call.code()}: {await call.details()}")

    async def _write(self, call: Any, reader: asyncio.Task[None], stop: asyncio.Event) -> None:
        for request, _, _ in list(self._unanswered.values()):
            await call.write(request)
        while not stop.is_set() and not reader.done():
            if len(self._unanswered) < self.depth:
                await call.write(self._next())
            else:
                self._answered.clear()
                await self._answered.wait()
        if not reader.done():
            await call.done_writing()

    def _next(self) -> publisher_pb2.PublishStreamRequest:
        records = self.records.take(self.records.random.choice((1, 1, 2, 10)))
        self._correlation_id += 1
        request = publisher_pb2.PublishStreamRequest(correlation_id=self._correlation_id, publish=self.request(records))
        self._unanswered[self._correlation_id] = (request, records, self.records.count - len(records))
        self.recorder.sent(1)
        return request

    async def _read(self, call: Any) -> None:
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                for ack in response.acks:
                    self._take(ack)
        finally:
            self._answered.set()

    def _take(self, ack: publisher_pb2.PublishAck) -> None:
        if ack.HasField("failure"):
            assert ack.failure.retriable or ack.failure.outcome_unknown, f"{self.name}: {ack.failure}"
            raise _Again
        _, records, first = self._unanswered.pop(ack.correlation_id)
        self.recorder.sent(-1)
        self.recorder.acknowledgements += 1
        self.recorder.note(
            *notes_of(self.name, self.topic, records, Outcome.OK, first_number=first, ranges=ack.result.ranges)
        )
        self._answered.set()


class _Again(Exception):  # noqa: N818 - an outcome
    """A request may be repeated, in order: on a new stream."""


class SequencePublisher(StreamPublisher):
    """With a producer id and a sequence for each partition. Not more in flight than the broker remembers."""

    depth = 4

    async def prepare(self) -> None:
        answer = await self.bus.until_done(self.bus.publisher.InitProducer, publisher_pb2.InitProducerRequest())
        self._producer = (answer.id, answer.epoch)
        self._sequences = [0, 0]

    def request(self, records: list[record_pb2.Record]) -> publisher_pb2.PublishRequest:
        partition = self.records.random.randrange(2)
        request = publisher_pb2.PublishRequest(topic=self.topic, partition=partition)
        request.producer.id, request.producer.epoch = self._producer
        request.producer.sequence = self._sequences[partition]
        self._sequences[partition] += 1
        request.batch.CopyFrom(self.records.batch(records, compressed=self.records.random.random() < 0.3))
        return request
