"""A whole cluster in one process: the real `Bus` and servicers on simulated machines.

Owns the wiring, and how clients reach a node: a request takes its time there and back, runs in the node's process, and
ends with `Lost` when that dies or the network eats it. Clients belong to no node; cuts between nodes do not touch them,
so that a client may well talk to the smaller side of a partition.
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from sim_loop import SimLoop
from sim_machines import Machine, endpoint
from sim_network import SimNetwork
from sim_store import open_store

from broker.bus import Bus, BusSettings
from broker.clock import ClusterClock
from broker.controller.commands import Command, CreateTopic
from broker.controller.state import ClusterState, PartitionState
from broker.controller.topic_config import TopicConfig, TopicDefaults
from broker.replication.partition import Partition
from broker.services.publisher import PublisherService, PublisherSettings
from broker.services.subscribe_start import SubscriberSettings
from broker.services.subscriber import SubscriberService
from broker.services.subscription import Surroundings

T = TypeVar("T")

CLUSTER_ID = "simulated"


class Lost(Exception):  # noqa: N818 - named for what happened
    """No answer came: whether the request was carried out is not known."""


class Node:
    """One node's program."""

    def __init__(self, machine: Machine, settings: BusSettings) -> None:
        self.machine = machine
        process = machine.process
        assert process is not None
        self.process = process
        clock = self.clock = ClusterClock(process)
        store = open_store(
            machine.disk,
            process,
            clock=clock.ages,
            on_fatal=machine.fatal,
            node_id=machine.node_id,
            cluster_id=CLUSTER_ID,
        )
        machine.transport.me = machine.me
        self.store = store
        self.bus = Bus(
            settings,
            store=store,
            loaded=Bus.load(store),
            transport=machine.transport,
            clock=clock,
            random=machine.random_for("bus"),
            on_fatal=machine.fatal,
        )
        self.publisher = PublisherService(
            publishing=self.bus.publishing,
            forwarding=self.bus.forwarding,
            has_room=lambda: store.committer.has_room,
            wait_for_room=store.wait_for_room,
            init_producer=self.bus.init_producer,
            answered=lambda code, seconds: None,
            clock=clock,
            settings=PublisherSettings(),
        )
        self.subscriber = SubscriberService(
            Surroundings(
                partitions=self.bus.partitions,
                clock=clock,
                settings=SubscriberSettings(node_id=machine.node_id),
                delivered=lambda topic, records, size: None,
            ),
            coordinator=self.bus.groups,
        )
        machine.transport.start()
        self.bus.start()


