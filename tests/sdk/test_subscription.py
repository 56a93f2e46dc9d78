"""What a subscription promises: every record once while streams break, acknowledgement of exactly what was done."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from fake_broker import FakeBroker, PostbusError, Reason
from postbus import Client, Event, Last, errors, subscribe_stream


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % index for index in range(start, start + count)]


async def take(subscription, count: int) -> list:
    records = []
    async for record in subscription:
        records.append(record)
        if len(records) == count:
            return records
    return records


async def test_records_come_whole(broker: FakeBroker, client: Client) -> None:
    """Topic, partition, offset, key, value, headers and both times."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    await (await client.publish("single", b"v", key=b"k", headers={"h": b"1"}, event_time=moment))
    await (await client.publish("single", None))
    async with client.subscribe("single", until_end=True) as subscription:
        first, second = [record async for record in subscription]
    assert (first.topic, first.partition, first.offset) == ("single", 0, 0)
    assert (first.key, first.value, first.headers) == (b"k", b"v", (("h", b"1"),))
    assert first.header("h") == b"1"
    assert first.header("x") is None
    assert first.event_time == moment
    assert first.append_time.year == 2025
    assert (second.key, second.value, second.is_tombstone, second.event_time) == (None, b"", True, None)
    assert "tombstone" in repr(second)


async def test_it_follows_live(broker: FakeBroker, client: Client) -> None:
    """What is published after the end was reached comes too."""
    broker.fill("single", 0, numbered(3))
    async with client.subscribe("single") as subscription:
        assert len(await take(subscription, 3)) == 3
        await client.publish("single", b"3")
        assert [record.value for record in await take(subscription, 1)] == [b"3"]


@pytest.mark.parametrize("by_batch", [False, True])
async def test_broken_streams_are_invisible_without_a_group(broker: FakeBroker, client: Client, by_batch: bool) -> None:
    """Every record once and in order over five breaks; each new stream starts where the last one was."""
    for partition in range(6):
        broker.fill("orders", partition, numbered(100, partition * 1000))
    broker.break_subscribe_after.extend([1, 7, 20, 3, 5])
    async with client.subscribe("orders", until_end=True) as subscription:
        if by_batch:
            values = [value async for batch in subscription.batches() for value in batch.values()]
        else:
            values = [record.value async for record in subscription]
    assert not broker.break_subscribe_after
    assert len(values) == 600
    for partition in range(6):
        expected = numbered(100, partition * 1000)
        assert [value for value in values if value in set(expected)] == expected


async def test_latest_stays_where_it_was_found(broker: FakeBroker, client: Client) -> None:
    """A break before the first record: what was published meanwhile is not skipped."""
    broker.fill("single", 0, numbered(5))
    broker.silent_subscribes = 1
    broker.heartbeat_interval = 0.05
    events: list[Event] = []
    connected = asyncio.Event()

    def note(event: Event) -> None:
        events.append(event)
        connected.set()

    async with client.subscribe("single", start="latest", on_event=note) as subscription:
        await connected.wait()
        broker.fill("single", 0, [b"new"])
        (record,) = await take(subscription, 1)
    assert record.value == b"new"
    assert broker.subscribe_starts[1].topics[0].positions[0].offset == 5
    assert [event.kind for event in events[:3]] == ["connected", "disconnected", "connected"]


async def test_until_end_does_not_move_with_a_new_stream(broker: FakeBroker, client: Client) -> None:
    """The end is the one at the beginning, even if the stream breaks and more was published."""
    broker.fill("single", 0, numbered(25))
    broker.break_subscribe_after.append(1)
    values = []
    async with client.subscribe("single", until_end=True) as subscription:
        async for record in subscription:
            values.append(record.value)
            if len(values) == 1:
                broker.fill("single", 0, numbered(25, 25))
    assert values == numbered(25)


async def test_the_end_of_a_partition_whose_leader_does_not_answer_is_asked_for_again(
    broker: FakeBroker, client: Client
) -> None:
    """Taken for empty, its records would be passed over without a word."""
    broker.fill("orders", 0, numbered(5))
    broker.fill("orders", 1, numbered(5, 5))
    broker.offsets_failing = 2
    async with client.subscribe("orders", until_end=True) as subscription:
        assert sorted([record.value async for record in subscription]) == sorted(numbered(10))


async def test_until_end_gives_up_with_the_reason_where_an_end_is_not_to_be_had(
    broker: FakeBroker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe_stream, "FIND_ENDS_TIMEOUT", 0.2)
    broker.offsets_failing = 1_000_000
    with pytest.raises(errors.Unavailable, match="nobody leads it"):
        async with client.subscribe("orders", until_end=True) as subscription:
            await subscription.get()


