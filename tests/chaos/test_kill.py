"""SIGKILL at random moments under load: every acknowledged record is there, once, in order.

Real processes, one port and one data directory; what every client saw goes through the checker of `history.py`. By
default a short run with a fixed seed; `make chaos` is a long one, by POSTBUS_CHAOS_SECONDS and POSTBUS_CHAOS_SEED.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from broker_process import BrokerEnded, BrokerProcess
from bus import Bus, Recorder
from history import Committed, Floors, Place, report
from postbus.v1 import group_pb2, topic_pb2
from publishers import ComparingPublisher, OncePublisher, SequencePublisher, StreamPublisher, UnaryPublisher
from subscribers import READS_ALL, Member, Reader

SEED = int(os.environ.get("POSTBUS_CHAOS_SEED", "4711"))
SECONDS = float(os.environ.get("POSTBUS_CHAOS_SECONDS", "0"))
KILLS_MIN = 6
# Everybody has got everything so long after the last kill; otherwise the checker says what is missing.
SETTLE_S = 20.0
READ_ALL_S = 30.0
# Besides the seconds that were asked for, a run is done within this; otherwise it says who waits for what.
STALL_S = 90.0
GROUP = "readers"

TOPICS = {"split": 4, "pipelined": 3, "sequenced": 2, "compared": 1, "replicated": 2}

ENVIRONMENT = {
    "POSTBUS_DISK_FREE_MIN_BYTES": "16MiB",
    # So that members that come back as new ones get partitions before the next kill.
    "POSTBUS_MEMBER_RESUME_AFTER_NODE_LOSS_SECONDS": "0.2",
    "POSTBUS_MEMBER_RESUME_SECONDS": "0.2",
}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[BrokerProcess]:
    process = BrokerProcess(tmp_path / "data", environment=ENVIRONMENT)
    yield process
    await process.close()


@pytest.mark.timeout(SECONDS * 2 + 120)
async def test_nothing_acknowledged_is_lost_by_kills(broker: BrokerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Unary, pipelined, sequenced and compared publishers, a group of three, readers: none sees anything wrong."""
    run = _Run(broker, SEED)
    again = f"again: make chaos POSTBUS_CHAOS_SEED={SEED} POSTBUS_CHAOS_SECONDS={SECONDS:g}"
    looking = asyncio.get_running_loop().call_later(SECONDS + STALL_S, run.look_around)
    try:
        async with asyncio.timeout(SECONDS + STALL_S + 1):
            await run.all()
    except Exception as error:
        error.add_note(f"{run.summary()}\n{again}\n{run.seen_around}\n{broker.log()}")
        raise
    finally:
        looking.cancel()
    with capsys.disabled():
        if SECONDS:
            print(f"\nchaos: seed {SEED}: {run.summary()}")
    found = run.recorder.history.check(
        groups=[GROUP], floors=Floors(operations=1000, acknowledgements=1000, faults=KILLS_MIN - 1, polls=5000)
    )
    assert not found, f"{report(found)}\n{run.summary()}\n{again}\n{broker.log()}"
    assert run.settled, f"some records took more than {SETTLE_S:g} s\n{again}"


