"""Several nodes with coordinators, clients and calls between them, on the simulator's loop: time is virtual.

Logs are `SharedLog`s, which a test moves from node to node; members are `Agent`s, which do what a stream's session
does and write down what a group must never do.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "simulation"))

from sim_loop import SimLoop

from broker.errors import PostbusError
from broker.groups import peer_calls
from broker.groups.calls import CommitEntry, HeartbeatCall
from broker.groups.client import CoordinatorClient
from broker.groups.coordinators import Coordinators
from broker.groups.records import PartitionKey
from broker.groups.watches import Watches
from broker.peers.calls import PeerUnreachable
from broker.peers.links import PeerId

Handler = Callable[[PeerId, bytes], Awaitable[bytes]]
LINK_DELAY_S = 0.001


class LoopClock:
    """The loop's time, for all nodes."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.now

    def wall_us(self) -> int:
        return 1_750_000_000_000_000 + round(self._loop.now * 1_000_000)


class Network:
    """Calls between nodes."""

    def __init__(self) -> None:
        self.ends: dict[int, FakeCalls] = {}
        self.cut: set[frozenset[int]] = set()
        self.hung: set[int] = set()  # nodes that take questions and never answer
        self.lose_answers: Counter[str] = Counter()  # by method: how many
        self.asked: Counter[tuple[int, int, str]] = Counter()


class FakeCalls:
    """One node's end; does what `peers.calls.Calls` promises."""

    def __init__(self, network: Network, node_id: int) -> None:
        self._network = network
        self._node_id = node_id
        self.handlers: dict[str, Handler] = {}
        self._open: dict[asyncio.Future[bytes], tuple[int, asyncio.Task[None]]] = {}
        network.ends[node_id] = self

    def handle(self, method: str, handler: Handler) -> None:
        self.handlers[method] = handler

    def start_call(self, node_id: int, method: str, payload: bytes, *, timeout_s: float) -> asyncio.Future[bytes]:
        network = self._network
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if frozenset((self._node_id, node_id)) in network.cut:
            future.set_exception(PeerUnreachable(node_id, "cut", sent=False))
            return future
        network.asked[self._node_id, node_id, method] += 1
        task = asyncio.ensure_future(self._carry(node_id, method, payload, future))
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, future, task)
        self._open[future] = (node_id, task)
        future.add_done_callback(lambda _: (self._open.pop(future, None), timer.cancel()))
        return future

    async def _carry(self, node_id: int, method: str, payload: bytes, future: asyncio.Future[bytes]) -> None:
        await asyncio.sleep(LINK_DELAY_S)
        network, error, answer = self._network, None, b""
        if node_id in network.hung:
            await asyncio.sleep(1e6)
        try:
            answer = await network.ends[node_id].handlers[method](PeerId(self._node_id, "s"), payload)
        except PostbusError as raised:
            error = raised
        await asyncio.sleep(LINK_DELAY_S)
        if future.done():
            return
        if network.lose_answers[method]:
            network.lose_answers[method] -= 1
            future.set_exception(PeerUnreachable(node_id, "lost", sent=True))
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)

    def _expire(self, future: asyncio.Future[bytes], task: asyncio.Task[None]) -> None:
        task.cancel()
        if not future.done():
            future.set_exception(TimeoutError())

    def lose(self, node_id: int) -> None:
        """The link breaks: what was asked is cancelled there, and unanswered here."""
        for future, (asked, task) in list(self._open.items()):
            if asked == node_id:
                task.cancel()
                if not future.done():
                    future.set_exception(PeerUnreachable(node_id, "lost", sent=True))


class ClusterNode:
    """What a node has of groups."""

    def __init__(self, cluster: "Cluster", node_id: int) -> None:
        self.node_id = node_id
        self.calls = FakeCalls(cluster.network, node_id)
        later = cluster.loop.call_later
        self.coordinators = Coordinators(
            lambda: [log.on(node_id) for log in cluster.logs],
            cluster.topics,
            clock=cluster.clock,
            call_later=later,
            node_id=node_id,
            new_member_id=lambda: f"c{next(cluster.ids)}",
        )
        self.watches = Watches(self.coordinators, call_later=later)
        peer_calls.serve(self.calls, self.coordinators, self.watches)
        self.client = CoordinatorClient(
            self.coordinators,
            self.watches,
            self.calls,
            clock=cluster.clock,
            call_later=later,
            new_id=lambda: f"m{next(cluster.ids)}",
        )
        self.coordinators.follow()


