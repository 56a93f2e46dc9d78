"""PublisherService: the unary call, the stream, and producer ids. What a request means is in publishing.py, and how its
parts reach the leaders in forwarding.py."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from postbus.v1 import publisher_pb2, record_pb2

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.replication.partition import Published
from broker.services import publish_route, publishing, requests
from broker.services.adapter import Call, ServerStream, from_storage, timed_out
from broker.services.batches import BatchPart
from broker.services.catch_up import CatchUp, may_pass
from broker.services.delivery import varint
from broker.services.forwarding import Forwarding, Work
from broker.services.publishing import Prepared, Publishing
from broker.storage.errors import StorageError
from broker.stubs import view_pb2

SWEEP_INTERVAL_S: Final = 1.0
# What is left of a caller's time for the way back: an answer that comes after the deadline tells nothing.
ANSWER_TIME_S: Final = 0.1
# Acknowledgements in one frame, so that none comes near any client's message limit.
ACKS_PER_FRAME_MAX: Final = 2000
# The same in bytes, overdrawn by one: an answer that names each record of a split batch may have 300 kB.
FRAME_BYTES_TARGET: Final = 512 * 1024
# Places that the details of a unary call's failure name, so that all trailers stay below 6 kB.
APPENDED_TOLD_MAX: Final = 20


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
        forwarding: Forwarding,
        has_room: Callable[[], bool],
        wait_for_room: Callable[[], Awaitable[None]],
        init_producer: Callable[[int, int], Awaitable[tuple[int, int]]],
        answered: Callable[[str, float], None],
        refused: Callable[[str, str], None] = lambda code, reason: None,
        clock: Clock,
        settings: PublisherSettings,
    ) -> None:
        self._publishing = publishing
        self.forwarding = forwarding
        self._has_room = has_room
        self._wait_for_room = wait_for_room
        self._init_producer = init_producer
        # For metrics: code and seconds of each request on a stream.
        self.answered = answered
        self.refused = refused  # code and reason of those that failed
        self.clock = clock
        self.settings = settings
        self.catch_up: CatchUp | None = None  # None: what is not known here does not exist
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
        view = self._publishing.parse(data)
        try:
            prepared = self._publishing.prepare(view)
        except PostbusError as refusal:
            prepared = await self.prepare_again(view, refusal)
        time_left_s = max(call.timeout_s - ANSWER_TIME_S, call.timeout_s * 0.9)
        timeout_s = min(time_left_s, self.settings.timeout_s)
        deadline = self.clock.monotonic() + timeout_s
        answer = _UnaryAnswer()
        try:
            async with asyncio.timeout(timeout_s):
                parts = self._publishing.split(prepared)
                earlier: list[Published] = []
                if self.must_wait(prepared, parts):
                    earlier = await self.wait(prepared, parts, deadline=deadline)
                self.submit(prepared, parts, answer, source=None, deadline=deadline, earlier=earlier)
                await answer.over.wait()
        except TimeoutError:
            if not answer.works:
                raise timed_out("publishing", timeout_s) from None
        finally:
            for work in answer.works:
                self.forwarding.give_up(work)
        failure = answer.failure_with_places()
        acks_none = prepared.view.acks == publisher_pb2.ACKS_NONE
        places = [] if acks_none else answer.places()
        answer.let_go()
        if failure is not None:
            raise failure
        return publishing.response(places).SerializeToString()

    async def prepare_again(self, view: view_pb2.PublishRequestView, refusal: PostbusError) -> Prepared:
        """A request that names what this node does not know, once it knows all that there is."""
        if self.catch_up is None or not may_pass(refusal):
            raise refusal
        await self.catch_up.wait()
        return self._publishing.prepare(view)

    def must_wait(self, prepared: Prepared, parts: list[BatchPart]) -> bool:
        """Whether `wait` comes before `submit`."""
        return self._publishing.waits(prepared, parts) or (
            not self._has_room() and self._publishing.goes_here(prepared, parts)
        )

    async def wait(self, prepared: Prepared, parts: list[BatchPart], *, deadline: float) -> list[Published]:
        """For room in this node's queue, and for what is known of the request's id."""
        if self._publishing.goes_here(prepared, parts):
            await self._wait_for_room()
        if not self._publishing.waits(prepared, parts):
            return []
        timeout_s = max(deadline - self.clock.monotonic(), 0.001)
        return await self._publishing.look_around(prepared, parts, timeout_s=timeout_s)

    def submit(
        self,
        prepared: Prepared,
        parts: list[BatchPart],
        answer: "_Answer",
        *,
        source: object | None,
        deadline: float,
        earlier: list[Published],
    ) -> None:
        """Sends the parts of a request on their way."""
        works = self._publishing.works(prepared, parts, owner=answer, source=source, deadline=deadline, earlier=earlier)
        answer.begin(works, earlier)
        for work in works:
            self.forwarding.submit(work)

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


class _Answer:
    """What becomes of a request: over once each of its parts is, whatever became of the others."""

    __slots__ = ("earlier", "failed", "failure", "fault", "left", "works")

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.earlier: list[Published] = []
        self.failed: tuple[Work, ...] = ()
        self.failure: PostbusError | None = None
        self.fault: Exception | None = None
        self.left = -1  # its parts are not known yet

    def begin(self, works: list[Work], earlier: list[Published]) -> None:
        """These are its parts."""
        self.works = works
        self.earlier = earlier
        self.left = len(works)
        if not works:
            self.complete()

    def part_done(self, work: Work, error: Exception | None) -> None:
        """One of them is over."""
        self.left -= 1
        if error is not None:
            self.part_failed(work, error)
        if self.left == 0:
            self.complete()

    def part_failed(self, work: Work, error: Exception) -> None:
        """The request fails, as unknown if any part is."""
        # Its traceback holds the request and the frame that holds this: a cycle, until the collector comes.
        error.__traceback__ = None
        self.failed = (*self.failed, work)
        if not isinstance(error, PostbusError):
            self.fault = error
        elif self.failure is None or (error.kind.outcome_unknown and not self.failure.kind.outcome_unknown):
            self.failure = error

    def complete(self) -> None:
        """All are."""

    def let_go(self) -> None:
        """It is answered. Its parts hold it: a cycle, in which their batches would wait for the collector."""
        self.works = []
        self.failed = ()

    def places(self) -> list[Published]:
        """Where its records are, as far as they are safe."""
        if len(self.works) == 1 and not self.failed and not self.earlier:  # nearly always
            return self.works[0].published
        return [*self.earlier, *(part for work in self.works if work not in self.failed for part in work.published)]


class _UnaryAnswer(_Answer):
    """A unary call waits for it."""

    __slots__ = ("over",)

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    def complete(self) -> None:
        self.over.set()

    def failure_with_places(self) -> Exception | None:
        """The failure, if any; of a request in several parts, with what was appended all the same."""
        if self.fault is not None or self.failure is None:
            return self.fault
        there = self.places()
        if there:
            self.failure.metadata["appended"] = ", ".join(
                f"{part.partition}: {part.base_offset} to {part.end_offset}" for part in there[:APPENDED_TOLD_MAX]
            )
        return self.failure


class _Pending(_Answer):
    """A request of a stream that is not answered yet."""

    __slots__ = ("acks", "correlation_id", "deadline", "partition", "received", "size_bytes", "stream", "topic")

    def __init__(self, stream: "_PublishStream", correlation_id: int, size_bytes: int, received: float) -> None:
        super().__init__()
        self.stream = stream
        self.correlation_id = correlation_id
        self.size_bytes = size_bytes
        self.received = received
        self.deadline = 0.0
        self.acks = 0
        self.topic = ""
        self.partition: int | None = None  # as the request says

    @property
    def answered(self) -> bool:
        return self.left == 0

    def part_failed(self, work: Work, error: Exception) -> None:
        super().part_failed(work, error)
        if self.failure is None:
            self.failure = publish_route.timed_out(
                f"{work.partition.topic}/{work.partition.number}"
            )  # the stream ends with the fault itself
        self.stream.part_failed(self, error)

    def complete(self) -> None:
        self.stream.wake()

    def fail(self, error: PostbusError) -> None:
        """Before anything of it was on its way."""
        error.__traceback__ = None
        self.failure = error
        self.left = 0

    def encode_ack(self) -> bytes:
        """The answer, as one element of `acks`: field 1 of PublishStreamResponse."""
        ack = publisher_pb2.PublishAck(correlation_id=self.correlation_id)
        if self.failure is None:
            ack.result.SetInParent()
            if self.acks != publisher_pb2.ACKS_NONE:
                publishing.fill(ack.result, self.places())
        else:
            ack.failure.CopyFrom(self.failure.failure())
            if there := self.places():
                publishing.fill(ack.partial, there)
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
                if not self._wake.is_set():
                    await self._wake.wait()
                self._wake.clear()
                if self._draining is not None:
                    draining, self._draining = self._draining, None
                    await self._stream.write(draining.SerializeToString())
                while self._pending and self._pending[0].answered:
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
            for pending in self._pending:
                for work in pending.works:
                    self._service.forwarding.give_up(work)

    def _answer(self) -> bytes:
        acks: list[bytes] = []
        size = 0
        now = self._service.clock.monotonic()
        while (
            self._pending and self._pending[0].answered and len(acks) < ACKS_PER_FRAME_MAX and size < FRAME_BYTES_TARGET
        ):
            answered = self._pending.popleft()
            self._pending_bytes -= answered.size_bytes
            code = "OK" if answered.failure is None else answered.failure.code.name
            self._service.answered(code, now - answered.received)
            if answered.failure is not None:
                self._service.refused(code, answered.failure.reason_name)
            ack = answered.encode_ack()
            answered.let_go()
            acks.append(ack)
            size += len(ack)
        if self._has_room():
            self._room.set()
        return b"".join(acks)

    def _has_room(self) -> bool:
        settings = self._service.settings
        return len(self._pending) < settings.stream_requests_max and self._pending_bytes < settings.stream_bytes_max

    async def _receive(self, data: bytes) -> None:
        if not self._room.is_set():
            await self._room.wait()
        view = self._publishing.parse_stream(data)
        pending = _Pending(self, view.correlation_id, len(data), self._service.clock.monotonic())
        self._pending.append(pending)
        self._pending_bytes += len(data)
        if not self._has_room():
            self._room.clear()
        try:
            await self._place(view, pending)
        except PostbusError as error:
            self._refuse(pending, error)
        except StorageError as error:
            self._refuse(pending, from_storage(error))
        except Exception:
            # A fault: the stream ends with it, and must not wait for an answer that nobody gives.
            self._pending.remove(pending)
            raise

    async def _place(self, view: view_pb2.PublishStreamRequestView, pending: _Pending) -> None:
        if requests.has_unknown_fields(view):
            requests.refuse_unknown(view)
        timeout_s = self._service.settings.timeout_s
        if view.HasField("timeout"):
            timeout_s = publishing.timeout_s(view.timeout, default_s=timeout_s)
        pending.deadline = pending.received + timeout_s
        if not view.HasField("publish"):
            raise errors.invalid_field("publish", "is required")
        publish = view.publish
        pending.topic = publish.topic
        if publish.HasField("partition"):
            pending.partition = publish.partition
        try:
            prepared = self._publishing.prepare(publish)
        except PostbusError as refusal:
            if may_pass(refusal):
                self._refuse_after_failure(publish)
            prepared = await self._service.prepare_again(publish, refusal)
        pending.acks = prepared.view.acks
        if self._ending:
            raise errors.draining()
        self._refuse_after_failure(prepared.view)
        parts = self._publishing.split(prepared)
        earlier: list[Published] = []
        if self._service.must_wait(prepared, parts):
            try:
                # Whoever outruns the disk waits here, unread.
                async with asyncio.timeout(timeout_s):
                    earlier = await self._service.wait(prepared, parts, deadline=pending.deadline)
            except TimeoutError:
                raise timed_out("publishing", timeout_s) from None
            # An earlier request may have failed meanwhile.
            self._refuse_after_failure(prepared.view)
        self._service.submit(prepared, parts, pending, source=self, deadline=pending.deadline, earlier=earlier)

    def _refuse_after_failure(self, view: view_pb2.PublishRequestView) -> None:
        if not self._blocked:
            return
        for topic, partition in self._blocked:
            meets = partition is None or not view.HasField("partition") or view.partition == partition
            if topic == view.topic and meets:
                raise publish_route.predecessor_failed(topic if partition is None else f"{topic}/{partition}")

    def _refuse(self, pending: _Pending, error: PostbusError) -> None:
        """Nothing of it is on its way."""
        pending.fail(error)
        self._block(pending, error, [pending.partition])
        self._wake.set()

    def part_failed(self, pending: _Pending, error: Exception) -> None:
        """A part of a request of this stream failed: what comes later must not overtake its repetition."""
        if isinstance(error, PostbusError):
            self._block(pending, error, [work.partition.number for work in pending.works])
        else:
            self._fail(error)

    def _block(self, pending: _Pending, error: PostbusError, partitions: Sequence[int | None]) -> None:
        if pending.topic and (error.kind.retriable or error.kind.outcome_unknown):
            self._blocked.update((pending.topic, partition) for partition in partitions)

    def wake(self) -> None:
        """A request may be answered."""
        self._wake.set()

    async def _sweep(self, owner: asyncio.Task[None]) -> None:
        """Fails what took too long, and ends a stream whose client sends without ever reading its answers."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = self._service.clock.monotonic()
            for pending in self._pending:
                if pending.deadline <= now and not pending.answered:
                    for work in pending.works:
                        self._service.forwarding.give_up(work)
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
