"""A node's life in the cluster: it registers, and is heard of as long as it can be.

Owns the node's broker epoch and whether its session is valid: whether it may act as a leader. That is counted on the
monotonic clock from when the last answered heartbeat was *sent*, so a node that was paused, or cut off, knows by
itself that others may have taken over. It decides nothing for the cluster.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from broker.clock import ClusterClock
from broker.controller.commands import (
    AlterPartition,
    AlterPartitions,
    HandOver,
    Outcome,
    PartitionId,
    RegisterNode,
    ReportDamage,
    StopNode,
)
from broker.controller.metadata_log import CallsToNodes, MetadataLog
from broker.controller.state import ClusterState, PartitionState
from broker.errors import PostbusError, Reason
from broker.peers.calls import PeerUnreachable
from broker.stubs.controller_pb2 import NodeHeartbeat, NodeHeartbeatAnswer

log = structlog.get_logger(__name__)

HEARTBEAT: Final = "controller.heartbeat"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Times."""

    heartbeat_s: float = 0.2
    session_s: float = 1.0  # shorter than the silence after which the controller fences
    answer_s: float = 0.5  # a heartbeat that takes longer is given up
    retry_s: float = 0.05
    register_s: float = 5.0  # one try
    register_retry_s: float = 0.5


@dataclass(frozen=True, slots=True)
class AlterResult:
    """What came of one change that a leader asked for."""

    topic_id: str
    partition: int
    error: PostbusError | None  # None: it is so, if there is a state; else nobody knows
    state: PartitionState | None  # as it is now


