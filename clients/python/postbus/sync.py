"""The client without asyncio: the same names, no `await`, iterators instead of async ones.

A loop of its own runs in one background thread, shared by all sync clients of a process; calls hand their work to it
and wait. `publish` doesn't wait for the loop: records are put on a queue that the loop empties, many at a time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from postbus import errors
from postbus.admin import Groups, Topics
from postbus.client import Client, ClientOptions
from postbus.cluster import Cluster
from postbus.lanes import BulkDelivery, Delivery
from postbus.positions import Start
from postbus.publisher import BulkRecord, Publisher, PublisherOptions
from postbus.records import Batch, EventTime, Headers, Payload, Published, PublishedRange, Record
from postbus.subscription import Progress, SubscribeOptions, Subscription, TopicNames
from postbus.v1 import subscriber_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack

ResultT = TypeVar("ResultT")

# Records handed to the loop and not taken yet; above it publish() waits.
WAITING_MAX: Final = 4096
BULK_CHUNK: Final = 20_000


class _Loop:
    """The background loop: started by the first sync client, kept for the life of the process."""

    _lock = threading.Lock()
    _shared: asyncio.AbstractEventLoop | None = None

    @classmethod
    def get(cls) -> asyncio.AbstractEventLoop:
        """The running loop."""
        with cls._lock:
            if cls._shared is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="postbus", daemon=True).start()
                cls._shared = loop
            return cls._shared


def _run(work: Coroutine[Any, Any, ResultT], *, timeout: float | None = None) -> ResultT:
    """Runs `work` on the background loop and waits; Ctrl-C cancels it there."""
    future = asyncio.run_coroutine_threadsafe(work, _Loop.get())
    try:
        return future.result(timeout)
    except BaseException:
        future.cancel()
        raise


class SyncDelivery:
    """The fate of one record."""

    __slots__ = ("_delivery", "_failure", "_publisher")

    def __init__(self, publisher: SyncPublisher) -> None:
        self._publisher = publisher
        self._delivery: Delivery | None = None
        self._failure: errors.PostbusError | None = None

    def result(self, timeout: float | None = None) -> Published:
        """Where the record went; waits for it. Raises its error, or concurrent.futures.TimeoutError."""
        return _run(self._wait(), timeout=timeout)

    def done(self) -> bool:
        """True: `result` has an answer."""
        return self._failure is not None or (self._delivery is not None and self._delivery.done())

    async def _wait(self) -> Published:
        while self._delivery is None and self._failure is None:
            await self._publisher._progress()
        if self._failure is not None:
            raise self._failure.copy()
        assert self._delivery is not None
        return await self._delivery


class SyncBulkDelivery:
    """The fate of records that were published in one call."""

    def __init__(self, parts: list[BulkDelivery]) -> None:
        self._parts = parts

    @property
    def record_count(self) -> int:
        """How many were handed over."""
        return sum(part.record_count for part in self._parts)

    def result(self, timeout: float | None = None) -> list[PublishedRange]:
        """Where they went; waits for all; raises the first error."""
        return _run(self._wait(), timeout=timeout)

    async def _wait(self) -> list[PublishedRange]:
        ranges: list[PublishedRange] = []
        for part in self._parts:
            ranges += await part
        return ranges


_Call = tuple[str, Payload | None, Payload | None, Headers | None, int | None, EventTime | None, SyncDelivery]


class SyncPublisher:
    """As Publisher. Safe for several threads; records of one thread keep their order."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._loop = _Loop.get()
        self._waiting: deque[_Call] = deque()
        self._draining = False
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        # Used on the loop alone.
        self._taken = asyncio.Event()

    def publish(
        self,
        topic: str,
        value: Payload | None,
        *,
        key: Payload | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        event_time: EventTime | None = None,
    ) -> SyncDelivery:
        """Takes one record; waits only for room. What is wrong with it is told by its `result()`."""
        if self._publisher.closed:
            raise errors.Closed("the publisher is closed")
        delivery = SyncDelivery(self)
        with self._lock:
            while len(self._waiting) >= WAITING_MAX:
                self._room.wait(1.0)
            self._waiting.append((topic, value, key, headers, partition, event_time, delivery))
            if self._draining:
                return delivery
            self._draining = True
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop)
        return delivery

    async def _drain(self) -> None:
        while True:
            with self._lock:
                calls, self._waiting = self._waiting, deque()
                self._draining = bool(calls)
                self._room.notify_all()
            for call in calls:
                await self._publish(*call)
            self._taken.set()
            if not calls:
                return

    async def _publish(  # noqa: PLR0917 - a _Call, unpacked
        self,
        topic: str,
        value: Payload | None,
        key: Payload | None,
        headers: Headers | None,
        partition: int | None,
        event_time: EventTime | None,
        delivery: SyncDelivery,
    ) -> None:
        try:
            delivery._delivery = await self._publisher.publish(
                topic, value, key=key, headers=headers, partition=partition, event_time=event_time
            )
        except errors.PostbusError as failure:
            delivery._failure = failure
        except Exception as failure:  # a value of a kind that nobody thought of must not end the loop for others
            delivery._failure = errors.InvalidArgument(f"the record can't be published: {failure!r}")

    def publish_many(
        self, topic: str, records: Iterable[BulkRecord], *, partition: int | None = None
    ) -> SyncBulkDelivery:
        """Takes many records, behind all that `publish` took."""
        source = iter(records)
        parts: list[BulkDelivery] = []
        _run(self._drained())
        while chunk := list(islice(source, BULK_CHUNK)):
            parts.append(_run(self._publisher.publish_many(topic, chunk, partition=partition)))
        return SyncBulkDelivery(parts)

    async def _drained(self) -> None:
        while self._draining or self._waiting:
            await self._progress()

    async def _progress(self) -> None:
        """Until the loop has taken some of what waits. Only while something does."""
        self._taken.clear()
        await self._taken.wait()

    def flush(self) -> None:
        """Waits for the fate of everything; raises the first error that nobody has seen."""
        _run(self._flush())

    async def _flush(self) -> None:
        await self._drained()
        await self._publisher.flush()

    def close(self, *, timeout: float | None = None) -> None:
        """Flushes, then ends."""
        _run(self._close(timeout))

    async def _close(self, timeout: float | None) -> None:
        await self._drained()
        await self._publisher.close(timeout=timeout)

    def __enter__(self) -> SyncPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(timeout=5.0)
        except errors.PostbusError:
            return  # The error that is on its way says more.


