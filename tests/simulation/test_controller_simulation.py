"""A simulated cluster's metadata: real Raft, metadata logs, controllers and sessions; no partitions' data.

Each node of the real thing but for the loop, the network and the disk.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from postbus.v1 import error_pb2
from sim_disk import SimCommitter, SimEngine, SimMark
from sim_loop import SimLoop
from sim_machines import FaultPlan, Machine, Nemesis, endpoint
from sim_network import SimNetwork
from sim_seeds import check_replays, run_seed, seeds

from broker.clock import ClusterClock
from broker.controller.commands import (
    AddPartitions,
    AlterPartition,
    CreateTopic,
    DeleteTopic,
    Member,
    Reassignment,
    ReassignPartitions,
    RegisterNode,
    RemoveNode,
    ReserveProducerIds,
    Rules,
)
from broker.controller.controller import Controller
from broker.controller.metadata_log import MetadataLog, MetadataLogSettings
from broker.controller.producer_ids import ProducerIds
from broker.controller.quorum_watch import QuorumWatch
from broker.controller.session import NodeSession
from broker.controller.state import ClusterState, PartitionState
from broker.errors import PostbusError
from broker.peers.calls import Calls
from broker.raft import storage
from broker.raft.messages import RaftSettings
from broker.raft.node import RaftNode

CLUSTER_ID = "simulated"


class Node:
    """One node's program."""

    def __init__(self, machine: Machine, cluster: "Cluster") -> None:
        self.machine = machine
        process, disk = machine.process, machine.disk
        assert process is not None
        engine = SimEngine(disk, disk.database("meta"), process)
        committer = SimCommitter(engine, SimMark(engine), loop=machine.loop, on_fatal=machine.fatal)
        endpoints = {node_id: endpoint(node_id) for node_id in cluster.founders}
        for node_id, address in endpoints.items():
            machine.transport.set_address(node_id, address)
        self.calls = Calls(machine.transport, clock=process, node_id=machine.node_id, store_id=machine.me.store_id)
        self.log = MetadataLog(
            node_id=machine.node_id,
            calls=self.calls,
            clock=process,
            random=machine.random_for("metadata"),
            rules=Rules(expected_nodes=len(cluster.founders)),
            on_fatal=machine.fatal,
            settings=MetadataLogSettings(snapshot_entries=20),
        )
        self.raft = RaftNode(
            me=machine.me,
            cluster_id=CLUSTER_ID,
            bootstrap_voters=cluster.founders,
            loaded=storage.load(engine),
            committer=committer,
            transport=machine.transport,
            clock=process,
            random=machine.random_for("raft"),
            settings=RaftSettings(kept_entries=10),
            on_apply=self.log.applied,
            on_leading=self.log.leading,
            on_snapshot=self.log.restored,
        )
        self.log.attach(self.raft)
        self.controller = Controller(
            node_id=machine.node_id, metadata_log=self.log, raft=self.raft, calls=self.calls, clock=process
        )
        self.session = NodeSession(
            registration=RegisterNode(
                node_id=machine.node_id,
                store_id=machine.me.store_id,
                peer_endpoint=endpoint(machine.node_id),
                unclean=cluster.unclean,
            ),
            metadata_log=self.log,
            calls=self.calls,
            clock=ClusterClock(process),
        )
        self.watch = QuorumWatch(
            metadata_log=self.log,
            raft=self.raft,
            calls=self.calls,
            node_id=machine.node_id,
            peer_endpoints=endpoints,
        )
        machine.transport.add_lost_listener(self.controller.on_peer_lost)
        machine.transport.add_lost_listener(self.session.on_peer_lost)
        self.log.add_listener(lambda old, new: cluster.applied(machine.node_id, old, new))
        machine.transport.start()
        self.raft.start()
        self.session.start()
        self.watch.start()
        cluster.on_boot(self)

    def state_of(self, topic: str, number: int = 0) -> PartitionState:
        return self.log.state.topics[topic].partitions[number]

    async def execute(self, command: Any, **options: Any) -> Any:
        """In this node's process: what it waits for dies with it."""
        assert self.machine.process is not None
        return await self.machine.process.spawn(self.log.execute(command, **options))

    async def run(self, coroutine: Any) -> Any:
        assert self.machine.process is not None
        return await self.machine.process.spawn(coroutine)


