"""One publish request, from its checked bytes to its place in the log: shared by the unary call and the stream.

`prepare` looks at the request alone, `place` appends; between the two the caller may wait (for room, for request
ids to be loaded). `place` itself never waits: deduplication, precondition and append belong together.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from postbus.v1 import publisher_pb2

from broker import errors
from broker.clock import Clock
from broker.replication.partition import Partition, Published
from broker.replication.partitions import LedTopic, Partitions
from broker.services import batches, requests
from broker.services.batches import BatchFacts, BatchLimits, BatchPart
from broker.storage.batch import NewBatch
from broker.stubs import view_pb2

REQUEST_ID_BYTES_MAX: Final = 64
TIMEOUT_S_MAX: Final = 600.0


@dataclass(slots=True)
class Prepared:
    """A request that is right in itself."""

    topic: LedTopic
    view: view_pb2.PublishRequestView
    batch: bytes
    facts: BatchFacts
    request_id: bytes


class Publishing:
    """Turns requests into appends."""

    def __init__(
        self,
        *,
        partitions: Partitions,
        clock: Clock,
        batch_records_max: int,
        producer_exists: Callable[[int], bool],
    ) -> None:
        self._partitions = partitions
        self._clock = clock
        self._batch_records_max = batch_records_max
        self._producer_exists = producer_exists

    def parse(self, data: bytes) -> view_pb2.PublishRequestView:
        """The view of a PublishRequest."""
        view = requests.parse(view_pb2.PublishRequestView, data, bytes_max=len(data))  # gRPC bounds it
        if view.ByteSize() != len(data):
            requests.refuse_repeated_fields(data)
        return view

    def parse_stream(self, data: bytes) -> view_pb2.PublishStreamRequestView:
        """The view of a PublishStreamRequest."""
        view = requests.parse(view_pb2.PublishStreamRequestView, data, bytes_max=len(data))
        if view.ByteSize() != len(data):
            requests.refuse_repeated_fields(data)
            _refuse_repeated_publish_fields(data)
        return view

    def prepare(self, view: view_pb2.PublishRequestView) -> Prepared:
        """Checks all that can be checked without the log; raises INVALID_ARGUMENT or NOT_FOUND errors."""
        _refuse_unknown(view)
        if not view.topic:
            raise errors.invalid_field("topic", "is required")
        topic = self._partitions.find_name(view.topic)
        if topic is None:
            requests.check_name("topic", view.topic)
            raise errors.topic_not_found(view.topic)
        _check_options(view, topic)
        if view.HasField("producer") and not self._producer_exists(view.producer.id):
            # Whoever gets this id later would have its first batch taken for a repetition.
            raise errors.invalid_field("producer.id", f"{view.producer.id} was never handed out; call InitProducer")
        batch = view.batch
        limits = BatchLimits(
            record_bytes_max=topic.config.record_bytes_max,
            batch_bytes_max=topic.config.batch_bytes_max,
            batch_records_max=self._batch_records_max,
        )
        facts = batches.validate(batch, limits)
        if (
            facts.codec
            and len(topic.partitions) > 1
            and not (view.HasField("partition") or view.HasField("partition_key"))
        ):
            raise errors.invalid_field(
                "partition",
                "a compressed batch needs `partition` or `partition_key`: its records can't be told apart by key",
            )
        return Prepared(topic, view, batch, facts, view.request_id.encode())

    def needs_request_ids(self, prepared: Prepared) -> bool:
        """Whether `prepared.topic.load_request_ids()` has to be awaited first."""
        return bool(prepared.request_id) and not prepared.topic.request_ids_loaded

    def place(self, prepared: Prepared) -> list[Published]:
        """Appends what is not there yet; answers for every record. Nothing is appended if anything is refused."""
        topic, view = prepared.topic, prepared.view
        parts = self._route(prepared)
        if view.HasField("producer"):
            return [self._place_sequenced(topic.partition(parts[0].partition), prepared)]
        earlier: list[Published] = []
        if prepared.request_id:
            now_us = self._clock.wall_us()
            earlier = topic.find_request(prepared.request_id, now_us=now_us)
            parts = _left_out(parts, earlier)
            for part in parts:
                topic.partitions[part.partition].check_request_room(prepared.request_id)
        if view.HasField("precondition"):
            for part in parts:
                topic.partitions[part.partition].check_end_offset(view.precondition.end_offset)
        placed = [
            topic.partitions[part.partition].append(
                NewBatch(
                    batch=part.batch,
                    record_count=part.record_count,
                    codec=prepared.facts.codec,
                    request_id=prepared.request_id,
                    record_indexes=part.record_indexes,
                )
            )
            for part in parts
        ]
        return earlier + placed

    def _route(self, prepared: Prepared) -> list[BatchPart]:
        topic, view, facts = prepared.topic, prepared.view, prepared.facts
        count = len(topic.partitions)
        if view.HasField("partition"):
            whole = topic.partition(view.partition).number
        elif view.HasField("partition_key"):
            whole = zlib.crc32(view.partition_key) % count
        elif count == 1:
            whole = 0
        else:
            if prepared.request_id:
                # A retry through whichever node must meet its first try.
                keyless = zlib.crc32(prepared.request_id) % count
            else:
                keyless = topic.sticky_partition(len(prepared.batch))
            return batches.split_by_key(prepared.batch, partition_count=count, keyless_partition=keyless)
        return [BatchPart(whole, prepared.batch, facts.record_count, ())]

    def _place_sequenced(self, partition: Partition, prepared: Prepared) -> Published:
        producer = prepared.view.producer
        earlier = partition.find_sequence(
            producer_id=producer.id, producer_epoch=producer.epoch, sequence=producer.sequence
        )
        if earlier is not None:
            return earlier
        if prepared.view.HasField("precondition"):
            partition.check_end_offset(prepared.view.precondition.end_offset)
        return partition.append(
            NewBatch(
                batch=prepared.batch,
                record_count=prepared.facts.record_count,
                codec=prepared.facts.codec,
                producer_id=producer.id,
                producer_epoch=producer.epoch,
                producer_sequence=producer.sequence,
            )
        )


def _left_out(parts: list[BatchPart], earlier: list[Published]) -> list[BatchPart]:
    """What an earlier try did not append. The parts of a request are the same records at each try."""
    if not earlier:
        return parts
    if any(not published.record_indexes for published in earlier):
        return []
    there = {index for published in earlier for index in published.record_indexes}
    missing: list[BatchPart] = []
    for part in parts:
        indexes = part.record_indexes or tuple(range(part.record_count))
        wanted = [index for index in indexes if index not in there]
        if len(wanted) == len(indexes):
            missing.append(part)
        elif wanted:
            missing.append(batches.select(part, wanted))
    return missing


def _refuse_unknown(view: view_pb2.PublishRequestView) -> None:
    if requests.has_unknown_fields(view):
        requests.refuse_unknown(view)
    if view.HasField("producer"):
        requests.refuse_unknown(view.producer, "producer.")
    if view.HasField("precondition"):
        requests.refuse_unknown(view.precondition, "precondition.")


def _check_options(view: view_pb2.PublishRequestView, topic: LedTopic) -> None:
    if not 0 <= view.acks <= publisher_pb2.ACKS_NONE:
        raise errors.unknown_field(f"acks = {view.acks}")
    if len(view.request_id.encode()) > REQUEST_ID_BYTES_MAX:
        raise errors.too_large(
            "request_id",
            f"has {len(view.request_id.encode())} bytes, at most {REQUEST_ID_BYTES_MAX} are allowed",
            limit=REQUEST_ID_BYTES_MAX,
        )
    has_partition = view.HasField("partition")
    if has_partition:
        if view.partition < 0:
            raise errors.invalid_field("partition", f"{view.partition} is negative; partitions begin at 0")
        topic.partition(view.partition)
        if view.HasField("partition_key"):
            raise errors.invalid_field("partition_key", "excludes `partition`")
    if view.HasField("producer"):
        _check_producer(view, has_partition=has_partition)
    if view.HasField("precondition"):
        if not has_partition:
            raise errors.invalid_field("partition", "is required with `precondition`")
        if not view.precondition.HasField("end_offset"):
            raise errors.invalid_field("precondition.end_offset", "is required: a precondition without it is none")
        requests.check_offset("precondition.end_offset", view.precondition.end_offset)


def _check_producer(view: view_pb2.PublishRequestView, *, has_partition: bool) -> None:
    producer = view.producer
    if view.request_id:
        raise errors.invalid_field("producer", "excludes `request_id`: use one form of idempotence")
    if not has_partition:
        raise errors.invalid_field("partition", "is required with `producer`")
    if producer.epoch < 0:
        raise errors.invalid_field("producer.epoch", f"{producer.epoch} is negative")
    if producer.sequence < 0:
        raise errors.invalid_field("producer.sequence", f"{producer.sequence} is negative; sequences begin at 0")


def _refuse_repeated_publish_fields(data: bytes) -> None:
    # Not canonical: find the embedded PublishRequest's own bytes, which the view has merged by now.
    publish = requests.field_bytes(data, 2)
    if publish is not None:
        requests.refuse_repeated_fields(publish, "publish.")


def timeout_s(duration: Duration, *, default_s: float) -> float:
    """How long the broker may try."""
    requests.refuse_unknown(duration, "timeout.")
    value = requests.seconds("timeout", duration, maximum=TIMEOUT_S_MAX)
    if value <= 0:
        raise errors.invalid_field("timeout", f"must be above 0; leave it out for {default_s:g} s")
    return value


def response(published: list[Published]) -> publisher_pb2.PublishResponse:
    """Where the records went."""
    answer = publisher_pb2.PublishResponse()
    fill(answer, published)
    return answer


def fill(answer: publisher_pb2.PublishResponse, published: list[Published]) -> None:
    """The same, in a message that is there already: a copy costs as much as the rest."""
    for part in published:
        placed = answer.ranges.add(
            partition=part.partition,
            base_offset=part.base_offset,
            record_count=part.record_count,
            record_indexes=part.record_indexes,
            duplicate=part.duplicate,
        )
        placed.append_time.seconds, micros = divmod(part.append_time_us, 1_000_000)
        placed.append_time.nanos = micros * 1000


def timestamp(time_us: int) -> Timestamp:
    """Microseconds since 1970 as a Timestamp."""
    return Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)
