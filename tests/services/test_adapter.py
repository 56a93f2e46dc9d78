"""The adapter: every way in which a call can end has one status; a stream has one reader, which can be slowed."""

import asyncio
import contextlib
import copy
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from postbus.v1 import error_pb2, topic_pb2

from broker import errors
from broker.errors import PostbusError
from broker.services.adapter import Adapter, Call, ServerStream
from broker.storage.errors import LogCorrupt, StoreFailed, UnknownLog


class FakeContext:
    """A call as grpc.aio shows it: messages to read, a window for writes, and one abort."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.reads = 0
        self.read_began = asyncio.Event()
        self.written: list[bytes] = []
        self.window = asyncio.Event()
        self.window.set()
        self.write_error: Exception | None = None
        self.abort_error: BaseException | None = None
        self.aborted: tuple[grpc.StatusCode, str, dict[str, Any]] | None = None

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> float | None:
        return None

    async def until_read(self, count: int) -> None:
        """Waits until so many reads have begun."""
        while self.reads < count:
            self.read_began.clear()
            await self.read_began.wait()

    async def read(self) -> Any:
        self.reads += 1
        self.read_began.set()
        message = await self.incoming.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def write(self, message: bytes) -> None:
        await self.window.wait()
        if self.write_error is not None:
            raise self.write_error
        self.written.append(message)

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> None:
        self.aborted = (code, details, dict(trailing_metadata))
        # As grpc does: it is kept with the call, and raised again once the handler has returned.
        self.abort_error = grpc.aio.AbortError()
        raise self.abort_error


class Observed:
    """What the adapter told the metrics."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

        self.failures: list[tuple[str, str, str]] = []

    def __call__(self, rpc: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append((rpc, code))

    def failed(self, rpc: str, code: str, reason: str) -> None:
        """A call or a stream was not OK."""
        self.failures.append((rpc, code, reason))


async def unary(method: Callable[[bytes, Call], Awaitable[bytes]]) -> tuple[FakeContext, Observed]:
    """Runs a unary handler to its end."""
    observed, context = Observed(), FakeContext()
    handler: Any = Adapter(observe=observed, failed=observed.failed).unary_bytes("S/M", method)
    with contextlib.suppress(asyncio.CancelledError):
        assert await handler.unary_unary(b"", context) is None
    return context, observed


@pytest.mark.parametrize(
    ("raised", "code", "reason"),
    [
        (errors.topic_not_found("t"), grpc.StatusCode.NOT_FOUND, "TOPIC_NOT_FOUND"),
        (UnknownLog("gone"), grpc.StatusCode.NOT_FOUND, "TOPIC_NOT_FOUND"),
        (StoreFailed("closed"), grpc.StatusCode.UNAVAILABLE, "DRAINING"),
        (LogCorrupt(1, 7, "torn"), grpc.StatusCode.DATA_LOSS, "LOG_CORRUPT"),
    ],
)
async def test_what_a_method_raises_becomes_a_status(raised: Exception, code: grpc.StatusCode, reason: str) -> None:
    """With its reason in the trailers, and observed by its code."""

    async def method(data: bytes, call: Call) -> bytes:
        raise raised

    context, observed = await unary(method)
    assert context.aborted is not None
    assert (context.aborted[0], context.aborted[2]["postbus-reason"]) == (code, reason)
    assert observed.calls == [("S/M", code.name)]
    assert observed.failures == [("S/M", code.name, reason)]


async def test_a_fault_is_internal_and_says_nothing_of_itself() -> None:
    """The text of an exception is for the broker's log, not for clients."""

    async def method(data: bytes, call: Call) -> bytes:
        raise ValueError("secret")

    context, observed = await unary(method)
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.INTERNAL and "secret" not in context.aborted[1]
    assert observed.calls == [("S/M", "INTERNAL")]


@pytest.mark.parametrize("raised", [StoreFailed("closed"), ValueError("fault"), UnknownLog("gone")])
async def test_a_refused_request_is_let_go_of_at_once(raised: Exception) -> None:
    """Not when the collector comes: a flood of large refused publishes held three times their sum."""

    class Request(list[int]):
        """Something large, that can be watched."""

    async def method(data: bytes, call: Call) -> bytes:
        raise copy.copy(raised)

    request = Request()
    watched = weakref.ref(request)
    handler: Any = Adapter(observe=Observed()).unary_bytes("S/M", method)
    context = FakeContext()
    gc.disable()
    try:
        await handler.unary_unary(request, context)
        assert context.abort_error is not None
        del request
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("ending", [asyncio.CancelledError(), grpc.aio.InternalError("execute_batch")])
async def test_both_endings_by_the_client_are_one(ending: BaseException) -> None:
    """Cancelled, or an internal error where it was blocked in a write: nobody is answered."""

    async def method(data: bytes, call: Call) -> bytes:
        raise ending

    context, observed = await unary(method)
    assert context.aborted is None
    assert observed.calls == [("S/M", "CANCELLED")]


async def test_bytes_that_do_not_parse_are_the_clients_fault() -> None:
    """INVALID_ARGUMENT, not UNKNOWN; the method is never called."""
    observed, context = Observed(), FakeContext()

    async def method(request: topic_pb2.GetTopicRequest, call: Call) -> topic_pb2.GetTopicResponse:
        raise AssertionError("called")

    handler: Any = Adapter(observe=observed).unary("S/M", topic_pb2.GetTopicRequest, method)
    assert await handler.unary_unary(b"\xff\xff", context) is None
    assert context.aborted is not None and context.aborted[0] is grpc.StatusCode.INVALID_ARGUMENT


async def stream_of(context: FakeContext, method: Callable[[ServerStream], Awaitable[None]]) -> None:
    handler: Any = Adapter(observe=Observed()).bidi("S/Stream", method)
    await handler.stream_stream(None, context)


class Listener:
    """What the owner of a stream is told."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.allowed = asyncio.Semaphore(0)
        self.failures: list[Exception] = []
        self.ended = asyncio.Event()

    async def receive(self, data: bytes) -> None:
        await self.allowed.acquire()
        if data == b"bad":
            raise errors.invalid_field("x", "bad")
        self.received.append(data)

    def half_closed(self) -> None:
        self.ended.set()

    def failed(self, error: Exception) -> None:
        self.failures.append(error)
        self.ended.set()


async def test_nothing_is_read_while_a_message_is_being_received() -> None:
    """So that HTTP/2 slows the client: one message in hand, the rest stay where they are."""
    context, listener = FakeContext(), Listener()
    for number in range(5):
        context.incoming.put_nowait(b"%d" % number)
    context.incoming.put_nowait(grpc.aio.EOF)

    async def method(stream: ServerStream) -> None:
        stream.start_reading(listener.receive, half_closed=listener.half_closed, failed=listener.failed)
        for count in range(5):
            await context.until_read(count + 1)
            for _ in range(10):
                await asyncio.sleep(0)
            assert (context.reads, len(listener.received)) == (count + 1, count)
            listener.allowed.release()
        await listener.ended.wait()

    async with asyncio.timeout(10):
        await stream_of(context, method)
    assert listener.received == [b"0", b"1", b"2", b"3", b"4"]
    assert listener.failures == []


async def test_what_receiving_raises_goes_to_the_owner_and_reading_ends() -> None:
    """The owner raises it, and it becomes the status of the stream."""
    context, listener = FakeContext(), Listener()
    for message in (b"good", b"bad", b"never"):
        context.incoming.put_nowait(message)
        listener.allowed.release()

    async def method(stream: ServerStream) -> None:
        stream.start_reading(listener.receive, half_closed=listener.half_closed, failed=listener.failed)
        await listener.ended.wait()
        raise listener.failures[0]

    await stream_of(context, method)
    assert listener.received == [b"good"]
    assert context.reads == 2
    assert context.aborted is not None and context.aborted[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_reader_ends_with_its_call() -> None:
    """Whether the owner returns, fails or is cancelled: no task stays."""
    for how in ("returns", "fails", "is cancelled"):
        context, listener = FakeContext(), Listener()
        readers: list[asyncio.Task[Any]] = []

        async def method(stream: ServerStream) -> None:
            stream.start_reading(listener.receive, half_closed=listener.half_closed, failed=listener.failed)  # noqa: B023
            readers.append(stream._reader)  # type: ignore[arg-type] # noqa: B023
            await context.until_read(1)  # noqa: B023
            if how == "fails":  # noqa: B023
                raise errors.topic_not_found("t")
            if how == "is cancelled":  # noqa: B023
                raise asyncio.CancelledError

        call = asyncio.create_task(stream_of(context, method))
        await asyncio.wait({call}, timeout=10)
        assert call.done() and readers[0].done(), how
        assert call.cancelled() == (how == "is cancelled")


@pytest.mark.parametrize("ending", [grpc.aio.InternalError("gone"), grpc.aio.UsageError("done")])
async def test_a_read_that_breaks_tells_nobody(ending: Exception) -> None:
    """The owner hears of the end by its own cancellation, not twice."""
    context, listener = FakeContext(), Listener()
    context.incoming.put_nowait(ending)

    async def method(stream: ServerStream) -> None:
        stream.start_reading(listener.receive, half_closed=listener.half_closed, failed=listener.failed)
        await asyncio.wait({stream._reader}, timeout=10)  # type: ignore[arg-type]
        assert not listener.ended.is_set()

    await stream_of(context, method)


async def test_a_write_tells_how_long_it_waits() -> None:
    """From its begin to its end, also when it breaks."""
    context = FakeContext()
    context.window.clear()
    stream = ServerStream(context)
    writing = asyncio.create_task(stream.write(b"x"))
    await asyncio.sleep(0)
    assert stream.writing_since is not None
    context.write_error = grpc.aio.InternalError("gone")
    context.window.set()
    with pytest.raises(grpc.aio.InternalError):
        await writing
    assert stream.writing_since is None


async def test_an_abort_from_outside_sends_the_reason() -> None:
    """And does not raise where it is called: the owner is the one to end."""
    context = FakeContext()
    await ServerStream(context).abort(PostbusError(error_pb2.ERROR_REASON_QUOTA_EXCEEDED, "unread"))
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert context.aborted[2]["postbus-reason"] == "QUOTA_EXCEEDED"
