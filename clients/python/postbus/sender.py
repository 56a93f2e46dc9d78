"""One stream to one node, or to whichever answers: writes what the pipeline has for it, reads the answers, comes back.

Knows nothing of fates, windows and sequences: the pipeline says what may be sent, and is told of answers and ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from postbus import errors, wire
from postbus.connection import Connections, backoff
from postbus.lanes import Lane, OutgoingBatch
from postbus.v1 import publisher_pb2

if TYPE_CHECKING:
    from postbus.pipeline import Pipeline

log = logging.getLogger("postbus.publisher")

LEAVE_TIMEOUT: Final = 1.0

# The stream itself was refused: trying again is no use.
_FINAL_CODES: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class Stream:
    """One PublishStream call, and what is open on it."""

    def __init__(self, connections: Connections, address: str) -> None:
        self.address = address
        self.call = connections.stream(
            "PublisherService/PublishStream",
            response=publisher_pb2.PublishStreamResponse.FromString,
            address=address,
        )
        self.sent: dict[int, OutgoingBatch] = {}
        self.answers = 0
        self.leaving = False
        self.draining = False
        self.failure: errors.PostbusError | None = None

    def cut(self, why: str) -> None:
        """Ends it from outside."""
        self.failure = errors.Unavailable(f"{self.address}: {why}", code=grpc.StatusCode.UNAVAILABLE, retriable=True)
        self.call.cancel()


class Sender:
    """The way of some lanes. address: of the node that leads them; empty: any node, the next one when it fails."""

    def __init__(self, pipeline: Pipeline, connections: Connections, address: str, *, acks: int) -> None:
        self.address = address
        self.lanes: dict[Lane, None] = {}
        self.stream: Stream | None = None
        self._pipeline = pipeline
        self._connections = connections
        self._acks = acks
        self._outbox: deque[OutgoingBatch] = deque()
        self._wake = asyncio.Event()
        self._correlation_id = 0
        name = f"postbus-publisher-{address or 'any'}"
        self.task = asyncio.get_running_loop().create_task(self._run(), name=name)

    def push(self, batches: Iterable[OutgoingBatch]) -> None:
        """These may be sent."""
        self._outbox.extend(batches)
        self._wake.set()

    def wake(self) -> None:
        """Something may have changed."""
        self._wake.set()

    def leave(self) -> None:
        """A new stream is needed; what is unanswered on this one is waited for, for a moment."""
        if self.stream is not None:
            self.stream.leaving = True
        self._wake.set()

    async def _run(self) -> None:
        attempt = 0
        while True:
            while not any(lane.in_flight for lane in self.lanes):
                self._wake.clear()
                await self._wake.wait()
            address = self.address or self._connections.address
            stream: Stream | None = None
            try:
                await self._pipeline.ensure_identity()
                stream = Stream(self._connections, address)
                failure = await self._serve(stream)
            except errors.PostbusError as error:
                failure = error
            except Exception as error:
                log.exception("the publisher's loop failed")
                self._pipeline.fail(errors.PostbusError(f"the publisher failed: {error!r}"))
                return
            if stream is not None and stream.answers:
                attempt = 0
            if self.address:
                # Any other node forwards; the pipeline finds out when this one is well again.
                if failure is not None or (stream is not None and stream.draining):
                    log.info("direct way to %s ended (%s)", address, failure or "it is going away")
                    self._pipeline.gave_up(self, worked=stream is not None and stream.answers > 0)
                continue
            if failure is None:
                # A deliberate end: the next stream at once, unless the node asked for it.
                if stream is not None and stream.draining:
                    await asyncio.sleep(self._connections.moving_delay)
                continue
            self._connections.rotate(address)
            if failure.code in _FINAL_CODES:
                self._pipeline.fail_all(failure)
            attempt += 1
            delay = max(backoff(attempt), failure.retry_after or 0.0)
            log.info("publish stream to %s ended (%s); again in %.2f s", address, failure, delay)
            await asyncio.sleep(delay)

    async def _serve(self, stream: Stream) -> errors.PostbusError | None:
        """Sends and reads until the stream ends: with None where we left it ourselves."""
        self.stream = stream
        # All that is in flight goes (again), each lane in order, with the sequences that it has.
        self._outbox = deque(
            batch for lane in self.lanes if not lane.held for batch in lane.in_flight if not batch.on_wire
        )
        reader = asyncio.get_running_loop().create_task(self._read(stream), name="postbus-publisher-acks")
        reader.add_done_callback(lambda _: self._wake.set())
        try:
            await self._write(stream, reader)
            if stream.leaving and not reader.done():
                await self._half_close(stream)
                await asyncio.wait({reader}, timeout=LEAVE_TIMEOUT)
            elif not reader.done():
                await asyncio.wait({reader}, timeout=LEAVE_TIMEOUT)  # The reader knows why writing failed.
        finally:
            stream.call.cancel()
            reader.cancel()
            (outcome,) = await asyncio.gather(reader, return_exceptions=True)
            if isinstance(outcome, Exception):
                log.error("reading acknowledgements failed", exc_info=outcome)
            self.stream = None
            self._pipeline.stream_ended(self)
        if stream.leaving:
            return None
        return stream.failure or errors.Unavailable(
            f"{stream.address}: the stream ended", code=grpc.StatusCode.UNAVAILABLE, retriable=True
        )

    async def _write(self, stream: Stream, reader: asyncio.Task[None]) -> None:
        call = stream.call
        while not reader.done() and not stream.leaving:
            if not self._outbox:
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = self._outbox.popleft()
            lane = batch.lane
            if lane not in self.lanes or not lane.may_send(batch):
                continue  # It goes another way; or its turn comes again when the lane is free; or its fate is known.
            self._correlation_id += 1
            producer_id, epoch = self._pipeline.identity_of(lane)
            assert producer_id, "the identity is there before the stream"
            message = wire.stream_request(
                correlation_id=self._correlation_id,
                head=lane.head,
                batch=batch.payload,
                tail=wire.request_tail(
                    acks=self._acks, producer_id=producer_id, producer_epoch=epoch, sequence=batch.sequence
                ),
            )
            batch.on_wire = True
            batch.sent_time = asyncio.get_running_loop().time()
            lane.on_wire_count += 1
            stream.sent[self._correlation_id] = batch
            try:
                await call.write(message)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
                return
            except asyncio.CancelledError:
                if self._was_cancelled(stream):
                    raise
                return

    async def _half_close(self, stream: Stream) -> None:
        """Says that nothing more comes. The reader learns of the end, whatever it is."""
        try:
            await stream.call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            pass
        except asyncio.CancelledError:
            # Else the node that dies in this moment would take the sender with it, and its lanes would wait for ever.
            if self._was_cancelled(stream):
                raise

    def _was_cancelled(self, stream: Stream) -> bool:
        """grpc.aio tells a writer of the stream's end by a CancelledError; whether this one means the task."""
        task = asyncio.current_task()
        return (
            not stream.call.done()
            or task is None
            or bool(getattr(task, "cancelling", lambda: 0)())
            or self._pipeline.closed
        )

    async def _read(self, stream: Stream) -> None:
        try:
            while True:
                response = await stream.call.read()
                if response is grpc.aio.EOF:
                    break
                assert isinstance(response, publisher_pb2.PublishStreamResponse)
                for ack in response.acks:
                    self._pipeline.answered(self, stream, ack)
                if response.HasField("draining"):
                    log.info("%s is going away: moving on", stream.address)
                    self._connections.rotate(stream.address)
                    stream.draining = True
                    self.leave()
            code = await stream.call.code()
            if code is not grpc.StatusCode.OK:
                stream.failure = errors.from_status(
                    code, await stream.call.details() or "", list(await stream.call.trailing_metadata() or ())
                )
        except grpc.aio.AioRpcError as error:
            stream.failure = errors.from_rpc(error)
        if stream.failure is not None and not stream.failure.reason:
            stream.failure.message = f"{stream.address}: {stream.failure.message}"
