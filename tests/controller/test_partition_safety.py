"""Whatever happens to nodes and partitions, nobody leads without the records that were acknowledged.

A naive model knows who has every acknowledged record of a partition: a record is acknowledged only while enough are in
sync, and then, at worst, only they have it; a disk that went, or was found to have lost something, has nothing,
nor has a copy that was found to be damaged.
"""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from images import create, joined, register, step

from broker.controller import image
from broker.controller.commands import (
    AlterPartition,
    AlterPartitions,
    CancelReassignments,
    Command,
    DrainNode,
    ElectLeaders,
    FenceNodes,
    HandOver,
    Member,
    PartitionId,
    PartitionName,
    Reassignment,
    ReassignPartitions,
    ReportDamage,
    RestorePreferred,
    StopNode,
    UndrainNode,
    UnfenceNode,
    UpdateTopic,
)
from broker.controller.state import ClusterState, PartitionState, Topic
from broker.controller.topic_config import TopicConfig, min_insync_replicas
from broker.errors import PostbusError

NODES = (1, 2, 3, 4)
TOPIC = "orders"

node_ids = st.sampled_from(NODES)
numbers = st.integers(0, 2)
some_nodes = st.lists(node_ids, max_size=4, unique=True).map(tuple)
ACTIONS = st.one_of(
    st.tuples(st.just("publish")),
    st.tuples(st.just("alter"), numbers, some_nodes, st.integers(-1, 12)),
    st.tuples(st.just("fence"), some_nodes),
    st.tuples(st.just("unfence"), node_ids),
    st.tuples(st.just("unfence"), node_ids),
    st.tuples(st.just("register"), node_ids, st.sampled_from(["same", "same", "new disk", "unclean"])),
    st.tuples(st.just("stop"), node_ids),
    st.tuples(st.just("drain"), node_ids, st.booleans()),
    st.tuples(st.just("undrain"), node_ids),
    st.tuples(st.just("hand over"), node_ids),
    st.tuples(st.just("damage"), node_ids, numbers),
    st.tuples(st.just("elect"), numbers, st.sampled_from([False, False, False, True])),
    st.tuples(st.just("reassign"), numbers, some_nodes),
    st.tuples(st.just("reassign all"), some_nodes),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("restore"), some_nodes),
    st.tuples(st.just("min insync"), st.integers(1, 3)),
)


