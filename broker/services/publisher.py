"""PublisherService: the unary call, the stream, and producer ids. What a request means is in publishing.py."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from postbus.v1 import publisher_pb2, record_pb2

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.replication.partition import Published
from broker.services import publishing, requests
from broker.services.adapter import Call, ServerStream, from_storage, timed_out
from broker.services.delivery import varint
from broker.services.publishing import Prepared, Publishing
from broker.storage.errors import StorageError
from broker.stubs import view_pb2

SWEEP_INTERVAL_S: Final = 1.0
# Acknowledgements in one frame, so that none comes near any client's message limit.
ACKS_PER_FRAME_MAX: Final = 2000
# The same in bytes, overdrawn by one: an answer that names each record of a split batch may have 300 kB.
FRAME_BYTES_TARGET: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class PublisherSettings:
    """Bounds. Requests and bytes are those of one stream that are not answered: past that it is not read."""

    timeout_s: float = 30.0
    unread_timeout_s: float = 30.0
    stream_requests_max: int = 1000
    stream_bytes_max: int = 8 * 1024 * 1024


class PublisherService:
    """Appends records to topics."""

    def __init__(
        self,
        *,
        publishing: Publishing,
        has_room: Callable[[], bool],
        wait_for_room: Callable[[], Awaitable[None]],
        init_producer: Callable[[int, int], Awaitable[tuple[int, int]]],
        published: Callable[[str, int, int], None],
        answered: Callable[[str, float], None],
        clock: Clock,
        settings: PublisherSettings,
    ) -> None:
        self._publishing = publishing
        self._has_room = has_room
        self._wait_for_room = wait_for_room
        self._init_producer = init_producer
        # For metrics: topic, records, bytes of what was appended; code and seconds of each request on a stream.
        self._published = published
        self.answered = answered
        self.clock = clock
        self.settings = settings
        self._streams: set[_PublishStream] = set()
        self._draining: publisher_pb2.PublishStreamResponse | None = None

    @property
    def stream_count(self) -> int:
        """Open PublishStreams."""
        return len(self._streams)

    async def publish(self, data: bytes, call: Call) -> bytes:
        """Publish: appends one batch."""
        if self._draining is not None:
            raise errors.draining()
        prepared = self._publishing.prepare(self._publishing.parse(data))
        timeout_s = min(call.timeout_s, self.settings.timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                placed = await self.place(prepared)
                await self._safe(prepared, placed)
        except TimeoutError:
            raise timed_out("publishing", timeout_s) from None
        acks_none = prepared.view.acks == publisher_pb2.ACKS_NONE
        return publishing.response([] if acks_none else placed).SerializeToString()

    def ready_for(self, prepared: Prepared) -> bool:
        """Whether `place_now` may be called without waiting for anything."""
        return self._has_room() and not self._publishing.needs_request_ids(prepared)

    async def place(self, prepared: Prepared) -> list[Published]:
        """Waits for room, then appends."""
        await self._wait_for_room()
        if self._publishing.needs_request_ids(prepared):
            await prepared.topic.load_request_ids()
        return self.place_now(prepared)

    def place_now(self, prepared: Prepared) -> list[Published]:
        """Appends."""
        placed = self._publishing.place(prepared)
        new = [part for part in placed if not part.duplicate]
        if len(new) == len(placed):
            self._published(prepared.topic.name, prepared.facts.record_count, len(prepared.batch))
        elif new:
            self._published(prepared.topic.name, sum(part.record_count for part in new), len(prepared.batch))
        return placed

    async def _safe(self, prepared: Prepared, placed: list[Published]) -> None:
        safe: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = len(placed)

        def done(error: PostbusError | None) -> None:
            nonlocal left
            left -= 1
            if safe.done():
                return
            if error is not None:
                safe.set_exception(error)
            elif left == 0:
                safe.set_result(None)

        for part in placed:
            prepared.topic.partitions[part.partition].when_safe(part.end_offset, prepared.view.acks, done)
        await safe

    async def publish_stream(self, stream: ServerStream) -> None:
        """PublishStream: appends batches as they come."""
        publish_stream = _PublishStream(self, self._publishing, stream)
        self._streams.add(publish_stream)
        if self._draining is not None:
            publish_stream.drain(self._draining)
        try:
            await publish_stream.run()
        finally:
            self._streams.discard(publish_stream)

    async def init_producer(
        self, request: publisher_pb2.InitProducerRequest, call: Call
    ) -> publisher_pb2.InitProducerResponse:
        """InitProducer: a new id, or the next epoch of one."""
        if request.id < 0:
            raise errors.invalid_field("id", f"{request.id} is negative; 0 asks for a new id")
        if request.epoch < 0:
            raise errors.invalid_field("epoch", f"{request.epoch} is negative")
        if not request.id and request.epoch:
            raise errors.invalid_field("epoch", "goes with `id`")
        producer_id, epoch = await self._init_producer(request.id, request.epoch)
        return publisher_pb2.InitProducerResponse(id=producer_id, epoch=epoch)

    def drain(self, grace_s: float) -> None:
        """Tells all streams that the node is going; new requests are refused."""
        draining = record_pb2.Draining()
        draining.grace.FromMilliseconds(round(grace_s * 1000))
        self._draining = publisher_pb2.PublishStreamResponse(draining=draining)
        for stream in self._streams:
            stream.drain(self._draining)

    def end_streams(self) -> None:
        """After the grace: what is still open ends with UNAVAILABLE once its appends are answered."""
        for stream in self._streams:
            stream.end()


@dataclass(slots=True, eq=False)
class _Pending:
    """A request that is not answered yet."""

    correlation_id: int
    size_bytes: int
    received: float
    deadline: float = 0.0
    acks: int = 0
    topic: str = ""
    partition: int | None = None  # as the request says
    placed: list[Published] | None = None
    unsafe: int = 0
    safe: list[Published] | None = None
    failure: PostbusError | None = None

    @property
    def complete(self) -> bool:
        return self.failure is not None or (self.placed is not None and self.unsafe == 0)

    def encode_ack(self) -> bytes:
        """The answer, as one element of `acks`: field 1 of PublishStreamResponse."""
        ack = publisher_pb2.PublishAck(correlation_id=self.correlation_id)
        if self.failure is None:
            assert self.placed is not None
            ack.result.SetInParent()
            if self.acks != publisher_pb2.ACKS_NONE:
                publishing.fill(ack.result, self.placed)
        else:
            ack.failure.CopyFrom(self.failure.failure())
            if self.safe:
                publishing.fill(ack.partial, self.safe)
        encoded = ack.SerializeToString()
        return b"\x0a" + varint(len(encoded)) + encoded


class _PublishStream:
    """One open PublishStream. Answers go out in the order of the requests, several to a frame."""

    def __init__(self, service: PublisherService, publishing: Publishing, stream: ServerStream) -> None:
        self._service = service
        self._publishing = publishing
        self._stream = stream
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        # Partition None: any, because the broker was to choose it.
        self._blocked: set[tuple[str, int | None]] = set()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._half_closed = False
        self._failure: Exception | None = None
        self._draining: publisher_pb2.PublishStreamResponse | None = None
        self._ending = False

    async def run(self) -> None:
        """Until the client half-closes and all is answered; raises what ends the stream otherwise."""
        self._stream.start_reading(self._receive, half_closed=self._half_close, failed=self._fail)
        owner = asyncio.current_task()
        assert owner is not None
        sweeper = asyncio.create_task(self._sweep(owner))
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._draining is not None:
                    draining, self._draining = self._draining, None
                    await self._stream.write(draining.SerializeToString())
                while self._pending and self._pending[0].complete:
                    await self._stream.write(self._answer())
                if self._pending:
                    continue
                if self._failure is not None:
                    raise self._failure
                if self._half_closed:
                    return
                if self._ending:
                    raise errors.draining()
        finally:
            sweeper.cancel()

    def _answer(self) -> bytes:
        acks: list[bytes] = []
        size = 0
        now = self._service.clock.monotonic()
        while (
            self._pending and self._pending[0].complete and len(acks) < ACKS_PER_FRAME_MAX and size < FRAME_BYTES_TARGET
        ):
            answered = self._pending.popleft()
            self._pending_bytes -= answered.size_bytes
            code = "OK" if answered.failure is None else answered.failure.code.name
            self._service.answered(code, now - answered.received)
            ack = answered.encode_ack()
            acks.append(ack)
            size += len(ack)
        if self._has_room():
            self._room.set()
        return b"".join(acks)

    def _has_room(self) -> bool:
        settings = self._service.settings
        return len(self._pending) < settings.stream_requests_max and self._pending_bytes < settings.stream_bytes_max

    async def _receive(self, data: bytes) -> None:
        await self._room.wait()
        view = self._publishing.parse_stream(data)
        pending = _Pending(view.correlation_id, len(data), self._service.clock.monotonic())
        self._pending.append(pending)
        self._pending_bytes += len(data)
        if not self._has_room():
            self._room.clear()
        try:
            await self._place(view, pending)
        except PostbusError as error:
            self._fail_request(pending, error)
        except StorageError as error:
            self._fail_request(pending, from_storage(error))
        except Exception:
            # A fault: the stream ends with it, and must not wait for an answer that nobody gives.
            self._pending.remove(pending)
            raise
        if pending.complete:
            self._wake.set()

    async def _place(self, view: view_pb2.PublishStreamRequestView, pending: _Pending) -> None:
        if requests.has_unknown_fields(view):
            requests.refuse_unknown(view)
        timeout_s = self._service.settings.timeout_s
        if view.HasField("timeout"):
            timeout_s = publishing.timeout_s(view.timeout, default_s=timeout_s)
        pending.deadline = pending.received + timeout_s
        if not view.HasField("publish"):
            raise errors.invalid_field("publish", "is required")
        prepared = self._publishing.prepare(view.publish)
        pending.topic = prepared.topic.name
        pending.acks = prepared.view.acks
        if prepared.view.HasField("partition"):
            pending.partition = prepared.view.partition
        if self._ending:
            raise errors.draining()
        self._refuse_after_failure(prepared)
        if self._service.ready_for(prepared):
            placed = self._service.place_now(prepared)
        else:
            try:
                # Whoever outruns the disk waits here, unread.
                async with asyncio.timeout(timeout_s):
                    placed = await self._service.place(prepared)
            except TimeoutError:
                raise timed_out("publishing", timeout_s) from None
        self._await_safety(prepared, pending, placed)

    def _refuse_after_failure(self, prepared: Prepared) -> None:
        if not self._blocked:
            return
        view = prepared.view
        for topic, partition in self._blocked:
            meets = partition is None or not view.HasField("partition") or view.partition == partition
            if topic == prepared.topic.name and meets:
                place = topic if partition is None else f"{topic}/{partition}"
                raise PostbusError(
                    Reason.ERROR_REASON_PREDECESSOR_FAILED,
                    f"an earlier request of this stream for {place} failed; nothing was appended:"
                    " open a new stream and send both again, in order",
                )

    def _await_safety(self, prepared: Prepared, pending: _Pending, placed: list[Published]) -> None:
        pending.placed = placed
        pending.unsafe = len(placed)
        for part in placed:
            partition = prepared.topic.partitions[part.partition]
            partition.when_safe(part.end_offset, pending.acks, self._when_safe(pending, part))

    def _when_safe(self, pending: _Pending, part: Published) -> Callable[[PostbusError | None], None]:
        def done(error: PostbusError | None) -> None:
            if error is not None:
                self._fail_request(pending, error)
                return
            pending.unsafe -= 1
            if len(pending.placed or ()) > 1:
                pending.safe = [*(pending.safe or []), part]
            if pending.unsafe == 0:
                self._wake.set()

        return done

    def _fail_request(self, pending: _Pending, error: PostbusError) -> None:
        if pending.failure is not None:
            return
        # Its traceback holds the request and the frame that holds `pending`: a cycle, until the collector comes.
        error.__traceback__ = None
        pending.failure = error
        if pending.topic and (error.kind.retriable or error.kind.outcome_unknown):
            if pending.placed is None:
                self._blocked.add((pending.topic, pending.partition))
            for part in pending.placed or ():
                self._blocked.add((pending.topic, part.partition))
        self._wake.set()

    async def _sweep(self, owner: asyncio.Task[None]) -> None:
        """Fails what took too long, and ends a stream whose client sends without ever reading its answers."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = self._service.clock.monotonic()
            for pending in self._pending:
                if pending.placed is not None and not pending.complete and pending.deadline <= now:
                    self._fail_request(pending, timed_out("publishing", self._service.settings.timeout_s))
            since = self._stream.writing_since
            if since is not None and now - since > self._service.settings.unread_timeout_s:
                await self._stream.end_unread(
                    owner,
                    PostbusError(
                        Reason.ERROR_REASON_QUOTA_EXCEEDED,
                        f"answers were not read for {self._service.settings.unread_timeout_s:g} s: read them while"
                        " you send; whether the unread ones succeeded is not known to you, so repeat with the same ids",
                        retry_after_ms=1000,
                    ),
                )
                return

    def _half_close(self) -> None:
        self._half_closed = True
        self._wake.set()

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._wake.set()

    def drain(self, draining: publisher_pb2.PublishStreamResponse) -> None:
        """Passes the news on."""
        self._draining = draining
        self._wake.set()

    def end(self) -> None:
        """Ends it when all that was received is answered."""
        self._ending = True
        self._wake.set()
