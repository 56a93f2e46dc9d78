"""What Subscribe and Fetch promise without a group: where they begin and end, how much comes at once, what is told."""

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from postbus.v1 import record_pb2, subscriber_pb2

Start = subscriber_pb2.StartPosition
Stop = subscriber_pb2.StopPosition
Selector = subscriber_pb2.TopicSelector
Place = record_pb2.Position


async def ten(bus: Any, partitions: int = 1) -> str:
    """A topic whose partition 0 has the records 0 to 9, in batches of one, two, three and four."""
    topic = await bus.topic(partitions)
    number = 0
    for count in (1, 2, 3, 4):
        await bus.publish(topic, *(b"%d" % (number + index) for index in range(count)), partition=0)
        number += count
    return topic


async def all_of(stream: Any) -> list[Any]:
    batches: list[Any] = []
    while (message := await stream.read()) is not None:
        batches += message.batches
    return batches


PLACES = {
    "unset": (None, 0),
    "earliest": (Start(edge=1), 0),
    "latest": (Start(edge=2), 10),
    "an offset inside a batch": (Start(offset=4), 4),
    "the end": (Start(offset=10), 10),
    "last 3": (Start(last_records=3), 7),
    "last 1000": (Start(last_records=1000), 0),
    "the beginning of time": (Start(time=Timestamp(seconds=1)), 0),
    "the end of time": (Start(time=Timestamp(seconds=253402300799)), 10),
    "an hour ago": (Start(ago=Duration(seconds=3600)), 0),
}


@pytest.mark.parametrize(("place", "first"), PLACES.values(), ids=PLACES.keys())
async def test_a_subscription_and_a_fetch_begin_where_they_are_told(
    bus: Any, tools: Any, place: Start | None, first: int
) -> None:
    """And the subscription with a stop at the end closes with OK after the last record."""
    topic = await ten(bus)
    wanted = [b"%d" % number for number in range(first, 10)]
    stream = await bus.subscribe(topic, at=place, selector={"stop_at": Stop(edge=2)})
    started = (await stream.read()).started
    assert [(where.partition, where.offset) for where in started.positions] == [(0, first)]
    assert tools.values_of(await all_of(stream)) == wanted
    fetched = await bus.call("SubscriberService/Fetch", topic=topic, start_at=place)
    assert tools.values_of(fetched.batches) == wanted
    assert [(where.partition, where.offset) for where in fetched.next] == [(0, 10)]


async def test_a_start_by_time_finds_the_first_record_appended_then_or_later(bus: Any, tools: Any) -> None:
    """To the microsecond of its append."""
    topic = await ten(bus)
    whole = await bus.call("SubscriberService/Fetch", topic=topic)
    for batch in whole.batches:
        stream = await bus.subscribe(topic, at=Start(time=batch.append_time), selector={"stop_at": Stop(edge=2)})
        first = tools.values_of(await all_of(stream))[0]
        assert int(first) <= batch.delivery.base_offset
        stop = await bus.subscribe(topic, selector={"stop_at": Stop(time=batch.append_time)})
        assert all(
            other.append_time.ToMicroseconds() < batch.append_time.ToMicroseconds() for other in await all_of(stop)
        )


async def test_exact_places_win_over_starts_and_stops_hold_for_each_partition(bus: Any, tools: Any) -> None:
    """Selector before subscriber, exact before both."""
    topic = await ten(bus, 2)
    await bus.publish(topic, b"x", b"y", b"z", partition=1)
    stream = bus.open("SubscriberService/Subscribe")
    selector = Selector(
        topic=topic,
        positions=[Place(topic=topic, partition=0, offset=8)],
        start_at=Start(last_records=1),
        stop_at=Stop(edge=2),
    )
    await stream.send(start={"topics": [selector], "start_at": Start(edge=1)})
    assert sorted(tools.values_of(await all_of(stream))) == [b"8", b"9", b"z"]
    stream = await bus.subscribe(topic, selector={"stop_at": Stop(offset=2)})
    assert sorted(tools.values_of(await all_of(stream))) == [b"0", b"1", b"x", b"y"]
    stream = await bus.subscribe(topic, at=Start(edge=2), selector={"stop_at": Stop(offset=1)})
    assert await all_of(stream) == []


async def test_batches_and_responses_are_as_small_as_was_asked(bus: Any, tools: Any) -> None:
    """max_batch_records, max_response_bytes, Fetch's max_records and max_bytes, whatever the batches were."""
    topic = await bus.topic()
    values = [b"%05d" % number + bytes(1000) for number in range(1000)]
    for begin in range(0, 1000, 250):
        await bus.publish(topic, *values[begin : begin + 250])
    stream = await bus.subscribe(
        topic, selector={"stop_at": Stop(edge=2)}, max_response_bytes=65536, max_batch_records=7
    )
    got: list[bytes] = []
    while (message := await stream.read()) is not None:
        assert message.ByteSize() <= 65536
        assert all(len(batch.batch.records) <= 7 for batch in message.batches)
        got += tools.values_of(message.batches)
    assert got == values
    got, places = [], []
    while len(got) < 1000:
        answer = await bus.call(
            "SubscriberService/Fetch", topic=topic, positions=places, max_bytes=70_000, max_records=90
        )
        assert answer.ByteSize() <= 70_000 and sum(len(batch.batch.records) for batch in answer.batches) <= 90
        got += tools.values_of(answer.batches)
        places = list(answer.next)
    assert got == values


