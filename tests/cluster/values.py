"""Records that are numbers, in the one partition of a topic "t": for tests that compare all of it."""

import grpc
from broker_process import BrokerProcess
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
    polled = [event.content for event in recorder.history.events if isinstance(event, Polled)]
    return [int(content[1].split()[0]) for content in polled if isinstance(content, tuple)]
