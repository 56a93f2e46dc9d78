"""The facade without asyncio: the same promises, called from ordinary threads."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from fake_broker import FakeBroker
from postbus import Client, SyncClient, errors


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    """On a loop of its own, so that the test's thread is free to wait."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    async def make() -> FakeBroker:
        fake = FakeBroker()
        fake.create("orders", 6)
        fake.create("single", 1)
        await fake.start()
        return fake

    fake = run(make())
    yield fake
    run(fake.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_publish_and_subscribe(broker: FakeBroker) -> None:
    """One by one, in bulk, and back by record and by batch."""
    with Client.sync(broker.address) as client:
        deliveries = [client.publish("single", b"%d" % index) for index in range(1000)]
        assert [delivery.result().offset for delivery in deliveries[::100]] == list(range(0, 1000, 100))
        bulk = client.publish_many("single", (b"%d" % index for index in range(1000, 3000)))
        assert sum(each.record_count for each in bulk.result()) == 2000
        with client.subscribe("single", until_end=True) as subscription:
            assert [int(record.value) for record in subscription] == list(range(3000))
        with client.subscribe("single", until_end=True) as subscription:
            assert sum(len(batch) for batch in subscription.batches()) == 3000


def test_a_wrong_record_is_told_by_its_result(broker: FakeBroker) -> None:
    """publish doesn't wait, so the delivery says what was wrong; others are unharmed."""
    with SyncClient(broker.address) as client:
        lost = client.publish("nowhere", b"x")
        wrong = client.publish("single", 5)  # type: ignore[arg-type]
        fine = client.publish("single", b"x")
        with pytest.raises(errors.TopicNotFound):
            lost.result()
        with pytest.raises(errors.InvalidArgument):
            wrong.result()
        assert fine.result().offset == 0
        assert fine.done()


def test_a_group_acknowledges(broker: FakeBroker) -> None:
    """Automatically, up to the record in hand; and by hand."""
    broker.fill("single", 0, [b"%d" % index for index in range(30)])
    with SyncClient(broker.address) as client:
        with client.subscribe("single", group="auto") as subscription:
            for record in subscription:
                if record.offset == 14:
                    break
        assert broker.committed["auto", "single", 0] == 15
        with client.subscribe("single", group="hand", ack="manual") as subscription:
            for record in subscription:
                if record.offset == 20:
                    break
                subscription.ack(record)
        assert broker.committed["hand", "single", 0] == 20


def test_threads_keep_their_order(broker: FakeBroker) -> None:
    """Several threads through one publisher: all there, each thread's records in order."""
    with SyncClient(broker.address) as client:

        def publish(name: int) -> None:
            for index in range(300):
                client.publish("single", b"%d %d" % (name, index))

        threads = [threading.Thread(target=publish, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.flush()
    values = [tuple(map(int, value.split())) for value in broker.topics["single"][0].values()]
    assert len(values) == 1200
    for name in range(4):
        assert [index for who, index in values if who == name] == list(range(300))


def test_admin_calls(broker: FakeBroker) -> None:
    """The same names without await, and the same errors."""
    with SyncClient(broker.address) as client:
        assert client.topics.create("new", partition_count=3).partition_count == 3
        with pytest.raises(errors.TopicNotFound):
            client.topics.get("nowhere")
        assert client.append("new", [b"x"], partition=0, expected_end_offset=0).base_offset == 0
        batches, _ = client.fetch("new")
        assert batches[0].values() == [b"x"]


def test_nothing_answers() -> None:
    """The same clear error as with asyncio."""
    with pytest.raises(errors.ConnectionFailed), SyncClient("127.0.0.1:1", connect_timeout=0.2):
        pass