@dataclass
class Model:
    """Who has everything that was acknowledged."""

    state: ClusterState = field(default_factory=lambda: joined(*NODES))
    complete: list[set[int]] = field(default_factory=list)
    stores: int = 0

    def __post_init__(self) -> None:
        self.state, _ = step(self.state, create(TOPIC, partition_count=3, seed=1))
        self.complete = [set(partition.replicas) for partition in self.topic.partitions]

    @property
    def topic(self) -> Topic:
        return self.state.topics[TOPIC]

    @property
    def min_insync(self) -> int:
        config = TopicConfig.FromString(self.topic.config)
        return min_insync_replicas(config, replication_factor=self.topic.replication_factor)

    def publish(self) -> None:
        for number, partition in enumerate(self.topic.partitions):
            if partition.leader and len(partition.isr) >= self.min_insync:
                self.complete[number] = set(partition.isr)

    def act(self, *action: object) -> None:
        match action:
            case ("publish",):
                self.publish()
            case ("register", int(node_id), str(how)):
                self.register(node_id, how)
            case ("alter", int(number), _, int(stale)) if 0 <= stale <= 5:
                before = self.topic.partitions[number]
                assert not self.carry_out(self.command(*action)) or self.topic.partitions[number] is before
            case _:
                self.carry_out(self.command(*action))

    def register(self, node_id: int, how: str) -> None:
        node = self.state.nodes[node_id]
        if how == "new disk":
            self.stores += 1
        store_id = f"disk-{self.stores}" if how == "new disk" else node.store_id
        refused = not self.carry_out(register(node_id, store_id=store_id, unclean=how == "unclean"))
        assert refused == (how == "new disk" and not node.fenced), "two nodes with one id"
        if how != "same" and not refused:
            for complete in self.complete:
                complete.discard(node_id)
            self.check()

    def command(self, *action: object) -> Command:
        match action:
            case ("alter", int(number), tuple(isr), int(stale)):
                return self.alter(number, isr, stale)
            case ("fence", tuple(nodes)):
                return FenceNodes(node_ids=nodes)
            case ("unfence", int(node_id)):
                return UnfenceNode(node_id=node_id, broker_epoch=self.state.nodes[node_id].broker_epoch)
            case ("stop", int(node_id)):
                return StopNode(node_id=node_id, broker_epoch=self.state.nodes[node_id].broker_epoch)
            case ("drain", int(node_id), bool(move)):
                return DrainNode(node_id=node_id, move_replicas=move)
            case ("undrain", int(node_id)):
                return UndrainNode(node_id=node_id)
            case ("hand over", int(node_id)):
                return HandOver(node_id=node_id)
            case ("damage", int(node_id), int(number)):
                return ReportDamage(
                    node_id=node_id,
                    broker_epoch=self.state.nodes[node_id].broker_epoch,
                    partitions=(PartitionId(self.topic.topic_id, number),),
                )
            case ("elect", int(number), bool(unclean)):
                return ElectLeaders(partitions=(PartitionName(TOPIC, number),), unclean=unclean)
            case ("reassign", int(number), tuple(replicas)):
                return ReassignPartitions(
                    reassignments=(Reassignment(topic=TOPIC, partition=number, replicas=replicas),)
                )
            case ("reassign all", tuple(replicas)):
                return ReassignPartitions(
                    reassignments=tuple(
                        Reassignment(topic=TOPIC, partition=number, replicas=replicas) for number in range(3)
                    )
                )
            case ("cancel",):
                return CancelReassignments()
            case ("restore", tuple(nodes)):
                return RestorePreferred(node_ids=nodes, limit=2)
            case ("min insync", int(count)):
                return UpdateTopic(name=TOPIC, paths=("config",), config=TopicConfig(min_insync_replicas=count))
        raise AssertionError(action)

    def alter(self, number: int, isr: tuple[int, ...], stale: int) -> AlterPartitions:
        """What a leader asks for; with one thing out of date if `stale` chooses it."""
        partition = self.topic.partitions[number]
        nodes = self.state.nodes
        leader = partition.leader or 1
        wanted = dict.fromkeys((leader, *isr) if stale != 3 else (*isr, 9))
        return AlterPartitions(
            node_id=leader if stale != 4 else leader % 4 + 1,
            broker_epoch=nodes[leader].broker_epoch - (stale == 0),
            changes=(
                AlterPartition(
                    topic_id=self.topic.topic_id,
                    partition=number,
                    leader_epoch=partition.leader_epoch - (stale == 1),
                    partition_epoch=partition.partition_epoch - (stale == 2),
                    isr=tuple(
                        Member(node_id, nodes[node_id].broker_epoch - (stale == 5) if node_id in nodes else 1)
                        for node_id in wanted
                    ),
                ),
            ),
        )

    def carry_out(self, command: Command) -> bool:
        before = self.state
        try:
            self.state, decision = step(before, command)
        except PostbusError:
            return False
        unclean = dict.fromkeys(number for _, number in decision.unclean)
        for number, (was, now) in enumerate(zip(before.topics[TOPIC].partitions, self.topic.partitions, strict=True)):
            check_epochs(was, now)
            if isinstance(command, AlterPartitions):
                self.complete[number] |= set(now.isr) - set(was.isr)  # its leader has seen it catch up
                if was != now:
                    assert command.node_id == was.leader
            if number in unclean:
                assert isinstance(command, ElectLeaders) and command.unclean
                self.complete[number] = {now.leader}
        for outcome in decision.outcomes:
            if outcome.error is None and isinstance(command, ReportDamage):
                # From now on the node may empty its copy, and what its leader was about to ask for must be refused.
                self.complete[outcome.partition].discard(command.node_id)
                now, was = self.topic.partitions[outcome.partition], before.topics[TOPIC].partitions[outcome.partition]
                assert now.partition_epoch > was.partition_epoch or command.node_id not in now.replicas
            if outcome.error is None and isinstance(command, AlterPartitions):
                wanted = {member.node_id for member in command.changes[0].isr}
                now = self.topic.partitions[outcome.partition]
                assert set(now.isr) == wanted & set(now.replicas)
        self.check()
        return True

    def check(self) -> None:
        for number, partition in enumerate(self.topic.partitions):
            check_shape(self.state, partition, self.min_insync)
            holders = {*partition.isr, *partition.elr}
            assert holders <= self.complete[number], f"{holders} may lead, {self.complete[number]} have all"
        snapshot = image.to_snapshot(self.state)
        assert image.from_snapshot(snapshot) == self.state


def check_shape(state: ClusterState, partition: PartitionState, min_insync: int) -> None:
    """I6, and what elections rely on."""
    replicas, isr, elr = set(partition.replicas), set(partition.isr), set(partition.elr)
    assert len(replicas) == len(partition.replicas) > 0
    assert not isr & elr and isr | elr <= replicas
    assert not any(state.nodes[node_id].fenced for node_id in isr)
    assert not (elr and len(isr) >= min_insync)
    assert bool(isr) == bool(partition.leader) and (not isr or partition.leader in isr)
    assert {*partition.adding, *partition.removing} <= replicas
    assert not set(partition.adding) & set(partition.removing)
    assert partition.target
    if not partition.leader:
        assert all(state.nodes[node_id].fenced for node_id in elr), "somebody could lead"


def check_epochs(before: PartitionState, after: PartitionState) -> None:
    """I9."""
    assert (after.partition_epoch > before.partition_epoch) == (after != before)
    assert after.partition_epoch >= before.partition_epoch
    assert after.leader_epoch >= before.leader_epoch
    if after.leader != before.leader:
        assert after.leader_epoch > before.leader_epoch
    elif after.leader:
        assert after.leader_epoch == before.leader_epoch or set(before.isr) != set(after.isr)


@settings(max_examples=500, deadline=None)
@given(st.lists(ACTIONS, max_size=30))
def test_whoever_may_lead_has_every_acknowledged_record(actions: list[tuple[object, ...]]) -> None:
    model = Model()
    for action in actions:
        model.act(*action)
        model.publish()


@settings(max_examples=100, deadline=None)
@given(st.lists(ACTIONS, max_size=30))
def test_once_all_nodes_are_back_every_partition_is_led_or_its_records_are_lost(
    actions: list[tuple[object, ...]],
) -> None:
    model = Model()
    for action in actions:
        model.act(*action)
    for node_id in NODES:
        model.carry_out(register(node_id, store_id=model.state.nodes[node_id].store_id))
    for node_id in NODES:
        model.act("unfence", node_id)
    for number, partition in enumerate(model.topic.partitions):
        assert partition.leader or not {*partition.isr, *partition.elr}, (number, partition)
