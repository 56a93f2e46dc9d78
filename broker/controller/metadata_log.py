"""The metadata log on any node: commands in, one image kept up to date.

Owns the image and who waits for it. A command is decided on the active controller, the leader of the Raft group, after
everything that was proposed before it in this term, committed or not, so two at once never contradict each other. On
any other node it is sent there. Either way `execute` returns when this node has applied what came of it: who asks
reads what it wrote.

A command carries a random number, which its entry keeps: repeated after a failover it is not carried out again, and
the node that asked knows its own entry when it applies it, whoever answered or did not. Commands with an outcome for
each partition carry none; each of them asks for a state, and asking again for what is so changes nothing.
"""

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import structlog
from google.protobuf.message import DecodeError

from broker.clock import Clock
from broker.controller.command_codec import decode_command, decode_outcome, encode_command, encode_outcome
from broker.controller.commands import Command, Outcome, PartitionCommand, Rules, StopNode
from broker.controller.decisions import decide
from broker.controller.image import apply, from_snapshot, to_snapshot
from broker.controller.state import ClusterState, MetadataError
from broker.errors import PostbusError, Reason, draining
from broker.peers.calls import PeerUnreachable
from broker.peers.links import PeerId
from broker.raft.messages import EntryTooLarge, NotLeader, RaftRefused
from broker.stubs.controller_pb2 import ControllerAnswer
from broker.stubs.metadata_log_pb2 import MetadataEntry, MetadataSnapshot, RememberedCommand

log = structlog.get_logger(__name__)

EXECUTE: Final = "controller.execute"
_ASKED_AGAIN: Final = PartitionCommand | StopNode  # those with outcomes
_FIRST: Final = asyncio.FIRST_COMPLETED

Listener = Callable[[ClusterState, ClusterState], None]


class RaftLog(Protocol):
    """What is needed of Raft (raft.node.RaftNode)."""

    @property
    def leader_id(self) -> int | None: ...

    def propose(self, data: bytes) -> int: ...

    def take_snapshot(self, index: int, data: bytes) -> None: ...


class CallsToNodes(Protocol):
    """What is needed of peers.calls.Calls."""

    def handle(self, method: str, handler: Callable[[PeerId, bytes], Awaitable[bytes]]) -> None: ...

    def start_call(self, node_id: int, method: str, payload: bytes, *, timeout_s: float) -> "asyncio.Future[bytes]": ...


@dataclass(frozen=True, slots=True)
class MetadataLogSettings:
    """Bounds."""

    snapshot_entries: int = 1_000  # of the log between two snapshots
    commands_remembered: int = 1_024  # a repeated command is known for so many others
    proposals_max: int = 1_000  # not committed yet
    retry_s: float = 0.05  # while there is no controller


@dataclass(frozen=True, slots=True)
class Executed:
    """A command was carried out, and this node has applied it.

    Equal images mean that it was so already; or, of a command with outcomes, that another node carried it out.
    """

    before: ClusterState
    after: ClusterState
    outcomes: tuple[Outcome, ...] = ()
    repeated: bool = False
    """An earlier try was sent, nobody knows what came of it, and it may yet be carried out: outcomes are the last's."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A command that the active controller has decided."""

    index: int
    changed: bool  # False: no entry of its own
    outcomes: tuple[Outcome, ...]
    done: "asyncio.Future[Executed | None]"  # applied here; None: leadership was lost, nobody knows


@dataclass(slots=True)
class _Pending:
    command_id: int
    after: ClusterState
    done: "asyncio.Future[Executed | None]"


def replay(snapshot: bytes | None, entries: Iterable[tuple[int, bytes]]) -> ClusterState:
    """The image that a snapshot and the entries after it make. Raises MetadataError."""
    try:
        state = ClusterState() if snapshot is None else from_snapshot(MetadataSnapshot.FromString(snapshot))
        for index, data in entries:
            state = apply(state, MetadataEntry.FromString(data).records, index=index)
    except DecodeError as error:
        raise MetadataError(f"the metadata log holds something that is no entry: {error}") from error
    return state


