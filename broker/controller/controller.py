"""The active controller's life: hears heartbeats, fences the silent, and lets things go back to where they belong.

Only timers and who was heard when; what follows is decided by the pure modules, through the metadata log. It does
nothing on a node that does not lead the Raft group, and keeps nothing across terms that the image does not have.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from google.protobuf.message import DecodeError

from broker.clock import Clock
from broker.controller.commands import Command, FenceNodes, HandOver, RestorePreferred, UnfenceNode
from broker.controller.metadata_log import CallsToNodes, MetadataLog, not_controller
from broker.controller.node_clocks import NodeClocks
from broker.controller.node_decisions import stale_life
from broker.controller.session import HEARTBEAT
from broker.controller.state import ClusterState, NodeState, difference
from broker.errors import PostbusError, Reason, invalid_field
from broker.peers.calls import PeerUnreachable
from broker.peers.links import PeerId
from broker.stubs.controller_pb2 import ChangeVoter, NodeHeartbeat, NodeHeartbeatAnswer

log = structlog.get_logger(__name__)

CHANGE_VOTER: Final = "controller.change_voter"


class GroupMember(Protocol):
    """What is needed of a member of the Raft group."""

    @property
    def node_id(self) -> int: ...

    @property
    def store_id(self) -> str: ...

    @property
    def voter(self) -> bool: ...


class RaftGroup(Protocol):
    """What is needed of Raft (raft.node.RaftNode)."""

    def members(self) -> Sequence[GroupMember]: ...

    async def add_learner(self, node_id: int, store_id: str) -> None: ...

    async def promote(self, node_id: int) -> None: ...

    async def remove(self, node_id: int) -> None: ...

    async def transfer_leadership(self, node_id: int | None = None) -> bool: ...


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Times and bounds."""

    tick_s: float = 0.05
    silence_s: float = 1.5  # after which a node is fenced; longer than its own session
    lost_s: float = 0.25  # the same, once its connection broke
    stall_s: float = 0.5  # a timer that comes so late says that this node hung, not the others
    preferred_interval_s: float = 1.0  # between two rounds of giving leadership back
    preferred_count: int = 50  # partitions in a round
    preferred_delay_s: float = 5.0  # since the node was unfenced