class _Run:
    """One run: its clients, its kills, its end."""

    def __init__(self, broker: BrokerProcess, seed: int) -> None:
        self.broker = broker
        self.recorder = Recorder()
        self.random = random.Random(seed)
        self.kills = 0
        self.settled = False
        self.seen_around = ""
        self.restarts_s: list[float] = []
        self._moments = [1, 20, 100, 200, 300, 600]  # acknowledgements between two kills
        self.random.shuffle(self._moments)
        bus = self.bus = Bus(broker)
        recorder = self.recorder
        self.publishers: list[UnaryPublisher | StreamPublisher] = [
            UnaryPublisher(bus, recorder, "unary-1", "split", seed),
            UnaryPublisher(bus, recorder, "unary-2", "split", seed),
            UnaryPublisher(bus, recorder, "unary-3", "replicated", seed),
            StreamPublisher(bus, recorder, "stream-1", "pipelined", seed),
            StreamPublisher(bus, recorder, "stream-2", "replicated", seed),
            SequencePublisher(bus, recorder, "sequence-1", "sequenced", seed),
            SequencePublisher(bus, recorder, "sequence-2", "sequenced", seed),
            ComparingPublisher(bus, recorder, "comparing", "compared", seed),
            OncePublisher(bus, recorder, "once", "split", seed),
        ]
        self.members = [
            Member(bus, recorder, f"member-{number}", GROUP, list(TOPICS), seed=seed, resumes=number > 0)
            for number in range(3)
        ]
        self.readers = [Reader(bus, recorder, f"reader-{topic}", topic, count) for topic, count in TOPICS.items()]

    async def all(self) -> None:
        """From an empty directory to the last look at the whole log."""
        await self.broker.start()
        for topic, count in TOPICS.items():
            request = topic_pb2.CreateTopicRequest(name=topic, partition_count=count)
            if topic == "replicated":
                request.config.durability = topic_pb2.DURABILITY_REPLICATED
            await self.bus.until_done(self.bus.topics.CreateTopic, request)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            publishing = [tasks.create_task(one.run(stop), name=one.name) for one in self.publishers]
            memberships = [tasks.create_task(member.run(), name=member.name) for member in self.members]
            reading = [tasks.create_task(reader.run(), name=reader.name) for reader in self.readers]
            await self.recorder.until(lambda: all(member.assigned for member in self.members))
            await self._kill_again_and_again()
            stop.set()
            await asyncio.wait(publishing)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await self.recorder.until(self._everybody_saw_everything)
                    self.settled = True
            for member in self.members:
                await member.leave()
            await asyncio.wait(memberships)
            for task in reading:
                task.cancel()
        await self._look_at_commits(final=self.settled)
        # Whatever memory held is gone: the last look is at what the disk has.
        await self.broker.kill()
        await self.broker.start()
        async with asyncio.timeout(READ_ALL_S + SECONDS):
            for number, (topic, count) in enumerate(TOPICS.items()):
                reader = Reader(self.bus, self.recorder, f"last-{topic}", topic, count)
                await reader.run(until_end=True, accept=READS_ALL if number % 2 else ())
        await self.bus.channel.close()

    async def _kill_again_and_again(self) -> None:
        ends_at = time.monotonic() + SECONDS
        while self.kills < KILLS_MIN or time.monotonic() < ends_at:
            await self._until_a_moment()
            await self._kill()
            begin = time.monotonic()
            if self.random.random() < 0.3:
                # Again while it starts: recovery has to bear that too.
                await self.broker.start(wait=False)
                await self.broker.until_logged('"node_starting"')
                await self._kill()
                begin = time.monotonic()
            await self.broker.start()
            self.restarts_s.append(time.monotonic() - begin)
            await self._look_at_commits()

    async def _until_a_moment(self) -> None:
        """Soon after the start, or later; with many requests under way, or just after an answer."""
        since = self.recorder.acknowledgements
        wanted = since + self._moments[self.kills % len(self._moments)]
        await self.recorder.until(lambda: self.recorder.acknowledgements >= wanted)
        if self.random.random() < 0.5:
            await self.recorder.until(lambda: self.recorder.in_flight >= len(self.publishers))

    async def _kill(self) -> None:
        in_flight = self.recorder.in_flight
        self.kills += 1
        await self.broker.kill()
        if in_flight:
            self.recorder.history.faults.append(f"SIGKILL with {in_flight} requests under way")

    async def _look_at_commits(self, *, final: bool = False) -> None:
        request = group_pb2.GetCommittedOffsetsRequest(group=GROUP)
        answer = await self.bus.until_done(self.bus.groups.GetCommittedOffsets, request)
        for committed in answer.offsets:
            place = Place(committed.topic, committed.partition)
            self.recorder.note(Committed(GROUP, place, committed.offset))
            if final:
                assert committed.lag == 0, f"the group left, and has not committed all: {committed}"
        if final:
            assert len(answer.offsets) == sum(TOPICS.values())

    def _everybody_saw_everything(self) -> bool:
        """By count, to know when to look; contents are compared later."""
        recorder = self.recorder
        return (
            recorder.acknowledged <= recorder.seen_by_groups
            and recorder.acknowledged <= recorder.seen_by_readers
            and recorder.seen_by_readers <= recorder.seen_by_groups
        )

    def look_around(self) -> None:
        """Notes where everybody is: something waits for what does not come."""
        lines = []
        for task in asyncio.all_tasks():
            places = [f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" for frame in task.get_stack()]
            coroutine = task.get_coro()
            while (coroutine := getattr(coroutine, "cr_await", None)) is not None:
                if (frame := getattr(coroutine, "cr_frame", None)) is not None:
                    places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            lines.append(f"{task.get_name()}: {' > '.join(places)}")
        lines += [f"{member.name}: {member.assigned}" for member in self.members]
        self.seen_around = "\n".join(lines)

    def summary(self) -> str:
        """For people."""
        slowest = max(self.restarts_s, default=0.0)
        mean = sum(self.restarts_s) / max(len(self.restarts_s), 1)
        return (
            f"{self.kills} kills; {self.recorder.acknowledgements} requests acknowledged;"
            f" restarts {mean:.2f} s on average, {slowest:.2f} s at most; {self.recorder.history.counts()}"
        )


async def test_a_start_that_fails_says_so(tmp_path: Path) -> None:
    """The harness itself: a process that ends instead of becoming ready is an error, not a wait."""
    broker = BrokerProcess(tmp_path / "data", environment={"POSTBUS_NODE_ID": "none"})
    with pytest.raises(BrokerEnded, match="exit code 2"):
        await broker.start()
