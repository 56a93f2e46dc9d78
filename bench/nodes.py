"""Several nodes that are one bus, each a process of its own, for a measurement."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postbus import Client

CLUSTER_ID = "bench"
READY_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Member:
    """One node."""

    node_id: int
    folder: Path
    client_port: int
    peer_port: int
    http_port: int
    process: "subprocess.Popen[bytes] | None" = None
    log_start: int = 0
    """Where the latest start begins in its log."""

    @property
    def log(self) -> Path:
        """What it wrote."""
        return self.folder.with_suffix(".log")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


@dataclass(slots=True)
class Nodes:
    """All of them."""

    members: list[Member]
    start_seconds: float = 0.0
    """From the first command until the last was ready."""
    settings: dict[str, str] = field(default_factory=dict)
    log_level: str = "info"

    @property
    def address(self) -> str:
        """Every node's, for clients."""
        return ",".join(member.address for member in self.members)

    @property
    def address_of_running(self) -> str:
        """Of those that are left."""
        return ",".join(member.address for member in self.members if member.process is not None)

    def member(self, node_id: int) -> Member:
        """By number."""
        return self.members[node_id - 1]

    def start(self, *only: int) -> None:
        """Those that do not run (or only these), at once; returns when they are ready."""
        begin = time.perf_counter()
        waiting = [one for one in self.members if one.process is None and (not only or one.node_id in only)]
        peers = ",".join(f"{one.node_id}@127.0.0.1:{one.peer_port}" for one in self.members)
        for one in waiting:
            command = [sys.executable, "-m", "broker.cli.main", "serve", "--data-dir", str(one.folder)]
            command += ["--node-id", str(one.node_id), "--cluster-id", CLUSTER_ID, "--peers", peers]
            command += ["--client-port", str(one.client_port), "--peer-port", str(one.peer_port)]
            command += ["--http-port", str(one.http_port), "--log-format", "json", "--log-level", self.log_level]
            for name, value in self.settings.items():
                command += [f"--{name}", value]
            one.folder.parent.mkdir(parents=True, exist_ok=True)
            # Into a file: a pipe that nobody reads would stop the node once it is full.
            with one.log.open("ab") as output:
                one.log_start = output.tell()
                one.process = subprocess.Popen(command, stderr=output, stdout=subprocess.DEVNULL)
        for one in waiting:
            _until_ready(one)
        self.start_seconds = time.perf_counter() - begin

    def kill(self, node_id: int) -> None:
        """As a crash would."""
        one = self.member(node_id)
        assert one.process is not None
        one.process.send_signal(signal.SIGKILL)
        one.process.wait()
        one.process = None

    def terminate(self, node_id: int) -> None:
        """As an upgrade would: SIGTERM, and wait."""
        one = self.member(node_id)
        assert one.process is not None
        one.process.terminate()
        one.process.wait()
        one.process = None

    def stop(self) -> None:
        """All, in good order."""
        running = [one.process for one in self.members if one.process is not None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for one in self.members:
            one.process = None

    def holds_above_100_ms(self) -> float:
        """How often an event loop was held for longer, over all nodes that run, since their start."""
        return sum(_holds(one) for one in self.members if one.process is not None)


@contextlib.contextmanager
def running(folder: Path, count: int = 3, **settings: str) -> Iterator[Nodes]:
    """So many nodes on free ports until the block ends."""
    ports = _free_ports(3 * count)
    nodes = Nodes([Member(n + 1, folder / f"node-{n + 1}", *ports[3 * n : 3 * n + 3]) for n in range(count)])
    nodes.settings = {name.replace("_", "-"): value for name, value in settings.items()}
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()


def metadata(nodes: Nodes) -> Any:
    """What the cluster says of itself."""
    with Client.sync(nodes.address) as client:
        return client.cluster.metadata()


def _until_ready(one: Member) -> None:
    assert one.process is not None
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and one.process.poll() is None:
        with one.log.open("rb") as written:
            written.seek(one.log_start)
            if b'"node_ready"' in written.read():
                return
        time.sleep(0.01)
    raise SystemExit(f"node {one.node_id} did not start:\n" + "\n".join(one.log.read_text().splitlines()[-30:]))


def _holds(one: Member) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{one.http_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    name = "postbus_event_loop_lag_seconds"
    total = next(float(line.split()[1]) for line in lines if line.startswith(f"{name}_count"))
    within = next(float(line.split()[1]) for line in lines if line.startswith(f'{name}_bucket{{le="0.1"}}'))
    return total - within


def _free_ports(count: int) -> list[int]:
    """Below the range that outgoing connections are given."""
    found: list[int] = []
    port = 21_000
    while len(found) < count:
        port += 1
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found
