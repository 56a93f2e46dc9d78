"""The external scaler as KEDA calls it: over gRPC, with a client generated from KEDA's proto, on a real store."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable
from dataclasses import replace

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from live_cluster import NODES, LiveCluster
from live_node import LiveNode, OpenNode
from postbus.v1 import group_pb2, record_pb2, subscriber_pb2, topic_pb2

from broker.services.external_scaler import ScalerSettings
from broker.services.scaler_trigger import Backlog, Trigger
from broker.stubs import externalscaler_pb2 as pb
from broker.stubs import externalscaler_pb2_grpc as pb_grpc

LATEST = subscriber_pb2.StartPosition(edge=subscriber_pb2.LOG_EDGE_LATEST)


class Keda:
    """Does with the answers what KEDA and the autoscaler do."""

    def __init__(self, channel: grpc.aio.Channel, **metadata: str) -> None:
        self.stub = pb_grpc.ExternalScalerStub(channel)
        self.ref = pb.ScaledObjectRef(name="billing", namespace="shop", scalerMetadata={"group": "g", **metadata})

    async def active(self) -> bool:
        """IsActive."""
        answer: pb.IsActiveResponse = await self.stub.IsActive(self.ref, timeout=10)
        return answer.result

    async def metric(self) -> int:
        """The value of the one metric, asked for by the name that GetMetricSpec gave."""
        (spec,) = (await self.stub.GetMetricSpec(self.ref, timeout=10)).metricSpecs
        request = pb.GetMetricsRequest(scaledObjectRef=self.ref, metricName=spec.metricName)
        (metric,) = (await self.stub.GetMetrics(request, timeout=10)).metricValues
        assert metric.metricName == spec.metricName
        assert metric.metricValue == metric.metricValueFloat
        return int(metric.metricValue)

    async def replicas(self) -> int:
        """How many there should be."""
        (spec,) = (await self.stub.GetMetricSpec(self.ref, timeout=10)).metricSpecs
        assert spec.targetSize == spec.targetSizeFloat
        return math.ceil(await self.metric() / spec.targetSize) if await self.active() else 0


async def commit(bus: LiveNode, topic: str, partition: int, offset: int, group: str = "g") -> None:
    """As a consumer of before."""
    with contextlib.suppress(grpc.aio.AioRpcError):  # it exists
        await bus.groups.CreateGroup(group_pb2.CreateGroupRequest(name=group), timeout=10)
    place = record_pb2.Position(topic=topic, partition=partition, offset=offset)
    request = group_pb2.CommitOffsetsRequest(group=group, offsets=[group_pb2.Assignment(position=place)])
    report = (await bus.groups.CommitOffsets(request, timeout=10)).report
    assert len(report.committed) == 1, report


async def refused(call: Awaitable[object]) -> tuple[str, str]:
    """The code and message of a refusal that has Postbus' details."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert dict(error.value.trailing_metadata() or ())["postbus-reason"]
    return error.value.code().name, error.value.details() or ""


async def test_a_group_that_is_not_there_yet_gets_its_first_member_from_its_topic(open_node: OpenNode) -> None:
    """Nothing to read: none. Then as many as the records ask for, but no more than there are partitions."""
    bus = await open_node()
    await bus.create("orders", 3)
    keda = Keda(bus.channel, topic="orders")
    assert (await keda.replicas(), await keda.metric()) == (0, 0)
    await bus.publish("orders", b"v", partition=1)
    assert (await keda.replicas(), await keda.metric()) == (1, 1)
    await bus.publish("orders", *[b"v"] * 10, partition=2)
    assert (await keda.replicas(), await keda.metric()) == (2, 11)
    await bus.publish("orders", *[b"v"] * 1000, partition=0)
    assert (await keda.replicas(), await keda.metric()) == (3, 30)
    assert await Keda(bus.channel, topic="orders", lagThreshold="1000").replicas() == 2
    assert await Keda(bus.channel, topic="orders", activationLagThreshold="1011").replicas() == 0
    assert await Keda(bus.channel, topic="orders", activationLagThreshold="1010").replicas() == 3
    assert await Keda(bus.channel, topic="orders", allowIdleConsumers="true").replicas() == 102
    with pytest.raises(grpc.aio.AioRpcError, match="does not exist"):
        await bus.groups.GetGroup(group_pb2.GetGroupRequest(name="g"))  # asking created nothing


