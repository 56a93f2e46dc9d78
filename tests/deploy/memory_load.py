"""Loads that make a broker hold as much as clients can make it hold, each with stubs alone and without mercy.

A load returns when it has done what its name says. Outcomes of single requests do not matter here, only that the
broker goes on: what it cannot take it may refuse, in words.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from postbus.v1 import (
    publisher_pb2,
    publisher_pb2_grpc,
    record_pb2,
    subscriber_pb2,
    topic_pb2,
    topic_pb2_grpc,
)

MIB: Final = 1024 * 1024
TOPIC: Final = "load"
REFUSED: Final = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@contextlib.asynccontextmanager
async def channels(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Connections of their own: each brings its windows and buffers along."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", 16 * MIB),
        ("grpc.http2.bdp_probe", 0),
    ]
    opened = [grpc.aio.insecure_channel(address, options) for _ in range(count)]
    try:
        yield opened
    finally:
        await asyncio.gather(*(channel.close(None) for channel in opened))


async def make_topic(address: str, name: str, partitions: int, *, replicas: int = 0) -> None:
    """A topic for a load."""
    request = topic_pb2.CreateTopicRequest(name=name, partition_count=partitions)
    if replicas:
        request.replication_factor = replicas
    async with channels(address, 1) as (channel,):
        await topic_pb2_grpc.TopicServiceStub(channel).CreateTopic(request, timeout=60, wait_for_ready=True)


async def publish_streams(
    address: str, *, topic: str, streams: int, requests: int, records: int, record_bytes: int, partitions: int
) -> int:
    """Streams that send all they have at once and never wait; the number of acknowledged requests."""
    value = b"v" * record_bytes
    batch = record_pb2.RecordBatch(records=[record_pb2.Record(value=value) for _ in range(records)])

    async def one(channel: grpc.aio.Channel, number: int) -> int:
        stream = publisher_pb2_grpc.PublisherServiceStub(channel).PublishStream()

        async def send() -> None:
            for each in range(requests):
                publish = publisher_pb2.PublishRequest(topic=topic, partition=(number + each) % partitions, batch=batch)
                await stream.write(publisher_pb2.PublishStreamRequest(correlation_id=each + 1, publish=publish))
            await stream.done_writing()

        sender = asyncio.create_task(send())
        acknowledged = 0
        try:
            async for response in stream:
                acknowledged += sum(1 for ack in response.acks if ack.HasField("result"))
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return acknowledged

    async with channels(address, streams) as opened:
        return sum(await asyncio.gather(*(one(channel, number) for number, channel in enumerate(opened))))


async def publish_calls(address: str, *, topic: str, calls: int, record_bytes: int, partitions: int) -> int:
    """Unary calls, all at once; the number that succeeded."""
    value = b"u" * record_bytes
    batch = record_pb2.RecordBatch(records=[record_pb2.Record(value=value)])

    async def one(channel: grpc.aio.Channel, number: int) -> bool:
        request = publisher_pb2.PublishRequest(
            topic=topic, partition=number % partitions, batch=batch, request_id=f"call {number}"
        )
        return await _succeeds(publisher_pb2_grpc.PublisherServiceStub(channel).Publish(request, timeout=60))

    async with channels(address, 16) as opened:
        return sum(await asyncio.gather(*(one(opened[number % 16], number) for number in range(calls))))


async def fetch_calls(address: str, *, topic: str, calls: int, response_bytes: int) -> int:
    """Fetches from the beginning with the largest answers, all at once; the number that succeeded."""

    async def one(channel: grpc.aio.Channel) -> bool:
        request = subscriber_pb2.FetchRequest(
            topic=topic,
            start_at=subscriber_pb2.StartPosition(edge=subscriber_pb2.LOG_EDGE_EARLIEST),
            max_bytes=response_bytes,
            max_records=100_000,
        )
        # Bytes as they come: whoever asks has memory of its own to think of.
        fetch = channel.unary_unary(
            "/postbus.v1.SubscriberService/Fetch", request_serializer=type(request).SerializeToString
        )
        return await _succeeds(fetch(request, timeout=60))

    async with channels(address, min(calls, 50)) as opened:
        return sum(await asyncio.gather(*(one(opened[number % len(opened)]) for number in range(calls))))


@contextlib.asynccontextmanager
async def subscribers(address: str, *, topic: str, streams: int, reading: bool) -> AsyncIterator[list[int]]:
    """Open streams from the beginning that read as fast as they can, or nothing at all; bytes that each has read."""
    start = subscriber_pb2.SubscribeStart(
        topics=[subscriber_pb2.TopicSelector(topic=topic)],
        start_at=subscriber_pb2.StartPosition(edge=subscriber_pb2.LOG_EDGE_EARLIEST),
        max_response_bytes=16 * MIB,
    )
    counts = [0] * streams

    async def one(channel: grpc.aio.Channel, number: int) -> None:
        subscribe = channel.stream_stream(
            "/postbus.v1.SubscriberService/Subscribe",
            request_serializer=subscriber_pb2.SubscribeRequest.SerializeToString,
        )
        stream: Any = subscribe()
        await stream.write(subscriber_pb2.SubscribeRequest(start=start))
        counts[number] += len(await stream.read())
        while reading:
            counts[number] += len(await stream.read())
        await asyncio.Event().wait()

    async with channels(address, streams) as opened:
        tasks = [asyncio.create_task(one(channel, number)) for number, channel in enumerate(opened)]
        try:
            yield counts
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _succeeds(call: Any) -> bool:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() not in REFUSED:
            raise
        return False
    return True
