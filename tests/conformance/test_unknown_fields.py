"""Whatever a request holds that this broker does not know is refused by name, for every RPC.

The cases come from the protos' own descriptors, so that a new RPC, message or enum is covered the day it is added.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from postbus.v1 import cluster_pb2, group_pb2, publisher_pb2, record_pb2, subscriber_pb2, topic_pb2

UNKNOWN_NUMBER = 9999
UNKNOWN_BYTES = b"\xf8\xf0\x04\x01"  # field 9999, varint 1
ENUM_UNKNOWN = 77

METHODS = {
    f"{service.name}/{method.name}": method
    for module in (publisher_pb2, subscriber_pb2, group_pb2, topic_pb2, cluster_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
UNARY = sorted(rpc for rpc, method in METHODS.items() if not method.client_streaming)
# Refused as a whole before anything else would be looked at, or stored as they are.
_EXEMPT = {"postbus.v1.RecordBatch"}


def _paths(descriptor: Descriptor, depth: int = 3) -> Iterator[tuple[str, ...]]:
    """Paths to all embedded messages, none of them twice on the way down."""
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None or inner.full_name in _EXEMPT or inner.GetOptions().map_entry:
            continue
        yield (field.name,)
        if depth:
            yield from ((field.name, *path) for path in _paths(inner, depth - 1))


def _enum_paths(descriptor: Descriptor) -> Iterator[tuple[str, ...]]:
    for path in [(), *_paths(descriptor)]:
        inner = descriptor
        for name in path:
            inner = inner.fields_by_name[name].message_type
        for field in inner.fields:
            if field.enum_type is not None and field.enum_type.full_name != "google.protobuf.NullValue":
                yield (*path, field.name)


def _descend(message: Message, path: tuple[str, ...]) -> tuple[Message, str]:
    """The embedded message, made if need be, and how errors write the path to it."""
    shown = ""
    for name in path:
        value = getattr(message, name)
        if message.DESCRIPTOR.fields_by_name[name].is_repeated:
            if not value:
                value.add()
            message, shown = value[0], f"{shown}{name}[0]."
        else:
            value.SetInParent()
            message, shown = value, f"{shown}{name}."
    return message, shown


def _valid(rpc: str, topic: str) -> Message:
    request = GetMessageClass(METHODS[rpc].input_type)()
    if rpc == "PublisherService/Publish":
        request.topic = topic
        request.batch.records.add(value=b"v")
    return request


NESTED = [
    pytest.param(rpc, path, id=f"{rpc}:{'.'.join(path)}") for rpc in UNARY for path in _paths(METHODS[rpc].input_type)
]
ENUMS = [
    pytest.param(rpc, path, id=f"{rpc}:{'.'.join(path)}")
    for rpc in UNARY
    for path in _enum_paths(METHODS[rpc].input_type)
]


async def test_an_unknown_field_of_any_unary_request_is_refused(bus: Any) -> None:
    """Field 9999 is named, whatever else is wrong with the request."""
    topic = await bus.topic()
    for rpc in UNARY:
        refusal = await bus.refused(rpc, _valid(rpc, topic).SerializeToString() + UNKNOWN_BYTES)
        refusal.expect("UNKNOWN_FIELD", f"field {UNKNOWN_NUMBER}")


async def test_an_unknown_field_of_any_embedded_message_is_refused(bus: Any) -> None:
    """At any depth, with its path."""
    topic = await bus.topic()
    for param in NESTED:
        rpc, path = param.values
        request = _valid(rpc, topic)
        inner, shown = _descend(request, path)
        inner.MergeFromString(UNKNOWN_BYTES)
        refusal = await bus.refused(rpc, request)
        refusal.expect("UNKNOWN_FIELD", f"{shown}field {UNKNOWN_NUMBER}")


async def test_an_unknown_enum_value_anywhere_is_refused(bus: Any) -> None:
    """A value that the cluster does not know is a setting that it does not know."""
    topic = await bus.topic()
    for param in ENUMS:
        rpc, path = param.values
        request = _valid(rpc, topic)
        inner, shown = _descend(request, path[:-1])
        field = inner.DESCRIPTOR.fields_by_name[path[-1]]
        if field.is_repeated:
            getattr(inner, field.name).append(ENUM_UNKNOWN)
        else:
            setattr(inner, field.name, ENUM_UNKNOWN)
        refusal = await bus.refused(rpc, request)
        refusal.expect("UNKNOWN_FIELD", f"{shown}{path[-1]} = {ENUM_UNKNOWN}")


BROKEN = {
    "a tag without a value": b"\x0a",
    "a length past the end": b"\x0a\x7fabc",
    "a varint that never ends": b"\x08" + b"\xff" * 11,
    "an end of a group that did not begin": b"\x0c",
    "a group that does not end": b"\x0b\x0b",
    "a reserved wire type": b"\x0f\x00",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
async def test_bytes_that_do_not_parse_are_an_invalid_request(bus: Any, data: bytes) -> None:
    """Never UNKNOWN with an exception's text, as gRPC's own parsing would answer."""
    for rpc in UNARY:
        (await bus.refused(rpc, data)).expect("INVALID_FIELD", "request")
    for rpc in ("PublisherService/PublishStream", "SubscriberService/Subscribe"):
        stream = bus.open(rpc)
        await stream.send(data)
        (await stream.refusal()).expect("INVALID_FIELD", "request")


async def test_text_that_is_not_utf8_is_an_invalid_request(bus: Any) -> None:
    """In the name of a topic, a request id, anywhere that text goes."""
    for rpc in UNARY:
        descriptor = METHODS[rpc].input_type
        for field in descriptor.fields:
            if field.type == field.TYPE_STRING:
                data = bytes([field.number << 3 | 2, 2, 0xC3, 0x28])
                (await bus.refused(rpc, data)).expect("INVALID_FIELD", "request")


async def test_unknown_fields_on_a_publish_stream_are_refused_in_band(bus: Any, tools: Any) -> None:
    """One bad request costs an acknowledgement, not the stream."""
    topic = await bus.topic()
    good = publisher_pb2.PublishRequest(topic=topic, batch=tools.batch_of(b"v"))
    in_publish = good.SerializeToString() + UNKNOWN_BYTES
    wrapped = publisher_pb2.PublishStreamRequest(correlation_id=2)
    wrapped.publish.MergeFromString(in_publish)
    in_timeout = publisher_pb2.PublishStreamRequest(correlation_id=3, publish=good)
    in_timeout.timeout.seconds = 5
    in_timeout.timeout.MergeFromString(UNKNOWN_BYTES)
    at_top = publisher_pb2.PublishStreamRequest(correlation_id=1, publish=good).SerializeToString() + UNKNOWN_BYTES
    stream = bus.open("PublisherService/PublishStream")
    for request in (at_top, wrapped, in_timeout, publisher_pb2.PublishStreamRequest(correlation_id=4, publish=good)):
        await stream.send(request)
    answers = {}
    while len(answers) < 4:
        answers.update({ack.correlation_id: ack for ack in (await stream.read()).acks})
    for number, named in ((1, "field 9999"), (2, "field 9999"), (3, "timeout.field 9999")):
        tools.refusal_in(answers[number].failure).expect("UNKNOWN_FIELD", named)
    assert answers[4].HasField("result")
    await stream.end()


async def test_unknown_fields_of_a_subscribe_stream_end_it(bus: Any) -> None:
    """In the first message and in later ones, at any depth."""
    topic = await bus.topic()
    for path in [(), *_paths(subscriber_pb2.SubscribeRequest.DESCRIPTOR)]:
        request = subscriber_pb2.SubscribeRequest()
        inner, shown = _descend(request, path)
        inner.MergeFromString(UNKNOWN_BYTES)
        if path[:1] == ("start",):
            stream = bus.open("SubscriberService/Subscribe")
        else:
            stream = await bus.subscribe(topic)
            await stream.until(lambda message: message.HasField("started"))
        await stream.send(request)
        (await stream.refusal()).expect("UNKNOWN_FIELD", f"{shown}field {UNKNOWN_NUMBER}")


async def test_unknown_enum_values_of_a_subscribe_stream_end_it(bus: Any) -> None:
    """Codecs, edges, kinds, modes, policies, actions."""
    topic = await bus.topic()
    for path in _enum_paths(subscriber_pb2.SubscribeRequest.DESCRIPTOR):
        request = subscriber_pb2.SubscribeRequest()
        inner, shown = _descend(request, path[:-1])
        field = inner.DESCRIPTOR.fields_by_name[path[-1]]
        if field.is_repeated:
            getattr(inner, field.name).append(ENUM_UNKNOWN)
        else:
            setattr(inner, field.name, ENUM_UNKNOWN)
        if path[:1] == ("start",):
            stream = bus.open("SubscriberService/Subscribe")
        else:
            stream = await bus.subscribe(topic)
            await stream.until(lambda message: message.HasField("started"))
        await stream.send(request)
        (await stream.refusal()).expect("UNKNOWN_FIELD", f"{shown}{path[-1]} = {ENUM_UNKNOWN}")


async def test_records_and_batches_are_exempt_and_stored_as_they_are(bus: Any, tools: Any) -> None:
    """A field of a record that this broker does not know comes back to the subscriber."""
    topic = await bus.topic()
    record = record_pb2.Record(value=b"v")
    record.MergeFromString(UNKNOWN_BYTES)
    batch = record_pb2.RecordBatch(records=[record])
    batch.MergeFromString(UNKNOWN_BYTES)
    await bus.call("PublisherService/Publish", topic=topic, batch=batch)
    fetched = await bus.call("SubscriberService/Fetch", topic=topic)
    assert fetched.batches[0].batch.SerializeToString() == batch.SerializeToString()


async def test_methods_that_do_not_exist_are_unimplemented(bus: Any) -> None:
    """By gRPC itself, and without harm."""
    for path in ("/postbus.v1.TopicService/Nonsense", "/postbus.v2.TopicService/GetTopic", "/nonsense"):
        with pytest.raises(grpc.RpcError) as caught:
            await bus.channel.unary_unary(path)(b"", timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_messages_over_the_limit_are_refused_by_grpc(bus: Any) -> None:
    """RESOURCE_EXHAUSTED without details, before memory is spent."""
    for rpc in ("PublisherService/Publish", "ClusterService/GetQuorum"):
        refusal = await bus.refused(rpc, bytes(6 * 1024 * 1024 + 1))
        assert refusal.code == "RESOURCE_EXHAUSTED" and not refusal.reason
    stream = bus.open("PublisherService/PublishStream")
    await stream.send(bytes(6 * 1024 * 1024 + 1))
    assert (await stream.refusal()).code == "RESOURCE_EXHAUSTED"


async def test_a_flood_of_elements_is_refused_before_each_is_looked_at(bus: Any) -> None:
    """Six megabytes of empty elements would hold up everybody for seconds."""
    topic = await bus.topic()
    loop = asyncio.get_running_loop()
    floods = [
        (rpc, bytes([field.number << 3 | 2, 1, 65]) * n)
        for rpc in UNARY
        for field in METHODS[rpc].input_type.fields
        if field.is_repeated and field.message_type is None
        for n in (20_000, 1_900_000)
    ]
    floods += [
        (rpc, bytes([field.number << 3 | 2, 0]) * n)
        for rpc in UNARY
        for field in METHODS[rpc].input_type.fields
        if field.is_repeated and field.message_type is not None and not field.message_type.GetOptions().map_entry
        for n in (20_000, 2_900_000)
    ]
    for rpc, data in floods:
        begin = loop.time()
        (await bus.refused(rpc, data)).expect("TOO_LARGE")
        assert loop.time() - begin < 1.0, rpc
    stream = await bus.subscribe(topic)
    await stream.until(lambda message: message.HasField("started"))
    begin = loop.time()
    await stream.send(b"\x12\x00" * 2_900_000)
    (await stream.refusal()).expect("TOO_LARGE")
    assert loop.time() - begin < 1.0
