"""Nodes that replicate one topic, on simulated machines, under a controller that does what the test says.

The partitions, logs, links and calls are the real ones. The controller is an image that the test changes, and that
nodes hear of a little later, each at its own time; `alter_partitions` is the compare-and-set of the real one. It keeps
the truth, too: what was acknowledged, and what a high watermark has ever covered.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from postbus.v1 import publisher_pb2, topic_pb2
from sim_loop import SimLoop
from sim_machines import Machine, endpoint
from sim_network import SimNetwork
from sim_store import open_store

from broker.controller.commands import AlterPartition, PartitionId, ReportDamage, Rules
from broker.controller.decisions import decide
from broker.controller.image import apply
from broker.controller.state import ClusterState, NodeState, PartitionState, Topic
from broker.controller.topic_config import TopicDefaults
from broker.errors import PostbusError, Reason
from broker.peers.calls import Calls
from broker.replication.partition import Partition, Role
from broker.replication.partitions import Partitions
from broker.replication.settings import ReplicationSettings
from broker.storage.batch import NewBatch
from broker.storage.log_state import BATCHES, offset_key
from broker.storage.store import LogStore, StorageSettings

ALL, LEADER = int(publisher_pb2.ACKS_ALL), int(publisher_pb2.ACKS_LEADER)
LOG_ID = 11


@dataclass
class Altered:
    """See isr_changes.AlterResult."""

    error: PostbusError | None
    state: PartitionState | None = None
    topic_id: str = "topic-id"
    partition: int = 0


class TestSession:
    """A node's session: valid as the test says."""

    __test__ = False

    def __init__(self, cluster: "ReplicaCluster", node_id: int, broker_epoch: int) -> None:
        self.broker_epoch = broker_epoch
        self.session_valid = True
        self._cluster = cluster
        self._node_id = node_id

    async def alter_partitions(self, changes: list[AlterPartition]) -> list[Altered]:
        cluster = self._cluster
        await asyncio.sleep(0.002)
        if cluster.controller_silent:
            await asyncio.sleep(3600)
        if cluster.loses_requests > 0:
            cluster.loses_requests -= 1
            raise ConnectionError("lost on the way there")
        results = [cluster.alter(self._node_id, change) for change in changes]
        await asyncio.sleep(0.002)
        if cluster.loses_answers > 0:
            cluster.loses_answers -= 1
            raise ConnectionError("lost on the way back")
        return results

    async def report_damage(self, partitions: list[PartitionId]) -> list[Altered]:
        """As the real one: this node has applied what came of it."""
        cluster = self._cluster
        await asyncio.sleep(0.002)
        if cluster.loses_requests > 0:
            cluster.loses_requests -= 1
            raise ConnectionError("lost on the way there")
        result = cluster.report_damage(self._node_id)
        await asyncio.sleep(0.002)
        if cluster.loses_answers > 0:
            cluster.loses_answers -= 1
            raise ConnectionError("lost on the way back")
        cluster.machines[self._node_id].program.follow(cluster.image)
        return [result]


class Program:
    """What runs on a machine."""

    def __init__(self, machine: Machine, cluster: "ReplicaCluster") -> None:
        process = machine.process
        assert process is not None
        self.store: LogStore = open_store(
            machine.disk,
            process,
            clock=process,
            on_fatal=machine.fatal,
            settings=StorageSettings(tail_bytes_max=cluster.tail_bytes_max),
        )
        transport = machine.transport
        for node_id in range(1, cluster.count + 1):
            transport.set_address(node_id, endpoint(node_id))
        self.calls = Calls(transport, clock=process, node_id=machine.node_id, store_id=machine.me.store_id)
        self.session = TestSession(cluster, machine.node_id, 0)
        self.partitions = Partitions(
            store=self.store,
            clock=process,
            defaults=TopicDefaults(),
            node_id=machine.node_id,
            session=self.session,
            transport=transport,
            calls=self.calls,
            random=machine.random_for("replication"),
            settings=cluster.settings,
        )
        self.image = ClusterState()
        transport.start()
        # As after any start: first what was long ago, and registered only when all of that is known.
        for step, image in enumerate(cluster.history):
            machine.loop.call_in(process, step * cluster.replay_s, self.follow, image)
        machine.loop.call_in(process, len(cluster.history) * cluster.replay_s, self._register, cluster, machine.node_id)

    def _register(self, cluster: "ReplicaCluster", node_id: int) -> None:
        self.follow(cluster.image)
        self.session.broker_epoch = cluster.broker_epoch(node_id)
        self.partitions.session_changed()

    def follow(self, image: ClusterState) -> None:
        """The metadata log has come so far."""
        if image.index > self.image.index:
            before, self.image = self.image, image
            self.partitions.follow(before, image)

    @property
    def partition(self) -> Partition:
        return self.partitions.topic("t").partition(0)