async def test_a_record_that_fits_no_response_ends_the_stream_by_name(bus: Any) -> None:
    """With its offset and size; a fetch the same."""
    topic = await bus.topic()
    await bus.publish(topic, bytes(100_000))
    stream = await bus.subscribe(topic, max_response_bytes=65536)
    refusal = (await stream.refusal()).expect("TOO_LARGE", "max_response_bytes")
    assert "offset 0" in refusal.message and "1000" in refusal.message
    (await bus.refused("SubscriberService/Fetch", topic=topic, max_bytes=65536)).expect("TOO_LARGE")


async def test_a_fetch_answers_for_every_partition_and_finds_new_ones(bus: Any, tools: Any) -> None:
    """`next` holds those that were not asked for too: from their earliest record."""
    topic = await ten(bus, 2)
    answer = await bus.call("SubscriberService/Fetch", topic=topic, positions=[Place(partition=0, offset=10)])
    assert [(where.partition, where.offset) for where in answer.next] == [(0, 10), (1, 0)]
    await bus.call("TopicService/AddPartitions", name=topic, partition_count=3)
    await bus.publish(topic, b"new", partition=2)
    answer = await bus.call("SubscriberService/Fetch", topic=topic, positions=list(answer.next))
    assert [(where.partition, where.offset) for where in answer.next] == [(0, 10), (1, 0), (2, 0)]
    answer = await bus.call("SubscriberService/Fetch", topic=topic, positions=list(answer.next))
    assert tools.values_of(answer.batches) == [b"new"]


async def test_added_partitions_are_read_from_their_earliest_record(bus: Any, tools: Any) -> None:
    """By a subscription that began at LATEST, too."""
    topic = await bus.topic(1)
    stream = await bus.subscribe(topic, at=Start(edge=2))
    await stream.until(lambda message: message.HasField("started"))
    await bus.call("TopicService/AddPartitions", name=topic, partition_count=2)
    await bus.publish(topic, b"new", partition=1)
    assert tools.values_of((await stream.until(lambda message: message.batches)).batches) == [b"new"]


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_deleted_topic_ends_its_streams_with_not_found(bus: Any, grouped: bool) -> None:
    """And waiting fetches; a topic of the same name made at once is another one."""
    topic = await bus.topic(1)
    stream = await bus.subscribe(topic, group=bus.name("group") if grouped else "")
    await stream.until(lambda message: message.HasField("started"))
    fetching = asyncio.create_task(bus.refused("SubscriberService/Fetch", topic=topic, max_wait=Duration(seconds=8)))
    await asyncio.sleep(0.05)
    await bus.call("TopicService/DeleteTopic", name=topic)
    await bus.call("TopicService/CreateTopic", name=topic, partition_count=1)
    (await stream.refusal()).expect("TOPIC_NOT_FOUND")
    (await fetching).expect("TOPIC_NOT_FOUND")


async def test_other_topics_that_come_while_a_stream_begins_do_not_end_it(bus: Any) -> None:
    """A start by time reads from disk; meanwhile the cluster may change."""
    topic = await ten(bus, 3)
    for _ in range(10):
        streams = [await bus.subscribe(topic, at=Start(ago=Duration(seconds=60))) for _ in range(5)]
        await asyncio.gather(*(bus.topic() for _ in range(5)))
        for stream in streams:
            assert len((await stream.read()).started.positions) >= 3
        bus.end_streams()


async def test_records_that_were_deleted_are_passed_over_and_told(bus: Any, tools: Any) -> None:
    """`skipped`, unless the subscriber would rather fail or go on from the end."""
    topic = await ten(bus)
    await bus.call("TopicService/DeleteRecords", topic=topic, before=Start(offset=6))
    stream = await bus.subscribe(topic, at=Start(offset=2), selector={"stop_at": Stop(edge=2)})
    started = await stream.until(lambda message: message.skipped or message.batches)
    (gap,) = started.skipped
    assert (gap.range.base_offset, gap.range.end_offset) == (2, 6)
    assert tools.values_of(await all_of(stream)) == [b"6", b"7", b"8", b"9"]
    failing = await bus.subscribe(topic, at=Start(offset=2), out_of_range=subscriber_pb2.OUT_OF_RANGE_POLICY_FAIL)
    refusal = (await failing.refusal()).expect("OFFSET_OUT_OF_RANGE")
    assert (refusal.metadata["earliest"], refusal.metadata["latest"]) == ("6", "10")
    at_end = await bus.subscribe(topic, at=Start(offset=2), out_of_range=subscriber_pb2.OUT_OF_RANGE_POLICY_LATEST)
    assert (await at_end.read()).started.positions[0].offset == 10
    (await bus.refused("SubscriberService/Fetch", topic=topic, start_at=Start(offset=2))).expect("OFFSET_OUT_OF_RANGE")


