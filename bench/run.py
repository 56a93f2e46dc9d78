"""Measures a node on this machine: client included, every acknowledgement after its fsync.

usage: python -m bench.run [--quick] [--rounds N] [--only TEXT] [--json FILE]

Each figure is the median of several rounds, with the least and the most beside it; publishing is compared with what
RocksDB alone does on the same disk in the same run. Absolute figures move with the machine by tens of percent.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from postbus import Client

from bench import baseline, bus, machine

ROOT = Path(__file__).parent.parent
GO_BENCH = ROOT / "clients" / "go"
LOAD_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure, and what it should be at least (or at most)."""

    name: str
    unit: str
    values: list[float]
    target: float | None
    """None: only shown."""
    at_most: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        if self.target is None:
            return True
        return self.median <= self.target if self.at_most else self.median >= self.target


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to do."""

    rounds: int
    records: int
    """Of 100 bytes; a tenth of 1,000 bytes."""
    stored_mb: int
    """For the restart after a kill."""
    idle_subscribers: int
    kills: int
    """Of each kind, in a cluster."""
    partitions: int
    """Of the cluster with many."""


FULL = Scale(rounds=5, records=3_000_000, stored_mb=5_000, idle_subscribers=1000, kills=10, partitions=1000)
QUICK = Scale(rounds=1, records=200_000, stored_mb=100, idle_subscribers=200, kills=2, partitions=300)


def main() -> int:
    """Runs what was asked for; 0 if every measurement could be made, targets met or not."""
    return run_measurements(MEASUREMENTS, description=__doc__ or "")


def run_measurements(
    measurements: "Mapping[str, Callable[[Path, Scale], Iterator[Figure]]]", *, description: str
) -> int:
    """The command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that everything works")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each measurement (default 5, quick 1)")
    parser.add_argument("--only", default="", help="only measurements whose name contains this")
    parser.add_argument("--json", default="", help="write the figures to this file too")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    if options.rounds:
        scale = replace(scale, rounds=options.rounds)
    folder = Path(tempfile.mkdtemp(prefix="postbus-bench-"))
    print(machine.describe(folder), flush=True)
    figures: list[Figure] = []
    try:
        for name, measure in measurements.items():
            if options.only in name:
                for figure in measure(folder, scale):
                    figures.append(figure)
                    print(_row(figure), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    aimed = [figure for figure in figures if figure.target is not None]
    print(f"{sum(figure.met for figure in aimed)} of {len(aimed)} figures with a target reach it")
    if options.json:
        document = {"machine": machine.describe(Path.cwd()), "figures": [asdict(figure) for figure in figures]}
        Path(options.json).write_text(json.dumps(document, indent=1))
    return 0


def _row(figure: Figure) -> str:
    least, most = min(figure.values), max(figure.values)
    span = f"{_shown(figure.median)} ({_shown(least)} to {_shown(most)}) {figure.unit}"
    verdict = ""
    if figure.target is not None:
        verdict = "ok" if figure.met else "above" if figure.at_most else "below"
        verdict = f"target {'≤' if figure.at_most else '≥'} {figure.target:,g}: {verdict}"
    return f"{figure.name:66} {span:44} {verdict:26} {figure.note}".rstrip()


def _shown(value: float) -> str:
    return f"{value:,.{2 if value < 10 else 1 if value < 1000 else 0}f}"


# --- measurements ---


def publishing(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Bulk, keyed and one by one; with the ratio to RocksDB alone."""
    large = max(scale.records // 10, 20_000)
    cases: list[tuple[str, str, dict[str, object], int, float | None]] = [
        ("bulk, 100 B, no keys", "bulk_publish", {"record_bytes": 100, "chunk": 10_000, "keyed": 0}, 100, 800_000),
        ("bulk, 1 kB, no keys", "bulk_publish", {"record_bytes": 1000, "chunk": 2_000, "keyed": 0}, 1000, 120_000),
        (
            "bulk, 100 B, keyed, 6 partitions",
            "bulk_publish",
            {"record_bytes": 100, "chunk": 10_000, "keyed": 1},
            100,
            4e5,
        ),
        ("publish() one by one, 100 B", "publish_one_by_one", {"record_bytes": 100}, 100, 150_000),
        ("publish() one by one, 1 kB", "publish_one_by_one", {"record_bytes": 1000}, 1000, None),
    ]
    alone = {
        size: statistics.median(
            baseline.measure(
                folder / f"alone-{size}-{number}",
                record_bytes=size,
                records_per_batch=per_batch,
                record_count=count // per_batch * per_batch,
            )
            for number in range(scale.rounds)
        )
        for size, per_batch, count in ((100, 5000, scale.records), (1000, 500, large))
    }
    for name, load, settings, size, target in cases:
        records = scale.records if size == 100 else large
        values: list[float] = []
        peaks: list[float] = []
        for number in range(scale.rounds):
            data = folder / f"publish-{number}"
            with bus.running(data) as node:
                _make_topic(node.address, "load")
                machine.reset_peak(node.pid)
                result = run_load(load, node.address, topic="load", records=records, **settings)
                peaks.append(machine.peak_mb(node.pid))
            values.append(result["records_per_second"])
            shutil.rmtree(data)
        ratio = statistics.median(values) / alone[size]
        note = f"{statistics.median(values) * size / 1e6:.0f} MB/s, {ratio:.2f} of RocksDB alone ({alone[size]:,.0f}/s)"
        yield Figure(f"publish: {name}", "records/s", values, target, note=note)
        yield Figure(f"publish: {name}: peak memory", "MB", peaks, 400, at_most=True)


def subscribing(folder: Path, scale: Scale) -> Iterator[Figure]:
    """A group of one reads what is stored, from RocksDB or memory as it falls."""
    data = folder / "subscribe"
    with bus.running(data) as node:
        for size, records in ((100, scale.records), (1000, max(scale.records // 10, 20_000))):
            topic = f"stored-{size}"
            _make_topic(node.address, topic)
            run_load("bulk_publish", node.address, topic=topic, records=records, record_bytes=size, chunk=2000, keyed=0)
            for load, target in (("subscribe_batches", 6e5), ("subscribe_records", 3e5)):
                machine.reset_peak(node.pid)
                values = [
                    run_load(load, node.address, topic=topic, records=records, group=f"{load}-{size}-{number}")[
                        "records_per_second"
                    ]
                    for number in range(scale.rounds)
                ]
                note = f"{statistics.median(values) * size / 1e6:.0f} MB/s"
                shown = load.replace("subscribe_", "by ").replace("batches", "batch").replace("records", "record")
                yield Figure(
                    f"group subscribe {shown}, {size} B",
                    "records/s",
                    values,
                    target if size == 100 else None,
                    note=note,
                )
                peak = machine.peak_mb(node.pid)
                yield Figure(f"group subscribe {shown}, {size} B: peak memory", "MB", [peak], 400, at_most=True)
    shutil.rmtree(data)


def latency(folder: Path, scale: Scale) -> Iterator[Figure]:
    """One record in flight, each fsynced."""
    data = folder / "latency"
    with bus.running(data) as node:
        _make_topic(node.address, "load")
        results = [
            run_load("one_in_flight", node.address, topic="load", record_bytes=100, records=2000)
            for _ in range(scale.rounds)
        ]
        yield Figure(
            "one in flight, Python stubs: p50", "ms", [result["p50_ms"] for result in results], 1.0, at_most=True
        )
        yield Figure(
            "one in flight, Python stubs: p99", "ms", [result["p99_ms"] for result in results], 10.0, at_most=True
        )
        if shutil.which("go") is None:
            print("go is not installed: the figures with a Go client are left out", flush=True)
            return
        program = folder / "go-bench"
        subprocess.run(["go", "build", "-o", str(program), "./bench"], cwd=GO_BENCH, check=True)
        for publishers, target in ((1, None), (64, 6000)):
            runs = [_go(program, node.address, publishers) for _ in range(scale.rounds)]
            name = f"{publishers} publisher{'s' if publishers > 1 else ''} one in flight each, Go stubs"
            yield Figure(name, "records/s", [run["records_per_second"] for run in runs], target)
            p50 = [run["p50_us"] / 1000 for run in runs]
            yield Figure(f"{name}: p50", "ms", p50, 1.0 if publishers == 1 else 20.0, at_most=True)
    shutil.rmtree(data)


def starting(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Cold, and after a kill with much stored; memory idle."""
    empty: list[float] = []
    idle: list[float] = []
    for number in range(scale.rounds):
        with bus.running(folder / f"empty-{number}") as node:
            empty.append(node.start_seconds)
            idle.append(machine.resident_mb(node.pid))
    yield Figure("serve to ready, empty store", "s", empty, 1.0, at_most=True)
    yield Figure("memory, idle", "MB", idle, 120, at_most=True)
    data = folder / "stored"
    node = bus.start(data)
    _make_topic(node.address, "load")
    records = scale.stored_mb * 1000
    run_load("bulk_publish", node.address, topic="load", records=records, record_bytes=1000, chunk=2000, keyed=0)
    run_load("publish_one_by_one", node.address, topic="load", records=100_000, record_bytes=100)
    restarts: list[float] = []
    for _ in range(scale.rounds):
        bus.kill(node)
        node = bus.start(data)
        restarts.append(node.start_seconds)
    bus.stop(node)
    yield Figure(f"serve to ready, after kill -9 with {scale.stored_mb} MB stored", "s", restarts, 3.0, at_most=True)
    shutil.rmtree(data)


def idle_subscribers(folder: Path, scale: Scale) -> Iterator[Figure]:
    """What streams cost that have nothing to do."""
    data = folder / "idle"
    with bus.running(data) as node:
        _make_topic(node.address, "load")
        before = machine.resident_mb(node.pid)
        command = [sys.executable, "-m", "bench.loads", "idle_subscribers", node.address, "topic=load"]
        command.append(f"subscribers={scale.idle_subscribers}")
        client = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert client.stdout is not None and client.stdin is not None
        client.stdout.readline()
        more = machine.resident_mb(node.pid) - before
        client.stdin.close()
        client.wait(timeout=60)
    yield Figure(f"memory of {scale.idle_subscribers} idle subscribers", "MB", [more], 100, at_most=True)
    shutil.rmtree(data)


MEASUREMENTS: dict[str, Callable[[Path, Scale], Iterator[Figure]]] = {
    "publishing": publishing,
    "subscribing": subscribing,
    "latency": latency,
    "starting": starting,
    "idle-subscribers": idle_subscribers,
}


# --- running things ---


def run_load(name: str, address: str, **settings: object) -> dict[str, float]:
    """One of bench/loads.py, as a process of its own."""
    command = [sys.executable, "-m", "bench.loads", name, address]
    command += [f"{key}={value}" for key, value in settings.items()]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=LOAD_TIMEOUT_S)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _go(program: Path, address: str, publishers: int) -> dict[str, float]:
    command = [str(program), "-address", address, "-topic", "load", "-publishers", str(publishers), "-seconds", "5"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=LOAD_TIMEOUT_S, env=dict(os.environ))
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _make_topic(address: str, topic: str) -> None:
    with Client.sync(address) as client:
        client.topics.create(topic, partition_count=6)


if __name__ == "__main__":
    sys.exit(main())