async def test_only_what_is_not_committed_counts(open_node: OpenNode) -> None:
    """By partition; `limitToPartitionsWithLag` leaves out members for those that are done."""
    bus = await open_node()
    await bus.create("orders", 4)
    for partition in range(4):
        await bus.publish("orders", *[b"v"] * 100, partition=partition)
        await commit(bus, "orders", partition, 100)
    keda = Keda(bus.channel, topic="orders")
    assert (await keda.active(), await keda.metric()) == (False, 0)
    await commit(bus, "orders", 2, 40)
    assert (await keda.active(), await keda.metric(), await keda.replicas()) == (True, 40, 4)
    assert await Keda(bus.channel, topic="orders", limitToPartitionsWithLag="true").replicas() == 1
    await commit(bus, "orders", 2, 100)
    assert await keda.replicas() == 0


async def test_without_a_topic_all_that_the_group_reads_counts(open_node: OpenNode) -> None:
    """And only that; the bound is the partitions of all of them."""
    bus = await open_node()
    await bus.create("orders", 2)
    await bus.create("returns", 1)
    await bus.create("others", 7)
    for topic in ("orders", "returns", "others"):
        await bus.publish(topic, *[b"v"] * 50)
    await commit(bus, "orders", 0, 45)
    await commit(bus, "returns", 0, 30)
    assert await Keda(bus.channel).metric() == 25
    assert await Keda(bus.channel, lagThreshold="1").replicas() == 3
    assert await Keda(bus.channel, topic="orders").metric() == 5
    assert await Keda(bus.channel, topic="returns").metric() == 10, "one partition, one member"


async def test_partitions_that_were_added_count_from_their_beginning(open_node: OpenNode) -> None:
    """Also while nobody is a member, and whatever the start of the group."""
    bus = await open_node()
    await bus.create("orders", 1)
    await commit(bus, "orders", 0, 0)
    await bus.topics.AddPartitions(topic_pb2.AddPartitionsRequest(name="orders", partition_count=3))
    await bus.publish("orders", *[b"v"] * 7, partition=2)
    for policy in ("earliest", "latest"):
        keda = Keda(bus.channel, topic="orders", offsetResetPolicy=policy)
        assert (await keda.active(), await keda.metric()) == (True, 7)


async def test_records_that_are_gone_do_not_count(open_node: OpenNode) -> None:
    """Nobody can read them any more, so nobody needs to be started for them."""
    bus = await open_node()
    await bus.create("orders")
    await bus.publish("orders", *[b"v"] * 20)
    await commit(bus, "orders", 0, 5)
    before = subscriber_pb2.StartPosition(offset=18)
    await bus.topics.DeleteRecords(topic_pb2.DeleteRecordsRequest(topic="orders", before=before))
    assert await Keda(bus.channel, topic="orders").metric() == 2
    assert await Keda(bus.channel, topic="orders", group="new").metric() == 2
    await bus.topics.DeleteRecords(topic_pb2.DeleteRecordsRequest(topic="orders", before=LATEST))
    assert not await Keda(bus.channel, topic="orders").active()
    assert not await Keda(bus.channel, topic="orders", group="new").active()


