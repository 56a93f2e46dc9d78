"""Scripts that drive pure Raft cores, and the trace of what they do.

A script is blocks: commands, one a line, then `----`, then the trace that they must give. `#` begins a comment.

    nodes 1 2 3        founders with new disks (s1, s2, s3), started; others greet them: nodes 1 2 3 | 4
    formed 1 2 3       the same, and node 1 leads, and all have applied its first entry; no trace
    tick N [times]     time passes at one node
    deliver [A->B]     messages arrive, and those that they cause, until none is left; or only those of one direction
    drop A->B          what is on its way there is lost
    cut A B, heal      nothing gets from one to the other, either way; the end of all cuts
    disk N slow|fast   fsyncs wait for `sync N` (the oldest) or happen at once
    crash N, restart N, wipe N    wipe: the disk is new (s1' for s1)
    propose N data, compact N, transfer N to, learner N node store, promote N node, remove N node
    lost N M           node N is told that its connection with M broke
    elect N            after that: node N asks for votes, without waiting for a timeout
    state, log N       what they are at; what is in a log
    set NAME VALUE     one of RaftSettings, for nodes started from then on
    quietly COMMAND    without a trace
"""

import dataclasses
from collections import deque
from collections.abc import Callable

from broker.peers.links import PeerId
from broker.raft.core import RaftCore
from broker.raft.membership import ChangeRefused, Configuration
from broker.raft.messages import (
    Append,
    AppendResponse,
    Body,
    Entry,
    Greeting,
    HardState,
    Heartbeat,
    InstallSnapshot,
    InstallSnapshotResponse,
    Loaded,
    Message,
    RaftRefused,
    RaftSettings,
    Ready,
    Snapshot,
    Vote,
    VoteResponse,
)

MESSAGES_MAX = 2_000


class LowDice:
    """Draws the least: timeouts are what the settings say."""

    def randrange(self, start: int, stop: int, /) -> int:
        return start


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
        self.snapshot = ready.snapshot or self.snapshot
        self.entries.update({entry.index: entry for entry in ready.entries})
        self.hard_state = ready.hard_state or self.hard_state

    def load(self) -> Loaded:
        return Loaded(self.hard_state, self.snapshot, tuple(self.entries[index] for index in sorted(self.entries)))


class Node:
    """One core with its disk, and what is under way to it."""

    def __init__(self, script: "Script", node_id: int) -> None:
        self.script = script
        self.node_id = node_id
        self.disk = Disk(f"s{node_id}")
        self.slow = False
        self.core: RaftCore | None = None

    def start(self) -> None:
        self.pending: deque[Ready] = deque()
        self.applied: list[str] = []
        self.applied_index = 0
        self.core = RaftCore(
            me=PeerId(self.node_id, self.disk.store_id),
            bootstrap_voters=self.script.founders,
            loaded=self.disk.load(),
            random=LowDice(),
            settings=self.script.settings,
        )
        self.was = ""
        self.pump()
        self.core.start()
        self.pump()

    def pump(self) -> None:
        while self.core is not None:
            self.tell_role()
            ready = self.core.ready()
            if ready is None:
                return
            self.pending.append(ready)
            if ready.must_save:
                self.script.tell(f"{self.node_id} saves {saved(ready)}" + (" slowly" if self.slow else ""))
            self.finish(all_of_them=not self.slow)

    def finish(self, *, all_of_them: bool) -> None:
        """Fsyncs, and what comes after them."""
        while self.core is not None and self.pending and (all_of_them or not self.pending[0].must_save):
            ready = self.pending.popleft()
            self.disk.save(ready)
            for message in ready.messages:
                self.script.send(message)
            if ready.restored is not None:
                self.applied = ready.restored.data.decode().split()
                self.applied_index = ready.restored.index
                self.script.tell(f"{self.node_id} takes the image at {ready.restored.index}")
            for entry in ready.committed:
                self.applied_index = entry.index
                self.script.tell(f"{self.node_id} applies {shown(entry)}")
                if entry.data:
                    self.applied.append(entry.data.decode())
            self.core.advance(ready)
            self.tell_role()

    def sync(self) -> None:
        if self.pending:
            ready = self.pending.popleft()
            self.pending.appendleft(dataclasses.replace(ready, hard_state=None))
            self.disk.save(ready)
            self.finish(all_of_them=False)
        self.pump()

    def tell_role(self) -> None:
        assert self.core is not None
        leader = f" of {self.core.leader_id}" if self.core.leader_id not in (0, self.node_id) else ""
        now = f"{self.core.role.value}{leader} in term {self.core.term}"
        if now != self.was:
            self.was = now
            self.script.tell(f"{self.node_id} is {now}")


