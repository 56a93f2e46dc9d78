"""A full disk and a failing one, as clients see them: refused or gone, and nothing acknowledged is lost either way."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from broker_process import WAIT_S, BrokerProcess
from bus import Bus, Recorder
from postbus.v1 import error_pb2, group_pb2, publisher_pb2, record_pb2, subscriber_pb2, topic_pb2
from subscribers import Member, Reader

ROOM = "16MiB"
# More than any disk has free.
NO_ROOM = {"POSTBUS_DISK_FREE_MIN_BYTES": "8388607TiB"}
FATAL_EXIT_CODE = 70


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[BrokerProcess]:
    process = BrokerProcess(tmp_path / "data", environment={"POSTBUS_DISK_FREE_MIN_BYTES": ROOM})
    yield process
    await process.close()


def request(number: int) -> publisher_pb2.PublishRequest:
    """One record, its number as value and request id."""
    published = publisher_pb2.PublishRequest(topic="events", partition=0, request_id=f"{number}")
    published.batch.records.add(value=b"%d" % number)
    return published


async def with_topic(broker: BrokerProcess) -> Bus:
    """Started, and with the topic "events" of one partition."""
    await broker.start()
    bus = Bus(broker)
    await bus.until_done(bus.topics.CreateTopic, topic_pb2.CreateTopicRequest(name="events", partition_count=1))
    return bus


async def values_of(bus: Bus) -> list[int]:
    """All that is in the topic."""
    recorder = Recorder()
    await Reader(bus, recorder, "all", "events", 1).run(until_end=True)
    return [int(event.content[1]) for event in recorder.history.events if hasattr(event, "content")]


async def test_a_full_disk_refuses_publishes_and_serves_readers(broker: BrokerProcess) -> None:
    """RESOURCE_EXHAUSTED, DISK_FULL, RetryInfo on both paths; reading goes on; with room again, so does publishing."""
    bus = await with_topic(broker)
    await bus.until_done(bus.publisher.Publish, request(0))
    assert await broker.stop() == 0
    await broker.start(**NO_ROOM)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await bus.publisher.Publish(request(1), timeout=WAIT_S, wait_for_ready=True)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(refused.value.trailing_metadata() or ())
    assert (trailers["postbus-reason"], trailers["postbus-retriable"]) == ("DISK_FULL", "true")
    assert b"google.rpc.RetryInfo" in trailers["grpc-status-details-bin"]

    stream = bus.publisher.PublishStream()
    await stream.write(publisher_pb2.PublishStreamRequest(correlation_id=7, publish=request(1)))
    (ack,) = (await stream.read()).acks
    assert (ack.correlation_id, ack.failure.reason) == (7, error_pb2.ERROR_REASON_DISK_FULL)
    assert ack.failure.HasField("retry_after") and not ack.failure.outcome_unknown
    await stream.done_writing()
    assert await stream.code() is grpc.StatusCode.OK

    assert await values_of(bus) == [0]
    assert (await bus.subscriber.Fetch(subscriber_pb2.FetchRequest(topic="events"))).batches

    assert await broker.stop() == 0
    await broker.start()
    await bus.until_done(bus.publisher.Publish, request(1))
    assert await values_of(bus) == [0, 1]
    await bus.channel.close()


async def test_a_group_goes_on_below_the_mark_within_the_reserve(broker: BrokerProcess) -> None:
    """Committing offsets is what lets retention make room: it may use a quarter of what publishing may not."""
    bus = await with_topic(broker)
    for number in range(3):
        await bus.until_done(bus.publisher.Publish, request(number))
    assert await broker.stop() == 0
    # Twice what is free: a quarter of that is half of what is free.
    free_bytes = shutil.disk_usage(broker.folder).free
    await broker.start(POSTBUS_DISK_FREE_MIN_BYTES=str(2 * free_bytes))
    with pytest.raises(grpc.aio.AioRpcError, match="too little free disk space"):
        await bus.publisher.Publish(request(3), timeout=WAIT_S, wait_for_ready=True)
    recorder = Recorder()
    member = Member(bus, recorder, "member", "group", ["events"], seed=1, resumes=True)
    running = asyncio.create_task(member.run())
    try:
        async with asyncio.timeout(WAIT_S):
            await recorder.until(lambda: len(recorder.seen_by_groups) == 3)
            await member.leave()
            await running
    finally:
        running.cancel()
    answer = await bus.groups.GetCommittedOffsets(group_pb2.GetCommittedOffsetsRequest(group="group"))
    assert [(committed.offset, committed.lag) for committed in answer.offsets] == [(3, 0)]
    await bus.channel.close()


async def test_a_new_node_on_a_full_disk_starts(tmp_path: Path) -> None:
    """It can be asked what is wrong, and can be stopped; it neither hangs nor crashes."""
    broker = BrokerProcess(tmp_path / "data", environment=NO_ROOM)
    try:
        await broker.start()
        bus = Bus(broker)
        answer = await bus.topics.ListTopics(topic_pb2.ListTopicsRequest(), timeout=WAIT_S, wait_for_ready=True)
        assert list(answer.topics) == []
        await bus.channel.close()
        assert await broker.stop() == 0
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def fsync_fails(pid: int) -> AsyncIterator[None]:
    """From now on each fdatasync of the process answers EIO; skips the test where that can't be arranged."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed: the test of a failing fsync needs it")
    tracer = await asyncio.create_subprocess_exec(
        strace, "-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "-p", str(pid), stderr=-1
    )
    assert tracer.stderr is not None
    try:
        async with asyncio.timeout(WAIT_S):
            first = (await tracer.stderr.readline()).decode()
        if "attached" not in first:
            pytest.skip(f"strace can't attach to a process here: {first.strip()}")
        # What it says must not fill the pipe: it would stop, and the broker with it.
        drain = asyncio.create_task(tracer.stderr.read())
        yield
        drain.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            tracer.kill()
        await tracer.wait()


async def test_a_failed_fsync_ends_the_process_and_loses_nothing(broker: BrokerProcess) -> None:
    """Exit code 70, at once; the publish under way is not acknowledged; what was before is there after the restart."""
    bus = await with_topic(broker)
    for number in range(20):
        await bus.until_done(bus.publisher.Publish, request(number))
    async with fsync_fails(broker.pid):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await bus.publisher.Publish(request(20), timeout=WAIT_S)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE, failed.value
        assert await broker.wait() == FATAL_EXIT_CODE
    assert '"disk_failure"' in broker.log()
    await broker.start()
    # Its outcome was unknown: it may be there, once. Asking again settles it.
    assert await values_of(bus) in (list(range(20)), list(range(21)))
    await bus.until_done(bus.publisher.Publish, request(20))
    assert await values_of(bus) == list(range(21))
    await bus.channel.close()


async def test_values_are_compared(broker: BrokerProcess) -> None:
    """The helper itself sees what is there."""
    bus = await with_topic(broker)
    assert await values_of(bus) == []
    published = request(5)
    published.batch.records.extend([record_pb2.Record(value=b"6")])
    await bus.until_done(bus.publisher.Publish, published)
    assert await values_of(bus) == [5, 6]
    await bus.channel.close()