class Cluster:
    """All nodes."""

    def __init__(self, loop: SimLoop, *, size: int = 3, **settings: Any) -> None:
        self.loop = loop
        self.network = SimNetwork(loop)
        self.random = loop.random("clients")
        self._latest = ClusterState()
        peers = {node_id: endpoint(node_id) for node_id in range(1, size + 1)}

        def boot(machine: Machine) -> Node:
            return Node(
                machine,
                BusSettings(
                    client_endpoint=f"node-{machine.node_id}:7070",
                    peer_endpoint=endpoint(machine.node_id),
                    peers=peers,
                    groups_partition_count=2,
                    defaults=TopicDefaults(partition_count=2),
                    **settings,
                ),
            )

        self.machines = [
            Machine(loop, self.network, node_id, boot, cluster_id=CLUSTER_ID) for node_id in range(1, size + 1)
        ]

    def start(self) -> None:
        for machine in self.machines:
            machine.start()

    def machine(self, node_id: int) -> Machine:
        return self.machines[node_id - 1]

    def node(self, node_id: int) -> Node:
        """Running."""
        program: Node = self.machine(node_id).program
        assert program is not None
        return program

    def nodes(self) -> list[Node]:
        """Those that run."""
        return [machine.program for machine in self.machines if machine.running and machine.program is not None]

    @property
    def state(self) -> ClusterState:
        """The latest image that was seen applied anywhere."""
        for node in self.nodes():
            if node.bus.state.index > self._latest.index:
                self._latest = node.bus.state
        return self._latest

    def partition_state(self, topic: str, number: int = 0) -> PartitionState:
        return self.state.topics[topic].partitions[number]

    def partition(self, node_id: int, topic: str, number: int = 0) -> Partition:
        return self.node(node_id).bus.partitions.topic(topic).partition(number)

    def leader(self, topic: str, number: int = 0) -> int:
        """As the latest image says; 0: nobody."""
        return self.partition_state(topic, number).leader

    @property
    def controller_id(self) -> int | None:
        """The active controller of the latest term."""
        active = [node for node in self.nodes() if node.bus.metadata_log.active]
        return max(active, key=lambda node: node.bus.raft.term).machine.node_id if active else None

    # --- Clients.

    async def ask(self, node_id: int, request: Callable[[Node], Awaitable[T]], *, timeout_s: float = 10.0) -> T:
        """As a client does. Raises what the node answers, or Lost."""
        machine = self.machine(node_id)
        await asyncio.sleep(self.network.delay_s())
        process = machine.process
        if process is None or not process.alive or machine.program is None:
            raise ConnectionRefusedError(f"node {node_id} does not run")
        answer: asyncio.Future[T] = self.loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(result)  # type: ignore[arg-type]
            else:
                answer.set_exception(error)

        async def carry_out(node: Node) -> None:
            result, error = None, None
            try:
                result = await request(node)
            except Exception as raised:
                error = raised
            # The way back is the client's.
            self.loop.call_soon(settle, result, error, context=outside)

        outside = _outside()

        def gone() -> None:
            settle(None, Lost(f"node {node_id} died"))

        process.on_exit.append(gone)
        task = process.spawn(carry_out(machine.program))
        try:
            async with asyncio.timeout(timeout_s):
                result = await answer
        except TimeoutError:
            if answer.done() and not answer.cancelled() and isinstance(answer.exception(), TimeoutError):
                raise
            process.run(task.cancel)
            raise Lost(f"node {node_id} did not answer in {timeout_s} s") from None
        finally:
            if gone in process.on_exit:
                process.on_exit.remove(gone)
        await asyncio.sleep(self.network.delay_s())
        return result

    async def execute(self, command: Command, *, node_id: int | None = None, timeout_s: float = 10.0) -> Any:
        """A command, at any running node or that one."""
        if node_id is None:
            node_id = self.random.choice(self.nodes()).machine.node_id
        return await self.ask(
            node_id, lambda node: node.bus.metadata_log.execute(command, timeout_s=timeout_s), timeout_s=timeout_s + 1
        )

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replicas: int = 3,
        min_insync_replicas: int = 2,
        seed: int = 0,
    ) -> None:
        config = TopicConfig(min_insync_replicas=min_insync_replicas)
        await self.execute(
            CreateTopic(
                name=name,
                topic_id=f"id-{name}",
                now_us=1,
                partition_count=partitions,
                replication_factor=replicas,
                config=config,
                seed=seed,
            )
        )
        await self.until(
            f"topic {name} everywhere", lambda: all(name in node.bus.state.topics for node in self.nodes())
        )

    # --- Waiting.

    async def until(self, what: str, holds: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
        """Polls; raises AssertionError if it does not come about in time."""
        deadline = self.loop.now + timeout_s
        while not holds():
            if self.loop.now >= deadline:
                raise AssertionError(f"{what}: not within {timeout_s} s\n{self.describe()}")
            await asyncio.sleep(0.02)

    async def ready(self, timeout_s: float = 20.0) -> None:
        """All nodes run and are ready."""
        await self.until(
            "all nodes ready",
            lambda: len(self.nodes()) == len(self.machines) and all(node.bus.ready for node in self.nodes()),
            timeout_s=timeout_s,
        )

    def describe(self) -> str:
        lines = []
        for machine in self.machines:
            if not machine.running or machine.program is None:
                lines.append(f"node {machine.node_id}: down")
                continue
            bus = machine.program.bus
            paused = " paused" if machine.process is not None and machine.process.paused else ""
            lines.append(
                f"node {machine.node_id}:{paused} raft leader {bus.raft.leader_id} term {bus.raft.term} commit"
                f" {bus.raft.commit_index} image {bus.state.index} active {bus.metadata_log.active} epoch"
                f" {bus.session.broker_epoch} valid {bus.session.session_valid} ready: {bus.not_ready or 'yes'}"
            )
        state = self.state
        lines += [f"  {node}" for node in state.nodes.values()]
        for topic, number, partition in state.partitions():
            ends = []
            for node in self.nodes():
                log_ids = node.store.log_ids()
                if partition.log_id in log_ids:
                    log = node.store.log(partition.log_id)
                    found = node.bus.partitions.find_log(partition.log_id)
                    known = found.high_watermark if found is not None else None
                    ends.append(f"{node.machine.node_id}: {log.durable_end_offset}/{log.end_offset} hw {known}")
            lines.append(f"  {topic.name}/{number} {partition} | {'; '.join(ends)}")
        return "\n".join(lines)


def _outside() -> Any:
    import contextvars

    return contextvars.copy_context()


def call(timeout_s: float) -> Any:
    """What a servicer is told of a unary call."""
    return SimpleNamespace(peer="client", timeout_s=timeout_s)
