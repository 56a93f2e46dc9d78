"""Raft, pure: `step`, `tick`, `propose`; `ready` says what to save, send and apply, and `advance` that it is done.

Owns every decision of the protocol. It has no I/O, clock or asyncio; its randomness is handed in. After Ongaro's
dissertation and etcd's raft, of which it has pre-vote with check-quorum, probing and pipelined appends, and leadership
transfer. A configuration holds from the moment it is in the log, and one change is under way at a time. Left out:
joint consensus, reads by lease, asynchronous storage.

Appends are built in `ready`, not where entries are proposed: what was proposed since shares one message a member.

A disk that is new never speaks for a member that had another: a node with an empty log neither campaigns nor votes
until it has heard every founding voter say that its log is empty too, or is asked by its own store id, which only a
log can have taught the candidate. The first entry of a cluster ties each voter to its disk.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from broker.peers.links import PeerId
from broker.raft.log import RaftLog
from broker.raft.membership import ChangeRefused, Configuration, bind, bootstrap, promoted, with_learner, without
from broker.raft.messages import (
    Append,
    AppendResponse,
    Body,
    Entry,
    EntryTooLarge,
    Greeting,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Loaded,
    Message,
    NotLeader,
    RaftSettings,
    Ready,
    Snapshot,
    TimeoutNow,
    TooMuchUncommitted,
    Vote,
    VoteResponse,
)
from broker.raft.progress import Pace, Progress

ANY_LEADER_MESSAGE: Final = (Append, Heartbeat, InstallSnapshot)
ANSWERS: Final = (VoteResponse, AppendResponse, HeartbeatResponse, InstallSnapshotResponse)
"""Only a member's count. A leader's messages are followed all the same: a member's own list may be the older one."""
ASKS_AND_ANSWERS: Final = (*ANSWERS, Vote)


class Dice(Protocol):
    """What is needed of random.Random."""

    def randrange(self, start: int, stop: int, /) -> int: ...


