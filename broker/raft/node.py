"""The driver of Raft on one node: timers, links, the disk, and the order in which things are done.

Owns when the core is asked and in which order its answers are carried out: saved, durable, sent, applied, one `Ready`
after the other, though several may be on their way to the disk. A message never leaves before what it tells of is
durable, so a disk that hangs takes the leadership away from its node. It decides nothing: `core.py` does. What it
replicates is bytes to it.

Everything runs on the loop, with the clock, dice, transport and committer that are handed in.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TypeVar

import structlog

from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.peers.links import PeerId, Transport
from broker.raft.codec import Undecodable, decode_message, encode_message
from broker.raft.core import RaftCore, Role
from broker.raft.membership import ChangeRefused
from broker.raft.messages import Loaded, NotLeader, RaftSettings, Ready
from broker.raft.routes import Routes
from broker.raft.storage import MetaCommitter, save
from broker.storage.errors import StoreFailed

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """A node of the cluster, as this one sees it."""

    node_id: int
    store_id: str
    voter: bool
    match_index: int | None
    """Durable there up to this entry. None: only the leader knows."""
    last_heard_s: float | None
    """Seconds since the leader heard it, or since this node heard the leader. None: not known here."""


@dataclass(slots=True)
class _Pending:
    """A `Ready` under way."""

    ready: Ready
    durable: bool


class RaftNode:
    """One node's replicated log."""

    def __init__(
        self,
        *,
        me: PeerId,
        cluster_id: str,
        bootstrap_voters: tuple[int, ...],
        loaded: Loaded,
        committer: MetaCommitter,
        transport: Transport,
        clock: Clock,
        random: Random,
        settings: RaftSettings,
        on_apply: Callable[[int, bytes], None],
        on_leading: Callable[[int | None], None],
        on_snapshot: Callable[[int, bytes], None],
    ) -> None:
        """Before the transport listens. loaded: what `storage.load` gave.

        on_apply: each committed entry (index, data), in order, once a start; no data: a no-op or a change of members.
        on_leading: the term, once this node leads and has applied all that was committed before; None: no more.
        on_snapshot: an image (index, data) takes the place of all that was applied.
        None of them may raise. They may call `propose` and `take_snapshot`.
        """
        self.me = me
        self.applied_index = 0
        self._cluster_id = cluster_id
        self._committer = committer
        self._random = random
        self._settings = settings
        self._on_apply = on_apply
        self._on_leading = on_leading
        self._on_snapshot = on_snapshot
        self._core = RaftCore(me=me, bootstrap_voters=bootstrap_voters, loaded=loaded, random=random, settings=settings)
        self._routes = Routes(
            transport, clock=clock, random=random, received=self._received, lost=self._core.unreachable
        )
        self._pending: deque[_Pending] = deque()
        self._leading: int | None = None  # what on_leading was told last
        self._changes: dict[int, asyncio.Future[None]] = {}
        self._transfers: list[asyncio.Future[bool]] = []
        self._flush_handle: asyncio.Handle | None = None
        self._tick_handle: asyncio.Handle | None = None
        self._campaign_handle: asyncio.Handle | None = None
        self._told_leader = 0
        self._warned: set[PeerId] = set()  # once each: a stranger must not fill the log
        self._running = False
        transport.add_lost_listener(self.on_peer_lost)

    # --- What others ask.

    @property
    def leader_id(self) -> int | None:
        """None: not known."""
        return self._core.leader_id or None

    @property
    def term(self) -> int:
        """The latest that was heard of."""
        return self._core.term

    @property
    def commit_index(self) -> int:
        """Committed, as far as is known here."""
        return self._core.log.commit

    @property
    def last_index(self) -> int:
        """Of the log; entries above `commit_index` may still go."""
        return self._core.log.last_index

    @property
    def snapshot_index(self) -> int:
        """The latest image holds all up to it."""
        return self._core.log.snapshot.index if self._core.log.snapshot is not None else 0

    @property
    def is_voter(self) -> bool:
        """With this disk."""
        return self._core.is_member and self.me.node_id in self._core.configuration.voters()

    def members(self) -> list[Member]:
        """In order of their ids; none before the cluster has taken this node in."""
        return [self._member(seat.node_id, seat.store_id, seat.voter) for seat in self._core.configuration.seats]

    def why_unwelcome(self, peer: PeerId) -> str:
        """Of a disk that was taken out: nobody will ever answer it, and without a word it would wait for ever."""
        if peer.store_id not in self._core.configuration.removed_stores:
            return ""
        return (
            f"node {peer.node_id} was removed from this cluster, and with it its disk (store {peer.store_id}): start it"
            " with an empty data directory"
        )

    # --- Life.

    def start(self) -> None:
        """Applies what is known to be committed, and takes part. A lone voter leads after one fsync."""
        assert not self._running
        self._running = True
        self._flush()
        self._core.start()
        self._flush()
        self._tick_handle = asyncio.get_running_loop().call_later(self._settings.tick_ms / 1000, self._tick)

    async def close(self) -> None:
        """Stops at once; hand leadership over before. What is under way to the disk may still get there."""
        if self._running:
            self._stop()
        self._routes.close()

    def _stop(self) -> None:
        self._running = False
        for handle in (self._tick_handle, self._flush_handle, self._campaign_handle):
            if handle is not None:
                handle.cancel()
        if self._leading is not None:
            self._stop_leading()
        self._answer_transfers(moved=False)

    # --- On the leader.

    def propose(self, data: bytes) -> int:
        """Its index. The outcome is on_apply(index, data), or on_leading(None): not known. Raises RaftRefused.

        Only after on_leading(term): before, nobody could tell whose entry is applied at that index.
        """
        if self._leading is None:
            raise NotLeader(self.leader_id if self._core.role is not Role.LEADER else None)
        index = self._core.propose(data)
        self._poke()
        return index

    def take_snapshot(self, index: int, data: bytes) -> None:
        """`data` is the image of all entries up to `index`, which must have been applied. On any node."""
        self._core.compact(index, data)
        self._poke()

    async def transfer_leadership(self, node_id: int | None = None) -> bool:
        """Hands over to that voter, or the best one. False: it did not take over in time, or nobody could.

        Raises PostbusError.
        """
        if self._core.role is not Role.LEADER or node_id == self.me.node_id:
            return False
        target = node_id if node_id is not None else self._successor()
        if target is None:
            return False
        self._ask(lambda: self._core.transfer(target))
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._transfers.append(done)
        return await done

    async def add_learner(self, node_id: int, store_id: str) -> None:
        """Returns when it is committed and applied here; so do the next two. Raises PostbusError."""
        seat = self._core.configuration.seat(node_id)
        if seat is None or seat.store_id != store_id:
            await self._change(lambda: self._core.add_learner(node_id, store_id))

    async def promote(self, node_id: int) -> None:
        """Makes a learner a voter, once it has caught up."""
        if node_id not in self._core.configuration.voters():
            await self._change(lambda: self._core.promote(node_id))

    async def remove(self, node_id: int) -> None:
        """Takes a member out: its disk is not taken in again by itself."""
        if self._core.configuration.seat(node_id) is not None:
            await self._change(lambda: self._core.remove(node_id))

    def on_peer_lost(self, node_id: int) -> None:
        """A connection with that node broke: perhaps it died."""
        if self._running and self._core.peer_lost(node_id) and self._campaign_handle is None:
            delay_s = self._random.random() * self._settings.leader_lost_delay_ms / 1000
            self._campaign_handle = asyncio.get_running_loop().call_later(delay_s, self._campaign)

    # --- Events.

    def _tick(self) -> None:
        self._tick_handle = asyncio.get_running_loop().call_later(self._settings.tick_ms / 1000, self._tick)
        self._core.tick()
        self._poke()

    def _campaign(self) -> None:
        self._campaign_handle = None
        self._core.campaign()
        self._poke()

    def _received(self, peer: PeerId, data: bytes) -> None:
        if not self._running:
            return
        try:
            message = decode_message(data, cluster_id=self._cluster_id, node_id=self.me.node_id)
            if message.sender != peer:
                raise Undecodable(f"a message of {message.sender} on a link from {peer}")
        except Undecodable as error:
            if peer not in self._warned:
                self._warned.add(peer)
                log.warning("raft message dropped", peer=peer.node_id, why=str(error))
            return
        self._core.step(message)
        self._poke()

    def _poke(self) -> None:
        """After anything that the core was told."""
        core = self._core
        if self._leading is not None and (core.role is not Role.LEADER or core.term != self._leading):
            self._stop_leading()
        if self._transfers and (core.role is not Role.LEADER or not core.transferee):
            self._answer_transfers(moved=core.role is not Role.LEADER)
        if core.leader_id != self._told_leader:
            self._told_leader = core.leader_id
            log.info("raft leader", leader_id=core.leader_id or None, term=core.term)
        if self._flush_handle is None and self._running:
            # What else comes in this turn of the loop shares one write and one message a peer.
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)

    def _answer_transfers(self, *, moved: bool) -> None:
        transfers, self._transfers = self._transfers, []
        for done in transfers:
            if not done.done():
                done.set_result(moved)

    def _stop_leading(self) -> None:
        self._leading = None
        changes, self._changes = self._changes, {}
        for done in changes.values():
            if not done.done():
                done.set_exception(
                    PostbusError(
                        Reason.ERROR_REASON_NO_LEADER,
                        "leadership was lost meanwhile; the change may or may not have been made",
                    )
                )
        self._on_leading(None)

    # --- Carrying out, in order.

    def _flush(self) -> None:
        self._flush_handle = None
        ready = self._core.ready() if self._running else None
        if ready is None:
            return
        pending = _Pending(ready, durable=not ready.must_save)
        self._pending.append(pending)
        if ready.must_save:
            try:
                save(self._committer, ready, on_durable=partial(self._durable, pending))
            except StoreFailed as error:
                log.error("raft stopped", why=str(error))
                self._stop()
                return
        self._finish_in_order()
        # More entries may be left to apply than one turn of the loop should take.
        self._poke()

    def _durable(self, pending: _Pending) -> None:
        pending.durable = True
        self._finish_in_order()

    def _finish_in_order(self) -> None:
        while self._running and self._pending and self._pending[0].durable:
            ready = self._pending.popleft().ready
            for message in ready.messages:
                self._routes.send(message.to, encode_message(message, cluster_id=self._cluster_id))
            self._apply(ready)
            self._core.advance(ready)
            self._poke()

    def _apply(self, ready: Ready) -> None:
        if ready.restored is not None:
            self.applied_index = ready.restored.index
            self._on_snapshot(ready.restored.index, ready.restored.data)
        for entry in ready.committed:
            self.applied_index = entry.index
            self._on_apply(entry.index, entry.data)
            done = self._changes.pop(entry.index, None)
            if done is not None and not done.done():
                done.set_result(None)
        core = self._core
        if (
            self._leading is None
            and core.role is Role.LEADER
            and self.applied_index >= core.leader_since_index
            and self._running
        ):
            self._leading = core.term
            self._on_leading(core.term)

    # --- Members.

    async def _change(self, change: Callable[[], int]) -> None:
        index = self._ask(change)
        done = self._changes[index] = asyncio.get_running_loop().create_future()
        await done

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            if self._leading is None:
                raise NotLeader(self.leader_id)
            answer = question()
        except NotLeader as error:
            raise PostbusError(
                Reason.ERROR_REASON_NO_LEADER,
                "this node does not lead the controllers",
                metadata={"leader_id": error.leader_id or 0},
            ) from error
        except ChangeRefused as error:
            raise PostbusError(Reason.ERROR_REASON_PRECONDITION_NOT_MET, str(error)) from error
        self._poke()
        return answer

    def _successor(self) -> int | None:
        """The voter that has most of the log, among those that are there."""
        reach_s = self._settings.election_ticks * self._settings.tick_ms / 1000
        best: Member | None = None
        for member in self.members():
            if member.node_id == self.me.node_id or not member.voter or (member.last_heard_s or 0) > reach_s:
                continue
            if best is None or (member.match_index or 0) > (best.match_index or 0):
                best = member
        return best.node_id if best is not None else None

    def _member(self, node_id: int, store_id: str, voter: bool) -> Member:
        core = self._core
        tick_s = self._settings.tick_ms / 1000
        if node_id == self.me.node_id:
            return Member(node_id, store_id, voter, core.log.commit, 0.0)
        if progress := core.progress.get(node_id):
            return Member(node_id, store_id, voter, progress.match, (core.ticks - progress.heard_tick) * tick_s)
        heard_s = core.leader_silence_ticks * tick_s if node_id == core.leader_id else None
        return Member(node_id, store_id, voter, None, heard_s)
