"""What other systems got wrong, each as its own story on a whole cluster, with all invariants looked at on the way."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cluster_checker import ClusterChecker
from postbus.v1 import publisher_pb2, record_pb2, subscriber_pb2
from sim_cluster import Cluster, Lost, call
from sim_loop import SimLoop
from sim_seeds import run_seed

from broker.controller.commands import PartitionId, Reassignment, ReassignPartitions
from broker.errors import PostbusError
from broker.replication.partition import Partition
from broker.storage.log_state import BATCHES

TOPIC = "orders"
Story = Callable[[Cluster], Awaitable[None]]


def told(story: Story, *, size: int = 3, seed: int = 7, **settings: Any) -> None:
    """Runs it on a cluster that is ready."""

    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, size=size, **settings)
        checker = ClusterChecker(cluster)
        cluster.start()
        await cluster.ready()
        await story(cluster)
        for machine in cluster.machines:
            machine.start()
        cluster.network.heal_all()
        await cluster.ready(timeout_s=30)
        checker.look()

    run_seed(scenario, seed)


async def publish(
    cluster: Cluster, node_id: int, *values: str, acks: int = 0, timeout_s: float = 5.0, request_id: str = ""
) -> int:
    """The first offset. Raises what a client would see."""
    batch = record_pb2.RecordBatch(records=[record_pb2.Record(value=value.encode()) for value in values])
    request = publisher_pb2.PublishRequest(topic=TOPIC, partition=0, batch=batch, acks=acks, request_id=request_id)  # type: ignore[arg-type]
    data = request.SerializeToString()
    answer = await cluster.ask(
        node_id, lambda node: node.publisher.publish(data, call(timeout_s)), timeout_s=timeout_s + 0.5
    )
    return publisher_pb2.PublishResponse.FromString(answer).ranges[0].base_offset


async def read(cluster: Cluster, node_id: int, *, offset: int = 0) -> list[str]:
    """All that a client can read there, from an offset on, once the node knows what the leader knows now."""
    partition = cluster.partition(node_id, TOPIC)
    known = await cluster.ask(node_id, lambda node: partition.fresh_high_watermark(5.0))
    await cluster.until("it is known", lambda: partition.high_watermark >= known)
    request = subscriber_pb2.FetchRequest(topic=TOPIC)
    request.positions.add(topic=TOPIC, partition=0, offset=offset)
    answer = await cluster.ask(node_id, lambda node: node.subscriber.fetch(request, call(5.0)))
    response = subscriber_pb2.FetchResponse.FromString(answer)
    return [record.value.decode() for batch in response.batches for record in batch.batch.records]


async def end_of(partition: Partition, node_id: int, cluster: Cluster) -> int | None:
    """As a node tells it; None: it says that it does not know now."""
    try:
        return await cluster.ask(node_id, lambda node: partition.fresh_high_watermark(0.4))
    except PostbusError as error:
        assert error.reason_name == "NO_LEADER"
        return None


async def until_leader(cluster: Cluster, node_id: int | None = None, *, not_node: int | None = None) -> int:
    """Somebody leads the partition, or that node does, and knows it."""

    def holds() -> bool:
        leader = cluster.leader(TOPIC)
        if not leader or leader == not_node or (node_id is not None and leader != node_id):
            return False
        machine = cluster.machine(leader)
        return machine.running and cluster.partition(leader, TOPIC).leading

    await cluster.until(f"node {node_id or 'any'} leads", holds)
    return cluster.leader(TOPIC)


async def until_isr(cluster: Cluster, *members: int) -> None:
    """The image has exactly these in sync."""
    await cluster.until(f"in sync: {members}", lambda: set(cluster.partition_state(TOPIC).isr) == set(members))


async def move_controller(cluster: Cluster, node_id: int) -> None:
    """That node is the active controller."""
    await cluster.until("a controller", lambda: cluster.controller_id is not None)
    controller = cluster.controller_id
    assert controller is not None
    if controller != node_id:
        await cluster.ask(controller, lambda node: node.bus.raft.transfer_leadership(node_id))
    await cluster.until(f"controller {node_id}", lambda: cluster.controller_id == node_id)


def test_nobody_truncates_to_its_own_watermark() -> None:
    """KIP-101: a follower that does not know how far it is safe restarts, and is elected: nothing is gone."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC, replicas=2, min_insync_replicas=2)
        leader = await until_leader(cluster)
        (follower,) = set(cluster.partition_state(TOPIC).replicas) - {leader}
        await until_isr(cluster, leader, follower)
        await publish(cluster, leader, "a")
        cluster.machine(follower).cut_power()
        cluster.machine(leader).cut_power()
        cluster.machine(follower).start()
        await until_leader(cluster, follower)
        await cluster.until("read", lambda: cluster.partition(follower, TOPIC).log.end_offset == 1)
        cluster.machine(leader).start()
        await until_isr(cluster, leader, follower)
        assert await read(cluster, follower) == ["a"]
        assert await read(cluster, leader) == ["a"]

    told(story)


