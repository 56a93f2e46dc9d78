"""The driver keeps its order and its promises: real nodes, on a loop, links and disks in virtual time.

Faults at random are tests/simulation's; here each promise is brought about by hand.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from sim_disk import SimCommitter, SimEngine, SimMark
from sim_loop import SimLoop
from sim_machines import Machine, endpoint
from sim_network import SimNetwork

from broker.errors import PostbusError, Reason
from broker.peers.links import PeerId
from broker.raft import storage
from broker.raft.codec import decode_message, encode_message
from broker.raft.messages import EntryTooLarge, Heartbeat, Message, NotLeader, RaftSettings
from broker.raft.node import RaftNode

CLUSTER_ID = "c"
SETTINGS = RaftSettings(kept_entries=2)


class Program:
    """What one node's state machine sees."""

    def __init__(self, machine: Machine, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.events: list[tuple[Any, ...]] = []
        process = machine.process
        assert process is not None
        engine = SimEngine(machine.disk, machine.disk.database("meta"), process)
        self.committer = SimCommitter(engine, SimMark(engine), loop=machine.loop, on_fatal=lambda error: None)
        self.submits = 0
        for node_id in cluster.addresses.get(machine.node_id, cluster.founders):
            machine.transport.set_address(node_id, endpoint(node_id))
        self.node = RaftNode(
            me=machine.me,
            cluster_id=CLUSTER_ID,
            bootstrap_voters=cluster.founders,
            loaded=storage.load(engine),
            committer=SimpleNamespace(submit=self._submit),
            transport=machine.transport,
            clock=process,
            random=machine.random_for("raft"),
            settings=SETTINGS,
            on_apply=lambda index, data: self.events.append(("apply", index, data)),
            on_leading=lambda term: self.events.append(("leading", term)),
            on_snapshot=lambda index, data: self.events.append(("snapshot", index, data)),
        )
        machine.transport.start()
        self.node.start()

    def _submit(self, ops: Any, **options: Any) -> int:
        self.submits += 1
        return self.committer.submit(ops, **options)

    @property
    def applied(self) -> list[bytes]:
        return [event[2] for event in self.events if event[0] == "apply" and event[2]]

    @property
    def leads(self) -> bool:
        told = [event[1] for event in self.events if event[0] == "leading"]
        return bool(told) and told[-1] is not None


class Cluster:
    """Machines by number."""

    def __init__(self, loop: SimLoop, founders: tuple[int, ...]) -> None:
        self.loop = loop
        self.founders = founders
        self.addresses: dict[int, tuple[int, ...]] = {}
        self.network = SimNetwork(loop)
        self.machines: dict[int, Machine] = {}
        self.messages: Counter[str] = Counter()
        self.network.watch = self._watch
        for node_id in founders:
            self.add(node_id)

    def _watch(self, from_node: int, to_node: int, service: str, message: bytes) -> None:
        body = decode_message(message, cluster_id=CLUSTER_ID, node_id=to_node).body
        self.messages[type(body).__name__] += 1

    def add(self, node_id: int) -> Program:
        machine = self.machines[node_id] = Machine(
            self.loop, self.network, node_id, lambda machine: Program(machine, self), cluster_id=CLUSTER_ID
        )
        machine.start()
        return self.program(node_id)

    def program(self, node_id: int) -> Program:
        program: Program = self.machines[node_id].program
        return program

    def node(self, node_id: int) -> RaftNode:
        return self.program(node_id).node

    async def until(self, done: Callable[[], bool], *, within_s: float = 5.0) -> float:
        """Waits, in virtual time; returns how long."""
        began = self.loop.now
        while not done():
            assert self.loop.now - began < within_s, "it does not come to that"
            await asyncio.sleep(0.005)
        return self.loop.now - began

    def leader_id(self) -> int:
        leading = [at for at, machine in self.machines.items() if machine.running and machine.program.leads]
        return max(leading, key=lambda at: self.node(at).term, default=0)

    async def formed(self) -> int:
        """Returns the leader."""
        await self.until(
            lambda: self.leader_id() > 0 and all(self.node(at).leader_id == self.leader_id() for at in self.founders)
        )
        return self.leader_id()

    async def run(self, node_id: int, ask: Callable[[RaftNode], Awaitable[Any]]) -> Any:
        """Asks a node, in its own process."""
        machine = self.machines[node_id]
        assert machine.process is not None

        async def asked() -> Any:
            return await ask(machine.program.node)

        return await machine.process.spawn(asked())

    def propose(self, node_id: int, data: bytes) -> int:
        machine = self.machines[node_id]
        assert machine.process is not None
        index: int = machine.process.run(machine.program.node.propose, data)
        return index


Scenario = Callable[[Cluster], Awaitable[None]]


def simulate(scenario: Scenario, *, founders: tuple[int, ...] = (1, 2, 3), seed: int = 1) -> None:
    loop = SimLoop(seed)

    async def main() -> None:
        await scenario(Cluster(loop, founders))

    loop.simulate(main())
    assert not loop.errors, loop.errors


def test_a_lone_voter_leads_after_one_write_without_waiting() -> None:
    """And applies nothing before that write is durable."""

    async def scenario(cluster: Cluster) -> None:
        program = cluster.program(1)
        assert program.events == []
        took_s = await cluster.until(lambda: program.leads)
        assert took_s < SETTINGS.tick_ms / 1000
        assert program.submits == 1
        assert program.events == [("apply", 1, b""), ("leading", 1)]
        assert cluster.propose(1, b"a") == 2
        assert program.applied == []
        await cluster.until(lambda: program.applied == [b"a"])

    simulate(scenario, founders=(1,))


def test_what_is_proposed_in_one_turn_shares_one_write() -> None:
    async def scenario(cluster: Cluster) -> None:
        program = cluster.program(1)
        await cluster.until(lambda: program.leads)
        before = program.submits
        for number in range(50):
            cluster.propose(1, b"%d" % number)
        await cluster.until(lambda: len(program.applied) == 50)
        assert program.submits == before + 1

    simulate(scenario, founders=(1,))


def test_a_start_replays_the_image_then_what_is_known_to_be_committed() -> None:
    async def scenario(cluster: Cluster) -> None:
        program = cluster.program(1)
        await cluster.until(lambda: program.leads)
        for number in range(5):
            cluster.propose(1, b"%d" % number)
        await cluster.until(lambda: len(program.applied) == 5)
        machine = cluster.machines[1]
        assert machine.process is not None
        machine.process.run(program.node.take_snapshot, 4, b"image of 0 1 2")
        cluster.propose(1, b"5")
        await cluster.until(lambda: len(program.applied) == 6)
        machine.kill()
        machine.start()
        again = cluster.program(1)
        assert again.events[0] == ("snapshot", 4, b"image of 0 1 2")
        await cluster.until(lambda: again.leads)
        assert again.applied == [b"3", b"4", b"5"]

    simulate(scenario, founders=(1,))


def test_three_nodes_apply_the_same_in_the_same_order() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        for number in range(100):
            cluster.propose(leader, b"%d" % number)
            if number % 7 == 0:
                await asyncio.sleep(0.003)
        expected = [b"%d" % number for number in range(100)]
        await cluster.until(lambda: all(cluster.program(at).applied == expected for at in (1, 2, 3)))
        for follower in {1, 2, 3} - {leader}:
            with pytest.raises(NotLeader) as refused:
                cluster.propose(follower, b"x")
            assert refused.value.leader_id == leader
        with pytest.raises(EntryTooLarge):
            cluster.propose(leader, bytes(SETTINGS.entry_bytes_max + 1))

    simulate(scenario)


def test_three_new_nodes_are_a_cluster_within_a_second() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.formed()
        assert cluster.loop.now < 1.0

    for seed in range(5):
        simulate(scenario, seed=seed)


def test_after_the_death_of_the_leader_the_next_is_there_soon() -> None:
    """The link breaks with its process, which is not waited out."""
    took: list[float] = []

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        await asyncio.sleep(1)
        cluster.machines[leader].kill()
        took.append(await cluster.until(lambda: cluster.leader_id() not in (0, leader)))

    for seed in range(20):
        simulate(scenario, seed=seed)
    took.sort()
    assert took[10] < 0.15
    assert took[-1] < 1.0


def test_a_leader_that_falls_silent_is_replaced_and_told() -> None:
    """What it had proposed alone is lost: on_leading(None) comes before anything else at that index."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        others = [at for at in (1, 2, 3) if at != leader]
        for other in others:
            cluster.network.cut(leader, other)
            cluster.network.cut(other, leader)
        lost = cluster.propose(leader, b"lost")
        await cluster.until(lambda: cluster.leader_id() in others, within_s=2.0)
        cluster.propose(cluster.leader_id(), b"kept")
        await cluster.until(lambda: not cluster.program(leader).leads, within_s=1.0)
        with pytest.raises(NotLeader):
            cluster.propose(leader, b"x")
        cluster.network.heal_all()
        await cluster.until(lambda: cluster.program(leader).applied == [b"kept"])
        kinds = [event[:2] for event in cluster.program(leader).events]
        assert kinds.index(("leading", None)) < kinds.index(("apply", lost))

    simulate(scenario)


def test_a_hanging_disk_costs_a_node_its_leadership() -> None:
    """Its heartbeats wait behind the write that does not end."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        cluster.machines[leader].disk.speed.factor = 5_000
        cluster.propose(leader, b"stuck")
        await cluster.until(lambda: cluster.leader_id() != leader, within_s=3.0)

    simulate(scenario)


def test_leadership_is_handed_over_on_request() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        cluster.propose(leader, b"a")
        target = leader % 3 + 1
        assert await cluster.run(leader, lambda node: node.transfer_leadership(target)) is True
        await cluster.until(lambda: cluster.leader_id() == target, within_s=0.2)
        assert await cluster.run(target, lambda node: node.transfer_leadership()) is True
        await cluster.until(lambda: cluster.leader_id() != target, within_s=0.2)
        assert await cluster.run(target, lambda node: node.transfer_leadership()) is False

    simulate(scenario)


def test_leadership_stays_where_the_successor_does_not_answer() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        target = leader % 3 + 1
        cluster.network.cut(leader, target)
        began = cluster.loop.now
        assert await cluster.run(leader, lambda node: node.transfer_leadership(target)) is False
        assert cluster.loop.now - began < 1.0
        cluster.propose(leader, b"goes on")
        with pytest.raises(PostbusError) as refused:
            await cluster.run(leader, lambda node: node.transfer_leadership(9))
        assert refused.value.reason == Reason.ERROR_REASON_PRECONDITION_NOT_MET

    simulate(scenario)


def test_members_come_and_go() -> None:
    """A fourth node knows the others' addresses and they not its own; it is answered on its own link."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        cluster.propose(leader, b"a")
        fourth = cluster.add(4)
        assert [member.node_id for member in fourth.node.members()] == []
        await cluster.until(lambda: fourth.applied == [b"a"])
        assert not fourth.node.is_voter
        await cluster.run(leader, lambda node: node.promote(4))
        await cluster.run(leader, lambda node: node.promote(4))
        await cluster.until(lambda: fourth.node.is_voter)
        members = cluster.node(leader).members()
        assert [(member.node_id, member.voter) for member in members] == [(at, True) for at in (1, 2, 3, 4)]
        assert all(member.match_index and member.last_heard_s is not None for member in members)
        assert all(member.last_heard_s < 1.0 for member in members if member.last_heard_s is not None)
        for node_id in (4, 4):
            await cluster.run(leader, lambda node, at=node_id: node.remove(at))  # type: ignore[misc]
        assert len(cluster.node(leader).members()) == 3
        assert "empty data directory" in cluster.node(leader).why_unwelcome(fourth.node.me)
        assert cluster.node(leader).why_unwelcome(PeerId(4, "another disk")) == ""
        with pytest.raises(PostbusError) as refused:
            await cluster.run(leader, lambda node: node.remove(leader))
        assert refused.value.reason == Reason.ERROR_REASON_PRECONDITION_NOT_MET
        with pytest.raises(PostbusError) as refused:
            await cluster.run(leader % 3 + 1, lambda node: node.remove(leader))
        assert refused.value.reason == Reason.ERROR_REASON_NO_LEADER
        assert refused.value.metadata["leader_id"] == str(leader)

    simulate(scenario)


def test_a_change_of_members_without_a_majority_ends_in_an_error() -> None:
    """Its outcome is not known; it must not be waited for without end."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        for other in {1, 2, 3} - {leader}:
            cluster.machines[other].kill()
        with pytest.raises(PostbusError) as refused:
            await cluster.run(leader, lambda node: node.add_learner(7, "s7"))
        assert refused.value.reason == Reason.ERROR_REASON_NO_LEADER

    simulate(scenario)


def test_a_laggard_is_given_the_image_before_what_follows() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        behind = leader % 3 + 1
        cluster.machines[behind].kill()
        for number in range(20):
            cluster.propose(leader, b"%d" % number)
        await cluster.until(lambda: len(cluster.program(leader).applied) == 20)
        machine = cluster.machines[leader]
        assert machine.process is not None
        applied = cluster.node(leader).applied_index
        machine.process.run(cluster.node(leader).take_snapshot, applied, b"image")
        cluster.propose(leader, b"after")
        cluster.machines[behind].start()
        await cluster.until(lambda: cluster.program(behind).applied == [b"after"])
        events = [event for event in cluster.program(behind).events if event[-1]]
        assert events == [("snapshot", applied, b"image"), ("apply", applied + 1, b"after")]

    simulate(scenario)


def test_an_idle_cluster_only_beats() -> None:
    """Two followers, ten heartbeats a second each, and their answers; nothing is written."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.formed()
        await asyncio.sleep(1)
        cluster.messages.clear()
        writes = sum(cluster.program(at).submits for at in (1, 2, 3))
        await asyncio.sleep(10)
        assert set(cluster.messages) == {"Heartbeat", "HeartbeatResponse"}
        assert 360 < cluster.messages.total() <= 410
        assert sum(cluster.program(at).submits for at in (1, 2, 3)) == writes

    simulate(scenario)


@pytest.mark.parametrize("wrong", ["cluster", "sender", "garbage"])
def test_a_stranger_moves_nothing(wrong: str) -> None:
    """Another cluster's message, one that says to be from somebody else, and garbage: dropped."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        term = cluster.node(leader).term
        sender = PeerId(2, cluster.machines[2].disk.store_id)
        message = Message(leader, "", sender, term + 9, False, Heartbeat(0))
        data = encode_message(message, cluster_id="another" if wrong == "cluster" else CLUSTER_ID)
        received: list[bytes] = []
        handler = SimpleNamespace(received=received.append, writable=lambda: None, closed=lambda: None)
        machine = Machine(cluster.loop, cluster.network, 9, lambda machine: None, cluster_id=CLUSTER_ID)
        machine.start()
        machine.transport.set_address(leader, endpoint(leader))
        cluster.network.watch = None
        assert machine.process is not None
        link = machine.process.run(machine.transport.connect, leader, "raft", handler)
        machine.process.run(link.send, b"garbage" if wrong == "garbage" else data)
        await asyncio.sleep(1)
        assert (cluster.node(leader).term, cluster.leader_id()) == (term, leader)

    simulate(scenario)


def test_a_closed_node_is_silent_and_another_takes_over() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.formed()
        await cluster.run(leader, lambda node: node.close())
        program = cluster.program(leader)
        assert program.events[-1] == ("leading", None)
        told = len(program.events)
        await cluster.until(lambda: cluster.leader_id() not in (0, leader), within_s=3.0)
        cluster.propose(cluster.leader_id(), b"a")
        await asyncio.sleep(1)
        assert len(program.events) == told

    simulate(scenario)
