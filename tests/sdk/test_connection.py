"""Finding a broker: any address will do, and when none answers the error says what was tried."""

import socket

import grpc
import pytest
from fake_broker import FakeBroker, PostbusError, Reason
from postbus import Client, ConnectionFailed, errors
from postbus.connection import Connections, parse_addresses


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ("localhost", ("localhost:7070",)),
        ("a:1, b:2,c", ("a:1", "b:2", "c:7070")),
        (["a:1", "a:1"], ("a:1",)),
        ("[::1]", ("[::1]:7070",)),
        ("[::1]:5", ("[::1]:5",)),
    ],
)
def test_addresses(given: str | list[str], addresses: tuple[str, ...]) -> None:
    """One text or several, the port may be left out."""
    assert parse_addresses(given) == addresses


@pytest.mark.parametrize("given", ["", " , ", [], "http://a:1", "a:0", "a:65536"])
def test_no_addresses(given: str | list[str]) -> None:
    """Nothing, a URL, or what is no port is refused at once."""
    with pytest.raises(errors.InvalidArgument):
        parse_addresses(given)


async def test_any_address_will_do(broker: FakeBroker) -> None:
    """The first does not answer, the second does; publishing and asking go there."""
    async with Client([f"127.0.0.1:{free_port()}", broker.address]) as client:
        assert (await client.topics.get("single")).partition_count == 1
        assert (await (await client.publish("single", b"x"))).offset == 0


async def test_nothing_answers() -> None:
    """Each address is named with what it said, within the connect timeout."""
    dead = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    with pytest.raises(ConnectionFailed) as caught:
        async with Client(",".join(dead), connect_timeout=0.3):
            pass
    for address in dead:
        assert address in str(caught.value)
    assert "refused" in str(caught.value)
    assert caught.value.retriable


async def test_calls_are_repeated_while_the_answer_is_not_now(broker: FakeBroker) -> None:
    """A broker that stops and comes back: an administrative call waits for it."""
    async with Client(broker.address) as client:
        port = broker.port
        await broker.stop()
        restarted = FakeBroker()
        restarted.create("later", 3)
        await restarted.start(port=port)
        assert (await client.topics.get("later")).partition_count == 3
        await restarted.stop()


async def test_a_closed_client_says_so(broker: FakeBroker) -> None:
    """Using it after `async with` raises Closed."""
    async with Client(broker.address) as client:
        pass
    with pytest.raises(errors.Closed):
        await client.topics.get("single")
    with pytest.raises(errors.Closed):
        client.subscribe("single")
    with pytest.raises(errors.Closed):
        await client.publish("single", b"x")


async def test_topics(client: Client) -> None:
    """Create with settings, get, list over pages, and the typed errors."""
    created = await client.topics.create(
        "new", partition_count=2, config={"retention_time": 3600, "max_record_bytes": 5}
    )
    assert created.config.retention_time.seconds == 3600
    assert created.config.max_record_bytes == 5
    with pytest.raises(errors.AlreadyExists):
        await client.topics.create("new")
    assert (await client.topics.create("new", exist_ok=True)).partition_count == 2
    assert [topic.name for topic in await client.topics.list()] == ["new", "orders", "single"]
    with pytest.raises(errors.InvalidArgument, match="retention_tim"):
        await client.topics.create("x", config={"retention_tim": 1})
    with pytest.raises(errors.InvalidArgument, match="max_record_bytes"):
        await client.topics.create("x", config={"max_record_bytes": "much"})
    with pytest.raises(errors.TopicNotFound):
        await client.topics.get("nowhere")
    with pytest.raises(errors.Unsupported):
        await client.topics.delete("new")


async def test_a_final_answer_is_not_repeated(broker: FakeBroker, client: Client) -> None:
    """Only "not now" is asked again."""
    calls = 0

    def refuse(name: str):
        nonlocal calls
        calls += 1
        raise PostbusError(Reason.ERROR_REASON_TOPIC_NOT_FOUND, name)

    broker.partition = lambda topic, number: refuse(topic)  # type: ignore[method-assign]
    with pytest.raises(errors.TopicNotFound):
        await client.append("single", [b"x"], partition=0)
    assert calls == 1


async def test_a_channel_that_fails_is_made_anew(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else gRPC goes on for half a minute to where a name led before; one that works is left alone."""
    monkeypatch.setattr("postbus.connection.RENEWAL_INTERVAL", 0.0)
    dead = f"127.0.0.1:{free_port()}"
    connections = Connections([dead, broker.address])
    failing, working = connections.channel(dead), connections.channel(broker.address)
    assert connections.channel(dead) is failing  # it has not failed yet
    await connections.connect(timeout=5)
    while failing.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
        await failing.wait_for_state_change(failing.get_state())
    assert connections.channel(dead) is not failing
    assert connections.channel(broker.address) is working
    await connections.close()
    assert failing.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_not_more_than_one_channel_a_second_is_made() -> None:
    """However often somebody asks for an address where nobody listens."""
    dead = f"127.0.0.1:{free_port()}"
    connections = Connections([dead])
    failing = connections.channel()
    with pytest.raises(ConnectionFailed):
        await connections.connect(timeout=0.3)
    assert connections.channel() is failing
    await connections.close()
