"""Which node leads what, and which nodes there are: so that a publisher may go straight to a leader.

Only ever a short cut: any node takes everything, and forwards it. Hence an address that the cluster tells is used only
after somebody answered there who belongs to the same cluster: behind a proxy, or from another network, it may lead
nowhere, or to a bus that is not meant. What was learned also serves when all given addresses are gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from postbus import errors
from postbus.connection import Connections, backoff
from postbus.v1 import cluster_pb2

log = logging.getLogger("postbus.directory")

PROBE_TIMEOUT: Final = 2.0
PROBE_DELAY_MAX: Final = 60.0
# No topic has this name: only the cluster's id is asked for.
_NO_TOPIC: Final = "-"


class Directory:
    """What the cluster says of itself. Of one client; followed from the first publisher on."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._cluster_id = ""
        self._nodes: dict[int, cluster_pb2.Node] = {}
        self._topics: dict[str, tuple[str, dict[int, int]]] = {}  # id by name, leaders by partition
        self._good: set[str] = set()  # addresses at which the cluster answered
        self._failures: dict[str, int] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._doubts: dict[str, asyncio.Task[None]] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    def address(self, topic: str, partition: int) -> str:
        """Where its leader is; empty: not known, or not to be reached: go to any node."""
        if not self._good:
            return ""
        known = self._topics.get(topic)
        node = self._nodes.get(known[1].get(partition, 0)) if known is not None else None
        return node.endpoint if node is not None and self.usable(node.endpoint) else ""

    def usable(self, address: str) -> bool:
        """True: a node at work is there, and was seen."""
        return address in self._good

    def distrust(self, address: str, *, worked: bool = False) -> None:
        """It failed: not used until it was seen again. worked: it had answered before."""
        if address in self._good:
            self._failures[address] = 1 if worked else self._failures.get(address, 0) + 1
            self._good.discard(address)
            self._learned()
            self._probe(address)
            self._tell()

    def doubt(self, address: str) -> None:
        """Answers from there are late: asks whether anybody is there at all. gRPC's own pings take half a minute."""
        known = {*self._connections.addresses, *self._connections.learned}
        if address not in self._doubts and len(known) > 1:
            task = asyncio.get_running_loop().create_task(self._check(address), name=f"postbus-doubt-{address}")
            self._doubts[address] = task

    def add_listener(self, changed: Callable[[str], None]) -> None:
        """`changed(address)` when `address` may answer otherwise; with what is silent there, if something is."""
        self._listeners.append(changed)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._follow(), name="postbus-directory")

    def remove_listener(self, changed: Callable[[str], None]) -> None:
        """No more of that."""
        self._listeners.remove(changed)

    async def close(self) -> None:
        """Ends its tasks."""
        self._closed = True
        tasks = [*self._probes.values(), *self._doubts.values(), *([self._watch] if self._watch is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tell(self, silent: str = "") -> None:
        for listener in list(self._listeners):
            listener(silent)

    # --- following -----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        attempt = 0
        while True:
            address = self._connections.address
            try:
                if not self._cluster_id:
                    self._cluster_id = await self._ask_cluster_id(address)
                watch = self._connections.server_stream(
                    "ClusterService/WatchMetadata",
                    cluster_pb2.WatchMetadataRequest(),
                    cluster_pb2.WatchMetadataResponse.FromString,
                )
                async for change in watch:
                    attempt = 0
                    self._apply(change)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return  # A broker that does not tell; any node will do.
                log.info("no news of the cluster from %s: %s", address, error.details())
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    self._connections.rotate(address)
            except errors.Closed:
                return
            except Exception:
                log.exception("following the cluster failed")
            if self._closed:
                return  # It was cancelled just as the stream ended, and grpc.aio told it of that end alone.
            attempt += 1
            await asyncio.sleep(backoff(attempt))

    async def _ask_cluster_id(self, address: str) -> str:
        ask: Any = self._connections.channel(address).unary_unary(
            "/postbus.v1.ClusterService/GetMetadata",
            request_serializer=None,
            response_deserializer=cluster_pb2.GetMetadataResponse.FromString,
        )
        request = cluster_pb2.GetMetadataRequest(topics=[_NO_TOPIC]).SerializeToString()
        metadata = grpc.aio.Metadata(*self._connections.metadata)
        return str((await ask(request, timeout=PROBE_TIMEOUT, metadata=metadata)).cluster_id)

    def _apply(self, change: cluster_pb2.WatchMetadataResponse) -> None:
        if change.snapshot:
            self._nodes.clear()
            self._topics.clear()
        for node in change.nodes:
            self._nodes[node.node_id] = node
        for node_id in change.removed_node_ids:
            self._nodes.pop(node_id, None)
        removed = set(change.removed_topic_ids)
        if removed:
            self._topics = {name: known for name, known in self._topics.items() if known[0] not in removed}
        for topic in change.topics:
            topic_id, leaders = self._topics.get(topic.name, ("", {}))
            if topic_id != topic.topic_id:  # deleted, and created again
                leaders = {}
            for partition in topic.partitions:
                leaders[partition.partition] = partition.leader_node_id  # 0: nobody
            self._topics[topic.name] = (topic.topic_id, leaders)
        self._look_at_nodes()
        self._tell()

    # --- seeing for oneself --------------------------------------------------------------------------------------

    def _look_at_nodes(self) -> None:
        at_work = {
            node.endpoint
            for node in self._nodes.values()
            if node.endpoint and node.state != cluster_pb2.NODE_STATE_FENCED
        }
        if len(self._nodes) < 2:
            at_work = set()  # There is no way to choose.
        self._good &= at_work
        for address in [each for each in self._probes if each not in at_work]:
            self._probes.pop(address).cancel()
        for address in sorted(at_work - self._good):
            self._probe(address)
        self._learned()

    def _probe(self, address: str) -> None:
        if address not in self._probes:
            task = asyncio.get_running_loop().create_task(self._until_seen(address), name=f"postbus-probe-{address}")
            self._probes[address] = task

    async def _until_seen(self, address: str) -> None:
        while True:
            failures = self._failures.get(address, 0)
            if failures:
                # Where there is no way there will hardly be one: oftener than now and then is a nuisance.
                await asyncio.sleep(min(PROBE_DELAY_MAX, backoff(min(failures, 5)) * 2 ** max(0, failures - 5)))
            try:
                cluster_id = await self._ask_cluster_id(address)
            except (grpc.aio.AioRpcError, errors.Closed) as error:
                said = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                log.debug("no direct way to %s: %s", address, said)
            else:
                if cluster_id == self._cluster_id:
                    break
                log.warning("%s, as the cluster says, is another cluster (%s) from here: not used", address, cluster_id)
            self._failures[address] = min(failures + 1, 20)
        self._probes.pop(address, None)
        self._good.add(address)
        self._learned()
        self._tell()

    async def _check(self, address: str) -> None:
        try:
            await self._ask_cluster_id(address)
        except (grpc.aio.AioRpcError, errors.Closed) as error:
            log.info("%s is silent: %s", address, error)
            self._connections.rotate(address)
            self.distrust(address, worked=True)
            self._tell(address)
        finally:
            self._doubts.pop(address, None)

    def _learned(self) -> None:
        self._connections.learned = tuple(sorted(self._good - set(self._connections.addresses)))