class NodeSession:
    """Used on the event loop only."""

    def __init__(
        self,
        *,
        registration: RegisterNode,
        metadata_log: MetadataLog,
        calls: CallsToNodes,
        clock: ClusterClock,
        disk_full: Callable[[], bool] = lambda: False,
        settings: SessionSettings | None = None,
    ) -> None:
        """registration: what the node says of itself. disk_full: whether this node can store no records now."""
        self.broker_epoch = 0  # of this life; 0: not registered yet
        self._registration = registration
        self._node_id = registration.node_id
        self._metadata_log = metadata_log
        self._calls = calls
        self._clock = clock
        self._disk_full = disk_full
        self._settings = settings or SessionSettings()
        self._answered_at: float | None = None  # when the last heartbeat that was answered had been sent
        self._alone_since = clock.monotonic()  # before the first answer
        self._clock_is_wrong = False
        self._listeners: list[Callable[[], None]] = []
        self._told: tuple[int, bool, bool] = (0, False, False)
        self._expiry: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def session_valid(self) -> bool:
        """Whether nobody can have been put in this node's place yet."""
        if not self.broker_epoch or self._answered_at is None:
            return False
        return self._clock.monotonic() - self._answered_at < self._settings.session_s

    @property
    def silence_s(self) -> float:
        """How long no controller has answered this node, counted as the session is."""
        return self._clock.monotonic() - max(self._alone_since, self._answered_at or 0.0)

    @property
    def unfenced(self) -> bool:
        """Whether the cluster counts on this node, as far as it knows."""
        node = self._metadata_log.state.nodes.get(self._node_id)
        return node is not None and node.broker_epoch == self.broker_epoch and not node.fenced

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Has `listener()` called when `broker_epoch`, `session_valid` or `unfenced` has changed. Must not raise."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Registers, and sends heartbeats until it is closed."""
        self._metadata_log.add_listener(self._followed)
        self._task = asyncio.get_running_loop().create_task(self._live())

    async def close(self) -> None:
        """Falls silent. `hand_over` before, so that nobody has to wait for the silence to be noticed."""
        if self._task is None:
            return
        self._metadata_log.remove_listener(self._followed)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        if self._expiry is not None:
            self._expiry.cancel()
        self._answered_at = None

    def on_peer_lost(self, node_id: int) -> None:
        """A connection broke: if it was to the controller, let it hear at once that this node is still there."""
        if node_id == self._metadata_log.controller_id:
            self._wake.set()

    async def alter_partitions(self, changes: Sequence[AlterPartition], *, timeout_s: float = 5.0) -> list[AlterResult]:
        """Asks for other ISRs of partitions that this node leads; this node has applied what came of it.

        Raises what `MetadataLog.execute` does: then nothing is known, and the same may be asked again.
        """
        command = AlterPartitions(node_id=self._node_id, broker_epoch=self.broker_epoch, changes=tuple(changes))
        executed = await self._metadata_log.execute(command, timeout_s=timeout_s)
        results = self._results(executed.outcomes)
        if not executed.repeated:
            return results
        # That this try was refused does not say that the one before it is not on its way yet.
        return [result if result.error is None else replace(result, error=None, state=None) for result in results]

    async def report_damage(self, partitions: Sequence[PartitionId], *, timeout_s: float = 5.0) -> list[AlterResult]:
        """Asks that nobody count on this node's copies of `partitions`; this node has applied what came of it.

        Of those that are gone there is no result. Raises what `MetadataLog.execute` does.
        """
        command = ReportDamage(node_id=self._node_id, broker_epoch=self.broker_epoch, partitions=tuple(partitions))
        return self._results((await self._metadata_log.execute(command, timeout_s=timeout_s)).outcomes)

    def _results(self, outcomes: Sequence[Outcome]) -> list[AlterResult]:
        state = self._metadata_log.state
        return [
            AlterResult(outcome.topic_id, outcome.partition, outcome.error, _partition(state, outcome))
            for outcome in outcomes
        ]

    async def hand_over(
        self, partitions: Sequence[PartitionId] | None = None, *, timeout_s: float = 5.0
    ) -> tuple[Outcome, ...]:
        """Lets others lead `partitions`; None: this node stops, and others lead all, wherever others are in sync.

        This node has applied it. Outcomes with an error are of partitions that it still leads.
        """
        if partitions is None:
            command: StopNode | HandOver = StopNode(node_id=self._node_id, broker_epoch=self.broker_epoch)
        else:
            command = HandOver(node_id=self._node_id, partitions=tuple(partitions))
            if not partitions:
                return ()
        return (await self._metadata_log.execute(command, timeout_s=timeout_s)).outcomes

    # --- life ---

    async def _live(self) -> None:
        while True:
            if not self.broker_epoch:
                await self._register()
                continue
            sent_at = self._clock.monotonic()
            self._wake.clear()
            if await self._beat(sent_at):
                await self._pause(self._settings.heartbeat_s - (self._clock.monotonic() - sent_at))
            else:
                await asyncio.sleep(self._settings.retry_s)

    async def _pause(self, delay_s: float) -> None:
        """Until the next heartbeat is due, or something says that it is better sent now."""
        if delay_s > 0 and not self._wake.is_set():
            waiting = asyncio.get_running_loop().create_task(self._wake.wait())
            try:
                await asyncio.wait([waiting], timeout=delay_s)
            finally:
                waiting.cancel()

    async def _register(self) -> None:
        registration = self._registration
        try:
            executed = await self._metadata_log.execute(registration, timeout_s=self._settings.register_s)
        except PostbusError as error:
            log.warning("registration_refused", why=error.message, reason=error.reason_name)
            await asyncio.sleep(self._settings.register_retry_s)
            return
        self.broker_epoch = executed.after.nodes[registration.node_id].broker_epoch
        self._alone_since = self._clock.monotonic()
        log.info("registered", broker_epoch=self.broker_epoch, unclean=registration.unclean)
        self._tell()

    async def _beat(self, sent_at: float) -> bool:
        """One heartbeat; False: there was no answer that helps."""
        controller_id = self._metadata_log.controller_id
        if controller_id is None:
            return False
        heartbeat = NodeHeartbeat(
            broker_epoch=self.broker_epoch,
            applied_index=self._metadata_log.state.index,
            disk_full=self._disk_full(),
            wall_us=self._clock.own_wall_us(),
        )
        call = self._calls.start_call(
            controller_id, HEARTBEAT, heartbeat.SerializeToString(), timeout_s=self._settings.answer_s
        )
        try:
            answer = NodeHeartbeatAnswer.FromString(await call)
        except (PeerUnreachable, TimeoutError):
            return False
        except PostbusError as error:
            if error.reason == Reason.ERROR_REASON_PRECONDITION_NOT_MET:
                # Somebody else registered under this id, or the node was removed.
                log.warning("registration_lost", why=error.message)
                self.broker_epoch = 0
                self._answered_at = None
                self._tell()
            return False
        self._set_clock(answer.wall_us)
        # A node that was silent may have been replaced meanwhile: before it knows what the controller knew when it
        # answered, the answer says nothing of what it leads.
        if not await self._metadata_log.wait_applied(answer.index, timeout_s=self._settings.answer_s):
            return False
        self._answered_at = sent_at
        self._expire_later()
        self._tell()
        return True

    def _set_clock(self, agreed_us: int) -> None:
        if not agreed_us:
            return
        self._clock.agree(agreed_us)
        wrong_by_s = self._clock.wrong_by_s
        if bool(wrong_by_s) != self._clock_is_wrong:
            self._clock_is_wrong = bool(wrong_by_s)
            if wrong_by_s:
                log.warning("clock_wrong", ahead_s=wrong_by_s, action="set it; the time of the other nodes counts here")
            else:
                log.info("clock_right")

    def _expire_later(self) -> None:
        """Listeners hear of the end of the session when it comes."""
        if self._expiry is not None:
            self._expiry.cancel()
        assert self._answered_at is not None
        left_s = self._settings.session_s - (self._clock.monotonic() - self._answered_at)
        self._expiry = asyncio.get_running_loop().call_later(max(0.0, left_s), self._expired)

    def _expired(self) -> None:
        self._expiry = None
        if self.session_valid:
            self._expire_later()  # the timer and the clock differ by a hair
        else:
            self._tell()

    def _followed(self, old: ClusterState, new: ClusterState) -> None:
        if old.nodes is not new.nodes:
            self._tell()

    def _tell(self) -> None:
        now = (self.broker_epoch, self.session_valid, self.unfenced)
        if now != self._told:
            self._told = now
            for listener in tuple(self._listeners):
                listener()


def _partition(state: ClusterState, outcome: Outcome) -> PartitionState | None:
    topic = state.topic_by_id(outcome.topic_id)
    if topic is None or not 0 <= outcome.partition < topic.partition_count:
        return None
    return topic.partitions[outcome.partition]
