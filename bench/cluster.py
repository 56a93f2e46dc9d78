"""Measures three nodes and the client on this machine: replication 3, fsync on the in-sync replicas before every ack.

usage: python -m bench.cluster [--quick] [--rounds N] [--only TEXT] [--json FILE]

What a kill costs is the longest time without an acknowledgement for a publisher every 5 ms that is given all
addresses and nothing else. Absolute figures move with the machine by tens of percent.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from postbus import Client

from bench import machine, nodes
from bench.run import QUICK, ROOT, Figure, Scale, run_load, run_measurements

TOPIC = "load"


def main() -> int:
    """Runs what was asked for; 0 if every measurement could be made, targets met or not."""
    return run_measurements(MEASUREMENTS, description=__doc__ or "")


def publishing(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Bulk through three nodes, straight to the leaders and through a node that leads nothing."""
    records = max(scale.records // 3, 100_000)
    holds = 0.0
    for size, count, chunk, target in ((100, records, 10_000, 300_000), (1000, records // 5, 2_000, 45_000)):
        values = []
        for number in range(scale.rounds):
            data = folder / f"publish-{size}-{number}"
            with nodes.running(data) as cluster:
                _make_topic(cluster)
                settings = {"record_bytes": size, "chunk": chunk, "keyed": 0, "records": count}
                values.append(run_load("bulk_publish", cluster.address, topic=TOPIC, **settings)["records_per_second"])
                holds += cluster.holds_above_100_ms()
            shutil.rmtree(data)
        note = f"{statistics.median(values) * size / 1e6:.0f} MB/s"
        yield Figure(f"three nodes: bulk publish, {size} B", "records/s", values, target, note=note)
    yield Figure("three nodes: holds of an event loop above 100 ms, bulk", "times", [holds], 0, at_most=True)


def forwarding(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The same records to the leader and to a node that has to forward all of them."""
    records = max(scale.records // 5, 100_000)
    data = folder / "forward"
    with nodes.running(data) as cluster, Client.sync(cluster.address) as client:
        client.topics.create(TOPIC, partition_count=1)
        leader = _leader(cluster, TOPIC)
        other = next(one for one in cluster.members if one.node_id != leader)
        settings = {"record_bytes": 100, "chunk": 10_000, "keyed": 0, "records": records, "direct": 0}
        direct, forwarded = [], []
        for _ in range(scale.rounds):
            for address, values in ((cluster.member(leader).address, direct), (other.address, forwarded)):
                values.append(run_load("bulk_publish", address, topic=TOPIC, **settings)["records_per_second"])
    shutil.rmtree(data)
    yield Figure("three nodes: publish to the leader", "records/s", direct, 0)
    ratios = [one / other for one, other in zip(direct, forwarded, strict=True)]
    yield Figure("three nodes: cost of forwarding", "times", ratios, 2.0, at_most=True)


def latency(folder: Path, scale: Scale) -> Iterator[Figure]:
    """One record in flight over PublishStream."""
    data = folder / "latency"
    with nodes.running(data) as cluster:
        _make_topic(cluster)
        address = cluster.member(_leader(cluster, TOPIC)).address
        results = [
            run_load("one_in_flight", address, topic=TOPIC, record_bytes=100, records=2000) for _ in range(scale.rounds)
        ]
    shutil.rmtree(data)
    for name, target in (("p50", 2.5), ("p99", 15.0)):
        values = [result[f"{name}_ms"] for result in results]
        yield Figure(f"three nodes: one in flight: {name}", "ms", values, target, at_most=True)


def failover(folder: Path, scale: Scale) -> Iterator[Figure]:
    """kill -9 of the leader that is also the active controller; then of a follower."""
    kills = 10 if scale is not QUICK else 2
    data = folder / "failover"
    pauses: dict[str, list[float]] = {"leader and controller": [], "follower": []}
    with nodes.running(data) as cluster, Client.sync(cluster.address) as client:
        client.topics.create(TOPIC, partition_count=1)
        for number in range(kills):
            for what, seen in pauses.items():
                _until_in_sync(cluster)
                controller = nodes.metadata(cluster).controller_node_id
                if what == "follower":
                    leader = _leader(cluster, TOPIC)
                    victim = next(n for n in (1, 2, 3) if n not in (leader, controller))
                else:
                    _move_leader(cluster, TOPIC, controller)
                    victim = controller
                seen.append(_pause_of(cluster, victim, seed=number))
                cluster.start()
    shutil.rmtree(data)
    worst = max(pauses["leader and controller"])
    yield Figure(
        "kill -9 of leader and controller: longest pause", "s", pauses["leader and controller"], 1.5, at_most=True
    )
    yield Figure("kill -9 of leader and controller: worst of all", "s", [worst], 3.0, at_most=True)
    yield Figure("kill -9 of a follower: longest pause", "s", pauses["follower"], 0.2, at_most=True)


def starting(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Cold; memory and processor time with nothing to do."""
    seconds, memory, cpu = [], [], []
    for number in range(scale.rounds):
        data = folder / f"start-{number}"
        with nodes.running(data) as cluster:
            seconds.append(cluster.start_seconds)
            time.sleep(2)
            before, begin = [machine.cpu_seconds(one.pid) for one in cluster.members], time.perf_counter()
            time.sleep(5)
            took = time.perf_counter() - begin
            after = [machine.cpu_seconds(one.pid) for one in cluster.members]
            cpu += [100 * (b - a) / took for a, b in zip(before, after, strict=True)]
            memory += [machine.resident_mb(one.pid) for one in cluster.members]
        shutil.rmtree(data)
    yield Figure("three nodes cold to ready", "s", seconds, 3.0, at_most=True)
    yield Figure("three nodes idle: memory a node", "MB", memory, 150, at_most=True)
    yield Figure("three nodes idle: processor a node", "% of a core", cpu, 10, at_most=True)


def many_partitions(folder: Path, scale: Scale) -> Iterator[Figure]:
    """A thousand partitions: idle cost, and how long until each has a leader again after a kill."""
    count = 1000 if scale is not QUICK else 200
    data = folder / "many"
    with nodes.running(data) as cluster, Client.sync(cluster.address) as client:
        for number in range(10):
            client.topics.create(f"many-{number}", partition_count=count // 10)
        _until_in_sync(cluster)
        before, begin = [machine.cpu_seconds(one.pid) for one in cluster.members], time.perf_counter()
        time.sleep(5)
        took = time.perf_counter() - begin
        cpu = [100 * (machine.cpu_seconds(one.pid) - a) / took for one, a in zip(cluster.members, before, strict=True)]
        victim = _leader(cluster, "many-0")
        cluster.kill(victim)
        begin = time.perf_counter()
        rest = nodes.Nodes([one for one in cluster.members if one.process is not None])
        while any(
            partition.leader_node_id in (None, 0, victim)
            for topic in nodes.metadata(rest).topics
            for partition in topic.partitions
        ):
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        holds = cluster.holds_above_100_ms()
    shutil.rmtree(data)
    yield Figure(f"{count} partitions: idle processor a node", "% of a core", cpu, 10, at_most=True)
    yield Figure(f"{count} partitions: failover of a node's leaders", "s", [seconds], 3.0, at_most=True)
    yield Figure(f"{count} partitions: holds above 100 ms", "times", [holds], 0, at_most=True)


def scaling(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Processor seconds per million records on 1, 3 and 5 nodes: at equal replication, work per node falls."""
    records = max(scale.records // 5, 100_000)
    for count in (1, 3, 5):
        for replication in (1, 3):
            if replication > count:
                continue
            data = folder / f"scale-{count}-{replication}"
            with nodes.running(data, count) as cluster, Client.sync(cluster.address) as client:
                client.topics.create(TOPIC, partition_count=15, replication_factor=replication)
                before = [machine.cpu_seconds(one.pid) for one in cluster.members]
                run_load(
                    "bulk_publish",
                    cluster.address,
                    topic=TOPIC,
                    record_bytes=100,
                    chunk=10_000,
                    keyed=0,
                    records=records,
                )
                used = [machine.cpu_seconds(one.pid) - a for one, a in zip(cluster.members, before, strict=True)]
            shutil.rmtree(data)
            per_million = [1e6 * one / records for one in used]
            note = f"{sum(per_million):.2f} s over all nodes"
            name = f"{count} nodes, replication {replication}: processor per million records"
            yield Figure(name, "s a node", per_million, 0, note=note)


MEASUREMENTS: dict[str, Callable[[Path, Scale], Iterator[Figure]]] = {
    "starting": starting,
    "publishing": publishing,
    "forwarding": forwarding,
    "latency": latency,
    "failover": failover,
    "many-partitions": many_partitions,
    "scaling": scaling,
}


def _make_topic(cluster: nodes.Nodes) -> None:
    with Client.sync(cluster.address) as client:
        client.topics.create(TOPIC, partition_count=6)
    _until_in_sync(cluster)


def _leader(cluster: nodes.Nodes, topic: str) -> int:
    while True:
        for known in nodes.metadata(cluster).topics:
            if known.name == topic and known.partitions[0].leader_node_id:
                leader: int = known.partitions[0].leader_node_id
                return leader
        time.sleep(0.02)


def _until_in_sync(cluster: nodes.Nodes) -> None:
    while any(
        not partition.leader_node_id or len(partition.isr_node_ids) < len(partition.replica_node_ids)
        for topic in nodes.metadata(cluster).topics
        for partition in topic.partitions
    ):
        time.sleep(0.05)


def _move_leader(cluster: nodes.Nodes, topic: str, node_id: int) -> None:
    """Makes a node the preferred leader, and elects it."""
    command = [sys.executable, "-m", "broker.cli.main", "cluster", "elect", "--address", cluster.address]
    others = [n for n in (1, 2, 3) if n != node_id]
    replicas = ",".join(str(n) for n in (node_id, *others))
    move = [sys.executable, "-m", "broker.cli.main", "cluster", "reassign", "--address", cluster.address]
    subprocess.run([*move, f"{topic}/0={replicas}"], check=True, stdout=subprocess.DEVNULL)
    while _leader(cluster, topic) != node_id:
        subprocess.run([*command, f"{topic}/0"], check=True, stdout=subprocess.DEVNULL)
        time.sleep(0.1)


def _pause_of(cluster: nodes.Nodes, victim: int, *, seed: int) -> float:
    """Kills while a publisher is at work; its longest time without an acknowledgement."""
    command = [sys.executable, "-m", "bench.loads", "every_5_ms", cluster.address, f"topic={TOPIC}", "seconds=6"]
    publisher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert publisher.stdout is not None
    assert publisher.stdout.readline().strip() == b"publishing"
    time.sleep(1.0 + 0.05 * seed)
    cluster.kill(victim)
    result = json.loads(publisher.stdout.read())
    assert publisher.wait() == 0
    assert result["lost"] == 0, result
    return float(result["longest_pause_s"])


if __name__ == "__main__":
    sys.exit(main())
