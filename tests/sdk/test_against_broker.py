"""The SDK against a real broker in a process of its own, which is killed and restarted under its hands."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from postbus import Client, NewRecord, Record, SyncClient, errors

START_S = 30.0


class Broker:
    """A `postbus serve` process on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Comes back at once; clients wait for it."""
        command = [sys.executable, "-m", "broker.cli.main", "serve", "--data-dir", str(self._folder / "data")]
        command += ["--client-port", str(self.port), "--http-port", "off"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTBUS_")}
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._folder)

    def end(self, how: signal.Signals) -> None:
        """SIGKILL or SIGTERM, and waits until it is gone."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(START_S)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One for all tests that leave it alive."""
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
async def real(shared: Broker) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(shared.address, connect_timeout=START_S) as client:
        yield client


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Broker]:
    """One to be killed."""
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


async def test_there_and_back(real: Client) -> None:
    """Every field of a record; order by key; offsets as told."""
    await real.topics.create("whole", partition_count=3)
    delivery = await real.publish("whole", b"v", key=b"k", headers=[("a", b"1"), ("a", b"2")], event_time=1_000_001)
    where = await delivery
    await (await real.publish("whole", None, key=b"k"))
    async with real.subscribe("whole", until_end=True) as subscription:
        first, second = [record async for record in subscription]
    assert (first.partition, first.offset) == (where.partition, where.offset)
    assert (first.key, first.value, first.headers) == (b"k", b"v", (("a", b"1"), ("a", b"2")))
    assert first.event_time_us == 1_000_001
    assert second.is_tombstone


@pytest.mark.parametrize("codec", [None, "zstd", "lz4", "gzip", "snappy"])
async def test_many_records_in_every_codec(real: Client, codec: str | None) -> None:
    """In bulk, keyed and not, and back by batch and by record."""
    topic = f"many-{codec}"
    await real.topics.create(topic)
    async with real.publisher(compression=codec) as publisher:
        await publisher.publish_many(topic, [b"value %d" % index for index in range(10_000)])
        await publisher.publish_many(topic, [(b"k%d" % (index % 50), b"%d" % index) for index in range(10_000)])
    async with real.subscribe(topic, until_end=True) as subscription:
        records = [record async for record in subscription]
    assert len(records) == 20_000
    by_key: dict[bytes, list[int]] = defaultdict(list)
    for record in records:
        if record.key is not None:
            by_key[record.key].append(int(record.value))
    assert len(by_key) == 50
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    async with real.subscribe(topic, until_end=True) as subscription:
        assert sum([len(batch) async for batch in subscription.batches()]) == 20_000


async def test_a_group_hands_partitions_over(real: Client) -> None:
    """A second member comes, the first leaves: every record is handled, none by two."""
    await real.topics.create("handover")
    await (await real.publish_many("handover", [(b"%d" % index, b"%d" % index) for index in range(5_000)]))
    handled: Counter[bytes] = Counter()
    first_took_some, all_done = asyncio.Event(), asyncio.Event()

    async def member(limit: int | None) -> None:
        async with real.subscribe("handover", group="g", window_records=100, batch_records_max=50) as subscription:
            count = 0
            async for record in subscription:
                handled[record.value] += 1
                count += 1
                await asyncio.sleep(0)
                if count > 500:
                    first_took_some.set()
                if len(handled) == 5_000:
                    all_done.set()
                if limit is not None and count >= limit:
                    return

    first = asyncio.create_task(member(2_000))
    await first_took_some.wait()
    second = asyncio.create_task(member(None))
    await first
    await asyncio.wait_for(all_done.wait(), 30)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert len(handled) == 5_000
    assert set(handled.values()) == {1}