def test_epochs_missing_on_one_side_are_found() -> None:
    """KIP-279: two leaders in a row wrote what nobody else has, each in an epoch that the others never saw."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC, min_insync_replicas=1)
        first = await until_leader(cluster)
        await until_isr(cluster, 1, 2, 3)
        await publish(cluster, first, "safe")
        lost_values = []
        for number in range(2):
            leader = await until_leader(cluster)
            for other in {1, 2, 3} - {leader}:
                cluster.network.cut(leader, other)
            values = [f"lost {number}/{part}" for part in range(3 - number)]
            await publish(cluster, leader, *values, acks=publisher_pb2.ACKS_LEADER)
            lost_values += values
            cluster.machine(leader).kill()
            cluster.network.heal_all()
            if number == 0:
                before = leader
                await until_leader(cluster, not_node=leader)
        # The third one is in sync and alone with what was safe; it needs one other controller to be elected.
        cluster.machine(before).start()
        last = await until_leader(cluster, not_node=leader)
        await publish(cluster, last, "after")
        cluster.machine(leader).start()
        await until_isr(cluster, 1, 2, 3)
        for node_id in (1, 2, 3):
            assert await read(cluster, node_id) == ["safe", "after"], (node_id, lost_values)

    told(story)


def test_a_late_change_of_the_isr_does_not_revive_a_wiped_replica() -> None:
    """KIP-903: the leader's question to take a follower in arrives after that has lost its disk and come back."""

    async def story(cluster: Cluster) -> None:
        await move_controller(cluster, 3)
        await cluster.create_topic(TOPIC, replicas=3, min_insync_replicas=1)
        leader = await until_leader(cluster)
        await until_isr(cluster, 1, 2, 3)
        if leader == 3:
            await cluster.ask(3, lambda node: node.bus.session.hand_over([_partition_id()]))
            leader = await until_leader(cluster, not_node=3)
        (follower,) = {1, 2} - {leader}
        cluster.machine(follower).kill()
        await until_isr(cluster, leader, 3)
        await publish(cluster, leader, "a")
        session = cluster.node(leader).bus.session
        alter, held, release = session.alter_partitions, cluster.loop.create_future(), asyncio.Event()

        async def late(changes: Any, **options: Any) -> Any:
            asked = [change for change in changes if change.topic_id == f"id-{TOPIC}"]
            if asked and not held.done():
                held.set_result(asked[0])
                await release.wait()
            return await alter(changes, **options)

        session.alter_partitions = late  # type: ignore[method-assign]
        cluster.machine(follower).start()
        assert follower in [member.node_id for member in (await held).isr]
        old_epoch = cluster.state.nodes[follower].broker_epoch
        cluster.machine(follower).kill()
        cluster.machine(follower).disk.wipe()
        await cluster.until("fenced", lambda: cluster.state.nodes[follower].fenced)
        # It may register at once, and not replicate yet.
        cluster.network.cut(leader, follower)
        cluster.machine(follower).start()
        await cluster.until("registered", lambda: cluster.state.nodes[follower].broker_epoch > old_epoch)
        release.set()
        await asyncio.sleep(0.3)
        assert follower not in cluster.partition_state(TOPIC).isr
        cluster.network.heal_all()
        await until_isr(cluster, 1, 2, 3)
        assert await read(cluster, follower) == ["a"]

    told(story)