class ReplicaCluster:
    """`count` machines; one topic "t" of one partition on the first `replicas` of them, led by node 1."""

    def __init__(
        self,
        loop: SimLoop,
        *,
        count: int = 3,
        replicas: tuple[int, ...] = (1, 2, 3),
        min_insync: int = 2,
        settings: ReplicationSettings | None = None,
        tail_bytes_max: int = 1 << 24,
        durability: int = topic_pb2.DURABILITY_FSYNCED,
    ) -> None:
        self.loop = loop
        self.count = count
        self.network = SimNetwork(loop)
        self.settings = settings or ReplicationSettings()
        self.tail_bytes_max = tail_bytes_max
        self.replay_s = 0.002
        """How long a start takes over each image of the past."""
        self.controller_silent = False
        self.loses_requests = 0
        self.loses_answers = 0
        self.altered: list[tuple[int, ...]] = []  # each ISR that was accepted
        self.committed: dict[int, bytes] = {}  # by offset; what a high watermark ever covered
        self.acknowledged: dict[bytes, int] = {}  # offset by payload
        self.errors: dict[bytes, PostbusError] = {}
        self._random = loop.random("controller")
        self._appended = 0
        config = topic_pb2.TopicConfig(durability=durability)
        config.min_insync_replicas = min_insync
        state = PartitionState(log_id=LOG_ID, replicas=replicas, isr=replicas, leader=replicas[0], leader_epoch=1)
        topic = Topic("t", "topic-id", (state,), len(replicas), config.SerializeToString(), (), 1)
        self.image = ClusterState(
            index=1,
            topics={"t": topic},
            topic_names={"topic-id": "t"},
            nodes={
                node_id: NodeState(node_id=node_id, store_id="", broker_epoch=node_id, fenced=False)
                for node_id in range(1, count + 1)
            },
        )
        self.history = [self.image]
        self.machines = {
            node_id: Machine(
                loop, self.network, node_id, lambda machine: Program(machine, self), cluster_id="c", clock_drift=0.0
            )
            for node_id in range(1, count + 1)
        }

    async def start(self) -> None:
        for machine in self.machines.values():
            machine.start()
        await asyncio.sleep(0.02)

    # --- the controller

    @property
    def state(self) -> PartitionState:
        return self.image.topics["t"].partitions[0]

    def broker_epoch(self, node_id: int) -> int:
        return self.image.nodes[node_id].broker_epoch

    def change(self, **fields: Any) -> None:
        """The next image, with a higher partition epoch; a new leader epoch if `leader` is among the fields."""
        state = self.state
        if "leader" in fields:
            fields.setdefault("leader_epoch", state.leader_epoch + 1)
        self._put(replace(state, partition_epoch=state.partition_epoch + 1, **fields))

    def _put(self, state: PartitionState) -> None:
        topic = replace(self.image.topics["t"], partitions=(state,))
        self.publish(replace(self.image, topics={"t": topic}))

    def node(self, node_id: int, **fields: Any) -> None:
        """A node is fenced, stops, registers anew."""
        nodes = {**self.image.nodes, node_id: replace(self.image.nodes[node_id], **fields)}
        self.publish(replace(self.image, nodes=nodes))

    def publish(self, image: ClusterState) -> None:
        """Everybody hears of it, some time."""
        image = self.image = replace(image, index=self.image.index + 1)
        self.history.append(image)
        for machine in self.machines.values():
            if machine.running:
                program, process = machine.program, machine.process
                assert process is not None
                self.loop.call_in(process, self._random.random() * 0.01, program.follow, image)

    def alter(self, node_id: int, change: AlterPartition) -> Altered:
        if not self.image.topics:
            return Altered(PostbusError(Reason.ERROR_REASON_TOPIC_NOT_FOUND, "it was deleted"))
        state = self.state
        if state.leader != node_id or state.leader_epoch != change.leader_epoch:
            return Altered(PostbusError(Reason.ERROR_REASON_NOT_LEADER, "not the leader"))
        if state.partition_epoch != change.partition_epoch:
            return Altered(PostbusError(Reason.ERROR_REASON_PRECONDITION_NOT_MET, "not this partition epoch"))
        isr = tuple(member.node_id for member in change.isr)
        for member in change.isr:
            node = self.image.nodes[member.node_id]
            if node.fenced or node.broker_epoch != member.broker_epoch:
                return Altered(PostbusError(Reason.ERROR_REASON_PRECONDITION_NOT_MET, f"node {node.node_id} is not"))
        assert node_id in isr
        min_insync = topic_pb2.TopicConfig.FromString(self.image.topics["t"].config).min_insync_replicas
        elr = tuple(n for n in (*state.isr, *state.elr) if n not in isr) if len(isr) < min_insync else ()
        after = replace(state, isr=isr, elr=elr, partition_epoch=state.partition_epoch + 1)
        self.altered.append(isr)
        self.loop.note(f"isr {isr} elr {elr}")
        self._put(after)
        return Altered(None, after)

    def report_damage(self, node_id: int) -> Altered:
        """With the real decision."""
        command = ReportDamage(
            node_id=node_id, broker_epoch=self.broker_epoch(node_id), partitions=(PartitionId("topic-id", 0),)
        )
        decision = decide(self.image, command, rules=Rules())
        (outcome,) = decision.outcomes
        if outcome.error is not None:
            return Altered(outcome.error)
        self.publish(apply(self.image, decision.records, index=self.image.index + 1))
        self.loop.note(f"damage of {node_id}: isr {self.state.isr} elr {self.state.elr} leader {self.state.leader}")
        return Altered(None, self.state)

    def fail_over(self, to: int, *, isr: tuple[int, ...] | None = None) -> None:
        """A new leader, out of the ISR or the ELR."""
        state = self.state
        assert to in (*state.isr, *state.elr)
        isr = tuple(n for n in state.isr if n != state.leader) or (to,) if isr is None else isr
        self.change(leader=to, isr=isr, elr=())

    def restart(self, node_id: int) -> None:
        """It comes back, registered anew, and not in sync."""
        state = self.state
        self.node(node_id, broker_epoch=self.image.index + 1000, fenced=False)
        if node_id in state.isr and len(state.isr) > 1:
            isr = tuple(n for n in state.isr if n != node_id)
            if state.leader == node_id:
                self.change(leader=isr[0], isr=isr)
            else:
                self.change(isr=isr)
        elif state.leader == node_id:
            self.change(leader=node_id)
        self.machines[node_id].start()

    # --- use

    def damage(self, node_id: int, offset: int, *, family: str = BATCHES) -> None:
        """The batch that begins there can't be read any more on this node's disk."""
        self.machines[node_id].disk.database("data").damage(family, offset_key(LOG_ID, offset))

    def check_in_sync(self) -> None:
        """I3: who may be elected durably has all that was acknowledged, unless the topic promises less."""
        topic = self.image.topics.get("t")
        if topic is None:
            return
        if topic_pb2.TopicConfig.FromString(topic.config).durability == topic_pb2.DURABILITY_REPLICATED:
            return
        safe = max(self.acknowledged.values(), default=-1) + 1
        for node_id in (*self.state.isr, *self.state.elr):
            machine = self.machines[node_id]
            known = machine.program.partitions.find_name("t") if machine.running else None
            if known is not None and known.partition(0).local is not None:
                has = known.partition(0).local.durable_end_offset
                assert has >= safe, f"node {node_id} has {has} of {safe}: {self.state}"

    def partition(self, node_id: int) -> Partition:
        program: Program = self.machines[node_id].program
        return program.partition

    def leads(self, node_id: int) -> bool:
        """Whether it thinks so."""
        topic = self.machines[node_id].program.partitions.find_name("t")
        return topic is not None and topic.partition(0).role is Role.LEADER

    def log(self, node_id: int) -> Any:
        return self.partition(node_id).local

    def append(self, node_id: int, payload: bytes = b"", *, acks: int = ALL, size: int = 0) -> bytes:
        """One record, in the node's own code; `acknowledged` and `errors` tell what became of it."""
        self._appended += 1
        assert self.machines[node_id].running
        payload = payload or b"%d" % self._appended
        payload = payload.ljust(size, b".")
        process = self.machines[node_id].process
        assert process is not None

        def append() -> None:
            partition = self.partition(node_id)
            published = partition.append(NewBatch(batch=payload, record_count=1))

            def done(error: PostbusError | None) -> None:
                if error is None:
                    self.acknowledged[payload] = published.base_offset
                else:
                    self.errors[payload] = error

            partition.when_safe(published.end_offset, acks, done)

        process.run(append)
        return payload

    async def until(self, holds: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
        """Waits in virtual time, looking at each millisecond."""
        end = self.loop.now + timeout_s
        while not holds():
            self.check_in_sync()
            assert self.loop.now < end, f"not within {timeout_s} s"
            await asyncio.sleep(0.001)

    async def acknowledge(self, node_id: int, count: int = 1, *, size: int = 0) -> None:
        """Appends, and waits for the acknowledgements."""
        payloads = [self.append(node_id, size=size) for _ in range(count)]
        await self.until(lambda: all(payload in self.acknowledged for payload in payloads))

    async def in_sync(self, *node_ids: int) -> None:
        """Waits until the ISR is these nodes, and all know all."""
        await self.until(lambda: set(self.state.isr) == set(node_ids))

        def settled() -> bool:
            if any(self.machines[n].program.image.index < self.image.index for n in node_ids):
                return False
            ends = {self.log(n).durable_end_offset for n in node_ids} | {self.log(n).end_offset for n in node_ids}
            return len(ends) == 1 and {self.partition(n).high_watermark for n in node_ids} == ends

        await self.until(settled)

    async def contents(self, node_id: int) -> dict[int, bytes]:
        """All that a node's log holds, by offset."""
        log = self.log(node_id)
        offset, found = log.log_start_offset, {}
        process = self.machines[node_id].process
        assert process is not None
        while offset < log.end_offset:
            batches = await process.spawn(log.read(offset, end_offset=log.end_offset, max_bytes=1 << 20))
            if not batches:
                break
            for batch in batches:
                found[batch.base_offset] = bytes(batch.batch)
            offset = batches[-1].end_offset
        return found

    def check_acknowledged(self, contents: dict[int, bytes]) -> None:
        """I1."""
        for payload, offset in self.acknowledged.items():
            assert contents.get(offset) == payload, f"offset {offset}: {contents.get(offset)!r}, not {payload!r}"
