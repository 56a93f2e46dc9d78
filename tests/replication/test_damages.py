"""A copy that can't be read is made anew from another one, and nobody counts on it meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from replica_cluster import ReplicaCluster
from sim_seeds import run_seed

from broker.replication.partition import Role
from broker.storage.errors import LogCorrupt
from broker.storage.log_state import BATCHES, INDEX

SIZE = 1000
COUNT = 100


def simulated(test: Callable[[ReplicaCluster], Awaitable[None]], seed: int = 1, **options: Any) -> None:
    """In virtual time, on a cluster whose memory holds little of the log."""

    async def scenario(loop: Any) -> None:
        cluster = ReplicaCluster(loop, tail_bytes_max=20_000, **options)
        await cluster.start()
        await cluster.acknowledge(1, COUNT, size=SIZE)
        await cluster.in_sync(1, 2, 3)
        await test(cluster)

    run_seed(scenario, seed)


async def read(cluster: ReplicaCluster, node_id: int, offset: int) -> list[int]:
    """The offsets that a reader gets through this node, as services read: again, if there is another copy."""
    partition, process = cluster.partition(node_id), cluster.machines[node_id].process
    assert process is not None

    async def reading() -> list[int]:
        while True:
            source = partition.log
            try:
                found = await source.read(offset, end_offset=partition.high_watermark, max_bytes=4 * SIZE)
                return [batch.base_offset for batch in found]
            except LogCorrupt:
                if not await partition.another_copy(source):
                    raise

    return await process.spawn(reading())


def healed(cluster: ReplicaCluster, node_id: int) -> bool:
    log = cluster.log(node_id)
    return set(cluster.state.isr) == {1, 2, 3} and log.damage is None and log.end_offset >= COUNT


async def check_all(cluster: ReplicaCluster) -> None:
    await cluster.in_sync(1, 2, 3)
    contents = [await cluster.contents(node_id) for node_id in (1, 2, 3)]
    cluster.check_acknowledged(contents[0])
    assert contents[1] == contents[2] == contents[0]


@pytest.mark.parametrize("family", [BATCHES, INDEX])
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_follower_gives_up_its_damaged_copy_and_is_filled_again(seed: int, family: str) -> None:
    """The reader that met the damage hears nothing of it, publishers neither; what the leader knew of the old copy
    does not bring the empty one back into the ISR."""

    async def scenario(cluster: ReplicaCluster) -> None:
        cluster.damage(2, 5, family=family)
        begun = cluster.state.partition_epoch
        assert await read(cluster, 2, 5) == [5, 6, 7]
        assert 2 not in cluster.state.isr and cluster.state.partition_epoch == begun + 1
        await cluster.acknowledge(1, 10)
        await cluster.until(lambda: healed(cluster, 2))
        assert not cluster.errors and cluster.state.leader == 1
        assert cluster.machines[2].program.partitions.damages.found_count == 1
        await check_all(cluster)

    simulated(scenario, seed)


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_leader_hands_over_and_is_filled_again(seed: int) -> None:
    """Readers, here and on a node without a copy, go on with the next leader; nobody who publishes is left in doubt."""

    async def scenario(cluster: ReplicaCluster) -> None:
        cluster.damage(1, 5)
        under_way = [cluster.append(1) for _ in range(5)]
        await cluster.until(lambda: cluster.partition(4).role is Role.REMOTE)
        process = cluster.machines[4].process
        assert process is not None
        await process.spawn(cluster.partition(4).fresh_high_watermark(5.0))
        assert await read(cluster, 4, 5) == [5, 6, 7]
        assert await read(cluster, 1, 5) == [5, 6, 7]
        assert cluster.state.leader == 2
        await cluster.until(lambda: cluster.leads(2))
        await cluster.acknowledge(2, 10)
        await cluster.until(lambda: healed(cluster, 1))
        assert not cluster.errors and set(under_way) <= set(cluster.acknowledged)
        await check_all(cluster)

    simulated(scenario, seed, count=4)


def test_a_leader_that_finds_damage_while_it_feeds_a_new_replica_hands_over() -> None:
    """The new one is filled by the next leader."""

    async def scenario(cluster: ReplicaCluster) -> None:
        cluster.damage(1, 5)
        cluster.change(replicas=(1, 2, 3, 4), adding=(4,))
        await cluster.until(lambda: set(cluster.state.isr) == {1, 2, 3, 4})
        await cluster.in_sync(1, 2, 3, 4)
        assert cluster.state.leader == 2
        assert await cluster.contents(4) == await cluster.contents(1)

    simulated(scenario, count=4)


@pytest.mark.parametrize("seed", range(1, 4))
def test_the_only_copy_stays_until_there_is_another(seed: int) -> None:
    """It leads on and tells readers of the damaged place; as soon as another copy is whole that one leads."""

    async def scenario(cluster: ReplicaCluster) -> None:
        for other in (2, 3):
            cluster.machines[other].kill()
            cluster.node(other, fenced=True)
        cluster.change(isr=(1,))
        cluster.damage(1, 5)
        with pytest.raises(LogCorrupt):
            await read(cluster, 1, 5)
        await asyncio.sleep(10)
        assert cluster.state.leader == 1 and cluster.log(1).end_offset == COUNT
        assert await read(cluster, 1, 6) == [6, 7, 8]
        with pytest.raises(LogCorrupt):
            await read(cluster, 1, 5)
        cluster.restart(2)
        await cluster.until(lambda: cluster.state.leader == 2)
        assert await read(cluster, 1, 5) == [5, 6, 7]
        cluster.restart(3)
        await cluster.until(lambda: healed(cluster, 1))
        await check_all(cluster)

    simulated(scenario, seed, min_insync=1)


def test_the_controller_is_asked_until_it_answers() -> None:
    """Requests and answers that get lost change nothing but the time it takes."""

    async def scenario(cluster: ReplicaCluster) -> None:
        cluster.loses_requests = 3
        cluster.loses_answers = 3
        cluster.damage(2, 5)
        assert await read(cluster, 2, 5) == [5, 6, 7]
        await cluster.until(lambda: healed(cluster, 2))
        await check_all(cluster)

    simulated(scenario)


def test_damage_is_forgotten_with_the_topic() -> None:
    """Nothing is asked for ever of what is gone."""

    async def scenario(cluster: ReplicaCluster) -> None:
        cluster.loses_requests = 1 << 30
        cluster.damage(2, 5)
        partition, process = cluster.partition(2), cluster.machines[2].process
        assert process is not None
        with pytest.raises(LogCorrupt):
            await process.spawn(partition.log.read(5, end_offset=COUNT, max_bytes=SIZE))
        damages = cluster.machines[2].program.partitions.damages
        cluster.publish(replace(cluster.image, topics={}, topic_names={}))
        await asyncio.sleep(1)
        assert damages.found_count == 1 and not damages._counted and damages._task is None

    simulated(scenario)
