"""Three brokers as their operator sees them: processes that are one bus, with a proxy on each directed link.

Clients are given all three addresses and nothing else. Nothing here waits for a length of time: a start waits for the
event node_ready, everything else for what the cluster itself says of its leaders.
"""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
from broker_process import WAIT_S, BrokerProcess, free_port
from bus import Bus, passes
from postbus.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    group_pb2_grpc,
    publisher_pb2_grpc,
    subscriber_pb2_grpc,
    topic_pb2,
    topic_pb2_grpc,
)
from proxy import LinkProxy, Way
from wall_clock import WallClocks

CLUSTER_ID = "testcluster"
ENVIRONMENT = {
    "POSTBUS_DISK_FREE_MIN_BYTES": "16MiB",
    "POSTBUS_MEMTABLE_BYTES": "4MiB",
    "POSTBUS_KEEPALIVE_CLIENT_PING_SECONDS_MIN": "0.5",
}
# A client finds out by itself that a host stands still.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Cluster:
    """Nodes 1 to `count`. Used like a `BrokerProcess` by the clients of the kill tests."""

    def __init__(
        self,
        folder: Path,
        *,
        count: int = 3,
        proxied: bool = False,
        clocks: WallClocks | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """clocks: where the nodes' wall clocks come from; None: from the machine."""
        self.folder = folder
        self.ready = asyncio.Event()  # clients may try: set for as long as any node might answer
        self.ready.set()
        self.nodes: dict[int, BrokerProcess] = {}
        self.paused: set[int] = set()
        self.links: dict[tuple[int, int], LinkProxy] = {}
        self._count = count
        self._proxied = proxied
        self.clocks = clocks
        self._environment = {**ENVIRONMENT, **(environment or {})}
        self._peer_ports: dict[int, int] = {}
        self._channels: dict[int, grpc.aio.Channel] = {}

    async def start(self) -> None:
        """All nodes, from wherever they are."""
        if not self.nodes:
            await self._prepare()
        waiting = [node for number, node in self.nodes.items() if not self.is_running(number)]
        for node in waiting:
            await node.start(wait=False)
        await asyncio.gather(*(node.until_ready() for node in waiting))

    async def _prepare(self) -> None:
        ports: set[int] = set()
        for number in range(1, self._count + 1):
            self.nodes[number] = BrokerProcess(self.folder / f"node-{number}")
            self.nodes[number].port = _free_port_besides(ports)
            self._peer_ports[number] = _free_port_besides(ports)
        for here in self.nodes:
            for there in self.nodes:
                if self._proxied and here != there:
                    proxy = self.links[here, there] = LinkProxy(self._peer_ports[there])
                    await proxy.start()
        for number, node in self.nodes.items():
            node.environment = {**self._environment, **self._identity(number, self._peer_ports[number])}
            if self.clocks is not None:
                node.environment.update(self.clocks.environment(number))

    def _identity(self, number: int, peer_port: int) -> dict[str, str]:
        ports = {
            there: link.port if (link := self.links.get((number, there))) else self._peer_ports[there]
            for there in range(1, self._count + 1)
        }
        if number in ports:
            ports[number] = peer_port
        return {
            "POSTBUS_NODE_ID": str(number),
            "POSTBUS_CLUSTER_ID": CLUSTER_ID,
            "POSTBUS_PEERS": ",".join(f"{there}@127.0.0.1:{port}" for there, port in ports.items()),
            "POSTBUS_PEER_PORT": str(peer_port),
        }

    async def join(self, number: int) -> BrokerProcess:
        """A node more, that the founders were not told of; ready when this returns."""
        node = self.nodes[number] = self.another(self.folder / f"node-{number}", number)
        self._peer_ports[number] = int(node.environment["POSTBUS_PEER_PORT"])
        await node.start()
        return node

    def peer_port(self, number: int) -> int:
        """Where a node listens for the others."""
        return self._peer_ports[number]

    def another(self, folder: Path, number: int) -> BrokerProcess:
        """One that is told it was this node, on other ports and in this folder; whoever asks for it ends it."""
        taken = {*self._peer_ports.values(), *(node.port for node in self.nodes.values())}
        process = BrokerProcess(folder)
        process.port, peer_port = _free_port_besides(taken), _free_port_besides(taken)
        process.environment = {**self._environment, **self._identity(number, peer_port)}
        return process

    def is_running(self, number: int) -> bool:
        """Whether there is a process."""
        return self.nodes[number].running

    async def kill(self, *numbers: int) -> None:
        """SIGKILL, all of them at once."""
        await asyncio.gather(*(self.nodes[number].kill() for number in numbers))
        self.paused.difference_update(numbers)

    async def stop(self, number: int) -> None:
        """SIGTERM; it must end well."""
        assert await self.nodes[number].stop() == 0, self.nodes[number].log()

    def pause(self, number: int) -> None:
        """SIGSTOP: it stands still and doesn't know."""
        self.nodes[number].signal(signal.SIGSTOP)
        self.paused.add(number)

    def go_on(self, number: int) -> None:
        """SIGCONT."""
        self.nodes[number].signal(signal.SIGCONT)
        self.paused.discard(number)

    def cut(self, here: int, there: int, way: Way = Way.NONE) -> None:
        """The link that `here` opens to `there`."""
        self.links[here, there].set(way)

    def isolate(self, number: int, way: Way = Way.NONE) -> None:
        """All of its links, in both directions."""
        for ends, link in self.links.items():
            if number in ends:
                link.set(way)

    def heal(self) -> None:
        """All links pass everything."""
        for link in self.links.values():
            link.set(Way.BOTH)

    async def close(self) -> None:
        """Ends what runs."""
        for number in tuple(self.paused):
            self.go_on(number)
        for channel in self._channels.values():
            await channel.close()
        await asyncio.gather(*(node.close() for node in self.nodes.values()))
        for link in self.links.values():
            await link.close()

    def log(self) -> str:
        """The end of what each logged."""
        return "\n".join(f"--- node {number}\n{node.log()}" for number, node in self.nodes.items())

    # --- what the cluster says of itself

    def stub(self, number: int, kind: Callable[[grpc.aio.Channel], Any]) -> Any:
        """A stub that talks to one node."""
        channel = self._channels.get(number)
        if channel is None:
            options = (("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50))
            channel = grpc.aio.insecure_channel(self.nodes[number].target, options=options)
            self._channels[number] = channel
        return kind(channel)

    async def metadata(self, number: int | None = None) -> cluster_pb2.GetMetadataResponse:
        """As a node sees it: this one, or any that runs."""
        asked = [number] if number else [one for one in self.nodes if self.is_running(one) and one not in self.paused]
        error: Exception | None = None
        for one in asked:
            try:
                stub = self.stub(one, cluster_pb2_grpc.ClusterServiceStub)
                return await stub.GetMetadata(cluster_pb2.GetMetadataRequest(), timeout=5, wait_for_ready=True)
            except grpc.aio.AioRpcError as failed:
                error = failed
        raise error or AssertionError("no node runs")

    async def controller(self) -> int:
        """The active controller, once there is one that runs."""
        return await self._known(lambda seen: seen.controller_node_id)

    async def leader(self, topic: str, partition: int = 0) -> int:
        """Who leads, once somebody that runs does."""

        def find(seen: cluster_pb2.GetMetadataResponse) -> int:
            for known in seen.topics:
                if known.name == topic:
                    return known.partitions[partition].leader_node_id
            return 0

        return await self._known(find)

    async def until_in_sync(self, replicas: int | None = None) -> None:
        """Until every partition has a leader and so many replicas in sync (default: all of them)."""

        def complete(seen: cluster_pb2.GetMetadataResponse) -> int:
            return int(
                all(
                    one.HasField("leader_node_id")
                    and len(one.isr_node_ids) >= min(replicas or self._count, len(one.replica_node_ids))
                    for topic in seen.topics
                    for one in topic.partitions
                )
            )

        try:
            await self._known(complete, is_node=False)
        except TimeoutError as error:
            error.add_note("\n".join([await self._view(number) for number in self.nodes]))
            raise

    async def _view(self, number: int) -> str:
        """What a node knows of leaders and replicas in sync, for people."""
        if not self.is_running(number) or number in self.paused:
            return f"node {number} does not run"
        try:
            seen = await self.metadata(number)
        except grpc.aio.AioRpcError as error:
            return f"node {number} does not answer: {error.code()}, {error.details()}"
        partitions = [
            f"{topic.name}/{one.partition} of {one.leader_node_id or 'nobody'}, {list(one.isr_node_ids)} in sync"
            for topic in seen.topics
            for one in topic.partitions
        ]
        return f"node {number}: controller {seen.controller_node_id or 'nobody'}; " + "; ".join(partitions)

    async def _known(self, find: Callable[[cluster_pb2.GetMetadataResponse], int], *, is_node: bool = True) -> int:
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    found = find(await self.metadata())
                    if found and (not is_node or (self.is_running(found) and found not in self.paused)):
                        return found
                await asyncio.sleep(0.05)  # asked again: what is awaited has no event that reaches this process


class ClusterBus(Bus):
    """Clients of the kill tests, given every node: each call goes to one by chance, so that a retry finds another."""

    def __init__(self, cluster: Cluster, seed: int = 1) -> None:
        self.broker = cluster  # type: ignore[assignment]
        self._chance = random.Random(seed)
        self._channels = {
            number: grpc.aio.insecure_channel(node.target, options=CHANNEL_OPTIONS)
            for number, node in cluster.nodes.items()
        }
        self.publisher = _OnAnyNode(self, publisher_pb2_grpc.PublisherServiceStub)  # type: ignore[assignment]
        self.subscriber = _OnAnyNode(self, subscriber_pb2_grpc.SubscriberServiceStub)  # type: ignore[assignment]
        self.groups = _OnAnyNode(self, group_pb2_grpc.GroupServiceStub)  # type: ignore[assignment]
        self.topics = _OnAnyNode(self, topic_pb2_grpc.TopicServiceStub)  # type: ignore[assignment]

    async def until_ready(self) -> None:
        """Waits for any node: clients that try on and on meanwhile take the core that starting nodes need."""
        cluster: Cluster = self.broker  # type: ignore[assignment]
        while True:
            if any(node.ready.is_set() for node in cluster.nodes.values()):
                return await super().until_ready()
            await asyncio.sleep(0.05)  # asked again: they come and go, and have no event together

    def any_channel(self) -> grpc.aio.Channel:
        """Of a node that has a process, whatever that is doing."""
        cluster: Cluster = self.broker  # type: ignore[assignment]
        numbers = [number for number in self._channels if cluster.is_running(number)]
        return self._channels[self._chance.choice(numbers or list(self._channels))]

    async def close(self) -> None:
        """All connections."""
        for channel in self._channels.values():
            await channel.close()


class _OnAnyNode:
    """A stub whose every call goes to a node of its own."""

    def __init__(self, bus: ClusterBus, kind: Callable[[grpc.aio.Channel], Any]) -> None:
        self._bus = bus
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        def call(*request: Any, timeout: float | None = None, wait_for_ready: bool | None = None) -> Any:
            # Not waiting for this node to come back: another one will do.
            return getattr(self._kind(self._bus.any_channel()), name)(*request, timeout=timeout)

        return call


@contextlib.asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[Cluster]:
    """A cluster that is started, and ended whatever happens; its log goes with what went wrong."""
    cluster = Cluster(folder, **options)
    try:
        await cluster.start()
        yield cluster
    except BaseException as error:
        error.add_note(cluster.log())
        raise
    finally:
        await cluster.close()


async def create_topic(bus: Bus, name: str, **fields: Any) -> None:
    """With retries, until there is a controller and enough nodes."""
    while True:
        try:
            await bus.until_done(bus.topics.CreateTopic, topic_pb2.CreateTopicRequest(name=name, **fields))
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                return  # the first try did it
            if not passes(error):
                raise


def _free_port_besides(taken: set[int]) -> int:
    while True:
        port = free_port(besides=taken)
        taken.add(port)
        return port
