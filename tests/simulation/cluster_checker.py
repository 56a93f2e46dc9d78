"""What must hold of a cluster at every moment: looks into all nodes, as no client can.

Owns the invariants I1 to I10 as far as they can be seen at one moment; what clients saw is judged by
the history. It knows the true high watermark of each partition, the largest that any leader ever had or a client was
acknowledged, and remembers the batches below it, so that nothing below it can change or go unseen. Only partitions that
are not compacted are compared batch by batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from raft_checker import Broken, RaftChecker
from sim_cluster import Cluster, Node
from sim_store import UNCLEAN

from broker.controller.state import NOBODY, ClusterState, PartitionState
from broker.raft.codec import decode_message
from broker.storage.envelope import decode_entry
from broker.storage.log_state import INDEX, key_number, offset_key

# Between two looks at the logs, in callbacks. Images and terms are looked at after each.
LOOK_STEPS = 40


@dataclass(slots=True)
class Truth:
    """What is known of one partition."""

    name: str
    compacted: bool
    high_watermark: int = 0
    batches: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """base offset -> (end offset, CRC, leader epoch), below the high watermark"""
    recorded: int = 0


class ClusterChecker:
    """Of one cluster, over its whole life."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.raft = RaftChecker()
        self.truths: dict[int, Truth] = {}
        self.images: dict[int, ClusterState] = {}
        self.leader_changes = 0
        self.isr_changes = 0
        self.looks = 0
        self.unclean_allowed = False
        self._latest = ClusterState()
        self._seen: dict[int, ClusterState] = {}
        self._cores: dict[int, object] = {}
        self._verified: dict[tuple[object, int], int] = {}
        self._steps = 0
        cluster.network.watch = self._watch
        cluster.loop.on_step = self.step

    def _watch(self, from_node: int, to_node: int, service: str, message: bytes) -> None:
        if service == "raft":
            self.raft.sent(
                decode_message(message, cluster_id=self.cluster.machine(to_node).cluster_id, node_id=to_node)
            )

    def step(self) -> None:
        """After each callback."""
        for node in self.cluster.nodes():
            node_id = node.machine.node_id
            core = node.bus.raft._core
            if self._cores.get(node_id) is not core:
                self._cores[node_id] = core
                self.raft.started(core)
            self.raft.look(node_id, core)
            state = node.bus.state
            if self._seen.get(node_id) is not state:
                self._seen[node_id] = state
                self._look_at_image(node_id, state)
        self._steps += 1
        if self._steps >= LOOK_STEPS:
            self._steps = 0
            self.look()

    # --- Images: I6, I8, I9.

    def _look_at_image(self, node_id: int, state: ClusterState) -> None:
        known = self.images.setdefault(state.index, state)
        if known is not state and known != state:
            raise Broken(f"I8: node {node_id} has another image at {state.index}: {state} instead of {known}")
        if known is not state or state.index <= self._latest.index:
            return
        for topic, number, partition in state.partitions():
            where = f"{topic.name}/{number} at {state.index}: {partition}"
            isr, elr, replicas = set(partition.isr), set(partition.elr), set(partition.replicas)
            if isr & elr or not isr | elr <= replicas:
                raise Broken(f"I6: {where}")
            for member in isr:
                registered = state.nodes.get(member)
                if registered is None or registered.fenced:
                    raise Broken(f"I6: {member} in the ISR is fenced or unknown; {where}")
            if partition.leader != NOBODY and partition.leader not in isr:
                raise Broken(f"the leader is not in sync; {where}")
            before_topic = self._latest.topic_by_id(topic.topic_id)
            if before_topic is None or number >= before_topic.partition_count:
                continue
            self._look_at_change(before_topic.partitions[number], partition, where)
        self._latest = state

    def _look_at_change(self, before: PartitionState, after: PartitionState, where: str) -> None:
        if after.leader_epoch < before.leader_epoch or after.partition_epoch < before.partition_epoch:
            raise Broken(f"I9: {where} after {before}")
        if after != before and after.partition_epoch == before.partition_epoch:
            raise Broken(f"I9: changed without a new partition epoch: {where} after {before}")
        if after.leader not in (before.leader, NOBODY) and after.leader_epoch == before.leader_epoch:
            raise Broken(f"I9: another leader in the same epoch: {where} after {before}")
        self.leader_changes += after.leader != before.leader
        self.isr_changes += after.isr != before.isr

    # --- Logs: I2, I3, I4, I5, I10.

    def look(self) -> None:
        """At all partitions."""
        self.looks += 1
        state = self._latest
        for topic, number, partition in state.partitions():
            truth = self.truths.get(partition.log_id)
            if truth is None:
                name = f"{topic.name}/{number}"
                truth = self.truths[partition.log_id] = Truth(name, compacted=topic.internal)
            for node in self.cluster.nodes():
                self._hear_leader(node, partition, truth)
            for node in self.cluster.nodes():
                if self._counts(node, state, partition):
                    self._check_member(node, partition, truth)

    def _hear_leader(self, node: Node, state: PartitionState, truth: Truth) -> None:
        partition = node.bus.partitions.find_log(state.log_id)
        led = partition._led if partition is not None else None
        if partition is None or led is None or partition.local is None:
            return
        truth.high_watermark = max(truth.high_watermark, led.high_watermark)
        if truth.recorded < led.high_watermark:
            self._record(node, partition.local.log_id, truth, led.high_watermark)
        current = led.leader_epoch == state.leader_epoch and state.leader == node.machine.node_id
        if current and node.bus.session.session_valid:
            missing = (set(state.isr) | set(state.elr)) - set(led.maximal_isr)
            if missing:
                raise Broken(f"I5: {truth.name}: leader {state.leader} does not wait for {missing}; {state}; {led.isr}")

    def _record(self, node: Node, log_id: int, truth: Truth, high_watermark: int) -> None:
        if truth.compacted:
            return
        for base, end, crc, epoch in _index(node, log_id, truth.recorded, high_watermark):
            if end > high_watermark:
                break
            truth.batches[base] = (end, crc, epoch)
            truth.recorded = end

    def _counts(self, node: Node, image: ClusterState, partition: PartitionState) -> bool:
        """Whether the controller may elect it, with this disk."""
        node_id = node.machine.node_id
        if node_id not in partition.isr and node_id not in partition.elr:
            return False
        registered = image.nodes.get(node_id)
        disk = node.machine.disk
        return registered is not None and registered.store_id == disk.store_id and UNCLEAN not in disk.files

    def _check_member(self, node: Node, partition: PartitionState, truth: Truth) -> None:
        """I2, I3, I4: whoever may be elected durably has all below the true high watermark, and nothing else there."""
        node_id, log_id = node.machine.node_id, partition.log_id
        if self.unclean_allowed:
            return
        if log_id not in node.store.log_ids():
            if truth.high_watermark > 0:
                raise Broken(f"I3: node {node_id} has no log of {truth.name}, safe up to {truth.high_watermark}")
            return
        log = node.store.log(log_id)
        if log.durable_end_offset < truth.high_watermark:
            raise Broken(
                f"I3: node {node_id} has {truth.name} durably up to {log.durable_end_offset}, of"
                f" {truth.high_watermark} that are safe; {partition}"
            )
        if truth.compacted:
            return
        key = (log, log_id)
        verified = self._verified.get(key, 0)
        if verified >= truth.recorded:
            return
        found = {base: (end, crc, epoch) for base, end, crc, epoch in _index(node, log_id, verified, truth.recorded)}
        for base, batch in truth.batches.items():
            if base >= max(verified, log.log_start_offset) and found.get(base) != batch:
                raise Broken(
                    f"I4: node {node_id} has in {truth.name} at {base} {found.get(base)}, and {batch} was safe;"
                    f" {partition}"
                )
        self._verified[key] = truth.recorded

    # --- Clients.

    def acknowledged(self, log_id: int, end_offset: int) -> None:
        """A client was told that all replicas in sync have it; the leader that said so may be dead by now."""
        truth = self.truths[log_id]
        truth.high_watermark = max(truth.high_watermark, end_offset)
        self.look()


def _index(node: Node, log_id: int, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(base offset, end offset, CRC, leader epoch) of what is written."""
    table = node.machine.disk.database("data").written.get(INDEX)
    if table is None:
        return
    first, last = table.span(offset_key(log_id, begin), offset_key(log_id, end))
    for key in table.keys[first:last]:
        entry = decode_entry(table.values[key])
        base = key_number(key)
        yield base, base + entry.span, entry.crc, entry.leader_epoch
