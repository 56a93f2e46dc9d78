"""What a publisher promises: nothing lost, nothing twice, order kept, bounded memory, errors for the right records."""

import asyncio
from collections import defaultdict
from zlib import crc32

import pytest
from fake_broker import FakeBroker, PostbusError, Reason
from postbus import Client, NewRecord, PartitionNotFound, Timeout, TooLarge, TopicNotFound, errors
from postbus.records import Published


async def test_a_delivery_tells_where_the_record_is(broker: FakeBroker, client: Client) -> None:
    """`await delivery` gives topic, partition and offset, and the record is there."""
    delivery = await client.publish("single", b"one")
    assert await delivery == Published("single", 0, 0)
    assert await (await client.publish("single", "zwei")) == Published("single", 0, 1)
    assert broker.topics["single"][0].values() == [b"one", b"zwei"]


async def test_every_field_of_a_record_arrives(broker: FakeBroker, client: Client) -> None:
    """Key, headers in order, event time, and a tombstone that is no empty value."""
    await (await client.publish("single", None, key="k", headers=[("b", b"1"), ("a", "2")], event_time=1234))
    (record,) = broker.topics["single"][0].records()
    assert not record.HasField("value")
    assert (record.key, record.event_time_us) == (b"k", 1234)
    assert [(header.name, header.value) for header in record.headers] == [("b", b"1"), ("a", b"2")]


async def test_a_key_chooses_the_partition_by_crc32(broker: FakeBroker, client: Client) -> None:
    """crc32(key) modulo the partition count, one by one and in bulk."""
    for index in range(20):
        where = await (await client.publish("orders", b"v", key=b"key-%d" % index))
        assert where.partition == crc32(b"key-%d" % index) % 6
    for where in await (await client.publish_many("orders", [(b"key-%d" % index, b"v") for index in range(20)])):
        assert where.partition in range(6)
    for number, partition in enumerate(broker.topics["orders"]):
        assert all(crc32(record.key) % 6 == number for record in partition.records())


async def test_records_put_in_together_travel_together(broker: FakeBroker, client: Client) -> None:
    """A hundred records of one partition need far fewer requests."""
    deliveries = [await client.publish("single", b"%d" % index) for index in range(100)]
    offsets = [(await delivery).offset for delivery in deliveries]
    assert offsets == list(range(100))
    assert broker.publish_requests <= 3


async def test_a_lone_record_does_not_wait_for_the_linger(broker: FakeBroker, client: Client) -> None:
    """With nothing in flight a record goes at once, however long the linger is."""
    async with client.publisher(linger=3600.0) as publisher:
        await asyncio.wait_for(await _taken(publisher.publish("single", b"now")), 5)


async def _taken(publish):
    delivery = await publish

    async def wait():
        return await delivery

    return wait()


@pytest.mark.parametrize("breaks", [[1], [2, 1, 3], [5, 1, 1, 1, 2]])
async def test_broken_streams_lose_and_repeat_nothing(broker: FakeBroker, client: Client, breaks: list[int]) -> None:
    """Acks lost with the stream: everything is sent again, nothing is appended twice, order stays."""
    broker.break_publish_at.extend(breaks)
    async with client.publisher(batch_bytes_max=200, linger=0.0) as publisher:
        deliveries = [
            await publisher.publish("orders", b"%d" % index, key=b"k%d" % (index % 10)) for index in range(600)
        ]
        for delivery in deliveries:
            await delivery
    assert not broker.break_publish_at, "every fault took effect"
    assert sorted(map(int, broker.all_values("orders"))) == list(range(600))
    by_key = defaultdict(list)
    for partition in broker.topics["orders"]:
        for record in partition.records():
            by_key[record.key].append(int(record.value))
    assert all(values == sorted(values) for values in by_key.values())


async def test_offsets_are_right_after_a_retry(broker: FakeBroker, client: Client) -> None:
    """A delivery whose first ack was lost tells the offset of the first try."""
    broker.break_publish_at.append(1)
    delivery = await client.publish("single", b"x")
    assert await delivery == Published("single", 0, 0)
    assert broker.publish_streams == 2


async def test_a_partition_without_leader_waits_and_keeps_its_order(broker: FakeBroker, client: Client) -> None:
    """A retriable failure: later batches of that partition are refused behind it; all arrive in order."""
    failures = 3

    def refuse(request):
        nonlocal failures
        if request.partition == 2 and failures:
            failures -= 1
            return PostbusError(Reason.ERROR_REASON_NO_LEADER, "election", retry_after_ms=1)
        return None

    broker.refuse = refuse
    async with client.publisher(batch_bytes_max=100, linger=0.0) as publisher:
        for index in range(300):
            await publisher.publish("orders", b"%d" % index, partition=index % 6)
    assert failures == 0
    for number, partition in enumerate(broker.topics["orders"]):
        assert [int(value) for value in partition.values()] == list(range(number, 300, 6))


