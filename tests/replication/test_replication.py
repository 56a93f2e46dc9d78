"""Replicas follow their leader, on simulated machines: what is promised when links, nodes and leaders go."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
from postbus.v1 import error_pb2, topic_pb2
from replica_cluster import LEADER, ReplicaCluster
from sim_seeds import run_seed

from broker.errors import PostbusError
from broker.replication.leader import IsrSettings
from broker.replication.partition import NotAppended, Role
from broker.replication.settings import ReplicationSettings


def simulated(**options: Any) -> Callable[[Callable[[ReplicaCluster], Awaitable[None]]], Callable[[], None]]:
    """Runs a test in virtual time, on a cluster with these options."""

    def decorate(test: Callable[[ReplicaCluster], Awaitable[None]]) -> Callable[[], None]:
        @wraps(test)
        def run() -> None:
            async def scenario(loop: Any) -> None:
                cluster = ReplicaCluster(loop, **options)
                await cluster.start()
                await test(cluster)

            run_seed(scenario, 1)

        del run.__wrapped__  # type: ignore[attr-defined]  # pytest would ask for its argument
        return run

    return decorate


async def same_everywhere(cluster: ReplicaCluster, *node_ids: int) -> None:
    """Every log holds the same, and all that was acknowledged."""
    first = await cluster.contents(node_ids[0])
    cluster.check_acknowledged(first)
    for node_id in node_ids[1:]:
        assert await cluster.contents(node_id) == first


@simulated()
async def test_records_are_acknowledged_once_all_in_sync_have_them_durably(cluster: ReplicaCluster) -> None:
    """And every replica ends up with the same bytes and the same high watermark."""
    await cluster.acknowledge(1, 50)
    for node_id in (1, 2, 3):
        assert cluster.log(node_id).durable_end_offset >= 50
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 1, 2, 3)
    assert [cluster.partition(n).role for n in (1, 2, 3)] == [Role.LEADER, Role.FOLLOWER, Role.FOLLOWER]


@simulated()
async def test_one_record_takes_no_longer_than_a_round_trip_and_an_fsync(cluster: ReplicaCluster) -> None:
    """Followers are sent it before the leader's own fsync, and nothing waits for a timer."""
    await cluster.acknowledge(1)
    cluster.network.speed.jitter_s = cluster.network.speed.slow_share = 0.0
    begin = cluster.loop.now
    await cluster.acknowledge(1)
    assert cluster.loop.now - begin < 0.02


@simulated()
async def test_a_dead_follower_leaves_the_isr_at_once_and_comes_back(cluster: ReplicaCluster) -> None:
    """Acknowledgements go on after a grace of milliseconds, not after the lag time; caught up, it is in sync again."""
    await cluster.acknowledge(1, 5)
    cluster.machines[3].kill()
    begin = cluster.loop.now
    await cluster.acknowledge(1, 5)
    assert cluster.loop.now - begin < 1.0
    assert set(cluster.state.isr) == {1, 2}
    cluster.restart(3)
    await cluster.acknowledge(1, 5)
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 1, 2, 3)


@simulated(settings=ReplicationSettings(isr=IsrSettings(replica_lag_time_ms=2_000)))
async def test_a_follower_that_only_lags_leaves_after_the_lag_time(cluster: ReplicaCluster) -> None:
    """Its disk hangs: the link is well, but nothing becomes durable."""
    await cluster.acknowledge(1, 5)
    cluster.machines[2].disk.speed.factor = 100_000.0
    begin = cluster.loop.now
    await cluster.acknowledge(1)
    assert 1.5 < cluster.loop.now - begin < 4.0
    assert set(cluster.state.isr) == {1, 3}


@simulated()
async def test_a_link_that_breaks_and_comes_back_changes_no_isr(cluster: ReplicaCluster) -> None:
    """Within the grace the follower has connected again."""
    await cluster.acknowledge(1, 5)
    cluster.network.break_links(1, 2)
    await cluster.acknowledge(1, 5)
    await asyncio.sleep(1.0)
    assert cluster.altered == []
    await cluster.in_sync(1, 2, 3)