class Cluster:
    def __init__(self, loop: SimLoop, size: int) -> None:
        self.loop = loop
        self.founders = tuple(range(1, size + 1))
        self.network = SimNetwork(loop)
        self.unclean = False
        self.on_boot: Callable[[Node], None] = lambda node: None
        self.images: dict[int, ClusterState] = {}
        self.machines = {
            node_id: Machine(loop, self.network, node_id, lambda machine: Node(machine, self), cluster_id=CLUSTER_ID)
            for node_id in self.founders
        }

    def applied(self, node_id: int, old: ClusterState, new: ClusterState) -> None:
        """I8: whatever is applied up to an index is the same everywhere. And what holds of every image."""
        known = self.images.setdefault(new.index, new)
        assert known == new, f"node {node_id} differs at {new.index}"
        if known is new:
            check_image(old, new)

    def start(self, *node_ids: int) -> None:
        for node_id in node_ids or self.founders:
            self.machines[node_id].start()

    def node(self, node_id: int) -> Node:
        program = self.machines[node_id].program
        assert isinstance(program, Node)
        return program

    def nodes(self) -> list[Node]:
        return [machine.program for machine in self.machines.values() if machine.running]

    async def until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> float:
        """Seconds that it took."""
        begin = self.loop.now
        while not condition():
            assert self.loop.now - begin < timeout_s, "it never came"
            await asyncio.sleep(0.01)
        return self.loop.now - begin

    async def settled(self, count: int | None = None) -> None:
        wanted = count or len(self.nodes())
        await self.until(
            lambda: all(
                sum(not known.fenced for known in node.log.state.nodes.values()) == wanted
                and node.session.session_valid
                for node in self.nodes()
            )
        )

    async def synced(self) -> None:
        await self.until(lambda: len({node.log.state.index for node in self.nodes()}) == 1)

    def controller(self) -> Node:
        (active,) = [node for node in self.nodes() if node.log.active]
        return active


def check_image(old: ClusterState, new: ClusterState) -> None:
    """I6 and I9."""
    for topic, number, state in new.partitions():
        isr, elr = set(state.isr), set(state.elr)
        assert not isr & elr and isr | elr <= set(state.replicas)
        assert not any(new.nodes[node_id].fenced for node_id in isr)
        assert bool(isr) == bool(state.leader) and (not isr or state.leader in isr)
        before = old.topic_by_id(topic.topic_id)
        if before is not None and number < before.partition_count:
            was = before.partitions[number]
            assert state.partition_epoch >= was.partition_epoch + (state != was)
            assert state.leader_epoch >= was.leader_epoch + (state.leader != was.leader)


def create(name: str = "orders", **options: Any) -> CreateTopic:
    return CreateTopic(name=name, topic_id=f"id-{name}", now_us=1, **{"partition_count": 6, **options})


def simulate(scenario: Callable[[SimLoop], Any], seed: int = 1) -> Any:
    return run_seed(scenario, seed)[1]


@pytest.mark.parametrize("seed", seeds(3))
def test_a_cluster_starts_and_any_node_takes_commands_and_reads_what_it_wrote(seed: int) -> None:
    async def scenario(loop: SimLoop) -> float:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        took_s = loop.now
        for node in cluster.nodes():
            name = f"from-{node.machine.node_id}"
            executed = await node.execute(create(name))
            assert name not in executed.before.topics and name in executed.after.topics
            assert name in node.log.state.topics
            with pytest.raises(PostbusError) as refused:
                await node.execute(CreateTopic(name=name, topic_id="another", now_us=1))
            assert refused.value.reason == error_pb2.ERROR_REASON_EXISTS
            assert refused.value.resource == ("topic", name)
        ids = [ProducerIds(node.log, block_ids=2) for node in cluster.nodes()]
        taken = [await node.run(own.take()) for node, own in zip(cluster.nodes(), ids, strict=True) for _ in range(3)]
        assert len(set(taken)) == 9
        epochs = [
            await node.run(own.next_epoch(taken[0], 0))
            for node, own in list(zip(cluster.nodes(), ids, strict=True))[:1]
        ]
        assert epochs == [1]
        with pytest.raises(PostbusError, match="stop"):
            await cluster.node(2).run(ids[1].next_epoch(taken[0], 0))
        return took_s

    assert simulate(scenario, seed) < 3