async def test_a_refused_batch_fails_alone(broker: FakeBroker, client: Client) -> None:
    """A final refusal fails its own records; those behind it, refused for the gap, get new numbers and arrive."""

    def refuse(request):
        if any(record.value == b"bad" for record in request.batch.records):
            return PostbusError(Reason.ERROR_REASON_INVALID_FIELD, "no", field="publish.batch")
        return None

    broker.refuse = refuse
    async with client.publisher(batch_bytes_max=10, linger=0.0) as publisher:
        values = [b"a", b"b", b"bad", b"c", b"bad", b"d", b"e", b"f"]
        deliveries = [await publisher.publish("single", value) for value in values]
        outcomes = [await _outcome(delivery) for delivery in deliveries]
    assert [isinstance(outcome, errors.InvalidArgument) for outcome in outcomes] == [v == b"bad" for v in values]
    assert broker.topics["single"][0].values() == [v for v in values if v != b"bad"]
    assert broker.producer_ids == 1, "the refusals were certain: no new identity was needed"


async def _outcome(delivery):
    try:
        return await delivery
    except errors.PostbusError as error:
        return error


async def test_a_broker_that_forgot_the_producer_is_no_reason_to_fail(broker: FakeBroker, client: Client) -> None:
    """PRODUCER_UNKNOWN on a first try: nothing was appended, a new identity goes on."""
    await (await client.publish("single", b"1"))
    broker.topics["single"][0].producers.clear()
    assert await (await client.publish("single", b"2")) == Published("single", 0, 1)
    assert await (await client.publish("single", b"3")) == Published("single", 0, 2)
    assert broker.topics["single"][0].values() == [b"1", b"2", b"3"]
    assert broker.producer_ids == 2


async def test_an_unknown_outcome_is_never_repeated_under_a_new_identity(broker: FakeBroker, client: Client) -> None:
    """The ack was lost and the broker forgot the producer: the delivery says that it may have happened."""
    await (await client.publish("single", b"1"))
    broker.break_publish_at.append(1)
    original = broker.refuse

    def forget(request):
        if broker.publish_streams == 2:
            broker.topics["single"][0].producers.clear()
            broker.refuse = original

    broker.refuse = forget
    with pytest.raises(errors.SequenceBroken) as caught:
        await (await client.publish("single", b"2"))
    assert caught.value.outcome_unknown
    await (await client.publish("single", b"3"))
    assert broker.topics["single"][0].values() == [b"1", b"2", b"3"]


async def test_what_follows_a_refused_retry_is_not_repeated(broker: FakeBroker, client: Client) -> None:
    """The first try of "a" is in the log, its retry is refused; "b" and "c" then are appended, the ack of "c" is lost.
    Under a new identity "c" would be appended twice: it fails with an unknown outcome instead."""
    broker.break_publish_at.extend([1, 3])
    refusals = [b"a"]

    def refuse(request):
        if broker.publish_streams == 2 and refusals and request.batch.records[0].value == refusals[0]:
            refusals.clear()
            return PostbusError(Reason.ERROR_REASON_INVALID_FIELD, "no more")
        return None

    broker.refuse = refuse
    publisher = client.publisher(batch_bytes_max=5, linger=0.0)
    deliveries = [await publisher.publish("single", value) for value in (b"a", b"b", b"c", b"d")]
    outcomes = [await _outcome(delivery) for delivery in deliveries]
    assert isinstance(outcomes[0], errors.InvalidArgument)
    assert outcomes[0].outcome_unknown
    assert outcomes[1] == Published("single", 0, 1)
    assert isinstance(outcomes[2], errors.SequenceBroken)
    assert outcomes[2].outcome_unknown
    assert broker.topics["single"][0].values()[:3] == [b"a", b"b", b"c"]
    assert broker.topics["single"][0].values().count(b"c") == 1
    await publisher.close()


async def test_draining_moves_on_without_loss(broker: FakeBroker, client: Client) -> None:
    """Told that the node goes, the publisher half-closes and opens another stream."""
    broker.drain_publish_at.extend([1, 12])
    async with client.publisher(batch_bytes_max=10, linger=0.0) as publisher:
        for index in range(50):
            await publisher.publish("single", b"%d" % index)
    assert broker.topics["single"][0].values() == [b"%d" % index for index in range(50)]
    assert broker.publish_streams >= 3
    assert broker.half_closed >= 2


