"""One publish request, from its checked bytes to the parts that go to partitions: for the unary call and the stream.

`prepare` looks at the request alone; `works` makes its parts, each with all that its partition's leader needs. Where
they go from there is forwarding.py's business, and what the log says to them placing.py's.
"""

import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from postbus.v1 import publisher_pb2

from broker import errors
from broker.clock import Clock
from broker.replication.partition import Partition, Published, Role
from broker.replication.partitions import PartitionedTopic, Partitions
from broker.services import batches, placing, requests
from broker.services.batches import BatchFacts, BatchLimits, BatchPart
from broker.services.forwarding import Owner, Work
from broker.services.sticky import Sticky
from broker.storage.batch import NewBatch
from broker.stubs import view_pb2

REQUEST_ID_BYTES_MAX: Final = 64
TIMEOUT_S_MAX: Final = 600.0


@dataclass(slots=True)
class Prepared:
    """A request that is right in itself."""

    topic: PartitionedTopic
    view: view_pb2.PublishRequestView
    batch: bytes
    facts: BatchFacts
    request_id: bytes


# Asks the leaders of some partitions of a topic what they hold of a request: topic, partitions, id, seconds.
LookUp = Callable[[PartitionedTopic, list[Partition], bytes, float], Awaitable[list[Published]]]


class Publishing:
    """Turns requests into parts."""

    def __init__(
        self,
        *,
        partitions: Partitions,
        clock: Clock,
        batch_records_max: int,
        producer_exists: Callable[[int], bool],
        node_id: int,
        look_up: LookUp,
        grown_us: Callable[[str], int],
    ) -> None:
        """grown_us: when a topic (by name) got partitions last, by wall clock; 0: never."""
        self._partitions = partitions
        self._clock = clock
        self._batch_records_max = batch_records_max
        self._producer_exists = producer_exists
        self._node_id = node_id
        self._look_up = look_up
        self._grown_us = grown_us
        self._sticky: dict[str, Sticky] = {}

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
            keys_required=topic.config.compacts,
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

    def goes_here(self, prepared: Prepared, parts: list[BatchPart]) -> bool:
        """Whether anything may go to this node's own log."""
        return any(prepared.topic.partitions[part.partition].role is Role.LEADER for part in parts)

    def waits(self, prepared: Prepared, parts: list[BatchPart]) -> bool:
        """Whether `look_around` has to be awaited first."""
        if not prepared.request_id:
            return False
        partitions = prepared.topic.partitions
        for part in parts:
            if placing.ids_missing(partitions[part.partition]):
                return True
        return self._must_look_up(prepared)

    async def look_around(self, prepared: Prepared, parts: list[BatchPart], *, timeout_s: float) -> list[Published]:
        """What an earlier try appended where the request would not go by now; loads the ids that are here."""
        for part in parts:
            partition = prepared.topic.partitions[part.partition]
            if placing.ids_missing(partition) and partition.local is not None:
                await partition.load_request_ids()
        if not self._must_look_up(prepared):
            return []
        topic = prepared.topic
        return await self._look_up(topic, list(topic.partitions), prepared.request_id, timeout_s)

    def _must_look_up(self, prepared: Prepared) -> bool:
        """Keys may have gone elsewhere at the first try: the topic grew since a try could have been made."""
        topic = prepared.topic
        grown_us = self._grown_us(topic.name)
        return bool(grown_us) and self._clock.wall_us() - grown_us <= topic.config.deduplication_window_us

    def works(
        self,
        prepared: Prepared,
        parts: list[BatchPart],
        *,
        owner: Owner,
        source: object | None,
        deadline: float,
        earlier: list[Published],
    ) -> list[Work]:
        """Parts that are ready to be submitted, without what was appended earlier.

        Raises, for the whole request, what can be told without appending.
        """
        topic, view = prepared.topic, prepared.view
        if earlier:
            parts = placing.left_out(parts, earlier)
        if len(parts) > 1 and prepared.request_id:
            # All or nothing, as far as this node can tell.
            for part in parts:
                partition = topic.partitions[part.partition]
                if partition.role is Role.LEADER:
                    partition.check_request_room(prepared.request_id)
        end_offset = view.precondition.end_offset if view.HasField("precondition") else None
        producer = view.producer if view.HasField("producer") else None
        works = [
            Work(
                partition=topic.partitions[part.partition],
                new=NewBatch(
                    batch=part.batch,
                    record_count=part.record_count,
                    codec=prepared.facts.codec,
                    request_id=prepared.request_id,
                    record_indexes=part.record_indexes,
                ),
                acks=view.acks,
                owner=owner,
                source=source,
                deadline=deadline,
                end_offset=end_offset,
                leader_only=view.leader_only,
            )
            for part in parts
        ]
        if producer is not None:
            (work,) = works
            work.new.producer_id = producer.id
            work.new.producer_epoch = producer.epoch
            work.new.producer_sequence = producer.sequence
            work.repeatable = True
        return works

    def split(self, prepared: Prepared) -> list[BatchPart]:
        """The request in parts, one a partition."""
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
                keyless = self._keyless(topic, len(prepared.batch))
            return batches.split_by_key(prepared.batch, partition_count=count, keyless_partition=keyless)
        return [BatchPart(whole, prepared.batch, facts.record_count, ())]

    def _keyless(self, topic: PartitionedTopic, size_bytes: int) -> int:
        sticky = self._sticky.get(topic.topic_id)
        if sticky is None:
            sticky = self._sticky[topic.topic_id] = Sticky(self._node_id)
        return sticky.choose(topic.partitions, size_bytes)

    def topics_changed(self) -> None:
        """Topics may have gone."""
        self._sticky = {
            topic_id: sticky for topic_id, sticky in self._sticky.items() if self._partitions.find(topic_id) is not None
        }


def _refuse_unknown(view: view_pb2.PublishRequestView) -> None:
    if requests.has_unknown_fields(view):
        requests.refuse_unknown(view)
    if view.HasField("producer"):
        requests.refuse_unknown(view.producer, "producer.")
    if view.HasField("precondition"):
        requests.refuse_unknown(view.precondition, "precondition.")


def _check_options(view: view_pb2.PublishRequestView, topic: PartitionedTopic) -> None:
    if not 0 <= view.acks <= publisher_pb2.ACKS_NONE:
        raise errors.unknown_field(f"acks = {view.acks}")
    request_id = view.request_id
    if request_id and len(request_id.encode()) > REQUEST_ID_BYTES_MAX:
        raise errors.too_large(
            "request_id",
            f"has {len(request_id.encode())} bytes, at most {REQUEST_ID_BYTES_MAX} are allowed",
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
            partition=part.partition, base_offset=part.base_offset, record_count=part.record_count
        )
        if part.record_indexes:
            placed.record_indexes.extend(part.record_indexes)
        if part.duplicate:
            placed.duplicate = True
        append_time = placed.append_time
        append_time.seconds, micros = divmod(part.append_time_us, 1_000_000)
        append_time.nanos = micros * 1000


def timestamp(time_us: int) -> Timestamp:
    """Microseconds since 1970 as a Timestamp."""
    return Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)
