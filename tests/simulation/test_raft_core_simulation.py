"""The pure Raft core on a network of datagrams, which loses, repeats and reorders, and on disks that fsync late.

Wilder than links can be: what holds here holds on any transport. No time passes; a random walk picks what happens
next: a message arrives, a tick, an fsync ends, a crash, a wiped disk, a change of members.
"""

import random
from collections import Counter, deque

import pytest
from raft_checker import Broken, RaftChecker
from sim_loop import Trace
from sim_seeds import seeds

from broker.peers.links import PeerId
from broker.raft.core import RaftCore, Role
from broker.raft.membership import ChangeRefused
from broker.raft.messages import Entry, HardState, Loaded, Message, RaftRefused, RaftSettings, Ready, Snapshot

STEPS = 15_000
CALM_STEPS = 30_000
BUSY_STEPS = 3_000
MESSAGES_MAX = 400
# Saves under way at the leader, beyond which nobody proposes more.
FLYING_MAX = 6


class Disk:
    """What an fsync made durable."""

    def __init__(self, store_id: str) -> None:
        self.store_id = store_id
        self.hard_state = HardState()
        self.snapshot: Snapshot | None = None
        self.entries: dict[int, Entry] = {}

    def save(self, ready: Ready) -> None:
        if ready.delete_from is not None:
            self.entries = {index: entry for index, entry in self.entries.items() if index < ready.delete_from}
        if ready.delete_below is not None:
            self.entries = {index: entry for index, entry in self.entries.items() if index >= ready.delete_below}
        if ready.snapshot is not None:
            self.snapshot = ready.snapshot
        for entry in ready.entries:
            self.entries[entry.index] = entry
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state

    def load(self) -> Loaded:
        return Loaded(self.hard_state, self.snapshot, tuple(self.entries[index] for index in sorted(self.entries)))


class Node:
    """One node: the loop around the core, as correctness.md has it."""

    def __init__(self, cluster: "Cluster", node_id: int) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.stores_count = 0
        self.wipe()
        self.core: RaftCore | None = None

    def wipe(self) -> None:
        self.stores_count += 1
        self.disk = Disk(f"s{self.node_id}.{self.stores_count}")

    def start(self) -> None:
        cluster = self.cluster
        self.core = RaftCore(
            me=PeerId(self.node_id, self.disk.store_id),
            bootstrap_voters=cluster.founders,
            loaded=self.disk.load(),
            random=cluster.random,
            settings=cluster.settings,
        )
        self.flying: deque[Ready] = deque()
        self.applied = self.disk.snapshot.index if self.disk.snapshot is not None else 0
        cluster.checker.started(self.core)
        self.core.start()
        self.pump()

    def crash(self) -> None:
        """Of what is not fsynced, a beginning may have reached the disk."""
        for _ in range(self.cluster.random.randint(0, len(self.flying))):
            self.disk.save(self.flying.popleft())
        self.core = None

    def pump(self) -> None:
        """What need not be saved is done at once, unless something before it is not finished."""
        assert self.core is not None
        while (ready := self.core.ready()) is not None:
            self.flying.append(ready)
            while self.flying and not self.flying[0].must_save:
                self.finish(self.flying.popleft())

    def fsynced(self) -> None:
        """The oldest save is durable."""
        if self.core is None or not self.flying:
            return
        ready = self.flying.popleft()
        self.disk.save(ready)
        self.finish(ready)
        while self.flying and not self.flying[0].must_save:
            self.finish(self.flying.popleft())
        self.pump()

    def finish(self, ready: Ready) -> None:
        assert self.core is not None
        checker = self.cluster.checker
        for message in ready.messages:
            self.cluster.send(message)
        if ready.restored is not None:
            self.applied = ready.restored.index
        for entry in ready.committed:
            assert entry.index == self.applied + 1, (entry.index, self.applied)
            self.applied = entry.index
            checker.apply(self.node_id, entry.index, entry.data)
        self.core.advance(ready)