@pytest.mark.parametrize("how", ["the group's own setting", "the trigger"])
async def test_a_group_that_starts_at_the_end_gets_one_member_that_takes_its_place(
    open_node: OpenNode, how: str
) -> None:
    """What is there already is not for it; with the place taken, what comes is, and nobody is kept for nothing."""
    bus = await open_node()
    await bus.create("orders", 3)
    await bus.publish("orders", *[b"v"] * 500)
    keda = Keda(bus.channel, topic="orders", activationLagThreshold="5", offsetResetPolicy="latest")
    start = subscriber_pb2.TopicSelector(topic="orders", start_at=LATEST)
    if how == "the group's own setting":
        await bus.groups.CreateGroup(
            group_pb2.CreateGroupRequest(name="g", config=group_pb2.GroupConfig(start_at=LATEST))
        )
        keda = Keda(bus.channel, topic="orders", activationLagThreshold="5", offsetResetPolicy="earliest")
        start = subscriber_pb2.TopicSelector(topic="orders")
    assert (await keda.replicas(), await keda.metric()) == (1, 1)

    member = bus.subscriber.Subscribe(timeout=30)
    await member.write(subscriber_pb2.SubscribeRequest(start=subscriber_pb2.SubscribeStart(group="g", topics=[start])))
    while not (await member.read()).assignment_change.assigned:
        pass
    await member.done_writing()
    while await member.read() is not grpc.aio.EOF:
        pass
    assert (await keda.active(), await keda.metric()) == (False, 0)
    await bus.publish("orders", *[b"v"] * 6)
    assert (await keda.active(), await keda.metric()) == (True, 6)


@pytest.mark.parametrize(
    ("start", "unread"),
    [
        (subscriber_pb2.StartPosition(last_records=8), 8),
        (subscriber_pb2.StartPosition(offset=15), 5),
        (subscriber_pb2.StartPosition(offset=99), 0),
        (subscriber_pb2.StartPosition(ago=Duration(seconds=3600)), 20),
    ],
)
async def test_a_group_without_a_place_counts_from_where_its_setting_lets_it_start(
    open_node: OpenNode, start: subscriber_pb2.StartPosition, unread: int
) -> None:
    bus = await open_node()
    await bus.create("orders")
    await bus.publish("orders", *[b"v"] * 20)
    config = group_pb2.GroupConfig(start_at=start)
    await bus.groups.CreateGroup(group_pb2.CreateGroupRequest(name="g", config=config))
    keda = Keda(bus.channel, topic="orders", lagThreshold="100")
    assert (await keda.active(), await keda.metric()) == (unread > 0, unread)


async def test_what_does_not_exist_is_not_found_and_nothing_is_guessed(open_node: OpenNode) -> None:
    """A topic; a group, if nothing else says what it reads; a group that has read nothing needs the topic named."""
    bus = await open_node()
    for keda, named in ((Keda(bus.channel, topic="nothing"), "nothing"), (Keda(bus.channel), "'g'")):
        assert (await keda.stub.GetMetricSpec(keda.ref)).metricSpecs, "may be asked before they are there"
        for call in (
            keda.stub.IsActive(keda.ref, timeout=10),
            keda.stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=keda.ref), timeout=10),
            keda.stub.StreamIsActive(keda.ref, timeout=10).read(),
        ):
            code, message = await refused(call)
            assert (code, named in message) == ("NOT_FOUND", True)
    assert (await refused(Keda(bus.channel, topic="__groups").active()))[0] == "NOT_FOUND"
    await bus.groups.CreateGroup(group_pb2.CreateGroupRequest(name="g"))
    code, message = await refused(Keda(bus.channel).active())
    assert (code, "scalerMetadata.topic" in message) == ("INVALID_ARGUMENT", True)


