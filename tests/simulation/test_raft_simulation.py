"""Real Raft nodes, with their driver, links and disks, under faults.

Each node runs as in production but for the loop, the network and the disk. They replicate numbers; each node's state
is a chain of hashes over what it applied, images included, so that any difference shows at once.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest
from raft_checker import Broken, RaftChecker
from sim_disk import SimCommitter, SimEngine, SimMark
from sim_loop import SimLoop
from sim_machines import FaultPlan, Machine, Nemesis, endpoint
from sim_network import SimNetwork
from sim_seeds import check_replays, run_seed, seeds

from broker.errors import PostbusError
from broker.raft import storage
from broker.raft.codec import decode_message
from broker.raft.messages import RaftRefused, RaftSettings
from broker.raft.node import RaftNode
from broker.storage.errors import StoreCorrupt

CLUSTER_ID = "simulated"
DURATION_S = 40.0
SNAPSHOT_ENTRIES = 60


class Numbers:
    """One node's program."""

    def __init__(self, machine: Machine, cluster: "RaftCluster") -> None:
        self.machine = machine
        self.cluster = cluster
        self.leading: int | None = None
        self.chain = b""
        self.last_snapshot = 0
        self.unanswered: dict[int, bytes] = {}
        process, disk = machine.process, machine.disk
        assert process is not None
        try:
            loaded = storage.load(SimEngine(disk, disk.database("meta"), process))
        except StoreCorrupt:
            # As recovery does: what can't be trusted is set aside, and the node is a new one.
            disk.wipe()
            machine.transport.me = machine.me
            cluster.quarantined += 1
            loaded = storage.load(SimEngine(disk, disk.database("meta"), process))
        engine = SimEngine(disk, disk.database("meta"), process)
        committer = SimCommitter(engine, SimMark(engine), loop=machine.loop, on_fatal=machine.fatal)
        for node_id in cluster.founders:
            machine.transport.set_address(node_id, endpoint(node_id))
        self.node = RaftNode(
            me=machine.me,
            cluster_id=CLUSTER_ID,
            bootstrap_voters=cluster.founders,
            loaded=loaded,
            committer=committer,
            transport=machine.transport,
            clock=process,
            random=machine.random_for("raft"),
            settings=cluster.settings,
            on_apply=self._applied,
            on_leading=self._told_leading,
            on_snapshot=self._restored,
        )
        cluster.checker.started(self.node._core)
        machine.transport.start()
        self.node.start()
        process.spawn(self._propose(machine.random_for("propose")))

    def _applied(self, index: int, data: bytes) -> None:
        self.cluster.checker.apply(self.machine.node_id, index, data)
        self.chain = hashlib.blake2b(self.chain + b"%d " % index + data, digest_size=8).digest()
        self.cluster.check_chain(self.machine.node_id, index, self.chain)
        proposed = self.unanswered.pop(index, None)
        if proposed is not None:
            if proposed != data:
                raise Broken(f"proposed {proposed!r} at {index}, and {data!r} was applied without a word")
            self.cluster.acknowledged[index] = data
        if index - self.last_snapshot >= SNAPSHOT_ENTRIES:
            self.last_snapshot = index
            self.node.take_snapshot(index, self.chain)
            self.cluster.snapshots_count += 1

    def _restored(self, index: int, data: bytes) -> None:
        if not data:
            raise Broken("an image without anything")
        self.chain = data
        self.last_snapshot = index
        self.cluster.restored_count += 1
        self.cluster.check_chain(self.machine.node_id, index, self.chain)

    def _told_leading(self, term: int | None) -> None:
        self.leading = term
        self.machine.loop.note(f"leading {self.machine.node_id} {term}")
        if term is None:
            self.unanswered.clear()

    async def _propose(self, draw: random.Random) -> None:
        while True:
            await asyncio.sleep(draw.expovariate(20))
            for _ in range(draw.choice((1, 1, 5))):
                if self.leading is not None and not self.cluster.silent:
                    self.propose()

    def propose(self) -> int | None:
        self.cluster.proposed += 1
        data = b"%d " % self.cluster.proposed * 3
        try:
            index = self.node.propose(data)
        except RaftRefused:
            return None
        self.unanswered[index] = data
        return index