async def test_an_empty_topic_ends_at_once(broker: FakeBroker, client: Client) -> None:
    """until_end over nothing is nothing."""
    async with client.subscribe("orders", until_end=True) as subscription:
        assert [record async for record in subscription] == []


async def test_places_to_start_and_stop(broker: FakeBroker, client: Client) -> None:
    """Each form of start arrives as the API has it."""
    broker.fill("single", 0, numbered(20))
    async with client.subscribe("single", start=5, stop=8) as subscription:
        assert [record.offset async for record in subscription] == [5, 6, 7]
    async with client.subscribe("single", positions={("single", 0): 18}, until_end=True) as subscription:
        assert [record.offset async for record in subscription] == [18, 19]
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for start, which in ((moment, "time"), (timedelta(hours=1), "ago"), (Last(3), "last_records")):
        async with client.subscribe("single", start=start, until_end=True) as subscription:
            await take(subscription, 1)
        assert broker.subscribe_starts[-1].start_at.WhichOneof("at") == which
    for wrong in ("yesterday", True, 1.5, datetime(2026, 1, 1)):
        with pytest.raises(errors.InvalidArgument):
            client.subscribe("single", start=wrong)
    with pytest.raises(errors.InvalidArgument):
        client.subscribe("single", group="g", stop=5)


async def test_a_record_is_acknowledged_when_the_next_is_asked_for(broker: FakeBroker, client: Client) -> None:
    """At most what was handed out and left behind is committed; the one in hand when an error came is not."""
    broker.fill("single", 0, numbered(30))
    with pytest.raises(RuntimeError):
        async with client.subscribe("single", group="g") as subscription:
            async for record in subscription:
                if record.offset == 13:
                    raise RuntimeError("the handler failed")
    assert broker.committed["g", "single", 0] == 13
    async with client.subscribe("single", group="g", until_end=True) as subscription:
        assert [record.offset async for record in subscription] == list(range(13, 30))
    assert broker.committed["g", "single", 0] == 30


async def test_leaving_in_peace_acknowledges_the_record_in_hand(broker: FakeBroker, client: Client) -> None:
    """`break` after the work is done: that record does not come again."""
    broker.fill("single", 0, numbered(30))
    async with client.subscribe("single", group="g") as subscription:
        assert (await take(subscription, 15))[-1].offset == 14
    assert broker.committed["g", "single", 0] == 15
    assert broker.half_closed == 1


async def test_iteration_goes_on_where_it_was_left(broker: FakeBroker, client: Client) -> None:
    """`break` and a new loop, single records and batches mixed: nothing twice, nothing left out."""
    broker.fill("single", 0, numbered(30))
    async with client.subscribe("single", group="g", until_end=True) as subscription:
        offsets = [record.offset for record in await take(subscription, 3)]
        record = await subscription.get()
        assert record is not None
        offsets.append(record.offset)
        batch = await subscription.get_batch()
        assert batch is not None
        offsets += [record.offset for record in batch]
        offsets += [record.offset async for record in subscription]
    assert offsets == list(range(30))
    assert broker.committed["g", "single", 0] == 30


async def test_manual_acknowledgement(broker: FakeBroker, client: Client) -> None:
    """Only what was acknowledged is committed: the contiguous beginning of it."""
    broker.fill("single", 0, numbered(20))
    async with client.subscribe("single", group="g", ack="manual") as subscription:
        records = await take(subscription, 20)
        for record in records[:5] + records[6:8]:
            await record.ack()
    assert broker.committed["g", "single", 0] == 5
    assert [(ack.base_offset, ack.end_offset) for ack in broker.acknowledged] == [(0, 5), (6, 8)]


async def test_a_record_that_was_not_done_comes_again(broker: FakeBroker, client: Client) -> None:
    """nack: delivered again under a new fence, from there on."""
    broker.fill("single", 0, numbered(5), batch_records=1)
    async with client.subscribe("single", group="g", ack="manual") as subscription:
        seen = []
        async for record in subscription:
            seen.append(record.offset)
            if record.offset == 2 and seen.count(2) == 1:
                await record.nack(delay=0.1, reason="busy")
            else:
                await record.ack()
            if record.offset == 4 and seen.count(2) == 2:
                break
    assert seen[:3] == [0, 1, 2]
    assert seen[-3:] == [2, 3, 4]
    assert broker.committed["g", "single", 0] == 5