@simulated()
async def test_below_min_insync_replicas_nothing_is_appended_or_acknowledged(cluster: ReplicaCluster) -> None:
    """What was under way stays unanswered; it is acknowledged when another replica is in sync again."""
    await cluster.acknowledge(1, 5)
    cluster.machines[2].kill()
    cluster.machines[3].kill()
    late = cluster.append(1)
    await cluster.until(lambda: cluster.state.isr == (1,))
    await asyncio.sleep(0.1)
    refusal = cluster.partition(1).writable_error()
    assert refusal is not None and refusal.reason == error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS
    assert late not in cluster.acknowledged and cluster.partition(1).high_watermark == 5
    cluster.restart(2)
    await cluster.until(lambda: late in cluster.acknowledged)
    assert cluster.partition(1).writable_error() is None


@simulated()
async def test_a_new_leader_has_all_that_was_acknowledged_and_the_old_one_gives_up_the_rest(
    cluster: ReplicaCluster,
) -> None:
    """The old leader's last records, which nobody else has, are truncated; whoever waits for them hears so."""
    await cluster.acknowledge(1, 10)
    for other in (2, 3):
        cluster.network.cut(1, other)
    lost = [cluster.append(1) for _ in range(3)]
    await asyncio.sleep(0.05)
    cluster.fail_over(2)
    await cluster.until(lambda: cluster.leads(2))
    await cluster.acknowledge(2, 4)
    assert not cluster.errors
    cluster.network.heal_all()
    await cluster.in_sync(1, 2, 3)
    assert {type(cluster.errors[payload]) for payload in lost} == {NotAppended}
    assert {cluster.errors[payload].reason for payload in lost} == {error_pb2.ERROR_REASON_NO_LEADER}
    await same_everywhere(cluster, 2, 1, 3)


@simulated()
async def test_who_waits_when_the_leadership_is_lost_hears_of_a_commit_under_the_next_leader(
    cluster: ReplicaCluster,
) -> None:
    """All replicas have the records, and the old leader never heard so: it answers when the new one's word comes."""
    await cluster.acknowledge(1, 3)
    for follower in (2, 3):
        cluster.network.cut(follower, 1)
    kept = [cluster.append(1) for _ in range(3)]
    kept_too = cluster.append(1, acks=LEADER)
    cluster.machines[1].disk.speed.factor = 1000.0
    await cluster.until(lambda: all(cluster.log(n).durable_end_offset == 7 for n in (2, 3)))
    cluster.fail_over(3)
    await cluster.until(lambda: cluster.leads(3))
    await asyncio.sleep(0.1)
    cluster.machines[1].disk.speed.factor = 1.0
    cluster.network.heal_all()
    await cluster.until(lambda: all(payload in cluster.acknowledged for payload in (*kept, kept_too)))
    assert not cluster.errors
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 1, 2, 3)


@simulated()
async def test_truncation_to_the_watermark_followed_by_an_election_loses_nothing(cluster: ReplicaCluster) -> None:
    """KIP-101: a follower restarts with a high watermark that lags, and is elected before it has asked the leader."""
    await cluster.acknowledge(1, 1)
    await cluster.in_sync(1, 2, 3)
    cluster.network.cut(1, 2)  # it has the next records, and never hears that they are committed
    cluster.network.heal(1, 2)
    await cluster.acknowledge(1, 5)
    cluster.machines[2].kill()
    cluster.machines[1].kill()
    cluster.change(leader=2, isr=(2, 3))
    cluster.node(2, broker_epoch=500)
    cluster.machines[2].start()
    await cluster.until(lambda: cluster.leads(2))
    assert cluster.log(2).end_offset == 6
    await cluster.acknowledge(2, 3)
    cluster.restart(1)
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 1, 2, 3)


@simulated(min_insync=1)
async def test_double_failover_with_epochs_missing_on_one_side(cluster: ReplicaCluster) -> None:
    """KIP-279: records of epochs that the other side never saw, at the same offsets; the logs still come together."""
    await cluster.acknowledge(1, 4)
    await cluster.in_sync(1, 2, 3)
    # Epoch 1: node 1 appends alone, and nobody hears.
    cluster.network.cut(1, 2)
    cluster.network.cut(1, 3)
    for _ in range(3):
        cluster.append(1)
    await asyncio.sleep(0.02)
    cluster.machines[1].kill()
    # Epoch 2: node 2 alone, likewise.
    cluster.network.heal_all()
    cluster.fail_over(2)
    await cluster.until(lambda: cluster.leads(2))
    cluster.network.cut(2, 3)
    cluster.append(2)
    await asyncio.sleep(0.02)
    cluster.machines[2].kill()
    # Epoch 3: node 3 alone; it has neither. Epoch 4: the same node, once more.
    cluster.network.heal_all()
    cluster.change(leader=3, isr=(3,))
    await cluster.until(lambda: cluster.leads(3))
    await cluster.acknowledge(3, 2)
    cluster.change(leader=3, isr=(3,))
    await cluster.until(lambda: cluster.partition(3).leader_epoch == 4)
    await cluster.acknowledge(3, 2)
    cluster.restart(1)
    cluster.restart(2)
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 3, 1, 2)
    assert cluster.log(1).leader_epochs == cluster.log(2).leader_epochs == cluster.log(3).leader_epochs