class Script:
    """Runs commands and collects the trace."""

    def __init__(self) -> None:
        self.settings = RaftSettings()
        self.founders: tuple[int, ...] = ()
        self.nodes: dict[int, Node] = {}
        self.wire: deque[Message] = deque()
        self.cuts: set[frozenset[int]] = set()
        self.trace: list[str] = []
        self.quiet = False

    def run(self, line: str) -> None:
        """One command."""
        name, *words = line.split()
        if name == "quietly":
            self.quiet = True
            self.run(line.split(maxsplit=1)[1])
            self.quiet = False
            return
        command: Callable[..., None] = getattr(self, f"do_{name}")
        try:
            command(*words)
        except (RaftRefused, ChangeRefused) as error:
            self.tell(f"refused: {error}")

    def tell(self, line: str) -> None:
        if not self.quiet:
            self.trace.append(line)

    def send(self, message: Message) -> None:
        self.wire.append(message)

    def core(self, node_id: str) -> RaftCore:
        core = self.nodes[int(node_id)].core
        assert core is not None, f"node {node_id} is down"
        return core

    # --- Commands.

    def do_nodes(self, *words: str) -> None:
        at = words.index("|") if "|" in words else len(words)
        self.founders = tuple(map(int, words[:at]))
        for word in (*words[:at], *words[at + 1 :]):
            self.nodes[int(word)] = Node(self, int(word))
        for node in self.nodes.values():
            node.start()

    def do_formed(self, *words: str) -> None:
        quiet, self.quiet = self.quiet, True
        self.do_nodes(*words)
        for _ in range(4):
            for node in self.nodes.values():
                self.do_tick(str(node.node_id))
            self.do_deliver()
        self.quiet = quiet
        assert self.core("1").role.value == "leader"
        assert len({node.applied_index for node in self.nodes.values()}) == 1

    def do_tick(self, node_id: str, times: str = "1") -> None:
        for _ in range(int(times)):
            self.core(node_id).tick()
            self.nodes[int(node_id)].pump()

    def do_deliver(self, direction: str = "") -> None:
        for _ in range(MESSAGES_MAX):
            message = self._next(direction)
            if message is None:
                return
            self.tell(told(message))
            target = self.nodes[message.to]
            if target.core is not None:
                target.core.step(message)
                target.pump()
        raise AssertionError("they talk without end")

    def do_drop(self, direction: str) -> None:
        while (message := self._next(direction)) is not None:
            self.tell(f"lost: {told(message)}")

    def _next(self, direction: str) -> Message | None:
        for message in tuple(self.wire):
            if frozenset((message.sender.node_id, message.to)) in self.cuts or message.to not in self.nodes:
                self.wire.remove(message)
            elif direction in ("", f"{message.sender.node_id}->{message.to}"):
                self.wire.remove(message)
                return message
        return None

    def do_cut(self, a: str, b: str) -> None:
        self.cuts.add(frozenset((int(a), int(b))))

    def do_heal(self) -> None:
        self.cuts.clear()

    def do_disk(self, node_id: str, speed: str) -> None:
        self.nodes[int(node_id)].slow = speed == "slow"

    def do_sync(self, node_id: str) -> None:
        self.nodes[int(node_id)].sync()

    def do_crash(self, node_id: str) -> None:
        self.nodes[int(node_id)].core = None
        self.wire = deque(message for message in self.wire if int(node_id) not in (message.to, message.sender.node_id))

    def do_restart(self, node_id: str) -> None:
        self.nodes[int(node_id)].start()

    def do_wipe(self, node_id: str) -> None:
        node = self.nodes[int(node_id)]
        node.disk = Disk(node.disk.store_id + "'")

    def do_propose(self, node_id: str, data: str) -> None:
        self.core(node_id).propose(data.encode())
        self.nodes[int(node_id)].pump()

    def do_compact(self, node_id: str) -> None:
        node = self.nodes[int(node_id)]
        self.core(node_id).compact(node.applied_index, " ".join(node.applied).encode())
        node.pump()

    def do_transfer(self, node_id: str, target: str) -> None:
        self.core(node_id).transfer(int(target))
        self.nodes[int(node_id)].pump()

    def do_learner(self, node_id: str, learner: str, store_id: str) -> None:
        self.core(node_id).add_learner(int(learner), store_id)
        self.nodes[int(node_id)].pump()

    def do_promote(self, node_id: str, learner: str) -> None:
        self.core(node_id).promote(int(learner))
        self.nodes[int(node_id)].pump()

    def do_remove(self, node_id: str, member: str) -> None:
        self.core(node_id).remove(int(member))
        self.nodes[int(node_id)].pump()

    def do_lost(self, node_id: str, peer: str) -> None:
        told = self.core(node_id).peer_lost(int(peer))
        self.tell(f"{node_id} {'may' if told else 'need not'} ask for votes")

    def do_elect(self, node_id: str) -> None:
        self.core(node_id).campaign()
        self.nodes[int(node_id)].pump()

    def do_state(self) -> None:
        for node in self.nodes.values():
            if node.core is None:
                self.tell(f"{node.node_id} is down")
                continue
            core = node.core
            self.tell(
                f"{node.node_id} is {node.was}, voted {core.vote}, log {core.log.first_index}-{core.log.last_index},"
                f" commit {core.log.commit}, applied {' '.join(node.applied) or 'nothing'}"
            )

    def do_log(self, node_id: str) -> None:
        log = self.core(node_id).log
        self.tell(
            " | ".join(f"{shown(entry)} t{entry.term}" for entry in log.entries(log.first_index, bytes_max=1 << 30))
        )

    def do_set(self, name: str, value: str) -> None:
        self.settings = dataclasses.replace(self.settings, **{name: int(value)})


