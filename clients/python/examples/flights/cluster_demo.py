"""The same stream through three nodes, with the worst of a year in a minute.

Starts three nodes and three members, publishes every flight keyed by its tail number, and meanwhile kills the node
that leads the first partition, kills a member, starts the node again, and restarts all nodes one after the other, as
an upgrade would. Prints the table of `demo.py` and how long publishing stood still each time. Exits with 1 if
anything is lost, changed or out of order.
"""

import asyncio
import contextlib
import gzip
import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from demo import (
    FINISH_TIMEOUT_S,
    HERE,
    MEMBERS,
    TOPIC,
    Work,
    all_read,
    end,
    kill_one,
    main,
    read_work,
    report,
    start_member,
    story,
    tail_number,
)

from postbus import Client

NODES = 3
CHUNK = 1_000
# Chunks that may wait for their acknowledgement, as in a publisher that never waits for one.
UNDER_WAY = 20


@dataclass
class Node:
    """One of the three, as a process."""

    number: int
    client_port: int
    peer_port: int
    process: "subprocess.Popen[bytes] | None" = None


@dataclass
class Pauses:
    """When chunks were acknowledged; what happened meanwhile."""

    moments: list[float] = field(default_factory=list)
    events: list[tuple[float, float, str]] = field(default_factory=list)

    def longest_between(self, begin: float, end: float) -> float:
        """The longest time without an acknowledgement that overlaps this span."""
        inside = [moment for moment in self.moments if begin <= moment <= end]
        before = [moment for moment in self.moments if moment < begin][-1:] or [begin]
        after = [moment for moment in self.moments if moment > end][:1] or [end]
        line = [*before, *inside, *after]
        return max((later - earlier for earlier, later in itertools.pairwise(line)), default=0.0)