class SyncSubscription:
    """As Subscription: `for record in subscription`, `for batch in subscription.batches()`."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def __iter__(self) -> Iterator[Record]:
        inner = self._subscription
        while True:
            # One hop between threads for a batch, none for its records; `get` keeps its place for acknowledging.
            while True:
                try:
                    record = inner._rest.popleft()
                except IndexError:
                    break  # Used up, or taken away by the loop's thread.
                inner._in_hand = record
                yield record
            record_or_end = _run(inner.get())
            if record_or_end is None:
                return
            yield record_or_end

    def batches(self) -> Generator[Batch, None, None]:
        """Batch by batch."""
        while True:
            batch = _run(self._subscription.get_batch())
            if batch is None:
                return
            yield batch

    def get(self, *, timeout: float | None = None) -> Record | None:
        """The next record; None at the end; TimeoutError after `timeout` seconds."""
        return _run(self._subscription.get(timeout=timeout))

    def ack(self, done: Record | Batch | subscriber_pb2.Delivery) -> None:
        """Acknowledges; see Subscription.ack. Doesn't wait."""
        self._subscription._check_manual()
        _Loop.get().call_soon_threadsafe(self._subscription.ack, done)

    def nack(
        self, not_done: Record | Batch, *, delay: float | None = None, dead_letter: bool = False, reason: str = ""
    ) -> None:
        """Not done; see Subscription.nack."""
        _run(_later(lambda: self._subscription.nack(not_done, delay=delay, dead_letter=dead_letter, reason=reason)))

    def seek(self, to: Start, *, topic: str | None = None, partition: int | None = None) -> None:
        """Goes on from elsewhere; see Subscription.seek."""
        _run(self._subscription.seek(to, topic=topic, partition=partition))

    def pause(self, *, topic: str | None = None, partition: int | None = None) -> None:
        """Stops partitions; see Subscription.pause."""
        _run(self._subscription.pause(topic=topic, partition=partition))

    def resume(self, *, topic: str | None = None, partition: int | None = None) -> None:
        """Goes on; see Subscription.resume."""
        _run(self._subscription.resume(topic=topic, partition=partition))

    @property
    def assignment(self) -> list[tuple[str, int]]:
        """(topic, partition) of all that is being read."""
        return self._subscription.assignment

    @property
    def progress(self) -> dict[tuple[str, int], Progress]:
        """How far each partition is."""
        return self._subscription.progress

    @property
    def lag(self) -> int:
        """Records between here and the end."""
        return self._subscription.lag

    @property
    def member_id(self) -> str:
        """Who this is in the group."""
        return self._subscription.member_id

    def close(self, *, failed: bool = False) -> None:
        """Leaves; see Subscription.close."""
        _run(self._subscription.close(failed=failed))

    def __enter__(self) -> SyncSubscription:
        _run(self._subscription.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)