# --- How things look.


def told(message: Message) -> str:
    """A message on its way."""
    fresh = " fresh" if message.fresh else ""
    return f"{message.sender.node_id}->{message.to} t{message.term}{fresh} {described(message.body)}"


def described(body: Body) -> str:
    match body:
        case Vote():
            kind = "pre-vote?" if body.pre else "forced vote?" if body.force else "vote?"
            return f"{kind} log ends {body.last_index} t{body.last_term}"
        case VoteResponse():
            return ("pre-vote " if body.pre else "vote ") + ("granted" if body.granted else "refused")
        case Append():
            entries = " | ".join(f"{shown(entry)} t{entry.term}" for entry in body.entries) or "nothing"
            return f"append after {body.prev_index} t{body.prev_term}: {entries}; commit {body.commit}"
        case AppendResponse(rejected=True):
            return f"append refused after {body.index}, try {body.hint_index} t{body.hint_term}"
        case AppendResponse():
            return f"has {body.index}"
        case Heartbeat():
            return f"heartbeat commit {body.commit}"
        case InstallSnapshot():
            return f"image at {body.index} t{body.snapshot_term}: {body.offset}+{len(body.data)} of {body.size_bytes}"
        case InstallSnapshotResponse():
            return f"image at {body.index} from {body.offset} on"
        case Greeting():
            return f"greeting of {body.origin.node_id} {body.origin.store_id}"
        case _:
            return type(body).__name__


def shown(entry: Entry) -> str:
    if entry.configuration is not None:
        return f"{entry.index}:members {seats(entry.configuration)}"
    return f"{entry.index}:{entry.data.decode() or 'no-op'}"


def seats(configuration: Configuration) -> str:
    def one(store_id: str, voter: bool, returning: bool) -> str:
        return store_id + ("" if voter else "(returning)" if returning else "(learner)")

    return ",".join(one(seat.store_id, seat.voter, seat.returning) for seat in configuration.seats)


def saved(ready: Ready) -> str:
    assert ready.hard_state is not None
    parts = [f"term {ready.hard_state.term} vote {ready.hard_state.vote}"]
    if ready.delete_from is not None:
        parts.append(f"without {ready.delete_from} and later")
    if ready.snapshot is not None:
        parts.append(f"image at {ready.snapshot.index}")
    if ready.delete_below is not None:
        parts.append(f"without what is below {ready.delete_below}")
    if ready.entries:
        parts.append(f"entries {ready.entries[0].index}-{ready.entries[-1].index}")
    return ", ".join(parts)
