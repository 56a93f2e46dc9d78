"""Records that are numbers, in the one partition of a topic "t": for tests that compare all of it."""

import asyncio

import grpc
from broker_process import WAIT_S, BrokerProcess
from bus import Bus, Recorder
from history import Polled
from postbus.v1 import publisher_pb2
from subscribers import Reader

TOPIC = "t"


async def publish(bus: Bus, numbers: range, *, size: int = 0, partition: int = 0) -> int:
    """A record for each, the number as request id: again and again until it worked; how often there was no room."""
    refused = 0
    for number in numbers:
        request = publisher_pb2.PublishRequest(topic=TOPIC, partition=partition, request_id=f"{number}")
        request.batch.records.add(value=b"%d %s" % (number, bytes(size)))
        while True:
            try:
                await bus.until_done(bus.publisher.Publish, request)
                break
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                refused += 1
    return refused


async def values(process: BrokerProcess) -> list[int]:
    """All of it, as one node serves it."""
    bus, recorder = Bus(process), Recorder()
    try:
        await Reader(bus, recorder, "all", TOPIC, 1).run(until_end=True)
    finally:
        await bus.channel.close()
    return _numbers(recorder)


async def first_values(process: BrokerProcess, count: int) -> list[int]:
    """So many, without asking for the end, which nobody knows without a quorum."""
    bus, recorder = Bus(process), Recorder()
    reading = asyncio.create_task(Reader(bus, recorder, "some", TOPIC, 1).run())
    try:
        async with asyncio.timeout(WAIT_S):
            await recorder.until(lambda: len(recorder.seen_by_readers) >= count)
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        await bus.channel.close()
    return _numbers(recorder)


def _numbers(recorder: Recorder) -> list[int]:
    polled = [event.content for event in recorder.history.events if isinstance(event, Polled)]
    return [int(content[1].split()[0]) for content in polled if isinstance(content, tuple)]