async def test_what_only_the_coordinator_knows_is_not_left_out(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that has not heard of a topic yet, or of its newer partitions: not even zero is told of the rest."""
    bus = await open_node()
    for topic in ("orders", "returns"):
        await bus.create(topic, 2)
        await bus.publish(topic, *[b"v"] * 50, partition=1)
    await commit(bus, "orders", 1, 50)
    await commit(bus, "returns", 1, 30)
    assert await Keda(bus.channel).metric() == 20
    # Of another node: what it says stays.
    told = (await bus.groups.GetGroup(group_pb2.GetGroupRequest(name="g"), timeout=10)).group

    async def get_group(name: str, *, timeout_s: float | None = None) -> group_pb2.Group:
        return told

    monkeypatch.setattr(bus.node._bus.groups, "get_group", get_group)
    topics = bus.node._bus.partitions._by_name
    with monkeypatch.context() as patch:
        patch.setattr(topics["returns"], "partitions", topics["returns"].partitions[:1])
        for keda in (Keda(bus.channel), Keda(bus.channel, topic="returns")):
            assert (await refused(keda.active()))[0] == "NOT_FOUND"
    with monkeypatch.context() as patch:
        patch.delitem(topics, "returns")
        assert (await refused(Keda(bus.channel).active()))[0] == "NOT_FOUND"
    assert await Keda(bus.channel).metric() == 20


async def test_bad_triggers_are_refused_by_every_method(open_node: OpenNode) -> None:
    """Missing, malformed, unknown; a metric of another trigger; bytes that are no message."""
    bus = await open_node()
    await bus.create("orders")
    keda = Keda(bus.channel, topic="orders", lagThreshold="a lot")
    stub = keda.stub
    for call in (
        stub.IsActive(keda.ref),
        stub.GetMetricSpec(keda.ref),
        stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=keda.ref)),
        stub.StreamIsActive(keda.ref).read(),
    ):
        code, message = await refused(call)
        assert code == "INVALID_ARGUMENT"
        assert "scalerMetadata.lagThreshold" in message and 'lagThreshold: "10"' in message
    for nothing in (stub.IsActive(pb.ScaledObjectRef()), stub.GetMetrics(pb.GetMetricsRequest())):
        code, message = await refused(nothing)
        assert (code, 'group: "billing"' in message) == ("INVALID_ARGUMENT", True)
    other = pb.GetMetricsRequest(scaledObjectRef=Keda(bus.channel, topic="orders").ref, metricName="s0-postbus-g")
    code, message = await refused(stub.GetMetrics(other))
    assert (code, "postbus-g-orders" in message) == ("INVALID_ARGUMENT", True)
    for method in ("IsActive", "GetMetricSpec", "GetMetrics"):
        raw = bus.channel.unary_unary(f"/externalscaler.ExternalScaler/{method}")
        assert (await refused(raw(b"\xff")))[0] == "INVALID_ARGUMENT"


async def test_a_newer_keda_may_say_more(open_node: OpenNode) -> None:
    """Its messages are its own: what this broker does not know of them is no error, nor what it asks beyond them."""
    bus = await open_node()
    await bus.create("orders")
    data = Keda(bus.channel, topic="orders").ref.SerializeToString() + b"\x7a\x01x"
    assert len(UnknownFieldSet(pb.ScaledObjectRef.FromString(data))) == 1
    raw = bus.channel.unary_unary("/externalscaler.ExternalScaler/IsActive")
    assert not pb.IsActiveResponse.FromString(await raw(data)).result
    newer = bus.channel.unary_stream("/externalscaler.ExternalScaler/StreamMetricSpec")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await newer(data).read()
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED, "upon which KEDA asks GetMetricSpec"


class Looks:
    """What a node's scaler sees, each time that it looks."""

    def __init__(self, bus: LiveNode, monkeypatch: pytest.MonkeyPatch) -> None:
        scaler = bus.node._scaler
        scaler.settings = replace(ScalerSettings(), poll_s=0.01, streams_max=2)
        look = scaler._backlog
        self._news = asyncio.Condition()
        self._unread = -1

        async def noted(trigger: Trigger, timeout_s: float) -> Backlog:
            backlog = await look(trigger, timeout_s)
            async with self._news:
                self._unread = backlog.unread
                self._news.notify_all()
            return backlog

        monkeypatch.setattr(scaler, "_backlog", noted)

    async def until(self, unread: int) -> None:
        """Returns when it has seen so many."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: self._unread == unread)


async def test_a_stream_tells_when_there_is_work_and_again_after_there_was_none(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each time; a stream that is opened when there is work tells at once."""
    bus = await open_node()
    await bus.create("orders")
    looks = Looks(bus, monkeypatch)
    keda = Keda(bus.channel, topic="orders")
    stream = keda.stub.StreamIsActive(keda.ref, timeout=30)
    for count in (1, 2):
        told = asyncio.ensure_future(stream.read())
        await looks.until(unread=0)
        assert not told.done()
        await bus.publish("orders", b"v")
        assert (await told).result
        again = keda.stub.StreamIsActive(keda.ref, timeout=30)
        assert (await again.read()).result
        again.cancel()
        await bus.publish("orders", b"v")
        await looks.until(unread=2)
        await commit(bus, "orders", 0, 2 * count)
    stream.cancel()


async def test_streams_are_bounded_and_end_with_the_node(open_node: OpenNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is refused with what to do instead; one that was left makes room; at the end they are sent on."""
    bus = await open_node()
    await bus.create("orders")
    await bus.publish("orders", b"v")
    Looks(bus, monkeypatch)
    keda = Keda(bus.channel, topic="orders")
    streams = [keda.stub.StreamIsActive(keda.ref) for _ in range(2)]
    for stream in streams:
        assert (await stream.read()).result
    code, message = await refused(keda.stub.StreamIsActive(keda.ref).read())
    assert (code, "`external`" in message) == ("RESOURCE_EXHAUSTED", True)
    streams.pop().cancel()
    async with asyncio.timeout(20):
        while bus.node._scaler._streams == 2:  # noqa: ASYNC110 - a call's end tells nobody
            await asyncio.sleep(0.01)
    streams.append(keda.stub.StreamIsActive(keda.ref))
    assert (await streams[1].read()).result
    ends = [asyncio.ensure_future(refused(stream.read())) for stream in streams]
    bus.node._scaler.end_streams()
    assert [code for code, _ in await asyncio.gather(*ends)] == ["UNAVAILABLE"] * 2
    assert bus.node._scaler._streams == 0


async def test_health_and_reflection_know_it(open_node: OpenNode) -> None:
    """By KEDA's name."""
    bus = await open_node()
    name = "externalscaler.ExternalScaler"
    health = await health_pb2_grpc.HealthStub(bus.channel).Check(health_pb2.HealthCheckRequest(service=name))
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(bus.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=name),
    ]
    listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    assert name in [service.name for service in listed.list_services_response.service]
    assert b"StreamIsActive" in described.file_descriptor_response.file_descriptor_proto[0]


async def test_any_node_answers_for_all(cluster: LiveCluster) -> None:
    """Wherever the coordinator and the leaders are, what was acknowledged and committed before counts at once."""
    await cluster.create("orders", 3)
    for partition, node_id in enumerate(NODES):
        await cluster.led("orders", partition, by=node_id)
    scalers = [Keda(cluster[node_id].channel, topic="orders", lagThreshold="1000") for node_id in NODES]
    for count in range(1, 6):
        for partition in range(3):
            await cluster[1].publish("orders", b"v", b"v", partition=partition)
        assert await asyncio.gather(*(keda.metric() for keda in scalers)) == [6 * count] * 3
    for partition in range(3):
        await commit(cluster[2], "orders", partition, 10)
        unread = 10 * (2 - partition)
        assert await asyncio.gather(*(keda.metric() for keda in scalers)) == [unread] * 3
    assert not any(await asyncio.gather(*(keda.active() for keda in scalers)))


@pytest.mark.parametrize("silent", ["a leader", "the coordinator"])
async def test_what_a_node_can_not_learn_is_unavailable_in_time_and_never_zero(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """With what is missing; well before KEDA's patience ends."""
    await cluster.create("orders", 1)
    await cluster.led("orders", 0, by=2)
    await cluster[2].publish("orders", b"v")
    bus = cluster[1].node
    bus._scaler.settings = replace(ScalerSettings(), answer_s=0.5)
    keda = Keda(cluster[1].channel, topic="orders")
    assert await keda.metric() == 1
    number = bus._bus.coordinators.number_of("g")
    assert number is not None
    if silent == "a leader":
        monkeypatch.setattr(cluster[1].topic("orders").partitions[0], "leader_id", None)
    else:
        monkeypatch.setattr(bus._bus.coordinators, "leader_of", lambda number: None)
    for call in (
        keda.stub.IsActive(keda.ref, timeout=10),
        keda.stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=keda.ref), timeout=10),
        keda.stub.StreamIsActive(keda.ref, timeout=10).read(),
    ):
        code, message = await refused(call)
        assert (code, "try again" in message) == ("UNAVAILABLE", True)
    assert (await keda.stub.GetMetricSpec(keda.ref, timeout=10)).metricSpecs
    monkeypatch.undo()
    assert await keda.metric() == 1