class Cluster:
    """Nodes 1 to `size`, and the logs of the groups topic; node 1 leads them at first."""

    def __init__(self, loop: SimLoop, logs: list[Any], topics: Any, *, size: int = 3) -> None:
        self.loop = loop
        self.logs = logs
        self.topics = topics
        self.clock = LoopClock(loop)
        self.network = Network()
        self.ids = count(1)
        self.facts = Facts()
        self.joined: list[Agent] = []
        self.nodes = {node_id: ClusterNode(self, node_id) for node_id in range(1, size + 1)}

    def __getitem__(self, node_id: int) -> ClusterNode:
        return self.nodes[node_id]

    def cut(self, node_id: int) -> None:
        """The node has no links any more."""
        for other in self.nodes:
            if other != node_id:
                self.network.cut.add(frozenset((node_id, other)))
                self.nodes[node_id].calls.lose(other)
                self.nodes[other].calls.lose(node_id)

    def heal(self) -> None:
        """All links again."""
        self.network.cut.clear()

    async def agents(self, *node_ids: int, **fields: Any) -> list["Agent"]:
        """Members whose streams are on these nodes, each with its share of the partitions."""
        agents = [Agent(self, node_id, **fields) for node_id in node_ids]
        self.joined += agents
        for agent in agents:
            await agent.join()
        await asyncio.sleep(1)
        return agents


class Facts:
    """What members were told, and what must be true of it."""

    def __init__(self) -> None:
        self.owners: dict[tuple[PartitionKey, int], str] = {}
        self.fences: dict[PartitionKey, int] = {}
        self.acknowledged: dict[PartitionKey, int] = {}

    def taken(self, member_id: str, key: PartitionKey, fence: int) -> None:
        """A member was given a partition."""
        owner = self.owners.setdefault((key, fence), member_id)
        assert owner == member_id, f"{key} has two owners under fence {fence}: {owner} and {member_id}"
        assert fence >= self.fences.get(key, 0), f"{key} got fence {fence} after {self.fences[key]}"
        self.fences[key] = fence


class Agent:
    """A member: what `services.group_session` does, without records."""

    def __init__(self, cluster: Cluster, node_id: int, *, group: str = "g", topic: str = "a") -> None:
        self.cluster = cluster
        self.node = cluster[node_id]
        self.group = group
        self.topic = topic
        self.member_id = ""
        self.member_epoch = 0
        self.held: dict[PartitionKey, int] = {}
        self.places: dict[PartitionKey, int] = {}
        self.heartbeats = 0
        self.failure: PostbusError | None = None
        self._attention = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def join(self) -> None:
        call = HeartbeatCall(
            group=self.group, topics=(self.topic,), stream=True, node_id=self.node.node_id, member_id=self.member_id
        )
        reply = await self.node.client.heartbeat(call)
        self.member_id, self.member_epoch = reply.member_id, reply.member_epoch
        self.node.client.watch(self.group, self.member_id, self._attention.set)
        self._apply(reply)
        self._task = asyncio.ensure_future(self._run())

    async def commit(self, offset: int) -> None:
        """Of all that it holds."""
        keys = sorted(self.held)
        entries = [CommitEntry(*key, offset, self.held[key]) for key in keys]
        outcomes = await self.node.client.commit(self.group, self.member_id, entries)
        for key, outcome in zip(keys, outcomes, strict=True):
            if outcome is None:
                acknowledged = self.cluster.facts.acknowledged
                acknowledged[key] = max(acknowledged.get(key, 0), offset)

    def vanish(self) -> None:
        """Its node is gone: nobody says anything for it any more."""
        assert self._task is not None
        self._task.cancel()

    async def _run(self) -> None:
        try:
            while True:
                await self._attention.wait()
                self._attention.clear()
                self.heartbeats += 1
                call = HeartbeatCall(
                    group=self.group,
                    member_id=self.member_id,
                    member_epoch=self.member_epoch,
                    owned=frozenset(self.held),
                    stream=True,
                )
                try:
                    self._apply(await self.node.client.heartbeat(call))
                except PostbusError as error:
                    if not error.kind.retriable:
                        raise
                    self._attention.set()
        except PostbusError as error:
            self.failure = error

    def _apply(self, reply: Any) -> None:
        target = {assigned.key: assigned for assigned in reply.target}
        given_up = [key for key in self.held if key not in target]
        for key in given_up:
            del self.held[key]
        if given_up:
            self._attention.set()
        for key, assigned in target.items():
            if self.held.get(key) != assigned.fence:
                self.cluster.facts.taken(self.member_id, key, assigned.fence)
                self.held[key] = assigned.fence
                self.places[key] = assigned.offset


def simulate(scenario: Callable[[SimLoop], Coroutine[Any, Any, None]]) -> None:
    """Runs it on virtual time; nothing may be left unhandled."""
    loop = SimLoop(1)
    loop.simulate(scenario(loop))
    assert not loop.errors, loop.errors[0]


async def refusal(awaitable: Awaitable[Any]) -> PostbusError:
    """What it is refused with."""
    try:
        await awaitable
    except PostbusError as error:
        return error
    raise AssertionError("it was not refused")