@simulated()
async def test_a_power_cut_of_all_nodes_loses_nothing_that_was_acknowledged(cluster: ReplicaCluster) -> None:
    """Writes that were not fsynced go, on each node others."""
    await cluster.acknowledge(1, 10)
    for _ in range(5):
        cluster.append(1)
    await asyncio.sleep(0.001)
    for machine in cluster.machines.values():
        machine.cut_power()
    for node_id in (2, 3):
        cluster.node(node_id, broker_epoch=1000 + node_id)
    cluster.change(leader=2, isr=(2, 3))
    cluster.machines[2].start()
    cluster.machines[3].start()
    cluster.restart(1)
    await cluster.until(lambda: cluster.leads(2))
    await cluster.acknowledge(2, 2)
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 2, 1, 3)


@simulated()
async def test_who_led_long_ago_takes_nothing_back_when_all_start_together(cluster: ReplicaCluster) -> None:
    """Every node replays images in which node 1 led; it lacks what was acknowledged under node 2."""
    await cluster.acknowledge(1, 3)
    cluster.machines[1].kill()
    cluster.fail_over(2)
    await cluster.until(lambda: cluster.leads(2))
    await cluster.acknowledge(2, 5)
    for node_id in (2, 3):
        cluster.machines[node_id].cut_power()
    for node_id in (1, 2, 3):
        cluster.node(node_id, broker_epoch=2000 + node_id)
    cluster.change(leader=2, isr=(2, 3))
    cluster.replay_s = 0.2
    await cluster.start()
    await cluster.until(lambda: cluster.leads(2))
    await cluster.acknowledge(2)
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 2, 1, 3)


@simulated()
async def test_a_change_without_a_new_leader_epoch_restarts_nothing(cluster: ReplicaCluster) -> None:
    """KAFKA-13790: appends under way are acknowledged, the high watermark never falls, followers keep their session."""
    await cluster.acknowledge(1, 3)
    led = cluster.partition(1)._led
    payload = cluster.append(1)
    cluster.change(replicas=(1, 3, 2))
    cluster.publish(cluster.image)
    await cluster.until(lambda: payload in cluster.acknowledged)
    await asyncio.sleep(0.1)
    assert cluster.partition(1)._led is led


@simulated()
async def test_a_leader_without_its_session_neither_appends_nor_acknowledges(cluster: ReplicaCluster) -> None:
    """Its high watermark stands still, no change of the ISR is asked for; both go on when the session is back."""
    await cluster.acknowledge(1, 3)
    waiting = cluster.append(1)
    waiting_less = cluster.append(1, acks=LEADER)
    program = cluster.machines[1].program
    program.session.session_valid = False
    cluster.machines[3].kill()
    await asyncio.sleep(3.0)
    assert waiting not in cluster.acknowledged and waiting_less not in cluster.acknowledged
    assert cluster.partition(1).high_watermark == 3 and cluster.altered == []
    with pytest.raises(PostbusError) as refused:
        cluster.append(1)
    assert refused.value.reason == error_pb2.ERROR_REASON_NO_LEADER
    program.session.session_valid = True
    program.partitions.session_changed()
    await cluster.until(lambda: waiting in cluster.acknowledged and waiting_less in cluster.acknowledged)


@simulated()
async def test_an_answer_of_the_controller_that_is_lost_is_found_out(cluster: ReplicaCluster) -> None:
    """The ISR was changed, or was not: either way acknowledgements go on, and never without a member."""
    await cluster.acknowledge(1, 3)
    for losses in ("loses_answers", "loses_requests"):
        setattr(cluster, losses, 2)
        cluster.machines[3].kill()
        await cluster.acknowledge(1, 3)
        assert set(cluster.state.isr) == {1, 2}
        setattr(cluster, losses, 2)
        cluster.restart(3)
        await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 1, 2, 3)


