"""Measures three nodes and the client on this machine: replication 3, fsync on the in-sync replicas before every ack.

usage: python -m bench.cluster [--quick] [--rounds N] [--only TEXT] [--json FILE]

What a kill costs is the longest time without an acknowledgement, of those that begin or end within five seconds of the
kill, for a publisher every 5 ms that is given all addresses and nothing else. Absolute figures move with the machine by
tens of percent; everything shares its cores.
"""

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from postbus import Client
from postbus.sync import SyncClient

from bench import machine, nodes
from bench.run import ROOT, Figure, Scale, run_load, run_measurements

TOPIC: Final = "load"
GROUPS_TOPIC: Final = "__groups"
AFTER_KILL_S: Final = 5.0
IDLE_S: Final = 5.0


def main() -> int:
    """Runs what was asked for; 0 if every measurement could be made, targets met or not."""
    return run_measurements(MEASUREMENTS, description=__doc__ or "")


# --- measurements ---


def starting(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Cold; memory and processor time with nothing to do."""
    seconds, memory, cpu = [], [], []
    for number in range(scale.rounds):
        data = folder / f"start-{number}"
        with nodes.running(data) as cluster:
            seconds.append(cluster.start_seconds)
            time.sleep(2)
            cpu += _idle_cpu(cluster)
            memory += [machine.resident_mb(one.pid) for one in cluster.members]
        shutil.rmtree(data)
    yield Figure("cold to ready", "s", seconds, 3.0, at_most=True)
    yield Figure("idle: memory a node", "MB", memory, 150, at_most=True)
    yield Figure("idle: processor a node", "% of a core", cpu, 10, at_most=True)


def publishing(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Bulk through three nodes, straight to the leaders."""
    records = max(scale.records // 3, 400_000)
    for size, count, chunk, target in ((100, records, 10_000, 300_000), (1000, records // 5, 2_000, 45_000)):
        values: list[float] = []
        holds: list[float] = []
        peaks: list[float] = []
        data = folder / f"publish-{size}"
        with nodes.running(data) as cluster:
            _make_topic(cluster, partition_count=6)
            for _ in range(scale.rounds):
                for one in cluster.members:
                    machine.reset_peak(one.pid)
                values.append(_bulk(cluster.address, record_bytes=size, chunk=chunk, records=count))
                peaks += [machine.peak_mb(one.pid) for one in cluster.members]
            holds.append(cluster.holds_above_100_ms())
        shutil.rmtree(data)
        note = f"{statistics.median(values) * size / 1e6:.0f} MB/s"
        yield Figure(f"bulk publish, {size} B", "records/s", values, target, note=note)
        yield Figure(f"bulk publish, {size} B: peak memory a node", "MB", peaks, None)
        yield _holds(f"bulk publish, {size} B", holds)


def forwarding(folder: Path, scale: Scale) -> Iterator[Figure]:
    """The same records all through the leader, and all through a node that leads nothing of them."""
    records = max(scale.records // 5, 200_000)
    data = folder / "forward"
    with nodes.running(data) as cluster:
        _make_topic(cluster, partition_count=1)
        leader = _leader(cluster, TOPIC)
        other = next(one for one in cluster.members if one.node_id != leader)
        direct: list[float] = []
        forwarded: list[float] = []
        for _ in range(max(scale.rounds, 2)):
            for address, values in ((cluster.member(leader).address, direct), (other.address, forwarded)):
                values.append(_bulk(address, record_bytes=100, chunk=10_000, records=records, direct=0))
        holds = cluster.holds_above_100_ms()
    shutil.rmtree(data)
    yield Figure("bulk publish to the leader of one partition", "records/s", direct, None)
    yield Figure("the same through another node", "records/s", forwarded, None)
    ratios = [one / other for one, other in zip(direct, forwarded, strict=True)]
    yield Figure("cost of forwarding in throughput", "times", ratios, 2.0, at_most=True)
    yield _holds("forwarding", [holds])


def latency(folder: Path, scale: Scale) -> Iterator[Figure]:
    """One record in flight over PublishStream."""
    data = folder / "latency"
    with nodes.running(data) as cluster:
        _make_topic(cluster, partition_count=6)
        leader = _leader(cluster, TOPIC)
        other = next(one.node_id for one in cluster.members if one.node_id != leader)
        results = {
            where: [
                run_load("one_in_flight", cluster.member(node_id).address, topic=TOPIC, record_bytes=100, records=2000)
                for _ in range(scale.rounds)
            ]
            for where, node_id in (("leader", leader), ("follower", other))
        }
        holds = cluster.holds_above_100_ms()
    shutil.rmtree(data)
    for where, targets in (("leader", (2.5, 15.0)), ("follower", (None, None))):
        for name, target in zip(("p50", "p99"), targets, strict=True):
            values = [result[f"{name}_ms"] for result in results[where]]
            yield Figure(f"one in flight through the {where}: {name}", "ms", values, target, at_most=True)
    yield _holds("one in flight", [holds])


def failover(folder: Path, scale: Scale) -> Iterator[Figure]:
    """kill -9 of the leader that is also the active controller; of a follower that is not."""
    data = folder / "failover"
    leaders: list[float] = []
    followers: list[float] = []
    holds = 0.0
    with nodes.running(data) as cluster, Client.sync(cluster.address) as client:
        _make_topic(cluster, partition_count=1)
        for number in range(scale.kills):
            for followers_turn in (False, True):
                _until_in_sync(cluster)
                controller = client.cluster.metadata().controller_node_id
                if followers_turn:
                    leader = _leader(cluster, TOPIC)
                    victim = next(n for n in (1, 2, 3) if n not in (leader, controller))
                else:
                    victim = controller
                    _move_leader(cluster, client, victim)
                expected = (controller, _leader(cluster, TOPIC))
                pause = _pause_of(cluster, victim, "every_5_ms", "acknowledged_at", delay_s=1.0 + 0.05 * number)
                assert (victim == expected[1]) != followers_turn
                (followers if followers_turn else leaders).append(pause["acknowledged_at"])
                holds += cluster.holds_above_100_ms()
                cluster.start()
    shutil.rmtree(data)
    yield Figure("kill -9 of leader and controller: longest pause", "s", leaders, 1.5, at_most=True)
    yield Figure("kill -9 of leader and controller: worst of all", "s", [max(leaders)], 3.0, at_most=True)
    yield Figure("kill -9 of a follower: longest pause", "s", followers, 0.2, at_most=True)
    yield _holds("kills, of the nodes that live on", [holds])


def group_failover(folder: Path, scale: Scale) -> Iterator[Figure]:
    """kill -9 of the node that coordinates a group: how long its member gets nothing, and no commit is answered."""
    data = folder / "group"
    pauses: dict[str, list[float]] = {"delivered_at": [], "committed_at": []}
    with nodes.running(data) as cluster, Client.sync(cluster.address) as client:
        _make_topic(cluster, partition_count=1)
        for number in range(max(scale.rounds, 2)):
            _until_in_sync(cluster)
            leader = _leader(cluster, TOPIC)
            group, victim = _group_elsewhere(client, f"group-{number}", leader)
            seen = _pause_of(cluster, victim, "group_every_5_ms", *pauses, group=group)
            for name, seconds in seen.items():
                pauses[name].append(seconds)
            cluster.start()
    shutil.rmtree(data)
    yield Figure("kill -9 of a group's coordinator: longest without records", "s", pauses["delivered_at"], 3.0, True)
    yield Figure("kill -9 of a group's coordinator: longest without a commit", "s", pauses["committed_at"], 3.0, True)


def rolling_restart(folder: Path, scale: Scale) -> Iterator[Figure]:
    """SIGTERM and start of one node after the other, each back in every ISR first; a publisher every 5 ms."""
    data = folder / "rolling"
    pauses: list[float] = []
    with nodes.running(data) as cluster:
        _make_topic(cluster, partition_count=6)
        for _ in range(scale.rounds):
            command = [sys.executable, "-m", "bench.loads", "every_5_ms", cluster.address, f"topic={TOPIC}"]
            command.append("seconds=20")
            publisher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
            assert publisher.stdout is not None
            assert publisher.stdout.readline().strip() == b"publishing"
            begin = time.perf_counter()
            for one in cluster.members:
                time.sleep(1)
                cluster.terminate(one.node_id)
                cluster.start()
                _until_in_sync(cluster)
            assert time.perf_counter() - begin < 19, "the publisher was done before the last restart"
            result = json.loads(publisher.stdout.read())
            assert publisher.wait() == 0 and result["lost"] == 0, result
            moments = sorted(result["acknowledged_at"])
            pauses.append(max(later - earlier for earlier, later in itertools.pairwise(moments)))
    shutil.rmtree(data)
    yield Figure("rolling restart by SIGTERM, none failed: longest pause", "s", pauses, 0.5, at_most=True)


def many_partitions(folder: Path, scale: Scale) -> Iterator[Figure]:
    """A thousand partitions: idle cost, and how long until each has a leader again after a kill."""
    count = scale.partitions
    data = folder / "many"
    with nodes.running(data) as cluster, Client.sync(cluster.address) as client:
        for number in range(10):
            client.topics.create(f"many-{number}", partition_count=count // 10)
        _until_in_sync(cluster)
        time.sleep(2)
        cpu = _idle_cpu(cluster)
        memory = [machine.resident_mb(one.pid) for one in cluster.members]
        controller = client.cluster.metadata().controller_node_id
        cluster.kill(controller)
        begin = time.perf_counter()
        with Client.sync(cluster.address_of_running) as rest:
            while any(
                partition.leader_node_id in (0, controller)
                for topic in rest.cluster.metadata().topics
                for partition in topic.partitions
            ):
                time.sleep(0.02)
        seconds = time.perf_counter() - begin
        time.sleep(1)
        holds = cluster.holds_above_100_ms()
    shutil.rmtree(data)
    yield Figure(f"{count} partitions: idle processor a node", "% of a core", cpu, 10, at_most=True)
    yield Figure(f"{count} partitions: memory a node", "MB", memory, None)
    yield Figure(f"{count} partitions: failover of a node's leaders", "s", [seconds], 3.0, at_most=True)
    yield _holds(f"{count} partitions made, idle, failed over", [holds])


def scaling(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Processor seconds per million records on 1, 3 and 5 nodes: at equal replication, work per node falls."""
    records = max(scale.records // 5, 200_000)
    for count, replication in ((1, 1), (3, 1), (5, 1), (3, 3), (5, 3)):
        data = folder / f"scale-{count}-{replication}"
        with nodes.running(data, count) as cluster:
            _make_topic(cluster, partition_count=15, replication_factor=replication)
            before = [machine.cpu_seconds(one.pid) for one in cluster.members]
            _bulk(cluster.address, record_bytes=100, chunk=10_000, records=records)
            time.sleep(1)
            used = [machine.cpu_seconds(one.pid) - a for one, a in zip(cluster.members, before, strict=True)]
        shutil.rmtree(data)
        per_million = [1e6 * one / records for one in used]
        name = f"{count} nodes, {replication} replicas: processor a node per million records"
        yield Figure(name, "s", per_million, None, note=f"{sum(per_million):.2f} s over all nodes")


MEASUREMENTS: dict[str, Callable[[Path, Scale], Iterator[Figure]]] = {
    "starting": starting,
    "publishing": publishing,
    "forwarding": forwarding,
    "latency": latency,
    "failover": failover,
    "rolling-restart": rolling_restart,
    "group-failover": group_failover,
    "many-partitions": many_partitions,
    "scaling": scaling,
}


# --- what they share ---


def _bulk(address: str, **settings: int) -> float:
    rate = run_load("bulk_publish", address, topic=TOPIC, keyed=0, **settings)["records_per_second"]
    return float(rate)


def _holds(what: str, values: list[float]) -> Figure:
    return Figure(f"{what}: holds of a loop above 100 ms", "times", values, 0, at_most=True)


def _idle_cpu(cluster: nodes.Nodes) -> list[float]:
    before, begin = [machine.cpu_seconds(one.pid) for one in cluster.members], time.perf_counter()
    time.sleep(IDLE_S)
    took_s = time.perf_counter() - begin
    after = [machine.cpu_seconds(one.pid) for one in cluster.members]
    return [100 * (b - a) / took_s for a, b in zip(before, after, strict=True)]


def _make_topic(cluster: nodes.Nodes, *, partition_count: int, replication_factor: int | None = None) -> None:
    with Client.sync(cluster.address) as client:
        client.topics.create(TOPIC, partition_count=partition_count, replication_factor=replication_factor)
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


def _move_leader(cluster: nodes.Nodes, client: SyncClient, node_id: int) -> None:
    """Makes a node the preferred leader, and elects it."""
    client.cluster.reassign({(TOPIC, 0): [node_id, *(n for n in (1, 2, 3) if n != node_id)]})
    while _leader(cluster, TOPIC) != node_id:
        client.cluster.elect([(TOPIC, 0)])
        time.sleep(0.05)


def _group_elsewhere(client: SyncClient, prefix: str, leader: int) -> tuple[str, int]:
    """A name whose coordinator is not the node that leads the records, and which node that is.

    The group of the same name with "-offsets" has the same coordinator.
    """
    partitions = next(topic for topic in client.cluster.metadata().topics if topic.name == GROUPS_TOPIC).partitions

    def coordinator(name: str) -> int:
        number = crc32(name.encode()) % len(partitions)
        return next(int(known.leader_node_id) for known in partitions if known.partition == number)

    for number in itertools.count():
        name = f"{prefix}-{number}"
        if coordinator(name) == coordinator(f"{name}-offsets") != leader:
            return name, coordinator(name)
    raise AssertionError("some name has it")


def _pause_of(
    cluster: nodes.Nodes, victim: int, load: str, *lists: str, delay_s: float = 1.0, **settings: str
) -> dict[str, float]:
    """Kills while a load runs; of each list of moments, the longest pause between the kill and a while after it."""
    seconds = round(delay_s + AFTER_KILL_S + 1)
    command = [sys.executable, "-m", "bench.loads", load, cluster.address, f"topic={TOPIC}", f"seconds={seconds}"]
    command += [f"{name}={value}" for name, value in settings.items()]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline().strip() == b"publishing"
    time.sleep(delay_s)
    killed = time.monotonic()
    cluster.kill(victim)
    result: dict[str, Any] = json.loads(running.stdout.read())
    assert running.wait() == 0
    assert not result.get("lost"), result["lost"]
    return {name: _longest_pause(sorted(result[name]), killed) for name in lists}


def _longest_pause(moments: list[float], killed: float) -> float:
    pauses = [
        later - earlier
        for earlier, later in itertools.pairwise(moments)
        if later > killed and earlier < killed + AFTER_KILL_S
    ]
    assert pauses, "nothing came after the kill"
    return max(pauses)


if __name__ == "__main__":
    sys.exit(main())