def _partition_id() -> PartitionId:
    return PartitionId(f"id-{TOPIC}", 0)


def test_the_last_replica_standing_is_not_elected_without_its_disk() -> None:
    """KIP-966: the only member in sync comes back empty; who left before it has all that was acknowledged."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC)
        leader = await until_leader(cluster)
        await until_isr(cluster, 1, 2, 3)
        await publish(cluster, leader, "a", "b")
        one, other = sorted({1, 2, 3} - {leader})
        cluster.machine(one).kill()
        await until_isr(cluster, leader, other)
        await publish(cluster, leader, "c")
        cluster.machine(other).kill()
        await asyncio.sleep(0.5)
        cluster.machine(leader).kill()
        cluster.machine(leader).disk.wipe()
        cluster.machine(leader).start()
        cluster.machine(other).start()
        cluster.machine(one).start()
        elected = await until_leader(cluster, not_node=leader)
        assert elected == other
        await until_isr(cluster, 1, 2, 3)
        for node_id in (1, 2, 3):
            assert await read(cluster, node_id) == ["a", "b", "c"]

    told(story)


def test_the_watermark_waits_for_who_may_have_been_taken_in() -> None:
    """A leader that does not know whether a follower was taken into the ISR acknowledges nothing without it."""

    async def story(cluster: Cluster) -> None:
        await move_controller(cluster, 3)
        await cluster.create_topic(TOPIC, replicas=3, min_insync_replicas=1)
        leader = await until_leader(cluster)
        if leader == 3:
            await cluster.ask(3, lambda node: node.bus.session.hand_over([_partition_id()]))
            leader = await until_leader(cluster, not_node=3)
        (follower,) = {1, 2} - {leader}
        cluster.machine(follower).kill()
        await until_isr(cluster, leader, 3)
        cluster.machine(follower).start()

        def asked() -> bool:
            led = cluster.partition(leader, TOPIC)._led
            return led is not None and led.proposal is not None and follower in led.proposal.members

        while not asked():
            await cluster.loop.steps(1)
            await asyncio.sleep(0.0001)
        # The question is on its way; neither the answer nor the image comes back, and the follower hears nothing.
        cluster.network.cut(3, leader)
        cluster.network.cut(follower, leader)
        cluster.network.cut(leader, follower)
        with pytest.raises((PostbusError, Lost)):
            await publish(cluster, leader, "x", timeout_s=0.7)
        cluster.network.heal_all()

    told(story)


def test_a_replica_that_went_and_came_back_while_its_node_was_down() -> None:
    """Removed and added again within what one start replays: its log is not deleted for the image between."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC, replicas=3)
        leader = await until_leader(cluster)
        replicas = cluster.partition_state(TOPIC).replicas
        await until_isr(cluster, *replicas)
        await publish(cluster, leader, *[f"v{number}" for number in range(20)])
        gone = next(node_id for node_id in replicas if node_id != leader)
        spare = next(node_id for node_id in range(1, 6) if node_id not in replicas)
        moved = tuple(spare if node_id == gone else node_id for node_id in replicas)
        cluster.machine(gone).kill()
        for target in (moved, replicas):
            await cluster.execute(
                ReassignPartitions(reassignments=(Reassignment(topic=TOPIC, partition=0, replicas=target),)),
                node_id=leader,
            )
            if target == moved:
                await cluster.until("moved", lambda: set(cluster.partition_state(TOPIC).replicas) == set(moved))
        cluster.machine(gone).start()
        await until_isr(cluster, *replicas)
        await publish(cluster, leader, "last")
        await cluster.until("whole", lambda: not cluster.partition_state(TOPIC).reassigning)
        assert len(await read(cluster, gone)) == 21

    told(story, size=5)