def run() -> int:
    """From the file to the report; the exit status."""
    lines = gzip.decompress((HERE / "flights.ndjson.gz").read_bytes()).splitlines()
    folder = Path(tempfile.mkdtemp(prefix="postbus-demo-"))
    try:
        with contextlib.ExitStack() as processes:
            cluster = Cluster(folder, processes)
            begin = time.monotonic()
            cluster.start_all()
            story(f"three nodes on {cluster.addresses}, ready after {time.monotonic() - begin:.1f} s")
            works = [folder / f"member-{number}.tsv" for number in range(1, MEMBERS + 1)]
            with Client.sync(cluster.addresses) as client:
                client.topics.create(TOPIC, partition_count=6)
            members = [start_member(cluster.addresses, work, processes) for work in works]
            pauses = asyncio.run(stream(cluster, lines, works, members))
            for member in members:
                end(member)
            cluster.stop_all()
        status = report(lines, [first_times(read_work(work)) for work in works])
        again = sum(handled_again(read_work(work)) for work in works)
        print(f"{again:,} more were given again to a member whose stream had broken with its node.")
        print()
        for happened_begin, happened_end, what in pauses.events:
            longest = pauses.longest_between(happened_begin, happened_end)
            print(f"{what:42}{1000 * longest:>11,.0f} ms  longest time without an acknowledgement")
        return status
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """Three processes of `postbus serve` that know of each other."""

    def __init__(self, folder: Path, processes: contextlib.ExitStack) -> None:
        self._folder = folder
        ports = free_ports(2 * NODES)
        self.nodes = [Node(number, ports[2 * number - 2], ports[2 * number - 1]) for number in range(1, NODES + 1)]
        for node in self.nodes:
            processes.callback(self.stop, node)

    @property
    def addresses(self) -> str:
        """Every node's, for clients: any of them will do."""
        return ",".join(f"127.0.0.1:{node.client_port}" for node in self.nodes)

    def start_all(self) -> None:
        """At once; returns when all are ready."""
        for node in self.nodes:
            self.launch(node)
        for node in self.nodes:
            self.until_ready(node)

    def launch(self, node: Node) -> None:
        """One process."""
        peers = ",".join(f"{each.number}@127.0.0.1:{each.peer_port}" for each in self.nodes)
        command = [sys.executable, "-m", "broker.cli.main", "serve", "--node-id", str(node.number)]
        command += ["--cluster-id", "flights", "--peers", peers, "--peer-port", str(node.peer_port)]
        command += ["--data-dir", str(self._folder / f"node-{node.number}"), "--client-port", str(node.client_port)]
        command += ["--http-port", "off", "--log-format", "json", "--disk-free-min-bytes", "100MB"]
        # Ctrl-C is for this process, which ends the others in order: hence groups of their own.
        node.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0)

    def until_ready(self, node: Node) -> None:
        """Reads its log until it says so; what it logs after that is passed over."""
        assert node.process is not None and node.process.stderr is not None
        seen = []
        for line in node.process.stderr:
            seen.append(line.decode(errors="replace"))
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line).get("event") == "node_ready":
                    threading.Thread(target=node.process.stderr.read, daemon=True).start()
                    return
        raise SystemExit(f"node {node.number} did not start:\n" + "".join(seen))

    def kill(self, node: Node) -> None:
        """SIGKILL."""
        assert node.process is not None
        node.process.kill()
        node.process.wait()

    def restart(self, node: Node) -> None:
        """In good order, and back."""
        self.stop(node)
        self.launch(node)
        self.until_ready(node)

    def stop(self, node: Node) -> None:
        """SIGTERM."""
        if node.process is not None:
            end(node.process)

    def stop_all(self) -> None:
        """In good order, all at once."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.terminate()
        for node in self.nodes:
            self.stop(node)


async def stream(
    cluster: Cluster, lines: list[bytes], works: list[Path], members: "list[subprocess.Popen[bytes]]"
) -> Pauses:
    """Publishes all lines, in rounds if need be, until all that was to happen has happened."""
    pauses = Pauses()
    giving_up = threading.Event()
    begin = time.monotonic()
    async with Client(cluster.addresses) as client:
        troubles = asyncio.create_task(trouble(client, cluster, works, members, pauses, giving_up))
        try:
            async with client.publisher() as publisher:
                await publish(publisher, lines, pauses, troubles)
            seconds = time.monotonic() - begin
            story(f"published {len(lines):,} flights in {seconds:.1f} s, fsynced on the in-sync replicas")
            await troubles
        finally:
            giving_up.set()
        await all_read(client, len(lines))
        story(f"the group had read everything {time.monotonic() - begin:.1f} s after the first was published")
    return pauses


async def publish(publisher: object, lines: list[bytes], pauses: Pauses, troubles: "asyncio.Task[None]") -> None:
    """All lines, paced so that the stream lasts as long as what happens to it."""
    waiting: set[asyncio.Task[None]] = set()

    async def acknowledged(delivery: object) -> None:
        await delivery  # type: ignore[misc]
        pauses.moments.append(time.monotonic())

    for start in range(0, len(lines), CHUNK):
        chunk = lines[start : start + CHUNK]
        delivery = await publisher.publish_many(TOPIC, [(tail_number(line), line) for line in chunk])  # type: ignore[attr-defined]
        waiting.add(asyncio.create_task(acknowledged(delivery)))
        story(f"published {start + len(chunk):,} of {len(lines):,} flights", again=True)
        if len(waiting) >= UNDER_WAY:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if troubles.done() and troubles.exception() is not None:
            await troubles
        # A record every now and then for as long as there is trouble: a pause shows only where somebody publishes.
        await asyncio.sleep(0.0 if troubles.done() else 0.1)
    if waiting:
        await asyncio.wait(waiting)


async def trouble(  # noqa: PLR0917
    client: Client,
    cluster: Cluster,
    works: list[Path],
    members: "list[subprocess.Popen[bytes]]",
    pauses: Pauses,
    giving_up: threading.Event,
) -> None:
    """What happens: a leader dies, a member dies, the node comes back, all are restarted."""

    async def happens(what: str, act: object, *args: object) -> None:
        begin = time.monotonic()
        told = await asyncio.to_thread(act, *args)  # type: ignore[arg-type]
        await settled(client)
        pauses.events.append((begin, time.monotonic(), what))
        story(told if isinstance(told, str) else what)

    await asyncio.sleep(1.0)
    first = (await partitions_of(client))[0]
    leader = cluster.nodes[first.leader_node_id - 1]
    await happens(f"killed node {leader.number}, a leader", cluster.kill, leader)
    await happens("killed a member of the group", kill_one, works, members, giving_up)

    def come_back() -> None:
        cluster.launch(leader)
        cluster.until_ready(leader)

    await happens(f"started node {leader.number} again", come_back)
    for node in cluster.nodes:
        await happens(f"restarted node {node.number}", cluster.restart, node)


async def partitions_of(client: Client) -> list:
    """As the cluster has them."""
    metadata = await client.cluster.metadata()
    return next(list(topic.partitions) for topic in metadata.topics if topic.name == TOPIC)


async def settled(client: Client) -> None:
    """Until every partition of the topic has a leader."""
    deadline = time.monotonic() + FINISH_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if all(partition.leader_node_id for partition in await partitions_of(client)):
                return
        await asyncio.sleep(0.05)
    raise SystemExit("a partition stayed without a leader")


def first_times(work: Work) -> Work:
    """What a member was given for the first time, in its order.

    A node that stops takes streams with it, and their last acknowledgements: members that come back are given those
    records again. Each time they are in the log's order, which is what the table looks at.
    """
    once = Work()
    seen: set[tuple[int, int]] = set()
    last: dict[str, str] = {}
    for place, value in work.flights:
        if place in seen:
            continue
        seen.add(place)
        flight = json.loads(value)
        tailnum = flight["tailnum"]
        once.out_of_order += tailnum is not None and flight["scheduled"] < last.get(tailnum, "")
        last[tailnum] = flight["scheduled"]
        once.flights.append((place, value))
    return once


def handled_again(work: Work) -> int:
    """How many records a member was given more than once."""
    return len(work.flights) - len({place for place, _ in work.flights})


def free_ports(count: int) -> list[int]:
    """So many that nobody listens on, below the range that outgoing connections are given."""
    found: list[int] = []
    port = 22_000
    while len(found) < count:
        port += 1
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


if __name__ == "__main__":
    sys.exit(main(run))