class MetadataLog:
    """Used on the event loop only. Its `applied`, `leading` and `restored` are for Raft to call."""

    def __init__(
        self,
        *,
        node_id: int,
        calls: CallsToNodes,
        clock: Clock,
        random: random.Random,
        rules: Rules,
        on_fatal: Callable[[Exception], None],
        settings: MetadataLogSettings | None = None,
    ) -> None:
        """random: numbers of commands come from it; seeded otherwise on each node and at each start.

        on_fatal: an entry makes no sense here; this node can't go on, and applies nothing more.
        """
        self.state = ClusterState()  # applied here
        self.active = False  # this node decides
        self.unclean_elections = 0  # decided here
        self.quorum_problem: Callable[[], str] = str  # says who can't be reached; nothing unless someone watches
        self._decided = self.state  # with what is proposed
        self._node_id = node_id
        self._calls = calls
        self._clock = clock
        self._random = random
        self._rules = rules
        self._on_fatal = on_fatal
        self._settings = settings or MetadataLogSettings()
        self._raft: RaftLog | None = None
        self._closed = False
        self._failed = False
        self._listeners: list[Listener] = []
        self._active_listeners: list[Callable[[bool], None]] = []
        self._pending: dict[int, _Pending] = {}  # by index, in order
        self._own: dict[int, asyncio.Future[Executed]] = {}  # commands of this node, by id
        self._remembered: dict[int, int] = {}  # index by id of command, oldest first
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap: index, number, who waits
        self._waiting_count = 0
        self._snapshot_index = 0
        calls.handle(EXECUTE, self._asked)

    def attach(self, raft: RaftLog) -> None:
        """Says which Raft node carries the log; before it starts."""
        self._raft = raft

    @property
    def controller_id(self) -> int | None:
        """The active controller, as far as this node knows."""
        return self._node_id if self.active else self._attached.leader_id

    @property
    def decided(self) -> ClusterState:
        """On the active controller, the image with what is proposed; elsewhere the one applied."""
        return self._decided if self.active else self.state

    def add_listener(self, listener: Listener) -> None:
        """Has `listener(old, new)` called after each entry that was applied, in order.

        It runs on the event loop, before `execute` returns, and must not raise.
        """
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Undoes `add_listener`."""
        self._listeners.remove(listener)

    def add_active_listener(self, listener: Callable[[bool], None]) -> None:
        """Has `listener(True)` called when this node becomes the active controller, `listener(False)` after that."""
        self._active_listeners.append(listener)

    async def execute(self, command: Command, *, timeout_s: float = 10.0) -> Executed:
        """Carries out `command`; returns when this node has applied it and listeners know.

        Waits out elections. Raises PostbusError: what the controller refuses; NO_LEADER if none was found in time;
        TIMEOUT if one was asked and what came of it is not known. A caller that is cancelled doesn't know either.
        """
        command_id = 0 if isinstance(command, _ASKED_AGAIN) else self._random.getrandbits(63) + 1
        own: asyncio.Future[Executed] = asyncio.get_running_loop().create_future()
        if command_id:
            self._own[command_id] = own
        try:
            return await self._execute(command, command_id, own, self._clock.monotonic() + timeout_s)
        finally:
            self._own.pop(command_id, None)

    def preview(self, command: Command) -> ClusterState:
        """The image as `command` would make it, as far as this node knows; nothing is kept. Raises PostbusError."""
        state = self.decided
        records = decide(state, command, rules=self._rules).records
        return apply(state, records, index=state.index + 1) if records else state

    async def wait_applied(self, index: int, *, timeout_s: float) -> bool:
        """Returns when the image here has the entry at `index`; False if it has not in time."""
        if self.state.index >= index:
            return True
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_count += 1
        heapq.heappush(self._waiting, (index, self._waiting_count, waiting))
        await asyncio.wait([waiting], timeout=timeout_s)
        if waiting.done():
            return True
        waiting.cancel()
        return False

    async def close(self) -> None:
        """Nothing more is executed. Close it before its Raft node."""
        self._closed = True
        self._lead(False)

    # --- on the active controller ---

    def propose(self, command: Command, *, command_id: int = 0) -> Proposed:
        """Decides and proposes in one go: this is what puts commands in an order. Raises PostbusError.

        Only while `active`.
        """
        assert self.active
        earlier = self._proposed_before(command_id)
        if earlier is not None:
            return earlier
        decision = decide(self._decided, command, rules=self._rules)
        done: asyncio.Future[Executed | None] = asyncio.get_running_loop().create_future()
        if not decision.records:
            self._when_committed(done)
            return Proposed(self._decided.index, False, decision.outcomes, done)
        if len(self._pending) >= self._settings.proposals_max:
            raise _busy()
        entry = MetadataEntry(records=decision.records, command_id=command_id)
        try:
            index = self._attached.propose(entry.SerializeToString(deterministic=True))
        except RaftRefused as error:
            raise _refused(error) from error
        self._decided = apply(self._decided, decision.records, index=index)
        self._pending[index] = _Pending(command_id, self._decided, done)
        self.unclean_elections += len(decision.unclean)
        for topic, partition in decision.unclean:
            log.warning("unclean_leader_election", topic=topic, partition=partition, index=index)
        return Proposed(index, True, decision.outcomes, done)

    def _proposed_before(self, command_id: int) -> Proposed | None:
        """The same command, sent again by a node that did not hear what came of it."""
        if not command_id:
            return None
        done: asyncio.Future[Executed | None] = asyncio.get_running_loop().create_future()
        if command_id in self._remembered:
            done.set_result(Executed(self.state, self.state))
            return Proposed(self._remembered[command_id], True, (), done)
        for index, pending in self._pending.items():
            if pending.command_id == command_id:
                return Proposed(index, True, (), pending.done)
        return None

    def _when_committed(self, done: "asyncio.Future[Executed | None]") -> None:
        """What made a command superfluous may itself not be committed yet."""
        if not self._pending:
            done.set_result(Executed(self.state, self.state))
            return

        def committed(last: "asyncio.Future[Executed | None]") -> None:
            if not done.done():
                done.set_result(None if last.result() is None else Executed(self.state, self.state))

        next(reversed(self._pending.values())).done.add_done_callback(committed)

    async def _asked(self, peer: PeerId, payload: bytes) -> bytes:
        """Another node has a command. The controller's own way leads here, too, if it only just became it."""
        if not self.active:
            raise not_controller()
        try:
            command, command_id = decode_command(payload)
        except (DecodeError, ValueError) as error:
            raise PostbusError(Reason.ERROR_REASON_UNKNOWN_FIELD, f"node {peer.node_id} asks for {error}") from None
        proposed = self.propose(command, command_id=command_id)
        if await asyncio.shield(proposed.done) is None:
            raise TimeoutError("this node is not the controller any more")
        return ControllerAnswer(
            index=proposed.index,
            changed=proposed.changed,
            outcomes=[encode_outcome(outcome) for outcome in proposed.outcomes],
        ).SerializeToString()

    # --- on the node that asks ---

    async def _execute(
        self, command: Command, command_id: int, own: "asyncio.Future[Executed]", deadline: float
    ) -> Executed:
        unknown = False  # whether an earlier try may have been carried out
        while not own.done():
            if self._closed:
                raise draining()
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                raise self._not_in_time(unknown=unknown)
            try:
                executed = await self._try(command, command_id, own, deadline)
                if executed is not None:
                    return replace(executed, repeated=unknown)
                unknown = True
            except PeerUnreachable as error:
                unknown = unknown or error.sent
            except TimeoutError:
                unknown = True
            except PostbusError as error:
                if error.reason != Reason.ERROR_REASON_NOT_LEADER:
                    raise
            await asyncio.wait([own], timeout=min(left_s, self._settings.retry_s))
        return own.result()

    async def _try(
        self, command: Command, command_id: int, own: "asyncio.Future[Executed]", deadline: float
    ) -> Executed | None:
        """Asks the controller once, wherever it is. None: nobody knows what came of it."""
        if self.active:
            return await self._execute_here(command, command_id, deadline - self._clock.monotonic())
        controller_id = self.controller_id
        if controller_id is None or controller_id == self._node_id:
            raise not_controller()
        return await self._execute_there(controller_id, command, command_id, own, deadline)

    async def _execute_here(self, command: Command, command_id: int, left_s: float) -> Executed | None:
        proposed = self.propose(command, command_id=command_id)
        await asyncio.wait([proposed.done], timeout=left_s)
        executed = proposed.done.result() if proposed.done.done() else None
        return None if executed is None else replace(executed, outcomes=proposed.outcomes)

    async def _execute_there(
        self, node_id: int, command: Command, command_id: int, own: "asyncio.Future[Executed]", deadline: float
    ) -> Executed | None:
        payload = encode_command(command, command_id=command_id)
        call = self._calls.start_call(node_id, EXECUTE, payload, timeout_s=deadline - self._clock.monotonic())
        either: list[asyncio.Future[Any]] = [call, own]
        try:
            # A controller that hangs does not answer; once there is another one, that one is asked.
            while not (call.done() or own.done()) and self.controller_id in (node_id, None):
                left_s = deadline - self._clock.monotonic()
                if left_s <= 0:
                    return None
                await asyncio.wait(either, timeout=min(left_s, 4 * self._settings.retry_s), return_when=_FIRST)
            if own.done():
                return own.result()
            if not call.done():
                return None
            answer = ControllerAnswer.FromString(call.result())
        finally:
            _forget(call)
        if not await self.wait_applied(answer.index, timeout_s=max(0.0, deadline - self._clock.monotonic())):
            return None
        if own.done():
            return own.result()
        return Executed(self.state, self.state, tuple(decode_outcome(outcome) for outcome in answer.outcomes))

    def _not_in_time(self, *, unknown: bool) -> PostbusError:
        why = self.quorum_problem() or "no controller answered in time"
        if unknown:
            return PostbusError(
                Reason.ERROR_REASON_TIMEOUT, f"{why}; whether it was carried out is not known: look, then ask again"
            )
        return PostbusError(Reason.ERROR_REASON_NO_LEADER, why, retry_after_ms=500)

    @property
    def _attached(self) -> RaftLog:
        assert self._raft is not None
        return self._raft

    # --- what Raft says ---

    def applied(self, index: int, data: bytes) -> None:
        """The next committed entry."""
        if self._failed:
            return
        before = self.state
        pending = self._pending.pop(index, None)
        if not data:  # Raft's own: the log is longer, and nothing else has changed
            self.state = replace(before, index=index)
            self._wake()
            return
        try:
            entry = MetadataEntry.FromString(data)
            # What this node proposed in this term it has applied once already, to the same image.
            self.state = apply(before, entry.records, index=index) if pending is None else pending.after
        except (DecodeError, MetadataError) as error:
            self._fail(f"metadata entry {index} can't be applied: {error}")
            return
        executed = Executed(before, self.state)
        self._remember(entry.command_id, index)
        for listener in tuple(self._listeners):
            listener(before, self.state)
        if pending is not None and not pending.done.done():
            pending.done.set_result(executed)
        own = self._own.get(entry.command_id) if entry.command_id else None
        if own is not None and not own.done():
            own.set_result(executed)
        self._wake()
        if index - self._snapshot_index >= self._settings.snapshot_entries:
            self._take_snapshot()

    def leading(self, term: int | None) -> None:
        """This node became the leader, and has applied everything that was committed before; or it is it no longer."""
        self._lead(False)
        if term is not None and not self._closed:
            self._lead(True)

    def restored(self, index: int, data: bytes) -> None:
        """A snapshot replaces the image."""
        before = self.state
        try:
            snapshot = MetadataSnapshot.FromString(data)
            self.state = replace(from_snapshot(snapshot), index=index)
        except (DecodeError, MetadataError) as error:
            self._fail(f"the metadata snapshot at {index} can't be read: {error}")
            return
        self._snapshot_index = index
        self._remembered = {command.command_id: command.index for command in snapshot.commands}
        for listener in tuple(self._listeners):
            listener(before, self.state)
        for command_id, own in self._own.items():
            if command_id in self._remembered and not own.done():
                own.set_result(Executed(self.state, self.state))
        self._wake()

    def _lead(self, active: bool) -> None:
        if active == self.active:
            return
        self.active = active
        if active:
            self._decided = self.state
        lost, self._pending = list(self._pending.values()), {}
        for listener in tuple(self._active_listeners):
            listener(active)
        for pending in lost:
            if not pending.done.done():
                pending.done.set_result(None)

    def _fail(self, why: str) -> None:
        """Going on without an entry would make an image that no other node has."""
        self._failed = True
        self._lead(False)
        self._on_fatal(MetadataError(why))

    def _remember(self, command_id: int, index: int) -> None:
        if not command_id:
            return
        self._remembered[command_id] = index
        while len(self._remembered) > self._settings.commands_remembered:
            del self._remembered[next(iter(self._remembered))]

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.state.index:
            waiting = heapq.heappop(self._waiting)[2]
            if not waiting.done():
                waiting.set_result(None)

    def _take_snapshot(self) -> None:
        snapshot = to_snapshot(self.state)
        for command_id, index in self._remembered.items():
            snapshot.commands.append(RememberedCommand(command_id=command_id, index=index))
        self._snapshot_index = self.state.index
        self._attached.take_snapshot(self.state.index, snapshot.SerializeToString(deterministic=True))


def not_controller() -> PostbusError:
    """The answer to who takes this node for the controller."""
    return PostbusError(Reason.ERROR_REASON_NOT_LEADER, "this node is not the active controller", retry_after_ms=100)


def _refused(error: RaftRefused) -> PostbusError:
    if isinstance(error, NotLeader):
        return not_controller()
    if isinstance(error, EntryTooLarge):
        return PostbusError(Reason.ERROR_REASON_TOO_LARGE, "too much for one command: name fewer partitions")
    return _busy()


def _busy() -> PostbusError:
    return PostbusError(
        Reason.ERROR_REASON_QUOTA_EXCEEDED, "the controller has as much to do as it may", retry_after_ms=200
    )


def _forget(call: "asyncio.Future[bytes]") -> None:
    """Nobody will look at it any more."""
    if call.done():
        if not call.cancelled():
            call.exception()
    else:
        call.cancel()