def test_a_cluster_of_one_needs_no_network() -> None:
    async def scenario(loop: SimLoop) -> float:
        cluster = Cluster(loop, 1)
        cluster.start()
        await cluster.settled()
        took_s = loop.now
        node = cluster.node(1)
        await node.execute(create())
        assert all(state.leader == 1 for state in node.log.state.topics["orders"].partitions)
        cluster.machines[1].kill()
        cluster.start()
        await cluster.settled()
        state = cluster.node(1).state_of("orders")
        assert (state.leader, state.isr, state.leader_epoch) == (1, (1,), 2)
        await cluster.node(1).execute(DeleteTopic(name="orders"))
        return took_s

    assert simulate(scenario) < 0.5


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("who", ["the controller", "another"])
def test_when_a_node_dies_others_lead_within_a_second(seed: int, who: str) -> None:
    async def scenario(loop: SimLoop) -> float:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        await cluster.controller().execute(create())
        await cluster.synced()
        active = cluster.controller().machine.node_id
        victim = active if who == "the controller" else active % 3 + 1
        cluster.machines[victim].kill()
        took_s = await cluster.until(
            lambda: all(
                state.leader not in (0, victim) and victim not in state.isr
                for node in cluster.nodes()
                for state in node.log.state.topics["orders"].partitions
            )
        )
        cluster.start(victim)
        await cluster.settled(3)
        return took_s

    assert simulate(scenario, seed) < 1.0


def test_a_node_that_hangs_knows_by_itself_that_others_may_have_taken_over() -> None:
    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        await cluster.controller().execute(create())
        await cluster.synced()
        active = cluster.controller().machine.node_id
        for victim in (active % 3 + 1, active):
            node = cluster.node(victim)
            process = node.machine.process
            assert process is not None
            process.pause()
            others = [other for other in cluster.nodes() if other is not node]
            await cluster.until(lambda: all(other.log.state.nodes[victim].fenced for other in others))  # noqa: B023
            assert not process.run(lambda: node.session.session_valid), "before anything else runs there"  # noqa: B023
            process.resume()
            await cluster.settled(3)
            assert sum(each.log.active for each in cluster.nodes()) == 1

    simulate(scenario)


def test_a_controller_that_hung_fences_nobody_for_its_own_sleep() -> None:
    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        active = cluster.controller()
        process = active.machine.process
        assert process is not None
        before = {node.log.state.index for node in cluster.nodes()}
        process.pause()
        await asyncio.sleep(0.8)
        process.resume()
        await asyncio.sleep(3)
        fenced = [state for state in cluster.images.values() if state.index > max(before)]
        assert all(not state.nodes[node_id].fenced for state in fenced for node_id in cluster.founders)

    simulate(scenario)


def test_without_a_quorum_the_error_names_who_is_missing_and_later_all_goes_on() -> None:
    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        left = cluster.node(2)
        cluster.machines[1].kill()
        cluster.machines[3].kill()
        await cluster.until(lambda: left.raft.leader_id is None)
        with pytest.raises(PostbusError) as refused:
            await left.execute(create(), timeout_s=3)
        assert refused.value.reason == error_pb2.ERROR_REASON_NO_LEADER
        assert "2 of 3 controllers unreachable: 1 (node-1:7071), 3 (node-3:7071)" in refused.value.message
        assert not left.session.session_valid
        cluster.start(1)
        await left.execute(create("again", replication_factor=2), timeout_s=20)
        await cluster.until(lambda: left.log.quorum_problem() == "")

    simulate(scenario)


def test_a_founder_that_waits_for_another_says_for_whom_and_why_a_majority_is_not_enough() -> None:
    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start(1)
        cluster.start(2)
        waiting = cluster.node(1)
        await cluster.until(lambda: waiting.log.quorum_problem().startswith("1 of 3 controllers unreachable: 3 "))
        assert waiting.log.quorum_problem().endswith("a new cluster begins once all of them have been up together")
        cluster.start(3)
        await cluster.settled()
        await cluster.until(lambda: waiting.log.quorum_problem() == "")

    simulate(scenario)


def test_a_leader_that_is_cut_off_says_that_the_outcome_is_not_known() -> None:
    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        active = cluster.controller()
        for other in cluster.founders:
            cluster.network.cut(active.machine.node_id, other)
            cluster.network.cut(other, active.machine.node_id)
        with pytest.raises(PostbusError) as refused:
            await active.execute(create(), timeout_s=4)
        assert refused.value.reason == error_pb2.ERROR_REASON_TIMEOUT
        assert "2 of 3 controllers unreachable" in refused.value.message
        cluster.network.heal_all()
        await cluster.settled(3)

    simulate(scenario)


