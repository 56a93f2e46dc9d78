"""Loads on a node, each in a process of its own: prints one JSON object. usage: loads.py NAME ADDRESS [KEY=VALUE…]"""

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import uvloop
from postbus import Client
from postbus.v1 import publisher_pb2, record_pb2, subscriber_pb2

Result = dict[str, Any]


async def bulk_publish(
    address: str, *, topic: str, record_bytes: int, records: int, chunk: int, keyed: int, direct: int = 1
) -> Result:
    """The SDK's bulk call: lists of records, `keyed` or not; `direct` to the leaders, or all to the first address."""
    value = os.urandom(record_bytes)
    keys = [b"key-%d" % number for number in range(10_000)]
    bulk: list[Any] = [(keys[index % len(keys)], value) for index in range(chunk)] if keyed else [value] * chunk
    async with Client(address) as client, client.publisher(direct=bool(direct)) as publisher:
        await publisher.publish_many(topic, bulk[:1])
        await publisher.flush()
        begin = time.perf_counter()
        for _ in range(records // chunk):
            await publisher.publish_many(topic, bulk)
        await publisher.flush()
        return {"records_per_second": records / (time.perf_counter() - begin)}


async def publish_one_by_one(address: str, *, topic: str, record_bytes: int, records: int) -> Result:
    """A call of `publish` for each record, from one process."""
    value = os.urandom(record_bytes)
    async with Client(address) as client, client.publisher() as publisher:
        await publisher.publish(topic, value)
        await publisher.flush()
        begin = time.perf_counter()
        for _ in range(records):
            await publisher.publish(topic, value)
        await publisher.flush()
        return {"records_per_second": records / (time.perf_counter() - begin)}


async def subscribe_batches(address: str, *, topic: str, records: int, group: str) -> Result:
    """A group of one reads what is there, batch by batch."""
    seen = 0
    async with Client(address) as client, client.subscribe(topic, group=group) as subscription:
        begin = time.perf_counter()
        async for batch in subscription.batches():
            seen += len(batch.records)
            if seen >= records:
                break
        return {"records_per_second": seen / (time.perf_counter() - begin)}


async def subscribe_records(address: str, *, topic: str, records: int, group: str) -> Result:
    """The same, record by record, looking at each value."""
    seen = size = 0
    async with Client(address) as client, client.subscribe(topic, group=group) as subscription:
        begin = time.perf_counter()
        async for record in subscription:
            size += len(record.value)
            seen += 1
            if seen >= records:
                break
        return {"records_per_second": seen / (time.perf_counter() - begin)}


async def one_in_flight(address: str, *, topic: str, record_bytes: int, records: int) -> Result:
    """Generated messages over one PublishStream: the next record goes when the last one was acknowledged."""
    batch = record_pb2.RecordBatch(records=[record_pb2.Record(value=os.urandom(record_bytes))])
    publish = publisher_pb2.PublishRequest(topic=topic, partition=0, batch=batch)
    async with grpc.aio.insecure_channel(address) as channel:
        stream = channel.stream_stream("/postbus.v1.PublisherService/PublishStream")()
        waits: list[float] = []
        for number in range(records):
            request = publisher_pb2.PublishStreamRequest(correlation_id=number, publish=publish).SerializeToString()
            begin = time.perf_counter()
            await stream.write(request)
            answer = publisher_pb2.PublishStreamResponse.FromString(await stream.read())
            waits.append(time.perf_counter() - begin)
            if answer.acks[0].HasField("failure"):
                raise SystemExit(answer.acks[0].failure.message)
        await stream.done_writing()
        waits = sorted(waits[records // 10 :])
        return {"p50_ms": waits[len(waits) // 2] * 1e3, "p99_ms": waits[len(waits) * 99 // 100] * 1e3}


async def idle_subscribers(address: str, *, topic: str, subscribers: int) -> Result:
    """Opens them, prints that they stand, and keeps them until its standard input closes."""
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic=topic)])
    start.start_at.edge = subscriber_pb2.LOG_EDGE_LATEST
    request = subscriber_pb2.SubscribeRequest(start=start).SerializeToString()
    async with grpc.aio.insecure_channel(address) as channel:
        streams = [channel.stream_stream("/postbus.v1.SubscriberService/Subscribe")() for _ in range(subscribers)]
        for stream in streams:
            await stream.write(request)
        for stream in streams:
            await stream.read()
        print(json.dumps({"open": len(streams)}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    return {}


async def every_5_ms(address: str, *, topic: str, seconds: int) -> Result:
    """A publisher that never waits for an answer: when each came, on the clock that all processes share."""
    answered: list[float] = []
    failed = 0

    async def follow(delivery: Any) -> None:
        nonlocal failed
        try:
            await delivery
            answered.append(time.monotonic())
        except Exception as error:
            failed += 1
            print(f"not acknowledged: {error!r}", file=sys.stderr)

    async with Client(address) as client, client.publisher(linger=0) as publisher:
        await (await publisher.publish(topic, b"first"))
        print("publishing", flush=True)
        end = time.monotonic() + seconds
        following: list[asyncio.Task[None]] = []
        while time.monotonic() < end:
            following.append(asyncio.create_task(follow(await publisher.publish(topic, b"%d" % len(following)))))
            await asyncio.sleep(0.005)
        await asyncio.gather(*following)
    return {"acknowledged_at": answered, "lost": failed}


async def group_every_5_ms(address: str, *, topic: str, group: str, seconds: int) -> Result:
    """The same with a member of a group: when each record reached it, and when each commit for another was answered."""
    delivered: list[float] = []
    committed: list[float] = []

    async def read(client: Client) -> None:
        async with client.subscribe(topic, group=group, start="latest") as subscription:
            async for _ in subscription:
                delivered.append(time.monotonic())  # noqa: PERF401 - each as it comes

    async def commit(client: Client) -> None:
        # Its offsets are written by the same coordinator, and one at a time.
        for offset in itertools.count(1):
            await client.groups.commit(f"{group}-offsets", {(topic, 0): min(offset, len(delivered))})
            committed.append(time.monotonic())
            await asyncio.sleep(0.005)

    async with Client(address) as client:
        await client.groups.create(f"{group}-offsets")
        tasks = [asyncio.create_task(read(client)), asyncio.create_task(commit(client))]
        async with client.publisher(linger=0) as publisher:
            while not delivered:
                await publisher.publish(topic, b"first")
                await asyncio.sleep(0.05)
            print("publishing", flush=True)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await publisher.publish(topic, b"")
                await asyncio.sleep(0.005)
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {"delivered_at": delivered, "committed_at": committed}


LOADS: dict[str, Callable[..., Awaitable[Result]]] = {
    load.__name__: load
    for load in (
        bulk_publish,
        publish_one_by_one,
        subscribe_batches,
        subscribe_records,
        one_in_flight,
        idle_subscribers,
        every_5_ms,
        group_every_5_ms,
    )
}


def _main(name: str, address: str, *settings: str) -> None:
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        parsed[key] = int(value) if value.isdecimal() else value
    print(json.dumps(uvloop.run(LOADS[name](address, **parsed))), flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    _main(*sys.argv[1:])