async def test_acknowledging_by_hand_needs_saying_so(broker: FakeBroker, client: Client) -> None:
    """Without a group or with automatic acknowledgement it is a mistake, told at once."""
    broker.fill("single", 0, numbered(1))
    for options in ({}, {"group": "g"}):
        async with client.subscribe("single", **options) as subscription:
            (record,) = await take(subscription, 1)
            with pytest.raises(errors.FailedPrecondition):
                await record.ack()


@pytest.mark.parametrize("breaks", [[1], [4, 2, 9], [3, 3, 3, 3]])
async def test_broken_streams_are_invisible_in_a_group(broker: FakeBroker, client: Client, breaks: list[int]) -> None:
    """The fence stays: the same member comes back, no record is handed out twice, all is committed."""
    for partition in range(6):
        broker.fill("orders", partition, numbered(50, partition * 1000))
    broker.break_subscribe_after.extend(breaks)
    async with client.subscribe("orders", group="g") as subscription:
        records = await take(subscription, 300)
    assert not broker.break_subscribe_after
    assert len({(record.partition, record.offset) for record in records}) == 300
    assert {start.member_id for start in broker.subscribe_starts[1:]} == {"member-1"}
    assert {broker.committed["g", "orders", partition] for partition in range(6)} == {50}


async def test_a_new_fence_voids_what_was_read_ahead(broker: FakeBroker, client: Client) -> None:
    """The partition was elsewhere while the stream was broken: its records come from the committed place again."""
    broker.fill("single", 0, numbered(40))
    broker.break_subscribe_after.append(3)
    broker.new_owner_on_break = 1
    async with client.subscribe("single", group="g", ack="manual") as subscription:
        offsets = [record.offset for record in await take(subscription, 5)]
        while offsets.count(39) < 1:
            offsets += [record.offset for record in await take(subscription, 1)]
    assert offsets[-40:] == list(range(40))
    assert len(offsets) < 80, "what was read ahead was dropped"


@pytest.mark.parametrize("group", ["", "g"])
async def test_draining_moves_on(broker: FakeBroker, client: Client, group: str) -> None:
    """Told that the node goes, the subscription opens another stream and misses nothing, in a group as itself."""
    broker.fill("single", 0, numbered(20))
    broker.drain_subscribe_after.append(2)
    connected = asyncio.Semaphore(0)

    def note(event: Event) -> None:
        if event.kind == "connected":
            connected.release()

    async with client.subscribe("single", group=group, on_event=note) as subscription:
        offsets = [record.offset for record in await take(subscription, 20)]
        await connected.acquire()
        await connected.acquire()
        broker.fill("single", 0, numbered(20, 20))
        offsets += [record.offset for record in await take(subscription, 20)]
    assert offsets == list(range(40))
    assert [start.member_id for start in broker.subscribe_starts] == ["", "member-1" if group else ""]
    if group:
        assert broker.committed["g", "single", 0] == 40


async def test_the_broker_restarts_in_the_middle(broker: FakeBroker, client: Client) -> None:
    """No server for a while: reading goes on when it is back."""
    broker.fill("single", 0, numbered(5))
    async with client.subscribe("single") as subscription:
        await take(subscription, 5)
        await broker.stop()
        broker.fill("single", 0, numbered(5, 5))
        await broker.start(port=broker.port)
        assert [record.value for record in await take(subscription, 5)] == numbered(5, 5)


async def test_reading_ahead_is_bounded(broker: FakeBroker, client: Client) -> None:
    """Nobody takes records: the broker is read from until prefetch_bytes_max, then no more."""
    broker.fill("single", 0, [b"x" * 10_000] * 1_000)
    async with client.subscribe("single", prefetch_bytes_max=300_000) as subscription:
        await take(subscription, 1)
        await asyncio.sleep(0.1)
        assert subscription._runner._queue_bytes <= 300_000 + 110_000
        assert len(await take(subscription, 999)) == 999


async def test_seek(broker: FakeBroker, client: Client) -> None:
    """Back to the beginning, and to an offset; what was read ahead is dropped."""
    broker.fill("single", 0, numbered(30))
    async with client.subscribe("single") as subscription:
        await take(subscription, 12)
        await subscription.seek("earliest")
        assert [record.offset for record in await take(subscription, 3)] == [0, 1, 2]
        await subscription.seek(25, topic="single", partition=0)
        assert [record.offset for record in await take(subscription, 2)] == [25, 26]
        with pytest.raises(errors.PartitionNotFound):
            await subscription.seek(0, topic="single", partition=7)


