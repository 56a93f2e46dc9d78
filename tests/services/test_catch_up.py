"""What exists is not refused by a node that has not heard of it yet; what does not exist is.

A node that can't tell says so.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from live_cluster import NODES, LiveCluster
from live_node import LiveNode
from postbus.v1 import error_pb2, group_pb2, publisher_pb2, subscriber_pb2, topic_pb2

from broker.controller.metadata_log import not_controller
from broker.replication.partitions import PartitionedTopic
from broker.services.catch_up import INDEX, CatchUpSettings


class Lagging:
    """A node whose image stands still while others go on, and who waits for it to catch up."""

    def __init__(self, cluster: LiveCluster) -> None:
        (controller,) = [node_id for node_id in NODES if cluster[node_id].node._bus.metadata_log.active]
        self.node_id, self.other_id = [node_id for node_id in NODES if node_id != controller]
        self.node, self.other = cluster[self.node_id], cluster[self.other_id]
        self.waiting = 0
        self._missed: list[tuple[int, bytes]] = []
        catch_up = self.node.node._cluster.catch_up
        catch_up._settings = CatchUpSettings(timeout_s=20.0)
        wait = catch_up.wait

        async def counted() -> None:
            self.waiting += 1
            await wait()

        catch_up.wait = counted  # type: ignore[method-assign]

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """At the end it is given what it missed."""
        raft: Any = self.node.node._bus.raft
        apply = raft._on_apply
        raft._on_apply = lambda index, data: self._missed.append((index, data))
        try:
            yield
        finally:
            raft._on_apply = apply
            for index, data in self._missed:
                apply(index, data)

    async def until_asked(self, count: int) -> None:
        """Until so many wait."""
        async with asyncio.timeout(20):
            while self.waiting < count:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)


@pytest.fixture
def lagging(cluster: LiveCluster) -> Lagging:
    """Not held back yet."""
    return Lagging(cluster)


async def create_at(node: LiveNode, topic: str) -> None:
    create = topic_pb2.CreateTopicRequest(name=topic, partition_count=1, replication_factor=3)
    await node.topics.CreateTopic(create, timeout=20)


def request(topic: str, value: bytes, partition: int = 0, **fields: Any) -> publisher_pb2.PublishRequest:
    published = publisher_pb2.PublishRequest(topic=topic, partition=partition, **fields)
    published.batch.records.add(value=value)
    return published


async def streamed(node: LiveNode, *published: publisher_pb2.PublishRequest) -> list[Any]:
    call = node.publisher.PublishStream(timeout=30)
    for number, one in enumerate(published):
        await call.write(publisher_pb2.PublishStreamRequest(correlation_id=number, publish=one))
    await call.done_writing()
    acks: list[Any] = []
    while (response := await call.read()) is not grpc.aio.EOF:
        acks += response.acks
    return acks


async def started(node: LiveNode, topic: str, **start: Any) -> Any:
    call = node.subscriber.Subscribe(timeout=30)
    start["topics"] = [subscriber_pb2.TopicSelector(topic=topic)]
    await call.write(subscriber_pb2.SubscribeRequest(start=subscriber_pb2.SubscribeStart(**start)))
    response = await call.read()
    assert response.HasField("started"), response
    return call


async def test_a_topic_made_through_another_node_a_moment_ago(lagging: Lagging) -> None:
    """Every way to name it waits for this node to hear of it, and then works."""
    node = lagging.node
    with lagging.held_back():
        await create_at(lagging.other, "new")
        await lagging.other.groups.CreateGroup(group_pb2.CreateGroupRequest(name="outside"), timeout=20)
        assert node.node._bus.partitions.find_name("new") is None
        commit = group_pb2.CommitOffsetsRequest(
            group="outside", offsets=[{"position": {"topic": "new", "partition": 0, "offset": 0}}]
        )
        asked: list[Awaitable[Any]] = [
            node.publisher.Publish(request("new", b"unary"), timeout=30),
            streamed(node, request("new", b"streamed"), request("new", b"after it")),
            started(node, "new"),
            started(node, "new", group="g"),
            node.subscriber.Fetch(subscriber_pb2.FetchRequest(topic="new"), timeout=30),
            node.topics.GetTopic(topic_pb2.GetTopicRequest(name="new"), timeout=30),
            node.topics.ListPartitions(topic_pb2.ListPartitionsRequest(topic="new"), timeout=30),
            node.topics.ListOffsets(topic_pb2.ListOffsetsRequest(topic="new"), timeout=30),
            node.topics.DeleteRecords(topic_pb2.DeleteRecordsRequest(topic="new", before={"offset": 0}), timeout=30),
            node.groups.CommitOffsets(commit, timeout=30),
        ]
        tasks = [asyncio.ensure_future(each) for each in asked]
        await lagging.until_asked(len(tasks))
        assert not any(task.done() for task in tasks)
    unary, acks, plain, member, *_, partitions, offsets, deleted, committed = await asyncio.gather(*tasks)
    assert unary.ranges and all(ack.HasField("result") for ack in acks)
    assert acks[0].result.ranges[0].base_offset < acks[1].result.ranges[0].base_offset
    assert len(partitions.partitions) == len(offsets.partitions) == len(deleted.partitions) == 1
    assert not deleted.partitions[0].HasField("failure")
    assert [each.failure.message for each in committed.report.rejected] == []
    for call in (plain, member):
        call.cancel()


async def test_a_partition_added_and_a_producer_id_given_through_another_node(
    cluster: LiveCluster, lagging: Lagging
) -> None:
    """Neither is refused."""
    await cluster.create("t", 1)
    node = lagging.node
    with lagging.held_back():
        added = topic_pb2.AddPartitionsRequest(name="t", partition_count=2)
        await lagging.other.topics.AddPartitions(added, timeout=20)
        producer = await lagging.other.publisher.InitProducer(publisher_pb2.InitProducerRequest(), timeout=20)
        sequence = publisher_pb2.ProducerSequence(id=producer.id, epoch=producer.epoch, sequence=0)
        tasks = [
            asyncio.ensure_future(each)
            for each in (
                node.publisher.Publish(request("t", b"new partition", 1), timeout=30),
                node.publisher.Publish(request("t", b"new producer", producer=sequence), timeout=30),
                streamed(node, request("t", b"again", producer=sequence)),
                node.publisher.InitProducer(
                    publisher_pb2.InitProducerRequest(id=producer.id, epoch=producer.epoch), timeout=30
                ),
            )
        ]
        await lagging.until_asked(len(tasks))
        assert not any(task.done() for task in tasks)
    first, second, (third,), raised = await asyncio.gather(*tasks)
    assert first.ranges[0].partition == 1
    assert second.ranges[0].base_offset == third.result.ranges[0].base_offset == 0
    assert raised.epoch == producer.epoch + 1


async def test_a_member_of_a_node_that_lags_reads_new_partitions_later(cluster: LiveCluster, lagging: Lagging) -> None:
    """What its coordinator gives it and its node does not know yet is not lost."""
    await cluster.create("t", 1)
    groups = cluster[1].node._bus.partitions.internal("__groups")
    assert groups is not None
    group = ""
    async with asyncio.timeout(30):  # a node that was late leads only after a while
        while not (group := _coordinated_elsewhere(groups, lagging.node_id)):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.02)
    member = await started(lagging.node, "t", group=group)
    with lagging.held_back():
        added = topic_pb2.AddPartitionsRequest(name="t", partition_count=3)
        await lagging.other.topics.AddPartitions(added, timeout=20)
        async with asyncio.timeout(20):
            while len(await owned(lagging.other, group)) < 3:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)
    for partition in range(3):
        await lagging.other.publisher.Publish(request("t", b"v", partition), timeout=20)
    seen: set[int] = set()
    while seen != {0, 1, 2}:
        seen |= {batch.delivery.partition for batch in (await member.read()).batches}
    member.cancel()


def _coordinated_elsewhere(groups: PartitionedTopic, node_id: int) -> str:
    """A group whose coordinator is on another node; none: empty."""
    for name in map("g{}".format, range(1000)):
        if groups.partitions[zlib.crc32(name.encode()) % len(groups.partitions)].leader_id not in {node_id, 0, None}:
            return name
    return ""


async def owned(node: LiveNode, group: str) -> set[int]:
    found = (await node.groups.GetGroup(group_pb2.GetGroupRequest(name=group), timeout=10)).group
    return {place.partition for member in found.members for place in member.assigned}


async def test_what_does_not_exist_is_refused_by_each_node(cluster: LiveCluster) -> None:
    """After a question of which there is one open at a time."""
    await cluster.create("t", 1)
    for node_id in NODES:
        questions = open_questions = most_open = 0
        start_call = cluster[node_id].node._bus.calls.start_call

        def counted(asked: int, method: str, *rest: Any, original: Any = start_call, **named: Any) -> Any:
            nonlocal questions, open_questions, most_open
            future = original(asked, method, *rest, **named)
            if method == INDEX:
                questions, open_questions = questions + 1, open_questions + 1
                most_open = max(most_open, open_questions)
                future.add_done_callback(closed)
            return future

        def closed(_: object) -> None:
            nonlocal open_questions
            open_questions -= 1

        cluster[node_id].node._bus.calls.start_call = counted  # type: ignore[method-assign]
        node = cluster[node_id]
        asked: list[Awaitable[Any]] = [
            *(node.publisher.Publish(request("missing", b"v"), timeout=20) for _ in range(20)),
            *(node.topics.GetTopic(topic_pb2.GetTopicRequest(name="missing"), timeout=20) for _ in range(20)),
            node.publisher.Publish(request("t", b"v", 1), timeout=20),
            started(node, "missing"),
        ]
        refusals = await asyncio.gather(*asked, return_exceptions=True)
        assert {refused.code() for refused in refusals} == {grpc.StatusCode.NOT_FOUND}  # type: ignore[union-attr]
        assert most_open == 1
        unknown = publisher_pb2.ProducerSequence(id=1 << 40, epoch=0, sequence=0)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await node.publisher.Publish(request("t", b"v", producer=unknown), timeout=20)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        before = questions
        await node.publisher.Publish(request("t", b"v"), timeout=20)
        await node.subscriber.Fetch(subscriber_pb2.FetchRequest(topic="t"), timeout=20)
        assert questions == before, "what is known costs no question"


async def test_without_a_controller_nobody_is_told_that_something_does_not_exist(cluster: LiveCluster) -> None:
    """UNAVAILABLE; on a stream what follows is refused too, so that order holds; what is known goes on."""
    await cluster.create("t", 1)

    async def nobody(*_: object) -> bytes:
        raise not_controller()

    for node_id in NODES:
        cluster[node_id].node._bus.calls.handlers[INDEX] = nobody
        cluster[node_id].node._cluster.catch_up._settings = CatchUpSettings(timeout_s=0.2)
    for node_id in NODES:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cluster[node_id].publisher.Publish(request("missing", b"v"), timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        acks = await streamed(cluster[node_id], *(request(name, b"v") for name in ("missing", "missing", "t")))
        assert [ack.failure.reason for ack in acks] == [
            error_pb2.ERROR_REASON_NO_LEADER,
            error_pb2.ERROR_REASON_PREDECESSOR_FAILED,
            error_pb2.ERROR_REASON_UNSPECIFIED,
        ]


async def test_whoever_comes_while_a_question_is_open_waits_for_the_next(
    cluster: LiveCluster, lagging: Lagging
) -> None:
    """An answer to what was asked before may be too old for it."""
    node, gates = lagging.node, list[asyncio.Future[None]]()
    (controller,) = set(NODES) - {lagging.node_id, lagging.other_id}
    handlers = cluster[controller].node._bus.calls.handlers
    original = handlers[INDEX]

    async def answer(*given: Any) -> bytes:
        told = await original(*given)
        gates.append(asyncio.get_running_loop().create_future())
        await gates[-1]
        return told

    async def until_gates(count: int) -> None:
        async with asyncio.timeout(20):
            while len(gates) < count:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)

    handlers[INDEX] = answer
    early = asyncio.ensure_future(node.topics.GetTopic(topic_pb2.GetTopicRequest(name="new"), timeout=30))
    await until_gates(1)
    with lagging.held_back():
        await create_at(lagging.other, "new")
        late = asyncio.ensure_future(node.publisher.Publish(request("new", b"late"), timeout=30))
        await lagging.until_asked(2)
        gates[0].set_result(None)
        with pytest.raises(grpc.aio.AioRpcError, match="does not exist"):
            await early
        await until_gates(2)
        gates[1].set_result(None)
    assert (await late).ranges
