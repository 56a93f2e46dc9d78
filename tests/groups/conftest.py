"""A coordinator on a replicated log in memory, with time that only a test moves."""

import asyncio
import heapq
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from broker.clock import ManualClock
from broker.groups.calls import HeartbeatCall, HeartbeatReply
from broker.groups.coordinator import GroupCoordinator
from broker.groups.driver import CoordinatorSettings

# No package here (tests are imported by path), so the folder of what they share has to be named.
sys.path.insert(0, str(Path(__file__).parent))

from group_fakes import FakeTopics, SharedLog


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
    """A coordinator and all around it. Members of streams are watched for, as their nodes do."""

    def __init__(self, topics: FakeTopics, **settings: Any) -> None:
        self.log = SharedLog()
        self.topics = topics
        self.clock = ManualClock()
        self.timers = FakeTimers(self.clock)
        self._settings = settings
        self._ids = count(1)
        self.coordinator = self.new()

    def new(self, partition: Any = None) -> GroupCoordinator:
        """Another one."""
        return GroupCoordinator(
            partition or self.log.on(1),
            self.topics,
            clock=self.clock,
            call_later=self.timers.call_later,
            settings=CoordinatorSettings(**self._settings),
            new_member_id=lambda: f"m{next(self._ids)}",
        )

    async def restart(self) -> None:
        """As after kill -9: only what was safe is there, and somebody else has led meanwhile."""
        self.log.move(2, keep=0)
        await self.coordinator.close()
        self.log.move(1)
        self.coordinator = self.new()
        await self.coordinator.start()
        await turns()

    async def join(self, *topics: str, group: str = "g", **fields: Any) -> HeartbeatReply:
        fields.setdefault("stream", True)
        reply = await self.coordinator.heartbeat(HeartbeatCall(group=group, topics=topics or ("a",), **fields))
        self.coordinator.watch(group, reply.member_id, nothing)
        return reply

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


def nothing() -> None:
    """Hears of changes."""


@pytest.fixture
async def bench():
    """One topic "a" of four partitions."""
    topics = FakeTopics()
    topics.create("a", 4)
    made = Bench(topics)
    await made.coordinator.start()
    yield made
    await made.coordinator.close()


@pytest.fixture
def new_bench():
    """The same with other settings; not started."""

    def make(**settings: Any) -> Bench:
        topics = FakeTopics()
        topics.create("a", 4)
        return Bench(topics, **settings)

    return make