class Role(Enum):
    """Of a node in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class RaftCore:
    """One node's."""

    def __init__(
        self, *, me: PeerId, bootstrap_voters: tuple[int, ...], loaded: Loaded, random: Dice, settings: RaftSettings
    ) -> None:
        """bootstrap_voters: of a cluster that has no entry yet; without `me`, this node asks them to be taken in."""
        self.me = me
        self.term = loaded.hard_state.term
        self.vote = loaded.hard_state.vote
        self.role = Role.FOLLOWER
        self.leader_id = 0  # 0: not known
        self.leader_since_index = 0
        """Leader: its first entry. Once that is committed, so is all that earlier leaders committed."""
        founders = bootstrap_voters if me.node_id in bootstrap_voters else ()
        self.log = RaftLog(loaded, bootstrap=bootstrap(founders, me=me.node_id, store_id=me.store_id))
        self.progress: dict[int, Progress] = {}
        self.transferee = 0
        self.ticks = 0
        self._settings = settings
        self._random = random
        self._saved = HardState(self.term, self.vote, self.log.commit)
        self._outbox: list[Message] = []
        self._known_peers = tuple(node_id for node_id in bootstrap_voters if node_id != me.node_id)
        self._fresh_stores: dict[int, str] = {}  # founding voters that said that their log is empty
        self._votes: set[int] = set()
        self._elapsed = 0  # since the leader was heard, or the campaign began
        self._campaigns = 0  # since there was a leader
        self._leader_lost = False
        self._transfer_ticks = 0
        self._uncommitted_bytes = 0
        self._incoming: tuple[InstallSnapshot, bytearray] | None = None
        self._timeout = self._draw_timeout()

    # --- What the driver asks.

    @property
    def configuration(self) -> Configuration:
        """The latest in the log."""
        return self.log.configuration

    @property
    def fresh(self) -> bool:
        """The log is empty."""
        return self.log.last_index == 0

    @property
    def leader_silence_ticks(self) -> int:
        """On a follower: since it was heard."""
        return self._elapsed

    @property
    def is_member(self) -> bool:
        """With this disk."""
        seat = self.configuration.seat(self.me.node_id)
        return seat is not None and seat.store_id == self.me.store_id

    @property
    def may_campaign(self) -> bool:
        """A voter, as far as it knows, that is no newcomer in the place of another."""
        seat = self.configuration.seat(self.me.node_id)
        is_voter = seat is not None and seat.voter and seat.store_id == self.me.store_id
        return is_voter and (not self.fresh or self._all_are_fresh())

    def start(self) -> None:
        """A lone voter does not wait for anybody."""
        if self._is_alone() and self.may_campaign:
            self._campaign(pre=False)

    def tick(self) -> None:
        """A moment has passed."""
        self.ticks += 1
        self._elapsed += 1
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self._elapsed >= self._timeout and self.may_campaign:
            self._campaign(pre=True)
        if self.role is not Role.LEADER and self.ticks % self._settings.heartbeat_ticks == 0:
            self._greet()

    def propose(self, data: bytes) -> int:
        """Appends an entry; its index. It may still be lost: watch what is committed. Raises RaftRefused."""
        assert data, "nothing is what a no-op holds"
        self._check_leads()
        if len(data) > self._settings.entry_bytes_max:
            raise EntryTooLarge(f"an entry of {len(data)} bytes; the most is {self._settings.entry_bytes_max}")
        if self._uncommitted_bytes + len(data) > self._settings.uncommitted_bytes_max:
            raise TooMuchUncommitted(f"{self._uncommitted_bytes} bytes are not committed yet")
        return self._append(data=data)

    def add_learner(self, node_id: int, store_id: str) -> int:
        """Raises NotLeader, ChangeRefused; so do the next two. The index of the entry."""
        return self._change(
            lambda now: with_learner(now, node_id, store_id, members_max=self._settings.members_max), node_id
        )

    def promote(self, node_id: int) -> int:
        """Makes a learner that has caught up a voter."""
        self._check_leads()
        progress = self.progress.get(node_id)
        if progress is not None and node_id != self.me.node_id and not self._has_caught_up(progress):
            raise ChangeRefused(
                f"node {node_id} has not caught up: it has {progress.match} of {self.log.last_index} entries"
            )
        return self._change(lambda now: promoted(now, node_id))

    def remove(self, node_id: int) -> int:
        """Takes a member out."""
        return self._change(lambda now: without(now, node_id), node_id)

    def transfer(self, node_id: int) -> None:
        """Hands leadership to that voter; given up after an election timeout. Raises NotLeader, ChangeRefused."""
        self._check_leads()
        if node_id not in self.configuration.voters() or node_id == self.me.node_id:
            raise ChangeRefused(f"node {node_id} is no other voter")
        self.transferee = node_id
        self._transfer_ticks = 0
        self._hand_over_if_caught_up(node_id)

    def peer_lost(self, node_id: int) -> bool:
        """A connection with that node broke: a hint. True: it was the leader; call `campaign` in a moment."""
        self.unreachable(node_id)
        was_leader = self.role is Role.FOLLOWER and self.leader_id == node_id
        self._leader_lost = self._leader_lost or was_leader
        return was_leader

    def campaign(self) -> None:
        """After `peer_lost`: asks for votes, if the leader was not heard since."""
        if self._leader_lost and self.role is Role.FOLLOWER and self.may_campaign:
            self._campaign(pre=True)

    def unreachable(self, node_id: int) -> None:
        """What was sent to that node may be lost."""
        if progress := self.progress.get(node_id):
            progress.probe()

    def compact(self, index: int, data: bytes) -> None:
        """`data` is the image of everything applied up to `index`."""
        self.log.compact(index, data, kept_entries=self._settings.kept_entries)

    # --- Giving out.

    def ready(self) -> Ready | None:
        """What is to be done next; None: nothing. It counts as under way from now on."""
        if self.role is Role.LEADER:
            self._send_appends()
        delete_from, delete_below, snapshot, entries = self.log.take_unsaved()
        restored, committed = self.log.take_committed(entries_max=self._settings.apply_entries_max)
        hard_state = None
        if entries or snapshot or delete_from is not None or (self.term, self.vote) != self._voted():
            hard_state = self._saved = HardState(self.term, self.vote, self.log.commit)
        if hard_state is None and not self._outbox and not committed and restored is None:
            return None
        messages, self._outbox = tuple(self._outbox), []
        return Ready(self.term, delete_from, delete_below, snapshot, entries, hard_state, messages, restored, committed)

    def advance(self, ready: Ready) -> None:
        """It is done: durable, sent and applied. Only now does a leader count itself."""
        # In an own term a leader's log never shrinks, so what was saved in it still stands. In another term that
        # could be an entry which was cut off meanwhile and replaced.
        if self.role is Role.LEADER and ready.term == self.term and ready.entries:
            if mine := self.progress.get(self.me.node_id):
                mine.match = max(mine.match, ready.entries[-1].index)
            self._commit_what_a_majority_has()

    # --- Messages.

    def step(self, message: Message) -> None:
        """Takes a message in."""
        if message.to_store not in ("", self.me.store_id):
            return  # meant for the disk that was here before
        sender, body = message.sender, message.body
        if self.fresh and message.fresh and sender.node_id in self._known_peers:
            self._hear_fresh(sender)
        if isinstance(body, Greeting):
            self._on_greeting(sender, body)
        elif isinstance(body, ANSWERS if self.role is not Role.LEADER else ASKS_AND_ANSWERS) and not self._counts(
            sender
        ):
            # Another disk, or nobody: it must neither count nor move the term. But it is there.
            self._take_in(sender)
        elif message.term < self.term:
            self._answer_old_term(message)
        elif message.term == self.term or self._adopt_term(message):
            self._dispatch(message)

    def _dispatch(self, message: Message) -> None:
        """A message of this term."""
        body = message.body
        match body:
            case Vote():
                self._on_vote(message, body)
            case VoteResponse(granted=True, pre=False):
                if self.role is Role.CANDIDATE:
                    self._count_vote(message.sender.node_id)
            case TimeoutNow():
                if self.may_campaign and self.role is not Role.LEADER:
                    self._campaign(pre=False, force=True)
            case Append() | Heartbeat() | InstallSnapshot():
                self._on_leader_message(message, body)
            case _:
                node_id = message.sender.node_id
                if self.role is Role.LEADER and (progress := self.progress.get(node_id)):
                    progress.heard_tick = self.ticks
                    self._on_answer(node_id, progress, body)

    def _adopt_term(self, message: Message) -> bool:
        """A newer term. False: the message is done with."""
        body = message.body
        if isinstance(body, Vote):
            if self._hears_a_leader() and not body.force:
                # Without this, a node that was cut off would depose a leader that everybody else hears.
                if body.pre:
                    self._send(message.sender, VoteResponse(granted=False, pre=True))
                return False
            if body.pre:
                self._on_pre_vote(message, body)
                return False
        if isinstance(body, VoteResponse) and body.pre and body.granted:
            # It carries the term that was asked for, which nobody is in yet.
            if self.role is Role.PRE_CANDIDATE and message.term == self.term + 1:
                self._count_vote(message.sender.node_id)
            return False
        leads = isinstance(body, ANY_LEADER_MESSAGE)
        self._follow(message.term, leader_id=message.sender.node_id if leads else 0)
        return True

    def _answer_old_term(self, message: Message) -> None:
        """Tells the sender of the term here: a leader steps down, and a node stuck below comes along."""
        match message.body:
            case Append() | Heartbeat() | InstallSnapshot():
                self._send(message.sender, AppendResponse(index=0, rejected=True))
            case Vote(pre=pre):
                self._send(message.sender, VoteResponse(granted=False, pre=pre))
            case _:
                pass

    # --- Elections.

    def _on_pre_vote(self, message: Message, ask: Vote) -> None:
        granted = self._would_vote(message, ask)
        # A grant speaks of the term that is asked for, a refusal of the term here.
        self._send(message.sender, VoteResponse(granted, pre=True), term=message.term if granted else self.term)

    def _on_vote(self, message: Message, ask: Vote) -> None:
        candidate = message.sender.node_id
        free = self.vote == candidate or (self.vote == 0 and self.leader_id == 0)
        granted = free and not ask.pre and self._would_vote(message, ask)
        if granted:
            self.vote = candidate
            self._elapsed = 0
        self._send(message.sender, VoteResponse(granted, pre=ask.pre))

    def _would_vote(self, message: Message, ask: Vote) -> bool:
        trusted = not self.fresh or self._all_are_fresh() or message.to_store == self.me.store_id
        return trusted and self.log.is_up_to_date(ask.last_index, ask.last_term)

    def _count_vote(self, node_id: int) -> None:
        self._votes.add(node_id)
        voters = self.configuration.voters()
        if sum(voter in self._votes for voter in voters) > len(voters) // 2:
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(pre=False)
            else:
                self._lead()

    def _campaign(self, *, pre: bool, force: bool = False) -> None:
        self._campaigns += pre
        self.leader_id = 0
        self._leader_lost = False
        self._elapsed = 0
        self._votes = {self.me.node_id}
        if self._is_alone():
            pre = False
        if pre:
            self.role = Role.PRE_CANDIDATE
        else:
            # The own vote counts at once: what asks for the others' is not sent before it is durable.
            self.role = Role.CANDIDATE
            self.term += 1
            self.vote = self.me.node_id
        self._timeout = self._draw_timeout()
        if self._is_alone():
            # Nothing of this term is told or counted before the vote is durable, as it is saved with the first entry.
            self._lead()
            return
        ask = Vote(self.log.last_index, self.log.last_term, pre=pre, force=force)
        for voter in self.configuration.voters():
            if voter != self.me.node_id:
                self._send_to(voter, ask, term=self.term + 1 if pre else self.term)

    def _follow(self, term: int, *, leader_id: int) -> None:
        assert term >= self.term
        if term > self.term:
            self.term = term
            self.vote = 0
        self.role = Role.FOLLOWER
        self.leader_id = leader_id
        self._leader_lost = False
        self._elapsed = 0
        if leader_id:
            self._campaigns = 0
        self._timeout = self._draw_timeout()
        self.progress = {}
        self.transferee = 0
        self._incoming = None

    def _lead(self) -> None:
        self.role = Role.LEADER
        self.leader_id = self.me.node_id
        self._leader_lost = False
        self._campaigns = self._elapsed = 0
        self.transferee = 0
        self._uncommitted_bytes = self.log.uncommitted_bytes()
        self.progress = {}
        self._seat_progress()
        # An entry of the own term, so that those of earlier terms are committed with it.
        first = bind(self.configuration, self._fresh_stores) if self.fresh else None
        self.leader_since_index = self._append(configuration=first)

    def _draw_timeout(self) -> int:
        """While there is no leader, the first attempts come soon: with pre-vote they disturb nobody."""
        settings = self._settings
        base = settings.election_ticks
        if not self.leader_id:
            base = min(base, settings.campaign_ticks * max(1, self._campaigns))
        return self._random.randrange(base, 2 * base)

    def _hears_a_leader(self) -> bool:
        if self.role is Role.LEADER:
            return True  # or it would have stepped down
        return bool(self.leader_id) and not self._leader_lost and self._elapsed < self._settings.election_ticks

    # --- A leader's life.

    def _tick_leader(self) -> None:
        settings = self._settings
        if self.transferee:
            self._transfer_ticks += 1
            if self._transfer_ticks >= settings.election_ticks:
                self.transferee = 0
        if self._elapsed >= settings.heartbeat_ticks:
            self._elapsed = 0
            if not self._hears_a_majority():
                # Others may have elected somebody else by now, and nothing can be committed here anyway.
                self._follow(self.term, leader_id=0)
                return
            for node_id, progress in self.progress.items():
                if node_id != self.me.node_id:
                    self._send_to(node_id, Heartbeat(commit=min(progress.match, self.log.commit)))

    def _hears_a_majority(self) -> bool:
        voters = self.configuration.voters()
        heard = sum(voter == self.me.node_id or self._is_heard(self.progress[voter]) for voter in voters)
        return heard > len(voters) // 2

    def _is_heard(self, progress: Progress) -> bool:
        return self.ticks - progress.heard_tick < self._settings.election_ticks

    def _append(self, *, data: bytes = b"", configuration: Configuration | None = None) -> int:
        entry = Entry(self.log.last_index + 1, self.term, data, configuration)
        self.log.append((entry,))
        self._uncommitted_bytes += entry.size_bytes
        if configuration is not None:
            self._seat_progress()
        return entry.index

    def _seat_progress(self) -> None:
        """One for each member, a new one where the disk is another."""
        seated: dict[int, Progress] = {}
        for seat in self.configuration.seats:
            progress = self.progress.get(seat.node_id)
            if progress is None or progress.store_id not in ("", seat.store_id):
                progress = Progress(seat.store_id, next=self.log.last_index + 1, heard_tick=self.ticks)
            progress.store_id = seat.store_id
            seated[seat.node_id] = progress
        self.progress = seated

    def _send_appends(self) -> None:
        for node_id, progress in self.progress.items():
            if node_id != self.me.node_id:
                while self._send_append(node_id, progress):
                    pass

    def _send_append(self, node_id: int, progress: Progress, *, even_empty: bool = False) -> bool:
        """True: entries were sent."""
        if progress.pace is Pace.SNAPSHOT or (progress.pace is Pace.PROBE and progress.waiting):
            return False
        prev_index = progress.next - 1
        prev_term = self.log.term_at(prev_index)
        if prev_term is None:
            assert self.log.snapshot is not None
            progress.begin_snapshot(self.log.snapshot)
            self._send_piece(node_id, progress)
            return False
        entries: tuple[Entry, ...] = ()
        if progress.has_room(self._settings):
            entries = self.log.entries(progress.next, bytes_max=self._settings.append_bytes_max)
        commit = self.log.commit
        if not entries and not even_empty and progress.sent_commit >= commit:
            return False
        self._send_to(node_id, Append(prev_index, prev_term, commit, entries))
        progress.sent_commit = commit
        last_index = entries[-1].index if entries else prev_index
        if entries or progress.pace is Pace.PROBE:
            progress.sent(last_index, sum(entry.size_bytes for entry in entries))
        return bool(entries)

    def _on_answer(self, node_id: int, progress: Progress, body: Body) -> None:
        match body:
            case AppendResponse(rejected=True):
                index, _ = self.log.guess_equal(body.hint_index, body.hint_term)
                progress.rejected(body.index, may_equal=index)
            case AppendResponse():
                if body.index > self.log.last_index:
                    return  # of nothing that was sent here
                progress.accepted(body.index, first_index=self.log.first_index)
                self._commit_what_a_majority_has()
                self._hand_over_if_caught_up(node_id)
            case HeartbeatResponse():
                progress.waiting = False
                self._promote_if_returning(node_id)
                if progress.pace is Pace.SNAPSHOT:
                    if self.ticks - progress.snapshot_sent_tick >= self._settings.election_ticks:
                        self._send_piece(node_id, progress)
                elif progress.match < self.log.last_index:
                    # What is missing may have been lost: without anything sent, nobody would notice.
                    self._send_append(node_id, progress, even_empty=True)
            case InstallSnapshotResponse():
                snapshot = progress.snapshot
                if snapshot is not None and snapshot.index == body.index and body.offset < len(snapshot.data):
                    progress.snapshot_offset = body.offset
                    self._send_piece(node_id, progress)
            case _:
                pass

    def _commit_what_a_majority_has(self) -> None:
        voters = self.configuration.voters()
        matches = sorted((self.progress[voter].match for voter in voters), reverse=True)
        index = matches[len(voters) // 2]
        # An entry of an earlier term that a majority has may still be replaced; one of the own term may not.
        if index <= self.log.commit or self.log.term_at(index) != self.term:
            return
        self.log.commit_to(index)
        self._uncommitted_bytes = self.log.uncommitted_bytes()

    def _hand_over_if_caught_up(self, node_id: int) -> None:
        progress = self.progress.get(node_id)
        if self.transferee == node_id and progress is not None and progress.match == self.log.last_index:
            self._send_to(node_id, TimeoutNow())

    def _check_leads(self) -> None:
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader_id or None)
        if self.transferee:
            raise NotLeader(None)

    # --- A leader and its members.

    def _change(self, change: Callable[[Configuration], Configuration], node_id: int = 0) -> int:
        self._check_leads()
        if node_id == self.me.node_id:
            raise ChangeRefused(f"node {node_id} is the leader; hand its leadership over first")
        if self.log.configuration_index > self.log.commit:
            raise ChangeRefused("another change of the members is under way")
        if self.log.term_at(self.log.commit) != self.term:
            # Else two leaders, each changing what the other did not see, could both find majorities.
            raise ChangeRefused("the leader is new and has committed nothing yet")
        return self._append(configuration=change(self.configuration))

    def _take_in(self, stranger: PeerId) -> None:
        """Leader: a node without a seat gets one as a learner, if that can be now; it will greet again."""
        if self.role is not Role.LEADER:
            return
        configuration = self.configuration
        seat = configuration.seat(stranger.node_id)
        if stranger.store_id in configuration.removed_stores or not stranger.store_id:
            return
        if seat is not None and self._is_heard(self.progress[stranger.node_id]):
            return  # two nodes with one id: the one that is a member stays it
        returning = seat is not None and (seat.voter or seat.returning)
        try:
            self._change(
                lambda now: with_learner(
                    now,
                    stranger.node_id,
                    stranger.store_id,
                    members_max=self._settings.members_max,
                    returning=returning,
                ),
                stranger.node_id,
            )
        except (ChangeRefused, NotLeader):
            return

    def _promote_if_returning(self, node_id: int) -> None:
        seat = self.configuration.seat(node_id)
        if seat is not None and seat.returning and self._has_caught_up(self.progress[node_id]):
            try:
                self._change(lambda now: promoted(now, node_id))
            except (ChangeRefused, NotLeader):
                return

    def _has_caught_up(self, progress: Progress) -> bool:
        lag = self.log.last_index - progress.match
        return progress.match > 0 and lag <= self._settings.promote_lag_entries and self._is_heard(progress)

    # --- A follower's life.

    def _on_leader_message(self, message: Message, body: Append | Heartbeat | InstallSnapshot) -> None:
        if self.role is Role.LEADER:
            return  # no term has two
        if self.role is not Role.FOLLOWER or self.leader_id != message.sender.node_id:
            self._follow(self.term, leader_id=message.sender.node_id)
        self._elapsed = 0
        self._leader_lost = False
        leader = message.sender
        match body:
            case Append():
                self._send(leader, self._take_entries(body))
            case Heartbeat():
                self.log.commit_to(min(body.commit, self.log.last_index))
                self._send(leader, HeartbeatResponse())
            case InstallSnapshot():
                self._send(leader, self._take_piece(body))

    def _take_entries(self, append: Append) -> AppendResponse:
        if append.prev_index < self.log.commit:
            # An old message; what is committed is equal anyway.
            return AppendResponse(index=self.log.commit)
        if not self.log.merge(append.prev_index, append.prev_term, append.entries):
            index, term = self.log.guess_equal(min(append.prev_index, self.log.last_index), append.prev_term)
            return AppendResponse(index=append.prev_index, rejected=True, hint_index=index, hint_term=term)
        last_index = append.prev_index + len(append.entries)
        self.log.commit_to(min(append.commit, last_index))
        return AppendResponse(index=last_index)

    def _take_piece(self, piece: InstallSnapshot) -> Body:
        if self.log.term_at(piece.index) == piece.snapshot_term:
            # Entries behind it may have been counted as durable here: they must not go.
            self.log.commit_to(piece.index)
        if piece.index <= self.log.commit:
            self._incoming = None
            return AppendResponse(index=self.log.commit)
        if piece.offset == 0:
            self._incoming = (piece, bytearray())
        received = 0
        if self._incoming is not None:
            head, image = self._incoming
            same = (head.index, head.snapshot_term, head.size_bytes) == (
                piece.index,
                piece.snapshot_term,
                piece.size_bytes,
            )
            received = len(image) if same else 0
            fits = piece.offset + len(piece.data) <= piece.size_bytes <= self._settings.snapshot_bytes_max
            if same and piece.offset == received and fits:
                image += piece.data
                if len(image) == piece.size_bytes:
                    self._incoming = None
                    self.log.restore(Snapshot(piece.index, piece.snapshot_term, piece.configuration, bytes(image)))
                    return AppendResponse(index=piece.index)
                received = len(image)
        return InstallSnapshotResponse(piece.index, received)

    def _send_piece(self, node_id: int, progress: Progress) -> None:
        snapshot = progress.snapshot
        assert snapshot is not None
        begin = progress.snapshot_offset
        data = snapshot.data[begin : begin + self._settings.snapshot_chunk_bytes]
        progress.snapshot_sent_tick = self.ticks
        self._send_to(
            node_id,
            InstallSnapshot(snapshot.index, snapshot.term, snapshot.configuration, begin, len(snapshot.data), data),
        )

    # --- Newcomers.

    def _greet(self) -> None:
        """A node that hears no leader and can't become one says that it is there, and keeps its links up."""
        if (self.fresh or not self.may_campaign) and not self._hears_a_leader():
            for node_id in self._known_peers:
                self._send_to(node_id, Greeting(self.me))

    def _on_greeting(self, sender: PeerId, greeting: Greeting) -> None:
        if self.role is Role.LEADER:
            if not self._counts(greeting.origin):
                self._take_in(greeting.origin)
        elif self.leader_id and greeting.origin == sender:
            self._send_to(self.leader_id, greeting)

    def _hear_fresh(self, peer: PeerId) -> None:
        was_ready = self.may_campaign
        self._fresh_stores[peer.node_id] = peer.store_id
        if not was_ready and self.may_campaign and self.me.node_id == min(self.configuration.voters()):
            # All are there. One of them need not wait for its luck.
            self._elapsed = self._timeout

    def _all_are_fresh(self) -> bool:
        return all(node_id in self._fresh_stores for node_id in self._known_peers)

    # --- Sending, and who counts.

    def _is_alone(self) -> bool:
        return self.configuration.voters() == (self.me.node_id,)

    def _counts(self, sender: PeerId) -> bool:
        """The sender is the member that has this seat, disk and all."""
        seat = self.configuration.seat(sender.node_id)
        if seat is None:
            return False
        return (seat.store_id or self._fresh_stores.get(sender.node_id)) == sender.store_id

    def _voted(self) -> tuple[int, int]:
        return self._saved.term, self._saved.vote

    def _send_to(self, node_id: int, body: Body, *, term: int | None = None) -> None:
        seat = self.configuration.seat(node_id)
        self._send(PeerId(node_id, seat.store_id if seat is not None else ""), body, term=term)

    def _send(self, to: PeerId, body: Body, *, term: int | None = None) -> None:
        self._outbox.append(
            Message(to.node_id, to.store_id, self.me, self.term if term is None else term, self.fresh, body)
        )
