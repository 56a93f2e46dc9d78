"""Any of three nodes serves everything: what it does not lead goes to who does, and moves of leaders disturb nobody."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from live_cluster import NODES, LiveCluster
from postbus.v1 import cluster_pb2, error_pb2, publisher_pb2, subscriber_pb2, topic_pb2

from broker.errors import PostbusError, Reason
from broker.replication.partition import Partition
from broker.services.forwarding import Forwarding
from broker.services.partition_calls import ENDS


def request(topic: str, *values: bytes, key: bytes | None = None, **fields: Any) -> publisher_pb2.PublishRequest:
    published = publisher_pb2.PublishRequest(topic=topic, **fields)
    for value in values:
        published.batch.records.add(key=key, value=value)
    return published


def keyed(topic: str, count: int, **fields: Any) -> publisher_pb2.PublishRequest:
    """A record for each of so many keys: enough that every partition gets some."""
    published = publisher_pb2.PublishRequest(topic=topic, **fields)
    for number in range(count):
        published.batch.records.add(key=b"%d" % number, value=b"%d" % number)
    return published


async def contents(cluster: LiveCluster, node_id: int, topic: str) -> dict[int, list[bytes]]:
    """Everything that is in a topic now, by partition, as a node serves it."""
    selector = subscriber_pb2.TopicSelector(topic=topic)
    selector.stop_at.edge = subscriber_pb2.LOG_EDGE_LATEST
    call = cluster[node_id].subscriber.Subscribe(timeout=30)
    await call.write(subscriber_pb2.SubscribeRequest(start=subscriber_pb2.SubscribeStart(topics=[selector])))
    found: dict[int, list[bytes]] = {}
    while (response := await call.read()) is not grpc.aio.EOF:
        for batch in response.batches:
            assert batch.delivery.base_offset == len(found.setdefault(batch.delivery.partition, []))
            found[batch.delivery.partition] += [record.value for record in batch.batch.records]
    return found


async def test_each_node_takes_records_for_each_partition_and_serves_them(cluster: LiveCluster) -> None:
    """Given, by key and without one; what was acknowledged anywhere is read everywhere."""
    await cluster.create("t")
    assert {cluster.leader("t", partition) for partition in range(3)} == set(NODES)
    sent = 0
    for node_id in NODES:
        publisher = cluster[node_id].publisher
        for partition in range(3):
            (part,) = (await publisher.Publish(request("t", b"given", partition=partition), timeout=10)).ranges
            assert (part.partition, part.record_count) == (partition, 1)
        split = (await publisher.Publish(keyed("t", 20), timeout=10)).ranges
        assert sorted(index for part in split for index in part.record_indexes) == list(range(20))
        (part,) = (await publisher.Publish(request("t", b"keyless"), timeout=10)).ranges
        assert cluster.leader("t", part.partition) == node_id, "no hop where none is needed"
        sent += 3 + 20 + 1
        everywhere = [await contents(cluster, other, "t") for other in NODES]
        assert everywhere[0] == everywhere[1] == everywhere[2]
        assert sum(map(len, everywhere[0].values())) == sent


async def test_a_retry_through_another_node_appends_nothing_twice(cluster: LiveCluster) -> None:
    """By request id, over several partitions, also when keys map elsewhere since; by sequence."""
    await cluster.create("t", 2)
    first = await cluster[1].publisher.Publish(keyed("t", 20, request_id="r"), timeout=10)
    places = sorted((part.partition, part.base_offset, tuple(part.record_indexes)) for part in first.ranges)
    for node_id in (2, 3):
        again = await cluster[node_id].publisher.Publish(keyed("t", 20, request_id="r"), timeout=10)
        assert all(part.duplicate for part in again.ranges)
        assert sorted((part.partition, part.base_offset, tuple(part.record_indexes)) for part in again.ranges) == places
    added = topic_pb2.AddPartitionsRequest(name="t", partition_count=7)
    await cluster[2].topics.AddPartitions(added, timeout=10)
    await cluster.agree()
    again = await cluster[3].publisher.Publish(keyed("t", 20, request_id="r"), timeout=10)
    assert sorted((part.partition, part.base_offset, tuple(part.record_indexes)) for part in again.ranges) == places
    producer = await cluster[1].publisher.InitProducer(publisher_pb2.InitProducerRequest(), timeout=10)
    sequence = publisher_pb2.ProducerSequence(id=producer.id, epoch=producer.epoch, sequence=0)
    await cluster.agree()
    offsets = []
    for node_id in NODES:
        published = request("t", b"v", partition=1, producer=sequence)
        (part,) = (await cluster[node_id].publisher.Publish(published, timeout=10)).ranges
        offsets.append((part.base_offset, part.duplicate))
    assert offsets == [(offsets[0][0], False), (offsets[0][0], True), (offsets[0][0], True)]


async def test_who_wants_the_leader_alone_is_told_where_it_is(cluster: LiveCluster) -> None:
    """leader_only: NOT_LEADER with its id, endpoint and epoch; there it works."""
    await cluster.create("t")
    await cluster.led("t", 0, by=2)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cluster[1].publisher.Publish(request("t", b"v", partition=0, leader_only=True), timeout=10)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    trailers = dict(refused.value.trailing_metadata() or ())
    assert trailers["postbus-reason"] == "NOT_LEADER"
    details = trailers["grpc-status-details-bin"]
    assert b"127.0.0.1:%d" % cluster[2].port in details and b"leader_epoch" in details
    await cluster[2].publisher.Publish(request("t", b"v", partition=0, leader_only=True), timeout=10)


async def test_preconditions_and_refusals_come_from_the_leader(cluster: LiveCluster) -> None:
    """As if it had been asked itself; on a stream they block nothing."""
    await cluster.create("t")
    await cluster.led("t", 0, by=2)
    wrong = request("t", b"v", partition=0)
    wrong.precondition.end_offset = 7
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cluster[1].publisher.Publish(wrong, timeout=10)
    assert dict(refused.value.trailing_metadata() or ())["postbus-reason"] == "PRECONDITION_NOT_MET"
    right = request("t", b"v", partition=0)
    right.precondition.end_offset = 0
    call = cluster[1].publisher.PublishStream(timeout=20)
    for number, one in enumerate((wrong, right, request("t", b"w", partition=0))):
        await call.write(publisher_pb2.PublishStreamRequest(correlation_id=number, publish=one))
    await call.done_writing()
    acks: list[publisher_pb2.PublishAck] = []
    while (response := await call.read()) is not grpc.aio.EOF:
        acks += response.acks
    assert [ack.failure.reason for ack in acks] == [error_pb2.ERROR_REASON_PRECONDITION_NOT_MET, 0, 0]
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("through", [1, 2])
async def test_a_leader_that_was_succeeded_refuses_nothing_for_good(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch, through: int
) -> None:
    """While one that may lead in its place does not say that it doesn't, a failed precondition is no answer."""
    await cluster.create("t", 1)
    await cluster.led("t", 0, by=2)
    wrong = request("t", b"v", partition=0)
    wrong.precondition.end_offset = 7
    asked = asyncio.Event()
    follower = cluster[3].topic("t").partitions[0]
    monkeypatch.setattr(follower, "leader_epoch", follower.leader_epoch + 1)
    still_leads = cluster[2].node._bus.partitions.still_leads

    async def noted(partition: Partition) -> bool:
        leads = await still_leads(partition)
        asked.set()
        return leads

    for asker in (cluster[2].node._bus.forwarding, cluster[2].node._bus.partition_calls):
        monkeypatch.setattr(asker, "_still_leads", noted)
    call = cluster[through].publisher.Publish(wrong, timeout=20)
    waiting = asyncio.ensure_future(asyncio.wait_for(call, 20))
    async with asyncio.timeout(20):
        await asked.wait()
    assert not waiting.done()
    monkeypatch.undo()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await waiting
    assert dict(refused.value.trailing_metadata() or ())["postbus-reason"] == "PRECONDITION_NOT_MET"