async def test_the_buffer_is_bounded(broker: FakeBroker, client: Client) -> None:
    """A broker that does not answer stops the publisher at buffer_bytes_max; when it does, all goes on."""
    broker.answering.clear()
    async with client.publisher(buffer_bytes_max=10_000, batch_bytes_max=1_000) as publisher:
        taken = 0

        async def publish_all():
            nonlocal taken
            for _ in range(1_000):
                await publisher.publish("single", b"x" * 100)
                taken += 1

        task = asyncio.create_task(publish_all())
        done, _ = await asyncio.wait({task}, timeout=0.3)
        assert not done
        assert 90 <= taken <= 101
        broker.answering.set()
        await task
    assert len(broker.topics["single"][0].values()) == 1_000


async def test_cancelling_a_publisher_in_wait_leaves_the_others(broker: FakeBroker, client: Client) -> None:
    """Tasks that wait for room may be cancelled; the room goes to those who stay."""
    broker.answering.clear()
    async with client.publisher(buffer_bytes_max=1_000, batch_bytes_max=500) as publisher:
        tasks = [asyncio.create_task(publisher.publish("single", b"x" * 300)) for _ in range(20)]
        await asyncio.sleep(0.05)
        for task in tasks[::2]:
            task.cancel()
        broker.answering.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    stayed = [outcome for outcome in outcomes if not isinstance(outcome, asyncio.CancelledError)]
    assert len(broker.topics["single"][0].values()) == len(stayed) >= 10


async def test_cancelling_one_who_awaits_a_delivery_leaves_the_others(broker: FakeBroker, client: Client) -> None:
    """Several tasks await records of one batch; cancelling one does not cancel the batch."""
    broker.answering.clear()
    deliveries = [await client.publish("single", b"x") for _ in range(3)]

    async def wait(delivery):
        return await delivery

    tasks = [asyncio.create_task(wait(delivery)) for delivery in deliveries]
    await asyncio.sleep(0.02)
    tasks[0].cancel()
    broker.answering.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert [outcome.offset for outcome in outcomes[1:]] == [1, 2]


async def test_what_can_not_be_delivered_in_time_fails_with_timeout(broker: FakeBroker, client: Client) -> None:
    """A sent record may have been appended; one that was never sent was not, and the error says so."""
    broker.answering.clear()
    publisher = client.publisher(delivery_timeout=0.2, batch_bytes_max=5, linger=0.0)
    deliveries = [await publisher.publish("single", b"%d" % index) for index in range(10)]
    outcomes = [await _outcome(delivery) for delivery in deliveries]
    assert all(isinstance(outcome, Timeout) for outcome in outcomes)
    assert [outcome.outcome_unknown for outcome in outcomes] == [True] * 5 + [False] * 5
    broker.answering.set()
    assert (await (await publisher.publish("single", b"after"))).offset == 5
    assert broker.topics["single"][0].values() == [b"0", b"1", b"2", b"3", b"4", b"after"]
    await publisher.close()


async def test_wrong_records_are_refused_by_publish_itself(broker: FakeBroker, client: Client) -> None:
    """Too large, no such partition or topic, a reserved header: the call raises, other records are unharmed."""
    broker.record_bytes_max = 1_000
    fine = await client.publish("single", b"fine")
    with pytest.raises(TooLarge):
        await client.publish("single", b"x" * 1_000)
    await (await client.publish("single", b"x" * 997))
    with pytest.raises(PartitionNotFound):
        await client.publish("single", b"x", partition=1)
    with pytest.raises(PartitionNotFound):
        await client.publish("single", b"x", partition=-1)
    with pytest.raises(TopicNotFound, match="postbus topic create"):
        await client.publish("nowhere", b"x")
    with pytest.raises(errors.InvalidArgument, match="postbus-"):
        await client.publish("single", b"x", headers={"postbus-reason": b""})
    with pytest.raises(errors.InvalidArgument, match="int"):
        await client.publish("single", 5)  # type: ignore[arg-type]
    await fine
    assert len(broker.topics["single"][0].values()) == 2


async def test_added_partitions_are_found(broker: FakeBroker, client: Client) -> None:
    """A partition that the publisher did not know is looked up when it is named."""
    await client.publish("single", b"x")
    broker.topics["single"].append(type(broker.topics["single"][0])())
    assert (await (await client.publish("single", b"y", partition=1))).partition == 1


