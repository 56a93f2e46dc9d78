"""The clients of these tests end when they are told to, whatever their calls come to in that moment."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from bus import Bus, Recorder
from publishers import StreamPublisher
from subscribers import Member, Reader


def _unavailable() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


class _Call:
    """A stream that breaks when it is told to, or as its reader is cancelled: which it hides, as grpc.aio may."""

    def __init__(self, *, writes: int) -> None:
        """writes: with the end of the last of so many, the stream breaks."""
        self.written = asyncio.Event()
        self._writes = writes
        self._broken = asyncio.Event()

    async def write(self, _: Any) -> None:
        self._writes -= 1
        if self._writes == 0:
            self.written.set()
            self._broken.set()
            await asyncio.sleep(0)  # the reader learns of it first
            await asyncio.sleep(0)

    async def read(self) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await self._broken.wait()
        raise _unavailable()

    def cancel(self) -> None:
        pass


class _Bus(Bus):
    """Streams that break after so many writes each; the last one only when it is cancelled."""

    def __init__(self, *writes: int) -> None:
        self.broker: Any = self
        self.ready = asyncio.Event()
        self.ready.set()
        self.publisher = self.subscriber = self  # type: ignore[assignment]
        self.calls: list[_Call] = []
        self.all_open = asyncio.Event()
        self._writes = [*writes, 0]

    def Subscribe(self, **_: Any) -> _Call:  # noqa: N802 - the RPC's name
        assert self._writes, "a client that was cancelled goes on"
        self.calls.append(_Call(writes=self._writes.pop(0)))
        if not self._writes:
            self.all_open.set()
        return self.calls[-1]

    PublishStream = Subscribe


def _reader(bus: Bus) -> Any:
    return Reader(bus, Recorder(), "reader", "topic", 1).run()


def _member(bus: Bus) -> Any:
    return Member(bus, Recorder(), "member", "group", ["topic"], seed=1, resumes=True).run()


def _publisher(bus: Bus) -> Any:
    return StreamPublisher(bus, Recorder(), "publisher", "topic", 1).run(asyncio.Event())


@pytest.mark.parametrize("client", [_reader, _member, _publisher])
async def test_one_that_is_cancelled_while_its_stream_breaks_ends(client: Callable[[Bus], Any]) -> None:
    bus = _Bus()
    task = asyncio.create_task(client(bus))
    await bus.all_open.wait()
    for _ in range(5):
        await asyncio.sleep(0)  # until it waits for an answer
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)


async def test_a_publisher_whose_stream_breaks_as_it_has_written_all_opens_another() -> None:
    bus = _Bus(StreamPublisher.depth)
    task = asyncio.create_task(_publisher(bus))
    await asyncio.wait_for(bus.all_open.wait(), 10)
    assert len(bus.calls) == 2
    task.cancel()
    await asyncio.wait({task})
