"""A sender outlives every stream that it had."""

import asyncio
from collections import deque
from typing import Any, cast

from postbus.connection import Connections
from postbus.lanes import Lane, OutgoingBatch
from postbus.pipeline import Pipeline
from postbus.sender import Sender


class DyingCall:
    """A stream that ends while its client says that nothing more comes, as grpc.aio tells it."""

    def __init__(self) -> None:
        self.written = asyncio.Event()
        self.over = asyncio.get_running_loop().create_future()

    async def write(self, message: bytes) -> None:
        self.written.set()

    async def read(self) -> Any:
        return await self.over

    async def done_writing(self) -> None:
        self.over.cancel()
        raise asyncio.CancelledError

    def done(self) -> bool:
        return self.over.done()

    def cancel(self) -> None:
        self.over.cancel()


class OneLane:
    """The pipeline, as far as a sender asks it; and the connections."""

    address = "anywhere"
    closed = False

    def __init__(self) -> None:
        self.calls: deque[DyingCall] = deque()
        self.opened = asyncio.Event()

    def stream(self, method: str, **options: object) -> DyingCall:
        self.calls.append(DyingCall())
        self.opened.set()
        return self.calls[-1]

    async def ensure_identity(self) -> None:
        pass

    def identity_of(self, lane: Lane) -> tuple[int, int]:
        return 1, 0

    def stream_ended(self, sender: Sender) -> None:
        for lane in sender.lanes:
            for batch in lane.in_flight:
                batch.on_wire = False


async def test_a_stream_that_ends_while_it_is_left_is_followed_by_another() -> None:
    around = OneLane()
    sender = Sender(cast(Pipeline, around), cast(Connections, around), "", acks=0)
    lane = Lane("orders", 0)
    lane.in_flight.append(OutgoingBatch(lane, 0.0))
    sender.lanes[lane] = None
    sender.wake()
    for _ in range(3):
        async with asyncio.timeout(10):
            await around.opened.wait()
            around.opened.clear()
            await around.calls[-1].written.wait()
        sender.leave()
    assert len(around.calls) == 3
    sender.task.cancel()
    await asyncio.wait([sender.task])