async def test_admin_calls(real: Client) -> None:
    """Topics, groups and the cluster, as one manages them."""
    topic = await real.topics.create("managed", partition_count=2, config={"retention_time": 3600})
    assert topic.effective_config.retention_time.seconds == 3600
    updated = await real.topics.update("managed", config={"retention_time": 7200}, labels={"team": "a"})
    assert (updated.config.retention_time.seconds, dict(updated.labels)) == (7200, {"team": "a"})
    assert (await real.topics.add_partitions("managed", 4)).partition_count == 4
    await (await real.publish_many("managed", [NewRecord(b"%d" % index, partition=1) for index in range(100)]))
    assert [each.high_watermark for each in await real.topics.partitions("managed")] == [0, 100, 0, 0]
    assert "managed" in [each.name for each in await real.topics.list(prefix="man")]

    async with real.subscribe("managed", group="managed-group", ack="manual") as subscription:
        batch = await subscription.get_batch()
        assert batch is not None
        await batch.ack()
    (group,) = await real.groups.list(prefix="managed-")
    assert group.name == "managed-group"
    committed = {each.partition: each.offset for each in await real.groups.offsets("managed-group")}
    assert committed[1] == batch.end_offset
    moves = await real.groups.reset("managed-group", "managed", shift=-10, partitions=[1], dry_run=True)
    assert [(each.old_offset, each.new_offset) for each in moves] == [(batch.end_offset, batch.end_offset - 10)]
    await real.groups.reset("managed-group", "managed", to=5, partitions=[1])
    await real.groups.commit("managed-group", {("managed", 1): 7})
    committed = {each.partition: each.offset for each in await real.groups.offsets("managed-group")}
    assert committed[1] == 7
    await real.groups.delete("managed-group")
    with pytest.raises(errors.GroupNotFound):
        await real.groups.get("managed-group")

    (gone,) = await real.topics.delete_records("managed", before=40, partitions=[1])
    assert gone.log_start_offset == 40
    (offsets,) = await real.topics.list_offsets("managed", at="earliest", partitions=[1])
    assert (offsets.offset, offsets.high_watermark) == (40, 100)
    metadata, features = await real.cluster.info()
    assert len(metadata.nodes) == 1
    assert features.max_batch_bytes
    await real.topics.delete("managed")
    with pytest.raises(errors.TopicNotFound):
        await real.topics.get("managed")


async def test_append_for_event_sourcing(real: Client) -> None:
    """The precondition holds or tells; the same request id never appends twice."""
    await real.topics.create("events", partition_count=1)
    first = await real.append("events", [b"created", b"paid"], partition=0, expected_end_offset=0, request_id="order-1")
    again = await real.append("events", [b"created", b"paid"], partition=0, expected_end_offset=0, request_id="order-1")
    assert first == again
    with pytest.raises(errors.PreconditionNotMet) as caught:
        await real.append("events", [b"cancelled"], partition=0, expected_end_offset=1)
    assert caught.value.end_offset == 2


async def test_typed_errors(real: Client) -> None:
    """What the broker refuses arrives as the class that says what to do."""
    await real.topics.create("strict", partition_count=1, config={"max_record_bytes": 1000})
    with pytest.raises(errors.TopicNotFound):
        async with real.subscribe("nowhere") as subscription:
            await subscription.get()
    with pytest.raises(errors.AlreadyExists):
        await real.topics.create("strict")
    with pytest.raises(errors.TooLarge):
        await real.publish("strict", b"x" * 1001)
    with pytest.raises(errors.TooLarge):
        await real.append("strict", [b"x" * 1001], partition=0)
    with pytest.raises(errors.InvalidArgument) as caught:
        await real.topics.create("a/b")
    assert caught.value.field == "name"
    with pytest.raises(errors.OffsetOutOfRange):
        async with real.subscribe("strict", start=5, out_of_range="fail") as subscription:
            await subscription.get()


async def test_seek_pause_and_the_end(real: Client) -> None:
    """Moving about without a group and in one; the end of a group's work is seen."""
    await real.topics.create("moving", partition_count=1)
    await (await real.publish_many("moving", [b"%d" % index for index in range(1000)]))
    for group in ("", "movers"):
        async with real.subscribe("moving", group=group, batch_records_max=100) as subscription:
            assert (await _take(subscription, 150))[-1].offset == 149
            await subscription.seek(900)
            assert [record.offset for record in await _take(subscription, 3)] == [900, 901, 902]
            await subscription.seek("earliest")
            assert [record.offset for record in await _take(subscription, 2)] == [0, 1]
    async with real.subscribe("moving", group="finite", until_end=True) as subscription:
        assert len([record async for record in subscription]) == 1000
    assert (await real.groups.offsets("finite"))[0].offset == 1000


async def _take(subscription: object, count: int) -> list[Record]:
    records: list[Record] = []
    async for record in subscription:  # type: ignore[attr-defined]
        records.append(record)
        if len(records) == count:
            break
    return records