@simulated()
async def test_while_the_controller_is_silent_the_isr_that_it_may_have_is_waited_for(cluster: ReplicaCluster) -> None:
    """A follower is gone, but still counts: nothing is acknowledged that it might lack if it were elected."""
    await cluster.acknowledge(1, 3)
    cluster.controller_silent = True
    cluster.machines[3].kill()
    payload = cluster.append(1)
    await asyncio.sleep(20.0)
    assert payload not in cluster.acknowledged
    cluster.controller_silent = False
    await cluster.until(lambda: payload in cluster.acknowledged)


@simulated()
async def test_a_fenced_or_stopping_follower_does_not_join(cluster: ReplicaCluster) -> None:
    """Though it has everything; it does as soon as it may."""
    await cluster.acknowledge(1, 3)
    cluster.node(3, fenced=True)
    cluster.change(isr=(1, 2))
    await cluster.acknowledge(1, 3)
    await asyncio.sleep(2.0)
    assert set(cluster.state.isr) == {1, 2}
    cluster.node(3, fenced=False, stopping=True)
    await asyncio.sleep(2.0)
    assert set(cluster.state.isr) == {1, 2}
    cluster.node(3, stopping=False)
    await cluster.in_sync(1, 2, 3)


@simulated()
async def test_a_follower_of_an_older_life_does_not_join(cluster: ReplicaCluster) -> None:
    """KIP-903: its broker epoch is not the registered one."""
    await cluster.acknowledge(1, 3)
    cluster.node(3, broker_epoch=99)
    cluster.change(isr=(1, 2))
    await cluster.acknowledge(1, 3)
    await asyncio.sleep(2.0)
    assert set(cluster.state.isr) == {1, 2}
    cluster.machines[3].program.session.broker_epoch = 99
    cluster.machines[3].program.partitions.session_changed()
    await cluster.in_sync(1, 2, 3)


@simulated(count=4, tail_bytes_max=20_000)
async def test_a_new_replica_is_filled_from_disk_and_an_old_one_deleted_when_the_image_says_so(
    cluster: ReplicaCluster,
) -> None:
    """Reassignment from node 3 to node 4, with most of the log out of memory."""
    await cluster.acknowledge(1, 200, size=1000)
    cluster.change(replicas=(1, 2, 3, 4), adding=(4,), removing=(3,))
    await cluster.until(lambda: 4 in cluster.state.isr)
    await cluster.in_sync(1, 2, 3, 4)
    cluster.change(replicas=(1, 2, 4), isr=(1, 2, 4), adding=(), removing=())
    await cluster.acknowledge(1, 10)
    await cluster.in_sync(1, 2, 4)
    await same_everywhere(cluster, 1, 2, 4)
    assert cluster.partition(3).role is Role.REMOTE and cluster.log(3) is None
    assert cluster.machines[3].program.store.log_ids() == []


@simulated(count=4, tail_bytes_max=20_000)
async def test_a_replica_that_catches_up_keeps_to_the_throttle_and_holds_up_nobody(cluster: ReplicaCluster) -> None:
    """300 kB at 100 kB a second take about three seconds; records published meanwhile take milliseconds."""
    await cluster.acknowledge(1, 300, size=1000)
    cluster.publish(replace(cluster.image, throttle_bytes_per_s=100_000))
    cluster.change(replicas=(1, 2, 3, 4), adding=(4,))
    begin = cluster.loop.now
    worst_s = 0.0
    while 4 not in cluster.state.isr:
        before = cluster.loop.now
        await cluster.acknowledge(1)
        worst_s = max(worst_s, cluster.loop.now - before)
        await asyncio.sleep(0.05)
        assert cluster.loop.now - begin < 20
    assert 2.0 < cluster.loop.now - begin < 6.0
    assert worst_s < 0.2
    await cluster.in_sync(1, 2, 3, 4)
    await same_everywhere(cluster, 1, 2, 3, 4)


@simulated()
async def test_a_replica_before_the_leaders_log_start_begins_anew(cluster: ReplicaCluster) -> None:
    """What it had was trimmed meanwhile; and those in sync trim with their leader."""
    await cluster.acknowledge(1, 10)
    cluster.machines[3].kill()
    await cluster.acknowledge(1, 10)
    await cluster.until(lambda: cluster.partition(1).high_watermark == 20)
    leader = cluster.machines[1].process
    assert leader is not None

    def trim() -> None:
        cluster.log(1).trim(15)
        cluster.partition(1).trimmed()

    leader.run(trim)
    await cluster.until(lambda: cluster.log(2).log_start_offset == 15)
    cluster.restart(3)
    await cluster.in_sync(1, 2, 3)
    assert cluster.log(3).log_start_offset == 15
    assert set(await cluster.contents(3)) == set(range(15, 20))


