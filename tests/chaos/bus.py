"""What clients of the kill tests share: one connection, the rule for trying again, and the notes that they all take.

Clients have nothing but generated stubs, as a user in any language would. Each notes in a `Recorder` what it did and
saw, and judges nothing.
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import Any

import cramjam
import grpc
from broker_process import BrokerProcess
from history import Event, History, Outcome, Polled, Sent
from postbus.v1 import (
    group_pb2_grpc,
    publisher_pb2_grpc,
    record_pb2,
    subscriber_pb2_grpc,
    topic_pb2_grpc,
)

CALL_TIMEOUT_S = 30.0
RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED})
CODECS: dict[record_pb2.Compression, Callable[[bytes], bytes]] = {
    record_pb2.COMPRESSION_GZIP: lambda data: bytes(cramjam.gzip.compress(data)),
    record_pb2.COMPRESSION_ZSTD: lambda data: bytes(cramjam.zstd.compress(data)),
    record_pb2.COMPRESSION_LZ4: lambda data: bytes(cramjam.lz4.compress(data)),
    record_pb2.COMPRESSION_SNAPPY: lambda data: bytes(cramjam.snappy.compress_raw(data)),
}
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
)


def passes(error: grpc.aio.AioRpcError) -> bool:
    """Whether it may be tried again: by the rule of codes, or a write on a call that had broken already."""
    return error.code() in RETRIED or error.details() == "Internal error from Core"


class Recorder:
    """The history as it grows, and a way to wait for it to have grown."""

    def __init__(self) -> None:
        self.history = History()
        self.acknowledgements = 0
        self.in_flight = 0
        self.acknowledged: set[Hashable] = set()
        self.seen_by_groups: set[Hashable] = set()
        self.seen_by_readers: set[Hashable] = set()
        self._news = asyncio.Event()

    def note(self, *events: Event) -> None:
        """Adds what happened."""
        self.history.events.extend(events)
        for event in events:
            if isinstance(event, Polled):
                (self.seen_by_groups if event.group else self.seen_by_readers).add(event.content)
            elif isinstance(event, Sent) and event.outcome is Outcome.OK:
                self.acknowledged.add(event.content)
        self._news.set()

    def sent(self, count: int) -> None:
        """So many requests more (or less) are unanswered."""
        self.in_flight += count
        self._news.set()

    async def until(self, came: Callable[[], bool]) -> None:
        """Waits until that holds; looked at after each note."""
        while not came():
            self._news.clear()
            await self._news.wait()


class Bus:
    """One connection, the stubs on it, and the broker behind it."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.channel = grpc.aio.insecure_channel(broker.target, options=_CHANNEL_OPTIONS)
        self.publisher = publisher_pb2_grpc.PublisherServiceStub(self.channel)
        self.subscriber = subscriber_pb2_grpc.SubscriberServiceStub(self.channel)
        self.groups = group_pb2_grpc.GroupServiceStub(self.channel)
        self.topics = topic_pb2_grpc.TopicServiceStub(self.channel)

    async def until_ready(self) -> None:
        """Waits for a broker to try. Before every try, and so where a client ends that was cancelled meanwhile."""
        await self.broker.ready.wait()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError  # of a call that ends in that moment, grpc.aio tells only how it ended

    async def until_done(self, method: Any, request: Any) -> Any:
        """A unary call, made again as long as the broker is away."""
        while True:
            await self.until_ready()
            try:
                return await method(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if not passes(error):
                    raise


def content_of(record: record_pb2.Record) -> Hashable:
    """All of a record, hashable."""
    return (
        record.key if record.HasField("key") else None,
        record.value if record.HasField("value") else None,
        tuple((header.name, header.value) for header in record.headers),
        record.event_time_us,
    )


def plain_records(batch: record_pb2.RecordBatch) -> list[record_pb2.Record]:
    """The records of a batch, compressed or not."""
    if not batch.compression:
        return list(batch.records)
    buffer = bytearray(batch.uncompressed_bytes)
    if batch.compression == record_pb2.COMPRESSION_SNAPPY:
        cramjam.snappy.decompress_raw_into(batch.compressed_records, buffer)
    else:
        codec = {
            record_pb2.COMPRESSION_GZIP: cramjam.gzip,
            record_pb2.COMPRESSION_ZSTD: cramjam.zstd,
            record_pb2.COMPRESSION_LZ4: cramjam.lz4,
        }[batch.compression]
        codec.decompress_into(batch.compressed_records, buffer)
    return list(record_pb2.RecordSet.FromString(bytes(buffer)).records)
