"""What a subscriber may get wrong, in Subscribe, Fetch and Acknowledge: how the stream or call ends, and why."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from postbus.v1 import record_pb2, subscriber_pb2

HUGE = 2**63 - 1
Selector = subscriber_pb2.TopicSelector
Start = subscriber_pb2.StartPosition
Stop = subscriber_pb2.StopPosition
Delivery = subscriber_pb2.Delivery
Place = record_pb2.Position
Partition = record_pb2.TopicPartition
T = "T"  # stands for a topic of two partitions with three records in partition 0
G = "G"  # and for a group

# Fields of SubscribeStart; reason; field.
STARTS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "no topics": ({"topics": []}, "INVALID_FIELD", "start.topics"),
    "too many topics": ({"topics": [Selector(topic="t")] * 1001}, "TOO_LARGE", "start.topics"),
    "an empty topic": ({"topics": [Selector()]}, "INVALID_FIELD", "start.topics[0].topic"),
    "a bad topic": ({"topics": [Selector(topic=T), Selector(topic="..")]}, "INVALID_FIELD", "start.topics[1].topic"),
    "an unknown topic": ({"topics": [Selector(topic=T), Selector(topic="nowhere")]}, "TOPIC_NOT_FOUND", None),
    "an unknown topic in a group": ({"topics": [Selector(topic="nowhere")], "group": G}, "TOPIC_NOT_FOUND", None),
    "the broker's topic": ({"topics": [Selector(topic="__groups")]}, "TOPIC_NOT_FOUND", None),
    "a topic twice": ({"topics": [Selector(topic=T)] * 2}, "INVALID_FIELD", "start.topics[1].topic"),
    "an unknown partition": ({"topics": [Selector(topic=T, partitions=[2])]}, "PARTITION_NOT_FOUND", None),
    "a negative partition": (
        {"topics": [Selector(topic=T, partitions=[-1])]},
        "INVALID_FIELD",
        "start.topics[0].partitions",
    ),
    "a partition twice": (
        {"topics": [Selector(topic=T, partitions=[0, 0])]},
        "INVALID_FIELD",
        "start.topics[0].partitions",
    ),
    "partitions in a group": (
        {"topics": [Selector(topic=T, partitions=[0])], "group": G},
        "INVALID_FIELD",
        "start.topics[0].partitions",
    ),
    "a place without partition": (
        {"topics": [Selector(topic=T, positions=[Place(topic=T, offset=0)])]},
        "INVALID_FIELD",
        "start.topics[0].positions[0].partition",
    ),
    "a place without offset": (
        {"topics": [Selector(topic=T, positions=[Place(topic=T, partition=0)])]},
        "INVALID_FIELD",
        "start.topics[0].positions[0].offset",
    ),
    "a negative place": (
        {"topics": [Selector(topic=T, positions=[Place(topic=T, partition=0, offset=-1)])]},
        "INVALID_FIELD",
        "start.topics[0].positions[0].offset",
    ),
    "a place twice": (
        {"topics": [Selector(topic=T, positions=[Place(topic=T, partition=0, offset=0)] * 2)]},
        "INVALID_FIELD",
        "start.topics[0].positions",
    ),
    "a place of another topic": (
        {"topics": [Selector(topic=T, positions=[Place(topic="u", partition=0, offset=0)])]},
        "INVALID_FIELD",
        "start.topics[0].positions[0].topic",
    ),
    "a place in a partition that is not read": (
        {"topics": [Selector(topic=T, partitions=[1], positions=[Place(topic=T, partition=0, offset=0)])]},
        "INVALID_FIELD",
        "start.topics[0].positions[0].partition",
    ),
    "a place in a partition that is not": (
        {"topics": [Selector(topic=T, positions=[Place(topic=T, partition=2, offset=0)])]},
        "PARTITION_NOT_FOUND",
        None,
    ),
    "a place in a partition that is not, in a group": (
        {"topics": [Selector(topic=T, positions=[Place(topic=T, partition=2, offset=0)])], "group": G},
        "PARTITION_NOT_FOUND",
        None,
    ),
    "a place past the end": (
        {"topics": [Selector(topic=T, positions=[Place(topic=T, partition=0, offset=4)])]},
        "OFFSET_OUT_OF_RANGE",
        None,
    ),
    "a start far past the end": ({"start_at": Start(offset=HUGE)}, "OFFSET_OUT_OF_RANGE", None),
    "a stop that is none": (
        {"topics": [Selector(topic=T, stop_at=Stop())]},
        "INVALID_FIELD",
        "start.topics[0].stop_at",
    ),
    "a stop at the beginning": (
        {"topics": [Selector(topic=T, stop_at=Stop(edge=1))]},
        "INVALID_FIELD",
        "start.topics[0].stop_at.edge",
    ),
    "a negative stop": (
        {"topics": [Selector(topic=T, stop_at=Stop(offset=-1))]},
        "INVALID_FIELD",
        "start.topics[0].stop_at.offset",
    ),
    "a stop before time": (
        {"topics": [Selector(topic=T, stop_at=Stop(time=Timestamp(seconds=-1)))]},
        "INVALID_FIELD",
        "start.topics[0].stop_at.time",
    ),
    "a stop in a group": (
        {"topics": [Selector(topic=T, stop_at=Stop(edge=2))], "group": G},
        "INVALID_FIELD",
        "start.topics[0].stop_at",
    ),
    "a bad group": ({"group": "a/b"}, "INVALID_FIELD", "start.group"),
    "a group too long": ({"group": "g" * 250}, "INVALID_FIELD", "start.group"),
    "the broker's group": ({"group": "__g"}, "INVALID_FIELD", "*"),
    "a shared group": (
        {"group": G, "group_kind": subscriber_pb2.GROUP_KIND_SHARED},
        "UNKNOWN_FIELD",
        "start.group_kind",
    ),
    "a kind without a group": (
        {"group_kind": subscriber_pb2.GROUP_KIND_ORDERED},
        "INVALID_FIELD",
        "start.group_kind",
    ),
    "an instance without a group": ({"instance_id": "i"}, "INVALID_FIELD", "start.instance_id"),
    "a member without a group": ({"member_id": "m"}, "INVALID_FIELD", "start.member_id"),
    "a window without a group": ({"window_records": 1}, "INVALID_FIELD", "start.window_records"),
    "a window of bytes without a group": ({"window_bytes": 1}, "INVALID_FIELD", "start.window_bytes"),
    "acknowledging without a group": ({"ack_mode": subscriber_pb2.ACK_MODE_ON_SEND}, "INVALID_FIELD", "start.group"),
    "reports without a group": ({"report_acks": True}, "INVALID_FIELD", "start.group"),
    "assign_paused without a group": ({"assign_paused": True}, "INVALID_FIELD", "start.assign_paused"),
    "credit and a window": (
        {"group": G, "explicit_credit": True, "window_records": 1},
        "INVALID_FIELD",
        "start.explicit_credit",
    ),
    "no codec": ({"accept_compressions": [0]}, "INVALID_FIELD", "start.accept_compressions"),
    "responses too small": ({"max_response_bytes": 65535}, "INVALID_FIELD", "start.max_response_bytes"),
    "responses too large": ({"max_response_bytes": 2**32 - 1}, "INVALID_FIELD", "start.max_response_bytes"),
    "heartbeats too often": (
        {"heartbeat_interval": Duration(nanos=1)},
        "INVALID_FIELD",
        "start.heartbeat_interval",
    ),
    "heartbeats backwards": (
        {"heartbeat_interval": Duration(seconds=-5)},
        "INVALID_FIELD",
        "start.heartbeat_interval",
    ),
    "heartbeats never": (
        {"heartbeat_interval": Duration(seconds=HUGE, nanos=2**31 - 1)},
        "INVALID_FIELD",
        "start.heartbeat_interval",
    ),
    "no time to process": (
        {"group": G, "processing_timeout": Duration()},
        "INVALID_FIELD",
        "start.processing_timeout",
    ),
    "too much time to process": (
        {"group": G, "processing_timeout": Duration(seconds=3601)},
        "INVALID_FIELD",
        "start.processing_timeout",
    ),
    "a name too long": ({"client_id": "c" * 256}, "TOO_LARGE", "start.client_id"),
    "a name that rings": ({"client_id": "\a"}, "INVALID_FIELD", "start.client_id"),
    "a rack too long": ({"rack": "c" * 256}, "TOO_LARGE", "start.rack"),
    "an instance too long": ({"group": G, "instance_id": "c" * 256}, "TOO_LARGE", "start.instance_id"),
    "a member that rings": ({"group": G, "member_id": "\a"}, "INVALID_FIELD", "start.member_id"),
}


def with_names(fields: dict[str, Any], topic: str, group: str) -> subscriber_pb2.SubscribeStart:
    start = subscriber_pb2.SubscribeStart(**{"topics": [Selector(topic=T)], **fields})
    for selector in start.topics:
        selector.topic = topic if selector.topic == T else selector.topic
        for place in selector.positions:
            place.topic = topic if place.topic == T else place.topic
    start.group = group if start.group == G else start.group
    return start


@pytest.mark.parametrize(("fields", "reason", "named"), STARTS.values(), ids=STARTS.keys())
async def test_a_start_that_can_not_be_ends_the_stream(
    bus: Any, fields: dict[str, Any], reason: str, named: str | None
) -> None:
    """And leaves no group or member behind."""
    topic = await bus.topic(2)
    await bus.publish(topic, b"a", b"b", b"c", partition=0)
    group = bus.name("group")
    stream = bus.open("SubscriberService/Subscribe")
    await stream.send(start=with_names(fields, topic, group))
    (await stream.refusal()).expect(reason, named)
    (await bus.refused("GroupService/GetGroup", name=group)).expect("GROUP_NOT_FOUND")


async def test_openings_that_can_not_be_end_the_stream(bus: Any) -> None:
    """No message at all, none with `start`, `start` with something beside it, a second `start`."""
    topic = await bus.topic()
    stream = bus.open("SubscriberService/Subscribe")
    await stream.call.done_writing()
    (await stream.refusal()).expect("INVALID_FIELD", "start")
    for request in (
        subscriber_pb2.SubscribeRequest(),
        subscriber_pb2.SubscribeRequest(command_id=1),
        subscriber_pb2.SubscribeRequest(start={"topics": [Selector(topic=topic)]}, command_id=1),
        subscriber_pb2.SubscribeRequest(start={"topics": [Selector(topic=topic)]}, leave=True),
    ):
        stream = bus.open("SubscriberService/Subscribe")
        await stream.send(request)
        (await stream.refusal()).expect("INVALID_FIELD", "start")
    for group in ("", bus.name("group")):
        stream = await bus.subscribe(topic, group=group)
        await stream.send(start={"topics": [Selector(topic=topic)], "group": group})
        (await stream.refusal()).expect("INVALID_FIELD", "start")


async def test_an_opening_that_does_not_come_is_not_waited_for_by_the_node(start_bus: Any) -> None:
    """Streams that say nothing do not hold up the node's end."""
    bus = await start_bus()
    stream = bus.open("SubscriberService/Subscribe")
    await stream.call.wait_for_connection()
    await bus.node.stop()
    assert (await stream.refusal()).code in {"UNAVAILABLE", "CANCELLED"}


