"""Whole clusters under faults: publishers and readers go on, and nothing that was promised is broken."""

import asyncio

import pytest
from cluster_checker import ClusterChecker
from cluster_faults import WEIGHTS, ClusterFaults
from history import Floors, report
from sim_clients import GIVE_UP_S, TIMEOUT_S, Clients
from sim_cluster import Cluster
from sim_loop import SimLoop
from sim_machines import FaultPlan, Nemesis
from sim_seeds import check_replays, run_seed, seeds

DURATION_S = 25.0
FLOORS = Floors(operations=60, acknowledgements=30, faults=10, polls=30)
TOPIC = "orders"


async def cluster_under_faults(loop: SimLoop) -> tuple[Cluster, Clients, Nemesis, ClusterChecker]:
    cluster = Cluster(loop, size=5 if loop.seed % 3 == 0 else 3)
    checker = ClusterChecker(cluster)
    cluster.start()
    await cluster.ready()
    await cluster.create_topic(TOPIC, partitions=2)
    clients = Clients(cluster, checker)
    for number, kind in enumerate(("request", "producer", "plain", "request")):
        clients.publish(f"p{number}-{kind}", TOPIC, kind)
    for number in range(2):
        clients.read(f"r{number}", TOPIC)
    whom = loop.random("whom")
    faults = ClusterFaults(cluster, TOPIC)
    plan = FaultPlan(weights=FaultPlan().weights | WEIGHTS).drawn(loop.random("faults"))
    nemesis = Nemesis(
        loop,
        cluster.network,
        cluster.machines,
        plan,
        leader=lambda: whom.choice((cluster.controller_id, cluster.leader(TOPIC))) or None,
        may_wipe=faults.may_lose,
        extra=faults.actions,
    )
    await nemesis.run(DURATION_S)
    clients.check_tasks()
    await faults.calm()
    await cluster.ready(timeout_s=30)
    before = len(clients.history.events)
    await cluster.until("more of everything", lambda: len(clients.history.events) > before + 50, timeout_s=15)
    clients.publishing = False
    await asyncio.sleep(GIVE_UP_S + TIMEOUT_S)
    clients.check_tasks()
    await cluster.until("all replicas in sync", lambda: _whole(cluster))
    await cluster.until("all that was acknowledged is read", clients.caught_up)
    checker.look()
    clients.history.faults = [f"{kind} {count}" for kind, count in nemesis.faults.items() for _ in range(count)]
    anomalies = clients.history.check(floors=FLOORS)
    assert not anomalies, report(anomalies)
    return cluster, clients, nemesis, checker


def _whole(cluster: Cluster) -> bool:
    """Everybody is in sync, and no move is under way."""
    return all(
        set(partition.isr) == set(partition.replicas) and not partition.reassigning
        for _, _, partition in cluster.state.partitions()
    )


@pytest.mark.parametrize("seed", seeds(1))
def test_a_cluster_keeps_its_promises(seed: int) -> None:
    """No invariant breaks at any step, no client sees an anomaly, and once the faults end all replicas are in sync."""
    _, (_, _, _, checker) = run_seed(cluster_under_faults, seed, to_be_replayed=True)
    assert checker.leader_changes >= 2
    assert checker.isr_changes >= 3


def test_a_cluster_replays() -> None:
    """The same seed gives the same trace."""
    check_replays(cluster_under_faults, seeds(1)[0])
