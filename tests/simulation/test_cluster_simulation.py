"""Whole clusters under faults: publishers and readers go on, and nothing that was promised is broken."""

import asyncio

import pytest
from cluster_checker import ClusterChecker
from history import Floors, report
from sim_clients import GIVE_UP_S, TIMEOUT_S, Clients
from sim_cluster import Cluster
from sim_loop import SimLoop
from sim_machines import FaultPlan, Machine, Nemesis
from sim_seeds import check_replays, run_seed, seeds

DURATION_S = 25.0
FLOORS = Floors(operations=200, acknowledgements=100, faults=12, polls=100)


def may_lose(cluster: Cluster, machine: Machine) -> bool:
    """Whether what was acknowledged bears the loss of this disk now: others that may lead have all of it."""
    state = cluster.state
    node_id = machine.node_id
    if any(
        state.nodes[other.node_id].store_id != other.disk.store_id
        for other in cluster.machines
        if other.node_id in state.nodes
    ):
        return False  # another one is coming back
    for _, _, partition in state.partitions():
        may_lead = {*partition.isr, *partition.elr}
        if node_id in may_lead and len(may_lead) < 2:
            return False
    leading = [node for node in cluster.nodes() if node.bus.metadata_log.active]
    if not leading:
        return False
    core = max(leading, key=lambda node: node.bus.raft.term).bus.raft._core
    disks = {other.node_id: other.disk.store_id for other in cluster.machines}
    return (
        core.log.configuration_index <= core.log.commit
        and core.log.term_at(core.log.commit) == core.term
        and len(core.configuration.voters()) == len(cluster.machines)
        and all(disks[seat.node_id] == seat.store_id for seat in core.configuration.seats)
    )


async def cluster_under_faults(loop: SimLoop) -> tuple[Cluster, Clients, Nemesis, ClusterChecker]:
    cluster = Cluster(loop)
    checker = ClusterChecker(cluster)
    cluster.start()
    await cluster.ready()
    await cluster.create_topic("orders", partitions=2)
    clients = Clients(cluster, checker)
    for number, kind in enumerate(("request", "producer", "plain", "request")):
        clients.publish(f"p{number}-{kind}", "orders", kind)
    for number in range(2):
        clients.read(f"r{number}", "orders")
    whom = loop.random("whom")
    nemesis = Nemesis(
        loop,
        cluster.network,
        cluster.machines,
        FaultPlan(),
        leader=lambda: whom.choice((cluster.controller_id, cluster.leader("orders"))) or None,
        may_wipe=lambda machine: may_lose(cluster, machine),
    )
    await nemesis.run(DURATION_S)
    clients.check_tasks()
    await cluster.ready(timeout_s=30)
    acknowledged = len(clients.history.events)
    await cluster.until("more of everything", lambda: len(clients.history.events) > acknowledged + 50, timeout_s=15)
    clients.publishing = False
    await asyncio.sleep(GIVE_UP_S + TIMEOUT_S)
    clients.check_tasks()
    state = cluster.state
    for _, _, partition in state.partitions():
        assert set(partition.isr) == set(partition.replicas), cluster.describe()
    await cluster.until("all that was acknowledged is read", lambda: clients.caught_up(2), timeout_s=20)
    checker.look()
    clients.history.faults = [f"{kind} {count}" for kind, count in nemesis.faults.items() for _ in range(count)]
    anomalies = clients.history.check(floors=FLOORS)
    assert not anomalies, report(anomalies)
    return cluster, clients, nemesis, checker


@pytest.mark.parametrize("seed", seeds(2))
def test_a_cluster_keeps_its_promises(seed: int) -> None:
    """No invariant breaks at any step, no client sees an anomaly, and once the faults end all replicas are in sync."""
    _, (_, _, _, checker) = run_seed(cluster_under_faults, seed)
    assert checker.leader_changes >= 2
    assert checker.isr_changes >= 4


def test_a_cluster_replays() -> None:
    """The same seed gives the same trace."""
    check_replays(cluster_under_faults, seeds(1)[0])