where = Partition(topic=T, partition=0)
COMMANDS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "an acknowledgement": (
        {"acks": [Delivery(topic=T, partition=0, base_offset=0, end_offset=1)]},
        "INVALID_FIELD",
        "acks",
    ),
    "a nack": ({"nacks": [subscriber_pb2.Nack()]}, "INVALID_FIELD", "nacks"),
    "a release": ({"release": [where]}, "INVALID_FIELD", "release"),
    "a lease": ({"lease_extensions": [subscriber_pb2.LeaseExtension()]}, "UNKNOWN_FIELD", "lease_extensions"),
    "credit": ({"credit": subscriber_pb2.Credit(records=1)}, "INVALID_FIELD", "credit"),
    "a seek without partition": (
        {"seeks": [subscriber_pb2.Seek(partition=Partition(topic=T), to=Start(offset=0))]},
        "INVALID_FIELD",
        "seeks[0].partition.partition",
    ),
    "a seek to nowhere": ({"seeks": [subscriber_pb2.Seek(partition=where)]}, "INVALID_FIELD", "seeks[0].to"),
    "a seek without topic": (
        {"seeks": [subscriber_pb2.Seek(to=Start(offset=0))]},
        "INVALID_FIELD",
        "seeks[0].partition.topic",
    ),
    "a seek past the end": (
        {"seeks": [subscriber_pb2.Seek(partition=where, to=Start(offset=4))]},
        "OFFSET_OUT_OF_RANGE",
        None,
    ),
    "a pause without partition": ({"pause": [Partition(topic=T)]}, "INVALID_FIELD", "pause[0].partition"),
    "a pause of an unknown topic": ({"pause": [Partition(topic="nowhere", partition=0)]}, "TOPIC_NOT_FOUND", None),
    "a pause of an unknown partition": ({"pause": [Partition(topic=T, partition=9)]}, "PARTITION_NOT_FOUND", None),
    "a pause of what is not read": ({"pause": [Partition(topic=T, partition=1)]}, "INVALID_FIELD", "pause[0]"),
    "a resume of what is not read": ({"resume": [Partition(topic=T, partition=1)]}, "INVALID_FIELD", "resume[0]"),
    "a seek in what is not read": (
        {"seeks": [subscriber_pb2.Seek(partition=Partition(topic=T, partition=1), to=Start(offset=0))]},
        "INVALID_FIELD",
        "seeks[0].partition",
    ),
}


