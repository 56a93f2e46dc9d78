"""Subscribing: records as they come, acknowledgement, and what a user may ask for while reading.

`subscribe_stream` holds the connection and fills a bounded queue; this module empties it. With automatic
acknowledgement a record counts as done once the next one is asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypedDict

from postbus import errors
from postbus.positions import Start, Stop, duration, start_position, stop_position
from postbus.reading import Reading
from postbus.records import Batch, Record
from postbus.subscribe_stream import Event, StreamRunner, SubscribePlan
from postbus.v1 import record_pb2, subscriber_pb2, topic_pb2

if TYPE_CHECKING:
    from postbus.connection import Connections

log = logging.getLogger("postbus.subscription")

ACK_MODES: Final = ("auto", "manual", "on_send")
KINDS: Final = {
    "": subscriber_pb2.GROUP_KIND_UNSPECIFIED,
    "ordered": subscriber_pb2.GROUP_KIND_ORDERED,
    "shared": subscriber_pb2.GROUP_KIND_SHARED,
}
OUT_OF_RANGE: Final = {
    "earliest": subscriber_pb2.OUT_OF_RANGE_POLICY_EARLIEST,
    "latest": subscriber_pb2.OUT_OF_RANGE_POLICY_LATEST,
    "fail": subscriber_pb2.OUT_OF_RANGE_POLICY_FAIL,
}
CLOSE_TIMEOUT: Final = 5.0
CLOSE_TIMEOUT_FAILED: Final = 2.0

TopicNames = str | subscriber_pb2.TopicSelector | Iterable[str | subscriber_pb2.TopicSelector]


class SubscribeOptions(TypedDict, total=False):
    """Options of `client.subscribe`; Subscription says what each means."""

    group: str
    start: Start | None
    positions: Mapping[tuple[str, int], int] | None
    partitions: Sequence[int]
    stop: Stop | None
    until_end: bool
    ack: str
    group_kind: str
    instance_id: str
    processing_timeout: float | timedelta | None
    window_records: int
    window_bytes: int
    batch_records_max: int
    response_bytes_max: int
    out_of_range: str
    assign_paused: bool
    heartbeat_interval: float | timedelta | None
    prefetch_bytes_max: int
    on_event: Callable[[Event], None] | None
    reconnect_timeout: float | None
    client_id: str
    rack: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a partition is.

    next_offset: the next that will be handed to you. committed_offset: the group's, 0 without one.
    """

    next_offset: int
    high_watermark: int
    committed_offset: int

    @property
    def lag(self) -> int:
        """Records between you and the end."""
        return max(0, self.high_watermark - self.next_offset)