def test_a_leader_goes_on_through_changes_that_keep_its_epoch() -> None:
    """KAFKA-13790: the ISR shrinks and grows; the leader does not start over, and who waits is answered."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC)
        leader = await until_leader(cluster)
        await until_isr(cluster, 1, 2, 3)
        led = cluster.partition(leader, TOPIC)._led
        epoch = cluster.partition_state(TOPIC).leader_epoch
        gone = next(node_id for node_id in (1, 2, 3) if node_id not in (leader, cluster.controller_id))
        cluster.network.cut(leader, gone)
        cluster.network.cut(gone, leader)
        offset = await publish(cluster, leader, "a", timeout_s=20.0)
        cluster.network.heal_all()
        await until_isr(cluster, 1, 2, 3)
        if cluster.partition_state(TOPIC).leader_epoch == epoch:
            assert cluster.partition(leader, TOPIC)._led is led
        assert offset == 0

    told(story)


def test_an_isolated_controller_resigns() -> None:
    """KAFKA-15489: a controller that hears nobody stops being one; the others have a new one that works."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC)
        await until_leader(cluster)
        old = cluster.controller_id
        assert old is not None
        others = [node_id for node_id in (1, 2, 3) if node_id != old]
        for other in others:
            cluster.network.cut(old, other)
            cluster.network.cut(other, old)
        await cluster.until(
            "a new controller", lambda: any(cluster.node(other).bus.metadata_log.active for other in others)
        )
        await cluster.until("the old one resigns", lambda: not cluster.node(old).bus.metadata_log.active, timeout_s=1.5)
        await until_leader(cluster, not_node=old)
        await publish(cluster, others[0], "a")
        with pytest.raises((PostbusError, Lost)):
            await publish(cluster, old, "b", timeout_s=1.0)
        assert not cluster.node(old).bus.session.session_valid

    told(story)


def test_a_process_that_was_paused_does_not_answer_from_the_past() -> None:
    """etcd 20418: while a leader was stopped, others took over; its first answer knows what they acknowledged."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC)
        leader = await until_leader(cluster)
        await until_isr(cluster, 1, 2, 3)
        await publish(cluster, leader, "a")
        process = cluster.machine(leader).process
        assert process is not None
        process.pause()
        other = await until_leader(cluster, not_node=leader)
        await publish(cluster, other, "b", request_id="b")
        assert await publish(cluster, other, "b", request_id="b") == 1
        partition = cluster.partition(leader, TOPIC)
        asked = asyncio.ensure_future(cluster.ask(leader, lambda node: partition.fresh_high_watermark(10.0)))
        written = asyncio.ensure_future(publish(cluster, leader, "c", timeout_s=10.0))
        await asyncio.sleep(0.1)
        process.resume()
        assert await asked >= 2
        assert await written == 2

    told(story)


def test_the_end_of_the_log_is_not_told_from_the_past() -> None:
    """A leader whose connections broke is succeeded before its session ends: its end of the log is not the end."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC)
        leader = await until_leader(cluster)
        others = [node_id for node_id in (1, 2, 3) if node_id != leader]
        await move_controller(cluster, others[0])
        await until_isr(cluster, 1, 2, 3)
        await publish(cluster, leader, "a")
        for other in others:
            cluster.network.cut(leader, other)
            cluster.network.cut(other, leader)
            cluster.network.break_links(leader, other)
        successor = await until_leader(cluster, not_node=leader)
        await publish(cluster, successor, "b")
        assert cluster.node(leader).bus.session.session_valid, "or there is nothing to be seen"
        partition = cluster.partition(leader, TOPIC)
        told_end = await end_of(partition, leader, cluster)
        assert told_end is None, f"{told_end}, though the successor has more"
        assert await read(cluster, successor) == ["a", "b"]

    told(story)


