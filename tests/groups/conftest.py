"""A coordinator on a log in memory, with time that only a test moves."""

import asyncio
import heapq
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest
from postbus.v1 import record_pb2, subscriber_pb2

from broker import errors
from broker.clock import ManualClock
from broker.groups.calls import HeartbeatCall, HeartbeatReply, Topic
from broker.groups.coordinator import GroupCoordinator
from broker.groups.driver import CoordinatorSettings
from broker.storage.batch import NewBatch
from broker.storage.errors import DiskFull


class FakeLog:
    """A log and its table. `sync_by_itself` off: nothing is durable before `sync`."""

    def __init__(self) -> None:
        self.log_start_offset = 0
        self.end_offset = 0
        self.durable_end_offset = 0
        self.on_progress: Callable[[], None] | None = None
        self.sync_by_itself = True
        self.full = False
        self.batches: list[record_pb2.RecordBatch] = []
        self.table: dict[bytes, bytes] = {}
        self._unsynced: list[tuple[int, Sequence[Any]]] = []

    def append(self, new: NewBatch, *, now_us: int, extra_ops: Sequence[Any] = ()) -> None:
        if self.full:
            raise DiskFull("full")
        self.batches.append(record_pb2.RecordBatch.FromString(new.batch))
        assert len(self.batches[-1].records) == new.record_count
        self.end_offset += new.record_count
        self._unsynced.append((self.end_offset, extra_ops))
        if self.sync_by_itself:
            asyncio.get_running_loop().call_soon(self.sync)

    def sync(self, appends: int | None = None) -> None:
        """Makes the oldest `appends` durable; None: all."""
        for end_offset, ops in self._unsynced[:appends]:
            for key, value in ops:
                if value is None:
                    self.table.pop(key, None)
                else:
                    self.table[key] = value
            self.durable_end_offset = end_offset
        del self._unsynced[:appends]
        if self.on_progress is not None:
            self.on_progress()

    def crash(self) -> "FakeLog":
        """What another process finds."""
        after = FakeLog()
        after.table = dict(self.table)
        after.end_offset = after.durable_end_offset = self.durable_end_offset
        after.log_start_offset = self.log_start_offset
        return after

    def table_put_op(self, key: bytes, value: bytes) -> tuple[bytes, bytes]:
        return (key, value)

    def table_delete_op(self, key: bytes) -> tuple[bytes, None]:
        return (key, None)

    async def table_items(self) -> list[tuple[bytes, bytes]]:
        return sorted(self.table.items())

    def trim(self, new_log_start: int) -> None:
        assert new_log_start <= self.durable_end_offset
        self.log_start_offset = new_log_start


class FakeTopics:
    """Topics with a high watermark of 100 everywhere."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.resolved: list[tuple[str, int, subscriber_pb2.StartPosition]] = []
        self.failing = False
        self._ids = count(1)

    def create(self, name: str, partition_count: int) -> Topic:
        self.topics[name] = Topic(name, f"{name}-{next(self._ids)}", partition_count)
        return self.topics[name]

    def by_name(self, name: str) -> Topic | None:
        return self.topics.get(name)

    def by_id(self, topic_id: str) -> Topic | None:
        return next((topic for topic in self.topics.values() if topic.topic_id == topic_id), None)

    async def resolve(self, topic_id: str, partition: int, start: subscriber_pb2.StartPosition) -> int:
        await asyncio.sleep(0)
        if self.failing:
            raise errors.topic_not_found(topic_id)
        self.resolved.append((topic_id, partition, start))
        if start.WhichOneof("at") == "offset":
            return start.offset
        return 100 if start.edge == subscriber_pb2.LOG_EDGE_LATEST else 0

    def high_watermark(self, topic_id: str, partition: int) -> int:
        topic = self.by_id(topic_id)
        if topic is None:
            raise errors.topic_not_found(topic_id)
        if not 0 <= partition < topic.partition_count:
            raise errors.partition_not_found(topic.name, partition, topic.partition_count)
        return 100


class FakeTimers:
    """`call_later` on a manual clock."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, FakeTimer]] = []
        self._numbers = count()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> "FakeTimer":
        timer = FakeTimer(callback)
        heapq.heappush(self._heap, (self._clock.monotonic() + delay_s, next(self._numbers), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Moves time and lets everything happen that is due."""
        end = self._clock.monotonic() + seconds
        while self._heap and self._heap[0][0] <= end + 1e-9:
            at, _, timer = heapq.heappop(self._heap)
            self._clock.advance(max(at - self._clock.monotonic(), 0))
            if not timer.cancelled:
                timer.callback()
            await turns()
        self._clock.advance(max(end - self._clock.monotonic(), 0))
        await turns()


class FakeTimer:
    """One call."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


async def turns(number: int = 50) -> None:
    """Lets the loop run what is ready."""
    for _ in range(number):
        await asyncio.sleep(0)


class Bench:
    """A coordinator and all around it."""

    def __init__(self, log: FakeLog, topics: FakeTopics, **settings: Any) -> None:
        self.log = log
        self.topics = topics
        self.clock = ManualClock()
        self.timers = FakeTimers(self.clock)
        self._settings = settings
        self._ids = count(1)
        self.coordinator = self._new(log)

    def _new(self, log: FakeLog) -> GroupCoordinator:
        return GroupCoordinator(
            log,
            self.topics,
            clock=self.clock,
            call_later=self.timers.call_later,
            settings=CoordinatorSettings(**self._settings),
            new_member_id=lambda: f"m{next(self._ids)}",
        )

    async def restart(self) -> None:
        """As after kill -9: only what was durable is there."""
        log = self.log.crash()
        await self.coordinator.close()
        self.log = log
        self.coordinator = self._new(log)
        await self.coordinator.start()
        await turns()

    async def join(self, *topics: str, group: str = "g", **fields: Any) -> HeartbeatReply:
        fields.setdefault("stream", True)
        return await self.coordinator.heartbeat(HeartbeatCall(group=group, topics=topics or ("a",), **fields))

    async def beat(self, member: HeartbeatReply, *numbers: int, group: str = "g", **fields: Any) -> HeartbeatReply:
        """A heartbeat that reports these partitions of topic a as owned."""
        topic = self.topics.topics["a"]
        return await self.coordinator.heartbeat(
            HeartbeatCall(
                group=group,
                member_id=member.member_id,
                member_epoch=member.member_epoch,
                owned=frozenset((topic.topic_id, number) for number in numbers),
                **{"stream": True, **fields},
            )
        )


@pytest.fixture
async def bench():
    """One topic "a" of four partitions."""
    topics = FakeTopics()
    topics.create("a", 4)
    made = Bench(FakeLog(), topics)
    await made.coordinator.start()
    yield made
    await made.coordinator.close()


@pytest.fixture
def new_bench():
    """The same with other settings; not started."""

    def make(**settings: Any) -> Bench:
        topics = FakeTopics()
        topics.create("a", 4)
        return Bench(FakeLog(), topics, **settings)

    return make
