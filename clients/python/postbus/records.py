"""What goes in and what comes out: records to publish, where they went, records and batches that were delivered.

Delivered records are slotted and lazy rather than frozen dataclasses: one is made for each record, and most handlers
look at one or two of its fields.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from postbus import compression, errors
from postbus.v1 import record_pb2, subscriber_pb2

if TYPE_CHECKING:
    from postbus.subscription import Subscription

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Payload = bytes | bytearray | memoryview | str
Headers = Mapping[str, Payload] | Sequence[tuple[str, Payload]]
EventTime = datetime | int

HEADER_PREFIX_RESERVED = "postbus-"


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A record to publish with `publish_many`.

    value: the payload; text is encoded as UTF-8; None is a tombstone, which deletes the key in a compacted topic.
    key: what the record is about; records with equal keys go to the same partition, in order. None: no key.
    headers: small facts beside the payload, in the order given.
    partition: exactly where to; None: by key, or any.
    event_time: when it happened, as you say: a datetime with a time zone, or microseconds since 1970 UTC.
    """

    value: Payload | None
    key: Payload | None = None
    headers: Headers = ()
    partition: int | None = None
    event_time: EventTime | None = None


class Published(NamedTuple):
    """Where a record went; offset is -1 where the broker could not say (acks="none", or a retry after very long)."""

    topic: str
    partition: int
    offset: int


class PublishedRange(NamedTuple):
    """Where records went that were published together; base_offset is -1 where the broker could not say."""

    topic: str
    partition: int
    base_offset: int
    record_count: int


def to_bytes(payload: Payload, field: str) -> bytes:
    """A payload as bytes; text as UTF-8."""
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, str):
        try:
            return payload.encode()
        except UnicodeEncodeError as failure:
            raise errors.InvalidArgument(f"{field} is text that UTF-8 can't hold: {failure}", field=field) from None
    if isinstance(payload, (bytearray, memoryview)):
        return bytes(payload)
    raise errors.InvalidArgument(f"{field} is {type(payload).__name__}: give bytes or text", field=field)


def to_headers(headers: Headers) -> list[tuple[str, bytes]]:
    """Headers as pairs, checked; a reserved name would fail a whole batch at the broker."""
    pairs: list[tuple[str, bytes]] = []
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if not isinstance(name, str):
            raise errors.InvalidArgument(f"a header's name is {type(name).__name__}, not text", field="headers")
        to_bytes(name, "headers")
        if name.startswith(HEADER_PREFIX_RESERVED):
            raise errors.InvalidArgument(f"header {name!r}: names that begin so are the broker's", field="headers")
        pairs.append((name, to_bytes(value, "headers")))
    return pairs


def to_time_us(moment: EventTime, field: str) -> int:
    """Microseconds since 1970 UTC."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise errors.InvalidArgument(f"{field} has no time zone: which moment it is depends on where", field=field)
        return (moment - EPOCH) // timedelta(microseconds=1)
    if isinstance(moment, int):
        if not -(2**63) <= moment < 2**63:
            raise errors.InvalidArgument(f"{field} is out of range: {moment}", field=field)
        return moment
    raise errors.InvalidArgument(f"{field} is {type(moment).__name__}: give a datetime or microseconds", field=field)


class Record:
    """A record that was delivered. Its fields are read when you look at them."""

    __slots__ = ("_batch", "_message", "offset")

    def __init__(self, batch: Batch, message: record_pb2.Record, offset: int) -> None:
        self._batch = batch
        self._message = message
        self.offset = offset

    @property
    def topic(self) -> str:
        """Name of its topic."""
        return self._batch.topic

    @property
    def partition(self) -> int:
        """Which partition of the topic."""
        return self._batch.partition

    @property
    def key(self) -> bytes | None:
        """What it is about; None: it has no key."""
        message = self._message
        return message.key if message.HasField("key") else None

    @property
    def value(self) -> bytes:
        """The payload; empty for a tombstone (see `is_tombstone`)."""
        return self._message.value

    @property
    def is_tombstone(self) -> bool:
        """True: there is no value, not even an empty one."""
        return not self._message.HasField("value")

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """Names and values, in the order they were given."""
        return tuple((header.name, header.value) for header in self._message.headers)

    def header(self, name: str) -> bytes | None:
        """The first value under `name`, or None."""
        for header in self._message.headers:
            if header.name == name:
                return header.value
        return None

    @property
    def event_time(self) -> datetime | None:
        """When it happened, as the publisher said; None: not said."""
        time_us = self._message.event_time_us
        return EPOCH + timedelta(microseconds=time_us) if time_us else None

    @property
    def event_time_us(self) -> int:
        """The same in microseconds since 1970 UTC; 0: not said."""
        return self._message.event_time_us

    @property
    def append_time(self) -> datetime:
        """The broker's clock when it was appended; never falls within a partition."""
        return self._batch.append_time

    @property
    def delivery_attempt(self) -> int:
        """How often it has been delivered, this time included (shared groups; otherwise 1)."""
        message = self._batch.message
        if not message.delivery_attempts:
            return 1
        delta = self.offset - message.delivery.base_offset
        return message.delivery_attempts[list(message.offset_deltas).index(delta) if message.offset_deltas else delta]

    @property
    def batch(self) -> Batch:
        """The batch it came in."""
        return self._batch

    def delivery(self) -> subscriber_pb2.Delivery:
        """What acknowledges exactly this record."""
        return self._batch.part(self.offset, self.offset + 1)

    async def ack(self) -> None:
        """Done with this record. Returns at once; the acknowledgement goes out with the next message."""
        self._batch.subscription().ack(self)

    async def nack(
        self, *, delay: float | timedelta | None = None, dead_letter: bool = False, reason: str = ""
    ) -> None:
        """Not done: deliver it again after `delay` (unset: the group's back-off), or give it to the dead letters."""
        self._batch.subscription().nack(self, delay=delay, dead_letter=dead_letter, reason=reason)

    def __repr__(self) -> str:
        key, value = self.key, self.value
        return (
            f"Record({self.topic}/{self.partition}@{self.offset}, key={_short(key)}, "
            f"value={'tombstone' if self.is_tombstone else _short(value)})"
        )