def test_not_enough_replicas_and_committed_all_the_same() -> None:
    """A publish whose outcome is unknown may be committed later; it is there once, also when it is tried again."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC)
        leader = await until_leader(cluster)
        await until_isr(cluster, 1, 2, 3)
        others = [node_id for node_id in (1, 2, 3) if node_id != leader]
        for other in others:
            cluster.network.cut(leader, other)
        with pytest.raises((PostbusError, Lost)) as raised:
            await publish(cluster, leader, "a", timeout_s=0.3, request_id="once")
        assert not isinstance(raised.value, PostbusError) or raised.value.kind.outcome_unknown
        cluster.network.heal_all()
        offset = await publish(cluster, others[0], "a", timeout_s=15.0, request_id="once")
        values = await read(cluster, others[1])
        assert values.count("a") == 1
        assert values[offset] == "a"

    told(story)


def test_a_lone_node_acknowledges_nothing_before_its_disk() -> None:
    """etcd 14370: the power goes with the first acknowledgement; the record is there, and the topic."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC, replicas=1, min_insync_replicas=1)
        await until_leader(cluster)
        for number in range(10):
            assert await publish(cluster, 1, f"v{number}") == number
            cluster.machine(1).cut_power()
            cluster.machine(1).start()
            await cluster.ready()
        assert await read(cluster, 1) == [f"v{number}" for number in range(10)]

    told(story, size=1)


def test_a_flipped_bit_is_never_read() -> None:
    """Jepsen on NATS: a minority node with a damaged batch becomes the leader; nobody reads anything wrong."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC)
        leader = await until_leader(cluster)
        await until_isr(cluster, 1, 2, 3)
        for number in range(5):
            await publish(cluster, leader, f"v{number}")
        damaged = next(node_id for node_id in (1, 2, 3) if node_id != leader)
        machine = cluster.machine(damaged)
        log_id = cluster.partition_state(TOPIC).log_id
        machine.kill()
        table = machine.disk.database("data").written[BATCHES]
        key = next(key for key in table.keys if int.from_bytes(key[:8]) == log_id and int.from_bytes(key[8:]) == 2)
        value = bytearray(table.values[key])
        value[-1] ^= 1
        table.values[key] = bytes(value)
        machine.start()
        await cluster.ready()
        await until_isr(cluster, 1, 2, 3)
        if cluster.leader(TOPIC) != damaged:
            await cluster.ask(cluster.leader(TOPIC), lambda node: node.bus.session.hand_over([_partition_id()]))
        for node_id in (1, 2, 3):
            for offset in range(5):
                try:
                    values = await read(cluster, node_id, offset=offset)
                except PostbusError as error:
                    assert error.reason_name == "LOG_CORRUPT"
                    assert offset == 2 or error.metadata
                    continue
                assert values == [f"v{number}" for number in range(offset, offset + len(values))]

    told(story)


def test_a_controller_that_hears_itself_too_late_is_busy_and_not_dead() -> None:
    """A lone node whose loop is held does not fence itself: nobody else could lead, or tell it that it is back."""

    async def story(cluster: Cluster) -> None:
        await cluster.create_topic(TOPIC, replicas=1, min_insync_replicas=1)
        await until_leader(cluster, 1)
        node = cluster.node(1)
        beat = node.bus.session._beat
        late = asyncio.Event()

        async def beats_late(sent_at: float) -> bool:
            await late.wait()
            return await beat(sent_at)

        node.bus.session._beat = beats_late  # type: ignore[method-assign]
        await asyncio.sleep(5)
        assert not cluster.state.nodes[1].fenced
        late.set()
        await publish(cluster, 1, "a")

    told(story, size=1)