def named_in(request: subscriber_pb2.SubscribeRequest, topic: str) -> subscriber_pb2.SubscribeRequest:
    data = request.SerializeToString()
    rebuilt = subscriber_pb2.SubscribeRequest.FromString(data)
    for delivery in [*rebuilt.acks, *(nack.delivery for nack in rebuilt.nacks if nack.HasField("delivery"))]:
        delivery.topic = topic if delivery.topic == T else delivery.topic
    for partition in [
        *rebuilt.pause,
        *rebuilt.resume,
        *rebuilt.release,
        *(seek.partition for seek in rebuilt.seeks if seek.HasField("partition")),
    ]:
        partition.topic = topic if partition.topic == T else partition.topic
    return rebuilt


@pytest.mark.parametrize(("fields", "reason", "named"), COMMANDS.values(), ids=COMMANDS.keys())
async def test_a_command_that_can_not_be_ends_a_stream_without_a_group(
    bus: Any, fields: dict[str, Any], reason: str, named: str | None
) -> None:
    """There is nothing to acknowledge, and only what is read can be paused or sought."""
    topic = await bus.topic(2)
    await bus.publish(topic, b"a", b"b", b"c", partition=0)
    stream = await bus.subscribe(topic, selector={"partitions": [0]})
    await stream.send(named_in(subscriber_pb2.SubscribeRequest(**fields), topic))
    (await stream.refusal()).expect(reason, named)


