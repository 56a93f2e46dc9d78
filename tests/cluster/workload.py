"""Clients of every kind under a cluster in trouble, and the checker's verdict on what they saw.

Publishers (unary, pipelined, by sequence, comparing, without an id), a group of three, readers that keep their own
place: all of them stubs-only, all given every node's address. Faults come from the test; each must have met traffic.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection

from broker_process import WAIT_S
from bus import Bus, Recorder
from cluster import Cluster, ClusterBus, create_topic
from history import Committed, Copy, Floors, Place, report
from postbus.v1 import group_pb2
from publishers import ComparingPublisher, OncePublisher, SequencePublisher, StreamPublisher, UnaryPublisher
from subscribers import READS_ALL, Member, Reader

GROUP = "readers"
TOPICS = {"split": 4, "pipelined": 3, "sequenced": 2, "compared": 1}
SETTLE_S = WAIT_S  # a busy machine takes longer: POSTBUS_TEST_WAIT_S
READ_ALL_S = WAIT_S


class Workload:
    """One run against one cluster."""

    def __init__(self, cluster: Cluster, *, seed: int = 4711) -> None:
        self.cluster = cluster
        self.recorder = Recorder()
        self.settled = False
        bus = self.bus = ClusterBus(cluster)
        recorder = self.recorder
        self.publishers: list[UnaryPublisher | StreamPublisher] = [
            UnaryPublisher(bus, recorder, "unary-1", "split", seed),
            UnaryPublisher(bus, recorder, "unary-2", "split", seed),
            StreamPublisher(bus, recorder, "stream-1", "pipelined", seed),
            SequencePublisher(bus, recorder, "sequence-1", "sequenced", seed),
            ComparingPublisher(bus, recorder, "comparing", "compared", seed),
            OncePublisher(bus, recorder, "once", "split", seed),
        ]
        self.members = [
            Member(bus, recorder, f"member-{number}", GROUP, list(TOPICS), seed=seed, resumes=number > 0)
            for number in range(3)
        ]
        self.readers = [Reader(bus, recorder, f"reader-{topic}", topic, count) for topic, count in TOPICS.items()]

    async def run(
        self,
        trouble: Callable[["Workload"], Awaitable[None]],
        *,
        faults: int,
        acknowledgements: int = 100,
        restart_all: bool = True,
    ) -> None:
        """Topics, clients, `trouble`, and then quiet: everything acknowledged must be everywhere, once, in order."""
        async with asyncio.timeout(SETTLE_S):
            for topic, count in TOPICS.items():
                await create_topic(self.bus, topic, partition_count=count)
        await self.cluster.until_in_sync()
        stop = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                publishing = [tasks.create_task(one.run(stop), name=one.name) for one in self.publishers]
                memberships = [tasks.create_task(member.run(), name=member.name) for member in self.members]
                reading = [tasks.create_task(reader.run(), name=reader.name) for reader in self.readers]
                async with asyncio.timeout(SETTLE_S):
                    await self.recorder.until(lambda: all(member.assigned for member in self.members))
                await self.acknowledged(20)
                await trouble(self)
                await self.acknowledged(20)
                stop.set()
                await _until_ended(publishing)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SETTLE_S):
                        await self.recorder.until(self._everybody_saw_everything)
                        self.settled = True
                for member in self.members:
                    await member.leave()
                await _until_ended(memberships)
                for task in reading:
                    task.cancel()
            await self._look_at_commits()
            await self.cluster.until_in_sync()
            if restart_all:
                # What memory held is gone: the last look is at what the disks have.
                await self.cluster.kill(*self.cluster.nodes)
                await self.cluster.start()
                await self.cluster.until_in_sync()
            await self._read_copies()
        except BaseException as error:
            error.add_note(self.summary())
            raise
        found = self.recorder.history.check(
            groups=[GROUP],
            floors=Floors(operations=acknowledgements, acknowledgements=acknowledgements, faults=faults, polls=200),
        )
        assert not found, f"{report(found)}\n{self.summary()}\n{self.cluster.log()}"
        assert self.settled, f"some records took more than {SETTLE_S:g} s\n{self.summary()}"
        await self.bus.close()

    async def acknowledged(self, count: int) -> None:
        """Until so many more requests were acknowledged."""
        wanted = self.recorder.acknowledgements + count
        async with asyncio.timeout(SETTLE_S):
            await self.recorder.until(lambda: self.recorder.acknowledgements >= wanted)

    async def under_way(self) -> None:
        """Until requests wait for their answers, so that a fault meets some."""
        async with asyncio.timeout(SETTLE_S):
            await self.recorder.until(lambda: self.recorder.in_flight >= 3)

    def fault(self, what: str) -> None:
        """It took effect."""
        self.recorder.history.faults.append(f"{what}, {self.recorder.in_flight} requests under way")

    async def _read_copies(self) -> None:
        """As each node has it: all are in sync, so each serves its own replica."""
        for node, process in self.cluster.nodes.items():
            bus = Bus(process)
            try:
                async with asyncio.timeout(READ_ALL_S):
                    for number, (topic, count) in enumerate(TOPICS.items()):
                        reader = Reader(bus, self.recorder, f"last-{topic} of node {node}", topic, count)
                        await reader.run(until_end=True, accept=READS_ALL if number % 2 else ())
                        self.recorder.note(Copy(node, topic, reader.name))
            finally:
                await bus.channel.close()

    async def _look_at_commits(self) -> None:
        request = group_pb2.GetCommittedOffsetsRequest(group=GROUP)
        async with asyncio.timeout(SETTLE_S):
            answer = await self.bus.until_done(self.bus.groups.GetCommittedOffsets, request)
        for committed in answer.offsets:
            self.recorder.note(Committed(GROUP, Place(committed.topic, committed.partition), committed.offset))

    def _everybody_saw_everything(self) -> bool:
        recorder = self.recorder
        return (
            recorder.acknowledged <= recorder.seen_by_groups
            and recorder.acknowledged <= recorder.seen_by_readers
            and recorder.seen_by_readers <= recorder.seen_by_groups
        )

    def summary(self) -> str:
        """For people."""
        recorder = self.recorder
        late = recorder.acknowledged - recorder.seen_by_groups
        return (
            f"{recorder.acknowledgements} requests acknowledged; {recorder.history.counts()};"
            f" {len(late)} not seen by the group; faults: {recorder.history.faults};"
            f" members: {[(member.name, sorted(map(str, member.assigned))) for member in self.members]}"
        )


async def _until_ended(tasks: Collection[asyncio.Task[None]]) -> None:
    """Until all of them are over, by themselves: what stands still, or was given up quietly, is a finding."""
    _, standing = await asyncio.wait(tasks, timeout=SETTLE_S)
    assert not standing, f"after {SETTLE_S:g} s these stand still: {sorted(map(str, standing))}"
    assert not any(task.cancelled() for task in tasks), f"somebody was cancelled: {sorted(map(str, tasks))}"
