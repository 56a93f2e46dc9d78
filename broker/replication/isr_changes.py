"""Changes of the ISR on their way to the controller: the driver around `LedPartition.propose`.

Owns when it is looked whether one is called for (something was reported, a grace has passed, now and then), and that
all that is called for at once travels as one question. What is proposed, and what an unknown outcome means, is decided
in `leader.py`.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from broker.controller.commands import AlterPartition, Member, PartitionId
from broker.controller.state import PartitionState
from broker.errors import PostbusError, Reason
from broker.replication.leader import Proposal
from broker.replication.settings import ReplicationSettings

log = structlog.get_logger()


class AlterResult(Protocol):
    """What the controller says of one partition."""

    @property
    def topic_id(self) -> str: ...

    @property
    def partition(self) -> int: ...

    @property
    def error(self) -> PostbusError | None: ...

    @property
    def state(self) -> PartitionState | None:
        """As decided, if there is no error; None: nobody knows what came, or will come, of it."""


class Session(Protocol):
    """This node's registration with the controller (controller.session.NodeSession)."""

    @property
    def broker_epoch(self) -> int: ...

    @property
    def session_valid(self) -> bool:
        """False: others may have taken over what this node leads."""

    async def alter_partitions(self, changes: list[AlterPartition]) -> Sequence[AlterResult]: ...

    async def report_damage(self, partitions: list[PartitionId]) -> Sequence[AlterResult]: ...


class LoneSession:
    """Of a node without peers: nobody else could ever lead."""

    broker_epoch = 0
    session_valid = True

    async def alter_partitions(self, changes: list[AlterPartition]) -> Sequence[AlterResult]:
        """Never called: there is no follower."""
        raise AssertionError("a lone node has no followers")

    async def report_damage(self, partitions: list[PartitionId]) -> Sequence[AlterResult]:
        """Never called: there is no other copy."""
        raise AssertionError("a lone node has the only copy")


class ProposingPartition(Protocol):
    """A partition that this node leads."""

    topic_id: str
    number: int
    log_id: int

    @property
    def has_followers(self) -> bool: ...

    def propose(self) -> Proposal | None: ...

    def proposal_accepted(self, proposal: Proposal, state: PartitionState) -> None: ...

    def proposal_refused(self, proposal: Proposal, *, outdated: bool) -> None: ...

    def proposal_unanswered(self, proposal: Proposal) -> None: ...


class IsrChanges:
    """Of all partitions that this node leads."""

    def __init__(self, *, session: Session, settings: ReplicationSettings) -> None:
        self._session = session
        self._settings = settings
        self._led: dict[int, ProposingPartition] = {}
        self._to_look: dict[int, ProposingPartition] = {}
        self._scheduled = False
        self._checks: asyncio.TimerHandle | None = None
        self._later: dict[int, asyncio.TimerHandle] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def led(self, partition: ProposingPartition) -> None:
        """This node leads it."""
        self._led[partition.log_id] = partition
        if self._checks is None and partition.has_followers and not self._closed:
            self._check()
        self.look(partition)

    def unled(self, partition: ProposingPartition) -> None:
        """It does not any more."""
        self._led.pop(partition.log_id, None)
        self._to_look.pop(partition.log_id, None)

    def look(self, partition: ProposingPartition) -> None:
        """A change may be called for; seen to in a later turn of the loop."""
        if not partition.has_followers or self._closed:
            return
        self._to_look[partition.log_id] = partition
        if self._checks is None:
            self._check()
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._propose)

    def look_after_grace(self, partition: ProposingPartition) -> None:
        """The link of a follower broke."""
        log_id = partition.log_id
        if log_id in self._later or self._closed:
            return

        def look() -> None:
            self._later.pop(log_id, None)
            if self._led.get(log_id) is partition:
                self.look(partition)

        # A timer may come a hair before the clock says that its time is over: then nothing would happen until the next
        # check, and publishers would wait for it.
        delay_s = (self._settings.isr.link_grace_ms + _TIMER_EARLY_MS) / 1000
        self._later[log_id] = asyncio.get_running_loop().call_later(delay_s, look)

    async def close(self) -> None:
        """Proposes nothing any more."""
        self._closed = True
        for timer in (self._checks, *self._later.values()):
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _check(self) -> None:
        self._checks = asyncio.get_running_loop().call_later(self._settings.isr_check_interval_ms / 1000, self._check)
        for partition in self._led.values():
            if partition.has_followers:
                self.look(partition)

    def _propose(self) -> None:
        self._scheduled = False
        if self._closed or self._task is not None or not self._session.session_valid:
            return  # looked at again when the answer is there, and now and then
        proposals: list[tuple[ProposingPartition, Proposal]] = []
        for partition in self._to_look.values():
            proposal = partition.propose()
            if proposal is not None:
                proposals.append((partition, proposal))
        self._to_look.clear()
        if proposals:
            self._task = asyncio.get_running_loop().create_task(self._ask(proposals))

    async def _ask(self, proposals: list[tuple[ProposingPartition, Proposal]]) -> None:
        changes = [
            AlterPartition(
                topic_id=partition.topic_id,
                partition=partition.number,
                leader_epoch=proposal.leader_epoch,
                partition_epoch=proposal.partition_epoch,
                isr=tuple(Member(node_id, broker_epoch) for node_id, broker_epoch in proposal.isr),
            )
            for partition, proposal in proposals
        ]
        results: Sequence[AlterResult | None] = [None] * len(proposals)
        try:
            async with asyncio.timeout(self._settings.alter_timeout_ms / 1000):
                results = await self._session.alter_partitions(changes)
        except Exception as error:
            # Whatever it was, the controller may have carried it out, or may yet.
            log.info("isr_change_unanswered", partitions=len(proposals), error=str(error) or repr(error))
        finally:
            self._task = None
            for (partition, proposal), result in zip(proposals, results, strict=True):
                self._settle(partition, proposal, result)
        for partition, _ in proposals:
            if self._led.get(partition.log_id) is partition:
                self.look(partition)

    def _settle(self, partition: ProposingPartition, proposal: Proposal, result: AlterResult | None) -> None:
        if result is None or (result.error is None and result.state is None):
            partition.proposal_unanswered(proposal)
        elif result.error is not None:
            outdated = result.error.reason in _OUTDATED
            log.info("isr_change_refused", log_id=partition.log_id, isr=proposal.members, error=str(result.error))
            partition.proposal_refused(proposal, outdated=outdated)
        elif result.state is not None:
            partition.proposal_accepted(proposal, result.state)


_TIMER_EARLY_MS: Final = 2
"""Event loops count in whole milliseconds."""

_OUTDATED = frozenset(
    (
        Reason.ERROR_REASON_PRECONDITION_NOT_MET,
        Reason.ERROR_REASON_NOT_LEADER,
        Reason.ERROR_REASON_NO_LEADER,
        Reason.ERROR_REASON_TIMEOUT,
    )
)
"""The controller knows something newer, or nothing is known; the image will tell."""