async def test_who_waits_at_a_node_that_is_cut_off_is_told_why(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UNAVAILABLE, long before the request's time is over, with who is missing; unknown if it was on its way."""
    await cluster.create("t", 1)
    await cluster.led("t", 0, by=1)
    bus = cluster[1].node._bus
    partition = cluster[1].topic("t").partitions[0]
    monkeypatch.setattr(type(bus.session), "silence_s", 60.0)
    monkeypatch.setattr(bus.metadata_log, "quorum_problem", lambda: "2 of 3 controllers unreachable: 2 (x), 3 (y)")
    monkeypatch.setattr(partition, "when_safe", lambda end_offset, acks, done: None)
    with pytest.raises(grpc.aio.AioRpcError, match="2 of 3 controllers unreachable") as unknown:
        await cluster[1].publisher.Publish(request("t", b"v", partition=0), timeout=20)
    assert unknown.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(unknown.value.trailing_metadata() or ())["postbus-outcome-unknown"] == "true"
    nobody = PostbusError(Reason.ERROR_REASON_NO_LEADER, "nobody", retry_after_ms=1)
    monkeypatch.setattr(partition, "writable_error", lambda: nobody)
    with pytest.raises(grpc.aio.AioRpcError, match="2 of 3 controllers unreachable") as refused:
        await cluster[1].publisher.Publish(request("t", b"v", partition=0), timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(refused.value.trailing_metadata() or ())["postbus-outcome-unknown"] == "false"


async def streamed(
    cluster: LiveCluster, node_id: int, published: AsyncIterator[publisher_pb2.PublishRequest]
) -> list[publisher_pb2.PublishAck]:
    """All answers of a stream, which ends with OK."""
    call = cluster[node_id].publisher.PublishStream(timeout=60)

    async def send() -> None:
        number = 0
        async for one in published:
            await call.write(publisher_pb2.PublishStreamRequest(correlation_id=number, publish=one))
            number += 1
        await call.done_writing()

    sending = asyncio.create_task(send())
    acks: list[publisher_pb2.PublishAck] = []
    while (response := await call.read()) is not grpc.aio.EOF:
        acks += response.acks
    await sending
    assert await call.code() is grpc.StatusCode.OK
    return acks


@pytest.mark.parametrize("with_ids", [True, False])
async def test_a_stream_of_records_outlives_moves_of_the_leader_in_order(
    cluster: LiveCluster, *, with_ids: bool
) -> None:
    """Graceful moves fail nothing; each record is there once, in the order in which it was sent."""
    await cluster.create("t", 1)
    done = asyncio.Event()
    sent = 0

    async def records() -> AsyncIterator[publisher_pb2.PublishRequest]:
        nonlocal sent
        while not done.is_set() or sent < 200:
            request_id = f"r{sent}" if with_ids else ""
            yield request("t", b"%d" % sent, partition=0, request_id=request_id)
            sent += 1
            if sent % 10 == 0:
                await asyncio.sleep(0.001)

    stream = asyncio.create_task(streamed(cluster, 1, records()))
    for leader in (2, 3, 1, 2, 1):
        await cluster.led("t", 0, by=leader)
    done.set()
    acks = await stream
    assert [ack.failure.message for ack in acks if ack.HasField("failure")] == []
    assert [ack.correlation_id for ack in acks] == list(range(sent))
    assert [ack.result.ranges[0].base_offset for ack in acks] == list(range(sent))
    assert await contents(cluster, 3, "t") == {0: [b"%d" % number for number in range(sent)]}


@pytest.mark.parametrize("with_ids", [True, False])
async def test_a_leader_that_vanishes_takes_no_acknowledged_record_with_it(
    cluster: LiveCluster, *, with_ids: bool
) -> None:
    """With request ids nobody notices. Without, what was on its way fails as unknown, and what follows is refused."""
    await cluster.create("t", 1)
    await cluster.led("t", 0, by=2)
    done = asyncio.Event()
    sent = 0

    async def records() -> AsyncIterator[publisher_pb2.PublishRequest]:
        nonlocal sent
        while not done.is_set() or sent < 200:
            request_id = f"r{sent}" if with_ids else ""
            yield request("t", b"%d" % sent, partition=0, request_id=request_id)
            sent += 1
            if sent % 10 == 0:
                await asyncio.sleep(0.001)

    stream = asyncio.create_task(streamed(cluster, 1, records()))
    async with asyncio.timeout(30):
        while sent < 100:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        transport = cluster[2].node._bus._transport
        assert transport is not None
        await transport.stop()  # type: ignore[attr-defined]
        while cluster.leader("t", 0) in {0, 2}:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    done.set()
    acks = await stream
    assert len(acks) == sent
    there = (await contents(cluster, 3, "t"))[0]
    failed = [ack for ack in acks if ack.HasField("failure")]
    for ack in acks:
        if ack.HasField("result"):
            assert there[ack.result.ranges[0].base_offset] == b"%d" % ack.correlation_id
    values = [int(value) for value in there]
    assert values == sorted(set(values)), "in order, and once"
    if with_ids:
        assert not failed and values == list(range(sent))
        return
    first = next((index for index, ack in enumerate(failed) if not ack.failure.outcome_unknown), len(failed))
    assert all(ack.failure.reason == error_pb2.ERROR_REASON_PREDECESSOR_FAILED for ack in failed[first:])
    assert not {ack.correlation_id for ack in failed[first:]} & set(values)


async def test_a_subscriber_notices_nothing_of_a_move(cluster: LiveCluster) -> None:
    """Its stream goes on: without an error, a gap or a repeat, whichever node holds it."""
    await cluster.create("t", 1)
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")])
    calls = []
    for node_id in NODES:
        call = cluster[node_id].subscriber.Subscribe(timeout=60)
        await call.write(subscriber_pb2.SubscribeRequest(start=start))
        calls.append(call)
    count = 0
    for leader in (2, 3, 1):
        for _ in range(20):
            await cluster[1 + count % 3].publisher.Publish(request("t", b"%d" % count, partition=0), timeout=10)
            count += 1
        await cluster.led("t", 0, by=leader)
    for call in calls:
        got: list[bytes] = []
        while len(got) < count:
            for batch in (await call.read()).batches:
                assert batch.delivery.base_offset == len(got)
                got += [record.value for record in batch.batch.records]
        assert got == [b"%d" % number for number in range(count)]
        call.cancel()


async def test_latest_is_after_all_that_was_acknowledged_anywhere(cluster: LiveCluster) -> None:
    """A subscriber that begins at the end, at a node that does not lead, sees what comes and nothing before."""
    await cluster.create("t", 1)
    await cluster.led("t", 0, by=2)
    for number in range(20):
        await cluster[2].publisher.Publish(request("t", b"before", partition=0), timeout=10)
        offsets = await cluster[3].topics.ListOffsets(
            topic_pb2.ListOffsetsRequest(topic="t", at={"edge": subscriber_pb2.LOG_EDGE_LATEST}), timeout=10
        )
        assert (offsets.partitions[0].offset, offsets.partitions[0].high_watermark) == (number + 1, number + 1)
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")])
    start.start_at.edge = subscriber_pb2.LOG_EDGE_LATEST
    call = cluster[3].subscriber.Subscribe(timeout=30)
    await call.write(subscriber_pb2.SubscribeRequest(start=start))
    assert (await call.read()).started.positions[0].offset == 20
    await cluster[1].publisher.Publish(request("t", b"after", partition=0), timeout=10)
    while not (batches := (await call.read()).batches):
        pass
    assert batches[0].batch.records[0].value == b"after"
    call.cancel()


async def test_records_are_deleted_at_the_leaders_and_gone_everywhere(cluster: LiveCluster) -> None:
    """Each partition has its own outcome, at whichever node it is asked for."""
    await cluster.create("t")
    for partition in range(3):
        await cluster[1].publisher.Publish(request("t", b"1", b"2", b"3", partition=partition), timeout=10)
    trim = topic_pb2.DeleteRecordsRequest(topic="t", before=subscriber_pb2.StartPosition(offset=2))
    for deleted in (await cluster[3].topics.DeleteRecords(trim, timeout=10)).partitions:
        assert (deleted.log_start_offset, deleted.HasField("failure")) == (2, False)
    fetch = subscriber_pb2.FetchRequest(topic="t", max_wait=Duration(seconds=5))
    async with asyncio.timeout(20):
        for node_id in NODES:
            # Followers hear of it a moment later.
            while any(p.log.log_start_offset < 2 for p in cluster[node_id].topic("t").partitions):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            answer = await cluster[node_id].subscriber.Fetch(fetch, timeout=10)
            assert [len(batch.batch.records) for batch in answer.batches] == [1, 1, 1]
    trim.before.offset = 9
    for deleted in (await cluster[2].topics.DeleteRecords(trim, timeout=10)).partitions:
        assert deleted.failure.reason == error_pb2.ERROR_REASON_OFFSET_OUT_OF_RANGE


async def test_partitions_are_described_with_every_copy_and_the_dead_are_unknown(cluster: LiveCluster) -> None:
    """A node that does not answer is no error."""
    await cluster.create("t")
    await cluster.led("t", 0, by=1)
    await cluster[1].publisher.Publish(request("t", b"v", partition=0), timeout=10)
    listed = topic_pb2.ListPartitionsRequest(topic="t")
    first = (await cluster[2].topics.ListPartitions(listed, timeout=10)).partitions[0]
    assert (first.leader_node_id, first.high_watermark) == (1, 1)
    assert [copy.node_id for copy in first.replicas] == [1, 2, 3]
    assert all(copy.in_sync and copy.durable_end_offset == 1 and not copy.unknown for copy in first.replicas)
    await cluster[3].node.stop()
    first = (await cluster[2].topics.ListPartitions(listed, timeout=10)).partitions[0]
    assert [copy.unknown for copy in first.replicas] == [False, False, True]


async def test_metadata_tells_who_leads_and_its_watch_only_what_changed(cluster: LiveCluster) -> None:
    """From any node: nodes, leaders, ISR; then a move as the one partition that moved."""
    await cluster.create("t")
    await cluster.led("t", 0, by=1)
    metadata = await cluster.cluster(2).GetMetadata(cluster_pb2.GetMetadataRequest(topics=["t"]), timeout=10)
    assert [node.node_id for node in metadata.nodes] == [1, 2, 3]
    assert {node.endpoint for node in metadata.nodes} == {f"127.0.0.1:{cluster[n].port}" for n in NODES}
    assert all(node.voter and node.state == cluster_pb2.NODE_STATE_ACTIVE for node in metadata.nodes)
    assert metadata.controller_node_id in NODES
    partition = metadata.topics[0].partitions[0]
    assert (partition.leader_node_id, set(partition.isr_node_ids)) == (1, {1, 2, 3})
    watch = cluster.cluster(3).WatchMetadata(
        cluster_pb2.WatchMetadataRequest(topics=["t"], after_epoch=metadata.metadata_epoch), timeout=30
    )
    moved = asyncio.create_task(cluster.led("t", 0, by=2))
    while True:
        change = await watch.read()
        assert not change.snapshot and [topic.name for topic in change.topics] == ["t"]
        assert [one.partition for one in change.topics[0].partitions] == [0]
        if change.topics[0].partitions[0].leader_node_id == 2:
            break
    await moved
    watch.cancel()


async def test_the_quorum_is_shown_as_its_leader_sees_it(cluster: LiveCluster) -> None:
    """At any node: who votes, and how far each is."""
    async with asyncio.timeout(20):
        for node_id in NODES:
            quorum = await cluster.cluster(node_id).GetQuorum(cluster_pb2.GetQuorumRequest(), timeout=10)
            assert quorum.leader_node_id in NODES and quorum.term >= 1
            assert [(member.node_id, member.voter) for member in quorum.members] == [(n, True) for n in NODES]
            assert all(member.match_index > 0 for member in quorum.members)


async def test_a_drained_node_leads_nothing_and_still_serves(cluster: LiveCluster) -> None:
    """Until it is taken back."""
    await cluster.create("t")
    async with asyncio.timeout(30):
        while True:
            drained = await cluster.cluster(1).DrainNode(cluster_pb2.DrainNodeRequest(node_id=3), timeout=10)
            if not drained.leading_count:
                break
            await asyncio.sleep(0.02)
    assert drained.replica_count >= 3
    await cluster.agree()
    assert 3 not in {cluster.leader("t", partition) for partition in range(3)}
    await cluster[3].publisher.Publish(keyed("t", 20), timeout=10)
    await cluster.cluster(3).UndrainNode(cluster_pb2.UndrainNodeRequest(node_id=3), timeout=10)
    metadata = await cluster.cluster(3).GetMetadata(cluster_pb2.GetMetadataRequest(), timeout=10)
    assert metadata.nodes[2].state == cluster_pb2.NODE_STATE_ACTIVE


async def test_without_a_leader_the_whole_timeout_is_waited_and_then_told(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was appended: UNAVAILABLE and retriable, on a stream too; what follows there is refused."""
    await cluster.create("t", 1)
    partition = cluster[1].topic("t").partitions[0]
    nobody = PostbusError(Reason.ERROR_REASON_NO_LEADER, "nobody", retry_after_ms=1)
    monkeypatch.setattr(type(partition), "writable_error", lambda self: nobody)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cluster[1].publisher.Publish(request("t", b"v", partition=0), timeout=1)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(refused.value.trailing_metadata() or ())["postbus-outcome-unknown"] == "false"
    call = cluster[2].publisher.PublishStream(timeout=20)
    soon, late = Duration(nanos=300_000_000), Duration(seconds=15)
    for number, timeout in enumerate((soon, late)):
        publish = request("t", b"%d" % number, partition=0)
        await call.write(publisher_pb2.PublishStreamRequest(correlation_id=number, publish=publish, timeout=timeout))
    acks: list[publisher_pb2.PublishAck] = []
    while len(acks) < 2:
        acks += (await call.read()).acks
    assert [ack.failure.reason for ack in acks] == [
        error_pb2.ERROR_REASON_NO_LEADER,
        error_pb2.ERROR_REASON_PREDECESSOR_FAILED,
    ]
    call.cancel()


async def test_what_clients_left_behind_is_not_published_later(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that waits for a leader goes with its client."""
    await cluster.create("t", 1)
    partition = cluster[1].topic("t").partitions[0]
    nobody = PostbusError(Reason.ERROR_REASON_NO_LEADER, "nobody", retry_after_ms=1)
    monkeypatch.setattr(type(partition), "writable_error", lambda self: nobody)
    submitted = asyncio.Event()
    submit = Forwarding.submit

    def noted(self: Forwarding, work: Any) -> None:
        submit(self, work)
        submitted.set()

    monkeypatch.setattr(Forwarding, "submit", noted)
    call = cluster[1].publisher.Publish(request("t", b"left behind", partition=0), timeout=30)
    waiting = asyncio.create_task(asyncio.wait_for(call, 30))
    async with asyncio.timeout(20):
        await submitted.wait()
        call.cancel()
        await asyncio.wait([waiting])
        forwarding = cluster[1].node._bus.forwarding
        while not all(route.idle for route in forwarding._routes.values()):  # noqa: ASYNC110 - until it has heard
            await asyncio.sleep(0)
    # What was on its way to another node that leads is refused there by now: calls are started in order.
    await cluster[1].topics.ListPartitions(topic_pb2.ListPartitionsRequest(topic="t"), timeout=20)
    monkeypatch.undo()
    await cluster[1].publisher.Publish(request("t", b"later", partition=0), timeout=10)
    assert await contents(cluster, 1, "t") == {0: [b"later"]}


@pytest.mark.parametrize("replicas", [3, 1])
async def test_a_fetch_sees_what_was_acknowledged_before_it_anywhere(cluster: LiveCluster, *, replicas: int) -> None:
    """Through each node, with a replica or without: nothing that another node has acknowledged is missing."""
    await cluster[1].topics.CreateTopic(
        topic_pb2.CreateTopicRequest(name="t", partition_count=3, replication_factor=replicas), timeout=20
    )
    await cluster.agree()
    at: dict[int, list[Any]] = {node_id: [] for node_id in NODES}
    seen = dict.fromkeys(NODES, 0)
    for number in range(30):
        await cluster[1 + number % 3].publisher.Publish(request("t", b"v", partition=number % 3), timeout=10)
        for node_id in NODES[: 1 + number % 3]:
            fetch = subscriber_pb2.FetchRequest(topic="t", positions=at[node_id])
            answer = await cluster[node_id].subscriber.Fetch(fetch, timeout=10)
            at[node_id] = list(answer.next)
            seen[node_id] += sum(len(batch.batch.records) for batch in answer.batches)
            assert seen[node_id] == number + 1


async def test_a_fetch_asks_nobody_while_there_is_plenty(cluster: LiveCluster) -> None:
    """An answer that is full needs no leader; one that ends at the end costs each other leader one question."""
    await cluster.create("t")
    for partition in range(3):
        await cluster[1].publisher.Publish(request("t", *[bytes(1000)] * 200, partition=partition), timeout=10)
    for node_id in NODES:
        asked: list[str] = []
        calls = cluster[node_id].node._bus.calls
        start_call = calls.start_call

        def noted(
            to: int, method: str, *given: Any, asked: list[str] = asked, original: Any = start_call, **named: Any
        ) -> Any:
            asked.append(method)
            return original(to, method, *given, **named)

        async with asyncio.timeout(20):
            while any(one.high_watermark < 200 for one in cluster[node_id].topic("t").partitions):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        calls.start_call = noted  # type: ignore[method-assign]
        places: list[Any] = []
        for _ in range(5):
            fetch = subscriber_pb2.FetchRequest(topic="t", max_records=50, positions=places)
            places = list((await cluster[node_id].subscriber.Fetch(fetch, timeout=10)).next)
        assert asked.count(ENDS) == 0
        fetch = subscriber_pb2.FetchRequest(topic="t", positions=places)
        await cluster[node_id].subscriber.Fetch(fetch, timeout=10)
        assert asked.count(ENDS) == len(NODES) - 1


async def test_an_empty_fetch_that_nobody_confirms_says_so(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known is served; that there is no more is not claimed without the leader."""
    await cluster.create("t", 1)
    await cluster.led("t", 0, by=2)
    await cluster[2].publisher.Publish(request("t", b"v", partition=0), timeout=10)
    fetch = subscriber_pb2.FetchRequest(topic="t")
    answer = await cluster[1].subscriber.Fetch(fetch, timeout=10)

    async def silent(*_: object) -> bytes:
        raise PostbusError(Reason.ERROR_REASON_NO_LEADER, "nobody", retry_after_ms=1)

    monkeypatch.setitem(cluster[2].node._bus.calls.handlers, ENDS, silent)
    assert (await cluster[1].subscriber.Fetch(fetch, timeout=10)).batches == answer.batches
    fetch.positions.extend(answer.next)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cluster[1].subscriber.Fetch(fetch, timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    monkeypatch.undo()
    assert not (await cluster[1].subscriber.Fetch(fetch, timeout=10)).batches


async def test_the_cluster_has_what_its_oldest_node_has(cluster: LiveCluster) -> None:
    """Through any node: version and features are those of the lowest of all."""
    asked = cluster_pb2.GetServerFeaturesRequest()
    assert "ordered-groups" in (await cluster.cluster(1).GetServerFeatures(asked, timeout=10)).features
    metadata_log = cluster[1].node._bus.metadata_log
    nodes = metadata_log.state.nodes
    old = {**nodes, 2: replace(nodes[2], version="0.0.9"), 3: replace(nodes[3], version="0.10.0")}
    metadata_log.state = replace(metadata_log.state, nodes=old)
    told = await cluster.cluster(1).GetServerFeatures(asked, timeout=10)
    assert (told.version, list(told.features)) == ("0.0.9", [])


async def test_caught_up_is_not_told_before_what_was_acknowledged_came(cluster: LiveCluster) -> None:
    """A follower that has not heard of its leader's end asks for it: whoever stops then has seen all."""
    await cluster.create("t", 1)
    await cluster.led("t", 0, by=2)
    for count in range(1, 11):
        await cluster[2].publisher.Publish(request("t", b"v", partition=0), timeout=10)
        call = cluster[3].subscriber.Subscribe(timeout=30)
        start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")])
        await call.write(subscriber_pb2.SubscribeRequest(start=start))
        seen = 0
        while not (response := await call.read()).caught_up:
            seen += sum(len(batch.batch.records) for batch in response.batches)
        assert (seen, response.caught_up[0].offset) == (count, count)
        call.cancel()