@pytest.mark.parametrize("seed", seeds(3))
def test_commands_are_carried_out_once_though_controllers_die_under_them(seed: int) -> None:
    """Reserving ids shows it: each success is exactly one entry, each entry was somebody's."""

    async def scenario(loop: SimLoop) -> int:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        blocks: list[tuple[int, int]] = []

        async def reserve(node: Node) -> None:
            while True:
                await asyncio.sleep(0.05)
                executed = await node.log.execute(ReserveProducerIds(count=10), timeout_s=30)
                if executed.before is not executed.after:
                    blocks.append((executed.before.next_producer_id, executed.after.next_producer_id))

        asker = next(node for node in cluster.nodes() if not node.log.active)
        process = asker.machine.process
        assert process is not None
        for _ in range(5):
            process.spawn(reserve(asker))
        draw = loop.random("kills")
        for _ in range(4):
            await asyncio.sleep(draw.uniform(0.5, 2))
            await cluster.until(lambda: any(node.log.active for node in cluster.nodes()))
            active = cluster.controller()
            if active is asker:
                await active.run(active.raft.transfer_leadership())
                continue
            cluster.machines[active.machine.node_id].kill()
            await asyncio.sleep(draw.uniform(0.1, 1))
            cluster.start(active.machine.node_id)
        await asyncio.sleep(3)
        assert blocks
        assert len(set(blocks)) == len(blocks) and all(end == begin + 10 for begin, end in blocks)
        state = asker.log.state
        # At most what is under way was carried out without anyone having been told.
        assert (state.next_producer_id - 1) // 10 - len(blocks) <= 5
        return len(blocks)

    assert simulate(scenario, seed) > 50


def test_a_graceful_stop_moves_leaders_first() -> None:
    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        await cluster.controller().execute(create())
        await cluster.synced()
        node = cluster.node(2)
        begin = loop.now
        assert await node.run(node.session.hand_over(None)) == ()
        assert loop.now - begin < 0.2
        assert all(2 not in state.isr and state.leader for state in node.log.state.topics["orders"].partitions)
        await asyncio.sleep(1)
        assert not node.log.state.nodes[2].fenced, "it is heard of until it goes"

    simulate(scenario)


def test_leaders_get_their_isr_and_leadership_comes_back_gently() -> None:
    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        await cluster.controller().execute(create())
        await cluster.synced()
        cluster.machines[2].kill()
        alive = cluster.node(1)
        await cluster.until(lambda: alive.log.state.nodes[2].fenced)
        cluster.start(2)
        await cluster.settled(3)
        for node in cluster.nodes():
            state = node.log.state
            changes = [
                AlterPartition(
                    topic_id="id-orders",
                    partition=number,
                    leader_epoch=partition.leader_epoch,
                    partition_epoch=partition.partition_epoch,
                    isr=tuple(Member(node_id, state.nodes[node_id].broker_epoch) for node_id in (1, 2, 3)),
                )
                for number, partition in enumerate(state.topics["orders"].partitions)
                if partition.leader == node.machine.node_id
            ]
            if not changes:
                continue
            results = await node.run(node.session.alter_partitions(changes))
            assert [result.error for result in results] == [None] * len(changes)
            assert all(result.state is not None and sorted(result.state.isr) == [1, 2, 3] for result in results)
            results = await node.run(node.session.alter_partitions(changes))
            assert all(result.error is not None for result in results), "the partition epoch has moved on"
        took_s = await cluster.until(
            lambda: all(state.leader == state.replicas[0] for state in alive.log.state.topics["orders"].partitions)
        )
        assert 3 < took_s < 10

    simulate(scenario)


def test_a_new_node_observes_gets_replicas_votes_and_leaves_again() -> None:
    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        active = cluster.controller()
        await active.execute(create(partition_count=1))
        victim = active.machine.node_id % 3 + 1
        # One of three as an observer.
        await active.run(active.controller.change_voter(victim, voter=False))
        assert [member.voter for member in active.raft.members() if member.node_id == victim] == [False]
        await asyncio.sleep(1)
        observer = cluster.node(victim)
        await observer.execute(AddPartitions(name="orders", partition_count=2))
        await observer.run(observer.controller.change_voter(victim, voter=True))
        assert [member.voter for member in active.raft.members() if member.node_id == victim] == [True]
        # And off.
        with pytest.raises(PostbusError, match="at work"):
            await active.execute(RemoveNode(node_id=victim))
        others = tuple(node_id for node_id in cluster.founders if node_id != victim)
        moved = await observer.execute(
            ReassignPartitions(
                reassignments=tuple(
                    Reassignment(topic="orders", partition=number, replicas=others) for number in (0, 1)
                )
            )
        )
        assert [outcome.error for outcome in moved.outcomes] == [None, None]
        assert observer.log.state.topics["orders"].replication_factor == 2
        cluster.machines[victim].kill()
        await cluster.until(lambda: active.log.state.nodes[victim].fenced)
        await active.execute(RemoveNode(node_id=victim))
        await cluster.until(lambda: all(member.node_id != victim for member in active.raft.members()))

    simulate(scenario)


