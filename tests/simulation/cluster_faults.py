"""What operators and disks do to a cluster beside the faults of machines: moves, drains, hand-overs, bit flips.

Owns too what a cluster may lose: a disk may go only while others that may lead have everything that was acknowledged.
Each action says whether it took effect; commands may be refused, which is no fault.
"""

import asyncio
import contextvars
import random
from collections.abc import Callable
from functools import partial

from sim_cluster import Cluster, Lost, Node
from sim_machines import Machine

from broker.controller.commands import (
    CancelReassignments,
    Command,
    DrainNode,
    ElectLeaders,
    Reassignment,
    ReassignPartitions,
    UndrainNode,
    UpdateTopic,
)
from broker.controller.topic_config import TopicConfig
from broker.errors import PostbusError
from broker.storage.log import PartitionLog
from broker.storage.log_state import BATCHES, INDEX, STATE, key_number, log_key, offset_key

WEIGHTS = {
    "stop": 1.0,
    "reassign": 1.0,
    "cancel": 0.3,
    "elect": 0.5,
    "drain": 0.4,
    "min_insync": 0.4,
    "flip_state": 0.4,
    "flip_record": 0.6,
    "transfer": 0.7,
}


class ClusterFaults:
    """Of one cluster and one of its topics."""

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self.cluster = cluster
        self.topic = topic
        self.tasks: list[asyncio.Task[None]] = []
        self.draining: set[int] = set()
        self.actions: dict[str, Callable[[random.Random], bool]] = {name: getattr(self, name) for name in WEIGHTS}

    def may_lose(self, machine: Machine) -> bool:
        """Whether what was acknowledged bears the loss of this disk now."""
        cluster, state = self.cluster, self.cluster.state
        for other in cluster.machines:
            registered = state.nodes.get(other.node_id)
            if registered is None or registered.store_id != other.disk.store_id or registered.unclean:
                return False  # another one is coming back
            if other is not machine and other.disk.database("data").damaged:
                return False  # this one may be needed to make that one whole
        for topic, _, partition in state.partitions():
            may_lead = {*partition.isr, *partition.elr}
            if machine.node_id in may_lead and len(may_lead) < 2:
                return False
            # What one replica in sync is enough for, one lost disk may take away.
            if TopicConfig.FromString(topic.config).min_insync_replicas == 1:
                return False
        leading = [node for node in cluster.nodes() if node.bus.metadata_log.active]
        if not leading:
            return False
        core = max(leading, key=lambda node: node.bus.raft.term).bus.raft._core
        disks = {other.node_id: other.disk.store_id for other in cluster.machines}
        return (
            core.log.configuration_index <= core.log.commit
            and core.log.term_at(core.log.commit) == core.term
            and len(core.configuration.voters()) == len(cluster.machines)
            and all(disks[seat.node_id] == seat.store_id for seat in core.configuration.seats)
        )

    async def calm(self) -> None:
        """Nothing that an operator began is left."""
        for node_id in sorted(self.draining):
            await self._until_done(UndrainNode(node_id=node_id))
        await self._until_done(self._min_insync(2))

    # --- Actions.

    def stop(self, draw: random.Random) -> bool:
        """A node hands over what it leads, and goes."""
        node = self._any_node(draw)
        if node is None or len(self.cluster.nodes()) <= len(self.cluster.machines) // 2 + 1:
            return False
        machine = node.machine
        outside = contextvars.copy_context()  # what the dead process began would not happen

        async def stop() -> None:
            await node.bus.hand_over()
            await node.bus.close()
            await node.store.close()
            self.cluster.loop.note(f"stopped {machine.node_id}")
            self.cluster.loop.call_soon(end, context=outside)

        def end() -> None:
            if machine.program is node:
                machine.kill()
                self.cluster.loop.call_later(draw.uniform(0.1, 2), machine.start)

        node.process.spawn(stop())
        return True

    def reassign(self, draw: random.Random) -> bool:
        ids = [machine.node_id for machine in self.cluster.machines]
        state = self.cluster.state.topics[self.topic]
        moves = [
            Reassignment(topic=self.topic, partition=number, replicas=tuple(draw.sample(ids, draw.choice((2, 3, 3)))))
            for number in range(state.partition_count)
            if draw.random() < 0.7
        ]
        return bool(moves) and self._execute(ReassignPartitions(reassignments=tuple(moves)))

    def cancel(self, draw: random.Random) -> bool:
        if not any(partition.reassigning for _, _, partition in self.cluster.state.partitions()):
            return False
        return self._execute(CancelReassignments())

    def elect(self, draw: random.Random) -> bool:
        return self._execute(ElectLeaders())

    def drain(self, draw: random.Random) -> bool:
        if self.draining:
            return self._execute(UndrainNode(node_id=self.draining.pop()))
        node_id = draw.choice(self.cluster.machines).node_id
        self.draining.add(node_id)
        return self._execute(DrainNode(node_id=node_id, move_replicas=len(self.cluster.machines) > 3))

    def min_insync(self, draw: random.Random) -> bool:
        return self._execute(self._min_insync(draw.choice((1, 2, 2))))

    def flip_state(self, draw: random.Random) -> bool:
        """A bit flips in what every start reads of the logs: the node begins anew, and says so."""
        machine = draw.choice(self.cluster.machines)
        table = machine.disk.database("data").written.get(STATE)
        if table is None or not table.keys or not self.may_lose(machine):
            return False
        machine.kill()
        machine.disk.database("data").damage(STATE, draw.choice(table.keys))
        machine.start()
        return True

    def flip_record(self, draw: random.Random) -> bool:
        """A bit flips in a batch that was safe, or in its index entry, on one node; it is read there in the end."""
        machine = draw.choice(self.cluster.machines)
        database = machine.disk.database("data")
        state = draw.choice(self.cluster.state.topics[self.topic].partitions)
        table = database.written.get(family := draw.choice((BATCHES, BATCHES, INDEX)))
        leader = next((node for node in self.cluster.nodes() if node.machine.node_id == state.leader), None)
        if database.damaged or table is None or leader is None or not self.may_lose(machine):
            return False
        partition = leader.bus.partitions.find_log(state.log_id)
        if partition is None or not partition.leading or partition.high_watermark == 0:
            return False
        first, last = table.span(log_key(state.log_id), offset_key(state.log_id, partition.high_watermark))
        if first == last:
            return False
        key = table.keys[draw.randrange(first, last)]
        database.damage(family, key)
        self.tasks.append(asyncio.ensure_future(self._read_until_whole(machine, state.log_id, (family, key))))
        return True

    async def _read_until_whole(self, machine: Machine, log_id: int, damaged: tuple[str, bytes]) -> None:
        """Memory would hide it for ever: reads the disk, as retention, compaction and slow readers do."""
        offset = key_number(damaged[1])
        while damaged in machine.disk.database("data").damaged:
            await asyncio.sleep(1.0)
            node = machine.program if machine.running else None
            if node is None or log_id not in node.store.log_ids():
                continue
            log = node.store.log(log_id)
            reading = node.process.spawn(log.in_reader(partial(_read_disk, log, offset)))
            await asyncio.wait([reading], timeout=1.0)

    def transfer(self, draw: random.Random) -> bool:
        """The controller moves."""
        node = next((node for node in self.cluster.nodes() if node.bus.metadata_log.active), None)
        if node is None:
            return False
        controller = node

        async def transfer() -> None:
            try:
                await controller.bus.raft.transfer_leadership()
            except PostbusError:
                return

        controller.process.spawn(transfer())
        return True

    # ---

    def _min_insync(self, count: int) -> UpdateTopic:
        return UpdateTopic(
            name=self.topic, paths=("config.min_insync_replicas",), config=TopicConfig(min_insync_replicas=count)
        )

    def _any_node(self, draw: random.Random) -> Node | None:
        nodes = [node for node in self.cluster.nodes() if not node.process.paused]
        return draw.choice(nodes) if nodes else None

    def _execute(self, command: Command) -> bool:
        async def execute() -> None:
            try:
                await self.cluster.execute(command)
            except (PostbusError, Lost, ConnectionRefusedError, IndexError):
                return

        self.tasks.append(asyncio.ensure_future(execute()))
        return True

    async def _until_done(self, command: Command) -> None:
        for _ in range(20):
            try:
                await self.cluster.execute(command)
                return
            except (PostbusError, Lost, ConnectionRefusedError, IndexError) as error:
                failure = error
                await asyncio.sleep(0.5)
        raise AssertionError(f"{command}: {failure!r}")


def _read_disk(log: PartitionLog, offset: int) -> None:
    log.reader.read(offset, end_offset=offset + 1, max_bytes=1)