@simulated()
async def test_a_follower_that_cannot_store_asks_again_until_it_can(cluster: ReplicaCluster) -> None:
    """Its disk is full: it leaves the ISR and comes back by itself once there is room."""
    await cluster.acknowledge(1, 3)
    disk = cluster.machines[3].program.store._disk
    has_room, disk._free_bytes = disk._free_bytes, lambda path: 0
    disk.check()
    await cluster.acknowledge(1, 3)
    assert set(cluster.state.isr) == {1, 2}
    disk._free_bytes = has_room
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 1, 2, 3)


@simulated()
async def test_a_replica_removed_and_added_again_within_one_delta_follows_on(cluster: ReplicaCluster) -> None:
    """The node sees only that it is still a replica; it is no longer in sync, and comes back by itself."""
    await cluster.acknowledge(1, 5)
    state = cluster.state
    cluster._put(replace(state, partition_epoch=state.partition_epoch + 2, isr=(1, 2)))
    await cluster.acknowledge(1, 5)
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 1, 2, 3)


@simulated()
async def test_a_deleted_topic_takes_its_logs_with_it_and_tells_who_waits(cluster: ReplicaCluster) -> None:
    """On every node."""
    await cluster.acknowledge(1, 5)
    for follower in (2, 3):
        cluster.network.cut(follower, 1)
    payload = cluster.append(1)
    partition = cluster.partition(1)
    cluster.publish(replace(cluster.image, topics={}, topic_names={}))
    await cluster.until(lambda: payload in cluster.errors)
    assert cluster.errors[payload].reason == error_pb2.ERROR_REASON_TOPIC_NOT_FOUND
    await asyncio.sleep(0.1)
    assert partition.deleted
    assert all(machine.program.store.log_ids() == [] for machine in cluster.machines.values())


@simulated(durability=topic_pb2.DURABILITY_REPLICATED)
async def test_a_replicated_topic_acknowledges_what_is_written_everywhere(cluster: ReplicaCluster) -> None:
    """Before any fsync; the high watermark waits for those."""
    await cluster.acknowledge(1)
    await cluster.in_sync(1, 2, 3)
    for machine in cluster.machines.values():
        machine.disk.speed.sync_s = 5.0
    before = cluster.partition(1).high_watermark
    begin = cluster.loop.now
    await cluster.acknowledge(1)
    assert cluster.loop.now - begin < 1.0
    assert cluster.partition(1).high_watermark == before


@simulated()
async def test_a_hand_over_settles_before_it_goes(cluster: ReplicaCluster) -> None:
    """Paused, nothing is appended; settled, all is committed; resumed, all goes on."""
    await cluster.acknowledge(1, 3)
    partition, process = cluster.partition(1), cluster.machines[1].process
    assert process is not None
    payloads = [cluster.append(1) for _ in range(3)]
    process.run(partition.pause)
    with pytest.raises(PostbusError) as refused:
        cluster.append(1)
    assert refused.value.reason == error_pb2.ERROR_REASON_NO_LEADER
    await process.spawn(partition.settled())
    assert all(payload in cluster.acknowledged for payload in payloads)
    process.run(partition.resume)
    await cluster.acknowledge(1)


@simulated(count=4)
async def test_nothing_read_elsewhere_is_kept_once_the_records_are_here(cluster: ReplicaCluster) -> None:
    """Nor what a read brings that was under way meanwhile."""
    await cluster.acknowledge(1, 20)
    reader, process = cluster.partition(4), cluster.machines[4].process
    assert process is not None
    remote = reader.log
    await process.spawn(remote.read(5, end_offset=20, max_bytes=1 << 20))
    buffers = cluster.machines[4].program.partitions.remote_buffers
    assert len(buffers) == 1
    cluster.change(replicas=(1, 2, 3, 4))
    await cluster.in_sync(1, 2, 3, 4)
    await cluster.until(lambda: reader.log is reader.local)
    assert (len(buffers), buffers.size_bytes) == (0, 0)
    assert await process.spawn(remote.read(5, end_offset=20, max_bytes=1 << 20))
    assert len(buffers) == 0