def test_the_sync_facade(shared: Broker) -> None:
    """The same from an ordinary thread."""
    with SyncClient(shared.address, connect_timeout=START_S) as client:
        client.topics.create("plain", partition_count=2, exist_ok=True)
        deliveries = [client.publish("plain", b"%d" % index, key=b"%d" % index) for index in range(1000)]
        assert deliveries[-1].result().topic == "plain"
        client.flush()
        with client.subscribe("plain", group="sync", until_end=True) as subscription:
            assert sorted(int(record.value) for record in subscription) == list(range(1000))
        assert sum(each.lag for each in client.groups.offsets("sync")) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_restart_loses_and_repeats_nothing(own: Broker, how: signal.Signals) -> None:
    """Publishers and subscribers at work while the broker dies twice: every record is there once, in order, and was
    handed out once without a group, and once or, for what was in hand at the time, again in a group."""
    total = 4_000
    async with Client(own.address, connect_timeout=START_S) as client:
        await client.topics.create("work", partition_count=3)
        published = asyncio.Semaphore(0)

        async def publish() -> None:
            async with client.publisher(batch_bytes_max=2_000) as publisher:
                deliveries = []
                for index in range(total):
                    deliveries.append(await publisher.publish("work", b"%d" % index, key=b"%d" % (index % 20)))
                    if index % 100 == 0:
                        await deliveries[-1]
                        published.release()
                for delivery in deliveries:
                    await delivery

        async def read(group: str) -> list[tuple[int, int, bytes]]:
            seen: list[tuple[int, int, bytes]] = []
            values: set[bytes] = set()
            async with client.subscribe("work", group=group, batch_records_max=200) as subscription:
                async for record in subscription:
                    seen.append((record.partition, record.offset, record.value))
                    values.add(record.value)
                    if len(values) == total:
                        break
            return seen

        publishing = asyncio.create_task(publish())
        alone, grouped = asyncio.create_task(read("")), asyncio.create_task(read("workers"))
        for _ in range(2):
            for _ in range(10):
                await asyncio.wait_for(published.acquire(), 30)
            assert not publishing.done(), "it dies under work"
            await asyncio.to_thread(own.end, how)
            own.start()
        await asyncio.wait_for(publishing, 60)
        seen_alone = await asyncio.wait_for(alone, 60)
        seen_grouped = await asyncio.wait_for(grouped, 60)
        async with client.subscribe("work", until_end=True) as subscription:
            stored = [(record.partition, record.offset, record.value) async for record in subscription]
    assert sorted(int(value) for _, _, value in stored) == list(range(total))
    by_key: dict[int, list[int]] = defaultdict(list)
    for _, _, value in stored:
        by_key[int(value) % 20].append(int(value))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    assert len(seen_alone) == total
    assert sorted(seen_alone) == sorted(stored)
    assert set(seen_grouped) == set(stored)
    for partition in range(3):
        offsets = [offset for number, offset, _ in seen_alone if number == partition]
        assert offsets == sorted(offsets)


INTERRUPTED = """
import asyncio, sys
from postbus import Client

async def main(taken):
    async with Client(sys.argv[1]) as client, client.publisher() as publisher:
        while True:
            await publisher.publish("interrupted", b"%d" % len(taken))
            taken.append(None)
            if len(taken) == 1000:
                print("going", flush=True)

taken = []
try:
    asyncio.run(main(taken))
except KeyboardInterrupt:
    print(len(taken))
"""


async def test_ctrl_c_leaves_nothing_behind(real: Client, shared: Broker) -> None:
    """A publisher that is interrupted sends what it took, says nothing but its own last word, and ends at once."""
    await real.topics.create("interrupted", partition_count=1)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        INTERRUPTED,
        shared.address,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), START_S) == b"going\n"
    child.send_signal(signal.SIGINT)
    output, complaints = await asyncio.wait_for(child.communicate(), START_S)
    assert complaints == b""
    async with real.subscribe("interrupted", until_end=True) as subscription:
        values = [int(value) async for batch in subscription.batches() for value in batch.values()]
    assert values == list(range(len(values)))
    # One record may have been taken without having been counted.
    assert len(values) - int(output) in (0, 1)