class Batch:
    """Records of one partition that came together. Iterate over it, or take `values()` for the payloads alone.

    message: the DeliveredBatch as it came.
    end_offset: where the partition goes on after this batch.
    """

    __slots__ = (
        "_records",
        "_subscription",
        "base_offset",
        "dropped",
        "end_offset",
        "message",
        "offsets",
        "partition",
        "topic",
    )

    def __init__(self, message: subscriber_pb2.DeliveredBatch, subscription: Subscription | None = None) -> None:
        delivery = message.delivery
        self.message = message
        self.topic = delivery.topic
        self.partition = delivery.partition
        self.base_offset = delivery.base_offset
        self.end_offset = delivery.end_offset
        self._subscription = subscription
        # Set when the partition went elsewhere, or was sought in, while these were in hand.
        self.dropped = False
        packed = message.batch
        if packed.compression:
            unpacked = compression.decompress(
                packed.compression, packed.compressed_records, uncompressed_bytes=packed.uncompressed_bytes
            )
            self._records: Sequence[record_pb2.Record] = record_pb2.RecordSet.FromString(unpacked).records
        else:
            self._records = packed.records
        base = self.base_offset
        self.offsets: Sequence[int] = (
            [base + delta for delta in message.offset_deltas]
            if message.offset_deltas
            else range(base, base + len(self._records))
        )

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @property
    def records(self) -> list[Record]:
        """All of them."""
        return list(map(Record, repeat(self), self._records, self.offsets))

    def values(self) -> list[bytes]:
        """The payloads alone: the fastest way; a tombstone's is empty."""
        return [message.value for message in self._records]

    @property
    def append_time(self) -> datetime:
        """The broker's clock when the batch was appended."""
        time = self.message.append_time
        return EPOCH + timedelta(seconds=time.seconds, microseconds=time.nanos // 1000)

    @property
    def high_watermark(self) -> int:
        """The partition's when this was sent: how far one could read."""
        return self.message.high_watermark

    @property
    def fence(self) -> int:
        """Grows with each owner of the partition: may be used downstream as a fencing token. 0: no group."""
        return self.message.delivery.fence

    def delivery(self) -> subscriber_pb2.Delivery:
        """What acknowledges the whole batch."""
        return self.part(self.base_offset, self.end_offset)

    def cut(self, begin: int, end: int) -> None:
        """Keeps only what lies within [begin, end)."""
        first = bisect_left(self.offsets, begin)
        last = bisect_left(self.offsets, end)
        self._records = self._records[first:last]
        self.offsets = self.offsets[first:last]
        self.base_offset = max(self.base_offset, begin)
        self.end_offset = min(self.end_offset, end)

    def part(self, base_offset: int, end_offset: int) -> subscriber_pb2.Delivery:
        """What acknowledges [base_offset, end_offset) of it."""
        return subscriber_pb2.Delivery(
            topic=self.topic,
            partition=self.partition,
            base_offset=base_offset,
            end_offset=end_offset,
            fence=self.message.delivery.fence,
        )

    def subscription(self) -> Subscription:
        """Which subscription it came by; raises Closed for what came by `fetch`."""
        if self._subscription is None:
            raise errors.Closed("these records came by fetch: acknowledge them with client.acknowledge(…)")
        return self._subscription

    async def ack(self) -> None:
        """Done with all of them."""
        self.subscription().ack(self)

    async def nack(
        self, *, delay: float | timedelta | None = None, dead_letter: bool = False, reason: str = ""
    ) -> None:
        """Done with none of them: deliver again after `delay`, or give them to the dead letters."""
        self.subscription().nack(self, delay=delay, dead_letter=dead_letter, reason=reason)

    def __repr__(self) -> str:
        return f"Batch({self.topic}/{self.partition}@{self.base_offset}..{self.end_offset}, {len(self)} records)"


def _short(payload: bytes | None) -> str:
    if payload is None or len(payload) <= 40:
        return repr(payload)
    return f"{payload[:40]!r}… ({len(payload)} bytes)"
