"""The coordinators of this node: one for each partition of the groups topic that it leads.

Owns that they come and go with leadership, and knows where the coordinator of any group is: the leader of partition
crc32(name) modulo the partition count. A coordinator serves once it has replayed its log; until then callers wait, as
long as they like. On losing leadership it ends at once: its members stay, in the log, for the next one.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Final
from zlib import crc32

from broker.clock import Clock
from broker.errors import PostbusError
from broker.groups.calls import no_coordinator
from broker.groups.coordinator import GroupCoordinator
from broker.groups.driver import CoordinatorSettings, Topics
from broker.groups.journal import CallLater, GroupsPartition
from broker.groups.records import GroupLogError
from broker.storage.errors import StorageError

logger = logging.getLogger(__name__)

GROUPS_TOPIC: Final = "__groups"
# A log that can't be read is read again after so long: its disk may be well by then, or the leader another one.
LOAD_RETRY_S: Final = 1.0


class _Followed:
    """One partition of the groups topic, led by whomever."""

    __slots__ = ("coordinator", "listening", "loaded", "partition", "seen", "task", "wake")

    def __init__(self, partition: GroupsPartition, wake: Callable[[], None]) -> None:
        self.partition = partition
        self.wake = wake
        self.listening = False
        self.seen: tuple[int | None, int, bool] | None = None  # leader, its epoch, whether this node leads
        self.coordinator: GroupCoordinator | None = None
        self.loaded = False
        self.task: asyncio.Task[None] | None = None

    def listen(self, wanted: bool) -> None:
        if wanted and not self.listening:
            self.partition.add_listener(self.wake)
        elif self.listening and not wanted:
            self.partition.remove_listener(self.wake)
        self.listening = wanted

    def now(self) -> tuple[int | None, int, bool]:
        partition = self.partition
        return partition.leader_id, partition.leader_epoch, partition.leading


class Coordinators:
    """All of this node. On the loop only."""

    def __init__(
        self,
        find_partitions: Callable[[], Sequence[GroupsPartition]],
        topics: Topics,
        *,
        clock: Clock,
        call_later: CallLater,
        node_id: int,
        settings: CoordinatorSettings | None = None,
        new_member_id: Callable[[], str] = lambda: secrets.token_hex(12),
    ) -> None:
        """find_partitions: those of the groups topic, by number; empty as long as there is none."""
        self.node_id = node_id
        self.settings = settings or CoordinatorSettings()
        self._find_partitions = find_partitions
        self._topics = topics
        self._clock = clock
        self._call_later = call_later
        self._new_member_id = new_member_id
        self._followed: list[_Followed] = []
        self._listeners: list[Callable[[int], None]] = []
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._ending: dict[asyncio.Task[None], None] = {}
        self._closed = False

    # --- life

    def follow(self) -> None:
        """Looks at the partitions again: after each change of the cluster's image. They tell of their own changes."""
        if self._closed:
            return
        found = self._find_partitions()
        for partition in found[len(self._followed) :]:
            number = len(self._followed)
            assert partition.number == number
            followed = _Followed(partition, partial(self._look, number))
            self._followed.append(followed)
        for number, followed in enumerate(self._followed):
            # Without a replica here only the image tells anything that matters; to listen would cost calls.
            followed.listen(followed.partition.local is not None)
            self._look(number)

    async def settled(self) -> None:
        """Returns when the groups of all that this node leads now are loaded."""
        while any(followed.coordinator is not None and not followed.loaded for followed in self._followed):
            await self.changed(LOAD_RETRY_S)

    def flush(self) -> None:
        """What was decided here so far is appended, not in a moment."""
        for coordinator in self._served():
            coordinator.flush()

    async def close(self) -> None:
        """Ends all; callers that wait are UNAVAILABLE."""
        self._closed = True
        for followed in self._followed:
            followed.listen(False)
            self._end(followed)
        self._wake()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _look(self, number: int) -> None:
        """Called at every step of the high watermark: cheap unless the leader is another one."""
        followed = self._followed[number]
        now = followed.now()
        if now == followed.seen:
            return
        followed.seen = now
        self._end(followed)
        if now[2]:
            self._begin(number, followed)
        self._tell(number)

    def _begin(self, number: int, followed: _Followed) -> None:
        coordinator = followed.coordinator = GroupCoordinator(
            followed.partition,
            self._topics,
            clock=self._clock,
            call_later=self._call_later,
            settings=self.settings,
            node_id=self.node_id,
            new_member_id=self._new_member_id,
            groups_elsewhere=lambda: sum(other.group_count for other in self._served() if other is not coordinator),
        )
        followed.task = asyncio.get_running_loop().create_task(self._load(number, followed, coordinator))

    async def _load(self, number: int, followed: _Followed, coordinator: GroupCoordinator) -> None:
        try:
            await coordinator.start()
        except PostbusError:
            return  # it lost the partition meanwhile; `_look` is about to be told
        except (StorageError, GroupLogError) as error:
            logger.error("groups log %d can't be read, is tried again: %s", number, error)
            await asyncio.sleep(LOAD_RETRY_S)
            if followed.coordinator is coordinator:
                self._keep_until_ended(coordinator.stop())
                self._begin(number, followed)
            return
        followed.loaded = True
        logger.info("groups log %d: this node coordinates %d groups", number, coordinator.group_count)
        self._tell(number)

    def _end(self, followed: _Followed) -> None:
        coordinator, task = followed.coordinator, followed.task
        followed.coordinator, followed.task, followed.loaded = None, None, False
        if coordinator is None or task is None:
            return
        task.cancel()
        self._keep_until_ended([task, *coordinator.stop()])

    def _keep_until_ended(self, tasks: Collection[asyncio.Task[None]]) -> None:
        for task in tasks:
            if not task.done():
                self._ending[task] = None
                task.add_done_callback(lambda ended: self._ending.pop(ended, None))

    # --- where a group is

    @property
    def partition_count(self) -> int:
        """Of the groups topic; 0: there is none yet."""
        return len(self._followed)

    def number_of(self, group: str) -> int | None:
        """The partition that a group belongs to."""
        return crc32(group.encode()) % len(self._followed) if self._followed else None

    def leader_of(self, number: int) -> int | None:
        """The node that coordinates the groups of a partition; None: nobody just now."""
        return self._followed[number].partition.leader_id

    def serving(self, number: int) -> GroupCoordinator | None:
        """The coordinator of a partition, if it is here and knows its groups."""
        followed = self._followed[number] if number < len(self._followed) else None
        return followed.coordinator if followed is not None and followed.loaded else None

    async def of_group(self, group: str) -> GroupCoordinator:
        """The same, waiting while it loads; raises NO_LEADER where it is not to be here."""
        number = self.number_of(group)
        if number is None:
            raise no_coordinator()
        return await self.of_number(number)

    async def of_number(self, number: int) -> GroupCoordinator:
        """The same, by partition."""
        while number < len(self._followed) and self._followed[number].coordinator is not None:
            coordinator = self.serving(number)
            if coordinator is not None:
                return coordinator
            await self.changed(None)
        raise no_coordinator()

    async def changed(self, timeout_s: float | None) -> None:
        """Returns when the leader of any partition changed or its groups were loaded, or after the time."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = None
        try:
            await asyncio.wait({waiting}, timeout=timeout_s)
        finally:
            self._waiting.pop(waiting, None)

    def add_listener(self, listener: Callable[[int], None]) -> None:
        """`listener(number)`: a partition has another leader, or this node knows its groups now."""
        self._listeners.append(listener)

    def _tell(self, number: int) -> None:
        for listener in self._listeners:
            listener(number)
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            if not each.done():
                each.set_result(None)

    # --- for all

    def topics_changed(self, *, deleted: Collection[str] = (), changed: Collection[str] = ()) -> None:
        """The cluster's topics changed. deleted: topic ids that are gone; changed: names that are new or have grown."""
        for followed in self._followed:
            if followed.coordinator is not None:
                followed.coordinator.topics_changed(deleted=deleted, changed=changed)

    def samples(self) -> Iterator[tuple[str, int, dict[str, int], int]]:
        """Of every group that this node coordinates, for metrics: see `GroupCoordinator.samples`."""
        for coordinator in self._served():
            yield from coordinator.samples()

    async def refresh_lags(self) -> None:
        """Before `samples`, now and then: what only other nodes know."""
        for coordinator in tuple(self._served()):
            await coordinator.refresh_lags()

    def _served(self) -> Iterator[GroupCoordinator]:
        for followed in self._followed:
            if followed.coordinator is not None and followed.loaded:
                yield followed.coordinator