# In a group, where partition 0 (offsets 0 to 3, under fence F) was delivered.
GROUP_COMMANDS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "an acknowledgement of nothing": ({"acks": [Delivery()]}, "INVALID_FIELD", "acks[0].topic"),
    "without partition": ({"acks": [Delivery(topic=T)]}, "INVALID_FIELD", "acks[0].partition"),
    "without base": ({"acks": [Delivery(topic=T, partition=0)]}, "INVALID_FIELD", "acks[0].base_offset"),
    "without end": ({"acks": [Delivery(topic=T, partition=0, base_offset=0)]}, "INVALID_FIELD", "acks[0].end_offset"),
    "negative": (
        {"acks": [Delivery(topic=T, partition=0, base_offset=-1, end_offset=0)]},
        "INVALID_FIELD",
        "acks[0].base_offset",
    ),
    "backwards": (
        {"acks": [Delivery(topic=T, partition=0, base_offset=2, end_offset=1)]},
        "INVALID_FIELD",
        "acks[0].end_offset",
    ),
    "beyond what was delivered": (
        {"acks": [Delivery(topic=T, partition=0, base_offset=0, end_offset=4, fence=-7)]},
        "INVALID_FIELD",
        "acks*",
    ),
    "far beyond": (
        {"acks": [Delivery(topic=T, partition=0, base_offset=HUGE - 1, end_offset=HUGE, fence=-7)]},
        "INVALID_FIELD",
        "acks*",
    ),
    "a fence that was never given": (
        {"acks": [Delivery(topic=T, partition=0, base_offset=0, end_offset=1, fence=HUGE)]},
        "INVALID_FIELD",
        "acks*",
    ),
    "a nack of nothing": ({"nacks": [subscriber_pb2.Nack()]}, "INVALID_FIELD", "nacks[0].delivery.topic"),
    "a nack beyond": (
        {"nacks": [{"delivery": Delivery(topic=T, partition=0, base_offset=0, end_offset=4, fence=-7)}]},
        "INVALID_FIELD",
        "nacks[0].delivery*",
    ),
    "a dead letter": (
        {"nacks": [{"delivery": Delivery(topic=T, partition=0, base_offset=0, end_offset=1, fence=-7), "action": 2}]},
        "UNKNOWN_FIELD",
        "nacks[0].action",
    ),
    "a nack with a long reason": (
        {
            "nacks": [
                {
                    "delivery": Delivery(topic=T, partition=0, base_offset=0, end_offset=1, fence=-7),
                    "reason": "r" * 1025,
                }
            ]
        },
        "TOO_LARGE",
        "nacks[0].reason",
    ),
    "a nack into the past": (
        {
            "nacks": [
                {
                    "delivery": Delivery(topic=T, partition=0, base_offset=0, end_offset=1, fence=-7),
                    "delay": Duration(seconds=-1),
                }
            ]
        },
        "INVALID_FIELD",
        "nacks[0].delay",
    ),
    "a nack for ever": (
        {
            "nacks": [
                {
                    "delivery": Delivery(topic=T, partition=0, base_offset=0, end_offset=1, fence=-7),
                    "delay": Duration(seconds=HUGE),
                }
            ]
        },
        "INVALID_FIELD",
        "nacks[0].delay",
    ),
    "a lease": ({"lease_extensions": [subscriber_pb2.LeaseExtension()]}, "UNKNOWN_FIELD", "lease_extensions"),
    "credit": ({"credit": subscriber_pb2.Credit(records=1)}, "INVALID_FIELD", "credit"),
    "a seek to nowhere": ({"seeks": [subscriber_pb2.Seek(partition=where)]}, "INVALID_FIELD", "seeks[0].to"),
    "a seek past the end": (
        {"seeks": [subscriber_pb2.Seek(partition=where, to=Start(offset=4))]},
        "OFFSET_OUT_OF_RANGE",
        None,
    ),
    "a pause without partition": ({"pause": [Partition(topic=T)]}, "INVALID_FIELD", "pause[0].partition"),
    "a pause of an unknown partition": ({"pause": [Partition(topic=T, partition=9)]}, "PARTITION_NOT_FOUND", None),
}


