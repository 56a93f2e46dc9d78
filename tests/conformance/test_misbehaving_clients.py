"""Clients that do not read, flood or vanish: bounded memory, and everybody else unharmed."""

import asyncio
import random
import resource
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from postbus.v1 import cluster_pb2, group_pb2, publisher_pb2, record_pb2, subscriber_pb2, topic_pb2

METHODS = {
    f"{service.name}/{method.name}": method
    for module in (publisher_pb2, subscriber_pb2, group_pb2, topic_pb2, cluster_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def settle(bus: Any, seconds: float = 0.3) -> None:
    """Lets the broker do what it would; a good call in between shows that it does."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        await bus.call("ClusterService/GetQuorum")
        await asyncio.sleep(0.01)


async def test_a_subscriber_that_stops_reading_costs_bounded_memory_and_slows_nobody(bus: Any, tools: Any) -> None:
    """Twenty of them, with 60 MB to be read."""
    topic = await bus.topic()
    large = tools.batch_of(*[bytes(100_000)] * 20)
    for _ in range(30):
        await bus.call("PublisherService/Publish", topic=topic, batch=large)
    silent = []
    before = resident_bytes()
    for _ in range(20):
        silent.append(bus.connect())
        stream = bus.open("SubscriberService/Subscribe", channel=silent[-1])
        await stream.send(start={"topics": [subscriber_pb2.TopicSelector(topic=topic)]})
    await settle(bus)
    # The client's own buffers are part of this process too.
    assert resident_bytes() - before < 300 * 2**20
    reader = await bus.subscribe(topic, selector={"stop_at": subscriber_pb2.StopPosition(edge=2)})
    records = 0
    async with asyncio.timeout(10):
        while (message := await reader.read()) is not None:
            records += sum(len(batch.batch.records) for batch in message.batches)
    assert records == 600
    bus.end_streams()
    for channel in silent:
        await channel.close()


@pytest.mark.parametrize("kind", ["command ids", "stale acknowledgements", "seeks"])
async def test_a_subscriber_that_commands_without_reading_is_slowed_not_buffered(bus: Any, kind: str) -> None:
    """What it is owed waits in a bounded queue; then its commands are not read."""
    topic = await bus.topic()
    group = bus.name("group") if kind == "stale acknowledgements" else ""
    channel = bus.connect(**{"grpc.max_receive_message_length": 64 * 2**20})
    stream = bus.open("SubscriberService/Subscribe", channel=channel)
    await stream.send(start={"topics": [subscriber_pb2.TopicSelector(topic=topic)], "group": group})
    await stream.until(lambda message: message.HasField("started"))
    stale = subscriber_pb2.Delivery(topic="t" * 249, partition=0, base_offset=0, end_offset=1, fence=0)
    where = record_pb2.TopicPartition(topic=topic, partition=0)
    command = {
        "command ids": subscriber_pb2.SubscribeRequest(command_id=7),
        "stale acknowledgements": subscriber_pb2.SubscribeRequest(acks=[stale] * 1000),
        "seeks": subscriber_pb2.SubscribeRequest(
            seeks=[{"partition": where, "to": subscriber_pb2.StartPosition(offset=0)}] * 50, command_id=7
        ),
    }[kind].SerializeToString()
    sent = 0
    enough = asyncio.Event()

    async def flood() -> None:
        nonlocal sent
        while not enough.is_set():
            await stream.call.write(command)
            sent += 1

    before = resident_bytes()
    task = asyncio.create_task(flood())
    await settle(bus, 1.0)
    enough.set()
    assert resident_bytes() - before < 150 * 2**20, sent
    subscriptions = [
        subscription for subscription in bus.node._subscriber._subscriptions if topic in subscription.plan.selectors
    ]
    assert all(len(subscription._responses) <= 200 for subscription in subscriptions)
    # Once it reads, it gets what it is owed, in messages that it can take.
    received = 0
    async with asyncio.timeout(10):
        while received < 50:
            message = await stream.read()
            assert message.ByteSize() < 4_000_000
            received += bool(message.command_id) or len(message.ack_report.rejected)
        while not task.done():
            await stream.read()
    bus.end_streams()
    await channel.close()


async def test_a_publisher_that_never_reads_its_answers_is_ended_with_a_reason(start_bus: Any, tools: Any) -> None:
    """Nothing of the stream stays in the broker; who reads after all finds the answers, then what to do."""
    bus = await start_bus(publisher_unread_timeout_seconds="0.3", publish_stream_requests_max="1000")
    topic = await bus.topic(2)
    stream = bus.open("PublisherService/PublishStream", channel=bus.connect())
    request = publisher_pb2.PublishStreamRequest(
        correlation_id=1,
        publish={"topic": topic, "batch": {"records": [{"key": b"%d" % number} for number in range(5000)]}},
    ).SerializeToString()
    await stream.call.write(request)

    async def flood() -> None:
        # Fifteen megabytes of answers: more than gRPC takes before it blocks the broker's write.
        for _ in range(1500):
            await stream.call.write(request)

    task = asyncio.create_task(flood())
    async with asyncio.timeout(20):
        await stream.until(lambda message: message.acks)
        while bus.node._publisher.stream_count:
            await bus.publish(topic, b"good")
            await asyncio.sleep(0.01)
    try:
        while True:
            message = await stream.read()
            assert message is not None and message.ByteSize() < 2**20
    except grpc.RpcError as error:
        # When a write fails first, Python's client says INTERNAL of its own accord, whatever the status was.
        if "Internal error from Core" not in (error.details() or ""):
            tools.refusal_of(error).expect("QUOTA_EXCEEDED")
    await asyncio.wait({task}, timeout=5)
    assert task.exception() is not None


async def test_connections_that_vanish_leave_nothing(bus: Any, tools: Any) -> None:
    """Streams of every kind, closed in the middle of whatever they did."""
    topic = await bus.topic(3)
    group = bus.name("group")
    chance = random.Random(7)
    for _ in range(10):
        channel = bus.connect()
        subscriber = bus.open("SubscriberService/Subscribe", channel=channel)
        await subscriber.send(start={"topics": [subscriber_pb2.TopicSelector(topic=topic)], "group": group})
        publisher = bus.open("PublisherService/PublishStream", channel=channel)
        for number in range(chance.randrange(20)):
            publish = publisher_pb2.PublishRequest(topic=topic, batch=tools.batch_of(b"v"))
            await publisher.send(correlation_id=number, publish=publish)
        watch = channel.unary_stream("/postbus.v1.ClusterService/WatchMetadata")(b"")
        if chance.random() < 0.5:
            await watch.read()
        if chance.random() < 0.5:
            await subscriber.read()
        await channel.close()
    async with asyncio.timeout(5):
        while True:
            described = (await bus.call("GroupService/GetGroup", name=group)).group
            if not described.members and not bus.node._publisher.stream_count:
                break
            await asyncio.sleep(0.05)
    assert bus.node._subscriber.subscription_count == 0


async def test_a_stream_that_is_cancelled_at_once_is_nothing(bus: Any) -> None:
    """Before, while and after it begins."""
    topic = await bus.topic()
    for wait in (0, 0, 0.001, 0.002, 0.005):
        for rpc in ("SubscriberService/Subscribe", "PublisherService/PublishStream"):
            for group in ("", bus.name("group")):
                stream = bus.open(rpc)
                if "Subscribe" in rpc:
                    start = {"topics": [subscriber_pb2.TopicSelector(topic=topic)], "group": group}
                    sending = asyncio.create_task(stream.send(start=start))
                    await asyncio.sleep(wait)
                    stream.call.cancel()
                    sending.cancel()
                    await asyncio.wait({sending}, timeout=1)
                await asyncio.sleep(wait)
                stream.call.cancel()
    await settle(bus, 0.1)


# --- fuzz ---


def seeds(topic: str, group: str) -> Iterator[tuple[str, Message]]:
    """Valid requests, for mutations to begin with."""
    place = record_pb2.Position(topic=topic, partition=0, offset=0)
    where = record_pb2.TopicPartition(topic=topic, partition=0)
    start = subscriber_pb2.StartPosition(last_records=3)
    delivery = subscriber_pb2.Delivery(topic=topic, partition=0, base_offset=0, end_offset=1, fence=1)
    fields: dict[str, dict[str, Any]] = {
        "PublisherService/Publish": {
            "topic": topic,
            "partition": 0,
            "batch": {"records": [{"key": b"k", "value": b"v", "headers": [{"name": "n", "value": b"h"}]}]},
            "request_id": "r",
        },
        "PublisherService/InitProducer": {"id": 1, "epoch": 1},
        "PublisherService/PublishStream": {
            "correlation_id": 1,
            "publish": {"topic": topic, "batch": {"records": [{"key": b"k"}, {"value": b"v"}]}},
            "timeout": {"seconds": 3},
        },
        "SubscriberService/Subscribe": {
            "start": {
                "topics": [{"topic": topic, "start_at": start, "positions": [place], "stop_at": {"edge": 2}}],
                "accept_compressions": [1, 2],
                "max_batch_records": 3,
            }
        },
        "SubscriberService/Fetch": {"topic": topic, "positions": [place], "start_at": start, "max_records": 5},
        "SubscriberService/Acknowledge": {"group": group, "member_id": "m", "acks": [delivery]},
        "TopicService/CreateTopic": {
            "name": topic,
            "partition_count": 1,
            "config": {"retention_time": {"seconds": 5}, "retention_bytes": 9, "max_record_bytes": 100},
            "labels": {"a": "b"},
            "validate_only": True,
        },
        "TopicService/GetTopic": {"name": topic},
        "TopicService/ListTopics": {"page_size": 5, "page_token": "YWJj", "prefix": "t"},
        "TopicService/UpdateTopic": {
            "name": topic,
            "config": {"max_batch_bytes": 10_000},
            "update_mask": {"paths": ["config.max_batch_bytes", "labels"]},
        },
        "TopicService/AddPartitions": {"name": topic, "partition_count": 2},
        "TopicService/ListPartitions": {"topic": topic, "page_size": 1},
        "TopicService/DeleteRecords": {"topic": topic, "partitions": [0], "before": start},
        "TopicService/ListOffsets": {"topic": topic, "partitions": [0], "at": start},
        "GroupService/CreateGroup": {"name": group, "config": {"start_at": start, "offset_retention": {"seconds": 5}}},
        "GroupService/UpdateGroup": {
            "name": group,
            "config": {"static_member_timeout": {"seconds": 5}},
            "update_mask": {"paths": ["static_member_timeout"]},
        },
        "GroupService/GetGroup": {"name": group},
        "GroupService/ListGroups": {"page_size": 5, "page_token": "YWJj", "prefix": "g"},
        "GroupService/Heartbeat": {
            "group": group,
            "topics": [topic],
            "owned": [where],
            "processing_timeout": {"seconds": 5},
            "client_id": "c",
        },
        "GroupService/CommitOffsets": {"group": group, "offsets": [{"position": place, "fence": 1}]},
        "GroupService/GetCommittedOffsets": {"group": group, "topics": [topic]},
        "GroupService/ResetOffsets": {"group": group, "topic": topic, "partitions": [0], "to": start},
        "ClusterService/GetMetadata": {"topics": [topic]},
        "ClusterService/WatchMetadata": {"topics": [topic], "after_epoch": 1},
        "ClusterService/ElectLeaders": {"partitions": [where]},
        "ClusterService/ReassignPartitions": {"reassignments": [{"partition": where, "replica_node_ids": [1]}]},
    }
    for rpc, method in METHODS.items():
        request_type = GetMessageClass(method.input_type)
        if rpc not in {"TopicService/DeleteTopic", "GroupService/DeleteGroup"}:
            yield rpc, request_type(**fields.get(rpc, {}))


EDGES = [b"\0", b"\xff", b"\x80", b"\x7f", b"\xff" * 9 + b"\x01", b"\x80" * 9 + b"\x01", b"\xff" * 4 + b"\x0f"]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few flips, cuts, repetitions, insertions and edges of numbers."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << chance.randrange(8)
            case 1 if out:
                out[at % len(out)] = chance.randrange(256)
            case 2:
                del out[at : at + chance.randrange(1, 5)]
            case 3:
                out[at:at] = chance.choice(EDGES)
            case 4:
                piece = out[at : at + chance.randrange(1, 30)]
                out[at:at] = piece * chance.choice((1, 2, 50))
            case 5:
                out[at:at] = chance.randbytes(chance.randrange(1, 8))
            case 6:
                out += out[: chance.randrange(len(out) + 1)]
    return bytes(out)


def in_place(message: Message, chance: random.Random) -> bytes:
    """The message with one of its numbers or texts made extreme, however deep: it still parses."""
    changed = type(message).FromString(message.SerializeToString())
    inner: Any = changed
    while True:
        fields = [field for field, _ in inner.ListFields()]
        if not fields:
            return changed.SerializeToString()
        field = chance.choice(fields)
        value = getattr(inner, field.name)
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inner = chance.choice(list(value)) if field.is_repeated else value
            continue
        break
    if field.is_repeated:
        return changed.SerializeToString()
    bits = {field.TYPE_INT32: 31, field.TYPE_INT64: 63, field.TYPE_UINT32: 32, field.TYPE_UINT64: 64}.get(field.type)
    if bits in (31, 63):
        setattr(
            inner, field.name, chance.choice((0, 1, -1, 2**bits - 1, -(2**bits), 2**bits - 2, chance.getrandbits(bits)))
        )
    elif bits:
        setattr(inner, field.name, chance.choice((0, 1, 2**bits - 1, chance.getrandbits(bits))))
    elif field.type == field.TYPE_STRING:
        setattr(
            inner, field.name, chance.choice(("", ".", "..", "a/b", "\0", "é", "🚌" * 300, "%s", "__groups", "x" * 300))
        )
    elif field.type == field.TYPE_BYTES:
        setattr(inner, field.name, chance.choice((b"", b"\xff", bytes(1000))))
    return changed.SerializeToString()


@pytest.mark.parametrize("seed", range(6))
async def test_no_mutation_of_a_request_is_answered_unknown_or_internal_or_hangs(
    bus: Any, tools: Any, seed: int
) -> None:
    """Every RPC, thousands of mutations of valid requests; the same seed gives the same ones."""
    chance = random.Random(seed)
    topic = await bus.topic()
    await bus.publish(topic, b"a", b"b", b"c")
    group = bus.name("group")
    await bus.call("GroupService/CreateGroup", name=group)

    async def one(rpc: str, data: bytes) -> None:
        method = METHODS[rpc]
        path = f"/postbus.v1.{rpc}"
        try:
            if method.client_streaming:
                call = bus.channel.stream_stream(path)(timeout=8)
                await call.write(data)
                if "Subscribe" in rpc:
                    for _ in range(3):
                        await call.write(mutated(data[:0] + b"\x50\x01\x12\x02\x0a\x00", chance))
                await call.done_writing()
                while await call.read() is not grpc.aio.EOF:
                    pass
            elif method.server_streaming:
                watching = bus.channel.unary_stream(path)(data, timeout=8)
                reading = asyncio.ensure_future(watching.read())
                await asyncio.wait({reading}, timeout=0.05)
                watching.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            else:
                await bus.channel.unary_unary(path)(data, timeout=8)
        except grpc.RpcError as error:
            if "Internal error from Core" in (error.details() or ""):
                return  # the client's own: the stream ended while it wrote
            refusal = tools.refusal_of(error)
            assert refusal.reason or refusal.code == "CANCELLED", (rpc, data, refusal)
            assert refusal.code != "DEADLINE_EXCEEDED", (rpc, data, refusal)
            assert refusal.code != "INVALID_ARGUMENT" or refusal.field, (rpc, data, refusal)

    cases: list[tuple[str, bytes]] = []
    for rpc, message in seeds(topic, group):
        data = message.SerializeToString()
        cases += [(rpc, mutated(data, chance)) for _ in range(12)]
        cases += [(rpc, in_place(message, chance)) for _ in range(12)]
    for begin in range(0, len(cases), 20):
        await asyncio.gather(*(one(rpc, data) for rpc, data in cases[begin : begin + 20]))
