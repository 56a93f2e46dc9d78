"""A node that stops: others lead before it goes, whatever holds up a single partition."""

import asyncio
from functools import partial
from typing import Any

import pytest
from postbus.v1 import group_pb2
from sim_cluster import Cluster, Node
from sim_loop import SimLoop
from sim_seeds import run_seed

from broker.groups.coordinators import GROUPS_TOPIC
from broker.replication.partition import Partition
from broker.storage.batch import NewBatch
from broker.storage.store import LogStore


def test_what_can_not_be_committed_now_holds_up_no_hand_over() -> None:
    """A partition has too few replicas in sync for what was appended last: all are handed over all the same."""

    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop)
        cluster.start()
        await cluster.ready()
        await cluster.create_topic("orders", min_insync_replicas=2)
        await cluster.create_topic("strict", min_insync_replicas=3)
        everybody = {1, 2, 3}
        await cluster.until(
            "all in sync",
            lambda: all(set(cluster.partition_state(topic).isr) == everybody for topic in ("orders", "strict")),
        )
        leader = cluster.leader("strict")
        lost = next(node_id for node_id in sorted(everybody - {leader, cluster.controller_id}))
        cluster.machine(lost).kill()
        strict = cluster.partition(leader, "strict")
        cluster.node(leader).process.run(strict.append, NewBatch(batch=b"x", record_count=1))
        await cluster.until("one less", lambda: lost not in cluster.partition_state("strict").isr)
        assert strict.local is not None and strict.high_watermark < strict.local.end_offset
        await cluster.ask(leader, _hand_over)
        led = {topic.name for topic, _, state in cluster.state.partitions() if state.leader == leader}
        assert not led
        assert cluster.state.nodes[leader].stopping

    run_seed(scenario, 3)


def test_groups_are_handed_over_without_a_doubt() -> None:
    """What can't be repeated (to create a group) is done or has not begun when its coordinator stops."""

    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop)
        cluster.start()
        await cluster.ready()
        stops = cluster.state.topics[GROUPS_TOPIC].partitions[0].leader
        through = next(node_id for node_id in (1, 2, 3) if node_id != stops)
        created: list[str] = []
        done = False

        async def create(name: str) -> None:
            number = 0
            while not done:
                number += 1
                group = f"{name}-{number}"
                await cluster.ask(through, partial(_create, group))
                created.append(group)

        async with asyncio.TaskGroup() as tasks:
            for name in "abcdefgh":
                tasks.create_task(create(name))
            await cluster.until("some", lambda: len(created) > 100)
            await cluster.ask(stops, _hand_over)
            before = len(created)
            await cluster.until("more", lambda: len(created) > before + 100)
            done = True
        assert all(state.leader != stops for state in cluster.state.topics[GROUPS_TOPIC].partitions)

    for seed in range(1, 6):
        run_seed(scenario, seed)


def test_groups_leave_a_node_whose_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """What their coordinator can't store there, another one can."""

    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop)
        cluster.start()
        await cluster.ready()
        full = cluster.state.topics[GROUPS_TOPIC].partitions[0].leader
        store = cluster.node(full).store
        monkeypatch.setattr(LogStore, "disk_full", property(lambda self: self is store))
        for partition in cluster.node(full).bus.coordinators._find_partitions():
            assert isinstance(partition, Partition)
            partition.lacked_room = partition.leading
        await cluster.until(
            "others lead", lambda: all(one.leader != full for one in cluster.state.topics[GROUPS_TOPIC].partitions)
        )

    run_seed(scenario, 1)


async def _create(group: str, node: Node) -> None:
    await node.bus.groups.create_group(group, group_pb2.GroupConfig())


async def _hand_over(node: Any) -> None:
    await node.bus.hand_over()
