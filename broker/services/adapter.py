"""Between grpc.aio and the servicers: raw bytes in, raw bytes out, and every way in which a call can end.

gRPC's own (de)serialisers would answer UNKNOWN with an exception's text for a message that does not parse, so they
are the identity here and parsing happens inside the handler. A stream has one reader task and no cancelled reads: a
read that times out ends the whole call in grpc.aio. A client's end arrives as CancelledError, or as InternalError
when the handler is blocked in a write; both are the same to a servicer.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from broker.errors import PostbusError, Reason
from broker.services.requests import parse_checked
from broker.storage.errors import LogCorrupt, StorageError, UnknownLog

log = structlog.get_logger(__name__)
M = TypeVar("M", bound=Message)

UNARY_TIMEOUT_S: Final = 30.0
UNREAD_STATUS_WAIT_S: Final = 1.0

# Generic for type checkers alone.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

Observe = Callable[[str, str, float], None]  # rpc ("PublisherService/Publish"), code name, seconds
Failed = Callable[[str, str, str], None]  # rpc, code name, reason (empty if there is none)


class Context(Protocol):
    """What is used of grpc.aio.ServicerContext."""

    def peer(self) -> str: ...
    def time_remaining(self) -> float | None: ...
    async def read(self) -> Any: ...
    async def write(self, message: bytes) -> None: ...
    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> None: ...


class Call:
    """One unary call, as a servicer sees it."""

    def __init__(self, context: Context) -> None:
        remaining = context.time_remaining()
        self.peer = context.peer()
        self.timeout_s = UNARY_TIMEOUT_S if remaining is None else remaining


class Adapter:
    """Makes method handlers of servicer methods."""

    def __init__(
        self,
        *,
        observe: Observe,
        failed: Failed = lambda rpc, code, reason: None,
        closed: Callable[[str], PostbusError | None] = lambda rpc: None,
    ) -> None:
        """observe: is told of each unary call's end. failed: of each call's and stream's that was not OK.

        closed: why an RPC is not served now; None: it is.
        """
        self._observe = observe
        self._failed = failed
        self._closed = closed

    def unary(self, rpc: str, request_type: type[M], method: Callable[[M, Call], Awaitable[Message]]) -> Handler:
        """A unary method whose request is checked for unknown fields."""

        async def handle(data: bytes, call: Call) -> bytes:
            return (await method(parse_checked(request_type, data), call)).SerializeToString()

        return self.unary_bytes(rpc, handle)

    def unary_encoded(self, rpc: str, request_type: type[M], method: Callable[[M, Call], Awaitable[bytes]]) -> Handler:
        """The same, for a method that encodes its answer itself."""

        async def handle(data: bytes, call: Call) -> bytes:
            return await method(parse_checked(request_type, data), call)

        return self.unary_bytes(rpc, handle)

    def unary_bytes(self, rpc: str, method: Callable[[bytes, Call], Awaitable[bytes]]) -> Handler:
        """A unary method that parses for itself."""

        async def handle(data: bytes, context: Context) -> bytes | None:
            answer: bytes | None = await self._guarded(rpc, context, lambda: method(data, Call(context)))
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)

    def server_stream(
        self, rpc: str, request_type: type[M], method: Callable[[M, "ServerStream"], Awaitable[None]]
    ) -> Handler:
        """One request, checked for unknown fields, and many answers."""
        return self.server_stream_bytes(rpc, lambda data, stream: method(parse_checked(request_type, data), stream))

    def server_stream_bytes(self, rpc: str, method: Callable[[bytes, "ServerStream"], Awaitable[None]]) -> Handler:
        """The same, for a method that parses for itself."""

        async def handle(data: bytes, context: Context) -> None:
            stream = ServerStream(context)
            await self._guarded(rpc, context, lambda: method(data, stream), timed=False)

        return grpc.unary_stream_rpc_method_handler(handle)

    def bidi(self, rpc: str, method: Callable[["ServerStream"], Awaitable[None]]) -> Handler:
        """Many requests, many answers."""

        async def handle(_requests: object, context: Context) -> None:
            stream = ServerStream(context)
            try:
                await self._guarded(rpc, context, lambda: method(stream), timed=False)
            finally:
                await stream.stop_reading()

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _guarded(
        self, rpc: str, context: Context, run: Callable[[], Awaitable[Any]], *, timed: bool = True
    ) -> Any:
        """`timed`: its duration means something; that of a stream is how long the client stayed."""
        started = time.monotonic()
        code, reason = "OK", ""
        try:
            if (closed := self._closed(rpc)) is not None:
                raise closed
            return await run()
        except (PostbusError, StorageError) as raised:
            # This frame holds it, and its traceback this frame and the request: a cycle.
            raised.__traceback__ = None
            error = raised if isinstance(raised, PostbusError) else from_storage(raised)
            code, reason = error.code.name, error.reason_name
            await _abort(context, error.code, error.message, error.trailers())
        except (asyncio.CancelledError, grpc.aio.InternalError):
            # The client is gone: nobody is left to answer.
            code = "CANCELLED"
            raise asyncio.CancelledError from None
        except grpc.aio.AbortError:
            raise
        except Exception:
            code = "INTERNAL"
            log.exception("rpc_failure", rpc=rpc, peer=context.peer())
            await _abort(
                context,
                grpc.StatusCode.INTERNAL,
                "a fault in the broker; nothing more is known to the client, the broker's log has the details",
            )
        finally:
            if timed:
                self._observe(rpc, code, time.monotonic() - started)
            if code != "OK":
                self._failed(rpc, code, reason)
        return None


class ServerStream:
    """The server's side of one stream. The owner of the call writes; one task reads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reader: asyncio.Task[None] | None = None
        self.peer = context.peer()
        self.writing_since: float | None = None

    def start_reading(
        self,
        receive: Callable[[bytes], Awaitable[None]],
        *,
        half_closed: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Gives each message to `receive`; while that waits nothing is read, so that HTTP/2 slows the client down.

        `half_closed` is called once after the last message; `failed` with what `receive` raised, and then nothing
        more is read: the owner is to raise it, so that it becomes the call's status.
        """
        self._reader = asyncio.create_task(self._read(receive, half_closed, failed))

    async def _read(
        self,
        receive: Callable[[bytes], Awaitable[None]],
        half_closed: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        try:
            while (data := await self._context.read()) is not grpc.aio.EOF:
                await receive(data)
            half_closed()
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            return  # the call ended; its owner is told by cancellation
        except Exception as error:  # whatever it is, the call's owner raises it again
            failed(error)

    async def write(self, message: bytes) -> None:
        """Waits while the client's window is full. `writing_since` tells how long."""
        self.writing_since = time.monotonic()
        try:
            await self._context.write(message)
        finally:
            self.writing_since = None

    async def abort(self, error: PostbusError) -> None:
        """Ends the call from outside its owner, which may be stuck in a write; the owner is left to be cancelled."""
        with contextlib.suppress(grpc.aio.InternalError, grpc.aio.UsageError):
            await _abort(self._context, error.code, error.message, error.trailers())

    async def end_unread(self, owner: "asyncio.Task[Any]", error: PostbusError) -> None:
        """Ends a call whose client does not read and whose owner is stuck in a write.

        The status waits behind what is not read: whoever begins to read again gets all answers and then the reason.
        gRPC has no way to reset the stream, so that the owner is cancelled too: else it would wait for ever.
        """
        log.warning("stream_unread", peer=self.peer, reason=error.reason_name, message=error.message)
        sending = asyncio.create_task(self.abort(error))
        await asyncio.wait({sending}, timeout=UNREAD_STATUS_WAIT_S)
        sending.cancel()
        owner.cancel()

    async def stop_reading(self) -> None:
        """Ends the reader task."""
        if self._reader is None:
            return
        self._reader.cancel()
        try:
            await self._reader
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise


async def _abort(context: Context, code: grpc.StatusCode, message: str, trailers: tuple[Any, ...] = ()) -> None:
    """Ends the call; grpc raises its AbortError again once the handler has returned.

    grpc keeps that exception with the call, which the exception's traceback holds too: a cycle, in which megabytes of
    each refused publish would wait for the collector. Stripped, it holds nothing of the request.
    """
    try:
        await context.abort(code, message, trailers)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = aborted.__context__ = None


def from_storage(error: StorageError) -> PostbusError:
    """What storage may raise anywhere, because a topic went or the node stops while a request is under way."""
    if isinstance(error, UnknownLog):
        return PostbusError(Reason.ERROR_REASON_TOPIC_NOT_FOUND, "the topic was deleted meanwhile")
    if isinstance(error, LogCorrupt):
        return PostbusError(
            Reason.ERROR_REASON_LOG_CORRUPT, f"the log is damaged at offset {error.offset}: {error.why}"
        )
    log.warning("storage_refusal", error=str(error))
    return PostbusError(Reason.ERROR_REASON_DRAINING, "this node's store is closing; connect again", retry_after_ms=500)


def timed_out(what: str, timeout_s: float) -> PostbusError:
    """DEADLINE_EXCEEDED: whether it happened is not known."""
    return PostbusError(
        Reason.ERROR_REASON_TIMEOUT,
        f"{what} was not done within {timeout_s:g} s; it may still happen: repeat it with the same request id",
    )
