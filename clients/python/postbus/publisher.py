"""Publishing: chooses the partition, encodes, fills batches, and hands out what their fate can be awaited on.

Nothing here waits for the broker except for a topic's partition count and for room in the buffer. `pipeline` does the
sending. The cost of one `publish` call is what bounds a busy service, so it makes no task and no future, and joins
bytes instead of building messages.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from itertools import islice, repeat
from operator import mod
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypedDict
from zlib import crc32

from postbus import compression as codecs
from postbus import errors, wire
from postbus.lanes import BulkDelivery, Delivery, Lane, OutgoingBatch
from postbus.pipeline import Pipeline
from postbus.records import EventTime, Headers, NewRecord, Payload, to_bytes, to_headers, to_time_us
from postbus.v1 import publisher_pb2, topic_pb2

if TYPE_CHECKING:
    from postbus.connection import Connections
    from postbus.directory import Directory

log = logging.getLogger("postbus.publisher")

ACKS: Final = {
    "all": publisher_pb2.ACKS_ALL,
    "leader": publisher_pb2.ACKS_LEADER,
    "none": publisher_pb2.ACKS_NONE,
}
RECORD_BYTES_MAX: Final = 1024 * 1024
BATCH_BYTES_MAX: Final = 3 * 1024 * 1024
# The batch is a little more than the records as counted here: tags, lengths.
ENCODING_SLACK: Final = 64
# publish_many takes so many records at once, so that the loop gets its turn between.
CHUNK_RECORDS: Final = 1_000
# A publisher without keys stays on a partition until it sent a batch there or this time is over.
STICKY_TIME: Final = 0.1

BulkRecord = NewRecord | tuple[Payload | None, Payload | None] | Payload


class PublisherOptions(TypedDict, total=False):
    """Options of `client.publisher`; Publisher says what each means."""

    acks: str
    compression: str | None
    linger: float
    batch_bytes_max: int
    buffer_bytes_max: int
    delivery_timeout: float
    metadata_max_age: float
    direct: bool


class Publisher:
    """Publishes records. Made by `client.publisher(…)`; use it as `async with client.publisher() as publisher`.

    Safe for any number of tasks of one event loop. Records of one partition keep the order of their `publish` calls.

    acks: "all" (fsynced on every in-sync replica), "leader", or "none" (may be lost, no offsets).
    compression: None, "zstd", "lz4", "gzip" or "snappy"; needs the extra `postbus[compression]`.
    linger: seconds that a record waits for company while earlier ones are under way; never when none are.
    batch_bytes_max: a batch goes when it is so large; at most 3 MiB.
    buffer_bytes_max: held for records whose fate is open; above it `publish` waits.
    delivery_timeout: seconds until a record that could not be delivered fails with Timeout.
    metadata_max_age: seconds until added partitions are noticed.
    direct: records go straight to the nodes that lead their partitions, where these can be reached; False: all go to
        the node that the client is connected to, which forwards them.
    """

    def __init__(
        self,
        connections: Connections,
        directory: Directory,
        *,
        acks: str = "all",
        compression: str | None = None,
        linger: float = 0.005,
        batch_bytes_max: int = 512 * 1024,
        buffer_bytes_max: int = 32 * 1024 * 1024,
        delivery_timeout: float = 120.0,
        metadata_max_age: float = 60.0,
        direct: bool = True,
    ) -> None:
        if acks not in ACKS:
            raise errors.InvalidArgument(f"acks {acks!r} is none of: {', '.join(ACKS)}", field="acks")
        for name, number in (
            ("batch_bytes_max", batch_bytes_max),
            ("buffer_bytes_max", buffer_bytes_max),
            ("delivery_timeout", delivery_timeout),
            ("metadata_max_age", metadata_max_age),
        ):
            if number <= 0:
                raise errors.InvalidArgument(f"{name} must be above 0, not {number}", field=name)
        if linger < 0:
            raise errors.InvalidArgument(f"linger can't be negative: {linger}", field="linger")
        self._connections = connections
        self._batch_bytes_max = min(batch_bytes_max, BATCH_BYTES_MAX)
        self._metadata_max_age = metadata_max_age
        self._routes: dict[str, _Route] = {}
        self._opening: dict[str, asyncio.Task[_Route]] = {}
        self._refresher: asyncio.Task[None] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._pipeline = Pipeline(
            connections,
            directory if direct else None,
            acks=ACKS[acks],
            codec=codecs.codec(compression),
            linger=linger,
            buffer_bytes_max=buffer_bytes_max,
            delivery_timeout=delivery_timeout,
            on_missing=self._forget,
        )

    async def publish(
        self,
        topic: str,
        value: Payload | None,
        *,
        key: Payload | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        event_time: EventTime | None = None,
    ) -> Delivery:
        """Takes one record; waits only for room in the buffer. `await` the delivery to know that it is safe.

        value: bytes, or text (UTF-8); None is a tombstone. key: equal keys go to one partition, in order.
        partition: exactly where to. event_time: when it happened: a datetime with zone, or microseconds.
        Raises TopicNotFound, PartitionNotFound, InvalidArgument, TooLarge for this record alone.
        """
        pipeline = self._pipeline
        if pipeline.buffered_bytes >= pipeline.pause_bytes:
            await pipeline.pause()
        route = self._routes.get(topic)
        if route is None:
            route = await self._route(topic)
            pipeline.check_open()
        if partition is not None and partition >= len(route.lanes):
            route = await self._route(topic, at_least=partition + 1)
            pipeline.check_open()
        return self.put(route, value, key, headers, partition, event_time)

    def put(  # noqa: PLR0917 - one call for each record, which keywords would slow
        self,
        route: _Route,
        value: Payload | None,
        key: Payload | None,
        headers: Headers | None,
        partition: int | None,
        event_time: EventTime | None,
    ) -> Delivery:
        """Encodes a record into the open batch of its partition. Never waits."""
        encoded = _encode(value, key, headers, event_time)
        size_bytes = len(encoded)
        if size_bytes > route.record_bytes_max:
            route.check_size(encoded)
        free = False
        if partition is not None:
            lane = route.lane(partition)
        elif key is not None:
            lane = route.lanes[crc32(key if type(key) is bytes else to_bytes(key, "key")) % len(route.lanes)]
        else:
            lane, free = route.sticky, True
        batch = lane.open
        if batch is None or not batch.has_room(size_bytes, 1, route.batch_bytes_max):
            batch = self._open(route, lane, size_bytes, 1, free=free)
        batch.chunks.append(encoded)
        batch.size_bytes += size_bytes
        self._pipeline.buffered_bytes += size_bytes
        index = batch.record_count
        batch.record_count = index + 1
        return Delivery(batch, index)

    def _open(self, route: _Route, lane: Lane, size_bytes: int, record_count: int, *, free: bool) -> OutgoingBatch:
        """A batch with room, after the one of `lane` got full; of another lane if the records are free to go."""
        if lane.open is not None:
            self._pipeline.seal(lane)
        if free:
            lane = route.next_sticky(self._loop.time())
            if lane.open is not None and not lane.open.has_room(size_bytes, record_count, route.batch_bytes_max):
                self._pipeline.seal(lane)
        return lane.open or self._pipeline.open_batch(lane)

    async def publish_many(
        self, topic: str, records: Iterable[BulkRecord], *, partition: int | None = None
    ) -> BulkDelivery:
        """Takes many records at the least cost for each; waits only for room in the buffer.

        records: any iterable of values (bytes or text), (key, value) pairs, or NewRecord; kinds may be mixed.
        partition: where all of them go. Await the result for where they went: a list of PublishedRange.
        If one record is refused here (too large, a bad header), those before it were taken all the same.
        """
        pipeline = self._pipeline
        pipeline.check_open()
        route = await self._route(topic, at_least=0 if partition is None else partition + 1)
        if partition is not None:
            route.lane(partition)
        bulk = BulkDelivery()
        source = iter(records)
        while True:
            if pipeline.buffered_bytes >= pipeline.pause_bytes:
                await pipeline.pause()
                route = self._routes.get(topic) or await self._route(topic)
            pipeline.check_open()
            chunk = list(islice(source, CHUNK_RECORDS))
            if not chunk:
                return bulk
            kinds = set(map(type, chunk))
            if kinds == {bytes}:
                self._put_values(route, chunk, partition, bulk)  # type: ignore[arg-type]  # just looked
            elif kinds == {tuple} and partition is None:
                self._put_pairs(route, chunk, bulk)  # type: ignore[arg-type]  # just looked
            else:
                for each in chunk:
                    await self._put_one(topic, route, each, partition, bulk)

    async def _put_one(
        self, topic: str, route: _Route, each: BulkRecord, partition: int | None, bulk: BulkDelivery
    ) -> None:
        if isinstance(each, NewRecord):
            where = each.partition if each.partition is not None else partition
            if where is not None and where >= len(route.lanes):
                route = await self._route(topic, at_least=where + 1)
            delivery = self.put(route, each.value, each.key, each.headers, where, each.event_time)
        elif isinstance(each, tuple):
            key, value = each
            delivery = self.put(route, value, key, None, partition, None)
        else:
            delivery = self.put(route, each, None, None, partition, None)
        bulk.add(delivery._batch, delivery._index, 1)

    def _put_values(self, route: _Route, values: Sequence[bytes], partition: int | None, bulk: BulkDelivery) -> None:
        encoded = wire.values_only(values)
        size_bytes = len(encoded)
        if size_bytes > route.batch_bytes_max or size_bytes > route.record_bytes_max:
            if len(values) == 1:
                delivery = self.put(route, values[0], None, None, partition, None)
                bulk.add(delivery._batch, delivery._index, 1)
                return
            middle = len(values) // 2
            self._put_values(route, values[:middle], partition, bulk)
            self._put_values(route, values[middle:], partition, bulk)
            return
        lane = route.sticky if partition is None else route.lane(partition)
        batch = lane.open
        if batch is None or not batch.has_room(size_bytes, len(values), route.batch_bytes_max):
            batch = self._open(route, lane, size_bytes, len(values), free=partition is None)
        batch.chunks.append(encoded)
        batch.size_bytes += size_bytes
        self._pipeline.buffered_bytes += size_bytes
        bulk.add(batch, batch.record_count, len(values))
        batch.record_count += len(values)

    def _put_pairs(
        self, route: _Route, pairs: Sequence[tuple[Payload | None, Payload | None]], bulk: BulkDelivery
    ) -> None:
        try:
            keys, values = zip(*pairs, strict=True)
        except ValueError:
            raise errors.InvalidArgument("a tuple to publish is (key, value): two things", field="records") from None
        if set(map(type, keys)) != {bytes} or set(map(type, values)) != {bytes}:
            for key, value in pairs:
                delivery = self.put(route, value, key, None, None, None)
                bulk.add(delivery._batch, delivery._index, 1)
            return
        records = list(map(wire.keyed, keys, values))
        if max(map(len, records)) > route.record_bytes_max:
            for record in records:
                route.check_size(record)
        chunks: list[list[bytes]] = [[] for _ in route.lanes]
        add = [chunk.append for chunk in chunks]
        # Column by column in C, one Python step a record: at half a million records a second each counts.
        for where, record in zip(map(mod, map(crc32, keys), repeat(len(chunks))), records, strict=False):
            add[where](record)
        self._put_encoded(route, chunks, bulk)

    def _put_encoded(self, route: _Route, chunks: Sequence[list[bytes]], bulk: BulkDelivery) -> None:
        for lane, records in zip(route.lanes, chunks, strict=True):
            start = 0
            while start < len(records):
                batch = lane.open or self._pipeline.open_batch(lane)
                taken, size_bytes = batch.fitting(records, start, route.batch_bytes_max)
                if not taken:
                    self._pipeline.seal(lane)
                    continue
                batch.chunks += taken
                batch.size_bytes += size_bytes
                self._pipeline.buffered_bytes += size_bytes
                bulk.add(batch, batch.record_count, len(taken))
                batch.record_count += len(taken)
                start += len(taken)

    # --- topics --------------------------------------------------------------------------------------------------

    async def _route(self, topic: str, *, at_least: int = 0) -> _Route:
        """Partitions and limits of a topic, asked for once; again if fewer partitions are known than needed."""
        route = self._routes.get(topic)
        if route is not None and len(route.lanes) >= at_least:
            return route
        task = self._opening.get(topic)
        if task is None:
            # One question for all who wait, which goes on when one of them is cancelled.
            task = self._loop.create_task(self._ask(topic))
            self._opening[topic] = task
            task.add_done_callback(lambda _: self._opening.pop(topic, None))
        try:
            return await asyncio.shield(task)
        except errors.PostbusError as failure:
            raise failure.copy() from None

    async def _ask(self, topic: str) -> _Route:
        if not isinstance(topic, str):
            raise errors.InvalidArgument(f"a topic's name is text, not {type(topic).__name__}", field="topic")
        answer = await self._connections.call(
            "TopicService/GetTopic",
            topic_pb2.GetTopicRequest(name=topic),
            topic_pb2.GetTopicResponse.FromString,
            timeout=30.0,
        )
        found = answer.topic
        route = self._routes.get(topic)
        if route is None or len(route.lanes) != found.partition_count or route.topic_id != found.topic_id:
            route = _Route(
                topic, found.topic_id, [self._pipeline.lane(topic, number) for number in range(found.partition_count)]
            )
            self._routes[topic] = route
        limits = found.effective_config
        route.record_bytes_max = limits.max_record_bytes if limits.HasField("max_record_bytes") else RECORD_BYTES_MAX
        batch_bytes_max = limits.max_batch_bytes if limits.HasField("max_batch_bytes") else BATCH_BYTES_MAX
        route.batch_bytes_max = min(self._batch_bytes_max, batch_bytes_max - ENCODING_SLACK)
        if self._refresher is None and not self._closed:
            self._refresher = self._loop.create_task(self._refresh(), name="postbus-publisher-topics")
        return route

    async def _refresh(self) -> None:
        """Finds out about partitions that were added, and about limits that changed."""
        while True:
            await asyncio.sleep(self._metadata_max_age)
            for topic in list(self._routes):
                await self._ask_again(topic)

    async def _ask_again(self, topic: str) -> None:
        try:
            await self._ask(topic)
        except errors.NotFound:
            self._forget(topic)
        except errors.PostbusError as failure:
            log.info("no news of topic %s: %s", topic, failure)

    def _forget(self, topic: str) -> None:
        self._routes.pop(topic, None)
        self._pipeline.drop_idle(topic)

    # --- life ----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True: it takes nothing more."""
        return self._closed

    async def flush(self) -> None:
        """Sends everything now and waits until its fate is known; raises the first error that nobody has seen."""
        await self._pipeline.flush()

    async def close(self, *, timeout: float | None = None) -> None:
        """Flushes, then ends; raises what `flush` raises. After `timeout` seconds what is left fails as Closed."""
        if self._closed:
            return
        self._closed = True
        self._pipeline.pause_bytes = -1
        try:
            await asyncio.wait_for(self._pipeline.flush(), timeout)
        except (asyncio.TimeoutError, TimeoutError):  # the same class only from Python 3.11 on
            log.warning("closed with records under way: not flushed within %s s", timeout)
        finally:
            tasks = [*self._opening.values(), *([self._refresher] if self._refresher else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._pipeline.close()

    async def __aenter__(self) -> Publisher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
            return
        try:
            # Somebody wants to leave: what was published gets a moment, not two minutes.
            await self.close(timeout=5.0)
        except errors.PostbusError as failure:
            log.warning("while closing after %s: %s", type(error).__name__, failure)


class _Route:
    """A topic, as a publisher knows it."""

    __slots__ = (
        "batch_bytes_max",
        "lanes",
        "record_bytes_max",
        "sticky",
        "sticky_index",
        "sticky_until",
        "topic",
        "topic_id",
    )

    def __init__(self, topic: str, topic_id: str, lanes: list[Lane]) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.lanes = lanes
        self.record_bytes_max = RECORD_BYTES_MAX
        self.batch_bytes_max = BATCH_BYTES_MAX
        self.sticky_index = random.randrange(len(lanes)) if lanes else 0
        self.sticky = lanes[self.sticky_index]
        self.sticky_until = 0.0

    def lane(self, partition: int) -> Lane:
        """The lane of a partition that a caller named; raises PartitionNotFound."""
        if 0 <= partition < len(self.lanes):
            return self.lanes[partition]
        raise errors.PartitionNotFound(
            f"topic {self.topic!r} has partitions 0 to {len(self.lanes) - 1}, not {partition}",
            reason="PARTITION_NOT_FOUND",
            code=errors.NOT_FOUND,
            metadata={"partition_count": str(len(self.lanes))},
        )

    def next_sticky(self, now: float) -> Lane:
        """The lane for records without a key: another one after a full batch, or after a while."""
        lane = self.sticky
        if now >= self.sticky_until or lane.sealed or len(lane.in_flight) > 1:
            self.sticky_index = (self.sticky_index + 1) % len(self.lanes)
            self.sticky = self.lanes[self.sticky_index]
            self.sticky_until = now + STICKY_TIME
        return self.sticky

    def check_size(self, encoded: bytes) -> None:
        """Raises TooLarge; the broker would refuse the whole batch for one record."""
        # Without the tag and the length that place it in a batch.
        record_bytes = len(encoded) - 1 - len(wire.varint(len(encoded)))
        if record_bytes > self.record_bytes_max:
            raise errors.TooLarge(
                f"a record of {record_bytes} bytes; topic {self.topic!r} takes at most {self.record_bytes_max}",
                reason="TOO_LARGE",
                code=errors.INVALID_ARGUMENT,
                field="value",
                metadata={"limit": str(self.record_bytes_max)},
            )


def _encode(value: Payload | None, key: Payload | None, headers: Headers | None, event_time: EventTime | None) -> bytes:
    """A record as it lies in a batch."""
    if type(value) is not bytes and value is not None:
        value = to_bytes(value, "value")
    if key is not None and type(key) is not bytes:
        key = to_bytes(key, "key")
    if headers or event_time is not None or value is None:
        return wire.record(
            key=key,
            value=value,
            headers=to_headers(headers) if headers else (),
            event_time_us=to_time_us(event_time, "event_time") if event_time is not None else 0,
        )
    if key is None:
        return wire.VALUE_ONLY[len(value)] + value
    return wire.keyed(key, value)