class Controller:
    """Used on the event loop only."""

    def __init__(
        self,
        *,
        node_id: int,
        metadata_log: MetadataLog,
        raft: RaftGroup,
        calls: CallsToNodes,
        clock: Clock,
        settings: ControllerSettings | None = None,
    ) -> None:
        self._node_id = node_id
        self._metadata_log = metadata_log
        self._raft = raft
        self._calls = calls
        self._clock = clock
        self._settings = settings or ControllerSettings()
        self._deadlines: dict[int, float] = {}  # when a node counts as silent
        self._lost: dict[int, float] = {}  # when the connection to a node broke that was not heard of since
        self._unfenced_at: dict[int, float] = {}
        self._disk_full: dict[int, bool] = {}  # as its last heartbeat said
        self._clocks = NodeClocks(silence_s=self._settings.silence_s)
        self._own_epoch = 0  # of this node's life, once it was heard
        self._tick_at = 0.0
        self._restore_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}  # removals from the Raft group, by node
        calls.handle(HEARTBEAT, self._heard)
        calls.handle(CHANGE_VOTER, self._asked_to_change_voter)
        metadata_log.add_active_listener(self._activated)
        metadata_log.add_listener(self._followed)

    def on_peer_lost(self, node_id: int) -> None:
        """A connection broke: unless the node is heard of again soon, it counts as silent."""
        now = self._clock.monotonic()
        self._lost[node_id] = now
        if node_id in self._deadlines:
            self._deadlines[node_id] = min(self._deadlines[node_id], now + self._settings.lost_s)

    async def change_voter(self, node_id: int, *, voter: bool, timeout_s: float = 10.0) -> None:
        """Makes a node vote, or observe; on any node. Raises PostbusError."""
        question = ChangeVoter(node_id=node_id, voter=voter).SerializeToString()
        deadline = self._clock.monotonic() + timeout_s
        asked = False
        while (left_s := deadline - self._clock.monotonic()) > 0:
            controller_id = self._metadata_log.controller_id
            if controller_id is not None:
                try:
                    await self._calls.start_call(controller_id, CHANGE_VOTER, question, timeout_s=left_s)
                    return
                except (PeerUnreachable, TimeoutError):
                    asked = True
                except PostbusError as error:
                    # Raft says NO_LEADER when leadership went meanwhile. To ask again for what is so does no harm.
                    if error.reason not in (Reason.ERROR_REASON_NOT_LEADER, Reason.ERROR_REASON_NO_LEADER):
                        raise
            await asyncio.sleep(self._settings.tick_s)
        why = self._metadata_log.quorum_problem() or "no controller answered in time"
        raise PostbusError(Reason.ERROR_REASON_TIMEOUT if asked else Reason.ERROR_REASON_NO_LEADER, why)

    async def close(self) -> None:
        """Nothing more is decided here."""
        self._stop()
        self._metadata_log.remove_listener(self._followed)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- heartbeats ---

    async def _heard(self, peer: PeerId, payload: bytes) -> bytes:
        if not self._metadata_log.active:
            raise not_controller()
        heartbeat = NodeHeartbeat.FromString(payload)
        node = self._metadata_log.decided.nodes.get(peer.node_id)
        if node is None or node.broker_epoch != heartbeat.broker_epoch:
            raise stale_life(peer.node_id, heartbeat.broker_epoch, node)
        now = self._clock.monotonic()
        if node.node_id == self._node_id:
            self._own_epoch = node.broker_epoch
        self._lost.pop(node.node_id, None)
        self._deadlines[node.node_id] = now + self._settings.silence_s
        self._clocks.heard(node.node_id, wall_us=heartbeat.wall_us, now_s=now)
        self._disk_full[node.node_id] = heartbeat.disk_full
        # A node that does not know its own registration knows nothing of what it should lead.
        if node.fenced and not node.stopping and heartbeat.applied_index >= node.broker_epoch:
            self._propose(UnfenceNode(node_id=node.node_id, broker_epoch=node.broker_epoch))
            self._unfenced_at[node.node_id] = now
            log.info("node_unfenced", node=node.node_id, broker_epoch=node.broker_epoch)
        # With what is proposed: it may be what puts others in this node's place.
        return NodeHeartbeatAnswer(
            fenced=node.fenced,
            index=self._metadata_log.decided.index,
            wall_us=self._clocks.agreed_us(self._clocks_counted(), now_s=now),
        ).SerializeToString()

    # --- timers ---

    def _activated(self, active: bool) -> None:
        self._stop()
        if not active:
            return
        now = self._clock.monotonic()
        for node in self._nodes():
            # Who was not heard of by the one before has as long again, unless it is known to have gone.
            gone = now - self._lost.get(node.node_id, -self._settings.silence_s) < self._settings.silence_s
            self._deadlines[node.node_id] = now + (self._settings.lost_s if gone else self._settings.silence_s)
            self._unfenced_at[node.node_id] = now
        self._restore_at = now + self._settings.preferred_interval_s
        self._tick_later()
        log.info("controller_active", index=self._metadata_log.state.index)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._deadlines.clear()
        self._unfenced_at.clear()
        self._clocks.clear()

    def _tick_later(self) -> None:
        self._tick_at = self._clock.monotonic() + self._settings.tick_s
        self._timer = asyncio.get_running_loop().call_later(self._settings.tick_s, self._tick)

    def _tick(self) -> None:
        now = self._clock.monotonic()
        late_s = now - self._tick_at
        if late_s > self._settings.stall_s:
            # Their heartbeats may be waiting in this node's own queue.
            for node_id in self._deadlines:
                self._deadlines[node_id] += late_s
        self._fence_silent(now)
        if now >= self._restore_at:
            self._restore_at = now + self._settings.preferred_interval_s
            self._move_leaders(now)
        if self._metadata_log.active:
            self._tick_later()

    def _fence_silent(self, now: float) -> None:
        silent = [
            node.node_id
            for node in self._nodes()
            if not node.fenced
            # That this node hears itself too late only says that it is busy.
            and not (node.node_id == self._node_id and node.broker_epoch == self._own_epoch)
            and self._deadlines.setdefault(node.node_id, now + self._settings.silence_s) <= now
        ]
        if silent:
            log.warning("nodes_fenced", nodes=silent)
            self._propose(FenceNodes(node_ids=tuple(silent)))

    def _move_leaders(self, now: float) -> None:
        for node in self._nodes():
            if node.draining and not node.fenced:
                self._propose(HandOver(node_id=node.node_id))
        settled = tuple(
            node.node_id
            for node in self._nodes()
            if node.useful
            and not self._disk_full.get(node.node_id)
            and now - self._unfenced_at.get(node.node_id, now) >= self._settings.preferred_delay_s
        )
        if settled and len(self._nodes()) > 1:
            self._propose(RestorePreferred(node_ids=settled, limit=self._settings.preferred_count))

    def _nodes(self) -> list[NodeState]:
        return list(self._metadata_log.decided.nodes.values())

    def _clocks_counted(self) -> set[int]:
        """Voters even while they are fenced: else one node that is alone for a moment would be right about the time."""
        voters = {member.node_id for member in self._raft.members() if member.voter}
        return voters | {node.node_id for node in self._nodes() if not node.fenced}

    def _propose(self, command: Command) -> None:
        """Nobody waits for it: what is not done now is due again at the next tick or heartbeat."""
        if not self._metadata_log.active:
            return
        try:
            self._metadata_log.propose(command)
        except PostbusError as error:
            log.warning("controller_delayed", command=type(command).__name__, why=error.message)

    # --- who votes ---

    async def _asked_to_change_voter(self, peer: PeerId, payload: bytes) -> bytes:
        if not self._metadata_log.active:
            raise not_controller()
        try:
            question = ChangeVoter.FromString(payload)
        except DecodeError as error:
            raise PostbusError(Reason.ERROR_REASON_UNKNOWN_FIELD, str(error)) from None
        member = next((member for member in self._raft.members() if member.node_id == question.node_id), None)
        if member is None:
            raise invalid_field("node_id", f"node {question.node_id} has not joined the controllers' log")
        if question.voter:
            await self._raft.promote(member.node_id)
        elif member.voter:
            await self._demote(member)
        return b""

    async def _demote(self, member: GroupMember) -> None:
        if sum(other.voter for other in self._raft.members()) == 1:
            raise invalid_field("node_id", f"node {member.node_id} is the only voter")
        if member.node_id == self._node_id:
            # Its successor takes it out.
            await self._raft.transfer_leadership()
            raise not_controller()
        await self._raft.remove(member.node_id)
        await self._raft.add_learner(member.node_id, member.store_id)

    def _followed(self, old: ClusterState, new: ClusterState) -> None:
        """A node that was removed has no place among the members of the Raft group either."""
        if old.nodes is new.nodes or not self._metadata_log.active:
            return
        for before, after in difference(old, new).nodes:
            if after is None and before is not None:
                self._deadlines.pop(before.node_id, None)
                self._tasks[before.node_id] = asyncio.get_running_loop().create_task(self._forget(before.node_id))

    async def _forget(self, node_id: int) -> None:
        try:
            await self._raft.remove(node_id)
        except PostbusError as error:
            log.warning("node_removal_incomplete", node=node_id, why=error.message)
        finally:
            self._tasks.pop(node_id, None)