async def test_bulk_takes_mixed_records_in_order(broker: FakeBroker, client: Client) -> None:
    """Values, pairs and NewRecords in one call; order within a partition is the order given."""
    records = []
    for index in range(3_000):
        value = b"%d" % index
        records.append([value, (b"k", value), NewRecord(value, key=b"k", headers={"h": b"1"})][index % 3])
    ranges = await (await client.publish_many("single", records))
    assert sum(each.record_count for each in ranges) == 3_000
    assert broker.topics["single"][0].values() == [b"%d" % index for index in range(3_000)]


@pytest.mark.parametrize("keyed", [False, True])
async def test_bulk_survives_broken_streams(broker: FakeBroker, client: Client, keyed: bool) -> None:
    """20,000 records over six partitions and five breaks: all there, once, in order."""
    broker.break_publish_at.extend([3, 2, 4, 1, 2])
    async with client.publisher(batch_bytes_max=4_000, buffer_bytes_max=50_000) as publisher:
        values = [b"%d" % index for index in range(20_000)]
        bulk = await publisher.publish_many("orders", [(v[-2:], v) for v in values] if keyed else values)
        ranges = await bulk
    assert not broker.break_publish_at
    assert sum(each.record_count for each in ranges) == 20_000
    assert sorted(map(int, broker.all_values("orders"))) == list(range(20_000))
    for partition in broker.topics["orders"]:
        found = [int(value) for value in partition.values()]
        assert found == sorted(found)


async def test_bulk_splits_what_is_too_large_for_a_batch(broker: FakeBroker, client: Client) -> None:
    """Records of half a megabyte each go in batches that the broker takes."""
    await (await client.publish_many("single", [b"x" * 500_000] * 12))
    await (await client.publish_many("single", [(b"k", b"x" * 500_000)] * 12))
    sizes = [stored.batch.ByteSize() for stored in broker.topics["single"][0].batches]
    assert sum(stored.count for stored in broker.topics["single"][0].batches) == 24
    assert max(sizes) <= 3 * 1024 * 1024


async def test_flush_raises_what_nobody_has_seen(broker: FakeBroker, client: Client) -> None:
    """An error whose delivery was not awaited is not lost; one that was awaited is not raised twice."""
    broker.refuse = lambda request: PostbusError(Reason.ERROR_REASON_INVALID_FIELD, "no")
    publisher = client.publisher()
    await publisher.publish("single", b"x")
    with pytest.raises(errors.InvalidArgument):
        await publisher.flush()
    delivery = await publisher.publish("single", b"x")
    with pytest.raises(errors.InvalidArgument):
        await delivery
    await publisher.close()
    with pytest.raises(errors.Closed):
        await publisher.publish("single", b"x")


async def test_close_flushes(broker: FakeBroker) -> None:
    """Leaving `async with` sends what nobody awaited."""
    async with Client(broker.address) as client:
        for index in range(10):
            await client.publish("single", b"%d" % index)
    assert len(broker.topics["single"][0].values()) == 10


@pytest.mark.parametrize("codec", ["zstd", "lz4", "gzip", "snappy"])
async def test_compressed_batches_say_what_they_hold(broker: FakeBroker, client: Client, codec: str) -> None:
    """Count and size are stated, and the records come out again."""
    async with client.publisher(compression=codec) as publisher:
        await (await publisher.publish_many("single", [b"x" * 100] * 500))
    (stored,) = broker.topics["single"][0].batches
    assert stored.batch.compression
    assert stored.batch.record_count == 500
    async with client.subscribe("single", until_end=True) as subscription:
        assert [record.value async for record in subscription] == [b"x" * 100] * 500


async def test_the_broker_restarts_in_the_middle(broker: FakeBroker, client: Client) -> None:
    """No server for a while: publishing goes on when it is back, nothing is lost or repeated."""
    async with client.publisher(batch_bytes_max=100) as publisher:
        deliveries = [await publisher.publish("single", b"%d" % index) for index in range(50)]
        await deliveries[0]
        await broker.stop()
        deliveries += [await publisher.publish("single", b"%d" % index) for index in range(50, 100)]
        await broker.start(port=broker.port)
        for delivery in deliveries:
            await delivery
    assert broker.topics["single"][0].values() == [b"%d" % index for index in range(100)]


async def test_append_checks_its_precondition(broker: FakeBroker, client: Client) -> None:
    """Compare-and-append: the second writer with the same expectation is told where the log ends."""
    first = await client.append("single", [b"a", (b"k", b"b")], partition=0, expected_end_offset=0)
    assert (first.base_offset, first.record_count) == (0, 2)
    with pytest.raises(errors.PreconditionNotMet) as caught:
        await client.append("single", [b"c"], partition=0, expected_end_offset=0)
    assert caught.value.end_offset == 2