@pytest.mark.parametrize(("fields", "reason", "named"), GROUP_COMMANDS.values(), ids=GROUP_COMMANDS.keys())
async def test_a_command_that_can_not_be_ends_a_member_s_stream(
    bus: Any, fields: dict[str, Any], reason: str, named: str | None
) -> None:
    """Nothing is committed by it, and the group goes on with others."""
    topic = await bus.topic(1)
    await bus.publish(topic, b"a", b"b", b"c", partition=0)
    group = bus.name("group")
    stream = await bus.subscribe(topic, group=group)
    delivered = (await stream.until(lambda message: message.batches)).batches[0].delivery
    request = named_in(subscriber_pb2.SubscribeRequest(**fields), topic)
    for delivery in [*request.acks, *(nack.delivery for nack in request.nacks)]:
        delivery.fence = delivered.fence if delivery.fence == -7 else delivery.fence
    await stream.send(request)
    (await stream.refusal()).expect(reason, named)
    committed = await bus.call("GroupService/GetCommittedOffsets", group=group)
    assert [place.offset for place in committed.offsets] == [0]


async def test_stale_acknowledgements_are_reported_in_band_and_end_nothing(bus: Any, tools: Any) -> None:
    """Of an older fence, of a partition that is another member's, of a topic that is not there."""
    topic = await bus.topic(2)
    await bus.publish(topic, b"a", partition=0)
    await bus.publish(topic, b"b", partition=1)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group)
    owned = {}
    while len(owned) < 2:
        for batch in (await first.until(lambda message: message.batches)).batches:
            owned[batch.delivery.partition] = batch.delivery
    second = await bus.subscribe(topic, group=group)
    change = (await first.until(lambda message: message.assignment_change.revoking)).assignment_change
    gone = change.revoking[0].partition
    await first.send(acks=[owned[gone]])
    await first.until(lambda message: message.assignment_change.revoked)
    await second.until(lambda message: message.assignment_change.assigned)
    stale = Delivery(topic=topic, partition=1 - gone, base_offset=0, end_offset=1, fence=0)
    elsewhere = Delivery(topic="nowhere", partition=0, base_offset=0, end_offset=1, fence=1)
    await first.send(acks=[owned[gone], stale, elsewhere])
    rejected: list[Any] = []
    while len(rejected) < 3:
        rejected += (await first.until(lambda message: message.HasField("ack_report"))).ack_report.rejected
    assert [rejection.delivery for rejection in rejected] == [owned[gone], stale, elsewhere]
    for rejection in rejected:
        tools.refusal_in(rejection.failure).expect("ASSIGNMENT_LOST")
    nack = subscriber_pb2.Nack(delivery=owned[gone])
    await first.send(nacks=[nack], command_id=1)
    answer = await first.until(lambda message: message.HasField("ack_report"))
    tools.refusal_in(answer.ack_report.rejected[0].failure).expect("ASSIGNMENT_LOST")
    await first.end()


