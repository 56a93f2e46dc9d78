"""What must hold of Raft at every moment, whatever drives it: looks at the cores of all nodes after each step.

Owns the invariants of Raft: one leader a term, at most one vote a term for each disk, log matching, leader
completeness, terms and commits that only grow, one applied prefix for all. It remembers what was ever committed,
applied, voted and logged, so that a restart can take nothing back unseen.
"""

from collections.abc import Callable

from broker.peers.links import PeerId
from broker.raft.core import RaftCore, Role
from broker.raft.messages import Entry, Message, Vote, VoteResponse

TAIL_ENTRIES = 64


class Broken(AssertionError):  # noqa: N818 - named for what happened
    """An invariant does not hold."""


class RaftChecker:
    """Of one cluster, over its whole life."""

    def __init__(self, *, is_durable: Callable[[PeerId, int, int], bool] | None = None) -> None:
        """is_durable(member, index, term): that disk has this entry, or an image of it; or had, and is lost."""
        self._is_durable = is_durable
        self.leaders: dict[int, int] = {}
        """Term -> node."""
        self.committed: dict[int, tuple[int, bytes]] = {}
        """Index -> (term, data): what any node ever held committed."""
        self.applied: dict[int, bytes] = {}
        """Index -> data: what any node ever applied."""
        self.elections_count = 0
        self._votes: dict[tuple[PeerId, int], int] = {}
        self._term_of: dict[PeerId, int] = {}  # the largest that it ever spoke of
        self._logged: dict[tuple[int, int], tuple[int, Entry]] = {}  # (index, term) -> (term before it, entry)
        self._seen: dict[int, tuple[RaftCore, int, int, int, int, Role]] = {}

    def started(self, core: RaftCore) -> None:
        """A node starts with what its disk has."""
        promised = self._term_of.get(core.me, 0)
        if core.term < promised:
            raise Broken(f"{core.me} spoke of term {promised} and starts in {core.term}")
        self._seen.pop(core.me.node_id, None)

    def sent(self, message: Message) -> None:
        """A node says something: from now on it must remember it."""
        sender, body = message.sender, message.body
        pre = isinstance(body, (Vote, VoteResponse)) and body.pre
        if not pre:
            self._term_of[sender] = max(self._term_of.get(sender, 0), message.term)
        if isinstance(body, Vote) and not pre:
            self._voted(sender, message.term, sender.node_id)
        elif isinstance(body, VoteResponse) and not pre and body.granted:
            self._voted(sender, message.term, message.to)

    def _voted(self, voter: PeerId, term: int, candidate: int) -> None:
        earlier = self._votes.setdefault((voter, term), candidate)
        if earlier != candidate:
            raise Broken(f"{voter} voted for {earlier} and for {candidate} in term {term}")

    def look(self, node_id: int, core: RaftCore) -> None:
        """After any step of a node. Cheap where nothing changed."""
        log = core.log
        now = (core, core.term, log.commit, log.last_index, log.last_term, core.role)
        before = self._seen.get(node_id)
        if before == now:
            return
        self._seen[node_id] = now
        if before is not None and before[0] is core:
            if core.term < before[1]:
                raise Broken(f"node {node_id} fell from term {before[1]} to {core.term}")
            if log.commit < before[2]:
                raise Broken(f"node {node_id} took its commit back from {before[2]} to {log.commit}")
        self._check_log(node_id, core)
        first = before[2] + 1 if before is not None and before[0] is core else log.first_index
        self._check_commit(node_id, core, max(first, log.first_index))
        if core.role is Role.LEADER:
            self._check_leader(node_id, core)
            if before is not None and before[0] is core and (before[1], before[5]) == (core.term, Role.LEADER):
                self._check_own_commit(node_id, core, before[2])

    def _check_leader(self, node_id: int, core: RaftCore) -> None:
        if core.term not in self.leaders:
            self.elections_count += 1
            for index in range(core.log.first_index, max(self.committed, default=0) + 1):
                if index in self.committed and core.log.term_at(index) != self.committed[index][0]:
                    raise Broken(
                        f"leader {node_id} of term {core.term} lacks entry {index}, committed in term"
                        f" {self.committed[index][0]}; it has {core.log.term_at(index)}"
                    )
        if self.leaders.setdefault(core.term, node_id) != node_id:
            raise Broken(f"nodes {self.leaders[core.term]} and {node_id} both lead term {core.term}")

    def _check_own_commit(self, node_id: int, core: RaftCore, before: int) -> None:
        """What a leader commits itself is of its own term, and durable with a majority at that moment."""
        commit = core.log.commit
        if commit <= before:
            return
        term = core.log.term_at(commit)
        if term != core.term:
            raise Broken(f"leader {node_id} of term {core.term} commits by an entry of term {term}, at {commit}")
        if self._is_durable is not None:
            voters = [PeerId(seat.node_id, seat.store_id) for seat in core.configuration.seats if seat.voter]
            holders = [voter for voter in voters if self._is_durable(voter, commit, term)]
            if len(holders) <= len(voters) // 2:
                raise Broken(f"leader {node_id} committed {commit}, which is durable on {holders} alone of {voters}")

    def _check_log(self, node_id: int, core: RaftCore) -> None:
        """Log matching, by induction: wherever (index, term) is, the entry and the term before it are the same."""
        log = core.log
        first = max(log.first_index, log.last_index - TAIL_ENTRIES + 1)
        if log.last_index < first:
            return
        term_before = log.term_at(first - 1)
        for entry in log.entries(first, bytes_max=1 << 40):
            known = self._logged.setdefault((entry.index, entry.term), (term_before or 0, entry))
            if known != (term_before or 0, entry):
                raise Broken(f"node {node_id} has at {entry.index} {entry} after {term_before}, others {known}")
            term_before = entry.term

    def _check_commit(self, node_id: int, core: RaftCore, first: int) -> None:
        log = core.log
        if first > log.commit:
            return
        for entry in log.entries(first, bytes_max=1 << 40):
            if entry.index > log.commit:
                break
            known = self.committed.setdefault(entry.index, (entry.term, entry.data))
            if known != (entry.term, entry.data):
                raise Broken(f"node {node_id} committed {entry.term} at {entry.index}, others {known[0]}")

    def apply(self, node_id: int, index: int, data: bytes) -> None:
        """A node applies an entry."""
        if self.applied.setdefault(index, data) != data:
            raise Broken(f"node {node_id} applied {data!r} at {index}, others {self.applied[index]!r}")
