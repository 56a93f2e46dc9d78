"""The client: one connection to the cluster, from which everything else is made.

Owns the channels, the publisher behind `client.publish`, and every publisher and subscription that it made: closing it
closes them, publishers first, so that nothing that was published is left behind.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

import grpc

from postbus import compression as codecs
from postbus import errors
from postbus.admin import CALL_TIMEOUT, Groups, Topics
from postbus.cluster import Cluster
from postbus.connection import Connections
from postbus.directory import Directory
from postbus.lanes import BulkDelivery, Delivery
from postbus.positions import Start, duration, start_position
from postbus.publisher import BulkRecord, Publisher, PublisherOptions
from postbus.records import (
    Batch,
    EventTime,
    Headers,
    NewRecord,
    Payload,
    PublishedRange,
    Record,
    to_bytes,
    to_headers,
    to_time_us,
)
from postbus.subscription import SubscribeOptions, Subscription, TopicNames
from postbus.v1 import publisher_pb2, record_pb2, subscriber_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from postbus.sync import SyncClient

log = logging.getLogger("postbus.client")


class ClientOptions(TypedDict, total=False):
    """Options of `Client`, which says what each means."""

    credentials: grpc.ChannelCredentials | None
    connect_timeout: float
    call_timeout: float
    metadata: Sequence[tuple[str, str]]
    channel_options: Mapping[str, int | str] | None
    client_id: str


class Client:
    """A client of a Postbus cluster.

        async with Client("localhost:7070") as client:
            delivery = await client.publish("orders", b"one", key=b"42")
            print(await delivery)

    addresses: host:port, several separated by commas, or a list; any of them will do, the next one is tried when one
        fails. The port may be left out (7070).
    credentials: for TLS, from grpc.ssl_channel_credentials(…). None: plain text.
    connect_timeout: seconds until `async with` gives up with ConnectionFailed, which says what was tried.
    call_timeout: seconds for which `topics`, `groups` and `cluster` repeat a call that is answered "not now".
    metadata: sent with every call.
    channel_options: gRPC channel options on top of this package's.
    client_id: what this calls itself, for people who look at a group. Empty: its address.
    """

    def __init__(
        self,
        addresses: str | Iterable[str] = "localhost:7070",
        *,
        credentials: grpc.ChannelCredentials | None = None,
        connect_timeout: float = 10.0,
        call_timeout: float = CALL_TIMEOUT,
        metadata: Sequence[tuple[str, str]] = (),
        channel_options: Mapping[str, int | str] | None = None,
        client_id: str = "",
    ) -> None:
        self._connections = Connections(addresses, credentials=credentials, options=channel_options, metadata=metadata)
        self._directory = Directory(self._connections)
        self._connect_timeout = connect_timeout
        self._client_id = client_id
        self._publishers: list[Publisher] = []
        self._default_publisher: Publisher | None = None
        self._subscriptions: list[Subscription] = []
        self._closed = False
        self.topics = Topics(self._connections, timeout=call_timeout)
        self.groups = Groups(self._connections, timeout=call_timeout)
        self.cluster = Cluster(self._connections, timeout=call_timeout)

    @staticmethod
    def sync(addresses: str | Iterable[str] = "localhost:7070", **options: Unpack[ClientOptions]) -> SyncClient:
        """The same without asyncio: `with Client.sync("localhost:7070") as client`."""
        from postbus.sync import SyncClient

        return SyncClient(addresses, **options)

    @property
    def addresses(self) -> tuple[str, ...]:
        """All that were given, completed with ports."""
        return self._connections.addresses

    async def connect(self) -> Client:
        """Checks that something answers; `async with` does so. Raises ConnectionFailed."""
        await self._connections.connect(timeout=self._connect_timeout)
        return self

    # --- publishing ----------------------------------------------------------------------------------------------

    def publisher(self, **options: Unpack[PublisherOptions]) -> Publisher:
        """A publisher with settings of its own: see `Publisher`. `async with` flushes it at the end."""
        self._check_open()
        publisher = Publisher(self._connections, self._directory, **options)
        self._publishers = [each for each in self._publishers if not each.closed]
        self._publishers.append(publisher)
        return publisher

    async def publish(
        self,
        topic: str,
        value: Payload | None,
        *,
        key: Payload | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        event_time: EventTime | None = None,
    ) -> Delivery:
        """As `Publisher.publish`, through a publisher that the client keeps; its close flushes."""
        return await self._publisher().publish(
            topic, value, key=key, headers=headers, partition=partition, event_time=event_time
        )

    async def publish_many(
        self, topic: str, records: Iterable[BulkRecord], *, partition: int | None = None
    ) -> BulkDelivery:
        """As `Publisher.publish_many`, through a publisher that the client keeps."""
        return await self._publisher().publish_many(topic, records, partition=partition)

    async def flush(self) -> None:
        """Waits for the fate of all that `publish` and `publish_many` of the client took."""
        if self._default_publisher is not None:
            await self._default_publisher.flush()

    def _publisher(self) -> Publisher:
        if self._default_publisher is None or self._default_publisher.closed:
            self._default_publisher = self.publisher()
        return self._default_publisher

    async def append(
        self,
        topic: str,
        records: Iterable[BulkRecord],
        *,
        partition: int,
        expected_end_offset: int | None = None,
        request_id: str | None = None,
        timeout: float = 30.0,
    ) -> PublishedRange:
        """Appends records as one batch, all or none, and answers when they are safe. For event sourcing and outboxes.

        expected_end_offset: append only if the partition ends there (0: nothing was ever appended); raises
            PreconditionNotMet, whose `end_offset` says where it does end.
        request_id: repeating the call with the same id (an order's number, a row's id) within the topic's window
            appends nothing twice, and answers with where the records are. None: one is made up for this call.
        """
        request = publisher_pb2.PublishRequest(
            topic=topic,
            partition=partition,
            batch=record_pb2.RecordBatch(records=[_message(record) for record in records]),
            request_id=request_id or uuid.uuid4().hex,
        )
        if expected_end_offset is not None:
            request.precondition.end_offset = expected_end_offset
        answer = await self._connections.call(
            "PublisherService/Publish", request, publisher_pb2.PublishResponse.FromString, timeout=timeout
        )
        (published,) = answer.ranges
        return PublishedRange(topic, published.partition, published.base_offset, published.record_count)

    # --- subscribing ---------------------------------------------------------------------------------------------

    def subscribe(self, topics: TopicNames, **options: Unpack[SubscribeOptions]) -> Subscription:
        """Reads topics, alone or as a member of a group: see `Subscription` for all options.

        async for record in client.subscribe("orders", group="billing"):
            handle(record)
        """
        self._check_open()
        options.setdefault("client_id", self._client_id)
        subscription = Subscription(self._connections, topics, **options)
        self._subscriptions = [each for each in self._subscriptions if not each.closed]
        self._subscriptions.append(subscription)
        return subscription

    async def fetch(
        self,
        topic: str,
        *,
        positions: Mapping[int, int] | None = None,
        start: Start = "earliest",
        records_max: int = 0,
        bytes_max: int = 0,
        wait: float | timedelta = 0.0,
        group: str = "",
    ) -> tuple[list[Batch], dict[int, int]]:
        """Reads once, without a stream: (batches, where to go on); give the latter as `positions` next time.

        positions: next offset by partition; None or empty: all partitions from `start`.
        records_max, bytes_max: 0 leaves it to the broker. wait: seconds to wait for the first record.
        group: a shared group to lease from; acknowledge with `acknowledge`.
        """
        request = subscriber_pb2.FetchRequest(
            topic=topic,
            positions=[
                record_pb2.Position(topic=topic, partition=partition, offset=offset)
                for partition, offset in (positions or {}).items()
            ],
            max_records=records_max,
            max_bytes=bytes_max,
            max_wait=duration(wait),
            accept_compressions=codecs.readable(),
            group=group,
        )
        if not positions:
            request.start_at.CopyFrom(start_position(start))
        answer = await self._connections.call(
            "SubscriberService/Fetch",
            request,
            subscriber_pb2.FetchResponse.FromString,
            timeout=30.0 + duration(wait).ToTimedelta().total_seconds(),
        )
        return (
            [Batch(delivered) for delivered in answer.batches],
            {position.partition: position.offset for position in answer.next},
        )

    async def acknowledge(
        self,
        group: str,
        done: Iterable[Record | Batch | subscriber_pb2.Delivery],
        *,
        nacks: Iterable[subscriber_pb2.Nack] = (),
        member_id: str = "",
    ) -> subscriber_pb2.AckReport:
        """Acknowledges without a stream; the report says what was committed and what did not count."""
        answer = await self._connections.call(
            "SubscriberService/Acknowledge",
            subscriber_pb2.AcknowledgeRequest(
                group=group,
                member_id=member_id,
                acks=[each.delivery() if isinstance(each, Record | Batch) else each for each in done],
                nacks=nacks,
            ),
            subscriber_pb2.AcknowledgeResponse.FromString,
            timeout=30.0,
        )
        return answer.report

    # --- life ----------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Closed("the client is closed")

    async def close(self, *, failed: bool = False) -> None:
        """Leaves subscriptions, flushes publishers, closes the channels; raises the first error that nobody saw.

        failed: True: leave quickly, and don't acknowledge the record in hand.
        """
        if self._closed:
            return
        self._closed = True
        closing = [subscription.close(failed=failed) for subscription in self._subscriptions]
        closing += [publisher.close(timeout=5.0 if failed else None) for publisher in self._publishers]
        try:
            outcomes = await asyncio.gather(*closing, return_exceptions=True)
        finally:
            await self._directory.close()
            await self._connections.close()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                if not failed:
                    raise outcome
                log.warning("while closing: %s", outcome)

    async def __aenter__(self) -> Client:
        try:
            return await self.connect()
        except BaseException:
            await self._connections.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(failed=error is not None)


def _message(record: BulkRecord) -> record_pb2.Record:
    if isinstance(record, tuple):
        record = NewRecord(record[1], key=record[0])
    elif not isinstance(record, NewRecord):
        record = NewRecord(record)
    return record_pb2.Record(
        key=None if record.key is None else to_bytes(record.key, "key"),
        value=None if record.value is None else to_bytes(record.value, "value"),
        headers=[record_pb2.Header(name=name, value=value) for name, value in to_headers(record.headers)],
        event_time_us=0 if record.event_time is None else to_time_us(record.event_time, "event_time"),
    )