async def test_commands_for_partitions_that_have_just_gone_do_not_end_a_member_s_stream(bus: Any, tools: Any) -> None:
    """The member could not know: its command and the news of the hand-off crossed on the way."""
    topic = await bus.topic(2)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group)
    await first.until(lambda message: message.assignment_change.assigned)
    second = await bus.subscribe(topic, group=group)
    gone = (await first.until(lambda message: message.assignment_change.revoked)).assignment_change.revoked[0]
    kept = Partition(topic=topic, partition=1 - gone.partition)
    await second.until(lambda message: message.assignment_change.assigned)
    await first.send(pause=[gone], command_id=1)
    await first.send(resume=[gone], command_id=2)
    await first.send(release=[gone], command_id=3)
    await first.send(release=[kept], command_id=4)
    await first.send(seeks=[subscriber_pb2.Seek(partition=gone, to=Start(offset=0))], command_id=5)
    rejected: list[Any] = []
    echoed: list[int] = []
    while 5 not in echoed:
        message = await first.read()
        rejected += message.ack_report.rejected
        echoed += [message.command_id] if message.command_id else []
    assert echoed == [1, 2, 3, 4, 5]
    assert [rejection.delivery.partition for rejection in rejected] == [gone.partition]
    tools.refusal_in(rejected[0].failure).expect("ASSIGNMENT_LOST")
    await first.end()


FETCHES: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "a group": ({"group": "g"}, "UNKNOWN_FIELD", "group"),
    "answers too small": ({"max_bytes": 1}, "INVALID_FIELD", "max_bytes"),
    "answers too large": ({"max_bytes": 2**32 - 1}, "INVALID_FIELD", "max_bytes"),
    "waiting backwards": ({"max_wait": Duration(seconds=-1)}, "INVALID_FIELD", "max_wait"),
    "waiting for ever": ({"max_wait": Duration(seconds=HUGE)}, "INVALID_FIELD", "max_wait"),
    "a wait that is no duration": ({"max_wait": Duration(nanos=2**31 - 1)}, "INVALID_FIELD", "max_wait"),
    "no codec": ({"accept_compressions": [0]}, "INVALID_FIELD", "accept_compressions"),
    "a place without partition": ({"positions": [Place(offset=0)]}, "INVALID_FIELD", "positions[0].partition"),
    "a place without offset": ({"positions": [Place(partition=0)]}, "INVALID_FIELD", "positions[0].offset"),
    "a negative partition": (
        {"positions": [Place(partition=-1, offset=0)]},
        "INVALID_FIELD",
        "positions[0].partition",
    ),
    "a negative offset": ({"positions": [Place(partition=0, offset=-1)]}, "INVALID_FIELD", "positions[0].offset"),
    "another topic": (
        {"positions": [Place(topic="u", partition=0, offset=0)]},
        "INVALID_FIELD",
        "positions[0].topic",
    ),
    "a place twice": (
        {"positions": [Place(partition=0, offset=0)] * 2},
        "INVALID_FIELD",
        "positions[1].partition",
    ),
    "an unknown partition": ({"positions": [Place(partition=2, offset=0)]}, "PARTITION_NOT_FOUND", None),
    "past the end": ({"positions": [Place(partition=0, offset=4)]}, "OFFSET_OUT_OF_RANGE", None),
    "far past the end": ({"start_at": Start(offset=HUGE)}, "OFFSET_OUT_OF_RANGE", None),
}