async def test_credit_is_spent_batch_by_batch_and_added_up(bus: Any, tools: Any) -> None:
    """Nothing comes without; a batch may overdraw it."""
    topic = await ten(bus)
    stream = await bus.subscribe(topic, explicit_credit=True)
    await stream.until(lambda message: message.HasField("started"))

    async def spend(count: int, **credit: int) -> list[bytes]:
        """What comes for it: at least so many records, which may be read elsewhere first."""
        await stream.send(credit=subscriber_pb2.Credit(**credit), command_id=9)
        await stream.until(lambda message: message.command_id == 9)
        got: list[bytes] = []
        while len(got) < count:
            got += tools.values_of((await stream.read()).batches)
        await stream.send(command_id=10)
        while (message := await stream.read()).command_id != 10:
            got += tools.values_of(message.batches)
        return got

    # Records without bytes are no credit.
    assert await spend(0, records=2) == []
    assert await spend(3, bytes=1_000_000) == [b"0", b"1", b"2"]
    assert await spend(0, records=1) == []
    assert await spend(3, records=1) == [b"3", b"4", b"5"]


async def test_pause_resume_and_seek_take_effect_before_their_echo(bus: Any, tools: Any) -> None:
    """All batches after the echo know of the command."""
    topic = await ten(bus)
    where = record_pb2.TopicPartition(topic=topic, partition=0)
    stream = await bus.subscribe(topic)
    seen: list[bytes] = []
    while len(seen) < 10:
        seen += tools.values_of((await stream.read()).batches)
    await stream.send(pause=[where], command_id=1)
    await stream.until(lambda message: message.command_id == 1)
    await stream.send(seeks=[subscriber_pb2.Seek(partition=where, to=Start(offset=8))], command_id=2)
    echo = await stream.until(lambda message: message.command_id == 2)
    assert not echo.batches
    await bus.publish(topic, b"10", partition=0)
    await stream.send(command_id=3)
    quiet = await stream.until(lambda message: message.batches or message.command_id == 3)
    assert quiet.command_id == 3 and not quiet.batches
    await stream.send(resume=[where], command_id=4)
    await stream.until(lambda message: message.command_id == 4)
    got: list[bytes] = []
    while len(got) < 3:
        got += tools.values_of((await stream.read()).batches)
    assert got == [b"8", b"9", b"10"]
    await stream.send(leave=True)
    assert await all_of(stream) == []


async def test_idle_streams_beat_and_tell_when_they_have_caught_up(bus: Any) -> None:
    """`caught_up` once, at the high watermark; heartbeats with figures that changed since the last."""
    topic = await ten(bus)
    stream = await bus.subscribe(topic, heartbeat_interval=Duration(nanos=500_000_000))
    assert (await stream.read()).started.heartbeat_interval.ToMilliseconds() == 500
    caught = await stream.until(lambda message: message.caught_up)
    assert [(where.partition, where.offset) for where in caught.caught_up] == [(0, 10)]
    beat = (await stream.until(lambda message: message.HasField("heartbeat"))).heartbeat
    (progress,) = beat.progress
    assert (progress.next_offset, progress.high_watermark) == (10, 10)
    assert not (await stream.until(lambda message: message.HasField("heartbeat"))).heartbeat.progress


async def test_caught_up_is_told_at_once_where_there_is_nothing_to_read(bus: Any) -> None:
    """Not with the next heartbeat, which is minutes away."""
    topic = await bus.topic()
    stream = await bus.subscribe(topic, heartbeat_interval=Duration(seconds=300))
    await stream.until(lambda message: message.caught_up)


async def test_draining_is_told_on_both_kinds_of_stream_before_they_end(start_bus: Any, tools: Any) -> None:
    """What is published meanwhile is still answered; streams that stay end with UNAVAILABLE; the rest is refused."""
    bus = await start_bus(drain_grace_seconds="1.5")
    topic = await bus.topic()
    publisher = bus.open("PublisherService/PublishStream")
    await publisher.send(correlation_id=1, publish={"topic": topic, "batch": tools.batch_of(b"a")})
    await publisher.read()
    subscriber = await bus.subscribe(topic)
    member = await bus.subscribe(topic, group="g")
    for stream in (subscriber, member):
        await stream.until(lambda message: message.batches)
    stopping = asyncio.create_task(bus.node.stop())
    for stream in (publisher, subscriber, member):
        told = await stream.until(lambda message: message.HasField("draining"))
        assert told.draining.grace.ToMilliseconds() == 1500
    await publisher.send(correlation_id=2, publish={"topic": topic, "batch": tools.batch_of(b"b")})
    assert (await publisher.read()).acks[0].HasField("result")
    await publisher.end()
    await member.end()
    late = await bus.subscribe(topic)
    (await late.refusal()).expect("DRAINING")
    (await bus.refused("PublisherService/Publish", topic=topic, batch=tools.batch_of(b"c"))).expect("DRAINING")
    (await subscriber.refusal()).expect("DRAINING")
    await stopping
