"""Admission: a flood waits outside, unread; a place comes back however its call ends; streams over the bound go."""

import asyncio
import resource
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from live_node import OpenNode
from postbus.v1 import publisher_pb2, subscriber_pb2, topic_pb2

from broker.services.admission import Admission, AdmissionSettings

MIB = 1 << 20


@dataclass
class Details:
    """What an interceptor sees of a call."""

    method: str


class Calls:
    """Calls under way, each a task as grpc runs them: admitted, then ended as the test says."""

    def __init__(self, **settings: int) -> None:
        self.admission = Admission(AdmissionSettings(**settings))
        self.admitted: list[str] = []

    def begin(self, method: str, ending: asyncio.Future[None]) -> "asyncio.Task[Any]":
        async def call() -> Any:
            async def continuation(details: Any) -> None:
                self.admitted.append(details.method)
                await ending

            return await self.admission.intercept_service(continuation, Details(method))  # type: ignore[arg-type]

        return asyncio.create_task(call())

    async def settle(self) -> int:
        """Lets all tasks go as far as they can; how many were admitted."""
        for _ in range(10):
            await asyncio.sleep(0)
        return len(self.admitted)


def ending() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


PUBLISH = "/postbus.v1.PublisherService/Publish"
STREAM = "/postbus.v1.PublisherService/PublishStream"


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (PUBLISH, "unary_publish_calls_max"),
        ("/postbus.v1.SubscriberService/Fetch", "fetch_calls_max"),
        ("/postbus.v1.GroupService/Heartbeat", "heartbeat_calls_max"),
        ("/postbus.v1.TopicService/GetTopic", "unary_calls_max"),
        ("/externalscaler.ExternalScaler/GetMetrics", "unary_calls_max"),
    ],
)
async def test_unary_calls_over_the_bound_wait(method: str, setting: str) -> None:
    """One in, one out, in the order in which they came; other kinds of calls are not held up."""
    calls = Calls(**{setting: 2})
    ends = [ending() for _ in range(4)]
    tasks = [calls.begin(method, end) for end in ends]
    assert await calls.settle() == 2
    other = ending()
    elsewhere = calls.begin("/postbus.v1.TopicService/X" if method == PUBLISH else PUBLISH, other)
    assert await calls.settle() == 3
    ends[0].set_result(None)
    assert await calls.settle() == 4
    for end in (*ends[1:], other):
        end.set_result(None)
    await asyncio.gather(*tasks, elsewhere)
    assert len(calls.admitted) == 5


async def test_heartbeats_that_wait_hold_up_no_other_call() -> None:
    """Each waits some seconds for news: members that coordinate themselves must not keep commits from being made."""
    settings = AdmissionSettings()
    calls, end = Calls(), ending()
    waiting = [calls.begin("/postbus.v1.GroupService/Heartbeat", end) for _ in range(settings.unary_calls_max + 1)]
    commit = calls.begin("/postbus.v1.GroupService/CommitOffsets", end)
    assert await calls.settle() == len(waiting) + 1
    end.set_result(None)
    await asyncio.gather(*waiting, commit)


async def _fails(end: "asyncio.Future[None]", task: "asyncio.Task[Any]") -> None:
    end.set_exception(RuntimeError("broken"))


async def _is_cancelled(end: "asyncio.Future[None]", task: "asyncio.Task[Any]") -> None:
    task.cancel()


async def _returns(end: "asyncio.Future[None]", task: "asyncio.Task[Any]") -> None:
    end.set_result(None)


@pytest.mark.parametrize("method", [PUBLISH, STREAM])
@pytest.mark.parametrize("how", [_returns, _fails, _is_cancelled])
async def test_a_place_comes_back_however_the_call_ends(
    method: str, how: Callable[[asyncio.Future[None], asyncio.Task[Any]], Awaitable[None]]
) -> None:
    """Ten calls one after the other through one place."""
    calls = Calls(unary_publish_calls_max=1, streams_max=1)
    for count in range(10):
        end = ending()
        task = calls.begin(method, end)
        assert await calls.settle() == count + 1
        await how(end, task)
        await asyncio.wait({task}, timeout=10)
        task.cancelled() or task.exception()
    await calls.settle()
    assert calls.admission.streams == 0