async def test_seek_in_a_group(broker: FakeBroker, client: Client) -> None:
    """Acknowledgements of before the seek are void."""
    broker.fill("single", 0, numbered(30))
    async with client.subscribe("single", group="g") as subscription:
        await take(subscription, 20)
        await subscription.seek(5)
        assert [record.offset for record in await take(subscription, 2)] == [5, 6]


async def test_pause_and_resume(broker: FakeBroker, client: Client) -> None:
    """A paused partition is silent, also for what was read ahead; the others go on."""
    for partition in range(2):
        broker.fill("orders", partition, numbered(20, partition * 100))
    async with client.subscribe("orders", partitions=[0, 1]) as subscription:
        await take(subscription, 1)
        await subscription.pause(partition=0)
        subscription._rest.clear()
        assert {record.partition for record in await take(subscription, 20)} == {1}
        await subscription.resume(partition=0)
        assert {record.partition for record in await take(subscription, 10)} == {0}


async def test_progress_and_lag(broker: FakeBroker, client: Client) -> None:
    """How far one is, counted by what was handed out, not by what was read ahead."""
    broker.fill("single", 0, numbered(30), batch_records=30)
    async with client.subscribe("single") as subscription:
        await take(subscription, 10)
        assert subscription.progress["single", 0].next_offset == 10
        assert subscription.lag == 20
        assert subscription.assignment == [("single", 0)]


async def test_a_final_error_ends_the_iteration(broker: FakeBroker, client: Client) -> None:
    """What trying again can't mend is raised as its typed error."""
    with pytest.raises(errors.TopicNotFound):
        await client.topics.get("nowhere")
    broker.fill("single", 0, numbered(3))
    async with client.subscribe("single", group="g", ack="manual") as subscription:
        records = await take(subscription, 3)
        delivery = records[0].delivery()
        delivery.end_offset = 9
        subscription._runner.acknowledge("single", 0, 0, 3, delivery.fence)
        subscription._runner.command.acks.append(delivery)
        subscription._runner.send()
        with pytest.raises(errors.InvalidArgument):
            await subscription.get(timeout=5)


async def test_a_processing_timeout_takes_what_is_in_hand(broker: FakeBroker, client: Client) -> None:
    """The partitions went to others: the rest of the batch is not handed out any more; it comes from the committed
    place again when this member gets it back."""
    broker.fill("single", 0, numbered(10))
    lost = asyncio.Event()

    def note(event: Event) -> None:
        if event.kind == "lost":
            lost.set()

    async with client.subscribe("single", group="g", ack="manual", on_event=note) as subscription:
        await take(subscription, 3)
        broker.fence += 1
        broker.end_subscribes = PostbusError(Reason.ERROR_REASON_PROCESSING_TIMEOUT, "too slow")
        await asyncio.wait_for(lost.wait(), 10)
        assert [record.offset for record in await take(subscription, 10)] == list(range(10))


async def test_nothing_comes_in_time(broker: FakeBroker, client: Client) -> None:
    """get with a timeout gives up, and loses nothing by it."""
    async with client.subscribe("single") as subscription:
        with pytest.raises(asyncio.TimeoutError):
            await subscription.get(timeout=0.02)
        broker.fill("single", 0, numbered(1))
        record = await subscription.get(timeout=5)
        assert record is not None
        assert record.value == b"0"


async def test_cancelling_a_reader_loses_nothing(broker: FakeBroker, client: Client) -> None:
    """A task that waits for a record is cancelled; the next one gets it."""
    async with client.subscribe("single", group="g") as subscription:
        waiting = asyncio.create_task(subscription.get())
        await asyncio.sleep(0.05)
        waiting.cancel()
        broker.fill("single", 0, numbered(2))
        assert [record.offset for record in await take(subscription, 2)] == [0, 1]


async def test_fetch_and_acknowledge(broker: FakeBroker, client: Client) -> None:
    """One answer, and where to go on; acknowledging without a stream."""
    broker.fill("single", 0, numbered(10))
    batches, places = await client.fetch("single")
    assert [value for batch in batches for value in batch.values()] == numbered(10)
    assert places == {0: 10}
    broker.fill("single", 0, [b"more"])
    (batch,), places = await client.fetch("single", positions=places)
    assert batch.values() == [b"more"]
    await client.acknowledge("g", [batch])
    assert broker.committed["g", "single", 0] == 11
    with pytest.raises(errors.Closed):
        await batch.ack()