class Subscription:
    """Records of topics. Made by `client.subscribe(…)`; iterate over it, or over `batches()`.

        async with client.subscribe("orders", group="billing") as subscription:
            async for record in subscription:
                handle(record)

    topics: a name, several, or TopicSelectors.
    group: its members share the partitions and remember how far they are. Empty: read alone, nothing is remembered.
    start: "earliest" (the default), "latest", an offset, a datetime, a timedelta (so long ago), Last(n). In a group:
        only where nothing is committed yet.
    positions: exact offsets by (topic, partition); win over `start`. Not in a group.
    partitions: only these, of each topic. Not in a group.
    stop: "latest", an offset or a datetime, exclusive; iteration ends there. Not in a group.
    until_end: True: ends when everything that was there at the start has been handed out.
    ack: "auto": a record is acknowledged when the next one is asked for, the last one when you leave without an
        exception (at least once); "manual": by `await record.ack()`; "on_send": the broker does when it sends (at most
        once).
    group_kind: "ordered" or "shared", if this creates the group.
    instance_id: a static member keeps its partitions while it restarts.
    processing_timeout: seconds without acknowledgement until the partitions go to somebody else (5 min).
    window_records, window_bytes: delivered and not acknowledged, at most. 0: the broker's 5,000 and 4 MiB.
    batch_records_max, response_bytes_max: 0 leaves it to the broker.
    out_of_range: "earliest", "latest" or "fail", where records to start from are gone.
    prefetch_bytes_max: read ahead of you, at most; above it the broker is not read from.
    on_event: called with an Event when partitions come or go, records were skipped, the connection changes.
    reconnect_timeout: seconds without any connection until iteration raises; None: never.
    """

    def __init__(
        self,
        connections: Connections,
        topics: TopicNames,
        *,
        group: str = "",
        start: Start | None = None,
        positions: Mapping[tuple[str, int], int] | None = None,
        partitions: Sequence[int] = (),
        stop: Stop | None = None,
        until_end: bool = False,
        ack: str = "auto",
        group_kind: str = "",
        instance_id: str = "",
        processing_timeout: float | timedelta | None = None,
        window_records: int = 0,
        window_bytes: int = 0,
        batch_records_max: int = 0,
        response_bytes_max: int = 0,
        out_of_range: str = "earliest",
        assign_paused: bool = False,
        heartbeat_interval: float | timedelta | None = None,
        prefetch_bytes_max: int = 8 * 1024 * 1024,
        on_event: Callable[[Event], None] | None = None,
        reconnect_timeout: float | None = None,
        client_id: str = "",
        rack: str = "",
    ) -> None:
        for name, value, known in (
            ("ack", ack, ACK_MODES),
            ("group_kind", group_kind, tuple(KINDS)),
            ("out_of_range", out_of_range, tuple(OUT_OF_RANGE)),
        ):
            if value not in known:
                raise errors.InvalidArgument(f"{name} {value!r} is none of: {', '.join(known)}", field=name)
        if group and (positions or partitions or stop is not None):
            raise errors.InvalidArgument(
                "positions, partitions and stop are for reading without a group", field="group"
            )
        if until_end and stop is not None:
            raise errors.InvalidArgument("give stop or until_end, not both", field="stop")
        selectors = _selectors(topics, partitions, positions or {})
        for selector in selectors:
            if until_end and not group:
                selector.stop_at.CopyFrom(stop_position("latest"))
            elif stop is not None:
                selector.stop_at.CopyFrom(stop_position(stop))
        message = subscriber_pb2.SubscribeStart(
            group=group,
            group_kind=KINDS[group_kind],
            instance_id=instance_id,
            window_records=window_records,
            window_bytes=window_bytes,
            max_batch_records=batch_records_max,
            max_response_bytes=response_bytes_max,
            assign_paused=assign_paused,
            out_of_range=OUT_OF_RANGE[out_of_range],
            client_id=client_id,
            rack=rack,
        )
        if start is not None:
            message.start_at.CopyFrom(start_position(start))
        if group:
            message.report_acks = ack != "on_send"
            message.ack_mode = subscriber_pb2.ACK_MODE_ON_SEND if ack == "on_send" else subscriber_pb2.ACK_MODE_EXPLICIT
        if processing_timeout is not None:
            message.processing_timeout.CopyFrom(duration(processing_timeout))
        if heartbeat_interval is not None:
            message.heartbeat_interval.CopyFrom(duration(heartbeat_interval))
        self._connections = connections
        self._group = group
        self._auto = bool(group) and ack == "auto"
        self._manual = bool(group) and ack == "manual"
        self._until_end = until_end
        self._plan = SubscribePlan(
            message, selectors, prefetch_bytes_max=prefetch_bytes_max, until_end=until_end and not group
        )
        self._runner = StreamRunner(
            connections,
            self._plan,
            make_batch=lambda delivered: Batch(delivered, self),
            on_event=on_event,
            on_tick=self._acknowledge_in_hand,
            on_void=self._void,
            reconnect_timeout=reconnect_timeout,
        )
        # The batch in hand, its records not handed out yet, and the record handed out last.
        self._batch: Batch | None = None
        self._rest: deque[Record] = deque()
        self._in_hand: Record | None = None
        self._closed = False

    # --- reading -------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Record]:
        return self._records()

    async def _records(self) -> AsyncIterator[Record]:
        while True:
            # Of an earlier iteration that was left: it goes on behind the record that was handed out last.
            rest = self._rest
            while rest:
                batch = self._batch
                assert batch is not None
                while rest:
                    self._in_hand = record = rest.popleft()
                    yield record
                    if batch.dropped:
                        rest.clear()
            self._done_with_batch()
            batch = await self._next_batch()
            if batch is None:
                return
            self._take(batch)

    async def get(self, *, timeout: float | None = None) -> Record | None:
        """The next record; None at the end. After `timeout` seconds without one raises asyncio.TimeoutError."""
        while not self._rest:
            self._done_with_batch()
            batch = await asyncio.wait_for(self._next_batch(), timeout)
            if batch is None:
                return None
            self._take(batch)
        self._in_hand = self._rest.popleft()
        return self._in_hand

    async def batches(self) -> AsyncIterator[Batch]:
        """Batch by batch: cheaper than record by record. With automatic acknowledgement a batch is acknowledged when
        the next one is asked for."""
        while True:
            batch = await self.get_batch()
            if batch is None:
                return
            yield batch

    async def get_batch(self, *, timeout: float | None = None) -> Batch | None:
        """The next batch; None at the end. After `timeout` seconds without one raises asyncio.TimeoutError."""
        if self._rest and self._in_hand is not None and self._batch is not None:
            # Single records of it were taken before: the rest comes as a batch of its own.
            batch = self._batch
            if self._auto:
                self._ack_range(batch, batch.base_offset, self._in_hand.offset + 1)
            batch.cut(self._in_hand.offset + 1, batch.end_offset)
            self._rest.clear()
            self._in_hand = None
            return batch
        self._done_with_batch()
        batch_or_end = await asyncio.wait_for(self._next_batch(), timeout) if timeout else await self._next_batch()
        self._batch = batch_or_end
        return batch_or_end

    def _take(self, batch: Batch) -> None:
        self._batch = batch
        self._rest = deque(batch.records)

    def _done_with_batch(self) -> None:
        batch, self._batch, self._in_hand = self._batch, None, None
        if batch is not None and self._auto and not batch.dropped:
            self._ack_range(batch, batch.base_offset, batch.end_offset)

    async def _next_batch(self) -> Batch | None:
        if self._closed:
            raise errors.Closed("the subscription is closed")
        runner = self._runner
        runner.start()
        while True:
            batch = runner.pop()
            if batch is not None:
                return batch
            if runner.ended:
                if runner.failure is not None:
                    raise runner.failure.copy()
                return None
            if self._until_end and self._group and runner.caught_up:
                return None
            await runner.wait()

    def _acknowledge_in_hand(self) -> None:
        """From time to time within a long batch: what lies before the record in hand is done."""
        batch, record = self._batch, self._in_hand
        if not self._auto or batch is None or record is None or batch.dropped:
            return
        if record.offset > batch.base_offset:
            self._ack_range(batch, batch.base_offset, record.offset)
            batch.base_offset = record.offset

    def _void(self, topic: str, partition: int) -> None:
        """The partition went elsewhere, or somebody sought in it: what is in hand of it is not ours any more."""
        batch = self._batch
        if batch is not None and batch.topic == topic and batch.partition == partition:
            batch.dropped = True
            self._rest.clear()

    # --- acknowledging -------------------------------------------------------------------------------------------

    def ack(self, done: Record | Batch | subscriber_pb2.Delivery) -> None:
        """Acknowledges a record, a batch, or a part of one. Returns at once; several go out together.

        Stale acknowledgements (the partition went elsewhere) don't count and are told as an Event.
        """
        self._check_manual()
        if isinstance(done, Record):
            self._ack_range(done.batch, done.offset, done.offset + 1)
        elif isinstance(done, Batch):
            self._ack_range(done, done.base_offset, done.end_offset)
        else:
            self._runner.acknowledge(done.topic, done.partition, done.base_offset, done.end_offset, done.fence)

    def nack(
        self,
        not_done: Record | Batch,
        *,
        delay: float | timedelta | None = None,
        dead_letter: bool = False,
        reason: str = "",
    ) -> None:
        """Not done: delivers again after `delay` (None: the group's back-off), or gives it to the dead letters.

        In an ordered group the partition waits and goes on from there.
        """
        self._check_manual()
        nack = subscriber_pb2.Nack(
            delivery=not_done.delivery(),
            action=subscriber_pb2.NACK_ACTION_DEAD_LETTER if dead_letter else subscriber_pb2.NACK_ACTION_REDELIVER,
            reason=reason,
        )
        if delay is not None:
            nack.delay.CopyFrom(duration(delay))
        self._runner.command.nacks.append(nack)
        self._runner.send()

    def _check_manual(self) -> None:
        if not self._manual:
            raise errors.FailedPrecondition('acknowledging by hand needs a group and ack="manual"')
        if self._closed:
            raise errors.Closed("the subscription is closed")

    def _ack_range(self, batch: Batch, begin: int, end: int) -> None:
        if begin < end:
            self._runner.acknowledge(batch.topic, batch.partition, begin, end, batch.fence)

    # --- moving --------------------------------------------------------------------------------------------------

    async def seek(self, to: Start, *, topic: str | None = None, partition: int | None = None) -> None:
        """Goes on from elsewhere; in a group this moves the committed offset too.

        topic, partition: None means all that are being read. What was read ahead is dropped.
        """
        for reading in self._chosen(topic, partition):
            offset = to if isinstance(to, int) else await self._resolve(reading, to)
            self._runner.seek(reading, offset)

    async def _resolve(self, reading: Reading, to: Start) -> int:
        answer = await self._connections.call(
            "TopicService/ListOffsets",
            topic_pb2.ListOffsetsRequest(
                topic=reading.topic, partitions=[reading.partition], at=start_position(to, "to")
            ),
            topic_pb2.ListOffsetsResponse.FromString,
            timeout=30.0,
        )
        (found,) = answer.partitions
        if found.HasField("failure"):
            raise errors.from_failure(found.failure)
        return found.offset

    async def pause(self, *, topic: str | None = None, partition: int | None = None) -> None:
        """Nothing more is handed out of these partitions until `resume`; None: of any."""
        for reading in self._chosen(topic, partition):
            self._runner.pause(reading, paused=True)

    async def resume(self, *, topic: str | None = None, partition: int | None = None) -> None:
        """Takes the pause back."""
        for reading in self._chosen(topic, partition):
            self._runner.pause(reading, paused=False)

    def _chosen(self, topic: str | None, partition: int | None) -> list[Reading]:
        readings = [
            reading
            for reading in self._runner.readings.values()
            if reading.assigned
            and (topic is None or reading.topic == topic)
            and (partition is None or reading.partition == partition)
        ]
        if partition is not None and not readings:
            raise errors.PartitionNotFound(f"partition {partition} is not being read here")
        return readings

    # --- looking -------------------------------------------------------------------------------------------------

    @property
    def assignment(self) -> list[tuple[str, int]]:
        """(topic, partition) of all that is being read."""
        return sorted(key for key, reading in self._runner.readings.items() if reading.assigned)

    @property
    def progress(self) -> dict[tuple[str, int], Progress]:
        """How far each partition is, as far as known here."""
        ahead: dict[tuple[str, int], int] = {}
        for batch in self._runner.queued():
            ahead.setdefault((batch.topic, batch.partition), batch.base_offset)
        if self._batch is not None and self._rest:
            ahead[self._batch.topic, self._batch.partition] = self._rest[0].offset
        return {
            key: Progress(
                ahead.get(key, reading.received_offset or 0), reading.high_watermark, reading.committed_offset
            )
            for key, reading in self._runner.readings.items()
            if reading.assigned
        }

    @property
    def lag(self) -> int:
        """Records between here and the end, over all partitions, as far as known here."""
        return sum(each.lag for each in self.progress.values())

    @property
    def member_id(self) -> str:
        """Who this is in the group; empty without a group, or before it started."""
        return self._plan.start.member_id

    # --- life ----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True: it hands out nothing more."""
        return self._closed

    async def close(self, *, failed: bool = False) -> None:
        """Leaves: acknowledges what is done, gives the partitions up, and waits until the broker has committed.

        failed: True: the record in hand is not done, and will be delivered again.
        """
        if self._closed:
            return
        self._closed = True
        batch = self._batch
        if batch is not None and self._auto and not batch.dropped:
            end = batch.end_offset
            if self._in_hand is not None and (failed or self._rest):
                end = self._in_hand.offset + (0 if failed else 1)
            elif failed:
                end = batch.base_offset
            self._ack_range(batch, batch.base_offset, end)
        await self._runner.close(timeout=CLOSE_TIMEOUT_FAILED if failed else CLOSE_TIMEOUT)

    async def __aenter__(self) -> Subscription:
        if self._closed:
            raise errors.Closed("the subscription is closed")
        self._runner.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(failed=error is not None)


def _selectors(
    topics: TopicNames, partitions: Sequence[int], positions: Mapping[tuple[str, int], int]
) -> list[subscriber_pb2.TopicSelector]:
    listed = [topics] if isinstance(topics, str | subscriber_pb2.TopicSelector) else list(topics)
    selectors: list[subscriber_pb2.TopicSelector] = []
    for each in listed:
        selector = subscriber_pb2.TopicSelector()
        if isinstance(each, str):
            selector.topic = each
        else:
            selector.CopyFrom(each)
        selector.partitions.extend(partitions)
        selectors.append(selector)
    by_topic = {selector.topic: selector for selector in selectors}
    for (topic, partition), offset in positions.items():
        if topic not in by_topic:
            raise errors.InvalidArgument(f"positions name {topic!r}, which is not subscribed to", field="positions")
        by_topic[topic].positions.append(record_pb2.Position(topic=topic, partition=partition, offset=offset))
    return selectors