class Cluster:
    """All nodes, the messages on their way, and the walk."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        self.founders = tuple(range(1, size + 1))
        # Every other pair of seeds: hardly a leader lives long enough to finish what it began.
        self.wild = seed % 4 >= 2
        self.settings = RaftSettings(
            election_ticks=6 if self.wild else 10,
            kept_entries=5,
            append_bytes_max=200,
            inflight_bytes_max=400,
            inflight_appends_max=4,
            snapshot_chunk_bytes=30,
            promote_lag_entries=5,
            apply_entries_max=4,
        )
        self.checker = RaftChecker(is_durable=self.is_durable)
        self.trace = Trace()
        self.nodes = {node_id: Node(self, node_id) for node_id in self.founders}
        self.messages: list[Message] = []
        self.cut: set[tuple[int, int]] = set()
        self.faults: Counter[str] = Counter()
        self.proposed = 0
        self.loss = 0.05
        self.repeat = 0.05
        for node in self.nodes.values():
            node.start()

    def send(self, message: Message) -> None:
        self.checker.sent(message)
        if message.to in self.nodes:
            self.messages.append(message)
            if len(self.messages) > MESSAGES_MAX:
                self.messages.pop(self.random.randrange(len(self.messages)))

    def leader(self) -> Node | None:
        """The latest."""
        leading = [node for node in self.nodes.values() if node.core is not None and node.core.role is Role.LEADER]
        return max(leading, key=lambda node: node.core.term if node.core is not None else 0, default=None)

    def step(self, *, faults: bool, proposals: bool = True) -> None:
        draw = self.random
        node = draw.choice(list(self.nodes.values()))
        what = draw.random()
        wild = self.wild and faults
        if what < (0.5 if wild else 0.55):
            self.deliver()
        elif what < (0.72 if wild else 0.80):
            for _ in range(draw.randint(1, 3)):
                node.fsynced()
        elif what < 0.90:
            if node.core is not None:
                node.core.tick()
                node.pump()
        elif what < 0.95:
            if proposals:
                self.propose()
        elif what < 0.96:
            self.compact(node)
        elif what < (0.985 if wild else 0.975) and faults:
            self.fault(node)
        elif node.core is None and (wild or not faults or draw.random() < 0.2):
            node.start()
        for looked in self.nodes.values():
            if looked.core is not None:
                self.checker.look(looked.node_id, looked.core)

    def deliver(self) -> None:
        if not self.messages:
            return
        draw = self.random
        # Mostly in order, sometimes not at all.
        at = draw.randrange(len(self.messages)) if draw.random() < 0.3 else 0
        message = self.messages[at] if draw.random() < self.repeat else self.messages.pop(at)
        self.trace.note(repr(message))
        target = self.nodes[message.to]
        if (message.sender.node_id, message.to) in self.cut or draw.random() < self.loss:
            self.faults["lost messages"] += 1
            return
        if target.core is not None:
            target.core.step(message)
            target.pump()

    def is_durable(self, member: PeerId, index: int, term: int) -> bool:
        """On the disk of that node. One that was lost since may have said so before."""
        disk = self.nodes[member.node_id].disk
        if member.store_id not in ("", disk.store_id):
            return True
        entry = disk.entries.get(index)
        has_image = disk.snapshot is not None and disk.snapshot.index >= index
        return has_image or (entry is not None and entry.term == term)

    def propose(self) -> None:
        leader = self.leader()
        if leader is None or leader.core is None or len(leader.flying) > FLYING_MAX:
            return
        try:
            self.proposed += 1
            leader.core.propose(b"%d" % self.proposed * self.random.randint(1, 5))
        except RaftRefused:
            return
        leader.pump()

    def compact(self, node: Node) -> None:
        if node.core is not None and node.applied > 0 and node.applied >= node.core.log.first_index:
            node.core.compact(node.applied, b"image up to %d " % node.applied * 4)
            self.faults["snapshots"] += 1
            node.pump()

    def fault(self, node: Node) -> None:
        draw = self.random
        kind = draw.choice(("crash", "crash", "wipe", "cut", "heal", "heal", "isolate", "transfer", "churn", "lost"))
        leader = self.leader()
        if kind == "crash" and node.core is not None and self.down_count() <= len(self.nodes) // 2:
            node.crash()
        elif kind == "wipe" and self.is_whole():
            node.core = None
            node.wipe()
        elif kind == "cut":
            self.cut.add((node.node_id, draw.choice(self.founders)))
        elif kind == "heal":
            self.cut.clear()
        elif kind == "isolate" and leader is not None:
            for other in self.founders:
                self.cut |= {(leader.node_id, other)} if draw.random() < 0.5 else {(other, leader.node_id)}
        elif kind == "transfer" and leader is not None and leader.core is not None:
            try:
                leader.core.transfer(node.node_id)
            except (RaftRefused, ChangeRefused):
                return
            leader.pump()
        elif kind == "churn" and leader is not None and leader.core is not None:
            if not self.churn(leader, leader.core, node):
                return
        elif kind == "lost" and leader is not None and node.core is not None:
            if node.core.peer_lost(leader.node_id):
                node.core.campaign()
                node.pump()
        else:
            return
        self.faults[kind] += 1

    def churn(self, leader: Node, core: RaftCore, node: Node) -> bool:
        """Takes a voter out, if enough stay, or brings one back."""
        seat = core.configuration.seat(node.node_id)
        try:
            if seat is None:
                core.add_learner(node.node_id, node.disk.store_id)
            elif not seat.voter:
                core.promote(node.node_id)
            elif len(core.configuration.voters()) > 3:
                core.remove(node.node_id)
            else:
                return False
        except (RaftRefused, ChangeRefused):
            return False
        leader.pump()
        return True

    def down_count(self) -> int:
        return sum(node.core is None for node in self.nodes.values())

    def is_whole(self) -> bool:
        """All members vote with the disks that they have, and that is committed: one disk may go."""
        leader = self.leader()
        if leader is None or leader.core is None:
            return False
        core = leader.core
        return (
            core.log.configuration_index <= core.log.commit
            and core.log.term_at(core.log.commit) == core.term
            and len(core.configuration.voters()) >= 3
            and all(self.nodes[seat.node_id].disk.store_id == seat.store_id for seat in core.configuration.seats)
        )

    def calm(self) -> None:
        """Everything works from now on; still late, but in order and whole."""
        self.cut.clear()
        self.loss = self.repeat = 0.0

    def is_settled(self) -> bool:
        leader = self.leader()
        if leader is None or leader.core is None:
            return False
        core = leader.core
        members = [self.nodes[seat.node_id] for seat in core.configuration.seats]
        return (
            core.log.commit == core.log.last_index
            and core.log.term_at(core.log.commit) == core.term
            and not any(seat.returning for seat in core.configuration.seats)
            and all(node.core is not None and node.applied == core.log.commit for node in members)
            and all(self.nodes[seat.node_id].disk.store_id == seat.store_id for seat in core.configuration.seats)
        )


def walk(seed: int) -> Cluster:
    """One run; a failure tells the seed."""
    cluster = Cluster(seed, 3 if seed % 2 else 5)
    at = 0
    try:
        for at in range(STEPS):  # noqa: B007 - told if it fails
            cluster.step(faults=True)
        cluster.calm()
        for at in range(STEPS, STEPS + CALM_STEPS):
            cluster.step(faults=False, proposals=at < STEPS + BUSY_STEPS)
            if at % 50 == 0 and cluster.is_settled():
                break
        else:
            raise Broken("the faults are over, and the cluster does not settle")
    except BaseException as error:
        last = "\n".join(list(cluster.trace.lines)[-30:])
        error.add_note(f"{last}\n\nstep {at}; replay with: POSTBUS_SIM_SEED={seed}")
        raise
    return cluster


@pytest.mark.parametrize("seed", seeds(6))
def test_raft_core_keeps_its_promises(seed: int) -> None:
    """No invariant breaks at any step; afterwards the cluster settles. And the run did something."""
    cluster = walk(seed)
    assert cluster.checker.elections_count >= 2
    assert len(cluster.checker.committed) >= 30
    for kind in ("crash", "cut", "lost messages", "snapshots"):
        assert cluster.faults[kind] >= 3, cluster.faults


def test_raft_core_replays() -> None:
    """The same seed gives the same trace."""
    assert walk(1).trace.digest == walk(1).trace.digest