@pytest.mark.parametrize(("fields", "reason", "named"), FETCHES.values(), ids=FETCHES.keys())
async def test_a_fetch_that_can_not_be_is_refused(
    bus: Any, fields: dict[str, Any], reason: str, named: str | None
) -> None:
    """With the range, where that is what is wrong."""
    topic = await bus.topic(2)
    await bus.publish(topic, b"a", b"b", b"c", partition=0)
    refusal = (await bus.refused("SubscriberService/Fetch", topic=topic, **fields)).expect(reason, named)
    if reason == "OFFSET_OUT_OF_RANGE":
        assert refusal.metadata["earliest"] == "0" and refusal.metadata["latest"] == "3"


ACKNOWLEDGES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no member": ({"member_id": ""}, "INVALID_FIELD", "member_id"),
    "no acknowledgements": ({"acks": []}, "INVALID_FIELD", "acks"),
    "a lease": ({"lease_extensions": [subscriber_pb2.LeaseExtension()]}, "UNKNOWN_FIELD", "lease_extensions"),
    "a nack": ({"nacks": [subscriber_pb2.Nack()]}, "UNKNOWN_FIELD", "nacks"),
    "an empty delivery": ({"acks": [Delivery()]}, "INVALID_FIELD", "acks[0].topic"),
    "beyond what was delivered": (
        {"acks": [Delivery(topic=T, partition=0, base_offset=0, end_offset=4, fence=-7)]},
        "INVALID_FIELD",
        "acks[0]*",
    ),
}


@pytest.mark.parametrize(("fields", "reason", "named"), ACKNOWLEDGES.values(), ids=ACKNOWLEDGES.keys())
async def test_an_acknowledgement_that_can_not_be_is_refused(
    bus: Any, fields: dict[str, Any], reason: str, named: str
) -> None:
    """And commits nothing; the member's stream goes on."""
    topic = await bus.topic(1)
    await bus.publish(topic, b"a", b"b", b"c", partition=0)
    group = bus.name("group")
    stream = await bus.subscribe(topic, group=group)
    member_id = (await stream.read()).started.member_id
    delivered = (await stream.until(lambda message: message.batches)).batches[0].delivery
    request = subscriber_pb2.AcknowledgeRequest(
        **{"group": group, "member_id": member_id, "acks": [delivered], **fields}
    )
    for ack in request.acks:
        ack.topic = topic if ack.topic == T else ack.topic
        ack.fence = delivered.fence if ack.fence == -7 else ack.fence
    (await bus.refused("SubscriberService/Acknowledge", request)).expect(reason, named)
    good = await bus.call("SubscriberService/Acknowledge", group=group, member_id=member_id, acks=[delivered])
    assert [place.offset for place in good.report.committed] == [3]
    await stream.end()


async def test_unary_acknowledgements_by_others_are_reported(bus: Any, tools: Any) -> None:
    """A member that is not, a fence that is not the newest."""
    topic = await bus.topic(1)
    await bus.publish(topic, b"a", partition=0)
    group = bus.name("group")
    stream = await bus.subscribe(topic, group=group)
    member_id = (await stream.read()).started.member_id
    delivered = (await stream.until(lambda message: message.batches)).batches[0].delivery
    stale = Delivery(topic=topic, partition=0, base_offset=0, end_offset=1, fence=0)
    for member, ack in (("ghost", delivered), (member_id, stale)):
        answer = await bus.call("SubscriberService/Acknowledge", group=group, member_id=member, acks=[ack])
        assert not answer.report.committed
        tools.refusal_in(answer.report.rejected[0].failure).expect("ASSIGNMENT_LOST")
    await stream.end()


async def test_fetches_that_expire_or_are_cancelled_leave_nothing_behind(bus: Any) -> None:
    """Their listeners go with them, and later records find nobody who is not there."""
    topic = await bus.topic(2)
    fetch = bus.channel.unary_unary("/postbus.v1.SubscriberService/Fetch")
    request = subscriber_pb2.FetchRequest(topic=topic, max_wait=Duration(seconds=30)).SerializeToString()
    calls = [fetch(request, timeout=0.001) for _ in range(20)] + [fetch(request) for _ in range(20)]
    await asyncio.sleep(0.05)
    for call in calls:
        call.cancel()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError) or outcome.code() in {
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,
        }
    waiting = asyncio.create_task(bus.call("SubscriberService/Fetch", topic=topic, max_wait=Duration(seconds=30)))
    await asyncio.sleep(0.05)
    await bus.publish(topic, b"v", partition=1)
    assert len((await waiting).batches) == 1