class _SyncCalls:
    """An admin object whose methods wait instead of being awaited: same names, same arguments, same answers."""

    def __init__(self, calls: Topics | Groups | Cluster) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._calls, name)

        def call(*arguments: Any, **options: Any) -> Any:
            return _run(method(*arguments, **options))

        call.__doc__ = method.__doc__
        call.__name__ = name
        return call


class SyncClient:
    """As Client: `with SyncClient("localhost:7070") as client`. Options are those of Client."""

    def __init__(self, addresses: str | Iterable[str] = "localhost:7070", **options: Unpack[ClientOptions]) -> None:
        self._client = Client(addresses, **options)
        self._publisher: SyncPublisher | None = None
        self._publishers: list[SyncPublisher] = []
        self.topics: Any = _SyncCalls(self._client.topics)
        self.groups: Any = _SyncCalls(self._client.groups)
        self.cluster: Any = _SyncCalls(self._client.cluster)

    def connect(self) -> SyncClient:
        """Checks that something answers; `with` does so."""
        _run(self._client.connect())
        return self

    def publisher(self, **options: Unpack[PublisherOptions]) -> SyncPublisher:
        """As Client.publisher."""
        publisher = SyncPublisher(_run(_later(lambda: self._client.publisher(**options))))
        self._publishers.append(publisher)
        return publisher

    def publish(
        self,
        topic: str,
        value: Payload | None,
        *,
        key: Payload | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        event_time: EventTime | None = None,
    ) -> SyncDelivery:
        """As Client.publish; `.result()` waits for where the record went."""
        return self._default_publisher().publish(
            topic, value, key=key, headers=headers, partition=partition, event_time=event_time
        )

    def publish_many(
        self, topic: str, records: Iterable[BulkRecord], *, partition: int | None = None
    ) -> SyncBulkDelivery:
        """As Client.publish_many."""
        return self._default_publisher().publish_many(topic, records, partition=partition)

    def flush(self) -> None:
        """Waits for the fate of all that was published through the client."""
        if self._publisher is not None:
            self._publisher.flush()

    def append(
        self,
        topic: str,
        records: Iterable[BulkRecord],
        *,
        partition: int,
        expected_end_offset: int | None = None,
        request_id: str | None = None,
        timeout: float = 30.0,
    ) -> PublishedRange:
        """As Client.append."""
        return _run(
            self._client.append(
                topic,
                records,
                partition=partition,
                expected_end_offset=expected_end_offset,
                request_id=request_id,
                timeout=timeout,
            )
        )

    def subscribe(self, topics: TopicNames, **options: Unpack[SubscribeOptions]) -> SyncSubscription:
        """As Client.subscribe."""
        return SyncSubscription(self._client.subscribe(topics, **options))

    def fetch(
        self, topic: str, *, positions: Mapping[int, int] | None = None, **options: Any
    ) -> tuple[list[Batch], dict[int, int]]:
        """As Client.fetch."""
        return _run(self._client.fetch(topic, positions=positions, **options))

    def acknowledge(
        self, group: str, done: Iterable[Record | Batch | subscriber_pb2.Delivery], **options: Any
    ) -> subscriber_pb2.AckReport:
        """As Client.acknowledge."""
        return _run(self._client.acknowledge(group, done, **options))

    def _default_publisher(self) -> SyncPublisher:
        if self._publisher is None:
            self._publisher = self.publisher()
        return self._publisher

    def close(self, *, failed: bool = False) -> None:
        """As Client.close."""
        _run(self._close(failed))

    async def _close(self, failed: bool) -> None:
        for publisher in self._publishers:
            await publisher._drained()
        await self._client.close(failed=failed)

    def __enter__(self) -> SyncClient:
        _run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)


async def _later(act: Callable[[], ResultT]) -> ResultT:
    """Runs `act` on the loop: publishers are made there, acknowledgements noted there."""
    return act()
