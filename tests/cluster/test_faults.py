"""Nodes that die, stand still or are cut off, under load: nothing acknowledged is lost, twice or out of order."""

import asyncio
import shutil
from pathlib import Path

import pytest
from cluster import running
from postbus.v1 import group_pb2
from proxy import Way
from workload import GROUP, Workload

pytestmark = pytest.mark.timeout(240)


async def test_killed_leaders_controllers_and_followers(tmp_path: Path) -> None:
    """SIGKILL of the leader of a partition, of the active controller, and of whoever is neither; each comes back."""

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        for what in ("leader", "controller", "follower"):
            leader, controller = await cluster.leader("compared"), await cluster.controller()
            victim = {"leader": leader, "controller": controller}.get(what) or next(
                number for number in cluster.nodes if number != leader
            )
            await work.under_way()
            await cluster.kill(victim)
            work.fault(f"SIGKILL of the {what}, node {victim}")
            await work.acknowledged(30)
            await cluster.start()
            await cluster.until_in_sync()
            await work.acknowledged(10)

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=3)


@pytest.mark.slow
async def test_all_killed_at_once(tmp_path: Path) -> None:
    """A power cut of everything: what was acknowledged comes back, whichever node starts first."""

    async def trouble(work: Workload) -> None:
        for _ in range(2):
            await work.under_way()
            await work.cluster.kill(*work.cluster.nodes)
            work.fault("SIGKILL of all nodes")
            await work.cluster.start()
            await work.acknowledged(30)

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=2)


async def test_a_leader_that_stood_still(tmp_path: Path) -> None:
    """SIGSTOP past its session, another leads meanwhile; on SIGCONT it acknowledges nothing of its own."""

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        leader = await cluster.leader("compared")
        await work.under_way()
        cluster.pause(leader)
        work.fault(f"SIGSTOP of node {leader}")
        successor = await cluster.leader("compared")
        assert successor != leader
        await work.acknowledged(30)
        cluster.go_on(leader)
        work.fault(f"SIGCONT of node {leader}")
        await cluster.until_in_sync()

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=2)


@pytest.mark.parametrize(
    "way",
    [
        Way.NONE,
        pytest.param(Way.ONLY_BACK, marks=pytest.mark.slow),
        pytest.param(Way.ONLY_FORTH, marks=pytest.mark.slow),
    ],
)
async def test_links_that_are_cut(tmp_path: Path, way: Way) -> None:
    """Both ways or one way, a node cut off from the others: those go on, and it comes back without harm."""

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        victim = await cluster.leader("compared")
        await work.under_way()
        cluster.isolate(victim, way)
        work.fault(f"node {victim} cut off, {way.value}")
        await work.acknowledged(30)
        cluster.heal()
        await cluster.until_in_sync()
        one = next(number for number in cluster.nodes if number != victim)
        cluster.cut(victim, one, way)
        work.fault(f"the link from {victim} to {one} cut, {way.value}")
        await work.acknowledged(30)
        cluster.heal()
        await cluster.until_in_sync()

    async with running(tmp_path, proxied=True) as cluster:
        await Workload(cluster).run(trouble, faults=2)
        assert sum(link.held_up + link.broken for link in cluster.links.values()) > 0


@pytest.mark.slow
async def test_a_wiped_disk(tmp_path: Path) -> None:
    """A node comes back with nothing, under its own id: it refills, and only then counts again."""

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        victim = await cluster.leader("compared")
        await work.under_way()
        await cluster.kill(victim)
        shutil.rmtree(cluster.nodes[victim].folder)
        work.fault(f"disk of node {victim} wiped")
        await work.acknowledged(20)
        await cluster.start()
        await cluster.until_in_sync()
        others = [number for number in cluster.nodes if number != victim]
        # Everything is on the refilled disk: another one may go now.
        await cluster.kill(others[0])
        work.fault(f"SIGKILL of node {others[0]}")
        await work.acknowledged(20)
        await cluster.start()
        await cluster.until_in_sync()

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=2)


@pytest.mark.slow
async def test_rolling_restart(tmp_path: Path) -> None:
    """SIGTERM one node after the other under load: everybody goes on."""

    async def trouble(work: Workload) -> None:
        for number in work.cluster.nodes:
            await work.under_way()
            await work.cluster.stop(number)
            work.fault(f"SIGTERM of node {number}")
            await work.acknowledged(20)
            await work.cluster.start()
            await work.cluster.until_in_sync()

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=3, restart_all=False)


@pytest.mark.slow
async def test_the_group_keeps_its_offsets_when_its_coordinator_dies(tmp_path: Path) -> None:
    """Whoever coordinates the group dies; what it committed stays, and it goes on to the end."""

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        described = await work.bus.until_done(work.bus.groups.GetGroup, _get_group())
        victim = described.group.coordinator_node_id
        assert victim in cluster.nodes
        await work.under_way()
        await cluster.kill(victim)
        work.fault(f"SIGKILL of the coordinator, node {victim}")
        await work.acknowledged(30)
        moved = victim
        async with asyncio.timeout(30):
            while moved == victim:
                described = await work.bus.until_done(work.bus.groups.GetGroup, _get_group())
                moved = described.group.coordinator_node_id
        assert moved in cluster.nodes
        await cluster.start()
        await cluster.until_in_sync()

    async with running(tmp_path) as cluster:
        await Workload(cluster).run(trouble, faults=1)


def _get_group() -> group_pb2.GetGroupRequest:
    return group_pb2.GetGroupRequest(name=GROUP)
