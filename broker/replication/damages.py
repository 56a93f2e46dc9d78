"""Damaged copies on their way out of the cluster's count: the driver.

Owns which partitions have a damaged copy here that the controller still counts on, and asks it, until it agrees, that
nobody do: this node leaves ISR and ELR, and another leads. Only then may the copy be emptied and filled again, which
the partition sees to. Where no other copy has everything nothing is asked: the damaged one is the best there is.

What this node leads is settled first, as for any hand-over, so that nobody who publishes is left in doubt.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

import structlog

from broker.controller.commands import PartitionId
from broker.peers.backoff import Backoff
from broker.replication.isr_changes import AlterResult, Session
from broker.replication.settings import ReplicationSettings

log = structlog.get_logger()


class DamagedPartition(Protocol):
    """A partition whose copy here can't be read in one place at least."""

    topic: str
    topic_id: str
    number: int
    log_id: int

    @property
    def leading(self) -> bool: ...

    @property
    def others_have_all(self) -> bool:
        """Another copy may take the place of this one."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def settled(self) -> None: ...

    def uncounted(self, *, partition_epoch: int) -> None:
        """Since that partition epoch nobody counts on the copy."""


class Damages:
    """Of one node."""

    def __init__(self, *, session: Session, settings: ReplicationSettings) -> None:
        self.found_count = 0
        """Since the start."""
        self._session = session
        self._settings = settings
        self._counted: dict[int, DamagedPartition] = {}  # by log id
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def found(self, partition: DamagedPartition) -> None:
        """Its copy is damaged."""
        self.found_count += 1
        self.ask(partition)

    def ask(self, partition: DamagedPartition) -> None:
        """The controller counts on its damaged copy."""
        if self._closed:
            return
        self._counted[partition.log_id] = partition
        self._news.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def look(self, partition: DamagedPartition) -> None:
        """Another copy may have become whole."""
        if partition.log_id in self._counted:
            self._news.set()

    def forget(self, partition: DamagedPartition) -> None:
        """There is no copy of it here any more."""
        self._counted.pop(partition.log_id, None)
        self._news.set()

    async def close(self) -> None:
        """Asks no more."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        settings = self._settings
        backoff = Backoff(delay_min_s=settings.retry_ms / 1000, delay_max_s=settings.damage_retry_max_ms / 1000)
        try:
            while self._counted:
                self._news.clear()
                asked = [partition for partition in self._counted.values() if partition.others_have_all]
                if asked and await self._report(asked):
                    backoff.worked()
                    continue
                # Without another copy there is nothing to try before the image changes.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff.failed() if asked else None):
                        await self._news.wait()
        finally:
            self._task = None

    async def _report(self, damaged: Sequence[DamagedPartition]) -> bool:
        """True: the controller agreed to all."""
        led = [partition for partition in damaged if partition.leading]
        try:
            for partition in led:
                partition.pause()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.damage_settle_ms / 1000):
                    for partition in led:
                        await partition.settled()
            async with asyncio.timeout(self._settings.alter_timeout_ms / 1000):
                results = await self._session.report_damage(
                    [PartitionId(partition.topic_id, partition.number) for partition in damaged]
                )
        except Exception as error:
            # Whatever it was: asked again, it comes to the same.
            log.warning("damage_report_failure", partitions=len(damaged), error=str(error) or repr(error))
            return False
        finally:
            for partition in led:
                partition.resume()
        answers = {(result.topic_id, result.partition): result for result in results}
        # A topic that is gone has no answer; its partitions are forgotten when the image says so.
        agreed = [self._settle(each, answers.get((each.topic_id, each.number))) for each in damaged]
        return all(agreed)

    def _settle(self, partition: DamagedPartition, result: AlterResult | None) -> bool:
        if result is None or result.error is not None or result.state is None:
            why = "it is gone" if result is None else str(result.error)
            log.warning("damage_report_refused", topic=partition.topic, partition=partition.number, why=why)
            return False
        if self._counted.pop(partition.log_id, None) is partition:
            partition.uncounted(partition_epoch=result.state.partition_epoch)
        return True