@simulated(count=4)
async def test_a_node_without_a_replica_reads_through_the_leader(cluster: ReplicaCluster) -> None:
    """It is woken by what is published, sees nothing above the high watermark, and survives a change of the leader."""
    await cluster.acknowledge(1, 20)
    reader, process = cluster.partition(4), cluster.machines[4].process
    assert process is not None and reader.role is Role.REMOTE
    assert await process.spawn(reader.fresh_high_watermark(5.0)) == 20
    batches = await process.spawn(reader.log.read(5, end_offset=20, max_bytes=1 << 20))
    assert [bytes(batch.batch) for batch in batches] == [b"%d" % n for n in range(6, 21)]
    assert reader.log.read_tail(7, end_offset=20, max_bytes=10_000) == batches[2:]
    woken: list[int] = []

    def listen() -> None:
        reader.add_listener(lambda: woken.append(reader.high_watermark))

    process.run(listen)
    await cluster.acknowledge(1, 2)
    await cluster.until(lambda: reader.high_watermark == 22)
    assert woken
    cluster.machines[1].kill()
    cluster.fail_over(2)
    await cluster.until(lambda: cluster.leads(2))
    await cluster.acknowledge(2, 2)
    await cluster.until(lambda: reader.high_watermark == 24)
    found = await process.spawn(reader.log.read(22, end_offset=24, max_bytes=1 << 20))
    assert [batch.base_offset for batch in found] == [22, 23]
    assert await process.spawn(reader.log.offset_for_time(0, end_offset=24)) == 0


@simulated(count=4)
async def test_without_a_leader_a_reader_is_told_so(cluster: ReplicaCluster) -> None:
    """In time, with an error that may be retried."""
    await cluster.acknowledge(1, 5)
    reader, process = cluster.partition(4), cluster.machines[4].process
    assert process is not None
    for node_id in (1, 2, 3):
        cluster.machines[node_id].kill()
    cluster.change(leader=0)
    begin = cluster.loop.now
    with pytest.raises(PostbusError) as refused:
        await process.spawn(reader.fresh_high_watermark(2.0))
    assert refused.value.reason == error_pb2.ERROR_REASON_NO_LEADER
    assert cluster.loop.now - begin < 2.5


@simulated()
async def test_a_fresh_high_watermark_waits_until_a_new_leader_knows(cluster: ReplicaCluster) -> None:
    """A follower that became leader may know a lower one than what was acknowledged before."""
    await cluster.acknowledge(1, 5)
    cluster.network.cut(1, 2)
    cluster.network.heal(1, 2)
    await cluster.acknowledge(1, 5)
    cluster.machines[1].kill()
    cluster.fail_over(2)
    await cluster.until(lambda: cluster.leads(2))
    for node_id in (2, 3):
        process = cluster.machines[node_id].process
        assert process is not None
        assert await process.spawn(cluster.partition(node_id).fresh_high_watermark(5.0)) >= 10


@simulated()
async def test_refusals_name_the_leader(cluster: ReplicaCluster) -> None:
    """So that whoever asked goes there."""
    cluster.node(1, client_endpoint="one:7070")
    await cluster.acknowledge(1)
    await asyncio.sleep(0.1)
    refusal = cluster.partition(2).writable_error()
    assert refusal is not None and refusal.reason == error_pb2.ERROR_REASON_NOT_LEADER
    assert refusal.metadata == {"leader_id": "1", "leader_endpoint": "one:7070"}


@simulated()
async def test_after_an_unclean_election_nothing_counts_as_committed_that_went_with_it(cluster: ReplicaCluster) -> None:
    """What the next leaders append at the same offsets is acknowledged once it is replicated, not at once."""
    await cluster.acknowledge(1, 5)
    await cluster.in_sync(1, 2, 3)
    cluster.network.cut(1, 3)
    cluster.change(isr=(1, 2))
    lost = [cluster.append(1) for _ in range(10)]
    await cluster.until(lambda: cluster.partition(2).high_watermark == 15)
    for payload in lost:
        del cluster.acknowledged[payload]
    cluster.change(leader=3, isr=(3,), elr=())
    cluster.network.heal_all()
    await cluster.in_sync(1, 2, 3)
    assert [cluster.partition(n).high_watermark for n in (1, 2, 3)] == [5, 5, 5]
    cluster.fail_over(1)
    await cluster.until(lambda: cluster.partition(1).writable_error() is None)
    await cluster.in_sync(1, 2, 3)
    cluster.network.cut(2, 1)
    payload = cluster.append(1)
    assert payload not in cluster.acknowledged
    assert cluster.partition(1).high_watermark == 5
    cluster.network.heal_all()
    await cluster.in_sync(1, 2, 3)
    await same_everywhere(cluster, 1, 2, 3)
