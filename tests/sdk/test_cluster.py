"""Several nodes: straight to leaders where that is possible, and on with others when one is gone."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from fake_broker import FakeBroker
from postbus import Client
from postbus.v1 import cluster_pb2

State = cluster_pb2.NodeState


class Cluster:
    """Three fakes with the same logs: any takes everything, as in a real one."""

    def __init__(self) -> None:
        self.nodes = [FakeBroker() for _ in range(3)]
        for node in self.nodes:
            node.topics = self.nodes[0].topics
            node.committed = self.nodes[0].committed
        self.nodes[0].create("orders", 3)
        self.leaders = [1, 2, 3]
        self.states = [State.NODE_STATE_ACTIVE] * 3
        self.epoch = 0

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()
        await self.tell()

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()

    async def tell(self) -> None:
        """All nodes tell all there is."""
        self.epoch += 1
        told = cluster_pb2.WatchMetadataResponse(metadata_epoch=self.epoch, snapshot=True)
        for number, node in enumerate(self.nodes):
            told.nodes.add(node_id=number + 1, endpoint=node.address, state=self.states[number])
        topic = told.topics.add(name="orders", topic_id="id-orders")
        for partition, leader in enumerate(self.leaders):
            if leader:
                topic.partitions.add(partition=partition, leader_node_id=leader)
            else:
                topic.partitions.add(partition=partition)
        for node in self.nodes:
            await node.tell(told)

    def requests(self) -> list[int]:
        """Publish requests that each node has had."""
        return [node.publish_requests for node in self.nodes]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """Node N leads partition N - 1 of "orders"."""
    made = Cluster()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    """It was told of the first node only."""
    async with Client(cluster.nodes[0].address) as connected:
        yield connected


async def _until(client: Client, is_so: Callable[[], bool]) -> None:
    """Looks whenever the client hears of the cluster."""
    changed = asyncio.Event()
    client._directory.add_listener(lambda _: changed.set())
    while not is_so():
        changed.clear()
        await changed.wait()


async def _direct(client: Client, cluster: Cluster) -> None:
    """Until all nodes were seen."""
    await (await client.publish("orders", b"first", partition=0))
    await _until(client, lambda: all(client._directory.usable(node.address) for node in cluster.nodes))


async def _publish(client: Client, count: int, partition: int) -> None:
    deliveries = [await client.publish("orders", b"%d" % number, partition=partition) for number in range(count)]
    assert [(await each).offset is not None for each in deliveries]


async def test_records_go_straight_to_the_leader_of_their_partition(client: Client, cluster: Cluster) -> None:
    await _direct(client, cluster)
    before = cluster.requests()
    await _publish(client, 1, partition=2)
    await _publish(client, 1, partition=1)
    assert [now - then for now, then in zip(cluster.requests(), before, strict=True)] == [0, 1, 1]


async def test_a_publisher_that_is_told_not_to_stays_where_it_is(client: Client, cluster: Cluster) -> None:
    async with client.publisher(direct=False) as publisher:
        for partition in range(3):
            await (await publisher.publish("orders", b"x", partition=partition))
    assert cluster.requests() == [3, 0, 0]


async def test_when_a_leader_moves_records_follow_in_order(client: Client, cluster: Cluster) -> None:
    await _direct(client, cluster)
    deliveries = []
    for number in range(300):
        deliveries.append(await client.publish("orders", b"%d" % number, partition=2))
        if number % 10 == 0:
            await asyncio.sleep(0)
        if number % 100 == 50:
            cluster.leaders[2] = cluster.leaders[2] % 3 + 1
            await cluster.tell()
    await client.flush()
    assert cluster.nodes[0].partition("orders", 2).values() == [b"%d" % number for number in range(300)]
    leader = cluster.nodes[cluster.leaders[2] - 1]
    await _until(client, lambda: client._directory.address("orders", 2) == leader.address)
    before = leader.publish_requests
    await _publish(client, 1, partition=2)
    assert leader.publish_requests > before


async def test_a_node_that_dies_costs_nothing_but_a_moment(client: Client, cluster: Cluster) -> None:
    """Its partitions go to any other node, before the cluster says who leads; each record once, in order."""
    await _direct(client, cluster)
    for number in range(200):
        await client.publish("orders", b"%d" % number, partition=2)
        if number == 100:
            await asyncio.sleep(0)
            await cluster.nodes[2].stop()
    await client.flush()
    assert cluster.nodes[0].partition("orders", 2).values() == [b"%d" % number for number in range(200)]


async def test_when_the_given_address_dies_the_learned_ones_serve(client: Client, cluster: Cluster) -> None:
    await _direct(client, cluster)
    subscription = client.subscribe("orders", start="earliest")
    assert (await subscription.get()).value == b"first"
    await cluster.nodes[0].stop()
    cluster.leaders[0] = 2
    cluster.states[0] = State.NODE_STATE_FENCED
    await cluster.tell()
    await _publish(client, 10, partition=0)
    assert (await client.topics.get("orders")).partition_count == 3
    assert [(await subscription.get()).value for _ in range(10)] == [b"%d" % number for number in range(10)]


async def test_a_member_goes_on_as_the_same_one_at_another_node(cluster: Cluster) -> None:
    addresses = [node.address for node in cluster.nodes]
    cluster.nodes[0].fill("orders", 0, [b"%d" % number for number in range(20)], batch_records=1)
    async with Client(addresses) as client:
        subscription = client.subscribe("orders", group="billing", start="earliest")
        await subscription.get()
        member_id = subscription.member_id
        assert member_id
        await cluster.nodes[0].stop()
        for _ in range(19):
            await subscription.get()
    starts = [start for node in cluster.nodes[1:] for start in node.subscribe_starts]
    assert starts and {start.member_id for start in starts} == {member_id}


async def test_a_node_that_hangs_is_found_out_when_its_answers_are_late(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postbus.pipeline.DOUBT_AFTER", 0.1)
    monkeypatch.setattr("postbus.directory.PROBE_TIMEOUT", 0.3)
    await _direct(client, cluster)
    for gone in (2, 0):  # a leader, then the node that everything else goes through
        cluster.nodes[gone].answering.clear()
        cluster.nodes[gone].talking.clear()
    await _publish(client, 5, partition=2)
    await _publish(client, 5, partition=0)
    assert cluster.nodes[0].partition("orders", 2).values() == [b"%d" % number for number in range(5)]
    for node in cluster.nodes:
        node.answering.set()
        node.talking.set()


async def test_slow_answers_alone_are_no_reason_to_leave(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postbus.pipeline.DOUBT_AFTER", 0.0)
    await _direct(client, cluster)
    streams = cluster.nodes[2].publish_streams
    cluster.nodes[2].answering.clear()
    cluster.nodes[2].asked.clear()
    delivery = await client.publish("orders", b"slow", partition=2)
    await cluster.nodes[2].asked.wait()
    cluster.nodes[2].answering.set()
    await delivery
    assert cluster.nodes[2].publish_streams == streams + 1


async def test_an_address_of_another_cluster_is_never_published_to(cluster: Cluster) -> None:
    """What a cluster tells may mean something else here."""
    cluster.nodes[2].cluster_id = "somebody else's"
    async with Client(cluster.nodes[0].address) as client:
        await (await client.publish("orders", b"x", partition=2))
        await cluster.nodes[2].asked.wait()
        await _until(client, lambda: client._directory.usable(cluster.nodes[1].address))
        await _publish(client, 20, partition=2)
    assert cluster.nodes[2].publish_requests == 0


async def test_a_single_node_is_not_looked_for_twice(broker: FakeBroker) -> None:
    told = cluster_pb2.WatchMetadataResponse(metadata_epoch=1, snapshot=True)
    told.nodes.add(node_id=1, endpoint="unreachable.invalid:1", state=State.NODE_STATE_ACTIVE)
    told.topics.add(name="single").partitions.add(partition=0, leader_node_id=1)
    await broker.tell(told)
    async with Client(broker.address) as client:
        for _ in range(10):
            await (await client.publish("single", b"x"))
        assert not client._directory._probes and client._connections.learned == ()