class Work:
    """What nodes do all the time: they manage topics, and lead partitions whose followers always catch up."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.acknowledged: dict[str, int] = {}  # topics, and at which index they were there
        self.altered_count = 0
        self.unknown_count = 0
        self.names_count = 0

    def begin(self, node: Node) -> None:
        assert node.machine.process is not None
        node.machine.process.spawn(self._manage(node))
        node.machine.process.spawn(self._lead(node))

    async def _manage(self, node: Node) -> None:
        draw = node.machine.random_for("work")
        while True:
            await asyncio.sleep(draw.expovariate(1.5))
            self.names_count += 1
            name = f"t{self.names_count}"
            try:
                executed = await node.log.execute(
                    create(name, partition_count=2, replication_factor=3, seed=draw.getrandbits(16)), timeout_s=5
                )
            except PostbusError as error:
                self.unknown_count += error.kind.outcome_unknown
                assert error.kind.retriable or error.kind.outcome_unknown, error
                continue
            assert name in node.log.state.topics
            self.acknowledged[name] = executed.after.index

    async def _lead(self, node: Node) -> None:
        node_id = node.machine.node_id
        while True:
            await asyncio.sleep(0.2)
            if not node.session.session_valid:
                continue
            state = node.log.state
            changes = []
            for topic, number, partition in state.partitions():
                there = [each for each in partition.replicas if not state.nodes[each].fenced]
                if partition.leader == node_id and set(there) > set(partition.isr):
                    members = tuple(Member(each, state.nodes[each].broker_epoch) for each in there)
                    changes.append(
                        AlterPartition(
                            topic_id=topic.topic_id,
                            partition=number,
                            leader_epoch=partition.leader_epoch,
                            partition_epoch=partition.partition_epoch,
                            isr=members,
                        )
                    )
            if changes:
                try:
                    results = await node.session.alter_partitions(changes, timeout_s=2)
                except PostbusError:
                    continue
                self.altered_count += sum(result.error is None for result in results)


async def controllers_under_faults(loop: SimLoop) -> tuple[Work, Nemesis]:
    cluster = Cluster(loop, 3)
    work = Work(cluster)
    cluster.on_boot = work.begin
    cluster.start()
    await cluster.settled()
    machines = list(cluster.machines.values())
    nemesis = Nemesis(
        loop,
        cluster.network,
        machines,
        FaultPlan(),
        leader=lambda: next((node.machine.node_id for node in cluster.nodes() if node.log.active), None),
    )
    await nemesis.run(25.0)
    await cluster.settled(3)

    def restored() -> bool:
        """Everybody is in sync everywhere, and leads what it should."""
        return all(
            len(state.isr) == 3 and not state.elr and state.leader == state.replicas[0]
            for node in cluster.nodes()
            for _, _, state in node.log.state.partitions()
        )

    await cluster.until(restored, timeout_s=30)
    for node in cluster.nodes():
        for name in work.acknowledged:
            assert name in node.log.state.topics or node.log.state.index < work.acknowledged[name], name
    return work, nemesis


@pytest.mark.parametrize("seed", seeds(3))
def test_the_cluster_s_image_survives_whatever_happens_to_its_nodes(seed: int) -> None:
    """No invariant breaks; what was acknowledged is there; once faults end, all is as it was before them."""
    _, (work, nemesis) = run_seed(controllers_under_faults, seed)
    assert len(work.acknowledged) > 10
    assert work.altered_count > 10
    assert sum(nemesis.faults.values()) > 10, nemesis.faults


def test_the_same_seed_gives_the_same_trace() -> None:
    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop, 3)
        cluster.start()
        await cluster.settled()
        await cluster.node(1).execute(create())
        cluster.machines[cluster.controller().machine.node_id].kill()
        await asyncio.sleep(2)

    check_replays(scenario, 5)