class RaftCluster:
    """All nodes and what is known of them."""

    def __init__(self, loop: SimLoop, size: int) -> None:
        self.loop = loop
        self.founders = tuple(range(1, size + 1))
        self.settings = RaftSettings(kept_entries=20, promote_lag_entries=10, snapshot_chunk_bytes=3)
        self.network = SimNetwork(loop)
        self.checker = RaftChecker()
        self.acknowledged: dict[int, bytes] = {}
        self.chains: dict[int, bytes] = {}
        self.proposed = 0
        self.snapshots_count = 0
        self.restored_count = 0
        self.quarantined = 0
        self.silent = False
        self.machines = [
            Machine(loop, self.network, node_id, lambda machine: Numbers(machine, self), cluster_id=CLUSTER_ID)
            for node_id in self.founders
        ]
        self.network.watch = self._watch
        loop.on_step = self._look

    def _watch(self, from_node: int, to_node: int, service: str, message: bytes) -> None:
        if service == "raft":
            self.checker.sent(decode_message(message, cluster_id=CLUSTER_ID, node_id=to_node))

    def _look(self) -> None:
        for machine in self.machines:
            if machine.program is not None and machine.running:
                self.checker.look(machine.node_id, machine.program.node._core)

    def check_chain(self, node_id: int, index: int, chain: bytes) -> None:
        """Whatever is applied up to an index is the same everywhere."""
        if self.chains.setdefault(index, chain) != chain:
            raise Broken(f"what node {node_id} applied up to {index} is not what others did")

    def programs(self) -> list[Numbers]:
        return [machine.program for machine in self.machines if machine.running and machine.program is not None]

    def leader(self) -> Numbers | None:
        leading = [program for program in self.programs() if program.leading is not None]
        return max(leading, key=lambda program: program.leading or 0, default=None)

    def leader_id(self) -> int | None:
        leader = self.leader()
        return leader.machine.node_id if leader is not None else None

    def may_wipe(self, machine: Machine) -> bool:
        """All members vote with the disks that they have, and that is committed: one disk may go."""
        leader = self.leader()
        if leader is None:
            return False
        core = leader.node._core
        disks = {other.node_id: other.disk.store_id for other in self.machines}
        return (
            core.log.configuration_index <= core.log.commit
            and core.log.term_at(core.log.commit) == core.term
            and len(core.configuration.voters()) >= 3
            and all(disks[seat.node_id] == seat.store_id for seat in core.configuration.seats)
        )

    # --- Faults of Raft's own.

    def transfer(self, draw: random.Random) -> bool:
        leader = self.leader()
        if leader is None:
            return False
        self._ask(leader, leader.node.transfer_leadership())
        return True

    def churn(self, draw: random.Random) -> bool:
        """A member goes, or one comes back."""
        leader = self.leader()
        if leader is None:
            return False
        node, configuration = leader.node, leader.node._core.configuration
        machine = draw.choice(self.machines)
        seat = configuration.seat(machine.node_id)
        if seat is None:
            self._ask(leader, node.add_learner(machine.node_id, machine.disk.store_id))
        elif not seat.voter:
            self._ask(leader, node.promote(machine.node_id))
        elif len(configuration.voters()) > 3:
            self._ask(leader, node.remove(machine.node_id))
        else:
            return False
        return True

    def flip_bit(self, draw: random.Random) -> bool:
        """A stored entry of a node is damaged; it finds out at its next start."""
        machine = draw.choice(self.machines)
        table = machine.disk.database("meta").written.get("raft")
        if not self.may_wipe(machine) or table is None or not table.keys:
            return False
        machine.kill()
        machine.disk.database("meta").damage("raft", draw.choice(table.keys))
        machine.start()
        return True

    def _ask(self, leader: Numbers, question: Any) -> None:
        async def ask() -> None:
            try:
                await question
            except PostbusError:
                return

        assert leader.machine.process is not None
        leader.machine.process.spawn(ask())

    # --- After the faults.

    async def until(self, what: str, holds: Callable[[], bool], *, timeout_s: float) -> None:
        deadline = self.loop.now + timeout_s
        while not holds():
            if self.loop.now >= deadline:
                state = [
                    (p.machine.node_id, p.node.leader_id, p.node.term, p.node.commit_index, p.node.applied_index)
                    for p in self.programs()
                ]
                raise Broken(f"{what}: not within {timeout_s} s; {state}")
            await asyncio.sleep(0.05)

    def agreed(self) -> bool:
        """One leader that all members follow."""
        leader = self.leader()
        if leader is None:
            return False
        members = {member.node_id for member in leader.node.members()}
        return all(
            program.node.leader_id == leader.machine.node_id
            for program in self.programs()
            if program.machine.node_id in members
        )

    def whole(self) -> bool:
        """Whoever lost its disk votes again."""
        leader = self.leader()
        return leader is not None and not any(seat.returning for seat in leader.node._core.configuration.seats)

    def level(self) -> bool:
        """All members have applied all."""
        leader = self.leader()
        if leader is None:
            return False
        members = {member.node_id for member in leader.node.members()}
        return all(
            program.node.applied_index == leader.node.last_index
            for program in self.programs()
            if program.machine.node_id in members
        )


async def raft_under_faults(loop: SimLoop) -> tuple[RaftCluster, Nemesis]:
    cluster = RaftCluster(loop, 3 if loop.seed % 2 else 5)
    for machine in cluster.machines:
        machine.start()
    await cluster.until("a first leader", cluster.agreed, timeout_s=5)
    own = {"transfer": 1.0, "churn": 1.5, "flip_bit": 0.5}
    plan = FaultPlan(weights=FaultPlan().weights | own).drawn(loop.random("faults"))
    nemesis = Nemesis(
        loop,
        cluster.network,
        cluster.machines,
        plan,
        leader=cluster.leader_id,
        may_wipe=cluster.may_wipe,
        extra={"transfer": cluster.transfer, "churn": cluster.churn, "flip_bit": cluster.flip_bit},
    )
    await nemesis.run(DURATION_S)
    await cluster.until("a leader after the faults", cluster.agreed, timeout_s=10)
    before = len(cluster.acknowledged)
    await cluster.until("acknowledgements", lambda: len(cluster.acknowledged) > before + 20, timeout_s=10)
    await cluster.until("all voters with their disks", cluster.whole, timeout_s=20)
    cluster.silent = True
    await cluster.until("all have applied all", cluster.level, timeout_s=10)
    for index, data in cluster.acknowledged.items():
        if cluster.checker.applied.get(index) != data:
            raise Broken(f"{data!r} was acknowledged at {index}")
    return cluster, nemesis


@pytest.mark.parametrize("seed", seeds(2))
def test_raft_keeps_its_promises(seed: int) -> None:
    """No invariant breaks at any step; once the faults end there is a leader, and everything goes on."""
    _, (cluster, nemesis) = run_seed(raft_under_faults, seed, to_be_replayed=True)
    assert cluster.proposed > 60
    assert len(cluster.acknowledged) > 30
    assert cluster.checker.elections_count >= 2
    assert cluster.snapshots_count > 2
    assert sum(nemesis.faults.values()) > 10, nemesis.faults


def test_raft_replays() -> None:
    """The same seed gives the same trace."""
    check_replays(raft_under_faults, seeds(1)[0])