async def test_a_call_that_is_cancelled_while_it_waits_takes_no_place() -> None:
    """Also when its turn comes in the same moment."""
    calls = Calls(unary_publish_calls_max=1)
    first, second, third = ending(), ending(), ending()
    tasks = [calls.begin(PUBLISH, end) for end in (first, second, third)]
    assert await calls.settle() == 1
    tasks[1].cancel()
    first.set_result(None)
    assert await calls.settle() == 2
    third.set_result(None)
    await asyncio.gather(*tasks, return_exceptions=True)
    again = ending()
    last = calls.begin(PUBLISH, again)
    assert await calls.settle() == 3
    again.set_result(None)
    await last


async def test_streams_over_the_bound_are_refused_with_retry_info(open_node: OpenNode) -> None:
    """The refusal names the bound; a stream that ends makes room; unary calls go on."""
    bus = await open_node(streams_max=2)
    await bus.create("t")
    open_streams = [bus.publisher.PublishStream() for _ in range(2)]
    for number, stream in enumerate(open_streams):
        request = publisher_pb2.PublishStreamRequest(correlation_id=number)
        request.publish.topic = "t"
        request.publish.batch.records.add(value=b"v")
        await stream.write(request)
        assert (await stream.read()).acks[0].HasField("result")
    refused = bus.subscriber.Subscribe()
    assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert b"google.rpc.RetryInfo" in dict(await refused.trailing_metadata())["grpc-status-details-bin"]
    await bus.topics.GetTopic(topic_pb2.GetTopicRequest(name="t"))
    await open_streams[0].done_writing()
    assert await open_streams[0].code() is grpc.StatusCode.OK
    again = bus.subscriber.Subscribe()
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")])
    await again.write(subscriber_pb2.SubscribeRequest(start=start))
    assert (await again.read()).HasField("started")
    for stream in (again, *open_streams):
        stream.cancel()


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


FLOOD = f"""
import asyncio, sys, grpc

async def call(publish, data, codes):
    try:
        await publish(data)
    except grpc.aio.AioRpcError as error:
        codes.add(error.code().name)

async def main():
    data = sys.stdin.buffer.read()
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        publish = channel.unary_unary("{PUBLISH}")
        codes = set()
        await asyncio.gather(*(call(publish, data, codes) for _ in range(int(sys.argv[2]))))
    print(*codes)

asyncio.run(main())
"""
CALLS = 60


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see how much memory is used")
async def test_a_flood_of_large_publishes_costs_bounded_memory(open_node: OpenNode) -> None:
    """60 calls of 6 MB at once from another process, four served at a time: what is held is no multiple of their sum.

    Without the bound it is more than their sum; with requests that wait for the collector three times as much.
    """
    bus = await open_node(unary_publish_calls_max=4, message_receive_bytes_max=7 * MIB)
    await bus.create("t")
    request = publisher_pb2.PublishRequest(topic="t", partition=0)
    request.batch.records.add(value=bytes(6 * MIB))  # over the batch limit: received whole, then refused
    served: list[int] = []
    publish = bus.node._publisher._publishing.parse

    def parse(data: bytes) -> Any:
        served.append(resident_bytes())
        return publish(data)

    bus.node._publisher._publishing.parse = parse  # type: ignore[method-assign]
    before = resident_bytes()
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLOOD, f"127.0.0.1:{bus.port}", str(CALLS), stdin=-1, stdout=-1
    )
    printed, _ = await client.communicate(request.SerializeToString())
    assert (printed.split(), client.returncode) == ([b"INVALID_ARGUMENT"], 0)
    assert len(served) == CALLS
    held = max(served) - before
    assert held < CALLS * 6 * MIB * 2 // 3, f"{held / MIB:.0f} MiB more"
